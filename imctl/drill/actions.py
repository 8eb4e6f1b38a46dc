"""Actions for the Chaos Toolkit: faults, moves of traffic, waits. They work with plain `chaos run`
too; which deployment: $IMCTL_DATA, or the one below ./var.

Every fault is in the deployment's book before it is made; `undo_faults` undoes what is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import combinations

from imcore.errors import BadInput, ImError
from imcore.proto import peer_pb2 as pb
from imctl.drill.breakage import Breakage
from imctl.drill.faults import Kind, RunLock
from imctl.drill.stage import find, stage
from imctl.errors import Guarded

FAILOVER_S = 25.0

Work = Callable[[Breakage], Awaitable[None]]


def hold(seconds: float, phase: str = "") -> str:
    """Nothing but load, for so long. ``phase``: its name in the report."""
    if phase and stage.session is not None:
        stage.session.phase(phase, f"{phase}: load")
    stage.call(asyncio.sleep(float(seconds)))
    return f"{seconds} s of load"


# ------------------------------------------------------------------------------------- faults


def kill_idc(idc: str) -> str:
    """kill -9 of every process of an IDC, as a power cut would."""
    return _lose(idc, f"{idc} is killed", lambda b: b.kill(idc))


def pause_idc(idc: str) -> str:
    """Every process of an IDC stands still (SIGSTOP); its sockets stay open."""
    return _lose(idc, f"{idc} stands still", lambda b: b.pause(idc))


def kill_unit(unit: str) -> str:
    """kill -9 of one unit beside the IDCs: the witness, an engine."""
    stage.with_breakage(lambda b: b.kill(unit))
    return _mark(unit, f"{unit} is killed")


def pause_unit(unit: str) -> str:
    """Freeze one unit beside the IDCs, such as an IDC's MirrorMaker."""
    stage.with_breakage(lambda b: b.pause(unit))
    return _mark(unit, f"{unit} stands still")


def _lose(idc: str, said: str, work: Work) -> str:
    session = stage.session
    if session is None:
        stage.with_breakage(work)
        return said

    async def lose(breakage: Breakage) -> int:
        affected = session.lose(idc)
        await work(breakage)
        session.lost(idc, affected)
        return len(affected)

    session.phase("during", said)
    count = stage.with_breakage(lose)
    return _mark(idc, f"{said} ({count} devices there)")


def start_idc(idc: str) -> str:
    """Start what `kill_idc` killed, and wait until it serves."""
    _phase("return", f"{idc} is started again and recovers")
    _mark(idc, f"{idc} is started again")
    stage.with_breakage(lambda b: b.undo_kind(Kind.KILL, idc))
    return _mark(idc, f"{idc} serves")


def resume_idc(idc: str) -> str:
    """Let what `pause_idc` froze go on."""
    _phase("return", f"{idc} goes on")
    stage.with_breakage(lambda b: b.undo_kind(Kind.PAUSE, idc))
    return _mark(idc, f"{idc} goes on")


def start_unit(unit: str) -> str:
    stage.with_breakage(lambda b: b.undo_kind(Kind.KILL, unit))
    return _mark(unit, f"{unit} serves")


def resume_unit(unit: str) -> str:
    stage.with_breakage(lambda b: b.undo_kind(Kind.PAUSE, unit))
    return _mark(unit, f"{unit} goes on")


def wipe_idc(idc: str) -> str:
    """Delete the data of an IDC that `kill_idc` killed: it is lost for good."""

    stage.with_breakage(lambda b: b.wipe(idc))
    return _mark(idc, f"all data of {idc} are deleted")


def partition(a: str, b: str, one_way: bool = False, mode: str = "drop") -> str:
    """Cut the link between two IDCs, or only what ``a`` sends to ``b``."""
    arrow = "->" if one_way else "<->"
    if mode not in ("drop", "reject"):
        raise BadInput(f"mode: expected drop or reject, got {mode!r}")
    fault = pb.LinkFault(from_idc=a, to_idc=b, mode=mode, both_ways=not one_way)
    return _link(a, f"the link {a} {arrow} {b} is cut", [fault])


def isolate(idc: str) -> str:
    """Cut an IDC from all others; its clients reach it. It counts as lost: it will be failed over
    when it stays so for the hold time."""

    async def cut(breakage: Breakage) -> None:
        for a, b in breakage.links():
            if idc in (a, b):
                fault = pb.LinkFault(from_idc=a, to_idc=b, mode="drop", both_ways=True)
                await breakage.link(f"the link {a} <-> {b} is cut", fault)

    return _lose(idc, f"{idc} is cut from all others", cut)


