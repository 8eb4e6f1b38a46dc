"""Start a whole deployment and wait until it serves, or leave nothing of it behind."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from imcore.errors import ImError
from imctl import admin
from imctl.errors import Failed
from imctl.target.base import IPCONF, idc_of
from imctl.target.beside import LAST_STAGE, MM2, EngineUnit
from imctl.target.engines import KAFKA
from imctl.target.local import LINKPROXY, Local

MIRRORS_S = 120.0  # theirs take a core for some seconds to start
POLL_S = 0.1

Progress = Callable[[str, bool], None]  # (unit, is it serving)


async def wait_serving(
    target: Local, names: Sequence[str], progress: Progress, apart: bool = True
) -> None:
    """``apart``: what IDCs have beside their cores too. Raises Failed when a unit ends, or does not
    serve in time."""
    await _wait_for_engines(target, [name for name in names if name in target.engine_names()])
    ours = {idc_of(name) for name in names}  # whether a front serves its core says
    waiting = [name for name in target.names() if name in ours and name != LINKPROXY]
    late: dict[str, str] = {}
    try:
        async with asyncio.timeout(target.starts_s):
            while waiting:
                target.check_alive([*waiting, *(_apart(target, waiting) if apart else ())])
                found = await admin.statuses(target, waiting, timeout_s=1.0)
                for name, document in found.items():
                    if not serving(document) or (apart and not linked(target, name, document)):
                        continue
                    slow = await asyncio.to_thread(target.rolling, name) if apart else None
                    late[name] = f"; its gateways: {slow.why}" if slow else ""
                    if slow is None:
                        waiting.remove(name)
                        for one in (name, *target.apart_of(name)):
                            progress(one, True)
                if waiting:
                    await asyncio.sleep(POLL_S)
    except TimeoutError:
        why = "".join(late.get(name, "") for name in waiting)
        raise _late(target, waiting, target.starts_s, why) from None


def _late(target: Local, names: Sequence[str], timeout_s: float, why: str = "") -> Failed:
    found, missing = [], ""
    for name in names:
        try:
            found.append(str(target.log_file(name)))
        except ImError as error:  # the cause is not lost with it
            missing += f"; no log of {name}: {error}"
    logs = f"; see {', '.join(found)}" if found else ""
    late = f"{', '.join(names)} did not serve within {timeout_s:g} s"
    return Failed(f"{late}{why}{logs}{missing}")


def serving(document: dict[str, Any] | ImError) -> bool:
    return not isinstance(document, ImError) and bool(document.get("serving"))


def linked(target: Local, name: str, document: dict[str, Any] | ImError) -> bool:
    """Whether all that an IDC has beside its core is there too; what has nothing needs nothing."""
    fronts, ipconfs = target.fronts_of(name), target.ipconfs_of(name)
    routes = target.routes_of(name)
    return (
        isinstance(document, dict)
        and (not fronts or len(document["gateways"]) >= len(fronts))
        and (not routes or _routed(document, len(fronts), len(routes)))
        and (not ipconfs or len(heard(target, name, document)) >= len(ipconfs))
    )


def _routed(document: dict[str, Any], fronts: int, routes: int) -> bool:
    """Whether all route instances are there, and all gateways are linked by them."""
    rows = document["routes"]
    return len(rows) >= routes and sum(row["gateways"] for row in rows) >= fronts


def heard(target: Local, name: str, document: dict[str, Any]) -> dict[int, str]:
    """Of the ipconfs that run beside this core, and that it hears: by number, which life each is
    in. One that was killed is still heard for a moment; it is not meant."""
    pids = {unit.name: unit.pid for unit in target.units()}
    return {
        row["instance"]: row["life"]
        for row in document["ipconfs"]
        if pids.get(f"{name}{IPCONF}{row['instance']}") == row["pid"]
    }


def _apart(target: Local, names: Sequence[str]) -> list[str]:
    return [unit for name in names for unit in target.apart_of(name)]


def bring_up(target: Local, progress: Progress, wait: bool = True) -> None:
    """All units. Whatever goes wrong (Ctrl-C too), nothing is left running.

    All of it runs in one loop, where Ctrl-C cancels at the next await and breaks into nothing."""
    with interruptible():
        try:
            asyncio.run(start_all(target, progress, wait))
        except BaseException:
            with deaf():
                target.stop()
            raise


async def start_all(target: Local, progress: Progress, wait: bool = True) -> None:
    """Every unit, each after what it needs; those that an earlier `imctl` has started already are
    left as they are. Raises Failed, and leaves what has started."""
    target.find_lost()
    ours = target.names()
    if LINKPROXY in ours:  # engines reach each other through it
        await _start(target, LINKPROXY, progress)
        progress(LINKPROXY, True)
    await start_engines(target, progress)
    for name in ours:
        if name != LINKPROXY:
            await _start(target, name, progress)
    if wait:
        await wait_serving(target, ours, progress)
        await wait_for_mirrors(target, ours, progress)


async def wait_started(target: Local, name: str) -> None:
    """Until one IDC or unit serves, and its MirrorMaker copies. Raises Failed."""
    await wait_serving(target, [name], _unseen)
    await wait_for_mirrors(target, [name], _unseen)


def _unseen(name: str, serving: bool) -> None: ...


async def wait_for_mirrors(target: Local, names: Sequence[str], progress: Progress) -> None:
    """Until every MirrorMaker that was started here, of the units ``names`` or of IDCs among them,
    has shown a sign of life of each of its flows: the IDC that it copies into sees it. One that
    does not run sees nothing, and nothing is asked of a flow whose source does not run. Raises
    Failed."""
    mirrors = [one for one in _engines(target, MM2) if one.name in names or one.idc in names]
    if not mirrors:
        return
    running = _running(target)
    waiting = {one.idc: one.name for one in mirrors if one.idc in running}
    away = {one.idc for one in _engines(target, KAFKA) if one.name not in running}
    silent: dict[str, list[str]] = {}
    try:
        async with asyncio.timeout(MIRRORS_S):
            while waiting:
                target.check_alive(list(waiting.values()))
                found = await admin.statuses(target, list(waiting), timeout_s=2.0)
                for idc, document in found.items():
                    if isinstance(document, ImError):
                        continue
                    silent[idc] = _silent(document, target.age_s(waiting[idc]), away)
                    if not silent[idc]:
                        progress(waiting.pop(idc), True)
                if waiting:
                    await asyncio.sleep(POLL_S)
    except TimeoutError:
        why = "".join(
            f"; {idc} has seen no sign of life of its flow from {' and '.join(silent[idc])}"
            for idc in waiting
            if silent.get(idc)
        )
        raise _late(target, list(waiting.values()), MIRRORS_S, why) from None


def _running(target: Local) -> set[str]:
    return {unit.name for unit in target.units() if unit.state != "gone"}


def _engines(target: Local, kind: str) -> list[EngineUnit]:
    units = [target.engine(name) for name in target.engine_names()]
    return [unit for unit in units if unit.kind == kind]


def _silent(document: dict[str, Any], age_s: float, away: Container[str]) -> list[str]:
    """The sources of the flows of a MirrorMaker that runs for so long which have not been heard of
    since: what its Kafka has of an earlier one is no sign of this one's life."""
    ages = {source: flow["worker_age_s"] for source, flow in document["mirror"].items()}
    return [
        source
        for source, last_s in ages.items()
        if source not in away and (last_s is None or last_s > age_s)
    ]


