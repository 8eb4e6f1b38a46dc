"""engines: what the engines besides the embedded ones need, and how to get it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from imctl.engines import binaries
from imctl.options import Format, Output
from imctl.output import console, emit

ETCD_MODULE = "go.etcd.io/etcd/server/v3"

engines = typer.Typer(
    help="Look for the engines' programs, and build them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


class Installable(StrEnum):
    ETCD = "etcd"


@engines.command()
def doctor(output: Output = Format.TABLE) -> None:
    """Show what each engine needs, what was found, and how to get what is missing.

    Exit status: 0 every engine can run here, 1 one cannot.
    """
    rows = [_etcd(), _go()]
    emit({"engines": rows, "cache": str(binaries.cache_folder())}, output, lambda: _table(rows))
    if any(row["needed"] and not row["found"] for row in rows):
        raise typer.Exit(1)


def _etcd() -> dict[str, Any]:
    found = binaries.find_etcd()
    return _row(
        "etcd",
        f"etcd {'.'.join(map(str, binaries.ETCD_LEAST))} or newer (--engines etcd)",
        found,
        "imctl engines install etcd",
        needed=True,
    )


def _go() -> dict[str, Any]:
    found = binaries.find_go()
    if found and binaries.numbers(found.version) < binaries.GO_LEAST:
        found = None
    least = ".".join(map(str, binaries.GO_LEAST))
    # Only a way to get there: whoever has etcd does not need it.
    return _row(
        "go",
        f"Go {least} or newer, to build etcd",
        found,
        "apt-get install golang-go",
        needed=binaries.find_etcd() is None,
    )


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
    table = Table("", "NEEDS", "FOUND", "TO GET IT", box=None, pad_edge=False)
    for row in rows:
        missing = "missing" if row["needed"] else "not here, not needed"
        found = f"{row['version']} at {row['path']}" if row["found"] else missing
        table.add_row(row["name"], row["needs"], found, row["install"] or "")
    return table


@engines.command()
def install(
    engine: Annotated[Installable, typer.Argument(metavar="ENGINE", help="etcd.")],
) -> None:
    """Build an engine's program with Go, as pinned, into the cache folder.

    The folder is $IMCTL_ENGINES, else $XDG_CACHE_HOME/imctl/engines, else ~/.cache/imctl/engines.
    """
    version = binaries.pinned(engine.value, ETCD_MODULE)
    go = binaries.need_go()
    target = binaries.place(engine.value, go)
    if target.exists():
        print(f"{engine.value} {version} is here: {target}")
        return
    started = time.monotonic()
    words = f"building {engine.value} {version} with Go {go.version} (about half a minute)"
    with _progress(words):
        target = binaries.build(engine.value, go)
    seconds = time.monotonic() - started
    print(f"{engine.value} {version} was built in {seconds:.0f} s: {target}")


@contextmanager
def _progress(words: str) -> Iterator[None]:
    """A running clock on a terminal, one line elsewhere."""
    screen = console()
    if not screen.is_terminal:
        print(f"{words} ...", flush=True)
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=screen, transient=True) as progress:
        progress.add_task(words, total=None)
        yield
