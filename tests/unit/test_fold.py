"""Folds are CRDTs (rule 15): replicas agree whatever order the origins' ops came in."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imcore.attest import RegionKeys, content_hash
from imcore.convert import attested_pb, key_pb, place_pb
from imcore.hlc import Hlc
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import Attested, ClientKey, Lane, Origin, Place
from services.im import entries, keys, pair
from services.im.conversation import Conversation
from services.im.fold import (
    Effects,
    Entry,
    Fold,
    MissingRow,
    Rows,
    Taken,
    conversations_of,
    fits,
    needs,
)
from services.im.sequencer import Accept, Joined, Known, Sequencer, Submission, Want
from services.ports import Record

A, B = Origin("fra", 1), Origin("iad", 1)
CONVERSATION = "d:ann:bob"


class Replica:
    """The KV and the fold of one IDC, in memory."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.timeline = 0
        self.conversations: dict[str, Conversation] = {}

    def fold(self, origin: Origin, *ops: oplog.Op) -> Effects:
        for name in conversations_of(ops):
            self.conversations.setdefault(name, Conversation(name))
        rows = Rows({key: self.rows.get(key) for key in needs(0, ops)})
        self.timeline += 1
        taken = [Taken(Record(0, 1, 0, b"", op.SerializeToString()), op) for op in ops]
        effects = Fold(0).batch(taken, origin, self.conversations, rows, self.timeline)
        self.rows.update(rows.puts)
        for key in rows.deletes:
            self.rows.pop(key, None)
        return effects

    def replicated(self) -> dict[bytes, bytes]:
        return {k: v for k, v in self.rows.items() if k[2:3] in keys.REPLICATED_TABLES}

    def order(self) -> list[tuple[Origin, int]]:
        prefix = keys.order_prefix(0, CONVERSATION)
        found = sorted(key for key in self.rows if key.startswith(prefix))
        return [keys.identity_from(self.rows[key]) for key in found]


def message(seq: int, hlc: int, cid: int, place: Place | None = None, uid: str = "ann") -> oplog.Op:
    op = oplog.Op(hlc=hlc, conversation=CONVERSATION, seq=seq)
    op.message.key.CopyFrom(key_pb(ClientKey(uid, "phone", "o1", CONVERSATION, cid)))
    op.message.content = f"{uid}-{cid}".encode()
    op.message.content_hash = content_hash(op.message.content)
    if place is not None:
        op.message.place.CopyFrom(place_pb(place))
    return op


def test_a_second_copy_of_a_client_key_is_an_alias_and_stands_once() -> None:
    replica = Replica()
    replica.fold(A, message(1, 100, 1))
    effects = replica.fold(B, message(1, 200, 1, Place(100, A, 1)))
    assert replica.order() == [(A, 1)]
    assert [e.alias for e in effects.entries[CONVERSATION]] == [True]


def test_the_copy_with_the_smaller_place_wins_and_the_class_moves() -> None:
    replica = Replica()
    replica.fold(B, message(1, 200, 1), message(2, 201, 2))
    effects = replica.fold(A, message(1, 100, 2))
    assert replica.order() == [(A, 1), (B, 1)]
    assert effects.entries[CONVERSATION][0].place == Place(100, A, 1)


def test_an_answers_claim_moves_its_question_even_before_the_question_comes() -> None:
    question = ClientKey("ann", "phone", "o1", CONVERSATION, 1)
    place = Place(50, B, 7)
    claim = Attested(question, b"h", B, 7, place, 1, b"m")
    answer = message(1, 90, 1, uid="bob")
    answer.message.claims.append(attested_pb(claim))
    early, late = Replica(), Replica()
    early.fold(A, answer)
    early.fold(B, message(1, 300, 1))
    late.fold(B, message(1, 300, 1))
    late.fold(A, answer)
    assert early.order() == late.order() == [(B, 1), (A, 1)]
    assert early.replicated() == late.replicated()


def test_reading_a_row_that_was_not_asked_for_is_an_error() -> None:
    with pytest.raises(MissingRow):
        Rows({}).get(b"x")


