"""Which faults come when, by the seed; and what each of them does to the world.

Of those that take an IDC away, one comes after the other, with time to get over one before the
next, but for those that are drawn to meet: at most one IDC, or the witness, is away at a time,
since of three registries two must be there for anything to be decided, and what a client was acked
and nobody else held yet may be gone with two. An IDC is lost with its disk once all have their
traffic: so is the second of two in a row. Beside them run those that take nobody away (``LIGHT``),
one after the other too.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from services.sim.region import OPERATOR, WITNESS_EVERY
from services.sim.second import second_process
from services.sim.world import World

WHOLE_S = 30.0  # for an IDC to come back and get its traffic
ACTED_S = 5.0  # for a seal to be heard of, and what lies above it to be published again
FLIPPED_MIN = 200  # bytes of a file that a bit is flipped in
UNHEARD_S = 0.4
SKEW_MS = 400
SKEWED = 0.4  # of the seeds: one clock is further off than HLCs may be
SKEWED_MS = (600, 2_000)
RESTARTED = 0.2  # how often it is the core, of the processes that faults beside cores meet

Fault: TypeAlias = Callable[["Faults", str], Awaitable[None]]


class Faults:
    """``run`` until cancelled or ``heal`` has been called; ``said`` is told each fault of an IDC
    as it begins and ends; ``move`` is asked to empty the first IDC into the second; ``settled``:
    all serve and have their traffic."""

    def __init__(
        self,
        world: World,
        said: Callable[[str, str], None],
        move: Callable[[str, str], None],
        settled: Callable[[], bool],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._world = world
        self._said = said
        self._move = move
        self._settled = settled
        self._rng = random.Random(f"faults {world.seed}")
        self._light_rng = random.Random(f"light faults {world.seed}")
        self._beside_rng = random.Random(f"faults beside cores {world.seed}")
        self._cuts: Counter[tuple[str, str]] = Counter()  # by how many faults a way is cut

    @property
    def broken(self) -> int:
        """How many faults there were; planned moves are none."""
        return self.counts.total() - self.counts[SWITCHOVER]

    def skew(self) -> None:
        """Clocks that never stand alike: all of them within what HLCs are held to (imcore.hlc), or
        one of them beyond."""
        for machine in self._world.voters:
            machine.clock.skew_ms = self._light_rng.randint(-SKEW_MS, SKEW_MS)
        if self._light_rng.random() < SKEWED:
            machine = self._light_rng.choice(self._world.voters)
            machine.clock.skew_ms = self._light_rng.choice((-1, 1)) * self._light_rng.randint(
                *SKEWED_MS
            )
        for machine in self._world.voters:
            said = f"clock {machine.name} is {machine.clock.skew_ms} ms off for good"
            self._world.trace.add(said)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run_light())
            group.create_task(self._run_heavy())
            if self._world.layout.split:
                group.create_task(self._run_beside())

    async def _run_heavy(self) -> None:
        kinds = {**LOSSES, **{name: kind for name, (_, kind) in KINDS.items()}}
        losing = self._rng.randint(1, 3)
        for number in itertools.count():
            await asyncio.sleep(self._rng.uniform(1.0, 5.0))
            name = self._loss() if number == losing else _drawn(KINDS, self._rng)
            layout = self._world.layout
            idc = self._rng.choice(layout.voters if name in ANYWHERE else layout.idcs)
            await self._make(name, kinds[name], idc)

    async def _run_light(self) -> None:
        while True:
            await asyncio.sleep(self._light_rng.uniform(0.5, 4.0))
            name = _drawn(LIGHT, self._light_rng)
            idc = self._light_rng.choice(self._world.layout.idcs)
            await self._make(name, LIGHT[name][1], idc)

    async def _run_beside(self) -> None:
        """One process after the other, of those that an IDC has beside its core. Where another
        core waits the first one is told to stop, too, as for a restart."""
        rng = self._beside_rng
        while True:
            await asyncio.sleep(rng.uniform(0.5, 4.0))
            idc = rng.choice(self._world.layout.idcs)
            machine = self._world.machines[idc]
            if machine.waits is not None and rng.random() < RESTARTED:
                self.counts["core restarted"] += 1
                self._tell(idc, "core restarted")
                machine.stop()
                continue
            each = rng.choice(machine.beside)
            owner = each.owner
            if owner is None:  # its IDC is down
                continue
            name = rng.choice(("crash beside", "pause beside"))
            self.counts[name] += 1
            self._tell(idc, f"{name}: {owner.name}")
            if name == "crash beside":
                each.crash()
            else:
                self._world.loop.pause(owner)
            await asyncio.sleep(rng.choice((0.2, 1.0, 5.0)) * rng.uniform(0.5, 1.5))
            if name == "pause beside":
                self._world.loop.resume(owner)
            elif each.owner is None and self._world.machines[idc].running:
                each.start()

    async def _make(self, name: str, fault: Fault, idc: str) -> None:
        self.counts[name] += 1
        self._tell(idc, name)
        await fault(self, idc)
        self._tell(idc, f"{name} is over")

    def _loss(self) -> str:
        """The one of this seed: by its number, so that neighbours have all of them."""
        if self._world.layout.witness:  # of two IDCs none knows less than a third
            return self._rng.choice(("wipe", "two losses"))
        return list(LOSSES)[self._world.seed % WITNESS_EVERY]

    def _tell(self, idc: str, what: str) -> None:
        self._world.trace.add(f"fault {idc} {what}")
        self._said(idc, what)

    def heal(self) -> None:
        """Everything that can be as it should be is so again."""
        world = self._world
        layout = world.layout
        sites = [*layout.voters, *(f"near-{name}" for name in layout.idcs)]
        for a in sites:
            for b in sites:
                if a != b:
                    world.net.heal(a, b)
                    world.net.link(a, b).bytes_per_s = 0
                    world.net.link(a, b).loss = 0.0
        for machine in world.voters:
            machine.disk.faults.full = False
            machine.disk.faults.fsync_delay_ms = 0
            machine.clock.offset_ms = 0
            for owner in (machine.owner, *(each.owner for each in machine.beside)):
                if owner is not None and owner.paused:
                    world.loop.resume(owner)
            machine.start()

    # ------------------------------------------------------------------------ the kinds

    async def _away(self, idc: str) -> None:
        """Sometimes so short that nobody notices, sometimes until after a failover."""
        await asyncio.sleep(self._rng.choice((0.3, 1.5, 4.0, 9.0)) * self._rng.uniform(0.5, 1.5))
        self._world.machine(idc).start()

    async def crash(self, idc: str) -> None:
        split = self._world.layout.split
        self._world.machine(idc).crash(alone=split and self._beside_rng.random() < 0.5)
        await self._away(idc)

    async def power(self, idc: str) -> None:
        self._world.machine(idc).crash(power=True)
        await self._away(idc)

    async def wipe(self, idc: str) -> None:
        """The IDC is lost with its disk, and built again from nothing. For its last moments the
        others did not hear it: what it acked then is in outboxes alone. Not before all have their
        traffic: an IDC that serves alone answers changes that nobody else holds, and no outbox
        would bring them back."""
        if not await self._whole():
            return
        await self._cut([(idc, other) for other in self._others(idc)], UNHEARD_S)
        self._tell(idc, "is lost with its disk")  # the history must know from when on
        self._world.machines[idc].crash(power=True)
        self._world.machines[idc].wipe()
        await asyncio.sleep(self._rng.uniform(5, 12))
        self._world.machines[idc].start()

    async def two_losses(self, idc: str) -> None:
        """Another IDC is lost as soon as the first one is back."""
        await self.wipe(idc)
        await self.wipe(self._rng.choice(self._other_idcs(idc)))

    async def _whole(self) -> bool:
        """Once all serve and have their traffic; False: they do not come to that."""
        for _ in range(int(WHOLE_S * 4)):
            if self._settled():
                return True
            await asyncio.sleep(0.25)
        return False

    async def blind_rebuild(self, idc: str) -> None:
        """An IDC begins anew by what one other says, which has less of its log than the third: that
        one is cut off, the operator with it, and publishes later what it has more."""
        world, (behind, ahead) = self._world, self._rng.sample(self._other_idcs(idc), 2)
        if not await self._whole():
            return
        await self._cut(self._around(behind), self._rng.uniform(1.0, 1.5), heal=False)
        machine = world.machine(idc)
        machine.crash(power=True)
        self._flip_own(machine.folder, idc)
        cut_off = self._around(ahead)
        for other in (idc, behind):
            cut_off += [(OPERATOR, other), (other, OPERATOR)]
        for pair in cut_off:
            self._part(pair)
        for pair in ((idc, behind), (behind, idc)):
            self._join(pair)
        machine.start()
        await asyncio.sleep(self._rng.uniform(6.0, 8.0))
        for pair in cut_off + self._around(behind):
            self._join(pair)
        await asyncio.sleep(ACTED_S)

    def _around(self, idc: str) -> list[tuple[str, str]]:
        others = self._others(idc)
        return [(idc, other) for other in others] + [(other, idc) for other in others]

    def _flip_own(self, folder: Path, idc: str) -> None:
        """One bit of its own log, so that it cannot go on with it."""
        files = [
            each for each in sorted(folder.rglob("*.seg"))
            if each.stat().st_size > FLIPPED_MIN and each.parent.parent.name.startswith(idc)
        ]  # fmt: skip
        if files:
            path = self._rng.choice(files)
            data = bytearray(path.read_bytes())
            data[self._rng.randrange(FLIPPED_MIN // 2, len(data) // 2)] ^= 1
            path.write_bytes(bytes(data))
            self._world.machines[idc].damages += 1

    async def pause(self, idc: str) -> None:
        owner = self._world.machine(idc).owner
        if owner is not None:
            self._world.loop.pause(owner)
            if idc in self._world.machines:
                await second_process(self._world, idc)
            await asyncio.sleep(self._rng.choice((0.5, 2.5, 6.0)) * self._rng.uniform(0.5, 1.5))
            self._world.loop.resume(owner)

    async def _cut(self, pairs: list[tuple[str, str]], seconds: float, heal: bool = True) -> None:
        for pair in pairs:
            self._part(pair)
        await asyncio.sleep(seconds)
        if heal:
            for pair in pairs:
                self._join(pair)

    def _part(self, pair: tuple[str, str]) -> None:
        self._cuts[pair] += 1
        self._world.net.cut(*pair)

    def _join(self, pair: tuple[str, str]) -> None:
        """Unless another fault cuts it too."""
        self._cuts[pair] = max(0, self._cuts[pair] - 1)
        if not self._cuts[pair]:
            self._world.net.heal(*pair)

    def _other_idcs(self, idc: str) -> list[str]:
        return [name for name in self._world.layout.idcs if name != idc]

    def _others(self, idc: str) -> list[str]:
        return [name for name in self._world.layout.voters if name != idc]

    async def partition(self, idc: str) -> None:
        await self._cut(self._around(idc), self._rng.uniform(1, 12))

    async def one_way(self, idc: str) -> None:
        others = self._others(idc)
        out = self._rng.random() < 0.5
        pairs = [(idc, other) if out else (other, idc) for other in others]
        await self._cut(pairs, self._rng.uniform(1, 10))

    async def one_link(self, idc: str) -> None:
        other = self._rng.choice(self._others(idc))
        await self._cut([(idc, other), (other, idc)], self._rng.uniform(1, 10))

    async def clients_cut(self, idc: str) -> None:
        """Those next to an IDC do not reach it, or are not reached by it; others it does."""
        pairs = [(f"near-{idc}", idc), (idc, f"near-{idc}")]
        await self._cut(pairs[: self._light_rng.randint(1, 2)], self._light_rng.uniform(1, 10))

    async def reset(self, idc: str) -> None:
        """Connections are lost, in mid-burst."""
        other = self._light_rng.choice([f"near-{idc}", *self._others(idc)])
        for conn in self._world.net.conns_between(idc, other):
            if self._light_rng.random() < 0.7:
                conn.reset("reset by the network")

    async def slow_link(self, idc: str) -> None:
        other = self._light_rng.choice(self._others(idc))
        link = self._world.net.link(idc, other)
        link.bytes_per_s = self._light_rng.choice((3_000, 20_000))
        await asyncio.sleep(self._light_rng.uniform(2, 6))
        link.bytes_per_s = 0

    async def loss(self, idc: str) -> None:
        """Packets are lost between an IDC and another, or its clients: TCP sends them again."""
        other = self._light_rng.choice([f"near-{idc}", *self._others(idc)])
        links = [self._world.net.link(idc, other), self._world.net.link(other, idc)]
        share = self._light_rng.choice((0.02, 0.1, 0.3))
        for link in links:
            link.loss = share
        await asyncio.sleep(self._light_rng.uniform(2, 6))
        for link in links:
            link.loss = 0.0

    async def slow_disk(self, idc: str) -> None:
        faults = self._world.machines[idc].disk.faults
        faults.fsync_delay_ms = self._light_rng.choice((30, 150, 600))
        await asyncio.sleep(self._light_rng.uniform(2, 6))
        faults.fsync_delay_ms = 0

    async def full_disk(self, idc: str) -> None:
        faults = self._world.machines[idc].disk.faults
        faults.full = True
        await asyncio.sleep(self._rng.uniform(0.5, 3))
        faults.full = False

    async def clock(self, idc: str) -> None:
        clock = self._world.machines[idc].clock
        jump_ms = self._light_rng.choice((40, 700, 30_000)) * self._light_rng.choice((-1, 1))
        clock.offset_ms += jump_ms
        await asyncio.sleep(self._light_rng.uniform(2, 8))
        clock.offset_ms = 0

    async def switchover(self, idc: str) -> None:
        """No fault, but clients change IDC in mid-burst, and back, and faults may meet it."""
        self._move(idc, self._rng.choice(self._other_idcs(idc)))

    async def flip(self, idc: str) -> None:
        """A bit of its log has turned while the machine was off. What others have of it is lost to
        nobody before it has come back: with both gone nothing is promised."""
        self._world.machines[idc].crash(power=True)
        self._world.machines[idc].damages += 1
        self._world.machines[idc].disk.flip()
        await self._away(idc)
        await self._whole()


# What an IDC has is lost; one of them a seed, early, since a way back takes its time.
LOSSES: dict[str, Fault] = {
    "wipe": Faults.wipe,
    "two losses": Faults.two_losses,
    "blind rebuild": Faults.blind_rebuild,
}
SWITCHOVER = "switchover"
# By name: how likely, against the others, and what it does.
KINDS: dict[str, tuple[float, Fault]] = {
    "crash": (3, Faults.crash),
    "power": (2, Faults.power),
    "pause": (2, Faults.pause),
    "partition": (2, Faults.partition),
    "one way": (1.5, Faults.one_way),
    "one link": (1.5, Faults.one_link),
    "full disk": (0.7, Faults.full_disk),
    "bit flip": (0.5, Faults.flip),
    SWITCHOVER: (3, Faults.switchover),
}
# Likewise, of those that take no IDC away.
LIGHT: dict[str, tuple[float, Fault]] = {
    "clients cut": (1.5, Faults.clients_cut),
    "reset": (2, Faults.reset),
    "slow link": (1, Faults.slow_link),
    "loss": (1, Faults.loss),
    "slow disk": (1, Faults.slow_disk),
    "clock": (1.5, Faults.clock),
}
# What the witness meets too.
ANYWHERE = ("crash", "power", "pause", "partition", "one way")


def _drawn(kinds: Mapping[str, tuple[float, Fault]], rng: random.Random) -> str:
    return rng.choices(list(kinds), [likely for likely, _ in kinds.values()])[0]
