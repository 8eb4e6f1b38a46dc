"""Which sessions of a huge group's members are here, looked up once for many messages. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.ports import Audience
from services.state.session import Record
from services.state.table import SessionTable

SLICE = 16  # members; some slices are told in one turn of the loop
_KEPT = 256  # groups


@dataclass(frozen=True, slots=True)
class Slice:
    """Its connections, by gateway: of clients that unpack what is packed, and of the others."""

    records: Sequence[Record]
    unpacking: Mapping[str, Sequence[int]]
    plain: Mapping[str, Sequence[int]]
    users: int
    connected: int  # sessions


class Reached:
    """``version``: of the table, up to which it is true."""

    __slots__ = (
        "_joined", "_own", "_parts", "_uids", "_where", "connected", "unpacking", "users",
        "version",
    )  # fmt: skip

    def __init__(self, audience: Audience, table: SessionTable) -> None:
        self._uids = audience.uids
        self._joined: list[str] = []
        self._where: dict[str, int] = {}  # of those who joined: the number of their slice
        self.version = table.version
        self._parts: dict[int, Slice] = {}  # those of which somebody is here, by their number
        self.users = self.connected = 0
        self.unpacking = 0  # slices with any such client
        self._own = (len(self._uids) + SLICE - 1) // SLICE
        for number in range(self._own):
            self._look(number, table)
        self.grow(audience, table)

    @property
    def joined(self) -> int:
        return len(self._joined)

    @property
    def slices(self) -> list[Slice]:
        return list(self._parts.values())

    def grow(self, audience: Audience, table: SessionTable) -> None:
        """Those who have joined since the last look are in slices behind the others."""
        begun = len(self._joined)
        self._joined += audience.joined[begun:]
        for at in range(begun, len(self._joined)):
            self._where[self._joined[at]] = self._own + at // SLICE
        for number in range(begun // SLICE, (len(self._joined) + SLICE - 1) // SLICE):
            self._look(self._own + number, table)

    def changed(self, uid: str, table: SessionTable) -> bool:
        """A session of this user has come or gone, or its connection. False: it is no member."""
        at = bisect_left(self._uids, uid)
        if at < len(self._uids) and self._uids[at] == uid:
            self._look(at // SLICE, table)
        elif (number := self._where.get(uid)) is not None:
            self._look(number, table)
        else:
            return False
        return True

    def _look(self, number: int, table: SessionTable) -> None:
        former = self._parts.pop(number, None)
        if former is not None:
            self._count(former, -1)
        own = number < self._own
        begin = (number if own else number - self._own) * SLICE
        uids = (self._uids if own else self._joined)[begin : begin + SLICE]
        if records := table.of_users(uids):
            found = self._parts[number] = _slice(records)
            self._count(found, 1)

    def _count(self, part: Slice, by: int) -> None:
        self.users += by * part.users
        self.connected += by * part.connected
        self.unpacking += by * bool(part.unpacking)


class ReachedGroups:
    """Looked up anew when the members have changed (another ``Audience``). When a session has come,
    gone, or lost its connection, only those beside it are."""

    def __init__(self, table: SessionTable) -> None:
        self._table = table
        self._found: OrderedDict[str, tuple[Audience, Reached]] = OrderedDict()
        self.lookups = 0  # of all members
        self.changes = 0  # of one

    def of(self, audience: Audience) -> Reached:
        known, reached = self._found.get(audience.conversation, (None, None))
        if reached is not None and known is audience:
            changed = self._table.changed_since(reached.version)
            if changed is not None:
                for uid in changed:
                    self.changes += reached.changed(uid, self._table)
                reached.version = self._table.version
                if len(audience.joined) > reached.joined:
                    reached.grow(audience, self._table)
                return reached
        self.lookups += 1
        reached = Reached(audience, self._table)
        self._found[audience.conversation] = (audience, reached)
        self._found.move_to_end(audience.conversation)
        if len(self._found) > _KEPT:
            self._found.popitem(last=False)
        return reached


def by_gateway(records: Iterable[Record]) -> dict[str, list[int]]:
    """Their connections."""
    found: dict[str, list[int]] = {}
    for record in records:
        found.setdefault(record.gateway, []).append(record.connection)
    return found


def _slice(records: Sequence[Record]) -> Slice:
    connected = [record for record in records if record.connected]
    return Slice(
        records,
        by_gateway(record for record in connected if record.unpacks),
        by_gateway(record for record in connected if not record.unpacks),
        len({record.uid for record in records}),
        len(connected),
    )
