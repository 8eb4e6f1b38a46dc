"""engines: what the engines besides the embedded ones need, and how to get it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from imctl.engines import binaries, building, recording
from imctl.engines.binaries import ENGINES, TOOLS, Engine, Tool
from imctl.errors import Failed
from imctl.group import Commands
from imctl.options import Format, Output
from imctl.output import console, emit

ALL = "all"

engines = typer.Typer(
    cls=Commands,
    help="Show and install the external engines.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@engines.command()
def doctor(output: Output = Format.TABLE) -> None:
    """Show which engines are installed, and how to install the others.

    Exit status: 0 every engine can run here, 1 one cannot.

    Example: imctl engines doctor
    """
    rows = [*map(_engine, ENGINES.values()), *map(_tool, TOOLS.values())]
    emit({"engines": rows, "cache": str(binaries.cache_folder())}, output, lambda: _table(rows))
    if any(row["needed"] and not row["found"] for row in rows):
        raise typer.Exit(1)


def _engine(engine: Engine) -> dict[str, Any]:
    older = f" {binaries.dotted(engine.system)} or newer" if engine.system else ""
    return _row(
        engine.name,
        f"{engine.words}{older}: {engine.serves}",
        binaries.installed(engine.name),
        f"imctl engines install {engine.name}",
        needed=True,
    )


def _tool(tool: Tool) -> dict[str, Any]:
    runs = [engine.name for engine in ENGINES.values() if engine.runs_with == tool.name]
    builds = [engine.name for engine in ENGINES.values() if engine.builds_with == tool.name]
    purpose = f"runs {', '.join(runs)}" if runs else f"builds {', '.join(builds)}"
    # What only builds is a way to get there: whoever has the engines does not need it.
    needed = bool(runs) or any(binaries.installed(name) is None for name in builds)
    found = binaries.find_tool(tool.name)
    return _row(tool.name, f"{tool.needs}: {purpose}", found, tool.remedy, needed)


def _row(
    name: str, needs: str, found: binaries.Program | None, command: str, needed: bool
) -> dict[str, Any]:
    return {
        "name": name,
        "needs": needs,
        "needed": needed,
        "found": found is not None,
        "version": found.version if found else None,
        "path": str(found.path) if found else None,
        "install": None if found else command,
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("", "NEEDED", "FOUND", "TO INSTALL"):
        table.add_column(column, overflow="fold")
    for row in rows:
        missing = "missing" if row["needed"] else "missing, not needed"
        found = f"{row['version']} at {row['path']}" if row["found"] else missing
        table.add_row(row["name"], row["needs"], found, row["install"] or "")
    return table


@engines.command()
def install(
    names: Annotated[
        list[str], typer.Argument(metavar="ENGINE...", help=f"{', '.join(ENGINES)}, or all.")
    ],
) -> None:
    """Install engines at their pinned versions into the cache folder.

    They are built with Go, or fetched with Maven (Kafka). The folder is $IMCTL_ENGINES, else
    $XDG_CACHE_HOME/imctl/engines, else ~/.cache/imctl/engines.

    Example: imctl engines install etcd kafka
    """
    wanted = ENGINES if ALL in names else dict.fromkeys(names)
    failed = []
    for engine in [binaries.engine_named(name) for name in wanted]:
        try:
            _install(engine)
        except Failed as error:  # the others may well be got
            failed.append(str(error))
    if failed:
        raise Failed("; ".join(failed))


def _install(engine: Engine) -> None:
    version = binaries.pinned(engine)
    builder = binaries.need_tool(engine.builds_with, engine)
    target = binaries.place(engine, builder)
    if target.exists():
        print(f"{engine.name} {version} is already installed: {target}")
        _record(engine, target)
        return
    started = time.monotonic()
    tool = TOOLS[engine.builds_with].words
    with _progress(f"{engine.name} {version}", f"with {tool}, {engine.takes}") as progress:
        target = building.build(engine, builder, progress)
    seconds = time.monotonic() - started
    print(f"installed {engine.name} {version} in {seconds:.0f} s: {target}", flush=True)
    _record(engine, target)


def _record(engine: Engine, target: Path) -> None:
    """What runs on Java starts faster with its class archives, and without them as well."""
    if engine.runs_with != "java" or not binaries.find_tool("java") or recording.recorded(target):
        return
    try:
        with _progress(f"{engine.name}'s class archives", "half a minute") as progress:
            recording.record(target, progress)
    except (Failed, OSError) as error:
        print(f"note: {engine.name} will start more slowly: {error}", file=sys.stderr)


@contextmanager
def _progress(what: str, how: str) -> Iterator[building.Progress]:
    """A bar where it is known how much there is, else a running clock; one line off a terminal."""
    screen = console()
    if not screen.is_terminal:
        print(f"installing {what} ({how}) ...", flush=True)
        yield lambda doing, done, total: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=screen, transient=True) as bars:
        task = bars.add_task(f"{what} ({how})", total=None)

        def show(doing: str, done: int, total: int) -> None:
            count = f"{done} of {total}" if total else str(done or "")
            words = f"{what}: {doing} {count}".rstrip()
            bars.update(task, description=words, completed=done, total=total or None)

        yield show
