"""The outbox against a model of an IDC's sequencer: nothing stuck, nothing twice, nothing lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imcore.convert import attested_pb, place_of
from imcore.proto import client_pb2 as pb
from imcore.words import Attested, ClientKey, Origin, Place
from services.sdk.core.outbox import (
    Change,
    Delete,
    Entry,
    Flight,
    Outbox,
    Put,
    PutLane,
    PutRow,
    Step,
)
from services.sdk.errors import OutboxFull

FRA, IAD = Origin("fra", 1), Origin("iad", 1)
CHAT = "d:ann:bob"


def ids() -> Callable[[], str]:
    numbers = count(2)
    return lambda: f"box{next(numbers)}"


def outbox(**options) -> Outbox:
    return Outbox("box1", ids(), **options)


def compose(box: Outbox, *contents: bytes, conversation: str = CHAT) -> list[Entry]:
    """Composed and durable in the store."""
    entries = [box.compose(conversation, content, 0) for content in contents]
    store(box)
    return entries


def store(box: Outbox) -> list[Change]:
    changes, entries = box.take_batch()
    box.written(entries)
    return changes


def ack(entry: Entry, origin=FRA, hlc=10, outcome=pb.SendAck.ACCEPTED, lsn=1, **more) -> pb.SendAck:
    lane = entry.lane
    key = ClientKey("ann", "d1", lane.outbox, lane.conversation, entry.cid)
    place = Place(hlc, origin, entry.cid)
    placed = attested_pb(Attested(key, b"", origin, entry.cid, place, 1, b"mac"))
    return pb.SendAck(outcome=outcome, placed=placed, lsn=lsn, **more)


def want(cid: int) -> pb.SendAck:
    return pb.SendAck(outcome=pb.SendAck.WANT, want=cid)


def proven(box: Outbox) -> None:
    """A first message through, so that the window is open."""
    (entry,) = compose(box, b"first")
    box.offers()
    box.answered(entry, ack(entry, replicated=True), FRA)


def test_cids_count_from_one_in_each_conversation():
    box = outbox()
    entries = compose(box, b"a", b"b") + compose(box, b"c", conversation="d:ann:eve")
    assert [(e.lane.conversation, e.cid) for e in entries] == [
        (CHAT, 1),
        (CHAT, 2),
        ("d:ann:eve", 1),
    ]


def test_nothing_is_offered_before_the_store_has_it():
    box = outbox()
    entry = box.compose(CHAT, b"a", 0)
    assert box.offers() == []
    changes, entries = box.take_batch()
    assert any(isinstance(change, Put) and change.cid == 1 for change in changes)
    assert any(isinstance(change, PutLane) and change.next_cid == 2 for change in changes)
    box.written(entries)
    assert box.offers() == [entry]


def test_one_in_flight_until_the_lane_is_proven_then_a_window_in_order():
    box = outbox(window=3)
    entries = compose(box, *(b"%d" % n for n in range(6)))
    assert box.offers() == entries[:1]
    assert box.offers() == []
    box.answered(entries[0], ack(entries[0]), FRA)
    assert box.offers() == entries[1:4]
    box.answered(entries[2], ack(entries[2]), FRA)
    assert box.offers() == entries[4:5]


def test_the_floor_is_the_lowest_cid_that_is_not_safe():
    box = outbox()
    proven(box)
    two, three, four = compose(box, b"2", b"3", b"4")
    box.offers()
    for entry in (two, three, four):
        box.answered(entry, ack(entry, lsn=entry.cid), FRA)
    assert two.lane.floor() == 2
    box.replicated(FRA, 0, 3)
    assert two.lane.floor() == 4
    assert (three.step, four.step) == (Step.REPLICATED, Step.ACKED)
    assert len(box) == 1


def test_a_replicated_entry_stays_while_one_below_it_is_not():
    """An IDC that has neither would ask for it: without it the lane is stuck for ever."""
    box = outbox()
    proven(box)
    two, three = compose(box, b"2", b"3")
    box.offers()
    box.answered(two, ack(two), FRA)
    assert box.answered(three, ack(three, replicated=True), FRA).replicated == (three,)
    assert three.step is Step.REPLICATED and len(box) == 2
    box.connected()
    assert box.offers() == [two]
    box.answered(two, ack(two, IAD), IAD)
    assert box.offers() == [three]
    box.answered(three, want(3), IAD)
    assert box.offers() == [three]
    box.answered(three, ack(three, IAD), IAD)
    box.replicated(IAD, 0, 1)
    assert len(box) == 0


def test_known_where_another_idc_accepted_it_means_replicated():
    box = outbox()
    (entry,) = compose(box, b"a")
    box.offers()
    box.answered(entry, ack(entry, FRA), FRA)
    box.connected()
    assert box.offers() == [entry]
    answer = box.answered(entry, ack(entry, FRA, outcome=pb.SendAck.KNOWN, lsn=0), IAD)
    assert answer.replicated == (entry,) and not answer.acked and len(box) == 0


def test_known_in_the_idc_that_accepted_it_does_not():
    box = outbox()
    (entry,) = compose(box, b"a")
    box.offers()
    box.answered(entry, ack(entry, FRA), FRA)
    box.connected()
    box.offers()
    box.answered(entry, ack(entry, FRA, outcome=pb.SendAck.KNOWN), FRA)
    assert len(box) == 1


def test_everything_is_offered_again_with_its_place_after_a_move():
    box = outbox()
    proven(box)
    entries = compose(box, b"2", b"3", b"4")
    box.offers()
    box.answered(entries[0], ack(entries[0]), FRA)
    box.connected()
    assert box.offers() == entries[:1]
    assert entries[0].placed is not None and entries[1].tried
    box.answered(entries[0], ack(entries[0], IAD, hlc=10), IAD)
    assert box.offers() == entries[1:]


def test_the_smallest_place_of_all_acks_is_kept():
    box = outbox()
    (entry,) = compose(box, b"a")
    for hlc in (20, 10, 30):
        box.connected()
        box.offers()
        box.answered(entry, ack(entry, hlc=hlc), FRA)
    assert entry.placed is not None and entry.placed.place.hlc == 10


def test_the_wanted_cid_goes_first_and_alone():
    box = outbox()
    proven(box)
    two, three, four = compose(box, b"2", b"3", b"4")
    box.offers()
    box.answered(three, want(2), FRA)
    assert box.offers() == []  # cid 2 is on its way: what it says decides
    box.answered(two, ack(two), FRA)
    assert box.offers() == [three]
    box.answered(four, want(3), FRA)
    box.answered(three, ack(three), FRA)
    assert box.offers() == [four]


def test_a_want_for_what_was_answered_offers_it_again():
    box = outbox()
    proven(box)
    two, three = compose(box, b"2", b"3")
    box.offers()
    box.answered(two, ack(two), FRA)
    box.answered(three, want(2), FRA)
    assert box.offers() == [two]
    box.answered(two, ack(two), FRA)
    assert box.offers() == [three]


def test_a_want_for_a_cid_that_is_nowhere_pauses_the_lane():
    box = outbox()
    proven(box)
    (two,) = compose(box, b"2")
    box.offers()
    assert box.answered(two, want(1), FRA).hold
    assert box.offers() == []
    box.release(two.lane)
    assert box.offers() == [two]


def test_a_conflict_opens_a_new_outbox_id():
    box = outbox()
    one, two = compose(box, b"1", b"2")
    box.offers()
    box.conflict(one)
    assert box.offers() == []  # the new keys are not in the store yet
    changes = store(box)
    assert Delete(CHAT, "box1", 1) in changes and Delete(CHAT, "box1", 2) in changes
    assert [(e.lane.outbox, e.cid) for e in (one, two)] == [("box2", 1), ("box2", 2)]
    assert box.offers() == [one]
    box.answered(one, ack(one), FRA)
    assert box.offers() == [two]
    assert len(box) == 2


def test_a_conflict_leaves_a_cid_of_unknown_outcome_under_its_key():
    """It may have been accepted: under another key it would be shown twice."""
    box = outbox()
    proven(box)
    two, three, four = compose(box, b"2", b"3", b"4")
    box.offers()
    box.disconnected()
    box.connected()
    assert box.offers() == [two]
    box.conflict(two)
    store(box)
    assert (two.lane.outbox, three.lane.outbox) == ("box2", "box1")
    assert box.offers() == [three]  # the older lane first
    box.answered(three, ack(three), FRA)
    assert box.offers() == [four]
    box.answered(four, ack(four), FRA)
    assert box.offers() == [two]


def test_a_refused_message_does_not_stop_the_next():
    box = outbox()
    one, two = compose(box, b"1", b"2")
    box.offers()
    assert box.refused(one)
    assert box.offers() == [two] and two.lane.floor() == 2


def test_a_refusal_above_an_unsafe_message_continues_in_another_lane():
    """The IDC goes on wanting the refused cid as long as the floor lies below it."""
    box = outbox()
    proven(box)
    two, three, four = compose(box, b"2", b"3", b"4")
    box.offers()
    box.answered(two, ack(two), FRA)
    assert box.refused(three)
    assert four.lane is two.lane  # it is in flight: it may yet turn out to be taken
    box.answered(four, want(3), FRA)
    store(box)
    assert (four.lane.outbox, four.cid) == ("box2", 1)
    assert box.offers() == [four]
    (five,) = compose(box, b"5")
    assert five.lane is four.lane


def test_a_refusal_in_the_middle_of_a_burst_keeps_the_order():
    """What is in flight then is turned away one by one; what was never offered must not overtake
    it, nor what is composed meanwhile."""
    box = outbox(window=32)
    proven(box)
    entries = compose(box, *(b"%d" % n for n in range(1, 61)))
    assert box.offers() == entries[:32]
    for entry in entries[:9]:
        box.answered(entry, ack(entry, lsn=entry.cid), FRA)
    box.offers()
    assert box.refused(entries[9])
    store(box)
    entries += compose(box, b"61")
    in_flight = [entry for entry in entries if entry.flight is Flight.OFFERED]
    assert in_flight[0] is entries[10] and len(in_flight) > 20
    for entry in reversed(in_flight):
        assert box.offers() == []
        box.answered(entry, want(11), FRA)
    store(box)
    entries += compose(box, b"62")
    rest = entries[10:]
    assert [(e.lane.outbox, e.cid) for e in rest] == [("box2", n + 1) for n in range(len(rest))]
    taken: list[Entry] = []
    while len(taken) < len(rest):
        for entry in box.offers():
            taken.append(entry)
            box.answered(entry, ack(entry, lsn=100 + entry.cid), FRA)
    assert taken == rest


def test_what_must_keep_its_key_keeps_those_before_it_where_they_are():
    """The second was turned away, the third may have been accepted: were the second to move, it
    would come after it."""
    box = outbox(window=4)
    proven(box)
    kept, bad, second, third, fourth = compose(box, b"0", b"bad", b"2", b"3", b"4")
    box.offers()
    box.answered(kept, ack(kept, lsn=2), FRA)
    box.answered(second, want(3), FRA)
    assert box.refused(bad)
    box.disconnected()
    store(box)
    assert second.lane is third.lane is kept.lane and fourth.lane.outbox == "box2"
    box.connected()
    taken: list[Entry] = []
    while offers := box.offers():
        taken += offers
        for entry in offers:
            box.answered(entry, ack(entry, lsn=9), FRA)
    assert taken == [kept, second, third, fourth]


def test_what_was_acked_is_never_given_up():
    box = outbox()
    (one,) = compose(box, b"1")
    box.offers()
    box.answered(one, ack(one), FRA)
    box.connected()
    box.offers()
    assert not box.refused(one)
    assert len(box) == 1


def test_a_full_outbox_refuses_visibly():
    box = outbox(entries_max=2)
    compose(box, b"1", b"2")
    with pytest.raises(OutboxFull):
        box.compose(CHAT, b"3", 0)
    small = outbox(bytes_max=3)
    compose(small, b"12")
    with pytest.raises(OutboxFull):
        small.compose(CHAT, b"34", 0)


def test_a_store_that_cannot_write_gives_the_cid_back():
    box = outbox()
    box.compose(CHAT, b"1", 0)
    _, entries = box.take_batch()
    box.unwritable(entries)
    assert len(box) == 0
    (again,) = compose(box, b"2")
    assert again.cid == 1 and box.offers() == [again]


def test_a_delayed_lane_waits_for_its_release():
    box = outbox()
    one, _ = compose(box, b"1", b"2")
    box.offers()
    box.delayed(one)
    assert box.offers() == []
    box.release(one.lane)
    assert box.offers() == [one]


def test_what_the_store_held_is_offered_again():
    box = outbox()
    one, two = compose(box, b"1", b"2")
    box.offers()
    box.answered(one, ack(one), FRA)
    again = outbox()
    rows = [
        Put(CHAT, "box1", e.cid, e.content, 0, 0, placed, False)
        for e, placed in ((one, one.placed.SerializeToString()), (two, b""))  # type: ignore[union-attr]
    ]
    again.load([PutLane(CHAT, "box1", 1, 3, False)], rows)
    again.connected()
    (first,) = again.offers()
    assert first.content == b"1" and first.placed == one.placed
    (three,) = compose(again, b"3")
    assert three.cid == 3


def test_an_acked_message_whose_notice_was_lost_is_offered_again():
    box = outbox()
    (one,) = compose(box, b"1")
    box.offers()
    box.answered(one, ack(one), FRA)
    assert box.offers() == []
    assert box.refresh() == 1
    assert box.offers() == [one]


# ------------------------------------------------------------------ against a model of IDCs


class ModelIdc:
    """Takes the lowest cid at or above the floor that it does not know (rule 11)."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.log: list[tuple[tuple[str, int], bytes, Place]] = []
        self.known: dict[tuple[str, int], tuple[bytes, Place, Origin]] = {}
        self.mirrored = 0

    def send(self, outbox_id, cid, floor, content, placed, hlc) -> pb.SendAck:
        key = (outbox_id, cid)
        found = self.known.get(key)
        if found is not None:
            assert found[0] == content
            lsn = len(self.log) if found[2] == self.origin else 0
            return self._ack(pb.SendAck.KNOWN, key, found[1], found[2], lsn)
        wanted = floor
        while (outbox_id, wanted) in self.known:
            wanted += 1
        if cid != wanted:
            return want(wanted)
        place = placed or Place(hlc, self.origin, len(self.log) + 1)
        self.log.append((key, content, place))
        self.known[key] = (content, place, self.origin)
        return self._ack(pb.SendAck.ACCEPTED, key, place, self.origin, len(self.log))

    @staticmethod
    def _ack(outcome, key, place, origin, lsn) -> pb.SendAck:
        name = ClientKey("ann", "d1", key[0], CHAT, key[1])
        placed = attested_pb(Attested(name, b"", origin, place.seq, place, 1, b""))
        return pb.SendAck(outcome=outcome, placed=placed, lsn=lsn)


