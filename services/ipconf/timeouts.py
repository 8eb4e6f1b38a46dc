"""Time-outs by kind of network, computed from what clients say that theirs took. Pure: seconds come
in.

With the question where to connect a client says how long its last connect took, and its slowest
heartbeat. Only what succeeded is said: a gateway that is dead tells nothing of its clients'
network, and must not take longer to leave. What comes late is seen all the same, since a client
that no gateway answers waits longer by itself (``services.sdk.core.timing``).

A time-out to connect may become shorter than the region file's, down to half of it. One of a
heartbeat may not: what would come after it is never seen, as the connection is given up, so one
that is too short would prove itself right.

Nobody moves them by himself: a user counts once an hour, an address twice, and what counts is what
19 of 20 need, of at least a hundred.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

REPORTED_MS_MAX = 60_000  # a device that was asleep meanwhile measures anything
QUANTILE = 0.95
TIMES = 2  # what nearly all need
LEAST = 100.0  # reports, by their weight; with fewer the region file's values hold
HALF_S = 3_600.0  # a report counts half after so long
WINDOW_S = 3_600.0  # in which a user is heard once
OF_ONE_ADDRESS = 2  # users in a window; many are behind one, and they have one network
UIDS_MAX = 10_000  # in a window; whoever comes after so many tells nothing new

_GROWTH = 1.1  # from a bucket's bound to the next: the error
_BUCKETS = math.ceil(math.log(REPORTED_MS_MAX, _GROWTH)) + 1


class Bounds(NamedTuple):
    """Of one kind of network. ``timeout_max_ms``: no report raises a time-out above it; 0: reports
    change none."""

    connect_timeout_ms: int
    heartbeat_timeout_ms: int
    timeout_max_ms: int


class Sketch:
    """A histogram of durations that forgets: a weight is halved every ``HALF_S``."""

    def __init__(self) -> None:
        self._weights = [0.0] * _BUCKETS  # as they were at ``_at``: those of later reports are more
        self._at = 0.0

    def add(self, ms: int, now: float) -> None:
        lives = (now - self._at) / HALF_S
        if lives > 30:
            self._weights = [weight * 0.5**lives for weight in self._weights]
            self._at, lives = now, 0.0
        bucket = math.ceil(math.log(max(1, ms), _GROWTH))
        self._weights[min(bucket, _BUCKETS - 1)] += 2.0**lives

    def weight(self, now: float) -> float:
        """1 for a report of now."""
        return sum(self._weights) * math.pow(0.5, (now - self._at) / HALF_S)

    def quantile(self, share: float) -> int:
        """So many ms or fewer took this share of them; 0 where there is none."""
        up_to = list(accumulate(self._weights))
        if not up_to[-1]:
            return 0
        return math.ceil(_GROWTH ** bisect_left(up_to, share * up_to[-1]))


class _Network:
    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.connects = Sketch()
        self.heartbeats = Sketch()
        self._heard: deque[tuple[float, str, str]] = deque()  # when, who, from where
        self._uids: set[str] = set()
        self._of_address: Counter[str] = Counter()

    def takes(self, uid: str, address: str, now: float) -> bool:
        while self._heard and now - self._heard[0][0] >= WINDOW_S:
            _, gone, left = self._heard.popleft()
            self._uids.discard(gone)
            self._of_address[left] -= 1
            if not self._of_address[left]:
                del self._of_address[left]
        if uid in self._uids or len(self._uids) >= UIDS_MAX:
            return False
        if address and self._of_address[address] >= OF_ONE_ADDRESS:
            return False
        self._heard.append((now, uid, address))
        self._uids.add(uid)
        self._of_address[address] += 1
        return True


class Timeouts:
    """``bounds``: by kind of network."""

    def __init__(self, bounds: Mapping[str, Bounds]) -> None:
        self._networks = {
            name: _Network(each) for name, each in bounds.items() if each.timeout_max_ms
        }

    def hear(
        self,
        network: str,
        uid: str,
        address: str,
        connect_ms: int | None,
        heartbeat_ms: int | None,
        now: float,
    ) -> None:
        """What a client needed, up to ``REPORTED_MS_MAX``; None: it does not say. ``address``:
        where it came from; empty: not known."""
        found = self._networks.get(network)
        if found is None or (connect_ms is None and heartbeat_ms is None):
            return
        if not found.takes(uid, address, now):
            return
        if connect_ms is not None:
            found.connects.add(connect_ms, now)
        if heartbeat_ms is not None:
            found.heartbeats.add(heartbeat_ms, now)

    def of(self, network: str, now: float) -> dict[str, int]:
        """By the names of the client's parameters; empty where nothing is computed."""
        found = self._networks.get(network)
        if found is None:
            return {}
        connect_ms, heartbeat_ms, most_ms = found.bounds
        return {
            "connect_timeout_ms": _timeout_ms(
                found.connects, connect_ms, connect_ms // 2, most_ms, now
            ),
            "heartbeat_timeout_ms": _timeout_ms(
                found.heartbeats, heartbeat_ms, heartbeat_ms, most_ms, now
            ),
        }


def _timeout_ms(sketch: Sketch, fixed_ms: int, least_ms: int, most_ms: int, now: float) -> int:
    if sketch.weight(now) < LEAST:
        return fixed_ms
    wanted_ms = TIMES * sketch.quantile(QUANTILE)
    return max(least_ms, min(wanted_ms, max(fixed_ms, most_ms)))
