"""The demo's script: steady load, an IDC killed under it, failover, return, failback, a planned
switchover, quiet, fresh logins everywhere. Every step leaves its marks in the history."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from imcore.errors import ImError, Unavailable
from imcore.runtime import Clock
from imctl.report.live import View
from imctl.report.model import Mark, Span
from services.loadgen.load import Load
from services.loadgen.logins import look
from services.loadgen.ports import Connect
from services.loadgen.recorder import Recorder
from services.loadgen.schedule import Rates
from services.loadgen.stats import Sample

POLL_S = 0.2


class Deployment(Protocol):
    """What the script does to the deployment and sees of it."""

    async def kill(self, idc: str) -> None: ...

    async def start(self, idc: str) -> None:
        """Until it serves. Raises ImError."""
        ...

    async def failback(self, idc: str) -> None: ...

    async def switchover(self, source: str, target: str) -> None: ...

    async def observe(self) -> Observed: ...


@dataclass(frozen=True, slots=True)
class Observed:
    """``states``: of each IDC by the newest policy. ``lag_ms``: "fra->iad" is the lag of fra's
    log at iad. ``policies``: what each IDC says of its policy, the epoch and the content."""

    states: Mapping[str, str] = field(default_factory=dict)
    lag_ms: Mapping[str, float] = field(default_factory=dict)
    policies: Mapping[str, tuple[int, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """Seconds of each part, and what bounds the waits."""

    warm_up_s: float = 8.0
    before_s: float = 15.0
    during_s: float = 6.0  # after everybody is back
    after_s: float = 12.0
    failover_max_s: float = 25.0
    return_max_s: float = 45.0
    move_max_s: float = 25.0
    settle_max_s: float = 15.0
    look_max_s: float = 8.0  # at the survivors; as many as can be done in it
    logins_max_s: float = 45.0
    total_max_s: float = 170.0
    rates: Rates = field(default_factory=lambda: Rates(315.0, 25.0))
    switchover: bool = True


class Scenario:
    """``addresses``: by IDC, one that is at home there, for fresh logins."""

    def __init__(
        self,
        load: Load,
        recorder: Recorder,
        deployment: Deployment,
        connect: Connect,
        view: View,
        clock: Clock,
        plan: Plan,
        addresses: Mapping[str, str],
    ) -> None:
        self.marks: list[Mark] = []
        self.spans: list[Span] = []
        self.notes: list[str] = []
        self.serving_before = 0
        self.serving_after = 0
        self._load = load
        self._recorder = recorder
        self._deployment = deployment
        self._connect = connect
        self._view = view
        self._clock = clock
        self._plan = plan
        self._addresses = addresses
        self._seen = Observed()

    # ---------------------------------------------------------------------------- script

    async def run(self, victim: str) -> None:
        """Raises ImError when a step cannot be done; what was promised is judged elsewhere."""
        await self._bounded(self._script(victim), "the run took too long", self._plan.total_max_s)

    async def _script(self, victim: str) -> None:
        plan = self._plan
        async with self._background(self._load.run(plan.rates, self._on_sample)), self._watching():
            await self._steady("warm-up", plan.warm_up_s)
            await self._steady("before", plan.before_s)
            await self._lose(victim)
            await self._return(victim)
            await self._steady("after", plan.after_s)
            if plan.switchover:
                await self._move(self._after(victim, 1), self._after(victim, 2))
            self._load.stop()
            await self._quiet()

    async def _steady(self, name: str, seconds: float) -> None:
        self._begin(name, f"{name}: load")
        await self._wait(seconds)

    async def _lose(self, victim: str) -> None:
        affected = self._load.connected_to(victim)
        self.serving_before = len(affected)
        self._begin("during", f"killed {victim}; waiting for the automatic failover")
        self._recorder.fault(victim, "kill")
        await self._deployment.kill(victim)
        self._recorder.fault(victim, "killed")
        self._mark(
            victim,
            f"kill -9 of every process of {victim} ({len(affected)} devices connected)",
        )
        async with self._background(self._load.probe(affected)) as probes:
            await self._until(
                lambda: self._seen.states.get(victim) == "failed",
                self._plan.failover_max_s,
                f"{victim} was not declared failed",
            )
            self._mark(victim, f"{victim} was declared failed")
            done, _ = await asyncio.wait([probes], timeout=self._plan.failover_max_s)
            if done:
                self._mark(victim, "every affected device got a message acked again")
            else:
                self.notes.append("Not every affected device got a message acked again in time.")
        await self._look_at_survivors(victim)
        await self._wait(self._plan.during_s)

    async def _look_at_survivors(self, victim: str) -> None:
        """What the survivors can serve right now of the conversations the victim took part in."""
        survivors = {idc: at for idc, at in self._addresses.items() if idc != victim}
        at_victim = {
            client.uid for client in self._load.population.clients if client.home == victim
        }
        looks = self._load.looks(lambda name, uids: not at_victim.isdisjoint(uids))
        seconds = self._plan.look_max_s
        failures = await look(self._connect, self._recorder, looks, survivors, "rpo", seconds)
        done = len(looks) * len(survivors) - len(failures)
        self._mark(
            victim, f"{done} of {done + len(failures)} fresh logins at the surviving IDCs succeeded"
        )

    async def _return(self, victim: str) -> None:
        self._begin("return", f"restarting {victim}; waiting for its recovery")
        self._recorder.fault(victim, "restart")
        self._mark(victim, f"restarted {victim}")
        await self._bounded(self._deployment.start(victim), f"{victim} did not come back")
        self._mark(victim, f"{victim} serves; returning its clients (failback)")
        self._recorder.fault(victim, "failback")
        await self._bounded(
            self._deployment.failback(victim), f"the failback of {victim} did not finish"
        )
        await self._until(
            lambda: len(self._load.connected_to(victim)) >= self.serving_before * 9 // 10,
            self._plan.move_max_s,
            f"the clients of {victim} did not come back",
        )
        self._recorder.fault(victim, "done")
        self.serving_after = len(self._load.connected_to(victim))
        self._mark(victim, f"{victim} is {self._seen.states.get(victim)} and has its clients back")

    async def _move(self, source: str, target: str) -> None:
        self._begin("switchover", f"planned switchover from {source} to {target}")
        home = self._load.connected_to(source)
        self._recorder.fault(source, "switchover")
        self._mark(source, f"planned switchover from {source} to {target} ({len(home)} devices)")
        await self._bounded(
            self._deployment.switchover(source, target),
            f"the switchover of {source} did not finish",
        )
        await self._until(
            lambda: not self._load.connected_to(source),
            self._plan.move_max_s,
            f"not every client left {source}",
        )
        self._recorder.fault(source, "done")
        self._mark(source, f"every client has left {source}; returning them (failback)")
        await self._bounded(
            self._deployment.failback(source), f"the failback of {source} did not finish"
        )

    async def _quiet(self) -> None:
        self._begin("quiet", "load stopped; waiting until everything is delivered")
        if not await self._load.settle(self._plan.settle_max_s):
            self.notes.append(
                "Some acked messages had not reached every device when the run was judged."
            )
        self._begin("logins", "fresh logins at every IDC")
        self._recorder.quiet(list(self._addresses))
        looks = self._load.looks()
        seconds = self._plan.logins_max_s
        failures = await look(
            self._connect, self._recorder, looks, self._addresses, "final", seconds
        )
        self.notes += [f"Fresh login of {f.uid} at {f.idc}: {f.reason}." for f in failures[:5]]
        self._end()

    # ---------------------------------------------------------------------------- means

    def _after(self, idc: str, steps: int) -> str:
        idcs = list(self._addresses)
        return idcs[(idcs.index(idc) + steps) % len(idcs)]

    @asynccontextmanager
    async def _background(self, work: Awaitable[None]) -> AsyncIterator[asyncio.Task[None]]:
        """Runs beside the block; its error ends the block, its end does not."""
        task = asyncio.ensure_future(work)
        block = asyncio.current_task()
        assert block is not None

        def ended(done: asyncio.Future[None]) -> None:
            if not done.cancelled() and done.exception():
                block.cancel()

        task.add_done_callback(ended)
        try:
            yield task
        except asyncio.CancelledError:
            if task.done() and not task.cancelled() and (error := task.exception()):
                block.uncancel()
                raise error from None
            raise
        finally:
            task.remove_done_callback(ended)
            task.cancel()
            await asyncio.wait([task])

    @asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        async with self._background(self._watch()):
            yield

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(ImError):
                self._seen = await self._deployment.observe()
                for idc, (epoch, content) in self._seen.policies.items():
                    self._recorder.policy(idc, epoch, content)
            await asyncio.sleep(POLL_S)

    def _on_sample(self, sample: Sample) -> None:
        sample.states = dict(self._seen.states)
        sample.lag_ms = dict(self._seen.lag_ms)
        self._view.sample(sample)
        self._recorder.flush()

    async def _wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _until(self, holds: Callable[[], bool], seconds: float, otherwise: str) -> None:
        """Raises Unavailable(otherwise)."""
        deadline = self._clock.now() + seconds
        while not holds():
            if self._clock.now() >= deadline:
                raise Unavailable(f"{otherwise} within {seconds:g} s")
            await asyncio.sleep(0.05)

    async def _bounded(
        self, work: Awaitable[None], otherwise: str, seconds: float | None = None
    ) -> None:
        seconds = seconds or self._plan.return_max_s
        try:
            async with asyncio.timeout(seconds):
                await work
        except TimeoutError as error:
            raise Unavailable(f"{otherwise} ({seconds:g} s)") from error

    # ---------------------------------------------------------------------------- marks

    def _t(self) -> float:
        return self._clock.now() - self._load.started

    def _mark(self, idc: str, text: str) -> None:
        mark = Mark(self._t(), idc, text)
        self.marks.append(mark)
        self._view.mark(mark)

    def _begin(self, name: str, text: str) -> None:
        self._end()
        self.spans.append(Span(name, self._t(), self._t()))
        self._recorder.phase(name)
        self._view.step(text)

    def _end(self) -> None:
        if self.spans:
            self.spans[-1] = self.spans[-1]._replace(end=self._t())
