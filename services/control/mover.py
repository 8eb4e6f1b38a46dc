"""Hands sessions over to the IDC that they belong to, at a set rate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from imcore.region.model import Region
from imcore.runtime import Clock
from services.control.holder import PolicyHolder
from services.control.policy import IdcState, Policy
from services.ipconf.rank import preference, takes

log = logging.getLogger("im.control")

EVERY_S = 0.2
WITHIN_MS = 1_000  # how much time a client has to go
JUDGED_PER_STEP = 200
AGAIN_S = 8.0  # a session that has not gone is told again


class SessionInfo(Protocol):
    """What the state role tells of a session."""

    @property
    def session(self) -> str: ...
    @property
    def uid(self) -> str: ...
    @property
    def shard(self) -> str: ...
    @property
    def connected(self) -> bool: ...


class State(Protocol):
    """The part of the state role that a mover needs."""

    def sessions(self) -> Sequence[SessionInfo]: ...
    def move(self, session_id: str, within_ms: int, policy_epoch: int) -> object: ...


def belongs_elsewhere(
    policy: Policy,
    region: Region,
    own: str,
    session: SessionInfo,
    in_minority: bool,
    live: Mapping[str, object],
) -> bool:
    """Whether the policy gives this session to another IDC where something listens: before a
    failover is committed, a survivor must not send the victim's clients back to it. A minority
    gives all of them away."""
    order = preference(policy, region, session.shard, session.uid)
    if in_minority:
        return any(idc != own and policy.state(idc) is IdcState.ACTIVE for idc in order)
    homes = (idc for idc in order if takes(policy, idc, session.uid, own))
    home = next((idc for idc in homes if idc == own or live.get(idc)), own)
    return home != own


class Mover:
    """``in_minority``: whether this IDC has had no majority for the hold time; then it hands its
    clients over, and keeps serving those that come back because they reach nothing else."""

    def __init__(
        self,
        own: str,
        region: Region,
        holder: PolicyHolder,
        state: State,
        in_minority: Callable[[], bool],
        live: Callable[[], Mapping[str, object]],
        clock: Clock,
    ) -> None:
        """``live``: IDCs with a live gateway (``Directory.live``): nobody is moved to a place where
        nothing listens, except by a minority, which cannot see."""
        self._own = own
        self._region = region
        self._holder = holder
        self._state = state
        self._in_minority = in_minority
        self._live = live
        self._clock = clock
        self._credit = 0.0
        self._last = clock.now()
        self._told: dict[str, float] = {}
        self._judged: dict[str, bool] = {}  # session -> belongs elsewhere, by ...
        # ... this policy epoch, minority, and these IDCs with a live gateway.
        self._judged_by: tuple[int, bool, frozenset[str]] = (0, False, frozenset())
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                self.step()
            except Exception:
                log.exception("%s: the mover failed and goes on", self._own)
            await asyncio.sleep(EVERY_S)

    def step(self) -> int:
        """Move as many as the rate allows by now; returns how many."""
        now, policy = self._clock.now(), self._holder.policy
        passed, self._last = now - self._last, now
        if policy is None:
            return 0
        # Credit for one pause at most, and no burst after an idle time.
        per_step = policy.moves_per_s * EVERY_S
        self._credit = min(self._credit + policy.moves_per_s * passed, max(1.0, 2 * per_step))
        minority = self._in_minority()
        if not minority and not any(idc != self._own for idc in self._live()):
            return 0
        self._told = {key: at for key, at in self._told.items() if now - at < AGAIN_S}
        moved = 0
        for session in self._leaving(policy, minority):
            if self._credit < 1:
                break
            if session.session in self._told:
                continue
            self._state.move(session.session, WITHIN_MS, policy.epoch)
            self._told[session.session] = now
            self._credit -= 1
            moved += 1
        if moved:
            log.info("%s hands %d sessions over", self._own, moved)
        return moved

    def _leaving(self, policy: Policy, minority: bool) -> list[SessionInfo]:
        """Each session is judged once an epoch, and only so many a step: hashing thousands of uids
        at once would hold up the messages of all."""
        live = self._live()
        by = (policy.epoch, minority, frozenset(live))
        if self._judged_by != by:
            self._judged_by, self._judged = by, {}
        sessions = [session for session in self._state.sessions() if session.connected]
        if len(self._judged) > 2 * len(sessions) + JUDGED_PER_STEP:
            self._judged = {}
        fresh = [session for session in sessions if session.session not in self._judged]
        for session in fresh[:JUDGED_PER_STEP]:
            self._judged[session.session] = belongs_elsewhere(
                policy, self._region, self._own, session, minority, live
            )
        return [session for session in sessions if self._judged.get(session.session)]
