"""How long things take in the present network, and how long to wait for them. Pure.

A time-out that is too short for a network hides itself: what would come later is never seen. So
where the service answers and no gateway does, the next try waits twice as long; what then succeeds
is what the service has to be told.
"""

from __future__ import annotations

from services.sdk.core.parameters import Parameters

SAID_MS_MAX = 60_000  # longer took what a device slept through
_FACTOR_MAX = 64


class Slowest:
    """Of what succeeded since the service was last told; None: nothing did."""

    def __init__(self) -> None:
        self.connect_ms: int | None = None
        self.heartbeat_ms: int | None = None

    def connected(self, seconds: float) -> None:
        """The slower of the two steps that have the time-out: dial and sign-in."""
        self.connect_ms = _slower(self.connect_ms, seconds)

    def answered(self, seconds: float) -> None:
        """A heartbeat."""
        self.heartbeat_ms = _slower(self.heartbeat_ms, seconds)


class Patience:
    """In one network: how much longer than told a gateway is waited for."""

    def __init__(self) -> None:
        self._factor = 1
        self._silence = False
        self._word = False

    def timeout_s(self, told: Parameters) -> float:
        """Never longer than the service allows, nor shorter than it says."""
        longer_ms = min(self._factor * told.connect_timeout_ms, told.timeout_max_ms)
        return max(told.connect_timeout_ms, longer_ms) / 1000

    def begins(self) -> None:
        """A round of tries."""
        self._silence = self._word = False

    def failed(self, reason: str) -> None:
        """One of them, as ``Lost`` says."""
        if reason in ("timeout", "mute"):
            self._silence = True
        else:
            self._word = True  # it came in time, so the path is not what is slow

    def in_vain(self) -> None:
        """The round is over, and nobody has taken us."""
        if self._silence and not self._word:
            self._factor = min(2 * self._factor, _FACTOR_MAX)

    def connected(self, seconds: float, told: Parameters) -> None:
        """A connect took so long."""
        if seconds * 1000 <= told.connect_timeout_ms:
            self._factor = 1


def _slower(known_ms: int | None, seconds: float) -> int | None:
    ms = round(seconds * 1000)
    return known_ms if ms > SAID_MS_MAX else max(known_ms or 0, ms)
