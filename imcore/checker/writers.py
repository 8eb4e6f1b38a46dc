"""Whether two writers acked in one log at the same time: what fencing must make impossible.

A log of one origin gives each place of a conversation once, and the clock in it rises with the
seq. So a place that two acked messages have, or two places whose seq and clock stand the other way
round, were given by two sequencers that did not know of each other.
"""

from __future__ import annotations

from imcore import history as h
from imcore.checker.verdict import Kind, Report


class Writers:
    """Fed in the order of the history; ``judge`` at its end."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._given: dict[tuple[int, str], dict[int, h.Placed]] = {}  # by seq

    def feed(self, event: h.Placed) -> None:
        self._report.counts.placed += 1
        given = self._given.setdefault((event.c, event.origin), {})
        first = given.setdefault(event.seq, event)
        if first.tag != event.tag:
            self._report.found(
                Kind.PLACE_TWICE,
                f"{first.tag} and {event.tag} were both acked as {event.origin} {event.seq} "
                f"of conversation {event.c} ({first.t} µs, {event.t} µs).",
            )

    def judge(self) -> None:
        for (c, origin), given in self._given.items():
            before: h.Placed | None = None
            for seq in sorted(given):
                here = given[seq]
                if before is not None and here.hlc <= before.hlc:
                    self._report.found(
                        Kind.CLOCK_BACK,
                        f"{origin} acked {before.tag} as {before.seq} and {here.tag} as {seq} of "
                        f"conversation {c}, with a clock that went back from {before.hlc} to "
                        f"{here.hlc}.",
                    )
                before = here
