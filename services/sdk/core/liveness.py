"""Whether the connection is alive, and when to say so. Pure: the time (seconds) is passed in.

Only an answered heartbeat proves that the whole way to the session works. A connection on which
bytes still come but heartbeats are not answered is a client that looks online and is dead.
"""

from __future__ import annotations

import random
from enum import Enum

from services.sdk.core.parameters import Parameters

ACK_EVERY_S = 1.0  # pushes are acked by a heartbeat at most this often


class Due(Enum):
    NOTHING = "nothing"
    HEARTBEAT = "heartbeat"
    IDLE_PULL = "idle pull"
    DEAD = "dead"


class Liveness:
    def __init__(self, parameters: Parameters, rng: random.Random, now: float) -> None:
        self._rng = rng
        self._interval = parameters.heartbeat_ms / 1000
        self._timeout = parameters.heartbeat_timeout_ms / 1000
        self._idle = parameters.idle_pull_ms / 1000
        self._quiet: float | None = None  # in the background: between two heartbeats
        self._asked: float | None = None  # when the heartbeat that is not answered was sent
        self._last_sent = now
        self._news = now
        self._unacked = False
        # The first heartbeat comes anywhere in the interval: clients that connected together
        # spread out; later ones vary by a fifth.
        self._next = now + rng.uniform(0.2, 1.0) * self._interval

    def sent(self, now: float, more: bool = False) -> None:
        """A heartbeat went out. ``more``: not all acks fitted; the next has to follow soon."""
        self._asked = now
        self._last_sent = now
        self._unacked = more
        self._next = now + self._rng.uniform(0.8, 1.0) * (self._quiet or self._interval)

    def quiet(self, seconds: float | None) -> None:
        """From the next heartbeat on so long between two, and nothing else that breaks the silence:
        what is missing is named by a heartbeat's answer. None: as usual."""
        self._quiet = seconds

    def within(self, now: float, seconds: float) -> None:
        """The next heartbeat is due in so long, or earlier."""
        self._next = min(self._next, now + seconds)

    def answered(self) -> bool:
        """Whether the next is due before this one would have been overdue."""
        asked, self._asked = self._asked, None
        return asked is not None and self._next < asked + self._timeout

    def news(self, now: float, to_ack: bool) -> None:
        """Something other than a heartbeat's answer came."""
        self._news = now
        self._unacked = self._unacked or to_ack

    def pulled(self, now: float) -> None:
        """An idle pull was made: the next is an interval away."""
        self._news = now

    def due(self, now: float) -> Due:
        if self._asked is not None:
            return Due.DEAD if now >= self._asked + self._timeout else Due.NOTHING
        if now >= self._next or (self._unacked and now >= self._last_sent + ACK_EVERY_S):
            return Due.HEARTBEAT
        if self._quiet is None and now >= self._news + self._idle:
            return Due.IDLE_PULL
        return Due.NOTHING

    def next_look(self, now: float) -> float:
        """Seconds until ``due`` can change by itself."""
        if self._asked is not None:
            at = self._asked + self._timeout
        else:
            at = self._next
            if self._unacked:
                at = min(at, self._last_sent + ACK_EVERY_S)
            if self._quiet is None:
                at = min(at, self._news + self._idle, max(self._last_sent, now) + ACK_EVERY_S)
        return max(at - now, 0.01)
