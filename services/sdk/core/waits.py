"""How long to wait before what was put off is asked for again. Pure."""

from __future__ import annotations

import random

from imcore.proto import client_pb2 as pb

RETRY_MS = 200  # when the service names no time
WAIT_MAX_MS = 60_000  # what a service may ask for at most
GROWN_MAX_MS = 5_000  # what goes on failing is asked for so seldom, and had again so soon
SPREAD = 0.5  # those who were turned away together do not come back together


def again_s(error: pb.Error, rng: random.Random, failed: int = 1) -> float:
    """Never sooner than the service has said, and up to half as long again. ``failed``: so many
    times in a row; it is asked again ever more rarely, up to a bound."""
    asked_ms = min(error.retry_after_ms or RETRY_MS, WAIT_MAX_MS)
    grown_ms = min(asked_ms << min(failed - 1, 16), GROWN_MAX_MS)
    return max(asked_ms, grown_ms) * (1 + SPREAD * rng.random()) / 1000
