"""What the applier keeps of a conversation between batches: heads and, for groups, members."""

from __future__ import annotations

from collections.abc import Iterable

from imcore.convert import origin_of, origin_pb, place_of, place_pb, positions_pb, vector_of
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
    def from_rows(
        id_: str,
        heads: bytes | None,
        group: bytes | None = None,
        members: Iterable[tuple[str, bytes]] = (),
    ) -> Conversation:
        """``members``: uid and MemberRow of each."""
        conversation = Conversation(id_)
        if heads is not None:
            conversation.heads = vector_of(oplog.HeadsRow.FromString(heads).heads)
        if group is not None:
            row = oplog.GroupRow.FromString(group)
            conversation.name = row.name
            if row.HasField("name_at"):
                conversation.name_at = place_of(row.name_at)
        origins: dict[Origin, Origin] = {}  # one object each, however many members there are
        for uid, value in members:
            conversation.events[uid] = [
                (
                    event.hlc,
                    origins.setdefault(origin := origin_of(event.origin), origin),
                    event.seq,
                    event.member,
                )
                for event in oplog.MemberRow.FromString(value).events
            ]
        return conversation

    def heads_row(self) -> bytes:
        return oplog.HeadsRow(heads=positions_pb(self.heads)).SerializeToString(deterministic=True)

    def group_row(self) -> bytes:
        row = oplog.GroupRow(name=self.name, name_at=place_pb(self.name_at))
        return row.SerializeToString(deterministic=True)

    def member_row(self, uid: str) -> bytes:
        row = oplog.MemberRow()
        for hlc, origin, seq, is_member in self.events[uid]:
            row.events.add(hlc=hlc, origin=origin_pb(origin), seq=seq, member=is_member)
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
        for hlc, origin, seq, is_member in reversed(self.events.get(uid, ())):
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

    def set_members(self, at: Place, changes: Iterable[tuple[str, bool]]) -> dict[str, bool]:
        """What was not known yet: these users, and whether each was a member before. A group may
        have 10,000 members: what is done for all of them is done once."""
        before: dict[str, bool] = {}
        current = self._current
        for uid, member in changes:
            events, event = self.events.get(uid, []), (*at, member)
            if event in events:
                continue  # it was published again, or twice
            if self._shared:  # few batches change members
                self.events, self._shared = dict(self.events), False
            before.setdefault(uid, bool(events) and events[-1][3])
            self.events[uid] = sorted([*events, event])
        came = {uid for uid, was in before.items() if not was and self.is_member(uid)}
        went = {uid for uid, was in before.items() if was and not self.is_member(uid)}
        if current is not None and (came or went):
            stay = [uid for uid in current if uid not in went] if went else current
            self._current = tuple(sorted((*stay, *sorted(came))) if came else stay)
        return before
