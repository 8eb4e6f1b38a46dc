"""Who has a session here. Pure.

A session stands in the table from its Connect until it is over, grace included: what is pushed
while its connection is away is owed to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator

from services.state.changes import Changes
from services.state.dirty import Dirty
from services.state.session import Record

Address = tuple[str, int]  # gateway, connection
_SIDE_MAX = 4  # pull-only connections of a device: it has one in each IDC, and is given up late
_CHANGES = 200


class Connections(dict[Address, Record]):
    """Who is at each address, and how many there are: whoever asks for that walks through none."""

    def __init__(self) -> None:
        super().__init__()
        self.pull_only = 0
        self.shards: Counter[str] = Counter()  # of the others

    def __setitem__(self, address: Address, record: Record) -> None:
        self.pop(address, None)
        super().__setitem__(address, record)
        self._count(record, 1)

    def pop(self, address: Address, default: None = None) -> Record | None:  # type: ignore[override]
        record = super().pop(address, None)
        if record is not None:
            self._count(record, -1)
        return record

    def _count(self, record: Record, by: int) -> None:
        if record.pull_only:
            self.pull_only += by
            return
        self.shards[record.shard] += by
        if not self.shards[record.shard]:
            del self.shards[record.shard]


class SessionTable:
    """At most one session per (uid, device). Pull-only ones have an address, and a few a device.
    ``changed`` is told of each that has come, that has ended (``holds`` is false then), or, by who
    changes that, whose connection has come or gone."""

    def __init__(self) -> None:
        self.changed: Callable[[Record], None] | None = None
        self._changes = Changes(_CHANGES)
        self.by_address = Connections()
        self._dirty = Dirty()
        self._by_device: dict[tuple[str, str], Record] = {}
        self._by_user: dict[str, dict[str, Record]] = {}
        self._by_id: dict[str, Record] = {}
        self._beside: dict[tuple[str, str], dict[str, Record]] = {}  # pull-only ones, oldest first

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._by_device.values()))

    def of_device(self, uid: str, device: str) -> Record | None:
        return self._by_device.get((uid, device))

    def by_id(self, session: str) -> Record | None:
        return self._by_id.get(session)

    def holds(self, record: Record) -> bool:
        """False: it is over, or a newer connection of the device has taken its place."""
        return self._by_device.get((record.uid, record.device)) is record

    def put(self, record: Record) -> None:
        """In place of the device's former session, if there was one."""
        former = self._by_device.get((record.uid, record.device))
        if former is not None:
            self._by_id.pop(former.id, None)
            self._dirty.note([former.id])
        self._by_device[record.uid, record.device] = record
        self._by_user.setdefault(record.uid, {})[record.device] = record
        self._by_id[record.id] = record
        self.tell(record)

    def put_beside(self, record: Record) -> Record | None:
        """A pull-only one, from its Connect on. Returns the oldest of the device if there are too
        many now; it is here no more."""
        beside = self._beside.setdefault((record.uid, record.device), {})
        beside[record.id] = record
        if len(beside) <= _SIDE_MAX:
            return None
        oldest = next(iter(beside.values()))
        self.remove_beside(oldest)
        return oldest

    def remove_beside(self, record: Record) -> None:
        beside = self._beside.get((record.uid, record.device), {})
        beside.pop(record.id, None)
        if not beside:
            self._beside.pop((record.uid, record.device), None)

    def beside(self, record: Record) -> bool:
        """Whether it is one of those."""
        return record.id in self._beside.get((record.uid, record.device), ())

    def remove(self, record: Record) -> bool:
        """False: it is not here (any more)."""
        if not self.holds(record):
            return False
        del self._by_device[record.uid, record.device]
        devices = self._by_user[record.uid]
        del devices[record.device]
        if not devices:
            del self._by_user[record.uid]
        self._by_id.pop(record.id, None)
        self.tell(record)
        return True

    @property
    def version(self) -> int:
        """Rises with each change of which ``changed`` is told."""
        return self._changes.version

    def changed_since(self, version: int) -> Collection[str] | None:
        """Whose sessions have come or gone, or their connections. None: too many to be known."""
        return self._changes.since(version)

    def tell(self, record: Record) -> None:
        self._changes.note(record.uid)
        self._dirty.note([record.id])
        if self.changed is not None:
            self.changed(record)

    def since(self) -> dict[str, Record | None]:
        """By session: whose connection has come or gone since this was asked last, at first all
        that stand. None: it has none (any more)."""
        dirty = self._dirty.take()
        if dirty is None:
            return {record.id: record for record in self if record.connected}
        found = {session: self._by_id.get(session) for session in dirty}
        return {s: record if record and record.connected else None for s, record in found.items()}

    def of_users(self, uids: Iterable[str]) -> list[Record]:
        by_user = self._by_user
        return [
            record
            for uid in uids
            if (devices := by_user.get(uid)) is not None
            for record in devices.values()
        ]
