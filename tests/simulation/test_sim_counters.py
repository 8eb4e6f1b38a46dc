"""Each `sometimes` counter of the fixed set turns it red once what it counts happens no more.

Nightly: the fixed set's seeds one by one, then for each counter one of those that met it, in a copy
of the sources where the behaviour is taken out (20 seeds in all). That each change still fits the
sources is tested always.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from imcore.sometimes import EXPECTED
from services.sim.run import FIXED
from tools.mutations import ROOT, applied, copy_of, mutated, run_module

SEED_MAX_S = 1_500.0  # a seed without one of its behaviours may come to rest nowhere
_NEVER = re.compile(r"^never happened: (.*)$", re.MULTILINE)


class Removed(NamedTuple):
    counter: str
    how: str
    file: str
    old: str
    new: str


# fmt: off
REMOVED = (
    Removed(
        "an alias was made", "no copy is told from the first one",
        "services/im/fold.py",
        "entry.alias = copies[0][1:3] != (origin, op.seq)", "entry.alias = False",
    ),
    Removed(
        "a vote failed for lack of a majority", "it is taken for one that was outbid",
        "services/control/round.py",
        "higher = self.seen > self.ballot", "higher = True",
    ),
    Removed(
        "an incarnation was taken", "an IDC goes on with whatever log it finds",
        "services/im/incarnation.py",
        "    reason = _why_not(committed, store, peers)\n    if reason:", "    if reason := '':",
    ),
    Removed(
        "an outbox refilled an IDC", "a sender forgets its message at the first ack",
        "services/sdk/core/outbox.py",
        "if ack.replicated or mirrored:", "if True:",
    ),
    Removed(
        "a send was known already", "cids that were taken are forgotten",
        "services/im/sequencer.py",
        "if key.cid in lane.known:", "if False:",
    ),
    Removed(
        "a partition was opened again after a failed append", "no disk is ever full",
        "services/sim/faults.py",
        "faults.full = True", "faults.full = False",
    ),
    Removed(
        "a damaged log was found", "nobody is told of it",
        "services/engines/log_store.py",
        "partial(self._record_damage, origin, number)", "lambda missing: None",
    ),
    Removed(
        "a KV went back to its last sync", "a torn file is taken for a whole one",
        "services/engines/lmdb_steady.py",
        "or not _maybe_torn(folder, disk, boot, names):", "or True:",
    ),
    Removed(
        "an IDC was declared failed", "no majority is ever large enough",
        "services/control/failover.py",
        "needed = len(names) // 2 + 1", "needed = len(names) + 1",
    ),
    Removed(
        "ops above a seal were published again", "they are left where they are",
        "services/node/seals.py",
        "if max(end, applied) <= seal:", "if True:",
    ),
    Removed(
        "a sender came with a gap", "any cid is taken as the next one",
        "services/im/sequencer.py",
        "if key.cid != want:", "if False:",
    ),
    Removed(
        "a stale sequencer was fenced", "who opens a partition again writes no marker",
        "services/im/partition.py",
        "        self._epoch = end.epoch + 1\n",
        "        if end.epoch:\n            self._epoch = end.epoch\n"
        "            self.sequencer.reset()\n            self._failed = None\n            return\n"
        "        self._epoch = end.epoch + 1\n",
    ),
    Removed(
        "a sender changed IDC with a gap", "nobody tells where he was acked before",
        "services/sdk/sender.py",
        "self._moved_from[where] = max(ack.lsn, self._moved_from.get(where, 0))", "pass",
    ),
)
# fmt: on


def test_there_is_one_for_each_counter() -> None:
    assert sorted(removed.counter for removed in REMOVED) == sorted(EXPECTED)


@pytest.mark.parametrize("removed", REMOVED, ids=lambda removed: removed.counter)
def test_each_applies_and_compiles(removed: Removed) -> None:
    compile(mutated(removed, ROOT), removed.file, "exec")


def never(root: Path, seed: int) -> set[str]:
    """What a seed did not meet, as the fixed set's check says it."""
    options = ["--from", str(seed), "--seeds", "1", "--jobs", "1", "--counters"]
    status, said = run_module(root, ["services.sim", *options], SEED_MAX_S, bytecode=True)
    found = _NEVER.search(said)
    assert (status == 1) == (found is not None or "BROKEN" in said), said[-2000:]
    return set(found[1].split(", ")) if found else set()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("sources")
    copy_of(ROOT, root)
    yield root


@pytest.fixture(scope="module")
def unmet(copy: Path) -> dict[int, set[str]]:
    """By seed, what it does not meet as things are."""
    return {seed: never(copy, seed) for seed in FIXED}


@pytest.mark.nightly
@pytest.mark.parametrize("number", range(len(REMOVED)), ids=lambda n: REMOVED[n].counter)
def test_without_what_is_counted_the_check_is_red(
    copy: Path, unmet: dict[int, set[str]], number: int
) -> None:
    removed = REMOVED[number]
    seed = next(seed for seed, names in unmet.items() if removed.counter not in names)
    with applied(removed, copy, number):
        assert removed.counter in never(copy, seed)