def _random_history(rng: random.Random) -> dict[Origin, list[oplog.Op]]:
    """Per origin, ops as sequencers would log them, resends and place ops among them."""
    history: dict[Origin, list[oplog.Op]] = {A: [], B: []}
    seq = {A: 0, B: 0}
    for hlc in range(100, 100 + rng.randint(3, 25)):
        origin = rng.choice([A, B])
        uid = rng.choice(["ann", "bob"])
        place = Place(rng.randint(50, hlc), rng.choice([A, B]), rng.randint(1, 9))
        seq[origin] += 1
        op = message(seq[origin], hlc, rng.randint(1, 6), rng.choice([None, place]), uid)
        kind = rng.random()
        if kind < 0.2:
            cid = rng.randint(1, 6)
            op.ClearField("message")
            op.place.key.CopyFrom(key_pb(ClientKey(uid, "phone", "o1", CONVERSATION, cid)))
            op.place.place.CopyFrom(place_pb(place))
        elif kind < 0.3:
            op.ClearField("message")
            op.cursor.uid = uid
            op.cursor.place.CopyFrom(place_pb(place))
            op.seq = 0
            seq[origin] -= 1
        elif kind < 0.33:
            op.ClearField("message")
            op.setting.uid = uid
            if rng.random() < 0.5:
                op.setting.pinned = rng.random() < 0.5
            else:
                op.setting.muted = rng.random() < 0.5
            # Few orders: some words come twice, and some devices give one order to two.
            op.setting.order.hlc, op.setting.order.device = rng.randint(50, 52), rng.choice("pt")
            op.seq = 0
            seq[origin] -= 1
        elif kind < 0.37:
            op.ClearField("message")
            op.friend.actor = uid
            if rng.random() < 0.1:
                op.friend.encrypted = True
            elif rng.random() < 0.6:
                op.friend.wants = rng.random() < 0.7
            else:
                op.friend.blocks = rng.random() < 0.5
            op.friend.order.hlc, op.friend.order.device = rng.randint(50, 52), rng.choice("pt")
            op.seq = 0
            seq[origin] -= 1
        elif kind < 0.5:
            op.ClearField("message")
            op.membership.changes.add(uid=f"u{rng.randint(1, 3)}", member=rng.random() < 0.6)
            op.membership.actor = rng.choice(["u1", "u2"])
            if rng.random() < 0.5:
                role = rng.choice([pb.GROUP_ROLE_MEMBER, pb.GROUP_ROLE_ADMIN, pb.GROUP_ROLE_OWNER])
                op.membership.roles.add(uid=f"u{rng.randint(1, 3)}", role=role)
            if rng.random() < 0.3:
                op.membership.announcement.text = rng.choice(["", "a", "b"])
            if rng.random() < 0.4:  # two create one group, in different IDCs
                op.membership.create, op.membership.name = True, rng.choice(["", "x", "y", "z"])
                op.membership.encrypted = rng.random() < 0.3
            if rng.random() < 0.3:  # published again
                op.membership.place.CopyFrom(place_pb(place))
            op.conversation = "g:team"
            op.seq = 1 + sum(o.conversation == "g:team" for o in history[origin])
            seq[origin] -= 1
        elif kind < 0.65:
            changed = ClientKey(uid, "phone", "o1", CONVERSATION, rng.randint(1, 6))
            op.change.key.CopyFrom(key_pb(changed))
            op.change.actor = rng.choice(["ann", "bob"])
            what = rng.random()
            if what < 0.2:
                op.change.recall.SetInParent()
            elif what < 0.6:
                op.change.edit = f"edit {hlc // 4}".encode()
                op.change.encrypted = rng.random() < 0.5
            else:
                op.change.react.code, op.change.react.on = rng.choice("xy"), rng.random() < 0.6
            # Few orders: some changes come twice, and some devices give one order to two.
            op.change.order.hlc, op.change.order.device = rng.randint(50, 55), rng.choice("pt")
            op.change.order.number = rng.randint(1, 2)
        elif kind < 0.75:
            op = oplog.Op(hlc=hlc)
            op.route.uid, op.route.device = uid, "phone"
            op.route.connection_epoch = rng.randint(1, 3)
            seq[origin] -= 1
        elif kind < 0.79:
            op = oplog.Op(hlc=hlc)
            named = op.device_keys.keys
            named.uid, named.device, named.identity = uid, "phone", rng.choice([b"", b"1", b"2"])
            op.device_keys.order.hlc, op.device_keys.order.number = rng.randint(50, 52), 1
            seq[origin] -= 1
        history[origin].append(op)
    return history


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_replicas_agree_whatever_the_interleaving_and_batching(seed: int, other: int) -> None:
    history = _random_history(random.Random(seed))
    states, roles = [], []
    for order_seed in (seed, other):
        rng, replica = random.Random(order_seed), Replica()
        left = {origin: list(ops) for origin, ops in history.items()}
        while any(left.values()):
            origin = rng.choice([o for o in left if left[o]])
            count = rng.randint(1, 4)
            replica.fold(origin, *left[origin][:count])
            left[origin] = left[origin][count:]
        states.append(replica.replicated())
        group = replica.conversations.get("g:team", Conversation("g:team"))
        stored = replica.rows.get(keys.group(0, "g:team"))
        read = Conversation.from_rows("g:team", None, stored, members_stored(replica))
        for name in ("name", "announced", "events", "role_words", "exists"):
            assert getattr(read, name) == getattr(group, name)
        assert (read.members(), read.roles()) == (group.members(), group.roles())
        roles.append(group.roles())
    assert states[0] == states[1] and roles[0] == roles[1]


