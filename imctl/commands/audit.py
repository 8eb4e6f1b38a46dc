"""audit: who did what, from the chains of a deployment's folder, and whether those are whole."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from imcore.audit import EMPTY, Anchor
from imcore.errors import ImError
from imcore.region.load import load_region
from imcore.region.rules import voters_of
from imcore.runtime import SystemClock
from imctl import auditrules, auditview, deployment
from imctl.audit import own_writer
from imctl.errors import ERROR
from imctl.group import Commands
from imctl.options import Data, Format, Output
from imctl.output import emit, printable
from imctl.target import runfile
from imctl.target.local import Local
from imctl.traffic import Control

audit = typer.Typer(
    cls=Commands,
    invoke_without_command=True,
    rich_markup_mode=None,
    add_completion=False,
)


@audit.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    since: Annotated[
        str,
        typer.Option(
            metavar="WHEN",
            show_default=False,
            help="Only events after this: 90s, 30m, 2h or 7d ago, or a time.",
        ),
    ] = "",
    idc: Annotated[
        str,
        typer.Option(
            metavar="IDC", help="Only events about this IDC or by it.", show_default=False
        ),
    ] = "",
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Show who did what, and verify the audit logs.

    Without a subcommand: the events of all IDCs and of imctl with their decisions, by time. The
    deployment may be down. Events after a broken link of a log's hash chain are left out; `imctl
    audit verify` reports where.

    Example: imctl audit --since 2h --idc fra
    """
    if context.invoked_subcommand is not None:
        return
    since_ms = auditview.since(since, SystemClock().wall_ms()) if since else 0
    folder = deployment.folder(data)
    chains = auditview.read(auditview.writers(folder, _writers(folder)))
    rows = auditview.merged(chains, since_ms, idc)
    emit(rows, output, lambda: auditview.table(rows))
    _warn_of_breaks(chains)


@audit.command("verify")
def verify(output: Output = Format.TABLE, data: Data = None) -> None:
    """Check that no audit log was edited, reordered, rewritten or truncated.

    The end of each log is compared with the anchor in the IDCs' registries. This needs a running
    deployment with a majority of registries; without one, a warning says so.

    Exit status: 0 all logs are intact, 1 one is not.

    Example: imctl audit verify
    """
    folder = deployment.folder(data)
    paths = auditview.writers(folder, _writers(folder))
    # The registers first: what is anchored later is written later.
    own = own_writer()
    anchors = _anchors(folder, [*paths, own])
    mine, *idcs = auditview.read(paths)
    rows = [auditview.judged(mine, anchors.get(mine.writer), anchors.get(own, EMPTY))]
    rows += [auditview.judged(chain, anchors.get(chain.writer)) for chain in idcs]
    if output is Format.TABLE:
        for row in rows:
            print(auditview.sentence(row))
    else:
        emit(rows, output, str)
    if not all(row["whole"] for row in rows):
        raise typer.Exit(ERROR)


@audit.command("rules")
def rules(output: Output = Format.TABLE, data: Data = None) -> None:
    """Check that every change of who serves whom kept the region's safety rules.

    Judged from what the audit logs noted: the policy before and after each change, the votes, how
    old the evidence was, and the replication lag. A rule that a change names as overridden is not
    judged. The rules are those of the region file as it is now. The deployment may be down.

    Exit status: 0 every change that was noted kept them, 1 one did not.

    Example: imctl audit rules
    """
    folder = deployment.folder(data)
    region = load_region(folder / "region.yaml")
    chains = auditview.read(auditview.writers(folder, voters_of(region)))
    changes = auditrules.of_chains(chains, region)
    rows = [auditrules.as_row(each) for each in changes]
    emit(rows, output, lambda: auditrules.table(changes))
    if output is Format.TABLE:
        print(auditrules.sentence(changes))
    _warn_of_breaks(chains)
    if any(each.broken for each in changes):
        raise typer.Exit(ERROR)


def _warn_of_breaks(chains: Sequence[auditview.Chain]) -> None:
    """What stands behind a break is not looked at."""
    for chain in chains:
        if chain.verdict.problem:
            typer.echo(f"warning: {chain.path}: {printable(chain.verdict.problem)}", err=True)


def _writers(folder: Path) -> list[str]:
    return voters_of(load_region(folder / "region.yaml"))


def _anchors(folder: Path, writers: list[str]) -> dict[str, Anchor]:
    """What the registers know; nothing when they cannot be asked."""
    if runfile.read(folder) is None:
        return {}

    async def ask() -> dict[str, Anchor]:
        async with Control(Local.open(folder), SystemClock(), random.Random()) as control:
            return {writer: await one(control, writer) for writer in writers}

    async def one(control: Control, writer: str) -> Anchor:
        try:
            return await control.anchor(writer)
        except ValueError:  # it is said of this log, and keeps nobody from checking the others
            return auditview.UNREADABLE

    try:
        return asyncio.run(ask())
    except ImError as error:
        typer.echo(f"warning: cannot check the ends of the logs: {error}", err=True)
        return {}
