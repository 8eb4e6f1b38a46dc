"""What the applier keeps of a conversation between batches: heads and, for groups, members."""

from __future__ import annotations

from imcore.convert import fill_origin, origin_of, origin_pb, place_of, place_pb, vector_of
from imcore.proto import oplog_pb2 as oplog
from imcore.words import Origin, Place, Vector, direct_members, is_group

MemberEvent = tuple[int, Origin, int, bool]  # the place of the op: hlc, origin, seq; member
_NEVER = Place(0, Origin("", 0), 0)


class Conversation:
    """Heads: the seq folded of each origin. Members: intervals, the last event by
    (hlc, origin, seq) wins, and so does the last name, so that replicas agree whatever order the
    events came in."""

    __slots__ = ("_current", "_shared", "events", "heads", "id", "name", "name_at")

    def __init__(self, id_: str) -> None:
        self.id = id_
        self.heads: Vector = {}
        self.name = ""
        self.name_at = _NEVER
        self.events: dict[str, list[MemberEvent]] = {}
        self._current: tuple[str, ...] | None = direct_members(id_)
        self._shared = False  # ``events`` is also that of a copy

    def copy(self) -> Conversation:
        """To be changed while this one stays as it is."""
        made = Conversation.__new__(Conversation)
        made.id, made.heads = self.id, dict(self.heads)
        made.name, made.name_at = self.name, self.name_at
        made.events, made._current = self.events, self._current
        made._shared = self._shared = True
        return made

    @staticmethod
    def from_rows(id_: str, heads: bytes | None, group: bytes | None) -> Conversation:
        conversation = Conversation(id_)
        if heads is not None:
            conversation.heads = vector_of(oplog.HeadsRow.FromString(heads).heads)
        if group is not None:
            row = oplog.GroupRow.FromString(group)
            conversation.name = row.name
            if row.HasField("name_at"):
                conversation.name_at = place_of(row.name_at)
            for member in row.members:
                conversation.events[member.uid] = [
                    (event.hlc, origin_of(event.origin), event.seq, event.member)
                    for event in member.events
                ]
        return conversation

    def heads_row(self) -> bytes:
        row = oplog.HeadsRow()
        for origin in sorted(self.heads):
            head = row.heads.add()
            head.seq = self.heads[origin]
            fill_origin(head.origin, origin)
        return row.SerializeToString(deterministic=True)

    def group_row(self) -> bytes:
        row = oplog.GroupRow(name=self.name)
        if self.name_at != _NEVER:
            row.name_at.CopyFrom(place_pb(self.name_at))
        for uid in sorted(self.events):
            member = row.members.add(uid=uid)
            for hlc, origin, seq, is_member in self.events[uid]:
                member.events.add(hlc=hlc, origin=origin_pb(origin), seq=seq, member=is_member)
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
        if self._shared:  # few batches change members, and groups are large
            self.events, self._shared = dict(self.events), False
        self.events[uid] = sorted([*events, event])
        self._current = None
