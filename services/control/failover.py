"""Failure detection without I/O: observations with their times in, votes out.

Times are seconds on the voter's own monotonic clock. An IDC is accused while at least two of three
signs stand: probes of it fail, its gateways' leases have ended, its clients report it. One bad link
shows as one accuser, which is never a majority of three.

A process that was paused sees everybody silent when it wakes. So a gap between two ticks (or a
probe that a gap falls into) counts against nobody: all signs start again from the wake-up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from services.control.evidence import Vote

STALL_S = 0.5  # a gap of this length between ticks means that the process itself was away
PROBES_FAIL_S = 0.9  # probes have failed for so long ...
PROBES_FAIL_MIN = 2  # ... and at least so often
REPORTERS_MIN = 3  # distinct uids in the report window

_PROBES = "probes fail"


class Ballot(NamedTuple):
    """This voter's word on one IDC. ``since``: when the evidence began."""

    accused: str
    since: float
    signs: tuple[str, ...]

    def sentence(self, now: float) -> str:
        return f"{self.accused}: {', '.join(self.signs)} for {now - self.since:.1f} s"


@dataclass(slots=True)
class _Peer:
    failing_since: float | None = None
    failures: int = 0
    leases_ended_since: float | None = None
    ever_live: bool = False  # gateways that never were alive have not ended
    reporters: int = 0
    reported_since: float | None = None


class Detector:
    """One voter's view. ``own`` is never accused by itself."""

    def __init__(self, own: str, idcs: Iterable[str], hold_ms: int, now: float) -> None:
        self._hold_s = hold_ms / 1000
        self._peers = {name: _Peer() for name in idcs if name != own}
        self._ticked = now
        self._awake_since = now  # what began before this counts for nothing
        self._majority_at = now

    def tick(self, now: float, clock_jumped: bool = False) -> bool:
        """Call every 100 ms. True when the process itself was away, and all evidence is void."""
        stalled = now - self._ticked > STALL_S or clock_jumped
        self._ticked = now
        if stalled:
            self._awake_since = self._majority_at = now
            for peer in self._peers.values():
                peer.failing_since = peer.leases_ended_since = peer.reported_since = None
                peer.failures = peer.reporters = 0
        return stalled

    def probed(self, idc: str, ok: bool, started: float, now: float) -> None:
        peer = self._peers.get(idc)
        if peer is None:
            return
        if ok:
            peer.failing_since, peer.failures = None, 0
        elif started >= self._awake_since and not self._stalls(now):
            peer.failures += 1
            if peer.failing_since is None:
                peer.failing_since = started

    def leases(self, idc: str, live: int, now: float) -> None:
        """How many of the IDC's gateways hold a live lease, as far as can be seen from here."""
        peer = self._peers.get(idc)
        if peer is None:
            return
        if live > 0:
            peer.ever_live, peer.leases_ended_since = True, None
        elif peer.leases_ended_since is None and not self._stalls(now):
            peer.leases_ended_since = now

    def reported(self, idc: str, reporters: int, now: float) -> None:
        """Distinct uids that could not reach the IDC, in the last seconds."""
        peer = self._peers.get(idc)
        if peer is None or self._stalls(now):
            return
        peer.reporters = reporters
        if reporters < REPORTERS_MIN:
            peer.reported_since = None
        elif peer.reported_since is None:
            peer.reported_since = now

    def majority_answered(self, now: float) -> None:
        self._majority_at = now

    def in_minority(self, now: float) -> bool:
        """No majority of the registries has answered for the hold time (while awake)."""
        return now - self._majority_at > self._hold_s and not self._stalls(now)

    def ballots(self, now: float) -> list[Ballot]:
        """The votes to hold now; every other one is to be retracted."""
        if self._stalls(now):
            return []
        found = (self._ballot(name, peer, now) for name, peer in self._peers.items())
        return [ballot for ballot in found if ballot is not None]

    def _ballot(self, name: str, peer: _Peer, now: float) -> Ballot | None:
        signs: list[tuple[float, str]] = []
        failing = peer.failing_since
        if (
            failing is not None
            and peer.failures >= PROBES_FAIL_MIN
            and now - failing >= PROBES_FAIL_S
        ):
            signs.append((failing, _PROBES))
        if peer.leases_ended_since is not None and peer.ever_live:
            signs.append((peer.leases_ended_since, "gateway leases ended"))
        if peer.reported_since is not None:
            signs.append((peer.reported_since, f"{peer.reporters} clients report it"))
        if len(signs) < 2:
            return None
        # Failing probes mean that not one went well since; the other signs are looser, so two of
        # those count from when both stood.
        probes_fail = signs[0][0] if signs[0][1] == _PROBES else None
        since = probes_fail if probes_fail is not None else max(since for since, _ in signs)
        return Ballot(name, since, tuple(text for _, text in signs))

    def _stalls(self, now: float) -> bool:
        """The next tick will find a gap: whatever is seen in it is the own pause."""
        return now - self._ticked > STALL_S


def accused_by_majority(votes: Iterable[Vote], voters: Iterable[str], hold_ms: int) -> list[str]:
    """IDCs that a strict majority of *all* voters has accused for the hold time, the accused not
    voting; the longest accused first. Whether one of them fails over is the evaluator's to say."""
    names = set(voters)
    held: dict[str, dict[str, int]] = {}
    for vote in votes:
        if vote.voter in names and vote.voter != vote.accused:
            held.setdefault(vote.accused, {})[vote.voter] = vote.held_ms
    needed = len(names) // 2 + 1
    found = []
    for accused, by_voter in held.items():
        times = sorted(by_voter.values(), reverse=True)
        if len(times) >= needed and times[needed - 1] >= hold_ms:
            found.append((-times[needed - 1], accused))
    return [accused for _, accused in sorted(found)]
