"""What a drill does to a simulated deployment, as it would to a real one: units are killed, stopped
and started, links cut and slowed, clocks and disks made wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from imcore.errors import Unavailable
from imcore.proto import peer_pb2 as pb
from services.sim.world import Machine, World

SERVING_S = 60.0
POLL_S = 0.05


class SimMeans:
    """As ``Means`` of imctl.drill.breakage. Links' modes are drop and pass, without a rate."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _machine(self, unit: str) -> Machine:
        return self._world.machines[unit]

    async def kill(self, unit: str) -> None:
        self._machine(unit).crash()

    async def pause(self, unit: str) -> None:
        owner = self._machine(unit).owner
        if owner is None:
            raise Unavailable(f"{unit} does not run")
        self._world.loop.pause(owner)

    async def resume(self, unit: str) -> None:
        owner = self._machine(unit).owner
        if owner is not None:
            self._world.loop.resume(owner)

    async def wipe(self, unit: str) -> None:
        if self._machine(unit).running:
            raise Unavailable(f"{unit} runs: only what was killed can be wiped")
        self._machine(unit).wipe()

    async def start(self, unit: str) -> None:
        """As a new process, to which nobody has told of a wrong clock or a bad disk."""
        await self.clock(unit, 0)
        await self.disk(unit, False, 0)
        if not self._machine(unit).running:
            self._machine(unit).start()

    async def serving(self, units: Sequence[str], touched: bool = True) -> None:
        deadline = self._world.loop.time() + SERVING_S
        while late := [unit for unit in units if not self._machine(unit).serving]:
            if self._world.loop.time() >= deadline:
                raise Unavailable(f"{', '.join(late)} does not serve within {SERVING_S:g} s")
            await asyncio.sleep(POLL_S)

    def state(self, unit: str) -> str:
        owner = self._machine(unit).owner
        if owner is None:
            return "gone"
        return "paused" if owner.paused else "running"

    def ends(self) -> list[str]:
        return list(self._world.machines)

    async def link(self, fault: pb.LinkFault) -> None:
        self._one_way(fault.from_idc, fault.to_idc, fault)
        if fault.both_ways:
            self._one_way(fault.to_idc, fault.from_idc, fault)

    def _one_way(self, a: str, b: str, fault: pb.LinkFault) -> None:
        """A link that is let pass without figures has those of the region again."""
        net = self._world.net
        if fault.mode == "drop":
            net.cut(a, b)
            return
        link, usual = net.link(a, b), net.default(a, b)
        link.delay_s, link.jitter_s, link.loss = usual.delay_s, usual.jitter_s, usual.loss
        if fault.delay_ms or fault.jitter_ms or fault.loss:
            link.delay_s = max(0, fault.delay_ms - fault.jitter_ms) / 1000
            link.jitter_s = 2 * fault.jitter_ms / 1000
            link.loss = fault.loss
        net.heal(a, b)

    async def clock(self, idc: str, offset_ms: int) -> None:
        self._machine(idc).clock.offset_ms = offset_ms

    async def disk(self, idc: str, full: bool, fsync_delay_ms: int) -> None:
        faults = self._machine(idc).disk.faults
        faults.full, faults.fsync_delay_ms = full, fsync_delay_ms