actions = st.lists(
    st.sampled_from(
        ["compose", "compose", "answer", "answer", "answer", "lose", "move", "mirror", "notify"]
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(actions, st.integers(1, 4))
# The last message is replicated before its second offer is answered.
@example(["compose"] * 3 + ["answer"] * 3 + ["move"] * 2 + ["answer"], 2)
def test_random_moves_lost_answers_and_mirrors(steps, window):
    """At the end every message is in both IDCs, once, and in the order it was sent."""
    idcs = [ModelIdc(FRA), ModelIdc(IAD)]
    box = outbox(window=window)
    box.connected()
    at, sent, clock = 0, 0, 0
    waiting: list[Entry] = []

    def answer(lost: bool) -> None:
        nonlocal clock
        waiting.extend(box.offers())
        if not waiting:
            return
        entry, clock = waiting.pop(0), clock + 1
        placed = entry.placed
        place = None
        if placed is not None:
            p = placed.place
            place = Place(p.hlc, Origin(p.origin.idc, p.origin.incarnation), p.seq)
        idc = idcs[at]
        reply = idc.send(
            entry.lane.outbox, entry.cid, entry.lane.floor(), entry.content, place, clock
        )
        if not lost:
            box.answered(entry, reply, idc.origin)
            store(box)
        else:
            reconnect()

    def reconnect() -> None:
        waiting.clear()
        box.connected()

    def mirror() -> None:
        for source, target in ((0, 1), (1, 0)):
            for key, content, place in idcs[source].log[idcs[source].mirrored :]:
                target_known = idcs[target].known
                old = target_known.get(key)
                if old is None or place < old[1]:
                    target_known[key] = (content, place, idcs[source].origin)
            idcs[source].mirrored = len(idcs[source].log)

    for step in steps:
        if step == "compose":
            sent += 1
            compose(box, b"%d" % sent)
        elif step == "move":
            at = 1 - at
            reconnect()
        elif step == "mirror":
            mirror()
        elif step == "notify":
            box.replicated(idcs[at].origin, 0, idcs[at].mirrored)
        else:
            answer(step == "lose")
    for _ in range(400):
        if not len(box) and not waiting:
            break
        answer(False)
        mirror()
        box.replicated(idcs[at].origin, 0, idcs[at].mirrored)
    assert len(box) == 0, "stuck"
    assert box.bytes == 0 and box.in_flight == 0
    for idc in idcs:
        contents = [content for content, *_ in idc.known.values()]
        assert sorted(contents) == sorted(b"%d" % n for n in range(1, sent + 1))
        placed = sorted(idc.known.items(), key=lambda item: item[1][1])
        assert [cid for (_, cid), _ in placed] == sorted(cid for _, cid in idc.known)


TOO_LARGE = b"too large"
OUTCOMES = {
    "compose": 6, "refusable": 1, "disk": 0.3, "offer": 5, "answer": 8, "later": 0.3, "release": 2,
    "lose": 0.5, "move": 0.3, "mirror": 0.3, "notify": 0.3,
}  # fmt: skip


@pytest.mark.parametrize("seed", range(600))
def test_random_outcomes_keep_the_senders_order(seed):
    """Answers come in any order, some are refusals, some messages cannot be written. At the end
    what was taken stands in both IDCs once, in the order in which it was composed."""
    rng = random.Random(seed)
    steps = rng.choices(list(OUTCOMES), list(OUTCOMES.values()), k=rng.randint(10, 150))
    idcs = [ModelIdc(FRA), ModelIdc(IAD)]
    box = outbox(window=rng.randint(1, 8))
    box.connected()
    at, sent, clock = 0, 0, 0
    gone: set[bytes] = set()  # told to the sender: not sent
    replies: list[tuple[Entry, pb.SendAck | None]] = []  # None: refused

    def offer() -> None:
        nonlocal clock
        for entry in box.offers():
            clock += 1
            reply = None
            if TOO_LARGE not in entry.content:
                place = None if entry.placed is None else place_of(entry.placed.place)
                reply = idcs[at].send(
                    entry.lane.outbox, entry.cid, entry.lane.floor(), entry.content, place, clock
                )
            replies.append((entry, reply))

    def answer(first: bool, later: bool = False) -> None:
        if not replies:
            return
        entry, reply = replies.pop(0 if first else rng.randrange(len(replies)))
        if later:
            box.delayed(entry)
        elif reply is None:
            if box.refused(entry):
                gone.add(entry.content)
        else:
            box.answered(entry, reply, idcs[at].origin)
        store(box)

    def reconnect(to: int) -> None:
        nonlocal at
        at = to
        replies.clear()
        box.connected()
        store(box)

    def mirror() -> None:
        for source, target in ((0, 1), (1, 0)):
            for key, content, place in idcs[source].log[idcs[source].mirrored :]:
                old = idcs[target].known.get(key)
                if old is None or place < old[1]:
                    idcs[target].known[key] = (content, place, idcs[source].origin)
            idcs[source].mirrored = len(idcs[source].log)

    def notify() -> None:
        box.replicated(idcs[at].origin, 0, idcs[at].mirrored)
        store(box)

    def release() -> None:
        for lanes in box._lanes.values():
            for lane in lanes:
                box.release(lane)

    for step in steps:
        if step in ("compose", "refusable", "disk"):
            sent += 1
            content = b"%d" % sent + (TOO_LARGE if step == "refusable" else b"")
            entry = box.compose(CHAT, content, 0)
            if step == "disk":
                changes, entries = box.take_batch()
                box.unwritable(entries)
                box.unwritten(changes)
                gone.update(e.content for e in entries)
                assert entry in entries
            elif rng.random() < 0.7:
                store(box)  # else it is written with the next
        elif step == "offer":
            offer()
        elif step in ("answer", "later"):
            answer(False, step == "later")
        elif step in ("lose", "move"):
            reconnect(at if step == "lose" else 1 - at)
        elif step == "mirror":
            mirror()
        elif step == "notify":
            notify()
        else:
            release()
    store(box)
    for _ in range(1_000):
        if not len(box):
            break
        offer()
        answer(True)
        if not replies:
            mirror()
            notify()
            release()
    assert len(box) == 0, "stuck"
    assert box.bytes == 0 and box.in_flight == 0
    wanted = [b"%d" % n for n in range(1, sent + 1) if b"%d" % n not in gone]
    wanted = [content for content in wanted if content + TOO_LARGE not in gone]
    for idc in idcs:
        taken = sorted(idc.known.values(), key=lambda item: item[1])
        assert [content for content, *_ in taken] == wanted


def test_flight_and_step_are_what_the_application_sees():
    box = outbox()
    entry = box.compose(CHAT, b"1", 0)
    assert (entry.flight, entry.step) == (Flight.WRITING, Step.COMPOSED)
    store(box)
    box.offers()
    steps = [entry.step]
    box.answered(entry, ack(entry), FRA)
    steps.append(entry.step)
    assert steps == [Step.IN_FLIGHT, Step.ACKED]


def test_what_a_message_refers_to_counts_is_stored_and_goes_along_under_another_key():
    box = outbox(bytes_max=10)
    entry = box.compose(CHAT, b"12345", 0, refs=b"678")
    with pytest.raises(OutboxFull):
        box.compose(CHAT, b"9", 0, refs=b"xy")
    [put] = [change for change in store(box) if isinstance(change, Put)]
    assert put.refs == b"678" and box.bytes == 8
    again = outbox()
    again.load([PutLane(CHAT, "box1", 1, 2, False)], [put])
    again.connected()
    (entry,) = again.offers()
    assert entry.refs == b"678" and again.bytes == 8
    again.conflict(entry)
    [moved] = [change for change in store(again) if isinstance(change, Put)]
    assert moved.outbox != "box1" and moved.refs == b"678"
    (entry,) = again.offers()
    again.answered(entry, ack(entry, replicated=True), FRA)
    assert again.bytes == 0


def test_a_row_is_written_with_its_message_and_after_a_failure_as_it_is_by_then() -> None:
    rows = {"out": b"1"}
    box = outbox(row=rows.__getitem__)
    box.put_row("out")
    box.compose(CHAT, b"sealed", 0, encrypted=True)
    changes, entries = box.take_batch()
    assert PutRow("out", b"1") in changes
    [put] = [change for change in changes if isinstance(change, Put)]
    assert put.encrypted
    rows["out"] = b"2"
    box.put_row("out")
    later, more = box.take_batch()
    assert later == [PutRow("out", b"2")] and not more
    rows["out"] = b"3"
    box.unwritable(entries)  # the disk was full for the first of them
    box.unwritten(changes)
    assert PutRow("out", b"3") in box.take_batch()[0]
