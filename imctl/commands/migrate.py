"""migrate: from one engine to another, while the deployment serves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from imcore.errors import BadInput, ImError
from imcore.proto import peer_pb2 as pb
from imcore.roles import Role
from imctl import admin, deployment, roles
from imctl.errors import Failed
from imctl.group import Commands
from imctl.options import Data, Format, Output
from imctl.output import emit, notes
from imctl.target.local import Local

migrate = typer.Typer(
    cls=Commands,
    help="Move the KV to another engine while it serves.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

LOST = "not known"

Show = Callable[[str, pb.MoveKvProgress], None]


class Engine(StrEnum):
    EMBEDDED = "embedded"
    TIKV = "tikv"


@migrate.callback()
def _group() -> None:  # so that `kv` is a command of its own, though it is the only one
    ...


@migrate.command()
def kv(
    to: Annotated[Engine, typer.Option("--to", help="The engine to move to.")],
    idcs: Annotated[
        list[str] | None, typer.Argument(metavar="[IDC]...", help="IDCs [default: all].")
    ] = None,
    from_: Annotated[
        Engine | None,
        typer.Option("--from", help="Refuse if the KV is on another engine than this."),
    ] = None,
    pd: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IDC=HOST:PORT[,...]",
            help="Addresses of an IDC's existing PD [default: start TiKV for each IDC].",
        ),
    ] = None,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Cancel moves in progress; nothing changes.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Move the KV to another engine, one IDC at a time: copy, catch up, switch.

    Clients notice nothing. Until the switch the old store stays complete and in use, so a failure
    costs only the move; run the command again to continue. Ctrl-C does not stop the IDC's move in
    progress; --cancel does. The deployment's copy of the region file is changed; change your own
    file too.

    Exit status: 0 all IDCs were moved, 1 one was not.

    Example: imctl migrate kv fra --to tikv
    """
    target = deployment.find(data)
    roles.demand(target.pki, Role.ADMIN, "Moving a KV")
    names = idcs or [idc.name for idc in target.region.spec.idcs]
    for name in names:
        _known(target, name)
    rows = asyncio.run(_rows(target, names))
    before = {row["idc"]: row["engine"] for row in rows}
    if from_ is not None:
        for name, engine in before.items():
            if engine not in (from_.value, to.value):
                raise Failed(f"the KV of {name} is on {engine}, not on {from_.value}")
    if cancel:
        rows = asyncio.run(_cancel(target, names))
        target.end_kv(_embedded(rows))
    else:
        given = _addresses(target, pd or [])
        if given and to is not Engine.TIKV:
            raise BadInput("--pd: expected it together with --to tikv")
        for name in given.keys() - set(names):
            raise BadInput(f"--pd: {name} is not one of the IDCs to move")
        if to is Engine.TIKV:
            for name, engine in before.items():
                if engine == Engine.TIKV.value:
                    _demand_same_tikv(target, name, given.get(name, []))
        if not yes and any(engine != to.value for engine in before.values()):
            typer.confirm(f"Move the KV of {', '.join(names)} to {to.value}?", abort=True, err=True)
        try:
            settings = target.begin_kv(to.value, {name: given.get(name, []) for name in names})
            with _progress(names, output) as show:
                asyncio.run(_move(target, settings, show, rows))
        finally:  # Ctrl-C too, and a PD that did not start
            target.end_kv(_embedded(rows))
    emit({"kv": rows}, output, lambda: _table(rows))
    if any(row["problem"] for row in rows) and not cancel:
        raise typer.Exit(1)


def _known(target: Local, name: str) -> None:
    names = [idc.name for idc in target.region.spec.idcs]
    if name not in names:
        raise BadInput(f"expected an IDC, one of {', '.join(names)}, got {name!r}")


