"""Which records of several topics make one log, whatever order they are found in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.engines.kafka.admin import Difference, Topic, plan
from services.engines.kafka.index import Hint, Index, beginning, parse_hint
from services.engines.kafka.union import Cuts, Union, parse_cuts
from services.engines.records import EMPTY_END, pack, records_after
from services.mirror.gaps import Gaps
from services.ports import LogEnd, Record


def history(count: int, end: LogEnd = EMPTY_END, epoch: int = 1, what: str = "") -> list[Record]:
    return records_after(end, 0, epoch, [f"{what}{number}".encode() for number in range(count)])


def end_of(records: list[Record]) -> LogEnd:
    return LogEnd(records[-1].lsn, records[-1].chain, records[-1].epoch)


def union(cuts: Cuts | None = None, step_bytes: int = 100) -> Union:
    return Union(0, beginning(2), cuts or Cuts(), Index(beginning(2), step_bytes))


class Topics:
    """Two topics that are read in pages, as a broker gives them."""

    def __init__(self, *topics: list[Record]) -> None:
        self.topics = [[pack(record) for record in topic] for topic in topics]

    def read(self, into: Union, source: int, count: int = 7) -> list[Record]:
        offset = into.sources[source].offset
        page = list(enumerate(self.topics[source]))[offset : offset + count]
        return into.offer(source, page, offset + len(page))

    def read_all(self, into: Union, order: list[int]) -> list[Record]:
        """In that order of topics, then until nothing moves any more."""
        found: list[Record] = []
        for source in order:
            found += self.read(into, source)
        before: list[int] = []
        while before != (before := [at.offset for at in into.sources]):
            found += self.read(into, 0) + self.read(into, 1)
        return found


@given(
    st.integers(1, 40),
    st.lists(st.integers(0, 1), max_size=30),
    st.sets(st.integers(1, 40)),
    st.sets(st.integers(1, 40)),
)
def test_the_union_is_the_log_up_to_what_neither_topic_has(
    count: int, order: list[int], dropped: set[int], relayed: set[int]
) -> None:
    whole = history(count)
    mirrored = [record for record in whole if record.lsn not in dropped]
    relay = [record for record in whole if record.lsn in relayed]
    missing = dropped - relayed
    end = min((lsn for lsn in missing if lsn <= count), default=count + 1) - 1
    taken = Topics(mirrored, relay).read_all(into := union(), order)
    assert taken == whole[:end]
    assert into.end.lsn == end


@given(st.lists(st.integers(0, 1), max_size=20), st.integers(0, 9), st.integers(1, 9))
def test_what_a_stale_sequencer_left_is_never_taken(order: list[int], at: int, length: int) -> None:
    """Whoever opens an epoch first wins; the other's records may even have the next lsn."""
    base = history(10)
    fork = end_of(base)
    winner = history(12, fork, 2, "winner")
    for epoch in (1, 2):
        loser = history(length + 1, fork, epoch, "loser")
        topic = [*base, *winner[: at + 1], *loser, *winner[at + 1 :]]
        assert Topics(topic, []).read_all(union(), order) == base + winner


def test_a_record_of_a_lower_epoch_is_not_taken_though_it_would_continue_the_log() -> None:
    """The chain keeps a fork out; this keeps out whoever goes on in an epoch that is over."""
    base = history(3, epoch=2)
    over = history(1, end_of(base), 1, "over")
    after = history(2, end_of(base), 2, "after")
    assert Topics([*base, *over, *after], []).read_all(union(), []) == base + after


def test_nothing_is_taken_from_a_hole_on_and_it_is_read_again_once_it_is_filled() -> None:
    whole = history(30)
    topics = Topics([*whole[:5], *whole[10:]], whole[5:10])
    into = union()
    for _ in range(6):
        topics.read(into, 0)
    assert (into.end.lsn, into.sources[0].safe) == (5, 5)
    topics.read(into, 1)
    assert into.end.lsn == 10
    for _ in range(6):
        topics.read(into, 0)
    assert into.end.lsn == 30


def test_every_hint_is_a_place_to_go_on_from() -> None:
    whole = history(60)
    topics = Topics([*whole[:20], *whole[30:]], whole[15:40])
    topics.read_all(into := union(step_bytes=150), [])
    assert into.end.lsn == 60
    hints = into.index.kept()
    assert len(hints) > 4
    for hint in hints:
        again = parse_hint(hint.dump())
        assert again == hint
        fresh = Union(0, again, Cuts(), Index(again))
        assert topics.read_all(fresh, []) == whole[hint.end.lsn :]


def test_what_was_cut_does_not_come_back_and_what_came_instead_stays() -> None:
    whole = history(20)
    instead = history(5, end_of(whole[:12]), 3, "instead")
    cuts = parse_cuts(Cuts().cut(12, relay_end=8).dump())
    topics = Topics(whole, [*whole[10:18], *instead])
    assert topics.read_all(union(cuts), []) == whole[:12] + instead
    assert cuts.cut(5, 13).relay == [(13, 5)], "the lower cut says all that the higher one said"
    assert cuts.cut(15, 13).relay == [(8, 12), (13, 15)]
    assert cuts.cut(15, 13).above == 12
    assert cuts.from_lsn(13) == Cuts()
    assert cuts.from_lsn(12) == cuts


def test_an_index_finds_the_last_hint_before_an_lsn() -> None:
    index = Index(beginning(2), 10)
    for lsn in (10, 20, 30):
        index.add(Hint(LogEnd(lsn, bytes(16), 1), (lsn, 0), 0, lsn * 10))
    index.add(Hint(LogEnd(31, bytes(16), 1), (31, 0), 0, 301))  # says hardly more
    assert [index.before(lsn).end.lsn for lsn in (1, 10, 11, 20, 21, 99)] == [0, 0, 10, 10, 20, 30]
    assert index.whole([25, 0]) == index.before(21)
    index.cut_above(20)
    assert index.last.end.lsn == 20
    index.cut_below(15)
    assert index.first.end.lsn == 10
    assert index.whole([5, 0]) is None


def test_a_plan_says_what_differs_and_leaves_out_what_is_missing() -> None:
    wanted = Topic("im.log.1", 4, 3, {"retention.ms": "-1", "min.insync.replicas": "2"})
    now = Topic("im.log.1", 4, 1, {"retention.ms": "604800000", "min.insync.replicas": "2"})
    assert plan([wanted], {}) == []
    assert plan([wanted], {"im.log.1": wanted}) == []
    found = plan([wanted], {"im.log.1": now})
    assert found == [
        Difference("im.log.1", "replication.factor", "1", "3"),
        Difference("im.log.1", "retention.ms", "604800000", "-1"),
    ]
    assert str(found[1]) == "im.log.1: retention.ms is 604800000, wanted -1"


def test_a_gap_counts_once_it_has_stood_still_for_longer_than_the_bound() -> None:
    gaps = Gaps(3.0)
    assert gaps.look({0: 5, 1: 9}, {0: 10, 1: 9}, 0.0) == ({}, False)
    assert gaps.look({0: 6, 1: 9}, {0: 20, 1: 9}, 2.0) == ({}, True)  # it moves
    assert gaps.look({0: 6, 1: 9}, {0: 20, 1: 11}, 4.9) == ({}, False)
    assert gaps.look({0: 6, 1: 9}, {0: 20, 1: 11}, 5.1) == ({0: 20}, False)
    assert gaps.look({0: 20, 1: 11}, {0: 20, 1: 11}, 6.0) == ({}, True)
