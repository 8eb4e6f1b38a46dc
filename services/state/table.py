"""Who has a session here. Pure.

A session stands in the table from its Connect until it is over, grace included: what is pushed
while its connection is away is owed to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from services.state.session import Record

Address = tuple[str, int]  # gateway, connection
_CHANGES = 200  # more of them at a time than are found one by one in less time than all anew


class SessionTable:
    """At most one session per (uid, device). Pull-only ones have an address, nothing else.
    ``changed`` is told of each that has come, that has ended (``holds`` is false then), or, by who
    changes that, whose connection has come or gone."""

    def __init__(self) -> None:
        self.changed: Callable[[Record], None] | None = None
        self.version = 0  # rises with each change of which ``changed`` is told
        self._changed: deque[str] = deque(maxlen=_CHANGES)  # users, of the last versions
        self.by_address: dict[Address, Record] = {}
        self._by_device: dict[tuple[str, str], Record] = {}
        self._by_user: dict[str, dict[str, Record]] = {}
        self._by_id: dict[str, Record] = {}

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
        self._by_device[record.uid, record.device] = record
        self._by_user.setdefault(record.uid, {})[record.device] = record
        self._by_id[record.id] = record
        self.tell(record)

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

    def changed_since(self, version: int) -> set[str] | None:
        """Whose sessions have come or gone, or their connections. None: too many to be known."""
        count = self.version - version
        if count > len(self._changed):
            return None
        return set(islice(reversed(self._changed), count)) if count else set()

    def tell(self, record: Record) -> None:
        self.version += 1
        self._changed.append(record.uid)
        if self.changed is not None:
            self.changed(record)

    def of_users(self, uids: Iterable[str]) -> list[Record]:
        by_user = self._by_user
        return [
            record
            for uid in uids
            if (devices := by_user.get(uid)) is not None
            for record in devices.values()
        ]
