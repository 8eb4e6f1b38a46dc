"""Gateways that become their successors, route instances and ipconfs, one after the other (``imctl
restart``), and cores that change places."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from imcore.errors import ImError
from imctl import admin
from imctl.errors import Failed
from imctl.startup import heard, wait_serving
from imctl.target.local import Local

LOOK_S = 0.2
WAIT_S = 60.0  # clients over TLS are given their time to move first

T = TypeVar("T")


async def restart(
    target: Local, idc: str, numbers: list[int], done: Callable[[int, dict[str, Any]], None]
) -> None:
    """``done``: told of each, from its row in the status of its IDC. Raises Failed, and leaves
    those that come after; ImError when the IDC does not answer."""
    for number in numbers:
        before = await _row(target, idc, number)
        target.restart_front(idc, number)

        async def restarted(number: int = number, before: int = before["restarts"]) -> Any:
            row = await _again(target, idc, number)
            return row if row is not None and row["restarts"] > before else None

        done(number, await _until(restarted, _late(idc, "gateway", number)))


async def restart_ipconfs(target: Local, idc: str, done: Callable[[int], None]) -> None:
    """All of an IDC that are processes of their own. Raises as ``restart``."""
    for number in range(1, len(target.ipconfs_of(idc)) + 1):
        before = (await _lives(target, idc)).get(number)
        if before is None:
            raise Failed(f"ipconf {number} of {idc} does not serve; `imctl start {idc}` starts it")
        target.restart_ipconf(idc, number)

        async def restarted(number: int = number, before: str = before) -> bool:
            with contextlib.suppress(ImError):  # it did not answer in time
                return (await _lives(target, idc)).get(number, before) != before
            return False

        await _until(restarted, _late(idc, "ipconf", number))
        done(number)


async def _lives(target: Local, idc: str) -> dict[int, str]:
    return heard(target, idc, await admin.status(target, idc))


async def restart_routes(target: Local, idc: str, done: Callable[[int], None]) -> None:
    """All route instances of an IDC: each ends, its gateways go to another one meanwhile, and it is
    done when all of them have a link again. Raises as ``restart``."""
    for number in range(1, len(target.routes_of(idc)) + 1):
        before, _ = await _route(target, idc, number)
        if not before:
            raise Failed(f"route {number} of {idc} does not serve; `imctl start {idc}` starts it")
        await asyncio.to_thread(target.renew_route, idc, number)

        async def restarted(number: int = number, before: str = before) -> bool:
            with contextlib.suppress(ImError):  # it did not answer in time
                now, linked = await _route(target, idc, number)
                return now not in ("", before) and linked >= len(target.fronts_of(idc))
            return False

        await _until(restarted, _late(idc, "route", number))
        done(number)


async def _route(target: Local, idc: str, number: int) -> tuple[str, int]:
    """The name of its life, as the core knows it (empty: it is not linked), and how many gateways
    are linked by whatever way."""
    document = await admin.status(target, idc)
    names = [str(row["route"]) for row in document["routes"]]
    name = next((each for each in names if each.startswith(f"{idc}-route{number}.")), "")
    return name, len(document["gateways"])


async def restart_core(target: Local, idc: str) -> None:
    """The core of an IDC that stands by begins anew and takes over; the one that served stands by
    from then on, begun anew as well. Raises Failed; when the new one does not come to stand by, the
    other one serves on."""
    await asyncio.to_thread(target.renew_standby, idc)

    async def stands_by() -> bool:
        return target.stands_by(idc)

    late = f"no core of {idc} came to stand by within {WAIT_S:.0f} s; `imctl logs`"
    await _until(stands_by, late)
    await asyncio.to_thread(target.change_cores, idc)
    await wait_serving(target, [idc], lambda name, serving: None)
    await asyncio.to_thread(target.start, [idc])


async def _row(target: Local, idc: str, number: int) -> dict[str, Any]:
    rows: list[dict[str, Any]] = (await admin.status(target, idc))["gateways"]
    for row in rows:
        if row["gateway"].startswith(f"{idc}-gw{number}."):
            return row
    raise Failed(f"gateway {number} of {idc} does not serve; start it with `imctl start {idc}`")


async def _again(target: Local, idc: str, number: int) -> dict[str, Any] | None:
    try:
        return await _row(target, idc, number)
    except ImError:  # it is between two lives, or its IDC did not answer in time
        return None


async def _until(looks: Callable[[], Awaitable[T]], late: str) -> T:
    """The first true answer. Raises Failed, with ``late``, after WAIT_S."""
    deadline = time.monotonic() + WAIT_S
    while not (answer := await looks()):
        if time.monotonic() > deadline:
            raise Failed(late)
        await asyncio.sleep(LOOK_S)
    return answer


def _late(idc: str, role: str, number: int) -> str:
    return (
        f"{role} {number} of {idc} did not restart within {WAIT_S:.0f} s; see "
        f"`imctl logs {idc}.{role}-{number}`"
    )
