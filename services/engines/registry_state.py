"""The registry's state: keys, revisions, leases and a bounded history. Pure.

Every change of a key is one event with the next revision. The shell (registry_store) judges
changes against a ``Draft`` over this state, makes them durable, and only then applies them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.ports import Versioned, WatchEvents

HISTORY_EVENTS = 10_000


@dataclass(slots=True)
class Lease:
    """``deadline``: seconds of the injected clock's monotonic time."""

    id: int
    ttl_ms: int
    deadline: float
    keys: set[bytes] = field(default_factory=set)


class RegistryState:
    def __init__(self, history_events: int = HISTORY_EVENTS) -> None:
        self.store_id = b""
        self.revision = 0
        self.values: dict[bytes, Versioned] = {}
        self.leases: dict[int, Lease] = {}
        self._history: list[Versioned] = []  # revisions are consecutive, the last is ``revision``
        self._history_events = history_events

    # ------------------------------------------------------------------------- changes

    def apply(self, events: Iterable[Versioned]) -> None:
        for event in events:
            old = self.values.pop(event.key, None)
            if old is not None and old.lease in self.leases:
                self.leases[old.lease].keys.discard(event.key)
            if event.exists:
                self.values[event.key] = event
                if event.lease in self.leases:
                    self.leases[event.lease].keys.add(event.key)
            self.revision = event.mod_revision
            self._history.append(event)
        if len(self._history) > 2 * self._history_events:
            del self._history[: -self._history_events]

    def load(self, values: Iterable[Versioned], revision: int) -> None:
        """What a compacted journal begins with; its history is gone."""
        for value in values:
            self.values[value.key] = value
            if value.lease in self.leases:
                self.leases[value.lease].keys.add(value.key)
        self.revision = revision

    # --------------------------------------------------------------------------- reads

    def range(self, prefix: bytes) -> list[Versioned]:
        return [self.values[key] for key in sorted(self.values) if key.startswith(prefix)]

    def since(self, prefix: bytes, from_revision: int) -> WatchEvents:
        """Events of revisions >= ``from_revision``; a full read when it is 0, when that much
        history is gone, or when it lies in a future that this store has not had."""
        oldest = self.revision - len(self._history) + 1
        if from_revision == 0 or not oldest <= from_revision <= self.revision + 1:
            return WatchEvents(self.revision, self.range(prefix), compacted=from_revision != 0)
        events = self._history[from_revision - oldest :]
        return WatchEvents(self.revision, [e for e in events if e.key.startswith(prefix)])


class Draft:
    """Changes judged one after the other, each seeing those before it, none applied yet."""

    def __init__(self, state: RegistryState) -> None:
        self._state = state
        self._changed: dict[bytes, Versioned | None] = {}
        self.revision = state.revision
        self.events: list[Versioned] = []
        self.granted: dict[int, int] = {}  # lease id -> ttl_ms
        self.ended: set[int] = set()

    def get(self, key: bytes) -> Versioned | None:
        return self._changed[key] if key in self._changed else self._state.values.get(key)

    def has_lease(self, lease: int) -> bool:
        return lease not in self.ended and (lease in self._state.leases or lease in self.granted)

    def write(self, key: bytes, value: bytes | None, lease: int = 0) -> Versioned | None:
        """None removes; removing what is not there changes nothing."""
        if value is None and self.get(key) is None:
            return None
        self.revision += 1
        event = Versioned(key, value or b"", self.revision, lease, value is not None)
        self.events.append(event)
        self._changed[key] = event if event.exists else None
        return self._changed[key]

    def end_lease(self, lease: int) -> None:
        """Its keys go with it."""
        if not self.has_lease(lease):
            return
        self.ended.add(lease)
        held = self._state.leases.get(lease)
        keys = set(held.keys) if held else set()
        keys.update(event.key for event in self.events if event.lease == lease)
        for key in sorted(keys):
            current = self.get(key)
            if current is not None and current.lease == lease:
                self.write(key, None)
