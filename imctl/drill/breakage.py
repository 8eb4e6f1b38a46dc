"""Faults made and undone on a deployment, each in the book first."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from itertools import combinations

from imcore.errors import ImError, Unavailable
from imcore.proto import peer_pb2 as pb
from imcore.runtime import Clock
from imctl import admin, audit, startup
from imctl.drill.faults import Fault, FaultBook, Kind, in_order
from imctl.errors import Failed
from imctl.moves import LocalDeployment
from imctl.target.local import LINKPROXY, Local
from imctl.traffic import Control

BACK_S = 90.0  # until an IDC has its clients again
POLL_S = 0.3
ACTIVE_ROUNDS = 3  # looks at a policy in which every IDC stays active


class Breakage:
    """``control``: of the same loop. All raise ImError."""

    def __init__(self, target: Local, control: Control, clock: Clock, lasts_s: float) -> None:
        self.book = FaultBook(target.data)
        self.moves = LocalDeployment(target, control)
        self._target = target
        self._control = control
        self._clock = clock
        self._lasts_s = lasts_s

    # --------------------------------------------------------------------------------- make

    def note(self, kind: Kind, unit: str, sentence: str, other: str = "") -> Fault:
        """To be called before it is made."""
        now_ms = self._clock.wall_ms()
        expires_ms = now_ms + int(self._lasts_s * 1000)
        fault = Fault(secrets.token_hex(4), kind, unit, other, sentence, now_ms, expires_ms)
        self.book.add(fault)
        return fault

    async def kill(self, unit: str) -> None:
        self.note(Kind.KILL, unit, f"{unit} is killed")
        await self._signalled(unit, "killed (SIGKILL)", self._target.kill)

    async def pause(self, unit: str) -> None:
        self.note(Kind.PAUSE, unit, f"{unit} stands still")
        await self._signalled(unit, "paused (SIGSTOP)", self._target.pause)

    async def wipe(self, idc: str) -> None:
        """Nothing brings it back, so it is in no book: the IDC starts as a blank one."""
        await self._signalled(idc, "wiped", self._target.wipe)

    async def _signalled(self, unit: str, done: str, work: Callable[[str], None]) -> None:
        self._target.look_again()
        await asyncio.to_thread(work, unit)
        audit.fault(self._target, self._clock.wall_ms(), unit, "done", done)

    async def link(self, sentence: str, fault: pb.LinkFault) -> None:
        self.note(Kind.LINK, fault.from_idc, sentence, fault.to_idc)
        await admin.fault(self._target, LINKPROXY, pb.FaultRequest(link=fault))

    def links(self) -> list[tuple[str, str]]:
        """Every link, by its ends."""
        ends = [name for name in self._target.names() if name != LINKPROXY]
        return list(combinations(ends, 2))

    async def clock(self, idc: str, offset_ms: int) -> None:
        self.note(Kind.CLOCK, idc, f"the clock of {idc} is {offset_ms:+d} ms off")
        fault = pb.ClockFault(offset_ms=offset_ms)
        await admin.fault(self._target, idc, pb.FaultRequest(clock=fault))

    async def disk(self, idc: str, full: bool, fsync_delay_ms: int) -> None:
        what = "full" if full else f"slow ({fsync_delay_ms} ms each fsync)"
        self.note(Kind.DISK, idc, f"the disk of {idc} is {what}")
        fault = pb.DiskFault(full=full, fsync_delay_ms=fsync_delay_ms)
        await admin.fault(self._target, idc, pb.FaultRequest(disk=fault))

    # --------------------------------------------------------------------------------- undo

    async def undo_kind(self, kind: Kind, *units: str) -> None:
        """All faults of a kind at these units (of a link: between them)."""
        for fault in self.book.read().faults:
            if fault.kind is kind and {fault.unit, fault.other} - {""} <= set(units):
                await self.undo(fault)

    async def undo(self, fault: Fault) -> None:
        """And strike it out. Undoing what is whole already does no harm."""
        target = self._target
        target.look_again()
        match fault.kind:
            case Kind.PAUSE:
                if self._state(fault.unit) == "paused":
                    await asyncio.to_thread(target.resume, fault.unit)
            case Kind.KILL:
                await self._start(fault.unit)
            case Kind.LINK:
                healed = pb.LinkFault(
                    from_idc=fault.unit, to_idc=fault.other, mode="pass", both_ways=True
                )
                await admin.fault(target, LINKPROXY, pb.FaultRequest(link=healed))
            case Kind.CLOCK if self._state(fault.unit) != "gone":
                request = pb.FaultRequest(clock=pb.ClockFault(offset_ms=0))
                await admin.fault(target, fault.unit, request)
            case Kind.DISK if self._state(fault.unit) != "gone":
                request = pb.FaultRequest(disk=pb.DiskFault(full=False))
                await admin.fault(target, fault.unit, request)
            case Kind.MOVE:
                await self.all_back([fault.unit])
        self.book.strike(fault.id)

    async def start_again(self, units: Sequence[str]) -> None:
        """What was killed, one after the other, so that all are down together and none waits for
        another to serve: with every registry away nobody serves."""
        self._target.look_again()
        for unit in units:
            await asyncio.to_thread(self._target.start, [unit])
        await startup.wait_serving(self._target, units, lambda name, serving: None)
        for fault in self.book.read().faults:
            if fault.kind is Kind.KILL and fault.unit in units:
                self.book.strike(fault.id)

    async def _start(self, unit: str) -> None:
        engines = self._target.engine_names()
        if self._state(unit) == "gone":
            await asyncio.to_thread(self._target.start, [unit])
        if unit not in engines:
            await startup.wait_serving(self._target, [unit], lambda name, serving: None)

    def _state(self, unit: str) -> str:
        return next((one.state for one in self._target.units() if one.name == unit), "gone")

    async def undo_all(self, only: list[Fault] | None = None) -> list[str]:
        """What is left, in its order, then every IDC gets its clients back. One that cannot be
        undone does not keep the others; returns what could not be done."""
        book = self.book.read()
        problems = []
        for fault in in_order(book.faults if only is None else only):
            try:
                await self.undo(fault)
            except ImError as error:
                problems.append(f"{fault.sentence}, and it could not be undone: {error}")
        if only is None and book.active and not problems:
            try:
                await self.all_back(book.active)
            except ImError as error:
                problems.append(str(error))
        if only is None and not problems:
            self.book.end()
        return problems

    async def all_back(self, idcs: list[str]) -> None:
        """Until each of these is active with all its clients, and stays so: a failover that was
        under way may still be committed. Raises Unavailable, Failed."""
        try:
            async with asyncio.timeout(BACK_S):
                calm = 0
                while calm < ACTIVE_ROUNDS:
                    out = await self._out(idcs)
                    if out:
                        calm = 0
                        await self._failback(out[0])
                    elif out is not None:
                        calm += 1
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            left = ", ".join(await self._out(idcs) or idcs)
            why = f" ({self.moves.refusal})" if self.moves.refusal else ""
            raise Unavailable(
                f"{left} did not get all clients back within {BACK_S:g} s{why}"
            ) from None

    async def _out(self, idcs: list[str]) -> list[str] | None:
        """None: no majority of registries answers."""
        try:
            policy = await self._control.policy()
        except Unavailable:
            return None
        rows = {idc: policy.idcs.get(idc) for idc in idcs}
        return [n for n, row in rows.items() if row and (row.state != "active" or row.ramp < 100)]

    async def _failback(self, idc: str) -> None:
        try:
            await self.moves.failback(idc)
        except Failed:  # a failover that came late ended it: it is asked for again
            await asyncio.sleep(POLL_S)
