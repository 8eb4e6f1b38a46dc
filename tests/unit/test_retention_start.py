"""Whether an IDC can go on from what it holds, and how its copies join a snapshot."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imcore.errors import Damaged
from imcore.words import Origin
from services.engines.disk import RealDisk
from services.engines.log_store import SegmentLogStore
from services.im.incarnation import PeerFacts, may_seal
from services.ports import LogEnd
from services.retention.shelf import Description
from services.retention.start import EMPTY, Range, Ranges, cut_off, gaps, restarts

FRA, IAD = Origin("fra", 1), Origin("iad", 1)
KEY = (FRA, 0)


def position(lsn: int) -> LogEnd:
    return LogEnd(lsn, bytes(16), 1)


ranges = st.builds(
    lambda first, count: Range(first, first + count - 1), st.integers(1, 10), st.integers(0, 10)
)
logs = st.dictionaries(st.sampled_from([(FRA, 0), (FRA, 1), (IAD, 0)]), ranges)
positions = st.dictionaries(
    st.sampled_from([(FRA, 0), (FRA, 1), (IAD, 0)]), st.integers(1, 15).map(position)
)


@given(logs, positions, logs)
def test_every_copy_joins_the_snapshot_and_nothing_is_lost_that_is_nowhere_else(
    own: dict[tuple[Origin, int], Range],
    at: dict[tuple[Origin, int], LogEnd],
    source: Ranges,
) -> None:
    try:
        anew = restarts(own, at, source)
    except LookupError:
        assert gaps(own, at)
        return
    for key, end in anew.items():
        lost = own.get(key, Range(1, 0))
        assert lost.end <= max(end.lsn, source.get(key, Range(1, 0)).end)
    after = {**own, **{key: Range(end.lsn + 1, end.lsn) for key, end in anew.items()}}
    assert gaps(after, at) == []
    assert all(after[key].end >= end.lsn for key, end in at.items())


@given(logs, st.lists(logs, max_size=3))
def test_cut_off_is_who_would_need_a_record_that_nobody_has(
    own: dict[tuple[Origin, int], Range], peers: list[Ranges]
) -> None:
    for key in cut_off(own, peers):
        following = own.get(key, Range(1, 0)).end + 1
        assert any(p[key].end >= following for p in peers if key in p)
        assert not any(p[key].first <= following <= p[key].end for p in peers if key in p)


def test_a_blank_idc_is_cut_off_only_when_every_copy_is_cut() -> None:
    assert cut_off({}, [{KEY: Range(5, 9)}]) == [KEY]
    assert cut_off({}, [{KEY: Range(5, 9)}, {KEY: Range(1, 7)}]) == []
    assert cut_off({KEY: Range(1, 4)}, [{KEY: Range(5, 9)}]) == []
    assert cut_off({KEY: Range(5, 9)}, [{KEY: Range(7, 8)}]) == []


def test_a_copy_with_a_gap_that_its_source_does_not_cover_waits_for_another_snapshot() -> None:
    with pytest.raises(LookupError, match="held from 8 to 12"):
        restarts({KEY: Range(8, 12)}, {KEY: position(5)}, {KEY: Range(3, 11)})
    assert restarts({KEY: Range(8, 12)}, {KEY: position(5)}, {KEY: Range(3, 12)}) == {
        KEY: position(5)
    }
    assert restarts({KEY: Range(8, 12)}, {}, {KEY: Range(1, 12)}) == {KEY: EMPTY}


@pytest.mark.parametrize(
    ("peers", "may"),
    [
        ([], True),
        ([PeerFacts("iad", True), PeerFacts("sin", False)], True),
        ([PeerFacts("iad", True, starting=True), PeerFacts("sin", False)], False),
        ([PeerFacts("iad", False), PeerFacts("sin", False)], False),
        ([PeerFacts("iad", True, starting=True), PeerFacts("sin", True, starting=True)], True),
        ([PeerFacts("iad", False, retired=True)], True),
        ([PeerFacts("iad", True, retired=True), PeerFacts("sin", False)], False),
    ],
)
def test_a_seal_needs_one_that_is_whole_or_all_of_them(peers: list[PeerFacts], may: bool) -> None:
    assert may_seal(peers) is may


def test_a_description_comes_back_as_it_was_written() -> None:
    written = Description("007", 5, "fra.1", {FRA: (3, 4)}, {IAD: (1, 2)}, safe=True)
    assert Description.parse(written.dump()) == written
    for rubbish in (b"", b"[]", b"{}", b'{"format": 2}', b'{"format": 1, "vector": 3}'):
        with pytest.raises(Damaged):
            Description.parse(rubbish)


async def test_a_renewed_store_is_another_one_and_its_copies_can_begin_anew(tmp_path: Path) -> None:
    async def opened() -> SegmentLogStore:
        return await SegmentLogStore.open(str(tmp_path), 1, RealDisk(), random.Random(1))

    store = await opened()
    before = store.log_id
    copy = await store.open_copy(IAD)
    await copy.restart_at(0, LogEnd(6, b"c" * 16, 2))
    await store.renew()
    assert store.log_id != before
    renewed = store.log_id
    await store.close()
    store = await opened()
    copy = await store.open_copy(IAD)
    assert store.log_id == renewed
    assert (copy.first_lsn(0), copy.end(0)) == (7, LogEnd(6, b"c" * 16, 2))
    await copy.restart_at(0, LogEnd(3, b"d" * 16, 1))
    await store.close()
    store = await opened()
    assert (await store.open_copy(IAD)).end(0) == LogEnd(3, b"d" * 16, 1)
    assert store.damage == []
    await store.close()