def split(idcs: list[str]) -> str:
    """Cut every link between these IDCs: registries without a majority when it is all of them."""
    cuts = [
        pb.LinkFault(from_idc=a, to_idc=b, mode="drop", both_ways=True)
        for a, b in combinations(idcs, 2)
    ]
    return _link("", f"all links between {', '.join(idcs)} are cut", cuts)


def slow(
    a: str,
    b: str,
    delay_ms: int = 0,
    jitter_ms: int = 0,
    loss: float = 0.0,
    rate_kbit: int = 0,
    one_way: bool = False,
) -> str:
    """These figures replace the region file's for the link."""
    fault = pb.LinkFault(
        from_idc=a,
        to_idc=b,
        mode="pass",
        both_ways=not one_way,
        delay_ms=int(delay_ms),
        jitter_ms=int(jitter_ms),
        loss=float(loss),
        rate_kbit=int(rate_kbit),
    )
    figures = f"{delay_ms} ± {jitter_ms} ms, {float(loss):.0%} loss"
    if rate_kbit:
        figures += f", {rate_kbit} kbit/s"
    return _link(a, f"the link {a} - {b} is slow: {figures}", [fault])


def _link(idc: str, said: str, faults: list[pb.LinkFault]) -> str:
    _phase("during", said)

    async def apply(breakage: Breakage) -> None:
        for fault in faults:
            await breakage.link(said, fault)

    stage.with_breakage(apply)
    return _mark(idc, said)


def heal() -> str:
    """Undo every fault of links that a drill made."""
    _phase("return", "links are healed")

    async def undo(breakage: Breakage) -> None:
        for fault in breakage.book.read().faults:
            if fault.kind is Kind.LINK:
                await breakage.undo(fault)

    stage.with_breakage(undo)
    return _mark("", "links are healed")


def skew_clock(idc: str, offset_ms: int) -> str:
    """Shift an IDC's wall clock (negative: back)."""
    _phase("during", f"the clock of {idc} is shifted")
    stage.with_breakage(lambda b: b.clock(idc, int(offset_ms)))
    return _mark(idc, f"the clock of {idc} is {int(offset_ms):+d} ms off")


def fill_disk(idc: str, full: bool = True, fsync_delay_ms: int = 0) -> str:
    """Writes of an IDC's log fail, or each fsync takes this much longer."""
    _phase("during", f"the disk of {idc} is full" if full else f"the disk of {idc} is slow")
    stage.with_breakage(lambda b: b.disk(idc, bool(full), int(fsync_delay_ms)))
    return _mark(idc, f"the disk of {idc} is {'full' if full else 'slow'}")


def crash(idcs: list[str]) -> str:
    """kill -9 of these IDCs at once, and start them again at once: a process per IDC holds all
    roles here, so this is also how gateways crash, and how every device connects again at once."""
    session = stage.session
    names = ", ".join(idcs)

    async def work(breakage: Breakage) -> None:
        affected = {idc: session.lose(idc) for idc in idcs} if session else {}
        for idc in idcs:
            await breakage.kill(idc)
        for idc, members in affected.items():
            stage.need().lost(idc, members)
        await breakage.start_again(idcs)

    _phase("during", f"crash of {names}, and an immediate start")
    _mark(idcs[0], f"crash of {names}")
    stage.with_breakage(work)
    return _mark(idcs[0], f"started again and serving: {names}")


def undo_faults() -> str:
    """For `rollbacks`: undo every fault that is left, and give every IDC its clients back."""
    _phase("rollback", "what is left of the faults is undone")
    if stage.session is None and RunLock(find().data).held():
        raise Guarded("a drill runs on this deployment; `imctl drill abort` ends it")
    problems = stage.with_breakage(lambda b: b.undo_all())
    if problems:
        raise ImError("; ".join(problems))
    return _mark("", "every fault is undone")


# -------------------------------------------------------------------------------------- moves


def switchover(source: str, target: str, within_s: float = 60.0) -> str:
    """A planned move of all clients of one IDC to another, through the evaluator."""
    _phase("switchover", f"planned switchover from {source} to {target}")
    session = stage.session

    async def move(breakage: Breakage) -> None:
        breakage.note(Kind.MOVE, source, f"{source} is moved to {target}")
        if session is not None:
            await session.foresee(source, target)
            session.recorder.fault(source, "switchover")
        await _within(breakage, breakage.moves.switchover(source, target), within_s, "switchover")
        if session is not None:
            await session.until(
                lambda: not session.load.connected_to(source),
                within_s,
                f"not every device left {source}",
            )
            session.recorder.fault(source, "done")

    _mark(source, f"planned switchover from {source} to {target}")
    stage.with_breakage(move)
    return _mark(source, f"every client has left {source}")