def edit(seq: int, hlc: int, content: bytes, composed: int) -> oplog.Op:
    op = oplog.Op(hlc=hlc, conversation=CONVERSATION, seq=seq)
    op.change.key.CopyFrom(key_pb(ClientKey("ann", "phone", "o1", CONVERSATION, 1)))
    op.change.actor, op.change.edit = "ann", content
    op.change.order.hlc, op.change.order.device = composed, "phone"
    return op


def shown(replica: Replica) -> bytes:
    row = replica.rows[keys.client_key(0, ClientKey("ann", "phone", "o1", CONVERSATION, 1))]
    return oplog.ClassRow.FromString(row).changes.edit.content


def test_a_change_that_is_published_or_asked_for_again_keeps_its_order() -> None:
    """A newer edit stays the last one, also where the older one's first copy comes last."""
    old, new = edit(1, 100, b"old", 90), edit(1, 200, b"new", 150)
    published = Sequencer(B, Hlc()).republish(old, A, 1, 5)
    asked_again = edit(3, 300, b"old", 90)
    assert published.hlc > new.hlc
    replica = Replica()
    replica.fold(B, new, published, asked_again)
    replica.fold(A, old)
    assert shown(replica) == b"new"


def test_a_message_that_is_recalled_in_its_own_batch_is_told_without_content() -> None:
    """Whoever is pushed to is told after the batch; an edit between them is blank as well."""
    recall = edit(3, 102, b"", 95)
    recall.change.recall.SetInParent()
    effects = Replica().fold(A, message(1, 100, 1), edit(2, 101, b"two", 90), recall)
    told = [entries.build(entry, RegionKeys({1: b"k" * 32}, 1)) for entry in _of(effects)]
    assert [built.WhichOneof("kind") for built in told] == ["message", "change", "change"]
    assert told[0].message.content == told[1].change.edit == b""


def _of(effects: Effects) -> list[Entry]:
    return effects.entries[CONVERSATION]


def test_every_op_with_names_as_long_as_they_may_be_fits() -> None:
    name = "x" * 64
    for conversation in (f"d:{name}:{name}", f"g:{name}"):
        op = oplog.Op(hlc=1, conversation=conversation, seq=1)
        op.message.key.CopyFrom(key_pb(ClientKey(name, name, name, conversation, 1)))
        assert fits(op)
        op.membership.changes.add(uid=name, member=True)
        assert fits(op)
        op.cursor.uid = name
        assert fits(op)
        op.setting.uid = name
        assert fits(op)
    op = oplog.Op(hlc=1, conversation=f"d:{name}:{name[1:]}y")
    op.friend.actor = name
    assert fits(op)
    for conversation, actor in ((op.conversation, "eve"), (f"d:{name}:{name}", name), ("g:x", "")):
        op.conversation, op.friend.actor = conversation, actor
        assert not fits(op)
    route = oplog.Op(hlc=1)
    route.route.uid = route.route.device = name
    assert fits(route)


@given(st.text(), st.text(), st.text(), st.text())
@settings(deadline=None)
def test_whatever_fits_makes_no_key_that_is_too_long(
    conversation: str, uid: str, device: str, outbox: str
) -> None:
    for text in (conversation, conversation * 9, f"d:{conversation * 4}:{uid * 9}"):
        client_key = ClientKey(uid, device, outbox, text, 1)
        op = oplog.Op(hlc=1, conversation=text, seq=1)
        op.message.key.CopyFrom(key_pb(client_key))
        op.message.claims.add().key.CopyFrom(key_pb(client_key._replace(uid=uid * 200)))
        if fits(op):
            replica = Replica()
            replica.fold(Origin("i" * 64, 1), op)
            assert max(map(len, replica.rows)) <= keys.KEY_BYTES_MAX


