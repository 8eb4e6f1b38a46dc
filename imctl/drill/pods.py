"""What breaks and mends the IDCs of a deployment on Kubernetes: the IDC objects and their pods.
``Means`` of imctl.drill.means.

A pod is killed as by a power cut (SIGKILL to all that runs in it), and its IDC object marked: the
operator there wants no pod until the mark is gone, or its time is over. So an IDC comes back in the
end whoever of all that had a part in it is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from imcore.proto import peer_pb2 as pb
from imcore.runtime import Clock
from imctl import audit, startup
from imctl.errors import Guarded
from imctl.target.kubernetes import Kubernetes


class PodMeans:
    """``lasts_s``: for so long a killed IDC stays down at most."""

    def __init__(self, target: Kubernetes, clock: Clock, lasts_s: float) -> None:
        self._target = target
        self._clock = clock
        self._lasts_s = lasts_s

    async def kill(self, unit: str) -> None:
        now = datetime.fromtimestamp(self._clock.wall_ms() / 1000, UTC)
        until = (now + timedelta(seconds=self._lasts_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
        await asyncio.to_thread(self._target.take_down, unit, until)
        said = f"its pod is killed (SIGKILL) and kept down, until {until} at most"
        audit.fault(self._target, self._clock.wall_ms(), unit, "done", said)

    async def start(self, unit: str) -> None:
        await asyncio.to_thread(self._target.let_up, unit)

    async def serving(self, units: Sequence[str]) -> None:
        await startup.wait_serving(self._target, units, lambda name, serving: None)

    def state(self, unit: str) -> str:
        if self._target.is_kept_down(unit):
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
        raise self._never("Deleting data")

    async def link(self, fault: pb.LinkFault) -> None:
        raise self._never("Breaking a link")

    async def clock(self, idc: str, offset_ms: int) -> None:
        raise self._never("Shifting a clock")

    async def disk(self, idc: str, full: bool, fsync_delay_ms: int) -> None:
        raise self._never("Breaking a disk")