def failback(idc: str, within_s: float = 90.0) -> str:
    """Give an IDC its clients back, step by step, and wait until it has them."""
    _phase("return", f"{idc} gets its clients back")

    async def back(breakage: Breakage) -> None:
        if stage.session is not None:
            stage.session.recorder.fault(idc, "failback")
        await _within(breakage, breakage.all_back([idc]), within_s, "failback")
        for fault in breakage.book.read().faults:
            if fault.kind is Kind.MOVE and fault.unit == idc:
                breakage.book.strike(fault.id)
        if stage.session is not None:
            stage.session.recorder.fault(idc, "done")

    stage.with_breakage(back)
    return _mark(idc, f"{idc} is active with its clients again")


async def _within(breakage: Breakage, work: Awaitable[None], seconds: float, what: str) -> None:
    try:
        async with asyncio.timeout(float(seconds)):
            await work
    except TimeoutError:
        why = breakage.moves.refusal
        raise ImError(
            f"the {what} was refused for {seconds:g} s: {why}"
            if why
            else f"the {what} did not end within {seconds:g} s"
        ) from None


# -------------------------------------------------------------------------------------- waits


def wait_state(idc: str, state: str, within_s: float = FAILOVER_S) -> str:
    """Until the policy calls an IDC so (failed, drained, active, ...)."""
    session = stage.need()
    said = f"the policy does not call {idc} {state}"
    stage.call(session.until(lambda: session.state(idc) == state, float(within_s), said))
    return _mark(idc, f"{idc} is {state}")


def wait_moved(idc: str, within_s: float = FAILOVER_S) -> str:
    """Until no device is connected to an IDC any more, and every device is connected."""
    session = stage.need()

    def moved() -> bool:
        where = session.recorder.where.values()
        return idc not in where and "" not in where

    stage.call(session.until(moved, float(within_s), f"not every device of {idc} has moved"))
    return _mark(idc, f"every device of {idc} is connected elsewhere")


def wait_answered(within_s: float = FAILOVER_S) -> str:
    """Until each device that the loss of an IDC hit has had a message acked again."""
    session = stage.need()
    said = "not every affected device had a message acked again"
    stage.call(session.until(session.all_answered, float(within_s), said))
    return _mark("", "every affected device has had a message acked again")


def wait_connected(within_s: float = FAILOVER_S) -> str:
    """Until every device is connected."""
    session = stage.need()
    said = "not every device is connected again"
    where = session.recorder.where
    stage.call(session.until(lambda: "" not in where.values(), float(within_s), said))
    return _mark("", "every device is connected")


def wait_canaries(within_s: float = 20.0) -> str:
    """Until no acked canary message has waited for more than a second for its receiver."""
    session = stage.need()
    said = "acked canary messages still wait for their receivers"
    stage.call(session.until(lambda: session.figure("canary_delay_s") < 1, float(within_s), said))
    return _mark("", "every acked canary message has reached its receiver")


def look_at_survivors(lost: str) -> str:
    """RPO: fresh logins look at what the survivors can serve right now."""
    stage.call(stage.need().look_at_survivors(lost))
    return "survivors looked at"


def wait_steady(within_s: float = 60.0) -> str:
    """Until the deployment is as before: all IDCs active, no alarm, every device at home."""
    session = stage.need()
    stage.call(session.steady(float(within_s)))
    session.steady_at = session.t()
    return _mark("", "steady as before")


def expect_stale(idc: str, within_s: float = 10.0) -> str:
    """Until an IDC's ipconf says itself that its policy is stale: it reaches no majority."""
    session = stage.need()
    said = f"the ipconf of {idc} does not say that it is stale"
    behind_s = session.observer.stale.behind_s
    stage.call(session.until(lambda: idc not in behind_s, float(within_s), said))
    return _mark(idc, f"the ipconf of {idc} says that its policy is stale")


# ------------------------------------------------------------------------------------- shared


def _mark(idc: str, said: str) -> str:
    if stage.session is not None:
        stage.session.mark(idc, said)
    return said


def _phase(name: str, said: str) -> None:
    if stage.session is not None:
        stage.session.phase(name, said)
