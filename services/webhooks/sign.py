"""The signature of a delivery: who receives it knows by whom it was made, and when. Pure."""

from __future__ import annotations

import hmac
from hashlib import sha256

TOLERANCE_MS = 300_000


def signature(secret: bytes, timestamp_ms: int, body: bytes) -> str:
    """HMAC-SHA256 over ``TIMESTAMP.BODY``, so that neither can be changed, nor an old body be sent
    under a new time."""
    return "v1=" + hmac.new(secret, b"%d." % timestamp_ms + body, sha256).hexdigest()


def verifies(
    secret: bytes, timestamp_ms: int, body: bytes, shown: str, now_ms: int,
    tolerance_ms: int = TOLERANCE_MS,
) -> bool:  # fmt: skip
    """For receivers: signed with this secret, and not longer ago than the tolerance."""
    fresh = abs(now_ms - timestamp_ms) <= tolerance_ms
    right = signature(secret, timestamp_ms, body).encode()
    # As bytes: a text that is not ASCII, which anybody may send, would be an error and no answer.
    return hmac.compare_digest(right, shown.encode(errors="replace")) and fresh
