"""What is said of the policy: nobody goes back to a lower epoch, and one epoch is one content."""

from __future__ import annotations

from imcore import history as h
from imcore.checker.verdict import Kind, Report


class Policies:
    """Fed in the order of the history."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._highest: dict[str, h.Policy] = {}  # by who said it
        self._first: dict[int, h.Policy] = {}  # by epoch, the first that told the content

    def feed(self, event: h.Policy) -> None:
        self._report.counts.policies += 1
        highest = self._highest.setdefault(event.at, event)
        if event.epoch >= highest.epoch:
            self._highest[event.at] = event
        else:
            self._report.found(
                Kind.EPOCH_BACK,
                f"{event.at} said epoch {event.epoch} at {event.t} µs, "
                f"and epoch {highest.epoch} at {highest.t} µs, which was earlier.",
            )
        if not event.content:
            return
        first = self._first.setdefault(event.epoch, event)
        if first.content != event.content:
            self._report.found(
                Kind.EPOCH_DISPUTED,
                f"Epoch {event.epoch} is {first.content} at {first.at} ({first.t} µs) "
                f"and {event.content} at {event.at} ({event.t} µs).",
            )
