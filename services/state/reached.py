"""Which sessions of a huge group's members are here, looked up once for many messages. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.ports import Audience
from services.state.session import Record
from services.state.table import SessionTable

SLICE = 16  # sessions; some of these are told in one turn of the loop
_KEPT = 256  # groups


@dataclass(frozen=True, slots=True)
class Slice:
    """Its connections, by gateway: of clients that unpack what is packed, and of the others."""

    records: Sequence[Record]
    unpacking: Mapping[str, Sequence[int]]
    plain: Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Reached:
    slices: Sequence[Slice]
    users: int
    connected: int  # sessions
    unpacking: bool  # any of them


class ReachedGroups:
    """Looked up anew when the members have changed (another ``Audience``), or a session has come,
    gone, or lost its connection."""

    def __init__(self, table: SessionTable) -> None:
        self._table = table
        self._found: OrderedDict[str, tuple[Audience, int, Reached]] = OrderedDict()
        self.lookups = 0

    def of(self, audience: Audience) -> Reached:
        found = self._found.get(audience.conversation)
        if found is not None and found[0] is audience and found[1] == self._table.version:
            return found[2]
        self.lookups += 1
        reached = _look(self._table.of_users(audience.uids))
        self._found[audience.conversation] = (audience, self._table.version, reached)
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


def _look(records: Sequence[Record]) -> Reached:
    slices = []
    for begin in range(0, len(records), SLICE):
        part = records[begin : begin + SLICE]
        connected = [record for record in part if record.connected]
        slices.append(
            Slice(
                part,
                by_gateway(record for record in connected if record.unpacks),
                by_gateway(record for record in connected if not record.unpacks),
            )
        )
    return Reached(
        slices,
        len({record.uid for record in records}),
        sum(record.connected for record in records),
        any(part.unpacking for part in slices),
    )
