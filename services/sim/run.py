"""One seed: load over faults, then quiet, then the verdict of imcore.checker."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import cast

from imcore import history as h
from imcore import sometimes
from imcore.checker import check_events
from imcore.errors import ImError
from services.loadgen.load import Load
from services.loadgen.logins import Look, look
from services.loadgen.population import make_population
from services.loadgen.recorder import Recorder
from services.loadgen.schedule import Rates
from services.node.convergence import partition_hash
from services.policy.document import Policy
from services.sim.apart import alone
from services.sim.asking import Asking
from services.sim.busy import Busy
from services.sim.doings import Doings
from services.sim.faults import Faults
from services.sim.filing import Filing
from services.sim.inside import DeadRoutes, lost_logs, mirrored_on, unfollowed, wrong_about_clocks
from services.sim.loop import Stuck
from services.sim.operating import Operator, settled
from services.sim.referring import Referring
from services.sim.region import COUNTRIES, Layout
from services.sim.relations import Relations
from services.sim.ruling import Ruling
from services.sim.sealed import Sealed
from services.sim.truth import Truth
from services.sim.world import World

USERS = 18
FIXED = range(12, 19)  # seeds that meet every counter of imcore.sometimes among them
SECONDS = 60.0
# So much a whole seed has at least: it goes on until it has.
OPERATIONS_MIN = 2_000
FAULTS_MIN = 5
MORE_S = 60.0  # at most
RATES = Rates(31.0, 7.0)
RATES_AMONG_OTHERS = Rates(24.0, 5.5)  # where some send files or encrypt besides
START_S = 30.0
RECOVER_S = 90.0
SETTLE_S = 60.0
CONVERGE_S = 30.0
QUIET_S = 8.0
WATCH_S = 0.25


@dataclass(slots=True)
class Outcome:
    """``violated``: what was promised and did not hold; empty when all did. ``digest``: of the
    trace. ``doings``: what clients did besides sending by schedule."""

    seed: int
    violated: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    doings: Counter[str] = field(default_factory=Counter)
    sometimes: Counter[str] = field(default_factory=Counter)
    operations: int = 0
    simulated_s: float = 0.0
    real_s: float = 0.0
    steps: int = 0
    verdict: str = ""
    digest: str = ""
    trace: list[str] = field(default_factory=list)


@contextlib.contextmanager
def simulated(seed: int, layout: Layout | None = None) -> Iterator[World]:
    """``layout``: else that of the seed. In a scratch folder of its own, which is in memory where
    the machine has such a place."""
    memory = Path("/dev/shm")  # noqa: S108  # mkdtemp makes a folder of its own there
    scratch = Path(tempfile.mkdtemp(prefix="sim-", dir=memory if memory.is_dir() else None))
    collecting = gc.isenabled()
    # A collection ends what lies in cycles at a moment that hangs on all that was made before.
    gc.disable()
    sometimes.counts.clear()
    world = World(seed, scratch, layout)
    try:
        yield world
    finally:
        world.loop.collects = collecting
        world.close()
        shutil.rmtree(scratch, ignore_errors=True)
        if collecting:
            gc.enable()


def run_seed(seed: int, seconds: float = SECONDS) -> Outcome:
    began = time.perf_counter()
    outcome = Outcome(seed)
    with simulated(seed) as world:
        try:
            run = _Run(world, outcome, seconds)
            world.loop.run_until_complete(run.script())
        except Stuck as error:
            outcome.violated.append(f"stuck: {error}")
        outcome.real_s = time.perf_counter() - began
        outcome.simulated_s = world.loop.time()
        outcome.steps = world.loop.steps
        outcome.sometimes = Counter(sometimes.counts)
        outcome.trace, outcome.digest = world.trace.lines, world.trace.digest()
    return outcome


def run_apart(seed: int, seconds: float) -> Outcome:
    """In a process that ends next. The trace comes back only where it is wanted."""
    alone()
    gc.disable()
    outcome = run_seed(seed, seconds)
    if not outcome.violated:
        outcome.trace = []
    # A million objects that nobody needs: to walk them before the process ends took 1 s a seed.
    gc.freeze()
    return outcome


class _Run:
    def __init__(self, world: World, outcome: Outcome, seconds: float) -> None:
        self._world = world
        self._outcome = outcome
        self._seconds = seconds
        self._history: list[h.Event] = []
        self._quiet_since = 0.0
        self._replicas: dict[str, int] = {}  # a number for each content, which may be encrypted
        rng = random.Random(f"load {world.seed}")
        self.recorder = Recorder(self._write, world.loop.time)
        layout = world.layout
        countries = {idc: COUNTRIES[idc] for idc in layout.idcs}
        population = make_population(USERS, countries, rng, layout.country_of)
        self._referring = Referring(world)
        self._load = Load(population, self._referring.connect, self.recorder, world.clock, rng)
        self._addresses = {
            idc: next(each.address for each in population.clients if each.home == idc)
            for idc in layout.idcs
        }
        self._doings = Doings(self._load, self.recorder, world.seed)
        self._relations = Relations(self._load, self.recorder, world.seed)
        self._ruling = Ruling(self._load, self.recorder, world.seed)
        self._asking = Asking(self._load, self.recorder, world)
        self._busy: list[Busy] = [self._doings, self._relations, self._ruling, self._asking]
        self._filing = Filing(self._load, self.recorder, world, self._referring)
        self._sealed = Sealed(self._load, self.recorder, world)
        self._busy += [self._filing] * layout.files + [self._sealed] * layout.sealed
        self._operator = Operator(world)
        self._faults = Faults(
            world,
            self.recorder.fault,
            self._operator.move,
            self._settled,
        )
        self._truth = Truth(world)
        self._faults.skew()

    def _write(self, event: h.Event) -> None:
        self._history.append(event)
        if isinstance(event, h.Replica) and self._world.layout.sealed:
            number = self._replicas.setdefault(event.hash, len(self._replicas))
            event = event._replace(hash=f"content {number}")  # ciphertext is not the seed's
        self._world.trace.add(f"history {type(event).__name__} {' '.join(map(str, event[1:]))}")

    async def script(self) -> None:
        outcome = self._outcome
        try:
            await self._script()
        except (ImError, TimeoutError) as error:
            outcome.violated.append(f"the run broke off: {error!r}")
        outcome.faults = self._faults.counts
        outcome.operations = self._operations()
        outcome.doings = sum((each.counts for each in self._busy), Counter())
        outcome.violated += self._world.failures
        outcome.violated += self._asking.wrong
        outcome.violated += self._referring.wrong + self._filing.wrong + self._sealed.wrong
        outcome.violated += self._truth.safety.found
        report = check_events(self._history)
        outcome.verdict = report.sentence()
        for kind, examples in sorted(report.examples.items()):
            outcome.violated += [f"{kind}: {example}" for example in examples]

    async def _script(self) -> None:
        world, load = self._world, self._load
        for machine in world.voters:
            machine.start()
        watching = asyncio.ensure_future(self._watch())  # from the first policy on
        await self._until(self._all_serve, START_S, "not every IDC serves after the start")
        await load.open()
        if world.layout.sealed:
            await self._sealed.open()
        world.spawn(self._operator.owner, self._operator.run())
        rates = RATES_AMONG_OTHERS if world.layout.sealed else RATES
        loading = asyncio.ensure_future(load.run(rates))
        faults = asyncio.ensure_future(self._faults.run())
        doings = [asyncio.ensure_future(each.run()) for each in self._busy]
        await asyncio.sleep(self._seconds)
        await self._enough()
        faults.cancel()
        for each in doings:
            each.cancel()
        for ended in await asyncio.gather(faults, *doings, return_exceptions=True):
            self._broke_off(ended)
        self._faults.heal()
        world.trace.add("faults are over")
        self._quiet_since = world.loop.time()  # votes that the last fault brought may stand yet
        load.stop()
        await loading
        await self._until(self._all_serve, RECOVER_S, "not every IDC serves after the faults")
        await self._until(self._settled, RECOVER_S, "the policy does not settle after the faults")
        world.trace.add("the policy has settled")
        if not all([await each.end(SETTLE_S) for each in self._busy]):
            self._outcome.violated.append("not every device is connected again")
        if not await load.settle(SETTLE_S):
            self._outcome.violated.append("not every send is answered, or not everything shown")
        with contextlib.suppress(TimeoutError):  # then the checker tells what differs
            await self._until(self._complete, SETTLE_S, "not all show the same")
        self._sealed.judge()
        await self._filing.judge()
        await self._compare()
        await self._look_inside()
        self.recorder.quiet(list(self._addresses))
        failures = await look(
            world.connect,
            self.recorder,
            self._looks(),
            self._addresses,
            "final",
            120.0,
        )
        for uid, idc, reason in failures:
            self._outcome.violated.append(f"a fresh login of {uid} at {idc} failed: {reason}")
        watching.cancel()
        self._broke_off((await asyncio.gather(watching, return_exceptions=True))[0])
        await self._sealed.close()
        await load.close()

    def _broke_off(self, ended: BaseException | None) -> None:
        """What is to go on until it is cancelled, and did not: nothing of it was seen since."""
        if not isinstance(ended, asyncio.CancelledError):
            self._outcome.violated.append(f"broke_off: {ended!r}")

    def _complete(self) -> bool:
        return self._doings.complete() and self._sealed.complete()

    def _looks(self) -> list[Look]:
        """What has to be looked at, by one login of each user."""
        words = self._relations.words()
        for uid, ruled in self._ruling.words().items():
            words[uid] = words.get(uid, ()) + ruled
        looks = self._doings.looks()
        known = {each.uid for each in looks}
        looks += [Look(uid, ()) for uid in words if uid not in known]
        return [each._replace(words=words.get(each.uid, ())) for each in looks]

    def _operations(self) -> int:
        asked = sum(isinstance(event, h.Cursor | h.Change | h.Word) for event in self._history)
        return self.recorder.counts.composed + asked

    async def _enough(self) -> None:
        """A whole seed goes on until it has proved as much as it is said to."""
        until = self._world.loop.time() + MORE_S
        while self._seconds >= SECONDS and (lacks := self._lacks()):
            if self._world.loop.time() >= until:
                self._outcome.violated.append(f"too_little: {lacks}")
                return
            await asyncio.sleep(1.0)

    def _lacks(self) -> str:
        """Empty when there were enough operations and faults."""
        operations, faults = self._operations(), self._faults.broken
        if operations >= OPERATIONS_MIN and faults >= FAULTS_MIN:
            return ""
        return (
            f"{operations} operations of {OPERATIONS_MIN} and {faults} faults of {FAULTS_MIN}, "
            f"after {self._seconds + MORE_S:.0f} s"
        )

    def _all_serve(self) -> bool:
        return all(machine.serving for machine in self._world.voters)

    def _settled(self) -> bool:
        """For so long that a vote that was about to be cast would have been."""
        if not self._is_quiet():
            self._quiet_since = self._world.loop.time()
        return self._world.loop.time() - self._quiet_since >= QUIET_S

    def _is_quiet(self) -> bool:
        if not self._all_serve():  # one that starts may have no policy yet
            return False
        nodes = [machine.node for machine in self._world.machines.values()]
        policies = [node.traffic.holder.policy for node in nodes if node is not None]
        alike = len({policy.epoch for policy in policies if policy is not None}) <= 1
        return alike and all(settled(policy) for policy in policies)

    async def _until(self, done: Callable[[], bool], seconds: float, problem: str) -> None:
        deadline = self._world.loop.time() + seconds
        while not done():
            if self._world.loop.time() >= deadline:
                raise TimeoutError(problem)
            await asyncio.sleep(0.1)

    async def _compare(self) -> None:
        """The hashes of the replicas' states, once they are equal, or as they are in the end."""
        deadline = self._world.loop.time() + CONVERGE_S
        while True:
            found = {name: await self._hash(name) for name in self._world.machines}
            if len(set(found.values())) == 1 or self._world.loop.time() >= deadline:
                break
            await asyncio.sleep(1.0)
        for name, digest in found.items():
            self.recorder.replica(name, digest)

    async def _hash(self, name: str) -> str:
        machine = self._world.machines[name]
        node, owner = machine.node, machine.owner
        assert node is not None and owner is not None

        async def hashed() -> str:
            numbers = range(self._world.region.spec.partitions)
            found = [await partition_hash(node.kv, number) for number in numbers]
            return b"".join(each.hash for each in found).hex()[::8]

        return cast(str, await self._world.spawn(owner, hashed()))

    async def _look_inside(self) -> None:
        self._outcome.violated += lost_logs(self._world)
        self._outcome.violated += unfollowed(self._world, self._operator.epoch)
        self._outcome.violated += wrong_about_clocks(self._world)
        machine = next(iter(self._world.machines.values()))  # all hold the same by now
        node, owner = machine.node, machine.owner
        assert node is not None and owner is not None
        if not sometimes.counts[sometimes.PUBLISHED_AGAIN]:
            for number in range(self._world.region.spec.partitions):
                copies = mirrored_on(node.kv, number, self._history)
                self._outcome.violated += await self._world.spawn(owner, copies)

    async def _watch(self) -> None:
        """What each IDC says of its policy, what became of it, and whether an IDC counts on who is
        dead."""
        routes = DeadRoutes(self._world)
        told: dict[str, Policy | None] = {}
        while True:
            self._truth.look()
            for name, machine in self._world.machines.items():
                if machine.node is not None and machine.serving:
                    policy = machine.node.traffic.holder.policy
                    if name in told and told[name] is policy:
                        continue
                    told[name] = policy
                    content = blake2b(policy.to_json(), digest_size=8).hexdigest() if policy else ""
                    self.recorder.policy(name, machine.node.traffic.epoch(), content)
            if not any(each.startswith("dead_route") for each in self._outcome.violated):
                self._outcome.violated += routes.look()
            await asyncio.sleep(WATCH_S)
