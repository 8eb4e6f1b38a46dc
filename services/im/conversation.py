"""What the applier keeps of a conversation between batches: heads and, for groups, members."""

from __future__ import annotations

from collections.abc import Iterable

from imcore.convert import fill_origin, origin_of, origin_pb, place_of, place_pb, vector_of
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import Origin, Place, Vector, direct_members, is_group
from services.im.roles import MEMBER, Roles, roles_of

# The place of the op (hlc, origin, seq), member, and whether another one has removed the user.
MemberEvent = tuple[int, Origin, int, bool, bool]
_NEVER = Place(0, Origin("", 0), 0)
_NOTHING = oplog.FriendRow()
_NOT_ANNOUNCED = oplog.Announced()


class Conversation:
    """Heads: the seq folded of each origin. Members: intervals, the last event by
    (hlc, origin, seq) wins, and so do the last name, announcement and word on a member's role, so
    that replicas agree whatever order the events came in."""

    __slots__ = (
        "_current", "_encrypted", "_roles", "_shared", "announced", "events", "friends", "heads",
        "id", "name", "name_at", "role_words",
    )  # fmt: skip

    def __init__(self, id_: str) -> None:
        self.id = id_
        self.heads: Vector = {}
        self.name = ""
        self.name_at = _NEVER
        self.announced = _NOT_ANNOUNCED  # replaced, never changed
        self.events: dict[str, list[MemberEvent]] = {}
        self.role_words: dict[str, tuple[Place, pb.GroupRole.ValueType]] = {}  # the last of each
        # What the two of a direct one are to each other. Replaced, never changed.
        self.friends = _NOTHING
        self._current: tuple[str, ...] | None = direct_members(id_)
        self._roles: Roles | None = None
        self._encrypted = False  # of a group
        self._shared = False  # ``events`` and ``role_words`` are also those of a copy

    def copy(self) -> Conversation:
        """To be changed while this one stays as it is."""
        made = Conversation.__new__(Conversation)
        made.id, made.heads = self.id, dict(self.heads)
        made.name, made.name_at = self.name, self.name_at
        made.events, made._current = self.events, self._current
        made.role_words, made._roles = self.role_words, self._roles
        made.friends, made.announced = self.friends, self.announced
        made._encrypted = self._encrypted
        made._shared = self._shared = True
        return made

    @staticmethod
    def from_rows(
        id_: str,
        heads: bytes | None,
        group: bytes | None = None,
        members: Iterable[tuple[str, bytes]] = (),
        friends: bytes | None = None,
    ) -> Conversation:
        """``members``: uid and MemberRow of each."""
        conversation = Conversation(id_)
        if friends is not None:
            conversation.friends = oplog.FriendRow.FromString(friends)
        if heads is not None:
            conversation.heads = vector_of(oplog.HeadsRow.FromString(heads).heads)
        if group is not None:
            row = oplog.GroupRow.FromString(group)
            conversation.name = row.name
            if row.HasField("name_at"):
                conversation.name_at = place_of(row.name_at)
            conversation.announced, conversation._encrypted = row.announced, row.encrypted
        origins: dict[Origin, Origin] = {}  # one object each, however many members there are
        for uid, value in members:
            member = oplog.MemberRow.FromString(value)
            if member.events:
                conversation.events[uid] = [
                    (
                        event.hlc,
                        origins.setdefault(origin := origin_of(event.origin), origin),
                        event.seq,
                        event.member,
                        event.removed,
                    )
                    for event in member.events
                ]
            if member.HasField("role_at"):
                conversation.role_words[uid] = place_of(member.role_at), member.role
        return conversation

    def heads_row(self) -> bytes:
        row = oplog.HeadsRow()
        for origin in sorted(self.heads):
            head = row.heads.add()
            head.seq = self.heads[origin]
            fill_origin(head.origin, origin)
        return row.SerializeToString(deterministic=True)

    def group_row(self) -> bytes:
        row = oplog.GroupRow(name=self.name, name_at=place_pb(self.name_at))
        row.encrypted = self._encrypted
        if self.announced.HasField("at"):
            row.announced.CopyFrom(self.announced)
        return row.SerializeToString(deterministic=True)

    def member_row(self, uid: str) -> bytes:
        row = oplog.MemberRow()
        for hlc, origin, seq, is_member, removed in self.events.get(uid, ()):
            event = row.events.add(hlc=hlc, origin=origin_pb(origin), seq=seq)
            event.member, event.removed = is_member, removed
        if uid in self.role_words:
            place, row.role = self.role_words[uid]
            row.role_at.CopyFrom(place_pb(place))
        return row.SerializeToString(deterministic=True)

    @property
    def exists(self) -> bool:
        return bool(self.events) if is_group(self.id) else self._current is not None

    def members(self) -> tuple[str, ...]:
        """Current members, sorted; the same object until they change."""
        if self._current is None:
            self._current = tuple(
                sorted(uid for uid, events in self.events.items() if events[-1][3])
            )
        return self._current

    def is_member(self, uid: str) -> bool:
        if not is_group(self.id):
            return self._current is not None and uid in self._current
        events = self.events.get(uid)
        return bool(events) and events[-1][3]  # type: ignore[index]  # bool() says it is not None

    def joined(self, uid: str) -> Place | None:
        """Since when this member is in the group without having left: of joins that came one behind
        the other, in two IDCs, the first. None: no member, or a direct conversation's."""
        since = None
        for hlc, origin, seq, is_member, _ in reversed(self.events.get(uid, ())):
            if not is_member:
                break
            since = Place(hlc, origin, seq)
        return since

    def set_name(self, name: str, at: Place) -> bool:
        """Two may create one group at the same time, in different IDCs. False: that is not the
        last name."""
        if at <= self.name_at:
            return False
        self.name, self.name_at = name, at
        return True

    def announce(self, text: str, actor: str, at: Place) -> bool:
        """False: that is not the last announcement."""
        if self.announced.HasField("at") and at <= place_of(self.announced.at):
            return False
        self.announced = oplog.Announced(text=text, actor=actor, at=place_pb(at))
        return True

    @property
    def encrypted(self) -> bool:
        """For good: only encrypted content may come in."""
        return self._encrypted or self.friends.encrypted

    def encrypt(self) -> bool:
        """A group. False: it is already."""
        if self._encrypted:
            return False
        self._encrypted = True
        return True

    def left(self, uid: str) -> Place | None:
        """Where the change stands by which this user is no member any more. None: one, or never
        one."""
        events = self.events.get(uid)
        if not events or events[-1][3]:
            return None
        hlc, origin, seq, _, _ = events[-1]
        return Place(hlc, origin, seq)

    def removed(self, uid: str) -> bool:
        """Whether somebody else has put this user out, and nobody in again."""
        events = self.events.get(uid)
        return bool(events) and not events[-1][3] and events[-1][4]  # type: ignore[index]

    def role(self, uid: str) -> pb.GroupRole.ValueType:
        """Of a member."""
        roles = self.roles()
        if uid == roles.owner:
            return pb.GROUP_ROLE_OWNER
        return pb.GROUP_ROLE_ADMIN if uid in roles.admins else MEMBER

    def roles(self) -> Roles:
        if self._roles is None:
            self._roles = roles_of(self.role_words, self.members(), self.joined)
        return self._roles

    def set_role(self, at: Place, word: pb.RoleChange) -> bool:
        """Of two at one place, which one op may give, the higher. False: it is not the last."""
        known = self.role_words.get(word.uid)
        if known is not None and known >= (at, word.role):
            return False
        self._part()
        self.role_words[word.uid] = at, word.role
        self._roles = None
        return True

    def _part(self) -> None:
        """From a copy: few batches change members."""
        if self._shared:
            self.events, self._shared = dict(self.events), False
            self.role_words = dict(self.role_words)

    def set_members(
        self, at: Place, changes: Iterable[tuple[str, bool]], actor: str = ""
    ) -> dict[str, bool]:
        """What was not known yet: these users, and whether each was a member before. A group may
        have 10,000 members: what is done for all of them is done once."""
        before: dict[str, bool] = {}
        current = self._current
        for uid, member in changes:
            events = self.events.get(uid, [])
            event = (*at, member, not member and uid != actor)
            if event in events:
                continue  # it was published again, or twice
            self._part()
            before.setdefault(uid, bool(events) and events[-1][3])
            self.events[uid] = sorted([*events, event])
        if before:
            self._roles = None
        came = {uid for uid, was in before.items() if not was and self.is_member(uid)}
        went = {uid for uid, was in before.items() if was and not self.is_member(uid)}
        if current is not None and (came or went):
            stay = [uid for uid in current if uid not in went] if went else current
            self._current = tuple(sorted((*stay, *sorted(came))) if came else stay)
        return before
