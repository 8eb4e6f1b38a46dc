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

    __slots__ = ("_parts", "_uids", "connected", "unpacking", "users", "version")

    def __init__(self, audience: Audience, table: SessionTable) -> None:
        self._uids = uids = audience.uids
        self.version = table.version
        self._parts: dict[int, Slice] = {}  # those of which somebody is here, by their number
        self.users = self.connected = 0
        self.unpacking = 0  # slices with any such client
        for number in range((len(uids) + SLICE - 1) // SLICE):
            self._look(number, table)

    @property
    def slices(self) -> list[Slice]:
        return list(self._parts.values())

    def changed(self, uid: str, table: SessionTable) -> bool:
        """A session of this user has come or gone, or its connection. False: it is no member."""
        at = bisect_left(self._uids, uid)
        if at == len(self._uids) or self._uids[at] != uid:
            return False
        self._look(at // SLICE, table)
        return True

    def _look(self, number: int, table: SessionTable) -> None:
        former = self._parts.pop(number, None)
        if former is not None:
            self._count(former, -1)
        uids = self._uids[number * SLICE : (number + 1) * SLICE]
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
