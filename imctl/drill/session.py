"""A drill under way: load and canaries on the deployment, what is seen of it, the faults made, and
in the end the judged history. All of it lives in the bridge's loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from imcore import history as h
from imcore.errors import ImError, Unavailable
from imcore.history import VERSION, Header, HistoryWriter
from imcore.pki import utc_now
from imcore.region.model import Region
from imcore.runtime import Clock
from imctl.drill.breakage import Breakage
from imctl.drill.canaries import canary_pairs, with_canaries
from imctl.drill.model import Settings
from imctl.drill.observer import Asking, Observer
from imctl.drill.watch import CanaryWatch
from imctl.report.live import View
from imctl.report.model import Mark, Span
from imctl.traffic import Steering
from services.control.predict import Curve, forecast
from services.control.rules import Change, Kind
from services.loadgen.load import Load, Member
from services.loadgen.logins import look
from services.loadgen.population import Addresses, Lookup, make_population
from services.loadgen.ports import Connect
from services.loadgen.recorder import Recorder
from services.loadgen.schedule import Rates
from services.loadgen.stats import Sample

WARM_UP_S = 3.0
HOME_S = 20.0  # until every device is at home
SETTLE_S = 20.0
LOGINS_S = 40.0
LOOK_S = 10.0
CLOSE_S = 10.0
BLIND_S = 5.0  # a look that is older than this shows nothing
STEADY_LAG_MS = 2_000.0
LOOK_TAKES_S = 1.6  # at most: what ends so much later began later


class Why(StrEnum):
    """Who ends a drill early."""

    CONDITION = "abort condition"
    OPERATOR = "operator"
    BROKEN = "the drill itself failed"


@dataclass(frozen=True, slots=True)
class Stop:
    why: Why
    reason: str


@dataclass(frozen=True, slots=True)
class Loss:
    """An IDC that is lost on purpose: when, on both clocks."""

    idc: str
    at: float  # seconds from the start of the load
    wall_ms: int
    devices: int


class Ground(ABC):
    """Where a drill takes place. ``homes``: by IDC, the countries whose clients it gets, as
    ``lookup`` tells of an address."""

    region: Region
    homes: Mapping[str, Sequence[str]]
    lookup: Lookup
    # Ids that clients draw must be new in each run, whatever the seed.
    connect: Connect

    @abstractmethod
    def control(self, rng: random.Random) -> Steering: ...

    @abstractmethod
    def breakage(self, control: Steering, lasts_s: float) -> Breakage: ...

    @abstractmethod
    def ipconfs(self) -> Asking: ...

    @abstractmethod
    def all_connected(self) -> None:
        """Everybody is, and the load is about to begin."""

    @abstractmethod
    async def close(self) -> None:
        """``connect`` makes no more clients."""


class Session:
    def __init__(
        self,
        ground: Ground,
        settings: Settings,
        run: str,
        history: Path,
        view: View,
        clock: Clock,
        seed: int,
    ) -> None:
        self.region = ground.region
        self.settings = settings
        self.run = run
        self.history = history
        self.idcs = [idc.name for idc in ground.region.spec.idcs]
        self.marks: list[Mark] = []
        self.spans: list[Span] = []
        self.notes: list[str] = []
        self.losses: list[Loss] = []
        self.steadied: list[float] = []  # when it was found as before the drill again
        self.opened = False
        self.failed: tuple[float, str] | None = None  # the action that failed, and why
        self.forecasts: list[tuple[str, Curve]] = []  # of switchovers: whose clients, how soon
        self.left: list[str] = []  # faults that could not be undone
        self.stopped_at = 0.0
        self.stop: Stop | None = None  # set: the drill is to end now
        self.load_average = os.getloadavg()[0]
        self.began_ms = clock.wall_ms()
        self.started = utc_now(self.began_ms).isoformat(timespec="seconds")
        self.noticed: dict[str, str] = {}  # what a figure was about when it was last asked for
        self._ground = ground
        self._view = view
        self._clock = clock
        self._rng = random.Random(seed)
        self._talking: asyncio.Task[None]  # once it is open
        self._probes: list[asyncio.Task[None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    # ---------------------------------------------------------------------------- opening

    async def open(self) -> None:
        """Everybody connected and talking. Raises ImError."""
        ground, clock, rng = self._ground, self._clock, self._rng
        lookup, homes = ground.lookup, ground.homes
        addresses = Addresses(rng, lookup)
        self.addresses = {idc: addresses.take(homes[idc])[0] for idc in self.idcs}
        wanted = self.settings.load
        people = make_population(wanted.users, homes, rng, lookup, f"{self.run}-")
        self.canaries = canary_pairs(self.run, self.idcs)
        population, self._talks = with_canaries(
            people, self.canaries, lambda idc: addresses.take(homes[idc])
        )
        name = self.region.metadata.name
        self._writer = HistoryWriter(self.history, Header(VERSION, self.started, name, self.run))
        self.watch = CanaryWatch(self.canaries)
        self.recorder = Recorder(self._write, clock.now, self._writer.flush)
        self.load = Load(population, ground.connect, self.recorder, clock, rng)
        self.control = await ground.control(rng).__aenter__()
        self.breakage = ground.breakage(self.control, self.settings.fault_max_s)
        self.observer = Observer(ground.ipconfs(), self.control, clock, self.recorder.policy)
        self._view.step(f"connecting {len(population.clients)} devices")
        self._begin(self.observer.run())
        await self.load.open()
        ground.all_connected()
        self.phase("warm-up", "warm-up: load")
        rates = Rates(wanted.rate, min(wanted.rate, wanted.group_rate))
        self._begin(self.load.run(rates, self._on_sample))
        self._talking = self._begin(self._talk())
        await asyncio.sleep(WARM_UP_S)
        await self.until(self._all_at_home, HOME_S, "not every device came to its home IDC")
        self.opened = True

    def _write(self, event: h.Event) -> None:
        self._writer.write(event)
        self.watch.feed(event)

    def _all_at_home(self) -> bool:
        return all(
            self.recorder.where.get(member.ear.n) == member.client.home
            for member in self.load.devices
        )

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        self._tasks.append(task)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self.end_early(Why.BROKEN, f"{type(error).__name__}: {error}")

    def end_early(self, why: Why, reason: str) -> None:
        """The first reason counts."""
        if self.stop is None:
            self.stop, self.stopped_at = Stop(why, reason), self.t()
            self.mark("", f"{why}: {reason}")

    def stop_reason(self) -> str:
        return f"{self.stop.why}: {self.stop.reason}" if self.stop else ""

    async def _talk(self) -> None:
        """Every canary in turn, evenly over the interval."""
        every_s = self.settings.load.canary_every_s
        pause = every_s / max(1, len(self._talks))
        due = self._clock.now()
        while True:
            for uid, peer in self._talks:
                member = self.load.devices_of(uid)[0]
                self.load.say(member, member.session.direct(peer), f"canary {uid}")
                due += pause
                await asyncio.sleep(max(0.0, due - self._clock.now()))

    def _on_sample(self, sample: Sample) -> None:
        sample.states = dict(self.observer.seen.states)
        sample.lag_ms = dict(self.observer.seen.lag_ms)
        self._view.sample(sample)
        self.recorder.flush()
        for name, limit in self.settings.abort_above.items():
            with contextlib.suppress(Unavailable):  # blind: the hypothesis says so
                if (value := self.figure(name)) > limit:
                    said = f"{name} is {value:.1f}, over {limit:g}"
                    about = self.explain(name)
                    self.end_early(Why.CONDITION, f"{said} ({about})" if about else said)

    # ---------------------------------------------------------------------------- figures

    def figure(self, name: str) -> float:
        """One of ``model.FIGURES``, as of now. Raises Unavailable when nothing was seen lately."""
        observer, now_us = self.observer, self.recorder.now_us()
        match name:
            case "longest_wait_s":
                oldest = next(iter(self.recorder.waiting.values()), now_us)
                return (now_us - oldest) / 1e6
            case "canary_delay_s":
                return self.watch.delay(now_us)[0]
            case "failed_sends":
                return float(self.recorder.counts.failed)
        at = observer.looked_at
        if at is None or self._clock.now() - at > BLIND_S:
            why = observer.problem or "no check has finished"
            raise Unavailable(f"the deployment could not be observed lately: {why}")
        match name:
            case "load_percent":
                return max((one.percent for one in observer.carried.values()), default=0.0)
            case "ipconf_behind_s":
                return observer.stale.worst()[0]
            case "mirror_behind_s":
                return observer.mirrors.worst()[0]
            case "idcs_silent":
                return float(len(observer.silent))
            case "epochs_disputed":
                return float(len(observer.epochs.disputes))
        raise ValueError(name)

    def explain(self, name: str) -> str:
        """Which IDC, or which pair of them, a figure is about; empty: all."""
        observer = self.observer
        match name:
            case "canary_delay_s":
                pair = self.watch.delay(self.recorder.now_us())[1]
                return "" if pair is None else f"{pair[0]} -> {pair[1]}"
            case "load_percent":
                full = max(observer.carried.items(), key=lambda one: one[1].percent, default=None)
                if full is None:
                    return ""
                idc, carried = full
                return (
                    f"{idc} carries {carried.sessions} sessions of {carried.sessions_max} and "
                    f"{carried.messages_per_s:.0f} messages/s of {carried.messages_per_s_max}: "
                    "no headroom"
                )
            case "ipconf_behind_s":
                return f"the ipconf of {observer.stale.worst()[1]} answers with an old epoch"
            case "mirror_behind_s":
                return observer.mirrors.worst()[1]
            case "idcs_silent":
                return ", ".join(observer.silent)
            case "epochs_disputed":
                return "; ".join(observer.epochs.disputes)
        return ""

    # ---------------------------------------------------------------------------- marks

    def t(self) -> float:
        load: Load | None = getattr(self, "load", None)  # none: it ended before there was one
        return 0.0 if load is None else self._clock.now() - load.started

    @property
    def load_began_s(self) -> float:
        """The load's start on the wall clock, for times of the toolkit's journal."""
        return self._clock.wall_ms() / 1000 - self.t()

    def mark(self, idc: str, text: str) -> None:
        mark = Mark(self.t(), idc, text)
        self.marks.append(mark)
        self._view.mark(mark)

    def phase(self, name: str, text: str) -> None:
        self._end_span()
        self.spans.append(Span(name, self.t(), self.t()))
        self.recorder.phase(name)
        self._view.step(text)

    def _end_span(self) -> None:
        if self.spans:
            self.spans[-1] = self.spans[-1]._replace(end=self.t())

    def lose(self, idc: str) -> list[Member]:
        """To be called right before an IDC is lost; who was connected there."""
        affected = self.load.connected_to(idc)
        self.observer.begin_loss(idc)
        self.losses.append(Loss(idc, self.t(), self._clock.wall_ms(), len(affected)))
        self.recorder.fault(idc, "kill")
        return affected

    def lost(self, idc: str, affected: list[Member]) -> None:
        """Right after: each of those who were there sends until it is answered again."""
        self.recorder.fault(idc, "killed")
        self._probes.append(self._begin(self.load.probe(affected)))

    def restored(self) -> bool:
        """Found steady since the last loss, and still so."""
        lost_at = self.losses[-1].at if self.losses else 0.0
        return any(at >= lost_at for at in self.steadied) and not self.unsteady()

    def all_answered(self) -> bool:
        return all(probe.done() for probe in self._probes)

    async def foresee(self, source: str, target: str) -> None:
        """What the plan of this switchover says, for the report; nothing if it is refused now."""
        change = Change(Kind.SWITCHOVER, source, "forecast", "drill", target)
        with contextlib.suppress(Unavailable):
            before, evidence, decision = await self.control.judge(change)
            if decision.policy is not None:
                seen = forecast(before, decision.policy, self.region, evidence, source)
                self.forecasts.append((source, seen.curve))

    # ---------------------------------------------------------------------------- waits

    async def until(self, holds: Callable[[], bool], seconds: float, otherwise: str) -> None:
        """Raises Unavailable(otherwise)."""
        deadline = self._clock.now() + seconds
        while not holds():
            if self._clock.now() >= deadline:
                raise Unavailable(f"{otherwise} within {seconds:g} s")
            await asyncio.sleep(0.05)

    def state(self, idc: str) -> str:
        return self.observer.seen.states.get(idc, "unknown")

    def unsteady(self) -> str:
        """What keeps the deployment from being as before the drill; empty: nothing."""
        observer = self.observer
        if out := [idc for idc in self.idcs if self.state(idc) != "active"]:
            return ", ".join(f"{idc} is {self.state(idc)}" for idc in out)
        if observer.silent:
            return f"{', '.join(observer.silent)} does not answer"
        for idc, alarms in observer.alarms.items():
            if alarms:
                return f"{idc} has an alarm: {alarms[0]}"
        for idc, missing in observer.unlisted.items():
            if missing:
                return f"the ipconf of {idc} sends no clients to {', '.join(missing)}"
        for way, lag in observer.seen.lag_ms.items():
            if lag > STEADY_LAG_MS:
                return f"the lag {way} is {lag:.0f} ms"
        if not self._all_at_home():
            return "not every device is in its home IDC"
        return ""

    async def steady(self, seconds: float) -> None:
        """Until it is as before the drill. Raises Unavailable with what keeps it from being so."""
        asked = self._clock.now()
        deadline = asked + seconds
        while why := self.unsteady() or self._unseen_since(asked):
            if self._clock.now() >= deadline:
                raise Unavailable(f"not steady again within {seconds:g} s: {why}")
            await asyncio.sleep(0.1)
        self.steadied.append(self.t())

    def _unseen_since(self, asked: float) -> str:
        """What was seen before somebody asked may be of before a change."""
        at = self.observer.looked_at
        return "" if at is not None and at - asked > LOOK_TAKES_S else "not checked again yet"

    async def look_at_survivors(self, lost: str) -> None:
        """What the survivors can serve right now of the conversations the lost IDC took part in."""
        survivors = {idc: at for idc, at in self.addresses.items() if idc != lost}
        there = {c.uid for c in self.load.population.clients if c.home == lost}
        looks = self.load.looks(lambda name, uids: not there.isdisjoint(uids))
        failures = await look(self._ground.connect, self.recorder, looks, survivors, "rpo", LOOK_S)
        count = len(looks) * len(survivors)
        self.mark(
            lost, f"{count - len(failures)} of {count} fresh logins at the surviving IDCs succeeded"
        )

    # ---------------------------------------------------------------------------- the end

    async def finish(self) -> None:
        """No more load; everything arrives; fresh logins look everywhere."""
        self.load.stop()
        for task in (self._talking, *self._probes):  # the observer and the load's own loop go on
            task.cancel()
        self.phase("quiet", "load stopped; waiting until everything is delivered")
        if not await self.load.settle(SETTLE_S):
            self.notes.append(
                "Some acked messages had not reached every device when the run was judged."
            )
        self.phase("logins", "fresh logins at every IDC")
        self.recorder.quiet(self.idcs)
        failures = await look(
            self._ground.connect,
            self.recorder,
            self.load.looks(),
            self.addresses,
            "final",
            LOGINS_S,
        )
        self.notes += [f"Fresh login of {f.uid} at {f.idc}: {f.reason}." for f in failures[:5]]
        self.notes += self.observer.stuck.notes() + await self._slow_steps()
        self._end_span()

    async def _slow_steps(self) -> list[str]:
        """Of the operations of this drill, against those before it; none if nobody can tell now."""
        with contextlib.suppress(Unavailable):
            known = await self.control.operations()
            mine = [one for one in known if one.started_ms >= self.began_ms]
            return [
                f"{one.id}: {slow.sentence()}."
                for one in mine
                for slow in self.control.slow(one, known)
            ]
        return []

    async def close(self) -> None:
        """However the drill ended; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._end_span()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError, ImError):
            async with asyncio.timeout(CLOSE_S):
                await self.load.close()
                await self._ground.close()
        await self.control.__aexit__(None, None, None)
        self._writer.close()
