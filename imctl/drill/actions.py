"""Actions for the Chaos Toolkit: faults, moves of traffic, waits. They work with plain `chaos run`
too; which deployment: $IMCTL_DATA, or the one below ./var.

Every fault is in the deployment's book before it is made; `undo_faults` undoes what is left.

Each is written for the loop in which the drill lives, with a scene as its first argument; what the
toolkit calls by its name blocks, and finds the scene itself (``stage``). A simulation, whose loop
is the only one, takes them from ``WORK``."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from itertools import combinations
from typing import Concatenate, ParamSpec

from imcore.errors import BadInput, ImError
from imcore.proto import peer_pb2 as pb
from imctl.drill.breakage import Breakage
from imctl.drill.faults import Kind, RunLock
from imctl.drill.stage import Scene, find, stage
from imctl.errors import Guarded

FAILOVER_S = 25.0

P = ParamSpec("P")
Breaking = Callable[[Breakage], Awaitable[None]]
Work = Callable[Concatenate[Scene, P], Awaitable[str]]

WORK: dict[str, Callable[..., Awaitable[str]]] = {}  # by the action's name


def _action(
    perform: Callable[[Callable[[Scene], Awaitable[str]]], str],
) -> Callable[[Work[P]], Callable[P, str]]:
    """``perform`` calls it with a scene, in the drill's loop, and blocks until it has ended."""

    def made(work: Work[P]) -> Callable[P, str]:
        @functools.wraps(work)
        def action(*args: P.args, **kwargs: P.kwargs) -> str:
            return perform(lambda scene: work(scene, *args, **kwargs))

        signature = inspect.signature(work)
        _, *given = signature.parameters.values()
        vars(action)["__signature__"] = signature.replace(parameters=given)
        WORK[work.__name__] = work
        return action

    return made


breaks = _action(lambda work: stage.with_scene(work))
waits = _action(lambda work: stage.with_session(work))


@waits
async def hold(scene: Scene, seconds: float, phase: str = "") -> str:
    """Nothing but load, for so long. ``phase``: its name in the report."""
    if phase and scene.session is not None:
        scene.session.phase(phase, f"{phase}: load")
    await asyncio.sleep(float(seconds))
    return f"{seconds} s of load"


# ------------------------------------------------------------------------------------- faults


@breaks
async def kill_idc(scene: Scene, idc: str) -> str:
    """kill -9 of every process of an IDC, as a power cut would."""
    return await _lose(scene, idc, f"{idc} is killed", lambda b: b.kill(idc))


@breaks
async def pause_idc(scene: Scene, idc: str) -> str:
    """Every process of an IDC stands still (SIGSTOP); its sockets stay open."""
    return await _lose(scene, idc, f"{idc} is frozen", lambda b: b.pause(idc))


@breaks
async def kill_unit(scene: Scene, unit: str) -> str:
    """kill -9 of one unit beside the IDCs: the witness, an engine."""
    await scene.breakage.kill(unit)
    return _mark(scene, unit, f"{unit} is killed")


@breaks
async def pause_unit(scene: Scene, unit: str) -> str:
    """Freeze one unit beside the IDCs, such as an IDC's MirrorMaker."""
    await scene.breakage.pause(unit)
    return _mark(scene, unit, f"{unit} is frozen")


async def _lose(scene: Scene, idc: str, said: str, work: Breaking) -> str:
    session = scene.session
    if session is None:
        await work(scene.breakage)
        return said
    session.phase("during", said)
    affected = session.lose(idc)
    await work(scene.breakage)
    session.lost(idc, affected)
    return _mark(scene, idc, f"{said} ({len(affected)} devices connected)")


@breaks
async def start_idc(scene: Scene, idc: str) -> str:
    """Start what `kill_idc` killed, and wait until it serves."""
    _phase(scene, "return", f"restarting {idc}; waiting for its recovery")
    _mark(scene, idc, f"restarted {idc}")
    await scene.breakage.undo_kind(Kind.KILL, idc)
    return _mark(scene, idc, f"{idc} serves")


@breaks
async def resume_idc(scene: Scene, idc: str) -> str:
    """Let what `pause_idc` froze go on."""
    _phase(scene, "return", f"{idc} is resumed")
    await scene.breakage.undo_kind(Kind.PAUSE, idc)
    return _mark(scene, idc, f"{idc} is resumed")


@breaks
async def start_unit(scene: Scene, unit: str) -> str:
    await scene.breakage.undo_kind(Kind.KILL, unit)
    return _mark(scene, unit, f"{unit} serves")


@breaks
async def resume_unit(scene: Scene, unit: str) -> str:
    await scene.breakage.undo_kind(Kind.PAUSE, unit)
    return _mark(scene, unit, f"{unit} is resumed")


