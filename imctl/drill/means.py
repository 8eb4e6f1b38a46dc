"""What breaks and mends the units of a deployment; of one on this machine by signals, the Admin
services of its IDCs, and its link proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from imcore.proto import peer_pb2 as pb
from imcore.runtime import Clock
from imctl import admin, audit, startup
from imctl.errors import Failed
from imctl.target.local import LINKPROXY, Local


class GatewaysLate(Failed):
    """An IDC serves, but not all of its gateways in pods of their own are ready in time."""


class Means(Protocol):
    """What breaks and mends the units of a deployment. All raise ImError."""

    async def kill(self, unit: str) -> None: ...

    async def pause(self, unit: str) -> None: ...

    async def resume(self, unit: str) -> None: ...

    async def wipe(self, unit: str) -> None:
        """Of one that was killed."""
        ...

    async def start(self, unit: str) -> None:
        """Returns once it runs, perhaps not yet serving."""
        ...

    async def serving(self, units: Sequence[str], touched: bool = True) -> None:
        """Until these serve that ever do: an engine's answer is not waited for. ``touched``: their
        gateways are waited for as long as a start takes; else not for long, since nobody has
        killed them. Raises GatewaysLate once all else serves."""
        ...

    def state(self, unit: str) -> str:
        """Of a unit, as of now: running, paused or gone."""
        ...

    def ends(self) -> list[str]:
        """Of links."""
        ...

    async def link(self, fault: pb.LinkFault) -> None: ...

    async def clock(self, idc: str, offset_ms: int) -> None: ...

    async def disk(self, idc: str, full: bool, fsync_delay_ms: int) -> None: ...


def means_of(target: Local, clock: Clock, lasts_s: float) -> Means:
    """``lasts_s``: what a fault may last."""
    if not target.on_pods:
        return LocalMeans(target, clock)
    from imctl.drill.pods import PodMeans  # a client of Kubernetes takes its time to load
    from imctl.target.kubernetes import Kubernetes

    assert isinstance(target, Kubernetes)
    return PodMeans(target, clock, lasts_s)


class LocalMeans:
    def __init__(self, target: Local, clock: Clock) -> None:
        self._target = target
        self._clock = clock

    async def kill(self, unit: str) -> None:
        await self._signalled(unit, "killed (SIGKILL)", self._target.kill)

    async def pause(self, unit: str) -> None:
        await self._signalled(unit, "paused (SIGSTOP)", self._target.pause)

    async def wipe(self, unit: str) -> None:
        await self._signalled(unit, "wiped", self._target.wipe)

    async def _signalled(self, unit: str, done: str, work: Callable[[str], None]) -> None:
        self._target.look_again()
        await asyncio.to_thread(work, unit)
        audit.fault(self._target, self._clock.wall_ms(), unit, "done", done)

    async def resume(self, unit: str) -> None:
        await asyncio.to_thread(self._target.resume, unit)

    async def start(self, unit: str) -> None:
        self._target.look_again()
        await asyncio.to_thread(self._target.start, [unit])

    async def serving(self, units: Sequence[str], touched: bool = True) -> None:
        engines = self._target.engine_names()
        servers = [unit for unit in units if unit not in engines]
        if servers:
            await startup.wait_serving(self._target, servers, lambda name, serving: None)

    def state(self, unit: str) -> str:
        self._target.look_again()
        return next((one.state for one in self._target.units() if one.name == unit), "gone")

    def ends(self) -> list[str]:
        return [name for name in self._target.names() if name != LINKPROXY]

    async def link(self, fault: pb.LinkFault) -> None:
        await admin.fault(self._target, LINKPROXY, pb.FaultRequest(link=fault))

    async def clock(self, idc: str, offset_ms: int) -> None:
        fault = pb.ClockFault(offset_ms=offset_ms)
        await admin.fault(self._target, idc, pb.FaultRequest(clock=fault))

    async def disk(self, idc: str, full: bool, fsync_delay_ms: int) -> None:
        fault = pb.DiskFault(full=full, fsync_delay_ms=fsync_delay_ms)
        await admin.fault(self._target, idc, pb.FaultRequest(disk=fault))