async def _start(target: Local, name: str, progress: Progress) -> None:
    progress(name, False)
    if not set(target.ours(name)) <= _running(target):
        target.start([name])
    await asyncio.sleep(0)


async def start_engines(target: Local, progress: Progress) -> None:
    """Stage by stage, those of one all at once: the IDCs wait for them anyway."""
    units = [target.engine(name) for name in target.engine_names()]
    for stage in sorted({unit.stage for unit in units}):
        names = [unit.name for unit in units if unit.stage == stage]
        for name in names:
            progress(name, False)
        new = [name for name in names if name not in _running(target)]
        await asyncio.gather(*(asyncio.to_thread(target.prepare_engine, one) for one in new))
        for name in new:
            target.start([name])
        # Of what depends on other IDCs, MirrorMakers, they tell later whether it works.
        await _wait_for_engines(target, names, progress if stage < LAST_STAGE else _unseen)


async def _wait_for_engines(
    target: Local, names: Sequence[str], progress: Progress = lambda name, serving: None
) -> None:
    waiting = list(names)
    limit_s = max((target.engine(name).starts_s for name in names), default=0.0)
    try:
        async with asyncio.timeout(limit_s):
            while waiting:
                for name in waiting[:]:
                    if await asyncio.to_thread(target.engine_serves, name):
                        waiting.remove(name)
                        progress(name, True)
                if waiting:
                    await asyncio.sleep(POLL_S / 2)
    except TimeoutError:
        raise _late(target, waiting, limit_s) from None


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the program as Ctrl-C does, so that clean-ups run. By way of SIGINT:
    while a loop runs, asyncio cancels its task; an exception out of a handler would hit any line,
    a gRPC callback too. A script's background job is started with SIGINT ignored: here it is not,
    or SIGTERM would be ignored with it."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)

    with (
        _handling((signal.SIGINT,), signal.default_int_handler),
        _handling((signal.SIGTERM, signal.SIGHUP), interrupt),
    ):
        yield


@contextmanager
def deaf() -> Iterator[None]:
    """A second Ctrl-C does not interrupt the clean-up of the first."""
    with _handling((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN):
        yield


@contextmanager
def _handling(signums: Sequence[signal.Signals], handler: Any) -> Iterator[None]:
    before = {signum: signal.signal(signum, handler) for signum in signums}
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)
