"""What breaks and mends the IDCs of a deployment on Kubernetes: the IDC objects and their pods.
``Means`` of imctl.drill.means.

A pod is killed as by a power cut (SIGKILL to all that runs in it), with an IDC's those of its
gateways, and the IDC object is marked: the operator there wants no pod of them until the mark is
gone, or its time is over. So an IDC comes back in the end whoever of all that had a part in it is
gone.

A link is cut or made slow by the processes of the IDCs at its ends (services.node.cuts), told at
their peer endpoints. They do so for some seconds only: it has to be said again for as long as it is
to last, and heals with whoever says so.

A clock is shifted and a disk broken in the IDC's process too, as on any other target; it undoes
that by itself when the time is over, and forgets it when it ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from imcore.errors import ImError
from imcore.proto import peer_pb2 as pb
from imcore.runtime import Clock
from imctl import admin, audit, startup
from imctl.drill.means import GatewaysLate
from imctl.errors import Guarded
from imctl.target.kubernetes import Kubernetes

GATEWAYS_S = 0.5  # between looks at them
UNTOUCHED_S = 15.0  # for them, when nobody knows whether they were killed at all
AGAIN_S = 3.0  # below what a cut lasts, so that one word may be lost


class _Saying(NamedTuple):
    """A fault of a link that is said again and again, until ``last``."""

    fault: pb.LinkFault
    last: float
    task: asyncio.Task[None]


class PodMeans:
    """``lasts_s``: for so long a killed IDC stays down, and a link broken, at most."""

    def __init__(self, target: Kubernetes, clock: Clock, lasts_s: float) -> None:
        self._target = target
        self._clock = clock
        self._lasts_s = lasts_s
        self._saying: dict[frozenset[str], list[_Saying]] = {}  # by a link's ends
        self._telling = asyncio.Lock()  # no word of a fault is on its way when its end is told

    async def kill(self, unit: str) -> None:
        until = self._wall(self._lasts_s)
        await asyncio.to_thread(self._target.take_down, unit, until)
        said = f"its pods are killed (SIGKILL) and kept down, until {until} at most"
        audit.fault(self._target, self._clock.wall_ms(), unit, "done", said)

    async def start(self, unit: str) -> None:
        await asyncio.to_thread(self._target.let_up, unit)

    async def serving(self, units: Sequence[str], touched: bool = True) -> None:
        await startup.wait_serving(self._target, units, lambda name, serving: None, apart=False)
        deadline = self._clock.now() + (self._target.starts_s if touched else UNTOUCHED_S)
        late = list(units)
        while late := [unit for unit in late if not await self._gateways(unit)]:
            if self._clock.now() > deadline:
                raise GatewaysLate(f"not all gateways of {', '.join(late)} are ready")
            await asyncio.sleep(GATEWAYS_S)

    async def _gateways(self, unit: str) -> bool:
        """Whether all that have pods of their own are there."""
        if not await asyncio.to_thread(self._target.gateways_serve, unit):
            return False
        if await asyncio.to_thread(self._target.rolling, unit) is not None:
            return False
        document = (await admin.statuses(self._target, [unit]))[unit]
        return startup.linked(self._target, unit, document)

    def state(self, unit: str) -> str:
        if self._target.is_kept_down(unit, self._wall()):
            return "gone"
        return next((one.state for one in self._target.units() if one.name == unit), "gone")

    def ends(self) -> list[str]:
        return self._target.names()

    def _never(self, what: str) -> Guarded:
        return Guarded(f"{what} is not for pods (docs/drills.md)")

    async def pause(self, unit: str) -> None:
        raise self._never("Freezing a process")

    async def resume(self, unit: str) -> None:
        raise self._never("Freezing a process")

    async def wipe(self, unit: str) -> None:
        await asyncio.to_thread(self._target.delete_data, unit, self._wall())
        audit.fault(self._target, self._clock.wall_ms(), unit, "done", "its data are deleted")

    async def link(self, fault: pb.LinkFault) -> None:
        """Each end that is an IDC is told; one that is gone has nothing to heal. Of two faults of
        one way and mode the last one counts."""
        ends = _ends(fault)
        told = [idc.name for idc in self._target.region.spec.idcs if idc.name in ends]
        heals = fault.mode == "pass" and not _slows(fault)
        async with self._telling:
            for each in self._saying.pop(ends, []):
                self._replace(told, each, fault, heals)
        if heals:
            told = [idc for idc in told if self.state(idc) != "gone"]
        for idc in told:
            await admin.fault(self._target, idc, pb.FaultRequest(link=fault))
        if not heals:
            self._say(told, fault, self._clock.now() + self._lasts_s)

    def _replace(
        self, told: Sequence[str], former: _Saying, fault: pb.LinkFault, heals: bool
    ) -> None:
        """By the fault that comes after it, as far as that is about the same."""
        shared = _ways(former.fault) & _ways(fault)
        if not shared or not (heals or former.fault.mode == fault.mode):
            self._saying.setdefault(_ends(fault), []).append(former)
            return
        former.task.cancel()
        for sender, receiver in _ways(former.fault) - shared:
            left = pb.LinkFault()
            left.CopyFrom(former.fault)
            left.from_idc, left.to_idc, left.both_ways = sender, receiver, False
            self._say(told, left, former.last)

    def _say(self, told: Sequence[str], fault: pb.LinkFault, last: float) -> None:
        task = asyncio.create_task(self._again(told, pb.FaultRequest(link=fault), last))
        self._saying.setdefault(_ends(fault), []).append(_Saying(fault, last, task))

    async def _again(self, told: Sequence[str], request: pb.FaultRequest, last: float) -> None:
        """Also to an IDC that was started again meanwhile."""
        while self._clock.now() < last:
            await asyncio.sleep(AGAIN_S)
            async with self._telling:
                await asyncio.gather(*(self._once_more(idc, request) for idc in told))

    async def _once_more(self, idc: str, request: pb.FaultRequest) -> None:
        with contextlib.suppress(ImError):
            await admin.repeated(self._target, idc, request)

    async def clock(self, idc: str, offset_ms: int) -> None:
        fault = pb.ClockFault(offset_ms=offset_ms, lasts_ms=self._lasts_ms())
        await admin.fault(self._target, idc, pb.FaultRequest(clock=fault))

    async def disk(self, idc: str, full: bool, fsync_delay_ms: int) -> None:
        lasts_ms = self._lasts_ms()
        fault = pb.DiskFault(full=full, fsync_delay_ms=fsync_delay_ms, lasts_ms=lasts_ms)
        await admin.fault(self._target, idc, pb.FaultRequest(disk=fault))

    def _wall(self, in_s: float = 0.0) -> str:
        """RFC 3339. ``in_s``: so many seconds from now."""
        now = datetime.fromtimestamp(self._clock.wall_ms() / 1000, UTC)
        return (now + timedelta(seconds=in_s)).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _lasts_ms(self) -> int:
        return int(self._lasts_s * 1000)


def _ends(fault: pb.LinkFault) -> frozenset[str]:
    return frozenset((fault.from_idc, fault.to_idc))


def _ways(fault: pb.LinkFault) -> frozenset[tuple[str, str]]:
    """By who sends and who receives."""
    way = (fault.from_idc, fault.to_idc)
    return frozenset((way, way[::-1]) if fault.both_ways else (way,))


def _slows(fault: pb.LinkFault) -> bool:
    return bool(fault.delay_ms or fault.jitter_ms or fault.loss or fault.rate_kbit)
