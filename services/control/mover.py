"""Hands sessions over to the IDC that they belong to, at a set rate.

A drain must end whatever a client does. So while the own IDC is draining, a connection that was
told twice and is still there ``GONE_S`` later is closed, and the same device, when it comes back,
is closed at once. No other move closes anything: who cannot reach its home is served here.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from imcore.region.model import Region
from imcore.runtime import Clock
from services.control.slow import Usual, usual
from services.policy.document import IdcState, Policy
from services.policy.holder import PolicyHolder
from services.policy.pace import moves_per_s
from services.policy.placement import preference, takes

log = logging.getLogger("im.control")

EVERY_S = 0.2
WITHIN_MS = 1_000  # how much time a client has to go
# Hashing thousands of uids at once would hold up the messages of all: so long in a step, and then a
# pause. 100,000 sessions take 10 to 30 s, and a sixth of the loop meanwhile.
JUDGE_S = 0.005
JUDGE_EVERY_S = 0.025
_JUDGED_A_LOOK = 20  # at the clock
AGAIN_S = 8.0  # a session that has not gone is told again: a move takes a second or two
TIMES = 2  # so often it is told before ...
GONE_S = 4.0  # ... its connection is closed so long after the last time
STUCK_FLOOR_MS = 3_000  # nobody is stuck before
SAMPLES_MAX = 1_000  # of how long sessions took to go: the last ones


class SessionInfo(Protocol):
    """What the state role tells of a session."""

    @property
    def session(self) -> str: ...
    @property
    def uid(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def shard(self) -> str: ...
    @property
    def gateway(self) -> str: ...
    @property
    def connected(self) -> bool: ...


class State(Protocol):
    """The part of the state role that a mover needs."""

    def changed(self) -> Mapping[str, SessionInfo | None]:
        """By session: whose connection has come or gone since this was asked last, at first all
        that stand. None: it has none (any more)."""
        ...

    def move(self, session_id: str, within_ms: int, policy_epoch: int) -> object: ...
    def close_after_move(self, session_id: str) -> bool:
        """False: it was not closed; then it is told again in its turn."""
        ...

    def close_pull_only(self) -> int: ...


class _Told(NamedTuple):
    first: float
    at: float  # the last time
    times: int
    gateway: str


class Handover(NamedTuple):
    """How sessions go that were told to. ``told``: those that are still here. ``stuck``: of these,
    by gateway, those told longer ago than is usual."""

    told: int
    gone: int
    usual: Usual
    stuck: Mapping[str, int]


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
        self._own_state: IdcState | None = None
        self._told: dict[str, _Told] = {}
        self._took: deque[int] = deque(maxlen=SAMPLES_MAX)  # ms, of those that went
        self._gone = 0
        self._closed: set[tuple[str, str]] = set()  # devices, in this drain
        self._ended: set[str] = set()  # the sessions that these connections had
        self.closed = 0  # connections, in the last drain
        # Whose connection stands; of these, who is still to be judged, and who belongs elsewhere.
        self._here: dict[str, SessionInfo] = {}
        self._unjudged: dict[str, None] = {}
        self._leaving: dict[str, SessionInfo] = {}
        self._judging = False  # and more of them at once
        # By this policy epoch, minority, and these IDCs with a live gateway.
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
            await asyncio.sleep(JUDGE_EVERY_S if self._judging else EVERY_S)

    def step(self) -> int:
        """Move as many as the rate allows by now; returns how many."""
        now, policy = self._clock.now(), self._holder.policy
        passed, self._last = now - self._last, now
        self._judging = False
        self._look_who_is_here()
        if policy is None:
            return 0
        self._look_at_own_state(policy.state(self._own))
        self._look_who_went(now)
        # Credit for one pause at most, and no burst after an idle time.
        rate = moves_per_s(policy, self._region, self._own)
        self._credit = min(self._credit + rate * passed, max(1.0, 2 * rate * EVERY_S))
        minority = self._in_minority()
        paused = policy.operation is not None and policy.operation.paused
        if paused and not minority:  # nobody is handed over by anybody until it goes on
            return 0
        if not minority and not any(idc != self._own for idc in self._live()):
            return 0
        self._judge(policy, minority)
        # Who may stay is no longer waited for. Who is not judged anew yet was told all the same.
        to_go = (self._leaving, self._unjudged)
        self._told = {key: t for key, t in self._told.items() if any(key in each for each in to_go)}
        if self._credit < 1 and self._own_state is not IdcState.DRAINING:
            return 0
        moved = closed = 0
        for session in self._leaving.values():
            asked = self._has_been_asked_enough(session, now)
            if asked and self._state.close_after_move(session.session):
                self._closed.add((session.uid, session.device))
                self._told.pop(session.session, None)  # it did not go, and is no sample
                if session.session not in self._ended:  # it may take a while until it is gone
                    self._ended.add(session.session)
                    closed += 1
                    self.closed += 1
                continue
            told = self._told.get(session.session)
            if self._credit < 1 or (told is not None and now - told.at < AGAIN_S):
                continue
            self._state.move(session.session, WITHIN_MS, policy.epoch)
            self._told[session.session] = _Told(
                told.first if told else now, now, told.times + 1 if told else 1, session.gateway
            )
            self._credit -= 1
            moved += 1
        if moved or closed:
            log.info("%s hands %d sessions over, closes %d", self._own, moved, closed)
        return moved

    def _look_at_own_state(self, state: IdcState) -> None:
        """What was told for another reason does not count against a client in a drain."""
        if state is self._own_state:
            return
        self._own_state = state
        self._told, self._closed, self._ended = {}, set(), set()
        self._took.clear()
        self._gone = 0
        if state is IdcState.DRAINING:
            self.closed = 0
        if state is IdcState.DRAINED:
            closed = self._state.close_pull_only()
            log.info("%s is drained: closes %d pull-only connections", self._own, closed)

    def _look_who_is_here(self) -> None:
        """Only at what has changed: a look at all of 20,000 sessions takes 40 ms of the loop."""
        for key, session in self._state.changed().items():
            former = self._here.get(key)
            if session is None:
                for each in (self._here, self._unjudged, self._leaving):
                    each.pop(key, None)
                continue
            self._here[key] = session
            if former is None or former.shard != session.shard:
                self._unjudged[key] = None
            elif key in self._leaving:
                self._leaving[key] = session

    def _look_who_went(self, now: float) -> None:
        """Also while the move is paused: who was told still goes."""
        for key in [key for key in self._told if key not in self._here]:
            self._took.append(round((now - self._told.pop(key).first) * 1000))
            self._gone += 1

    def waiting(self) -> int:
        """How many are still to be judged."""
        return len(self._unjudged)

    def handover(self) -> Handover:
        limit = usual(self._took, round(AGAIN_S * 1000), STUCK_FLOOR_MS)
        now = self._clock.now()
        stuck = Counter(
            told.gateway
            for told in self._told.values()
            if (now - told.first) * 1000 > limit.limit_ms
        )
        return Handover(len(self._told), self._gone, limit, dict(stuck))

    def _has_been_asked_enough(self, session: SessionInfo, now: float) -> bool:
        if self._own_state is not IdcState.DRAINING:
            return False
        if (session.uid, session.device) in self._closed:
            return True
        told = self._told.get(session.session)
        return told is not None and told.times >= TIMES and now - told.at >= GONE_S

    def _judge(self, policy: Policy, minority: bool) -> None:
        """Each session once an epoch, as many as there is time for."""
        live = self._live()
        by = (policy.epoch, minority, frozenset(live))
        if self._judged_by != by:
            self._judged_by, self._leaving = by, {}
            self._unjudged = dict.fromkeys(reversed(self._here))
        until = self._clock.now() + JUDGE_S
        for number in itertools.count(1):
            if not self._unjudged:
                return
            key, _ = self._unjudged.popitem()
            session = self._here[key]
            self._leaving.pop(key, None)
            if belongs_elsewhere(policy, self._region, self._own, session, minority, live):
                self._leaving[key] = session
            if number % _JUDGED_A_LOOK == 0 and self._clock.now() >= until:
                self._judging = bool(self._unjudged)
                return
