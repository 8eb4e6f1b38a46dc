"""When and where to connect again. Pure: times come in, a plan comes out.

First fast retries at the same gateway (it may only have dropped one connection, and the session
waits there), then ipconf, with exponential back-off and full jitter so that clients that lost
their gateway together do not come back together. A connection that did not last counts as a
failure even though it was accepted: a gateway that accepts and drops at once is backed off from.
"""

from __future__ import annotations

import random
from enum import Enum
from typing import NamedTuple

from services.sdk.core.parameters import Parameters

STEADY_MS = 5_000  # a connection that lived as long resets the back-off
FAST_RETRY_JITTER_MS = 50
FOR_GOOD = ("replaced", "kicked")  # whoever comes back unasked would put the other one out
RETRY_AFTER_MAX_MS = 600_000  # of what a service asks for


class Where(Enum):
    SAME = "same gateway"
    IPCONF = "ask ipconf"
    NOWHERE = "do not reconnect"


class Plan(NamedTuple):
    where: Where
    delay_ms: int


class Lost(NamedTuple):
    """How a connection (or an attempt at one) ended.

    ``reason``: of ``Close`` (replaced, kicked, moved, drained, slow_consumer, idle, protocol,
    shutdown), or ``refused`` (nobody listens), ``timeout``, ``mute`` (connected, and then not a
    word), ``dead`` (no heartbeat answer), ``forgotten`` (none after a long silence), ``lost``,
    ``unavailable``, ``no_answer`` (no ipconf answers), ``unauthenticated`` (by one IDC),
    ``outbox`` (it could not be written)."""

    reason: str
    lived_ms: int = 0  # since it was fully connected; 0: it never was
    retry_after_ms: int = 0


class Reconnect:
    def __init__(self, rng: random.Random) -> None:
        self.parameters = Parameters()
        self.failures = 0  # in a row, without a steady connection between
        self._rng = rng

    def lost(self, lost: Lost) -> Plan:
        if lost.reason in FOR_GOOD:
            return Plan(Where.NOWHERE, 0)
        if lost.lived_ms >= STEADY_MS:
            self.failures = 0
        self.failures += 1
        same = (
            self.failures <= self.parameters.fast_retries
            and lost.reason in ("lost", "dead", "forgotten", "refused", "slow_consumer", "idle")
            and not lost.retry_after_ms
        )
        if same:
            bound = FAST_RETRY_JITTER_MS if self.failures == 1 else self._bound()
            delay_ms = self._rng.randint(0, bound)
        elif self.failures == 1 and not lost.retry_after_ms:
            delay_ms = self._rng.randint(0, self.parameters.backoff_base_ms)
        else:
            delay_ms = self._rng.randint(0, self._bound())
        if lost.retry_after_ms:
            delay_ms += min(lost.retry_after_ms, RETRY_AFTER_MAX_MS)
        return Plan(Where.SAME if same else Where.IPCONF, delay_ms)

    def _bound(self) -> int:
        doubled = self.parameters.backoff_base_ms << min(self.failures, 16)
        return min(self.parameters.backoff_max_ms, doubled)