@breaks
async def wipe_idc(scene: Scene, idc: str) -> str:
    """Delete the data of an IDC that `kill_idc` killed: it is lost for good."""
    await scene.breakage.wipe(idc)
    return _mark(scene, idc, f"all data of {idc} is deleted")


@breaks
async def partition(scene: Scene, a: str, b: str, one_way: bool = False, mode: str = "drop") -> str:
    """Cut the link between two IDCs, or only what ``a`` sends to ``b``."""
    arrow = "->" if one_way else "<->"
    if mode not in ("drop", "reject"):
        raise BadInput(f"mode: expected drop or reject, got {mode!r}")
    fault = pb.LinkFault(from_idc=a, to_idc=b, mode=mode, both_ways=not one_way)
    return await _link(scene, a, f"the link {a} {arrow} {b} is cut", [fault])


@breaks
async def isolate(scene: Scene, idc: str) -> str:
    """Cut an IDC from all others; its clients reach it. It counts as lost: it will be failed over
    when it stays so for the hold time."""

    async def cut(breakage: Breakage) -> None:
        for a, b in breakage.links():
            if idc in (a, b):
                fault = pb.LinkFault(from_idc=a, to_idc=b, mode="drop", both_ways=True)
                await breakage.link(f"the link {a} <-> {b} is cut", fault)

    return await _lose(scene, idc, f"{idc} is cut from all others", cut)


@breaks
async def split(scene: Scene, idcs: list[str]) -> str:
    """Cut every link between these IDCs: registries without a majority when it is all of them."""
    cuts = [
        pb.LinkFault(from_idc=a, to_idc=b, mode="drop", both_ways=True)
        for a, b in combinations(idcs, 2)
    ]
    return await _link(scene, "", f"all links between {', '.join(idcs)} are cut", cuts)


