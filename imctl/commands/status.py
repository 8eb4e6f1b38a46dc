"""status: what the IDCs of a deployment say of themselves, side by side."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

import typer
from rich.live import Live

from imctl import admin, deployment
from imctl.options import Data, Format, Output
from imctl.output import console, emit, stream
from imctl.statusview import document_of, render
from imctl.target.local import LINKPROXY, Local


def status(
    data: Data = None,
    output: Output = Format.TABLE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Show topology, states, connections, rates, replication lag and alarms.

    Exit status: 0 every IDC answers, 1 one does not.

    Example: imctl status --watch
    """
    target = deployment.find(data)
    if watch:
        _watch(target, output, every)
        return
    document = asyncio.run(_collect(target))
    emit(document, output, lambda: render(document))
    if any("error" in idc for idc in document["idcs"].values()):
        raise typer.Exit(1)


def _watch(target: Local, output: Format, every_s: float) -> None:
    """A live view; with -o json one document a line, with -o yaml one after the other."""
    while output is not Format.TABLE:
        stream(asyncio.run(_collect(target)), output)
        time.sleep(every_s)
    with Live(console=console(), auto_refresh=False, screen=console().is_terminal) as live:
        while True:
            live.update(render(asyncio.run(_collect(target))), refresh=True)
            time.sleep(every_s)


async def _collect(target: Local) -> dict[str, Any]:
    names = target.names()
    found = await admin.statuses(target, names, timeout_s=1.5)
    links = found.pop(LINKPROXY, None)
    return document_of(target.region, target.units(), found, links)
