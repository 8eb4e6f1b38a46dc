"""Tails of conversations in memory: without holes, bounded, and as long as they are used."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from imcore.convert import origin_pb
from imcore.proto import client_pb2 as pb
from imcore.words import Origin, Vector
from services.im.recent import Page, Recent

FRA, IAD = Origin("fra", 1), Origin("iad", 1)
ORIGINS = (FRA, IAD)
NAME = "d:ann:bob"
BYTES = 1 << 20


def entry(origin: Origin, seq: int, hlc: int, content: bytes = b"text") -> pb.Entry:
    made = pb.Entry(origin=origin_pb(origin), seq=seq, hlc=hlc)
    made.message.content = content
    return made


def fold(recent: Recent, heads: Vector, origin: Origin, hlcs: Iterable[int], name: str = NAME) -> (
    list[pb.Entry]
):  # fmt: skip
    seq = heads.get(origin, 0)
    built = [entry(origin, seq + n, hlc) for n, hlc in enumerate(hlcs, 1)]
    heads[origin] = seq + len(built)
    recent.folded(name, origin, built, heads, 1)
    return built


def page(recent: Recent, have: Vector, heads: Vector, limit: int = 200, name: str = NAME) -> (
    Page | None
):  # fmt: skip
    return recent.page(name, have, heads, limit, BYTES, 1)


def seqs(found: Page | None) -> list[int]:
    assert found is not None
    return [e.seq for e in found[0]]


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_what_it_answers_is_what_is_there(data: st.DataObject) -> None:
    """Batches of two origins in any order, HLCs rising within each; tails forgotten meanwhile."""
    recent, heads = Recent(entries_max=12), Vector()
    clocks = dict.fromkeys(ORIGINS, 0)
    every: list[pb.Entry] = []
    answered = 0
    for _ in range(data.draw(st.integers(1, 12))):
        if data.draw(st.integers(0, 5)) == 0:
            recent.drop(NAME)
        origin = data.draw(st.sampled_from(ORIGINS))
        hlcs = []
        for step in data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=6)):
            clocks[origin] += step
            hlcs.append(clocks[origin])
        every += fold(recent, heads, origin, hlcs)
        have = {o: data.draw(st.integers(0, heads.get(o, 0))) for o in ORIGINS}
        limit = data.draw(st.integers(1, 20))
        found = page(recent, have, heads, limit)
        if found is None:
            continue
        answered += 1
        wanted = [e for e in every if e.seq > have[Origin(e.origin.idc, e.origin.incarnation)]]
        wanted.sort(key=lambda e: (e.hlc, e.origin.idc, e.seq))
        assert found == (wanted[:limit], len(wanted) > limit)
    assert answered or len(every) > 0


def test_only_whoever_has_what_lies_below_is_answered() -> None:
    recent, heads = Recent(), {FRA: 7, IAD: 3}
    fold(recent, heads, FRA, [10, 20])
    assert seqs(page(recent, {FRA: 7, IAD: 3}, heads)) == [8, 9]
    assert seqs(page(recent, {FRA: 9, IAD: 9}, heads)) == []
    assert page(recent, {FRA: 6, IAD: 3}, heads) is None
    assert page(recent, {FRA: 7, IAD: 2}, heads) is None
    assert page(recent, {FRA: 7}, heads) is None
    assert page(recent, {FRA: 7, IAD: 3}, heads | {IAD: 4}) is None  # it knows less than is shown


def test_a_hole_a_new_region_key_and_what_has_moved_cost_the_tail() -> None:
    recent, heads = Recent(), Vector()
    fold(recent, heads, FRA, [1, 2])
    recent.folded(NAME, FRA, [entry(FRA, 4, 9)], {FRA: 4}, 1)
    assert page(recent, {FRA: 2}, {FRA: 4}) is None and recent.bytes == 0
    heads = {FRA: 4}
    fold(recent, heads, FRA, [10])
    assert seqs(page(recent, {FRA: 4}, heads)) == [5]
    assert recent.page(NAME, {FRA: 4}, heads, 200, BYTES, 2) is None
    recent.folded(NAME, FRA, [entry(FRA, 6, 11)], {FRA: 6}, 2)
    found = recent.page(NAME, {FRA: 5}, {FRA: 6}, 200, BYTES, 2)
    assert seqs(found) == [6]
    recent.drop(NAME)
    assert recent.bytes == 0 and len(recent) == 0


def test_pages_are_bounded_in_bytes_and_make_progress() -> None:
    recent, heads = Recent(), Vector()
    fold(recent, heads, FRA, range(1, 11))
    found = recent.page(NAME, {}, heads, 200, 1, 1)
    assert found is not None and found == (found[0][:1], True)
    found = recent.page(NAME, {}, heads, 200, 1500, 1)
    assert found is not None and 1 < len(found[0]) < 10 and found[1]


def test_a_tail_is_bounded_and_keeps_the_newest() -> None:
    recent, heads = Recent(entries_max=40), Vector()
    for hlc in range(1, 101):
        fold(recent, heads, FRA, [hlc])
    have = {FRA: 75}
    assert seqs(page(recent, have, heads)) == list(range(76, 101))
    assert page(recent, {FRA: 50}, heads) is None


def test_the_tail_that_nobody_pulled_for_longest_makes_room() -> None:
    recent = Recent(room_bytes=20_000)
    names = [f"d:a{n}:b" for n in range(100)]
    heads: dict[str, Vector] = {name: {} for name in names}
    for name in names:
        fold(recent, heads[name], FRA, [1, 2], name)
        assert page(recent, {FRA: 1}, heads[names[0]], name=names[0]) is not None
        assert recent.bytes <= 20_000
    there = [name for name in names if page(recent, {}, heads[name], name=name) is not None]
    assert 10 < len(there) < 60
    assert there == [names[0], *names[-len(there) + 1 :]]
    for name in names:
        recent.drop(name)
    assert recent.bytes == 0 and len(recent) == 0


def test_what_was_read_is_kept() -> None:
    recent, heads = Recent(), {FRA: 2, IAD: 1}
    built = [entry(FRA, 2, 5), entry(IAD, 1, 6)]
    recent.read(NAME, {FRA: 1}, built, heads, 1)
    assert seqs(page(recent, {FRA: 1}, heads)) == [2, 1]
    assert page(recent, {}, heads) is None
    fold(recent, heads, FRA, [9])
    assert seqs(page(recent, {FRA: 1}, heads)) == [2, 1, 3]
    recent.read(NAME, {FRA: 2}, [entry(FRA, 3, 9)], heads, 1)  # less than what is there
    assert seqs(page(recent, {FRA: 1}, heads)) == [2, 1, 3]
    stale = recent.page(NAME, {FRA: 3}, {FRA: 4, IAD: 1}, 200, BYTES, 1)
    recent.read(
        NAME, {FRA: 3, IAD: 1}, [entry(FRA, 4, 12)], {FRA: 4, IAD: 1}, 1
    )  # that replaces it
    assert stale is None and seqs(page(recent, {FRA: 3, IAD: 1}, {FRA: 4, IAD: 1})) == [4]
    deeper = [entry(FRA, 1, 4), *built, entry(FRA, 3, 9)]
    recent.read(NAME, {}, deeper, heads, 1)
    assert seqs(page(recent, {}, heads)) == [1, 2, 1, 3]
