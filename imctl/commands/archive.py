"""archive and query: old messages as Parquet files, and SQL over them."""

from __future__ import annotations

import asyncio
import base64
import csv
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from imcore.errors import BadInput
from imcore.hlc import from_ms, to_ms
from imcore.proto import peer_pb2 as pb
from imcore.runtime import SystemClock
from imctl import admin, auditview, deployment
from imctl.archive import pull, store
from imctl.archive import query as queries
from imctl.archive.layout import State
from imctl.archive.store import Archive
from imctl.errors import ERROR, Failed
from imctl.options import Data, Format, Output
from imctl.output import console, emit, notes, printable
from imctl.target.local import Local

FOLDER = "archive"
Folder = Annotated[
    Path | None,
    typer.Option(
        "--archive",
        metavar="DIR",
        file_okay=False,
        help="The archive [default: `archive` in the deployment's folder].",
        show_default=False,
    ),
]


class Rows(StrEnum):
    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def archive(
    older_than: Annotated[
        str,
        typer.Option(
            metavar="AGE",
            help="Minimum age of messages: 90s, 30m, 2h, 30d; 0s: all that every IDC has applied.",
        ),
    ] = "30d",
    idc: Annotated[
        str,
        typer.Option(
            metavar="IDC",
            show_default=False,
            help="The IDC to read from [default: the first one that is not retired].",
        ),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count the messages; write nothing.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Only check the existing files against their manifests."),
    ] = False,
    folder: Folder = None,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Copy old messages to Parquet files.

    The files are compressed and sorted by day and conversation. The IDCs keep the messages too.
    Each run continues where the last complete run ended; a killed run has no effect. Messages
    edited since an earlier run are written again; recalled ones are also removed from older files.

    Exit status with --verify: 0 every file matches its manifest, 1 one does not.

    Example: imctl archive --older-than 7d
    """
    if verify:
        _verify(folder or deployment.folder(data) / FOLDER)
        return
    store.duckdb()  # before anybody is asked for anything
    target = deployment.find(data)
    document = asyncio.run(
        _archive(target, folder or target.data / FOLDER, _age_ms(older_than), idc, dry_run)
    )
    emit(document, output, lambda: _sentence(document))


def _age_ms(text: str) -> int:
    try:
        ago = auditview.since(text, 0)
    except BadInput:
        ago = 1
    if ago > 0 or not text[-1:].isalpha():
        raise BadInput(f"--older-than {text}: expected an age such as 90s, 30m, 2h or 30d")
    return -ago


def _verify(folder: Path) -> None:
    found = store.state(folder)
    if found is None:
        raise Failed(f"there is no archive in {folder}; `imctl archive` writes one")
    every = store.segments(folder, found.run)
    wrong = store.wrong(folder, every)
    for sentence in wrong:
        print(sentence)
    print(f"{len(every) - len(wrong)} of {len(every)} files match their manifests")
    if wrong:
        raise typer.Exit(ERROR)


async def _archive(
    target: Local, folder: Path, age_ms: int, idc: str, dry_run: bool
) -> dict[str, Any]:
    bound = await pull.bound(target)
    if idc and idc not in bound.idcs:
        raise BadInput(f"--idc {idc}: expected one of {', '.join(bound.idcs)}")
    name = idc or next(iter(bound.idcs))
    oldest_ms = SystemClock().wall_ms() - age_ms
    until = min(bound.hlc, from_ms(max(0, oldest_ms + 1)) - 1)
    region = target.region.metadata.name
    if dry_run:
        state = store.state(folder) or State(region)
        request = pb.ArchiveRequest(after=state.until, until=until, count_only=True)
        counted = await _read(target, name, request, None) if until > state.until else (0, 0)
        return _document(folder, name, state.run, state.until, until, counted, dry_run=True)
    with Archive(folder, region) as held:
        after, files, counted = held.state.until, [], (0, 0)
        if until > after:
            request = pb.ArchiveRequest(after=after, until=until)
            counted = await _read(target, name, request, held)
            files = held.write(name, until, pull.applied(bound.idcs[name]))
        erased = held.erase()
        size = sum(segment.size for segment in files)
        run = held.state.run
    return _document(folder, name, run, after, until, counted, erased, len(files), size)


async def _read(
    target: Local, name: str, request: pb.ArchiveRequest, into: Archive | None
) -> tuple[int, int]:
    """How many messages, and how many earlier ones that have changed."""
    messages = changed = 0
    words = ("{task.description}", "{task.completed} of {task.total} partitions")
    columns = (TextColumn(words[0]), BarColumn(bar_width=30), TextColumn(words[1]))
    screen = notes()
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    ) as bars:
        task = bars.add_task("", total=target.region.spec.partitions)
        async for chunk in admin.archived(target, name, request):
            if into is not None:
                into.add(chunk.messages)
            messages += chunk.counted
            changed += chunk.counted_again
            bars.update(task, description=f"{messages} messages", completed=chunk.partitions_done)
    return messages, changed


def _document(
    folder: Path, idc: str, run: int, after: int, until: int, counted: tuple[int, int],
    erased: int = 0, files: int = 0, size: int = 0, dry_run: bool = False,
) -> dict[str, Any]:  # fmt: skip
    messages, changed = counted
    return {
        "archive": str(folder),
        "idc": idc,
        "run": run,
        "after": _time(after),
        "until": _time(max(after, until)),
        "messages": messages,
        "changed": changed,
        "erased": erased,
        "files": files,
        "bytes": size,
        "dry_run": dry_run,
    }


def _time(hlc: int) -> str:
    return datetime.fromtimestamp(to_ms(hlc) / 1000, UTC).isoformat(timespec="milliseconds")


def _sentence(document: dict[str, Any]) -> str:
    messages, changed, until = document["messages"], document["changed"], document["until"]
    what = f"{messages} messages, and {changed} changed ones of earlier runs, up to {until}"
    if document["dry_run"]:
        return f"would archive {what}"
    where = f"{document['files']} files of {document['bytes']} bytes in {document['archive']}"
    out = f"; removed {document['erased']} recalled messages from older files"
    return f"archived {what}: {where}{out if document['erased'] else ''}"


# ----------------------------------------------------------------------------------- query


def query(
    sql: Annotated[str, typer.Argument(metavar="SELECT", help="One SELECT statement of DuckDB.")],
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, help="Maximum number of rows.")
    ] = 10_000,
    folder: Folder = None,
    output: Annotated[Rows, typer.Option("-o", "--output", help="Output format.")] = (Rows.TABLE),
    data: Data = None,
) -> None:
    """Query an archive with SQL.

    Tables: `messages`, `conversations` and `segments` (the archive's files). Only the files are
    read, so the deployment may be down. BLOBs are shown as Base64; the column `text` has a
    message's content if it is UTF-8.

    Example: imctl query "select sender, count(*) from messages group by all"
    """
    result = queries.run(folder or deployment.folder(data) / FOLDER, sql)
    names = [name for name, _ in result.columns]
    rows = result.rows()
    shown = ([_plain(value) for value in row] for row in islice(rows, limit))
    if output is Rows.CSV:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(shown)
    elif output is Rows.JSON:
        _as_json(names, shown)
    else:
        console().print(_as_table(names, shown))
    if next(rows, None) is not None:
        notes().print(f"only the first {limit} rows are shown; use --limit for more")


def _as_json(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A list, a row a line: however many there are, none is kept."""
    start = "["
    for row in rows:
        print(
            start + "\n" + json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False),
            end="",
        )
        start = ","
    print("[]" if start == "[" else "\n]")


def _as_table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    view = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        view.add_column(printable(name), overflow="fold")
    for row in rows:
        view.add_row(*("" if value is None else _cell(value) for value in row))
    return view


def _cell(value: Any) -> Any:
    return Text(printable(value if isinstance(value, str) else json.dumps(value)))


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    return value if value is None or isinstance(value, str | int | float) else str(value)
