"""The judge of histories: what every device was shown, against what was promised.

No acked message missing, none shown twice, one order for all, no sender's own order broken,
answers after their questions (docs/history.md). Pure but for reading the file; one pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from imcore import history as h
from imcore.checker.final import Final
from imcore.checker.stream import Stream
from imcore.checker.verdict import GROUPS, Kind, Report
from imcore.errors import BadInput

__all__ = ["GROUPS", "Kind", "Report", "check_events", "check_file"]


class Listener(Protocol):
    """Something else that wants every event of the one pass (latencies, availability)."""

    def feed(self, event: h.Event) -> None: ...


def check_events(events: Iterable[h.Event], listeners: Iterable[Listener] = ()) -> Report:
    """Raises ValueError when a line makes no sense where it stands."""
    report = Report()
    stream = Stream(report)
    others = [stream.feed, *(listener.feed for listener in listeners)]
    for event in events:
        for feed in others:
            feed(event)
    stream.writers.judge()
    stream.changes.judge()
    stream.unread.judge()
    stream.words.judge()
    Final(stream.state, report).judge()
    return report


def check_file(path: Path, listeners: Iterable[Listener] = ()) -> Report:
    """Raises BadInput when the file is not a history (``imctl check`` then exits with 2)."""
    torn: list[bool] = []
    _, events = h.read_history(path, on_torn=lambda: torn.append(True))
    try:
        report = check_events(events, listeners)
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from error
    report.torn = bool(torn)
    return report
