"""The audit chains of a deployment's folder, judged, merged and shown. Pure but for reading."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from imcore import auditfile
from imcore.audit import EMPTY, Anchor, Verdict, against, verify
from imcore.errors import BadInput
from imctl.audit import FILE, own_writer, writer_of
from imctl.output import printable

UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
UNREADABLE = Anchor(-1, "")  # what the registers hold in an anchor's place is none
LATEST_MS = 4_102_444_800_000  # the year 2100: no event is of later


class Chain(NamedTuple):
    writer: str
    path: Path
    verdict: Verdict


def writers(folder: Path, idcs: Iterable[str]) -> dict[str, Path]:
    """Whose chains there should be, and where; also those of IDCs that left the region."""
    found = {writer_of(folder / FILE): folder / FILE}
    found |= {name: folder / name / FILE for name in idcs}
    found |= {path.parent.name: path for path in sorted(folder.glob(f"*/{FILE}"))}
    return found


def read(paths: Mapping[str, Path]) -> list[Chain]:
    """Raises BadInput for a file that cannot be read; one that is not there is an empty chain."""
    return [Chain(writer, path, verify(_bytes(path), writer)) for writer, path in paths.items()]


def _bytes(path: Path) -> bytes:
    try:
        return auditfile.read(path)
    except OSError as error:
        raise BadInput(f"{path}: expected a readable audit log, got {error.strerror}") from error


def judged(chain: Chain, anchor: Anchor | None, own: Anchor = EMPTY) -> dict[str, Any]:
    """``anchor``: None when the registers could not be asked. ``own``: that of this machine, for
    the chain of a folder."""
    found = chain.verdict
    problem = found.problem or (_against(found, anchor, chain.writer) if anchor else "")
    problem = problem or supplanted(chain, own)
    return {
        "file": str(chain.path),
        "writer": chain.writer,
        "events": found.head.seq,
        "whole": not problem,
        "problem": problem,
        "torn": found.torn,
        "torn_at_the_end": len(found.tail),
        "anchored": None if anchor in (None, UNREADABLE) else anchor.seq,
    }


def _against(found: Verdict, anchor: Anchor, writer: str) -> str:
    if anchor == UNREADABLE:
        what = f"what the registries hold as the anchor of {writer}"
        return f"its end cannot be checked: {what} is none"
    return against(found, anchor)


def supplanted(chain: Chain, own: Anchor) -> str:
    """What is wrong with the chain of a folder that is not by this machine, though the registers
    know a line that this machine has written; empty: nothing. ``own``: that line."""
    if own.seq == 0 or chain.writer == own_writer():
        return ""
    if own == UNREADABLE:
        return _against(chain.verdict, own, own_writer())
    return (
        f"rewritten: the log is by {chain.writer}, but the registries know event {own.seq} "
        f"by {own_writer()}"
    )


def sentence(row: Mapping[str, Any]) -> str:
    """One line for a file."""
    head = f"{row['file']}: {row['events']} events"
    if row["problem"]:
        return f"{head}, BROKEN: {printable(row['problem'])}"  # it may name what was planted
    said = "intact"
    if row["torn"]:
        said += f", {row['torn']} lines torn by a crash and recorded"
    if row["torn_at_the_end"]:
        said += f", {row['torn_at_the_end']} bytes torn at the end"
    if row["anchored"] is None:
        said += ", end not checked (no registries)"
    elif row["events"] > row["anchored"]:
        said += f", anchored up to event {row['anchored']}"
    return f"{head}, {said}"


# ----------------------------------------------------------------------------------- events


def merged(chains: Iterable[Chain], since_ms: int = 0, idc: str = "") -> list[dict[str, Any]]:
    """Events of all chains by time; of one writer always in the order of the chain. ``idc``: those
    that are about it or that it wrote. What stands behind a break is not shown."""
    found = []
    for chain in chains:
        at_ms = 0
        for row in chain.verdict.rows:
            at_ms = max(at_ms, time_ms(row))
            about = [row["writer"], row.get("idc"), row.get("target"), row.get("fault")]
            if at_ms >= since_ms and (not idc or idc in about):
                found.append((at_ms, row))
    return [{**row, "at_ms": at_ms} for at_ms, row in sorted(found, key=lambda each: each[0])]


def time_ms(row: Mapping[str, Any]) -> int:
    """0: a note of a torn line has no time of its own, nor has one that makes no sense."""
    at_ms = row.get("at_ms")
    return at_ms if isinstance(at_ms, int) and 0 <= at_ms <= LATEST_MS else 0


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """Who did what, and what came of it; of a line that makes no sense what can be said."""
    by = str(row.get("by") or row["writer"])
    if user := row.get("user"):
        by += f" ({user} as {row['certificate']})" if "certificate" in row else f" ({user})"
    torn = row.get("torn")
    if isinstance(torn, dict):
        what, decision = f"a crash tore a line of {torn.get('bytes')} bytes", "recorded"
    elif "fault" in row:
        what = f"{row['fault']}: {row.get('sentence', '')}"
        decision = str(row.get("outcome", ""))
    else:
        what, decision = str(row.get("sentence", "")), str(row.get("decision", ""))
    return {"at_ms": row["at_ms"], "by": by, "decision": decision, "what": what}


def table(rows: Iterable[Mapping[str, Any]]) -> Table:
    view = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("TIME", "BY", "DECISION"):
        view.add_column(column, overflow="fold")
    view.add_column("WHAT", overflow="fold", ratio=1)
    for row in rows:
        each = shown(row)
        time = datetime.fromtimestamp(each["at_ms"] / 1000).strftime("%m-%d %H:%M:%S")
        view.add_row(time, *(printable(each[name]) for name in ("by", "decision", "what")))
    return view


def since(text: str, now_ms: int) -> int:
    """``90s``, ``30m``, ``2h``, ``7d``, or a local or zoned ISO time -> ms. Raises BadInput."""
    if match := re.fullmatch(r"(\d{1,9})([smhd])", text):
        return now_ms - int(match[1]) * UNITS_MS[match[2]]
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise BadInput(
            f"--since {text}: expected 90s, 30m, 2h, 7d or a time such as 2026-01-31T12:00"
        ) from error
