"""One drill in one simulated world: the same load, actions, probes and judgement as on a
deployment, and only what lies beneath is another (services.sim). Played in the order in which the
Chaos Toolkit plays it under ``imctl.drill.control``."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, cast

import grpc.aio
from chaoslib import substitute
from chaoslib.hypothesis import within_tolerance

from imcore.errors import ImError
from imcore.pki import utc_now
from imcore.region.rules import voters_of
from imcore.roles import Role
from imctl import admin
from imctl.drill import probes
from imctl.drill.actions import WORK
from imctl.drill.breakage import Breakage
from imctl.drill.judging import judge_run
from imctl.drill.model import FIGURES, Drill
from imctl.drill.observer import Asking
from imctl.drill.session import Ground, Session, Why
from imctl.drill.spread import Seed
from imctl.drill.stage import Scene
from imctl.moves import Moves
from imctl.report.drill import DrillReport
from imctl.report.model import Mark
from imctl.traffic import Steering
from services.loadgen.stats import Sample
from services.sim.apart import alone
from services.sim.drill import SimMeans
from services.sim.loop import Owner, Stuck
from services.sim.region import COUNTRIES, Layout
from services.sim.rpc import SimChannel
from services.sim.run import simulated
from services.sim.world import Connector, World

SITE = "near-iad"  # where whoever runs the drill sits
START_S = 30.0
STAGGER_S = 2.0  # at most, between what begins
STEADY_S = 60.0
STOP_LOOK_S = 0.1


class Interrupted(Exception):
    """The method ends here; why is noted."""


class Quiet:
    """``View`` of imctl.report.live: nobody watches a seed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return

    def step(self, text: str) -> None:
        return

    def mark(self, mark: Mark) -> None:
        return

    def sample(self, sample: Sample) -> None:
        return


class SimControl(Steering):
    def __init__(self, world: World, rng: random.Random) -> None:
        region = world.region
        self._world = world
        self._places = {idc.name: idc.endpoints.peer for idc in region.spec.idcs}
        channels = {name: self._channel(name) for name in voters_of(region)}
        super().__init__(region, Role.ADMIN, channels, world.clock, rng)

    def _channel(self, name: str) -> grpc.aio.Channel:
        channel = SimChannel(self._world.net, str(Role.ADMIN), self._places[name])
        return cast(grpc.aio.Channel, channel)

    async def statuses(self, timeout_s: float) -> dict[str, dict[str, Any] | ImError]:
        found = await asyncio.gather(*(self._status(name, timeout_s) for name in self.idcs))
        return dict(zip(self.idcs, found, strict=True))

    async def _status(self, name: str, timeout_s: float) -> dict[str, Any] | ImError:
        channel = self._channel(name)
        try:
            return await admin.status_over(channel, name, timeout_s)
        except ImError as error:
            return error
        finally:
            await channel.close(None)


class SimGround(Ground):
    def __init__(self, world: World) -> None:
        self.region = world.region
        self.homes = COUNTRIES
        self.lookup = world.layout.country_of
        self.connect = world.connect
        self._world = world

    def control(self, rng: random.Random) -> SimControl:
        return SimControl(self._world, rng)

    def breakage(self, control: Steering, lasts_s: float) -> Breakage:
        world = self._world
        rng = random.Random(f"requests {world.seed}")
        moves = Moves(control, lambda: f"{rng.getrandbits(64):016x}")
        return Breakage(SimMeans(world), control, moves, world.clock, lasts_s, world.scratch)

    def ipconfs(self) -> Asking:
        world = self._world
        urls = {idc.name: f"http://{idc.endpoints.ipconf}" for idc in world.region.spec.idcs}
        return Asking(urls, world.token("drill", "observer"), Connector)

    def all_connected(self) -> None:
        return  # no pause of this process is felt in simulated time

    async def close(self) -> None:
        return


