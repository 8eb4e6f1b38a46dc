"""Rare things, counted where they are decided, so that a simulation can show that it meets them.

A test that never comes to the rare branch proves nothing of it: the simulation's fixed set of seeds
(services.sim) must count every name of ``EXPECTED`` at least once. In a server the counters say
nothing and cost an addition.
"""

from __future__ import annotations

from collections import Counter

ALIAS = "an alias was made"
NO_MAJORITY = "a vote failed for lack of a majority"
INCARNATION = "an incarnation was taken"
PUBLISHED_AGAIN = "ops above a seal were published again"
REFILLED = "an outbox refilled an IDC"
WANTED = "a sender came with a gap"
KNOWN = "a send was known already"
TAKEN_OVER = "a partition was opened again after a failed append"
DAMAGED = "a damaged log was found"
ROLLED_BACK = "a KV went back to its last sync"
FAILED_OVER = "an IDC was declared failed"
FENCED = "a stale sequencer was fenced"
MOVED_AHEAD = "a sender changed IDC with a gap"

EXPECTED = (
    ALIAS, NO_MAJORITY, INCARNATION, REFILLED, KNOWN, TAKEN_OVER, DAMAGED, ROLLED_BACK, FAILED_OVER,
    PUBLISHED_AGAIN, WANTED, FENCED, MOVED_AHEAD,
)  # fmt: skip

counts: Counter[str] = Counter()  # of this process


def sometimes(name: str) -> None:
    counts[name] += 1
