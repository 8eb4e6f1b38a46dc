"""One voter's controller: probes, votes, proposes failovers, follows operations through.

A thin shell: what to think of an observation is ``failover``'s, what to do next is ``follow``'s,
whether it may be done is ``evaluate``'s. Every controller may do everything; the first in rank acts
at once and the others only when nothing has happened, so that they do not outbid each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from imcore.errors import ImError, Unavailable
from imcore.hlc import median_offset_ms
from imcore.proto import peer_pb2 as peer
from imcore.region.model import Region
from imcore.region.rules import voters_of
from imcore.runtime import Clock
from services.control.acceptor import majority
from services.control.caspaxos import Proposer
from services.control.evaluate import Decision, evaluate
from services.control.evidence import Evidence, IdcFacts, facts_from_status
from services.control.failover import Detector, accused_by_majority
from services.control.follow import (
    Marks,
    Progress,
    left_halfway,
    next_change,
    own_recovery,
    stalled,
)
from services.control.operations import commit
from services.control.reading import Reading
from services.control.rules import Change, Kind, is_fresh
from services.control.voting import Votes
from services.policy.document import IdcState, Policy, initial
from services.policy.holder import PolicyHolder
from services.policy.poll import Poller
from services.ports import Registry

log = logging.getLogger("im.control")

Probe = Callable[[str], Awaitable[peer.ProbeReply]]
Status = Mapping[str, Any]

TICK_S = 0.1
PROBE_S = 0.3
PROBE_DEADLINE_S = 1.0
POLICY_S = 0.3
VOTE_S = 0.25
FACTS_S = 0.5
FOLLOW_S = 0.3
REFUSED_S = 2.0
RANK_S = 1.0  # a commit over the longest link takes 0.8 s at most, uncontended
JUMP_MS = 500


class Directory(Protocol):
    """Which gateways of an IDC hold a live lease, as far as can be seen from here."""

    def live_in(self, idc: str) -> Sequence[object]: ...


class Controller:
    """``probe`` and ``peer_facts`` raise Unavailable or TimeoutError when the peer does not answer.
    ``facts``: the own status JSON (None in the witness). ``reports``: distinct uids by IDC that
    could not reach it lately. ``poller`` is the caller's, and polls the votes.
    ``on_clock_offset`` gets the median of the clocks, in ms from the own."""

    def __init__(
        self,
        own: str,
        region: Region,
        registries: Mapping[str, Registry],
        poller: Poller,
        proposer: Proposer,
        holder: PolicyHolder,
        directory: Directory,
        probe: Probe,
        peer_facts: Callable[[str], Awaitable[Status]],
        clock: Clock,
        rng: random.Random,
        facts: Callable[[], Status] | None = None,
        reports: Callable[[], Mapping[str, int]] = dict,
        on_clock_offset: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.own = own
        self.holder = holder
        self.waiting_for = ""  # why the operation under way does not go on yet
        self._region = region
        self._proposer = proposer
        self._directory = directory
        self._probe = probe
        self._peer_facts = peer_facts
        self._facts = facts
        self._reports = reports
        self._on_clock_offset = on_clock_offset
        self._clock = clock
        self._rng = rng
        self._idcs = [idc.name for idc in region.spec.idcs]
        self._voters = voters_of(region)
        hold_ms = region.spec.safety.hold_ms
        self._detector = Detector(own, self._idcs, hold_ms, clock.now())
        self._poller = poller
        self._votes = Votes(own, registries, self._poller, clock)
        self._known: dict[str, IdcFacts] = {}
        self._offsets: dict[str, tuple[float, int]] = {}
        self._marks = Marks()
        self._progress = Progress()
        self._reading = Reading(
            own, proposer, holder, clock, lambda: initial(region, clock.wall_ms())
        )
        self._read_now = asyncio.Event()
        self._refused: dict[tuple[str, ...], float] = {}  # failovers, by request and rules: when
        self._since: dict[str, float] = {}  # when the own turn's wait for a change began
        self._boot = f"{rng.getrandbits(32):08x}"
        self._tasks: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------------------------ surface

    @property
    def policy(self) -> Policy | None:
        return self.holder.policy

    def in_minority(self) -> bool:
        """No majority of the registries has answered for the hold time."""
        return self._detector.in_minority(self._clock.now())

    def alarms(self) -> list[str]:
        found = []
        if self.in_minority():
            found.append(f"{self.own} reaches no majority of the registries")
        if self._proposer.refused_join:
            found.append(self._proposer.refused_join)
        if self.holder.alarm:
            found.append(self.holder.alarm)
        if self.policy is not None and (left := left_halfway(self.policy, self.own)):
            found.append(left)
        return found

    def registries(self) -> dict[str, str]:
        """For the status: ``ok`` or ``unreachable``, by registry."""
        return {
            name: "ok" if self._poller.answers(name) else "unreachable" for name in self._voters
        }

    def evidence(self) -> Evidence:
        wall_ms = self._clock.wall_ms()
        known = dict(self._known)
        if self._facts is not None:
            with contextlib.suppress(ValueError):  # not complete before it serves
                known[self.own] = facts_from_status(self._facts(), wall_ms)
        policy = self.policy
        marks = self._marks.take(policy, known) if policy is not None else {}
        return Evidence(known, self._votes.seen(wall_ms), self._voters, marks)

    async def commit(self, change: Change) -> str:
        """Judge and commit on this IDC's evidence; the sentence of what came of it."""
        decision = await commit(self._proposer, self._region, change, self.evidence(), self._clock)
        self._read_now.set()
        return decision.sentence

    def start(self) -> None:
        work: list[Coroutine[Any, Any, None]] = [
            self._ticks(),
            self._repeat(POLICY_S, self._read_policy, self._read_now),
            self._repeat(VOTE_S, self._vote),
            self._repeat(FOLLOW_S, self._follow),
        ]
        others = [name for name in self._voters if name != self.own]
        work += [self._repeat(PROBE_S, partial(self._probe_once, name)) for name in others]
        work += [
            self._repeat(FACTS_S, partial(self._ask_facts, name))
            for name in others
            if name in self._idcs
        ]
        self._tasks = [asyncio.create_task(each) for each in work]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------------------------- loops

    async def _repeat(
        self,
        every_s: float,
        work: Callable[[], Awaitable[None]],
        wake: asyncio.Event | None = None,
    ) -> None:
        while True:
            try:
                await work()
            except ImError as error:
                log.warning("%s: %s", self.own, error)
            except Exception:  # a bug in one loop must not silence a voter for good
                log.exception("%s: a loop of the controller failed and goes on", self.own)
            await _pause(every_s, wake)

    async def _ticks(self) -> None:
        skew = self._clock.wall_ms() - self._clock.now() * 1000
        while True:
            await asyncio.sleep(TICK_S)
            now_skew = self._clock.wall_ms() - self._clock.now() * 1000
            jumped = abs(now_skew - skew) > JUMP_MS
            skew = now_skew
            if self._detector.tick(self._clock.now(), jumped):
                log.warning(
                    "%s was stalled or its clock jumped: it forgets what it held against others",
                    self.own,
                )

    async def _probe_once(self, name: str) -> None:
        started = self._clock.now()
        try:
            async with asyncio.timeout(PROBE_DEADLINE_S):
                reply = await self._probe(name)
        except (Unavailable, TimeoutError):
            self._detector.probed(name, False, started, self._clock.now())
            return
        now = self._clock.now()
        self._detector.probed(name, reply.serving, started, now)
        half_ms = int((now - started) * 500)
        # Against the own steady clock: a jump of the own wall clock falsifies no measurement.
        steady_ms = int(now * 1000)
        self._offsets[name] = (now, reply.wall_ms + half_ms - steady_ms)
        own = self._clock.wall_ms() - steady_ms
        fresh = [offset - own for at, offset in self._offsets.values() if now - at < 5]
        self._on_clock_offset(median_offset_ms([0, *fresh]))
        if self.policy is not None and reply.policy_epoch > self.policy.epoch:
            self._read_now.set()

    async def _ask_facts(self, name: str) -> None:
        asked_ms = self._clock.wall_ms()
        try:
            async with asyncio.timeout(PROBE_DEADLINE_S):
                status = await self._peer_facts(name)
            self._known[name] = facts_from_status(status, asked_ms)
        except (Unavailable, TimeoutError):
            return
        except ValueError as error:
            log.warning("the status of %s is unreadable: %s", name, error)

    async def _read_policy(self) -> None:
        if await self._reading.read():
            self._detector.majority_answered(self._reading.answered_at)

    # ------------------------------------------------------------------------------ failover

    async def _vote(self) -> None:
        now = self._clock.now()
        reports = self._reports()
        for name in self._idcs:
            self._detector.leases(name, len(self._directory.live_in(name)), now)
            self._detector.reported(name, reports.get(name, 0), now)
        policy = self.policy
        # Of one that has failed the votes stand on: by them it knows that it is not back yet,
        # though it may reach everybody. It would be failed over again, time after time.
        ballots = [
            ballot
            for ballot in self._detector.ballots(now)
            if policy is None or policy.state(ballot.accused) is not IdcState.RETIRED
        ]
        await self._votes.cast(ballots)
        if policy is not None:
            await self._maybe_fail_over(policy)

    async def _maybe_fail_over(self, policy: Policy) -> None:
        votes = self._votes.seen(self._clock.wall_ms())
        hold_ms = self._region.spec.safety.hold_ms
        for accused in accused_by_majority(votes, self._voters, hold_ms):
            if policy.state(accused) in (IdcState.FAILED, IdcState.RETIRED):
                continue
            accusers = sorted(vote.voter for vote in votes if vote.accused == accused)
            request_id = f"failover-{accused}-{policy.epoch}"
            change = Change(Kind.FAILOVER, accused, request_id, f"controller {self.own}")
            now_ms = self._clock.wall_ms()
            decision = evaluate(policy, change, self.evidence(), self._region, now_ms)
            if decision.policy is None and not self._is_to_be_told(request_id, decision):
                continue  # perhaps the next one can be helped
            if self.own in accusers and self._my_turn(request_id, accusers.index(self.own)):
                log.warning("%s", await self.commit(change))
            return  # one IDC at a time

    def _is_to_be_told(self, request_id: str, refused: Decision) -> bool:
        """Once for each set of rules, when it has stood for a while: what it waits for may come in
        a moment, and may not come for a whole night."""
        refusal = request_id, *sorted({blocker.rule for blocker in refused.blockers})
        now = self._clock.now()
        if now - self._refused.setdefault(refusal, now) < REFUSED_S:
            return False
        self._refused[refusal] = math.inf
        return True

    def _my_turn(self, request_id: str, rank: int) -> bool:
        """The first in rank acts at once, each next one after RANK_S more, and nobody tries the
        same again within a second."""
        now = self._clock.now()
        if request_id not in self._since:
            self._since = {key: at for key, at in self._since.items() if now - at < 60}
            self._since[request_id] = now + rank * RANK_S
        if now < self._since[request_id]:
            return False
        self._since[request_id] = now + 1.0
        return True

    # ------------------------------------------------------------------------------ follow

    async def _follow(self) -> None:
        policy = self.policy
        if policy is None or self.holder.stale or self._facts is None:
            return
        evidence = self.evidence()
        by = f"controller {self.own}"
        own = evidence.idcs.get(self.own)
        back = own is not None and own.serving and self._cleared(evidence)
        change = own_recovery(policy, self.own, self._boot, by) if back else None
        rank = 0
        if change is None:
            change = next_change(policy, self._clock.wall_ms(), by)
            rank = self._rank(evidence)
        if change is None:
            self.waiting_for = ""
            return
        # Judged here first: "not yet" is no decision that an audit should be full of.
        now_ms = self._clock.wall_ms()
        decision = evaluate(policy, change, evidence, self._region, now_ms)
        self.waiting_for = decision.sentence if decision.policy is None else ""
        running = policy.operation
        if (
            decision.policy is None
            and running is not None
            and self._progress.stalls(policy, evidence, self._region.spec.safety, now_ms)
        ):
            reasons = "; ".join(blocker.sentence for blocker in decision.blockers)
            change = stalled(running, policy.epoch, reasons, by)
            decision = evaluate(policy, change, evidence, self._region, now_ms)
        if decision.policy is not None and self._my_turn(change.request_id, rank):
            log.info("%s", await self.commit(change))

    def _cleared(self, evidence: Evidence) -> bool:
        """Whether nobody accuses this IDC, by a majority of the voters: of those that accuse one
        until it is failed over, some are among them."""
        heard = sum(self._poller.answers(name) for name in self._voters)
        accused = any(vote.accused == self.own for vote in evidence.votes)
        return heard >= majority(len(self._voters)) and not accused

    def _rank(self, evidence: Evidence) -> int:
        """Place among the IDCs that can be heard."""
        limit_ms = self._region.spec.safety.evidence_age_ms_max
        now_ms = self._clock.wall_ms()
        heard = sorted(
            name
            for name, facts in evidence.idcs.items()
            if is_fresh(now_ms - facts.at_ms, limit_ms)
        )
        return heard.index(self.own) if self.own in heard else len(heard)


async def _pause(seconds: float, wake: asyncio.Event | None) -> None:
    if wake is None:
        await asyncio.sleep(seconds)
        return
    try:
        async with asyncio.timeout(seconds):
            await wake.wait()
    except TimeoutError:
        return
    wake.clear()
