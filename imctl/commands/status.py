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
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Show topology, states, sessions, replication lag, headroom and alarms.

    WEIGHT: share of its clients that the policy gives an IDC. KV LAG: how late it has folded the
    others' messages; LOG LAG: records of theirs that it does not hold yet; the worst of either.
    HEADROOM: free capacity. AGE: of what the row shows. Exit status: 0 every IDC answers, 1 one
    does not.

    Example: imctl status --watch
    """
    looker = Looker(deployment.find(data), SystemClock())
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
