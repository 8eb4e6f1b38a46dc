"""What the applier keeps of a conversation between batches: heads and, for groups, members."""

from __future__ import annotations

from imcore.convert import origin_of, origin_pb, place_of, place_pb, positions_pb, vector_of
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import Origin, Place, Vector, direct_members, is_group
from services.im.roles import MEMBER, Roles, roles_of

# The place of the op (hlc, origin, seq), member, and whether another one has removed the user.
MemberEvent = tuple[int, Origin, int, bool, bool]
_NEVER = Place(0, Origin("", 0), 0)
_NOTHING = oplog.FriendRow()


class Conversation:
    """Heads: the seq folded of each origin. Members: intervals, the last event by
    (hlc, origin, seq) wins, and so do the last name and the last word on a member's role, so that
    replicas agree whatever order the events came in."""

    __slots__ = (
        "_current", "_roles", "_shared", "events", "friends", "heads", "id", "name", "name_at",
        "role_words",
    )  # fmt: skip

    def __init__(self, id_: str) -> None:
        self.id = id_
        self.heads: Vector = {}
        self.name = ""
        self.name_at = _NEVER
        self.events: dict[str, list[MemberEvent]] = {}
        self.role_words: dict[
            str, tuple[Place, pb.GroupRole.ValueType]
        ] = {}  # the last of each user
        # What the two of a direct one are to each other. Replaced, never changed.
        self.friends = _NOTHING
        self._current: tuple[str, ...] | None = direct_members(id_)
        self._roles: Roles | None = None
        self._shared = False  # ``events`` and ``role_words`` are also those of a copy

    def copy(self) -> Conversation:
        """To be changed while this one stays as it is."""
        made = Conversation.__new__(Conversation)
        made.id, made.heads = self.id, dict(self.heads)
        made.name, made.name_at = self.name, self.name_at
        made.events, made._current = self.events, self._current
        made.friends = self.friends
        made.role_words, made._roles = self.role_words, self._roles
        made._shared = self._shared = True
        return made

    @staticmethod
    def from_rows(
        id_: str, heads: bytes | None, group: bytes | None, friends: bytes | None = None
    ) -> Conversation:
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
            for member in row.members:
                if member.events:
                    conversation.events[member.uid] = [
                        (event.hlc, origin_of(event.origin), event.seq, event.member, event.removed)
                        for event in member.events
                    ]
                if member.HasField("role_at"):
                    conversation.role_words[member.uid] = (place_of(member.role_at), member.role)
        return conversation

    def heads_row(self) -> bytes:
        return oplog.HeadsRow(heads=positions_pb(self.heads)).SerializeToString(deterministic=True)

    def group_row(self) -> bytes:
        row = oplog.GroupRow(name=self.name)
        if self.name_at != _NEVER:
            row.name_at.CopyFrom(place_pb(self.name_at))
        for uid in sorted(self.events.keys() | self.role_words.keys()):
            member = row.members.add(uid=uid)
            for hlc, origin, seq, is_member, removed in self.events.get(uid, ()):
                event = member.events.add(hlc=hlc, origin=origin_pb(origin), seq=seq)
                event.member, event.removed = is_member, removed
            if uid in self.role_words:
                place, member.role = self.role_words[uid]
                member.role_at.CopyFrom(place_pb(place))
        return row.SerializeToString(deterministic=True)

    @property
    def exists(self) -> bool:
        return bool(self.events) if is_group(self.id) else self._current is not None

    def members(self) -> tuple[str, ...]:
        """Current members, sorted."""
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

    def set_name(self, name: str, at: Place) -> None:
        """Two may create one group at the same time, in different IDCs."""
        if at > self.name_at:
            self.name, self.name_at = name, at

    def set_member(self, uid: str, event: MemberEvent) -> None:
        events = self.events.get(uid, [])
        if event in events:
            return  # it was published again, or twice
        self._part()
        self.events[uid] = sorted([*events, event])
        self._current = self._roles = None

    def set_role(self, uid: str, at: Place, role: pb.GroupRole.ValueType) -> None:
        """Of two at one place, which one op may give, the higher."""
        known = self.role_words.get(uid)
        if known is None or known < (at, role):
            self._part()
            self.role_words[uid] = (at, role)
            self._roles = None

    def _part(self) -> None:
        """From a copy: few batches change members, and groups are large."""
        if self._shared:
            self.events, self._shared = dict(self.events), False
            self.role_words = dict(self.role_words)

    def role(self, uid: str) -> pb.GroupRole.ValueType:
        """Of a member."""
        roles = self.roles()
        if uid == roles.owner:
            return pb.GROUP_ROLE_OWNER
        return pb.GROUP_ROLE_ADMIN if uid in roles.admins else MEMBER

    def roles(self) -> Roles:
        if self._roles is None:
            since = {uid: _since(self.events[uid]) for uid in self.members() if uid in self.events}
            self._roles = roles_of(since, self.role_words)
        return self._roles

    def removed(self, uid: str) -> bool:
        """Whether somebody else has put this user out, and nobody in again."""
        events = self.events.get(uid)
        return bool(events) and not events[-1][3] and events[-1][4]  # type: ignore[index]


def _since(events: list[MemberEvent]) -> Place:
    """Where a member has come in: a second join of one who is in it, made in another IDC, says
    nothing new."""
    first = events[-1]
    for event in reversed(events):
        if not event[3]:
            break
        first = event
    return Place(*first[:3])