def membership(seq: int, hlc: int, uid: str, member: bool, name: str = "") -> oplog.Op:
    op = oplog.Op(hlc=hlc, conversation="g:team", seq=seq)
    op.membership.changes.add(uid=uid, member=member)
    op.membership.create, op.membership.name = bool(name), name
    return op


def test_the_last_name_wins_whatever_order_the_creations_came_in() -> None:
    first, second = (
        membership(1, 10, "ann", True, "first"),
        membership(1, 20, "bob", True, "second"),
    )
    one, other = Replica(), Replica()
    one.fold(A, first)
    one.fold(B, second)
    other.fold(B, second)
    other.fold(A, first)
    assert one.replicated() == other.replicated()
    assert one.conversations["g:team"].name == "second"
    stored = one.rows[keys.group(0, "g:team")]
    read = Conversation.from_rows("g:team", None, stored, members_stored(one))
    assert (read.group_row(), read.members()) == (stored, ("ann", "bob"))


def members_stored(replica: Replica) -> list[tuple[str, bytes]]:
    prefix = keys.group_members_prefix(0, "g:team")
    found = [(key, row) for key, row in replica.rows.items() if key.startswith(prefix)]
    return [(key[len(prefix) :].decode(), row) for key, row in found]


def test_a_change_of_members_writes_the_rows_of_those_whom_it_names() -> None:
    """Not of all: a group of 10,000 would write half a gigabyte for every thousand who come."""
    create = membership(1, 10, "ann", True, "team")
    for number in range(10_000):
        create.membership.changes.add(uid=f"u{number:05}", member=True)
    replica = Replica()
    assert len(replica.fold(A, create).audience["g:team"]) == 10_001
    before = dict(replica.rows)
    replica.fold(A, membership(2, 20, "bob", True))
    told = replica.fold(A, membership(3, 30, "u00007", False))
    changed = {key for key, row in replica.rows.items() if before.get(key) != row}
    assert changed == {
        keys.heads(0, "g:team"),
        keys.entry(0, "g:team", A, 2),
        keys.entry(0, "g:team", A, 3),
        keys.group_member(0, "g:team", "bob"),
        keys.member(0, "bob", "g:team"),
        keys.group_member(0, "g:team", "u00007"),
        keys.timeline(0, "u00007", "g:team"),
    }
    assert before.keys() - replica.rows.keys() == {keys.member(0, "u00007", "g:team")}
    conversation = replica.conversations["g:team"]
    assert "u00007" not in told.audience["g:team"]
    assert told.left == {"g:team": {"u00007": 3}}  # who leaves is told too, up to there
    assert conversation.members() == tuple(sorted(conversation.members()))
    assert len(conversation.members()) == 10_001 and conversation.is_member("bob")
    read = Conversation.from_rows("g:team", None, None, members_stored(replica))
    assert read.members() == conversation.members()


def test_members_are_the_same_object_until_they_change() -> None:
    """What is worked out of them for a message is worked out once."""
    replica = Replica()
    replica.fold(A, membership(1, 10, "ann", True, "team"))
    members = replica.conversations["g:team"].members()
    said = message(2, 20, 1)
    said.conversation = "g:team"
    assert replica.fold(A, said).audience["g:team"] is members
    assert replica.fold(A, membership(3, 10, "ann", True)).audience["g:team"] == members


def role(seq: int, hlc: int, uid: str, role: pb.GroupRole.ValueType) -> oplog.Op:
    op = oplog.Op(hlc=hlc, conversation="g:team", seq=seq)
    op.membership.roles.add(uid=uid, role=role)
    return op


def test_a_role_counts_while_the_user_stays_whom_it_was_given_to() -> None:
    """Told by one IDC to a user who leaves and comes in again in another, whatever comes first."""
    words = [membership(1, 10, "ann", True), membership(2, 11, "bob", True)]
    words += [role(3, 12, "ann", pb.GROUP_ROLE_OWNER), role(4, 15, "bob", pb.GROUP_ROLE_ADMIN)]
    comes_again = [membership(1, 14, "bob", False), membership(2, 16, "bob", True)]
    stays = [membership(1, 14, "bob", True)]  # a second join of one who is in it
    for others, admins in ((comes_again, frozenset[str]()), (stays, {"bob"})):
        one, other = Replica(), Replica()
        one.fold(A, *words)
        one.fold(B, *others)
        other.fold(B, *others)
        other.fold(A, *words)
        assert one.replicated() == other.replicated()
        for replica in (one, other):
            assert replica.conversations["g:team"].roles() == ("ann", admins)


