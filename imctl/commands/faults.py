"""partition, slow, heal, fault: the fault API. Refused unless the deployment was `up --faults`."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from itertools import combinations
from typing import Annotated

import typer

from imcore.errors import BadInput
from imcore.proto import peer_pb2 as pb
from imctl import admin, deployment
from imctl.errors import Failed
from imctl.group import Commands
from imctl.options import Data, IdcName
from imctl.target.local import LINKPROXY, Local

CLOCK_MS_MAX = 24 * 3_600_000

From = Annotated[str, typer.Argument(metavar="A", help="An IDC or the witness.")]
To = Annotated[str, typer.Argument(metavar="B", help="The other end.")]
OneWay = Annotated[bool, typer.Option("--one-way", help="Only traffic from A to B.")]


class Cut(StrEnum):
    DROP = "drop"
    REJECT = "reject"


class Disk(StrEnum):
    FULL = "full"
    OK = "ok"


def partition(
    a: From,
    b: To,
    one_way: OneWay = False,
    mode: Annotated[
        Cut, typer.Option(help="drop: no answer; reject: reset connections.")
    ] = Cut.DROP,
    data: Data = None,
) -> None:
    """Cut the link between two IDCs.

    In both directions, or one way. Clients' own connections are not affected.

    Example: imctl partition fra iad --one-way
    """
    link = pb.LinkFault(from_idc=a, to_idc=b, mode=mode.value, both_ways=not one_way)
    _apply(deployment.find(data), [link])


def slow(
    a: From,
    b: To,
    delay_ms: Annotated[
        int, typer.Option(metavar="MS", min=0, max=60_000, help="Delay per direction.")
    ] = 0,
    jitter_ms: Annotated[
        int, typer.Option(metavar="MS", min=0, max=60_000, help="Jitter of the delay.")
    ] = 0,
    loss: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=0.49, help="Share of packets to lose.")
    ] = 0.0,
    rate_kbit: Annotated[
        int, typer.Option(metavar="N", min=0, help="Bandwidth in kbit/s; 0: unlimited.")
    ] = 0,
    one_way: OneWay = False,
    data: Data = None,
) -> None:
    """Slow down the link between two IDCs.

    The given values replace those of the region file.

    Example: imctl slow fra iad --delay-ms 300
    """
    if not (delay_ms or jitter_ms or loss or rate_kbit):
        raise BadInput("expected at least one of --delay-ms, --jitter-ms, --loss, --rate-kbit")
    link = pb.LinkFault(
        from_idc=a,
        to_idc=b,
        mode="pass",
        both_ways=not one_way,
        delay_ms=delay_ms,
        jitter_ms=jitter_ms,
        loss=loss,
        rate_kbit=rate_kbit,
    )
    _apply(deployment.find(data), [link])


def heal(
    a: Annotated[
        str | None,
        typer.Argument(metavar="[A]", help="An IDC or the witness [default: all links]."),
    ] = None,
    b: Annotated[str | None, typer.Argument(metavar="[B]", help="The other end.")] = None,
    data: Data = None,
) -> None:
    """Restore one link or all links.

    Undoes `imctl partition` and `imctl slow`.

    Example: imctl heal fra iad
    """
    if (a is None) != (b is None):
        raise BadInput("expected both ends of a link, or neither for all links")
    target = deployment.find(data)
    ends = [name for name in target.names() if name != LINKPROXY]
    pairs = [(a, b)] if a and b else list(combinations(ends, 2))
    links = [pb.LinkFault(from_idc=x, to_idc=y, mode="pass", both_ways=True) for x, y in pairs]
    _apply(target, links)


def _apply(target: Local, links: list[pb.LinkFault]) -> None:
    if LINKPROXY not in target.names():
        raise Failed("a deployment of one IDC has no links")

    async def send() -> None:
        for link in links:
            print(await admin.fault(target, LINKPROXY, pb.FaultRequest(link=link)))

    asyncio.run(send())


fault = typer.Typer(
    cls=Commands,
    help="Shift an IDC's clock; fill or slow its disk.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@fault.command(context_settings={"ignore_unknown_options": True})
def clock(
    idc: IdcName,
    offset_ms: Annotated[
        int,
        typer.Argument(
            metavar="MS",
            min=-CLOCK_MS_MAX,
            max=CLOCK_MS_MAX,
            help="Offset, at most a day; negative: back; 0: restore.",
        ),
    ],
    data: Data = None,
) -> None:
    """Shift an IDC's wall clock by a number of milliseconds.

    Example: imctl fault clock fra -2000
    """
    request = pb.FaultRequest(clock=pb.ClockFault(offset_ms=offset_ms))
    print(f"{idc}: {asyncio.run(admin.fault(deployment.find(data), idc, request))}")


@fault.command()
def disk(
    idc: IdcName,
    state: Annotated[Disk, typer.Argument(help="full: writes fail; ok: restore.")],
    fsync_delay_ms: Annotated[
        int, typer.Option(metavar="MS", min=0, max=60_000, help="Extra time for each fsync.")
    ] = 0,
    data: Data = None,
) -> None:
    """Fill an IDC's disk or slow it down.

    Example: imctl fault disk fra full
    """
    wanted = pb.DiskFault(full=state is Disk.FULL, fsync_delay_ms=fsync_delay_ms)
    request = pb.FaultRequest(disk=wanted)
    print(f"{idc}: {asyncio.run(admin.fault(deployment.find(data), idc, request))}")
