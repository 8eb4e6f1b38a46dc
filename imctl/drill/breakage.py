"""Faults made and undone on a deployment, each in the book first."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from imcore.errors import ImError, Unavailable
from imcore.proto import peer_pb2 as pb
from imcore.runtime import Clock
from imctl.drill.faults import Fault, FaultBook, Kind, in_order
from imctl.drill.means import GatewaysLate, Means, means_of
from imctl.errors import Failed
from imctl.moves import Moves, random_id
from imctl.target.local import Local
from imctl.traffic import Steering

BACK_S = 90.0  # until an IDC has its clients again
POLL_S = 0.3
ACTIVE_ROUNDS = 3  # looks at a policy in which every IDC stays active


class Breakage:
    """``moves``, ``control``: of the same loop. ``folder``: where the book is. Raises ImError."""

    def __init__(
        self,
        means: Means,
        control: Steering,
        moves: Moves,
        clock: Clock,
        lasts_s: float,
        folder: Path,
    ) -> None:
        self.book = FaultBook(folder)
        self.moves = moves
        self.notes: list[str] = []  # what is undone, but not as whole as it was
        self._means = means
        self._control = control
        self._clock = clock
        self._lasts_s = lasts_s

    @staticmethod
    def of(target: Local, control: Steering, clock: Clock, lasts_s: float) -> Breakage:
        means = means_of(target, clock, lasts_s)
        return Breakage(means, control, Moves(control, random_id), clock, lasts_s, target.data)

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
        await self._means.kill(unit)

    async def pause(self, unit: str) -> None:
        self.note(Kind.PAUSE, unit, f"{unit} is frozen")
        await self._means.pause(unit)

    async def wipe(self, idc: str) -> None:
        """Nothing brings it back, so it is in no book: the IDC starts as a blank one."""
        await self._means.wipe(idc)

    async def link(self, sentence: str, fault: pb.LinkFault) -> None:
        self.note(Kind.LINK, fault.from_idc, sentence, fault.to_idc)
        await self._means.link(fault)

    def links(self) -> list[tuple[str, str]]:
        """Every link, by its ends."""
        return list(combinations(self._means.ends(), 2))

    async def clock(self, idc: str, offset_ms: int) -> None:
        self.note(Kind.CLOCK, idc, f"the clock of {idc} is {offset_ms:+d} ms off")
        await self._means.clock(idc, offset_ms)

    async def disk(self, idc: str, full: bool, fsync_delay_ms: int) -> None:
        what = "full" if full else f"slow ({fsync_delay_ms} ms each fsync)"
        self.note(Kind.DISK, idc, f"the disk of {idc} is {what}")
        await self._means.disk(idc, full, fsync_delay_ms)

    # --------------------------------------------------------------------------------- undo

    async def undo_kind(self, kind: Kind, *units: str) -> None:
        """All faults of a kind at these units (of a link: between them)."""
        for fault in self.book.read().faults:
            if fault.kind is kind and {fault.unit, fault.other} - {""} <= set(units):
                await self.undo(fault)

    async def undo(self, fault: Fault, made: bool = True) -> None:
        """And strike it out. Undoing what is whole already does no harm. ``made``: surely, not only
        noted."""
        means = self._means
        match fault.kind:
            case Kind.PAUSE:
                if means.state(fault.unit) == "paused":
                    await means.resume(fault.unit)
            case Kind.KILL:
                if gone := means.state(fault.unit) == "gone":
                    await means.start(fault.unit)
                await means.serving([fault.unit], touched=made or gone)
            case Kind.LINK:
                healed = pb.LinkFault(
                    from_idc=fault.unit, to_idc=fault.other, mode="pass", both_ways=True
                )
                await means.link(healed)
            case Kind.CLOCK if means.state(fault.unit) != "gone":
                await means.clock(fault.unit, 0)
            case Kind.DISK if means.state(fault.unit) != "gone":
                await means.disk(fault.unit, False, 0)
            case Kind.MOVE:
                await self.all_back([fault.unit])
        self.book.strike(fault.id)

    async def start_again(self, units: Sequence[str]) -> None:
        """What was killed, one after the other, so that all are down together and none waits for
        another to serve: with every registry away nobody serves."""
        for unit in units:
            await self._means.start(unit)
        await self._means.serving(units)
        for fault in self.book.read().faults:
            if fault.kind is Kind.KILL and fault.unit in units:
                self.book.strike(fault.id)

    async def undo_all(self, only: list[Fault] | None = None) -> list[str]:
        """What is left, in its order, then every IDC gets its clients back. One that cannot be
        undone does not keep the others; returns what could not be done. Gateways that are not ready
        in time are no such thing, but noted: some may never have been, and clients have others."""
        book = self.book.read()
        problems = []
        for fault in in_order(book.faults if only is None else only):
            try:
                await self.undo(fault, made=False)
            except GatewaysLate as late:
                self.notes.append(f"{fault.sentence}; that is undone, but {late}.")
                self.book.strike(fault.id)
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
