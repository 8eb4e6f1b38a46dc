"""Token buckets: how much of something is let through in a time. Pure: seconds come in."""

from __future__ import annotations

from collections import OrderedDict


class Bucket:
    """Refilled with ``per_s`` tokens a second up to ``burst``, which it holds at first. What costs
    more than there is may go into debt, which is paid before anything else gets through: so a cost
    above ``burst`` waits no longer than it is worth."""

    __slots__ = ("_at", "_burst", "_per_s", "_tokens")

    def __init__(self, per_s: float, burst: float, now: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float, cost: float = 1.0) -> float:
        """0: taken. Else nothing was taken, and there is something again in so many seconds."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        least = min(1.0, self._burst)
        if self._tokens < least:
            return (least - self._tokens) / self._per_s
        self._tokens -= cost
        return 0.0

    def is_full(self, now: float) -> bool:
        return self._tokens + (now - self._at) * self._per_s >= self._burst


class Buckets:
    """One bucket a key. At most ``kept``: the one that was used longest ago is forgotten first, and
    is full when it is seen again."""

    def __init__(self, per_s: float, burst: float, kept: int = 50_000) -> None:
        self._per_s = per_s
        self._burst = burst
        self._kept = kept
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, now: float, cost: float = 1.0) -> float:
        """As of the key's bucket."""
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._kept:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = Bucket(self._per_s, self._burst, now)
        else:
            self._buckets.move_to_end(key)
        return bucket.take(now, cost)