def _addresses(target: Local, given: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in given:
        name, equals, addresses = text.partition("=")
        if not equals or not addresses:
            raise BadInput(f"--pd: expected IDC=HOST:PORT[,HOST:PORT...], got {text!r}")
        _known(target, name)
        found[name] = addresses.split(",")
    return found


def _demand_same_tikv(target: Local, name: str, pd: list[str]) -> None:
    """An IDC that is on TiKV stays on that one. To write another one's addresses into the region
    file would let it begin there at its next start, with nothing. Raises Failed."""
    tikv = target.region.idc(name).engines.kv.tikv
    if tikv is None:
        raise Failed(
            f"the KV of {name} is on a TiKV that the deployment's region file does not name; "
            "correct the file, or move it to the embedded engine first"
        )
    if pd and set(pd) != set(tikv.pd):
        raise Failed(
            f"the KV of {name} is on the TiKV behind PD {', '.join(tikv.pd)} already, and moves to "
            "another TiKV by way of the embedded engine only: `imctl migrate kv "
            f"{name} --to embedded` first"
        )


async def _rows(target: Local, names: list[str]) -> list[dict[str, Any]]:
    """On which engine each is, before anything is done. Raises Unavailable for one that does not
    answer."""
    found = await admin.statuses(target, names)
    rows = []
    for name, status in found.items():
        if isinstance(status, ImError):
            raise status
        kv = status["kv"]
        phase = LOST if kv["move"] else "not begun"  # an earlier command's move goes on there
        rows.append(
            {"idc": name, "engine": kv["engine"], "phase": phase, "problem": "", "batches": 0}
        )
    return rows


async def _cancel(target: Local, names: list[str]) -> list[dict[str, Any]]:
    request = pb.MoveKvRequest(cancel=True)
    return [_row(name, await admin.move_kv(target, name, request, _unseen)) for name in names]


def _unseen(progress: pb.MoveKvProgress) -> None: ...


async def _move(
    target: Local,
    settings: dict[str, Any],
    show: Show,
    rows: list[dict[str, Any]],
) -> None:
    """One after the other, and not the next before the last one is there. ``rows``: one for each
    of them, in the same order; what there is to tell of it by now."""
    for number, (name, engine) in enumerate(settings.items()):

        def seen(progress: pb.MoveKvProgress, name: str = name) -> None:
            show(name, progress)

        request = pb.MoveKvRequest(engine_json=json.dumps(engine))
        rows[number]["phase"] = LOST  # until its last word
        try:
            last = await admin.move_kv(target, name, request, seen)
        except ImError as error:  # it may go on there
            rows[number]["problem"] = str(error)
            return
        rows[number] = _row(name, last)
        if last.problem:
            return


def _embedded(rows: list[dict[str, Any]]) -> list[str]:
    """Those whose KV is embedded for sure."""
    return [
        row["idc"]
        for row in rows
        if row["engine"] == Engine.EMBEDDED.value and row["phase"] != LOST
    ]


def _row(name: str, last: pb.MoveKvProgress) -> dict[str, Any]:
    return {
        "idc": name,
        "engine": last.engine,
        "phase": last.phase,
        "problem": last.problem,
        "batches": last.batches,
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("IDC", "KV ENGINE", "MOVE", "PROBLEM", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["idc"], row["engine"], row["phase"], row["problem"])
    return table


@contextmanager
def _progress(names: list[str], output: Format) -> Iterator[Show]:
    """A bar for each IDC on a terminal; nothing elsewhere. It is no part of the result."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    screen = notes()
    quiet = output is not Format.TABLE or not screen.is_terminal
    with Progress(*columns, console=screen, transient=True, disable=quiet) as bars:
        tasks = {name: bars.add_task(f"{name} waiting", total=None, start=False) for name in names}

        def show(name: str, progress: pb.MoveKvProgress) -> None:
            bars.start_task(tasks[name])
            behind = progress.batches - progress.played
            words = f"{name} {progress.phase}"
            if progress.phase == "catch up":
                words += f", {behind} batches behind"
            total = progress.batches or None
            ended = progress.phase in ("done", "failed")
            bars.update(
                tasks[name],
                description=words,
                total=1 if ended else total,
                completed=1 if ended else progress.played,
            )

        yield show
