"""Folding ops into state: the only place where state changes (rules 1, 12, 15).

Pure: ops and the rows that they need in, rows to write and effects out. Every fold is a CRDT:
a message joins the class of its client key, the class stands at the smallest place attested for
it and shows its smallest copy; membership is intervals by HLC; a cursor is a maximum, a setting
the last word on it; a route is ordered by (connection epoch, HLC). So replicas that folded the same
ops, in whatever order across origins, hold the same rows. A fold never judges authorization: the
origin did.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from imcore import changes
from imcore.convert import fill_origin, fill_place, key_of, origin_of, origin_pb, place_of, place_pb
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.sometimes import ALIAS, sometimes
from imcore.words import ClientKey, Origin, Place, direct_members
from services.im import keys, pair
from services.im.conversation import Conversation
from services.ports import Record


@dataclass(slots=True)
class Taken:
    """A record whose validity the reader has settled (``services.im.reader``)."""

    record: Record
    op: oplog.Op


@dataclass(slots=True)
class Entry:
    """A folded entry, as those who push it need it."""

    origin: Origin
    op: oplog.Op
    place: Place | None = None  # of its class, for messages
    alias: bool = False
    recalled: bool = False  # nobody is given its content any more


@dataclass(slots=True)
class Effects:
    """What the shell does once the batch is committed."""

    entries: dict[str, list[Entry]] = field(default_factory=dict)  # by conversation
    audience: dict[str, tuple[str, ...]] = field(default_factory=dict)  # the members, after it
    cursors: list[tuple[str, str, Place]] = field(default_factory=list)  # uid, conversation, place
    routes: list[tuple[Origin, oplog.Op]] = field(default_factory=list)
    kicks: list[oplog.Op] = field(default_factory=list)
    # What two users were to each other before, and are now; by their conversation.
    friends: dict[str, tuple[oplog.FriendRow, oplog.FriendRow]] = field(default_factory=dict)
    keys: list[ClientKey] = field(default_factory=list)  # client keys that are known from now on
    moved: set[str] = field(default_factory=set)  # conversations of which earlier entries changed
    # By conversation and user: the seq of the change with which he left. He is told no later one.
    left: dict[str, dict[str, int]] = field(default_factory=dict)

    def now_friends(self, name: str, before: oplog.FriendRow, after: oplog.FriendRow) -> None:
        """``before`` of the first time counts."""
        first, _ = self.friends.get(name, (before, after))
        self.friends[name] = (first, after)

    def partings(self, name: str) -> dict[int, tuple[str, ...]]:
        """By the change with which they left the conversation: who did."""
        found: dict[int, list[str]] = {}
        for uid, seq in self.left.get(name, {}).items():
            found.setdefault(seq, []).append(uid)
        return {seq: tuple(uids) for seq, uids in found.items()}

    def recalled(self) -> set[ClientKey]:
        """By what stands in ``entries``."""
        every = itertools.chain.from_iterable(self.entries.values())
        return {key_of(e.op.change.key) for e in every if e.op.change.HasField("recall")}

    def leave_out(self, recalled: set[ClientKey]) -> None:
        """Of what is not told yet: the content of messages that were recalled since."""
        if not recalled:
            return
        for entry in itertools.chain.from_iterable(self.entries.values()):
            if (key := named_by(entry.op)) is not None:
                entry.recalled |= key in recalled

    def keep_below(self, heads: Mapping[str, int]) -> None:
        """Forget entries above these heads of their conversations: they were folded out since."""
        kept = {
            name: [entry for entry in found if entry.op.seq <= heads[name]]
            for name, found in self.entries.items()
        }
        self.entries = {name: found for name, found in kept.items() if found}


class MissingRow(LookupError):
    """A row was read that ``needs`` did not name: a defect of this module."""


class Rows:
    """The rows a batch reads (fetched beforehand) under those that it has written so far."""

    def __init__(self, fetched: Mapping[bytes, bytes | None]) -> None:
        self._fetched = fetched
        self.puts: dict[bytes, bytes] = {}
        self.deletes: set[bytes] = set()

    def get(self, key: bytes) -> bytes | None:
        if key in self.puts:
            return self.puts[key]
        if key in self.deletes:
            return None
        try:
            return self._fetched[key]
        except KeyError:
            raise MissingRow(key) from None

    def put(self, key: bytes, value: bytes) -> None:
        self.deletes.discard(key)
        self.puts[key] = value

    def delete(self, key: bytes) -> None:
        self.puts.pop(key, None)
        self.deletes.add(key)


def named_by(op: oplog.Op) -> ClientKey | None:
    """The message that this op is, or changes."""
    if op.HasField("message"):
        return key_of(op.message.key)
    return key_of(op.change.key) if op.HasField("change") else None


def place_kept(op: oplog.Op, origin: Origin) -> Place:
    """Where a message or a change of members stands: at the place of its first acceptance, however
    often and wherever it is accepted again."""
    body = op.message if op.HasField("message") else op.membership
    return place_of(body.place) if body.HasField("place") else Place(op.hlc, origin, op.seq)


def fits(op: oplog.Op) -> bool:
    """Whether the rows of this op can be stored. Such names are refused before they are logged; an
    op that is in a log nevertheless must not stop the partition. It is left out, in every IDC
    alike, since this depends on nothing but the op."""
    kind, name = op.WhichOneof("body"), op.conversation
    if kind == "message":  # nearly all; to look at each of its keys takes five times as long
        key = op.message.key
        if keys.surely_fit(name, key.uid, key.device, key.outbox, key.conversation):
            return True
    if kind == "route":
        return keys.user_key_fits(op.route.uid, op.route.device)
    if kind == "kick":
        return keys.user_key_fits(op.kick.uid, op.kick.device)
    if kind == "cursor":
        return keys.user_key_fits(op.cursor.uid, name)
    if kind == "setting":
        return keys.user_key_fits(op.setting.uid, name)
    if kind == "device_keys":
        return keys.user_key_fits(op.device_keys.keys.uid, op.device_keys.keys.device)
    if kind == "friend":
        both = pair.pair_of(name)
        return both is not None and op.friend.actor in both and keys.user_key_fits(*both)
    if kind in ("message", "place", "membership", "change"):
        users = [change.uid for change in op.membership.changes]
        users += [word.uid for word in op.membership.roles]
        users += direct_members(name) or ()
        if not keys.conversation_fits(name) or not all(keys.user_key_fits(u, name) for u in users):
            return False
    if kind == "message":
        return keys.client_key_fits(key_of(op.message.key))
    if kind == "place":
        return keys.client_key_fits(key_of(op.place.key))
    if kind == "change":
        return keys.client_key_fits(key_of(op.change.key))
    return True


def _storable(claims: Iterable[pb.Attested]) -> list[tuple[ClientKey, Place]]:
    """A claim that cannot be stored costs itself, never the message that brought it along."""
    found = [(key_of(claim.key), place_of(claim.place)) for claim in claims]
    return [(key, place) for key, place in found if keys.client_key_fits(key)]


def conversations_of(ops: Iterable[oplog.Op]) -> list[str]:
    """Each once."""
    found = (op.conversation for op in ops if op.seq or op.HasField("friend"))
    return list(dict.fromkeys(found))


def needs(partition: int, ops: Iterable[oplog.Op]) -> set[bytes]:
    """The keys that folding these ops will read, conversations' own rows aside."""
    needed: set[bytes] = set()
    for op in ops:
        kind = op.WhichOneof("body")
        if kind == "message":
            needed.add(keys.client_key(partition, key_of(op.message.key)))
            claims = op.message.claims
        elif kind == "place":
            needed.add(keys.client_key(partition, key_of(op.place.key)))
            claims = op.place.claims
        elif kind == "change":
            needed.add(keys.client_key(partition, key_of(op.change.key)))
            continue
        elif kind == "cursor":
            needed.add(keys.cursor(partition, op.cursor.uid, op.conversation))
            continue
        elif kind == "setting":
            needed.add(keys.settings(partition, op.setting.uid, op.conversation))
            continue
        elif kind == "route":
            needed.add(keys.route(partition, op.route.uid, op.route.device))
            continue
        elif kind == "kick":
            needed.add(keys.kick(partition, op.kick.uid, op.kick.device))
            needed.add(keys.route(partition, op.kick.uid, op.kick.device))
            continue
        elif kind == "device_keys":
            named = op.device_keys.keys
            needed.add(keys.device_keys(partition, named.uid, named.device))
            continue
        else:
            continue
        if claims:
            needed.update(keys.client_key(partition, key) for key, _ in _storable(claims))
    return needed