def test_a_word_on_a_role_keeps_its_place_when_it_is_published_again() -> None:
    old, new = role(1, 20, "bob", pb.GROUP_ROLE_ADMIN), role(1, 30, "bob", pb.GROUP_ROLE_MEMBER)
    again = Sequencer(Origin("sin", 1), Hlc(1_000)).republish(old, A, 0, 1)
    assert again.hlc > new.hlc
    replica = Replica()
    replica.fold(B, new)
    replica.fold(Origin("sin", 1), again)
    [(at, word)] = replica.conversations["g:team"].role_words.values()
    assert (at.hlc, word) == (30, pb.GROUP_ROLE_MEMBER)


def test_a_change_of_members_keeps_its_place_when_it_is_published_again() -> None:
    """With the place of its second publication, an old join would override a newer leave."""
    join, leave = membership(1, 10, "ann", True, "old"), membership(1, 20, "ann", False, "new")
    again = Sequencer(Origin("sin", 1), Hlc(1_000)).republish(join, A, 0, 1)
    twice = Sequencer(Origin("sin", 2), Hlc(2_000)).republish(again, Origin("sin", 1), 0, 1)
    assert again.hlc > leave.hlc
    replica = Replica()
    replica.fold(B, leave)
    replica.fold(Origin("sin", 1), again)
    replica.fold(Origin("sin", 2), twice)
    conversation = replica.conversations["g:team"]
    assert (conversation.members(), conversation.name) == ((), "new")
    assert len(conversation.events["ann"]) == 2


def friend(hlc: int, actor: str, composed: int, **what: bool) -> oplog.Op:
    op = oplog.Op(hlc=hlc, conversation=CONVERSATION)
    op.friend.actor = actor
    for name, value in what.items():
        setattr(op.friend, name, value)
    op.friend.order.hlc, op.friend.order.device = composed, "phone"
    return op


def friends(replica: Replica) -> tuple[str, str]:
    """What bob is to ann, and ann to bob, as both rows have it."""
    rows = [replica.rows[keys.friend(0, *both)] for both in (("ann", "bob"), ("bob", "ann"))]
    assert rows[0] == rows[1]
    row = oplog.FriendRow.FromString(rows[0])
    said = [pair.told(row, ("ann", "bob"), uid) for uid in ("ann", "bob")]
    names = ["blocked" if each.blocked else pb.Friend.State.Name(each.state) for each in said]
    return names[0], names[1]


@pytest.mark.parametrize(
    ("words", "stands"),
    [
        (["ann yes"], ("ASKED", "ASKING")),
        (["ann yes", "bob yes"], ("FRIEND", "FRIEND")),
        (["ann yes", "bob no"], ("NONE", "NONE")),
        (["ann yes", "bob no", "ann yes"], ("ASKED", "ASKING")),
        (["ann yes", "bob yes", "ann no"], ("NONE", "NONE")),
        # Who was removed does not become a friend by the other's next request: he is asked anew.
        (["ann yes", "bob yes", "ann no", "ann yes"], ("ASKED", "ASKING")),
        (["ann yes", "bob yes", "bob block"], ("NONE", "blocked")),
        (["ann yes", "bob yes", "bob block", "bob free"], ("NONE", "NONE")),
        (["ann block", "bob block", "bob free"], ("blocked", "NONE")),
    ],
)
def test_what_two_users_are_to_each_other(words: list[str], stands: tuple[str, str]) -> None:
    """Whatever order the words come in, and from whichever IDC."""
    whats: dict[str, dict[str, bool]] = {
        "yes": {"wants": True}, "no": {"wants": False},
        "block": {"blocks": True}, "free": {"blocks": False},
    }  # fmt: skip
    said = [word.split() for word in words]
    ops = [friend(10 + at, who, 5 + at, **whats[what]) for at, (who, what) in enumerate(said)]
    for order in itertools.permutations(ops):
        replica = Replica()
        for number, op in enumerate(order):
            replica.fold((A, B)[number % 2], op, op)
        assert friends(replica) == stands


def test_a_word_on_a_friend_keeps_its_order_when_it_is_published_again() -> None:
    old, new = friend(10, "ann", 5, wants=True), friend(20, "ann", 15, wants=False)
    again = Sequencer(Origin("sin", 1), Hlc(1_000)).republish(old, A, 0, 1)
    assert again.hlc > new.hlc and again.seq == 0
    replica = Replica()
    replica.fold(B, new)
    effects = replica.fold(Origin("sin", 1), again)
    assert friends(replica) == ("NONE", "NONE")
    [(before, after)] = effects.friends.values()
    assert before.ended == after.ended


