"""A circuit breaker: a role that does not answer is not asked for a while. Pure: seconds come in.

Whoever waits for a role that is stuck holds memory and a place in its queue, and finds out after a
full deadline what the one before had found out already. So after some failures in a row with no
success between, calls are refused at once; then one at a time is let through to try, with doubling
pauses between, and the first that succeeds closes the circuit again.
"""

from __future__ import annotations


class Breaker:
    """``failures`` in a row open it, for ``pause_s`` first and ``pause_max_s`` at most."""

    def __init__(self, failures: int, pause_s: float, pause_max_s: float) -> None:
        self._failures_max = failures
        self._pause_first_s = pause_s
        self._pause_max_s = pause_max_s
        self._pause_s = pause_s
        self._failures = 0
        self._until = 0.0
        self.opened = 0  # times

    @property
    def is_open(self) -> bool:
        return self._failures >= self._failures_max

    def wait_s(self, now: float) -> float:
        """0: call. Else ask again in so many seconds. When a pause is over one caller is let
        through to try, and the others wait for another pause, whatever becomes of it."""
        if not self.is_open:
            return 0.0
        if now < self._until:
            return self._until - now
        self._until = now + self._pause_s
        return 0.0

    def succeeded(self) -> None:
        self._failures = 0
        self._pause_s = self._pause_first_s

    def failed(self, now: float) -> None:
        was_open = self.is_open
        self._failures += 1
        if not self.is_open:
            return
        if was_open:
            self._pause_s = min(2 * self._pause_s, self._pause_max_s)
        else:
            self.opened += 1
        self._until = now + self._pause_s
