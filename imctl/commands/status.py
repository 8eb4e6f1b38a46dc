"""status: what the IDCs of a deployment say of themselves, side by side."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated

import typer
from rich.live import Live

from imcore.runtime import SystemClock
from imctl import deployment
from imctl.dashboard import Dashboard
from imctl.look import Looker
from imctl.options import Data, Format, Output
from imctl.output import console, emit, stream
from imctl.statusview import render


def status(
    data: Data = None,
    output: Output = Format.TABLE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C.")] = False,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Refresh interval, with --watch.")
    ] = 1.0,
) -> None:
    """Show IDC states, sessions, replication lag and alarms.

    WEIGHT: share of its own clients that the policy sends to the IDC. KV LAG: delay in applying
    the other IDCs' messages. LOG LAG: records of the other IDCs that it has not stored yet. Both
    show the worst value. HEADROOM: free capacity. AGE: age of the row's data. On Kubernetes, also
    the last TrafficOperations and DrillRuns, and what Drills, Replications and GeoPolicies say.

    Exit status: 0 every IDC answered, 1 one did not.

    Example: imctl status --watch
    """
    looker = Looker(deployment.find(data), SystemClock(), objects=True)
    if watch:
        asyncio.run(_watch(looker, output, every))
        return
    document = asyncio.run(looker.look())
    emit(document, output, lambda: render(document))
    if any("error" in idc for idc in document["idcs"].values()):
        raise typer.Exit(1)


async def _watch(looker: Looker, output: Format, every_s: float) -> None:
    """A live view; with -o json one document a line, with -o yaml one after the other."""
    while output is not Format.TABLE:
        stream(await looker.look(), output)
        await asyncio.sleep(every_s)
    dashboard = Dashboard()
    while not console().is_terminal:  # a pipe or a file: one look below the other
        console().print(dashboard.see(await looker.look(), datetime.now()))
        await asyncio.sleep(every_s)
    with Live(console=console(), auto_refresh=False, screen=True) as live:
        while True:
            live.update(dashboard.see(await looker.look(), datetime.now()), refresh=True)
            await asyncio.sleep(every_s)