class _Play:
    def __init__(self, world: World, drill: Drill, values: Mapping[str, Any]) -> None:
        self._world = world
        self._drill = drill
        self._values = dict(values)
        self.journal: dict[str, Any] = {"steady_states": {"during": []}}
        self.session = Session(
            SimGround(world), drill.settings, f"s{world.seed}", world.scratch / "events.jsonl",
            Quiet(), world.clock, world.seed,
        )  # fmt: skip
        self._undoing = False

    async def run(self) -> None:
        """Until it has ended and all is undone. Raises Unavailable when the region does not
        start."""
        session, world = self.session, self._world
        # Or a fault would meet every round of votes, probes and leases at the same point of it.
        rng = random.Random(f"begin {world.seed}")
        for machine in world.machines.values():
            machine.start()
            await asyncio.sleep(rng.uniform(0, STAGGER_S))
        await session.until(
            lambda: all(machine.serving for machine in world.machines.values()),
            START_S,
            "not every IDC serves after the start",
        )
        await asyncio.sleep(rng.uniform(0, STAGGER_S))
        try:
            await session.open()
            session.breakage.book.begin(self._drill.name, session.run, session.idcs)
            session.phase("before", "checking the steady state")
            if await self._look("before"):
                await self._method()
        except ImError as error:
            session.end_early(Why.BROKEN, str(error))
        finally:
            self._undoing = True
        if session.opened:
            await self._undone()
        await session.close()

    async def _method(self) -> None:
        looking = asyncio.ensure_future(self._look_again_and_again())
        try:
            for row in self._rows("method"):
                await self._play(row)
        except Interrupted:
            return
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        await self._look("after")

    async def _undone(self) -> None:
        """Rollbacks, what is left undone, steady again, and the end."""
        session = self.session
        for row in self._rows("rollbacks"):
            await self._play(row)
        session.left = await session.breakage.undo_all()
        if not session.restored():
            session.phase("settle", "waiting for the steady state")
            try:
                await session.steady(STEADY_S)
            except ImError as error:
                session.failed = session.failed or (session.t(), str(error))
        await self._look("restored")
        await session.finish()

    # ------------------------------------------------------------------------- activities

    def _rows(self, part: str) -> list[dict[str, Any]]:
        return list(self._drill.experiment.get(part) or [])

    def _filled(self, row: Mapping[str, Any]) -> dict[str, Any]:
        found = (row.get("provider") or {}).get("arguments") or {}
        return dict(substitute(found, self._values, {}))

    async def _play(self, row: Mapping[str, Any]) -> None:
        """Raises Interrupted: it failed, or the drill is to end."""
        pauses = row.get("pauses") or {}
        await self._unless_stopped(asyncio.sleep(float(pauses.get("before") or 0)))
        function = row["provider"]["func"]
        try:
            if row["type"] == "action":
                session = self.session
                work = WORK[function](Scene(session, session.breakage), **self._filled(row))
                self._world.trace.add(f"drill {row['name']}")
                await self._unless_stopped(work)
            else:
                await self._unless_stopped(probes.seen(self.session, function))
        except ImError as error:
            if row["type"] == "action" and not self._undoing:
                said = f"{row['name']}: {error}"
                self.session.failed = self.session.failed or (self.session.t(), said)
                self.session.mark("", f"failed: {said}")
                raise Interrupted(said) from error
        await self._unless_stopped(asyncio.sleep(float(pauses.get("after") or 0)))

    async def _unless_stopped(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=STOP_LOOK_S)
                if not self._undoing and (why := self.session.stop_reason()):
                    raise Interrupted(why)
            task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    # ------------------------------------------------------------------------- hypothesis

    async def _look_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(self._drill.settings.probe_every_s)
            await self._look("during")

    async def _look(self, when: str) -> bool:
        """Whether it holds; what was seen goes into the journal, in the toolkit's form."""
        hypothesis = self._drill.experiment.get("steady-state-hypothesis") or {}
        rows: list[dict[str, Any]] = []
        met = True
        for probe in hypothesis.get("probes") or []:
            seen = await self._seen(probe)
            rows.append(seen)
            met = seen["status"] == "succeeded" and seen["tolerance_met"]
            if not met:
                break
        state = {"steady_state_met": met, "probes": rows}
        states = self.journal["steady_states"]
        if when == "during":
            states["during"].append(state)
        else:
            states[when] = state
        return met

    async def _seen(self, probe: Mapping[str, Any]) -> dict[str, Any]:
        function = probe["provider"]["func"]
        row: dict[str, Any] = {
            "activity": probe,
            "start": utc_now(self._world.clock.wall_ms()).isoformat(),
        }
        try:
            value = await probes.seen(self.session, function)
        except ImError as error:
            return row | {"status": "failed", "exception": [str(error)]}
        about = self.session.explain(function) if function in FIGURES else ""
        met = within_tolerance(probe["tolerance"], value, configuration=self._values, secrets={})
        return row | {
            "status": "succeeded", "output": value, "about": about, "tolerance_met": bool(met),
        }  # fmt: skip


def play(seed: int, drill: Drill, values: Mapping[str, Any]) -> Seed:
    with simulated(seed, Layout()) as world:
        owner = Owner("drill")
        world.net.sites[owner] = SITE

        async def script() -> DrillReport:
            one = _Play(world, drill, values)
            await one.run()
            session = one.session
            if world.failures and session.failed is None:
                session.failed = session.t(), world.failures[0]
            return judge_run(session, drill, dict(values), one.journal, world.scratch)

        try:
            report = world.loop.run_until_complete(world.spawn(owner, script()))
        except (Stuck, ImError) as error:
            return Seed.broken(seed, str(error), world.loop.time(), world.trace.digest())
        return Seed.of(seed, report, world.loop.time(), world.trace.digest())


def play_apart(seed: int, drill: Drill, values: Mapping[str, Any]) -> Seed:
    """In a process of its own."""
    alone()
    return play(seed, drill, values)
