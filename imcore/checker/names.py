"""The names under which messages were acked: (conversation, origin, seq) is one message for good.

A partition has one sequencer at a time. Were there two that acked in one epoch (one not fenced, or
one that gave a number out again after a restart), both would go on from the same number, and two
messages would be acked under one name.
"""

from __future__ import annotations

from imcore import history as h
from imcore.checker.verdict import Kind, Report


class Names:
    """Fed in the order of the history."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._first: dict[tuple[int, str, int], h.Placed] = {}

    def feed(self, event: h.Placed) -> None:
        self._report.counts.named += 1
        first = self._first.setdefault((event.c, event.origin, event.seq), event)
        if first.tag != event.tag:
            self._report.found(
                Kind.ONE_NAME,
                f"{event.tag} ({event.t} µs) and {first.tag} ({first.t} µs) were both acked as "
                f"number {event.seq} of {event.origin} in conversation {event.c}.",
            )
