"""How often each verb of a role was asked, how long it took, how it failed. Pure.

Counters are plain integers and lists: what a metrics library does for each observation (locks,
labels looked up, a walk over the buckets) would cost as much as a tenth of a message. They become
metrics when somebody reads them (services.node.metrics).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping

# Seconds, upper bounds. A send is acked in 1 to 10 ms; the deadline of a request is 10 s.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Verb:
    __slots__ = ("buckets", "failures", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS) + 1)  # each by itself, the last one above all bounds
        self.seconds = 0.0
        self.failures: dict[str, int] = {}  # by code

    def add(self, buckets: Iterable[int], seconds: float, failures: Mapping[str, int]) -> None:
        """What somebody else has counted."""
        self.buckets = [own + more for own, more in zip(self.buckets, buckets, strict=True)]
        self.seconds += seconds
        for code, count in failures.items():
            self.failures[code] = self.failures.get(code, 0) + count

    def taken(self) -> Verb:
        """What was counted so far; it begins anew."""
        taken = Verb()
        taken.buckets, self.buckets = self.buckets, taken.buckets
        taken.failures, self.failures = self.failures, taken.failures
        taken.seconds, self.seconds = self.seconds, 0.0
        return taken


class Verbs:
    """Of one role. Names of verbs and codes are those of the protocol, so there are few.
    ``awaited``: verbs that are shown before they are asked: a rate of failures does not see the
    first one if the counter begins with it."""

    def __init__(self, awaited: Iterable[str] = ()) -> None:
        self.known: dict[str, Verb] = {verb: Verb() for verb in awaited}

    def done(self, verb: str, seconds: float, code: str = "") -> None:
        """One request is answered; ``code``: with this error."""
        found = self.known.get(verb)
        if found is None:
            found = self.known[verb] = Verb()
        found.buckets[bisect_left(BOUNDS, seconds)] += 1
        found.seconds += seconds
        if code:
            found.failures[code] = found.failures.get(code, 0) + 1

    def add(
        self, verb: str, buckets: Iterable[int], seconds: float, failures: Mapping[str, int]
    ) -> None:
        """What somebody else has counted of it."""
        self.known.setdefault(verb, Verb()).add(buckets, seconds, failures)

    def taken(self) -> dict[str, Verb]:
        """What was counted so far of each that was asked; it begins anew."""
        return {name: verb.taken() for name, verb in self.known.items() if any(verb.buckets)}
