"""How a huge group is told: at once, merged, or by signals to pull. Pure: the time is passed in.

Its rate (messages a second, of the last seconds) times its audience (users with a session here)
are the deliveries that telling at once would cost. A level is entered as soon as that is above its
bound, and left, one level at a time, when it has been below half of it for ``HOLD_S``: so a rate
that plays around a bound does not change the level with every message, and a group that has become
quiet comes back by itself.

A bound is of one group. What all of them together are too much for shows in the deliveries that
wait: the more of them, the sooner a group counts as hot, and the longer are the windows
(``Crowding``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

RATE_S = 2.0  # what is older counts for less than a third
HOLD_S = 5.0
_LEAVE = 0.5


class Level(IntEnum):
    AT_ONCE = 0
    MERGED = 1  # what came in a window is one push
    SIGNALS = 2  # nothing is pushed: clients are told that there is something


CROWDED = 60_000  # deliveries that wait: more than half a second's work of one process
_RISES, _FALLS = 1.25, 0.9
CROWDING_MAX = 64.0


class Crowding:
    """``factor``: by how much deliveries count for more than they are, from 1 on."""

    def __init__(self) -> None:
        self.factor = 1.0

    def look(self, waiting: int) -> None:
        """A few times a second: so many deliveries to huge groups wait now."""
        if waiting > CROWDED:
            self.factor = min(CROWDING_MAX, self.factor * _RISES)
        elif waiting < CROWDED / 4:
            self.factor = max(1.0, self.factor * _FALLS)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Deliveries a second from which on a group is told that way."""

    merged: float
    signals: float

    def level(self, deliveries: float) -> Level:
        if deliveries >= self.signals:
            return Level.SIGNALS
        return Level.MERGED if deliveries >= self.merged else Level.AT_ONCE


class Heat:
    """Of one group."""

    def __init__(self, bounds: Bounds, now: float) -> None:
        self._bounds = bounds
        self._rate = 0.0
        self._at = now
        self._cool_since = now  # since when it has been cool enough for the level below
        self.level = Level.AT_ONCE

    def rate(self, now: float) -> float:
        """Messages a second. A burst of n raises it by n / RATE_S."""
        return self._rate * math.exp((self._at - now) / RATE_S)

    def said(self, messages: int, audience: float, now: float) -> Level:
        """So many more, to so many users. The level from now on."""
        self._rate = self.rate(now) + messages / RATE_S
        self._at = now
        return self.look(audience, now)

    def look(self, audience: float, now: float) -> Level:
        """The level now, when nothing was said since."""
        deliveries = self.rate(now) * audience
        hot = self._bounds.level(deliveries)
        if hot >= self.level:
            self._cool_since = now
            self.level = hot
        elif self._bounds.level(deliveries / _LEAVE) >= self.level:
            self._cool_since = now  # below its bound, but not by so much
        elif now - self._cool_since >= HOLD_S:
            self.level = Level(self.level - 1)
            self._cool_since = now
        return self.level