class Fold:
    """Folds batches of one partition, of ops that fit (``fits``). ``conversations`` must hold every
    conversation that a batch touches (``conversations_of``); ``rows`` every key of ``needs``."""

    def __init__(self, partition: int, timeline_members_max: int = 500) -> None:
        self._partition = partition
        self._timeline_members_max = timeline_members_max

    def batch(
        self,
        taken: Sequence[Taken],
        origin: Origin,
        conversations: Mapping[str, Conversation],
        rows: Rows,
        timeline: int,
    ) -> Effects:
        effects = Effects()
        for item in taken:
            self._one(item, origin, conversations, rows, effects)
        effects.leave_out(effects.recalled())
        for name in effects.entries:
            conversation = conversations[name]
            rows.put(keys.heads(self._partition, name), conversation.heads_row())
            effects.audience[name] = members = conversation.members()
            # Of a group that has just shrunk to this size everybody: its membership alone named it
            # until now, and names it no more.
            # Those who left are named it once more, however large it is.
            small = len(members) <= self._timeline_members_max
            number = keys.number(timeline)
            left = effects.left.get(name, ())
            for uid in (*members, *left) if small else left:
                rows.put(keys.timeline(self._partition, uid, name), number)
        return effects

    def _one(
        self,
        item: Taken,
        origin: Origin,
        conversations: Mapping[str, Conversation],
        rows: Rows,
        effects: Effects,
    ) -> None:
        op = item.op
        kind = op.WhichOneof("body")
        if kind == "cursor":
            self._cursor(op, rows, effects)
        elif kind == "setting":
            self._setting(op, rows)
        elif kind == "friend":
            self._friend(op, conversations[op.conversation], rows, effects)
        elif kind == "route":
            self._route(op, origin, rows, effects)
        elif kind == "device_keys":
            self._device_keys(op, rows)
        elif kind == "kick":
            self._kick(op, rows, effects)
        elif op.seq:
            conversation = conversations[op.conversation]
            reached = conversation.heads.get(origin, 0)
            if op.seq <= reached:
                return  # folded before; the lsn check makes this unreachable, a rebuild may not be
            conversation.heads[origin] = op.seq
            # As its origin wrote it, so it is the same everywhere, and nothing is encoded again.
            key = keys.entry(self._partition, op.conversation, origin, op.seq)
            rows.put(key, item.record.payload)
            entry = Entry(origin, op)
            if kind == "message":
                self._message(op, origin, rows, entry, effects)
            elif kind == "place":
                self._place(op, rows, effects)
            elif kind == "change":
                self._change(op, rows, entry, effects)
            elif kind == "membership":
                self._membership(op, place_kept(op, origin), conversation, rows, effects)
            effects.entries.setdefault(op.conversation, []).append(entry)

    # ------------------------------------------------------------------ messages and places

    def _message(
        self, op: oplog.Op, origin: Origin, rows: Rows, entry: Entry, effects: Effects
    ) -> None:
        message = op.message
        key = key_of(message.key)
        own_place = place_kept(op, origin)
        class_key = keys.client_key(self._partition, key)
        stored = rows.get(class_key)
        effects.keys.append(key)
        if stored is None:  # nearly all
            row = oplog.ClassRow()
            copy = row.copies.add()
            copy.seq, copy.content_hash = op.seq, message.content_hash
            fill_origin(copy.origin, origin)
            fill_place(copy.place, own_place)
            fill_place(row.place, own_place)
            rows.put(class_key, row.SerializeToString(deterministic=True))
            order = keys.order(self._partition, own_place, key)
            rows.put(order, keys.identity_value(origin, op.seq))
            entry.place = own_place
            self._claims(message.claims, rows, effects)
            return
        effects.moved.add(op.conversation)
        row = oplog.ClassRow.FromString(stored)
        before = _standing(row)
        copies = [
            (place_of(c.place), origin_of(c.origin), c.seq, c.content_hash) for c in row.copies
        ]
        copies.append((own_place, origin, op.seq, message.content_hash))
        copies.sort()
        del row.copies[:]
        for place, copy_origin, seq, digest in copies:
            row.copies.add(
                origin=origin_pb(copy_origin), seq=seq, place=place_pb(place), content_hash=digest
            )
        _lower(row, copies[0][0])
        self._store_class(key, class_key, row, before, rows)
        entry.place = place_of(row.place)
        entry.alias = copies[0][1:3] != (origin, op.seq)
        entry.recalled = row.changes.recalled
        if entry.alias:
            sometimes(ALIAS)
        self._claims(message.claims, rows, effects)

    def _change(self, op: oplog.Op, rows: Rows, entry: Entry, effects: Effects) -> None:
        """Kept with the class, so that a plain message needs no other row; it may come first."""
        class_key = keys.client_key(self._partition, key_of(op.change.key))
        row = oplog.ClassRow.FromString(rows.get(class_key) or b"")
        if changes.merge(row.changes, op.change):
            rows.put(class_key, row.SerializeToString(deterministic=True))
        entry.recalled = row.changes.recalled
        if entry.recalled:
            effects.moved.add(op.conversation)

    def _place(self, op: oplog.Op, rows: Rows, effects: Effects) -> None:
        self._lower_class(key_of(op.place.key), place_of(op.place.place), rows, effects)
        self._claims(op.place.claims, rows, effects)

    def _claims(self, claims: Iterable[pb.Attested], rows: Rows, effects: Effects) -> None:
        """An answer brings its question's place along, also before the question itself."""
        for key, place in _storable(claims):
            self._lower_class(key, place, rows, effects)

    def _lower_class(self, key: ClientKey, place: Place, rows: Rows, effects: Effects) -> None:
        class_key = keys.client_key(self._partition, key)
        stored = rows.get(class_key)
        row = oplog.ClassRow() if stored is None else oplog.ClassRow.FromString(stored)
        before = _standing(row)
        if _lower(row, place):
            self._store_class(key, class_key, row, before, rows)
            if before is not None:
                effects.moved.add(key.conversation)

    def _store_class(
        self,
        key: ClientKey,
        class_key: bytes,
        row: oplog.ClassRow,
        before: tuple[Place, tuple[Origin, int]] | None,
        rows: Rows,
    ) -> None:
        rows.put(class_key, row.SerializeToString(deterministic=True))
        after = _standing(row)
        if after == before:
            return
        if before is not None and (after is None or before[0] != after[0]):
            rows.delete(keys.order(self._partition, before[0], key))
        if after is not None:
            place, (origin, seq) = after
            rows.put(keys.order(self._partition, place, key), keys.identity_value(origin, seq))

    # ------------------------------------------------------------- members, cursors, routes

    def _membership(
        self,
        op: oplog.Op,
        at: Place,
        conversation: Conversation,
        rows: Rows,
        effects: Effects,
    ) -> None:
        """``at``: the place kept. An old change that is published again must not override a newer
        one."""
        name, given = op.conversation, op.membership
        named = bool(given.name) and conversation.set_name(given.name, at)
        announced = given.HasField("announcement") and conversation.announce(
            given.announcement.text, given.actor, at
        )
        encrypts = given.encrypted and conversation.encrypt()
        if named or announced or encrypts:
            rows.put(keys.group(self._partition, name), conversation.group_row())
        changes = ((change.uid, change.member) for change in given.changes)
        changed = conversation.set_members(at, changes, given.actor)
        for uid, was in changed.items():
            if conversation.is_member(uid):
                rows.put(keys.member(self._partition, uid, name), b"")
                effects.left.get(name, {}).pop(uid, None)
            else:
                rows.delete(keys.member(self._partition, uid, name))
                if was:
                    effects.left.setdefault(name, {})[uid] = op.seq
        given_to = [word.uid for word in given.roles if conversation.set_role(at, word)]
        for uid in dict.fromkeys((*changed, *given_to)):
            row = conversation.member_row(uid)
            rows.put(keys.group_member(self._partition, name, uid), row)

    def _cursor(self, op: oplog.Op, rows: Rows, effects: Effects) -> None:
        key = keys.cursor(self._partition, op.cursor.uid, op.conversation)
        place = place_of(op.cursor.place)
        stored = rows.get(key)
        if stored is None or place_of(pb.Place.FromString(stored)) < place:
            rows.put(key, op.cursor.place.SerializeToString(deterministic=True))
            effects.cursors.append((op.cursor.uid, op.conversation, place))

    def _setting(self, op: oplog.Op, rows: Rows) -> None:
        key = keys.settings(self._partition, op.setting.uid, op.conversation)
        row = oplog.SettingsRow.FromString(rows.get(key) or b"")
        if changes.set_last(row, op.setting):
            rows.put(key, row.SerializeToString(deterministic=True))

    def _device_keys(self, op: oplog.Op, rows: Rows) -> None:
        named = op.device_keys.keys
        key = keys.device_keys(self._partition, named.uid, named.device)
        row = oplog.DeviceKeysOp.FromString(rows.get(key) or b"")
        if changes.keys_last(row, op.device_keys):
            rows.put(key, row.SerializeToString(deterministic=True))

    def _friend(
        self, op: oplog.Op, conversation: Conversation, rows: Rows, effects: Effects
    ) -> None:
        before, both = conversation.friends, pair.pair_of(conversation.id)
        after = oplog.FriendRow()
        after.CopyFrom(before)
        if both is None or not pair.merge(after, both, op.friend):
            return
        conversation.friends = after
        low, high = both
        row = after.SerializeToString(deterministic=True)
        rows.put(keys.friend(self._partition, low, high), row)
        rows.put(keys.friend(self._partition, high, low), row)
        effects.now_friends(conversation.id, before, after)

    def _route(self, op: oplog.Op, origin: Origin, rows: Rows, effects: Effects) -> None:
        key = keys.route(self._partition, op.route.uid, op.route.device)
        stored = rows.get(key)
        if stored is not None:
            held = oplog.RouteRow.FromString(stored)
            order = (held.route.connection_epoch, held.hlc, origin_of(held.origin))
            if order > (op.route.connection_epoch, op.hlc, origin):
                return
        row = oplog.RouteRow(origin=origin_pb(origin), hlc=op.hlc, route=op.route)
        rows.put(key, row.SerializeToString(deterministic=True))
        effects.routes.append((origin, op))

    def _kick(self, op: oplog.Op, rows: Rows, effects: Effects) -> None:
        """Kept, for whom it could not be told yet; of a device if there ever was one of that name,
        or whoever kicks could fill the KV."""
        effects.kicks.append(op)
        uid, device = op.kick.uid, op.kick.device
        if device and rows.get(keys.route(self._partition, uid, device)) is None:
            return
        key = keys.kick(self._partition, uid, device)
        if oplog.Op.FromString(rows.get(key) or b"").hlc < op.hlc:
            rows.put(key, op.SerializeToString(deterministic=True))


def _standing(row: oplog.ClassRow) -> tuple[Place, tuple[Origin, int]] | None:
    """Where the class stands in its conversation and which copy is shown; None: none is yet."""
    if not row.copies:
        return None
    first = row.copies[0]
    return place_of(row.place), (origin_of(first.origin), first.seq)


def _lower(row: oplog.ClassRow, place: Place) -> bool:
    if row.HasField("place") and place_of(row.place) <= place:
        return False
    row.place.CopyFrom(place_pb(place))
    return True