@breaks
async def slow(
    scene: Scene,
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
    return await _link(scene, a, f"the link {a} - {b} is slow: {figures}", [fault])


async def _link(scene: Scene, idc: str, said: str, faults: list[pb.LinkFault]) -> str:
    _phase(scene, "during", said)
    for fault in faults:
        await scene.breakage.link(said, fault)
    return _mark(scene, idc, said)


@breaks
async def heal(scene: Scene) -> str:
    """Undo every fault of links that a drill made."""
    _phase(scene, "return", "links are restored")
    for fault in scene.breakage.book.read().faults:
        if fault.kind is Kind.LINK:
            await scene.breakage.undo(fault)
    return _mark(scene, "", "links are restored")


@breaks
async def skew_clock(scene: Scene, idc: str, offset_ms: int) -> str:
    """Shift an IDC's wall clock (negative: back)."""
    _phase(scene, "during", f"the clock of {idc} is shifted")
    await scene.breakage.clock(idc, int(offset_ms))
    return _mark(scene, idc, f"the clock of {idc} is {int(offset_ms):+d} ms off")


@breaks
async def fill_disk(scene: Scene, idc: str, full: bool = True, fsync_delay_ms: int = 0) -> str:
    """Writes of an IDC's log fail, or each fsync takes this much longer."""
    _phase(scene, "during", f"the disk of {idc} is full" if full else f"the disk of {idc} is slow")
    await scene.breakage.disk(idc, bool(full), int(fsync_delay_ms))
    return _mark(scene, idc, f"the disk of {idc} is {'full' if full else 'slow'}")


@breaks
async def crash(scene: Scene, idcs: list[str]) -> str:
    """kill -9 of these IDCs at once, and start them again at once: a process per IDC holds all
    roles here, so this is also how gateways crash, and how every device connects again at once."""
    session, breakage = scene.session, scene.breakage
    names = ", ".join(idcs)
    _phase(scene, "during", f"crash of {names}, and an immediate start")
    _mark(scene, idcs[0], f"crash of {names}")
    affected = {idc: session.lose(idc) for idc in idcs} if session else {}
    for idc in idcs:
        await breakage.kill(idc)
    for idc, members in affected.items():
        scene.need().lost(idc, members)
    await breakage.start_again(idcs)
    return _mark(scene, idcs[0], f"started again and serving: {names}")


@breaks
async def undo_faults(scene: Scene) -> str:
    """For `rollbacks`: undo every fault that is left, and give every IDC its clients back."""
    _phase(scene, "rollback", "undoing the remaining faults")
    if scene.session is None and RunLock(find().data).held():
        raise Guarded("a drill is running on this deployment; `imctl drill abort` ends it")
    problems = await scene.breakage.undo_all()
    if problems:
        raise ImError("; ".join(problems))
    return _mark(scene, "", "every fault is undone")


# -------------------------------------------------------------------------------------- moves


@breaks
async def switchover(scene: Scene, source: str, target: str, within_s: float = 60.0) -> str:
    """A planned move of all clients of one IDC to another, through the evaluator."""
    _phase(scene, "switchover", f"planned switchover from {source} to {target}")
    session, breakage = scene.session, scene.breakage
    _mark(scene, source, f"planned switchover from {source} to {target}")
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
    return _mark(scene, source, f"every client has left {source}")


@breaks
async def failback(scene: Scene, idc: str, within_s: float = 90.0) -> str:
    """Give an IDC its clients back, step by step, and wait until it has them."""
    _phase(scene, "return", f"{idc} gets its clients back")
    breakage = scene.breakage
    if scene.session is not None:
        scene.session.recorder.fault(idc, "failback")
    await _within(breakage, breakage.all_back([idc]), within_s, "failback")
    for fault in breakage.book.read().faults:
        if fault.kind is Kind.MOVE and fault.unit == idc:
            breakage.book.strike(fault.id)
    if scene.session is not None:
        scene.session.recorder.fault(idc, "done")
    return _mark(scene, idc, f"{idc} is active and has its clients back")


async def _within(breakage: Breakage, work: Awaitable[None], seconds: float, what: str) -> None:
    try:
        async with asyncio.timeout(float(seconds)):
            await work
    except TimeoutError:
        why = breakage.moves.refusal
        raise ImError(
            f"the {what} was refused for {seconds:g} s: {why}"
            if why
            else f"the {what} did not finish within {seconds:g} s"
        ) from None


# -------------------------------------------------------------------------------------- waits


@waits
async def wait_state(scene: Scene, idc: str, state: str, within_s: float = FAILOVER_S) -> str:
    """Until the policy calls an IDC so (failed, drained, active, ...)."""
    session = scene.need()
    said = f"{idc} was not declared {state}"
    await session.until(lambda: session.state(idc) == state, float(within_s), said)
    return _mark(scene, idc, f"{idc} is {state}")


@waits
async def wait_moved(scene: Scene, idc: str, within_s: float = FAILOVER_S) -> str:
    """Until no device is connected to an IDC any more, and every device is connected."""
    session = scene.need()

    def moved() -> bool:
        where = session.recorder.where.values()
        return idc not in where and "" not in where

    await session.until(moved, float(within_s), f"not every device of {idc} has moved")
    return _mark(scene, idc, f"every device of {idc} is connected elsewhere")


@waits
async def wait_answered(scene: Scene, within_s: float = FAILOVER_S) -> str:
    """Until each device that the loss of an IDC hit has had a message acked again."""
    session = scene.need()
    said = "not every affected device got a message acked again"
    await session.until(session.all_answered, float(within_s), said)
    return _mark(scene, "", "every affected device got a message acked again")


@waits
async def wait_connected(scene: Scene, within_s: float = FAILOVER_S) -> str:
    """Until every device is connected."""
    session = scene.need()
    said = "not every device is connected again"
    where = session.recorder.where
    await session.until(lambda: "" not in where.values(), float(within_s), said)
    return _mark(scene, "", "every device is connected")


@waits
async def wait_canaries(scene: Scene, within_s: float = 20.0) -> str:
    """Until no acked canary message has waited for more than a second for its receiver."""
    session = scene.need()
    said = "acked canary messages still wait for their receivers"
    await session.until(lambda: session.figure("canary_delay_s") < 1, float(within_s), said)
    return _mark(scene, "", "every acked canary message has reached its receiver")


@waits
async def look_at_survivors(scene: Scene, lost: str) -> str:
    """RPO: fresh logins look at what the survivors can serve right now."""
    await scene.need().look_at_survivors(lost)
    return "surviving IDCs checked"


@waits
async def wait_steady(scene: Scene, within_s: float = 60.0) -> str:
    """Until the deployment is as before: all IDCs active, no alarm, every device at home."""
    session = scene.need()
    await session.steady(float(within_s))
    return _mark(scene, "", "steady as before")


@waits
async def expect_stale(scene: Scene, idc: str, within_s: float = 10.0) -> str:
    """Until an IDC's ipconf says itself that its policy is stale: it reaches no majority."""
    session = scene.need()
    said = f"the ipconf of {idc} does not report a stale policy"
    behind_s = session.observer.stale.behind_s
    await session.until(lambda: idc not in behind_s, float(within_s), said)
    return _mark(scene, idc, f"the ipconf of {idc} reports a stale policy")


# ------------------------------------------------------------------------------------- shared


def _mark(scene: Scene, idc: str, said: str) -> str:
    if scene.session is not None:
        scene.session.mark(idc, said)
    return said


def _phase(scene: Scene, name: str, said: str) -> None:
    if scene.session is not None:
        scene.session.phase(name, said)