# ------------------------------------------------------------------------------- sequencer


def submission(cid: int, floor: int = 1, content: bytes = b"x") -> Submission:
    key = ClientKey("ann", "phone", "o1", CONVERSATION, cid)
    return Submission(key, content, content_hash(content), floor, None, (), 0, 0)


def opened(floor: int = 1) -> Sequencer:
    sequencer = Sequencer(A, Hlc())
    sequencer.open_lane(Lane("ann", "phone", "o1", CONVERSATION), floor).loaded = True
    return sequencer


def test_cids_are_taken_in_order_from_the_floor_and_others_are_told_what_is_wanted() -> None:
    sequencer = opened()
    assert sequencer.message(submission(2), 0, 1) == Want(1)
    assert isinstance(sequencer.message(submission(1), 0, 1), Accept)
    assert isinstance(sequencer.message(submission(2), 0, 1), Accept)
    # All below the floor is replicated: nobody will ever send 3 and 4.
    assert isinstance(sequencer.message(submission(5, floor=5), 0, 1), Accept)


def test_a_cid_on_its_way_is_joined_and_a_folded_one_is_known() -> None:
    sequencer = opened()
    first = sequencer.message(submission(1), 0, 1)
    assert isinstance(first, Accept)
    assert sequencer.message(submission(1), 0, 1) == Joined(first.pending)
    sequencer.folded(submission(1).key)
    assert sequencer.message(submission(1), 0, 1) == Known()


def test_a_hole_below_the_highest_known_cid_is_filled() -> None:
    sequencer = opened()
    sequencer.folded(submission(2).key)  # mirrored from another IDC, where 1 is not known yet
    assert isinstance(sequencer.message(submission(1), 0, 1), Accept)
    assert sequencer.message(submission(4), 0, 1) == Want(3)


def test_the_same_cid_with_other_content_conflicts() -> None:
    sequencer = opened()
    sequencer.message(submission(1), 0, 1)
    assert type(sequencer.message(submission(1, content=b"y"), 0, 1)).__name__ == "Conflict"


def test_seq_continues_above_what_is_folded_and_in_flight() -> None:
    sequencer = opened()
    seqs = [
        verdict.op.seq
        for cid in (1, 2, 3)
        if isinstance(verdict := sequencer.message(submission(cid), 7, 1), Accept)
    ]
    assert seqs == [8, 9, 10]


def test_an_op_stands_above_everything_that_its_session_has_seen() -> None:
    sequencer = opened()
    seen = 1 << 60
    verdict = sequencer.message(submission(1)._replace(seen_hlc=seen), 0, 1)
    assert isinstance(verdict, Accept)
    assert verdict.op.hlc == seen + 1


def test_of_many_lanes_those_used_lately_stay_and_none_costs_a_look_at_all() -> None:
    sequencer = Sequencer(Origin("fra", 1), Hlc())
    for number in range(1_000):
        sequencer.open_lane(Lane(f"u{number}", "phone", "o", "d:a:b"), 1)
    names = list(sequencer._lanes)
    assert sequencer.lane(names[0]) is not None  # used again
    busy = sequencer.lane(names[1])
    assert busy is not None
    busy.pending[1] = object()  # type: ignore[assignment]
    sequencer.open_lane(Lane("new", "phone", "o", "d:a:b"), 1)
    sequencer.forget_idle_lanes(1_000)
    assert len(sequencer._lanes) == 900  # room for a hundred more
    kept = set(sequencer._lanes)
    assert {names[0], names[1], names[-1]} <= kept and names[2] not in kept


def test_kicks_are_kept_of_devices_that_there_were_and_of_all_of_a_user() -> None:
    idc = Replica()
    route = oplog.Op(hlc=1, route=oplog.RouteOp(uid="ann", device="phone", connection_epoch=1))
    idc.fold(A, route)
    kicks = [
        oplog.Op(hlc=2 + number, kick=oplog.KickOp(uid="ann", device=device))
        for number, device in enumerate(("phone", "", "never seen", "nor this one"))
    ]
    effects = idc.fold(A, *kicks)
    assert effects.kicks == kicks  # they are told all the same
    kept = [key for key in idc.rows if key in {keys.kick(0, "ann", k.kick.device) for k in kicks}]
    assert sorted(kept) == sorted([keys.kick(0, "ann", "phone"), keys.kick(0, "ann", "")])
