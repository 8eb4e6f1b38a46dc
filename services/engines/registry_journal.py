"""The registry's file: an append-only journal of entries, rewritten when it has grown; blocking.

    length u32, crc u32 (CRC-32 of the body, seeded with the length), body

A body is a kind byte and a Protobuf message:

    S  RegistryRangeReply   the whole state when the file was written: always the first entry
    L  RegistryLease        a lease was granted (alive) or ended
    E  RegistryEvents       changes of keys

One write of the store is one append and one fsync; it may hold several entries, the E entry last
of those that belong together, so that a torn tail loses only what nobody was told of.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Iterable

from imcore.errors import Damaged
from imcore.proto import peer_pb2 as pb
from services.engines.disk import Disk, File
from services.engines.registry_state import Draft, Lease, RegistryState
from services.ports import Versioned

log = logging.getLogger("im.registry")

_HEAD = struct.Struct(">II")
_REWRITE_BYTES = 4 * 1024 * 1024


def value_pb(value: Versioned) -> pb.RegistryValue:
    return pb.RegistryValue(
        key=value.key,
        value=value.value,
        mod_revision=value.mod_revision,
        lease=value.lease,
        exists=value.exists,
    )


def value_of(message: pb.RegistryValue) -> Versioned:
    return Versioned(
        message.key, message.value, message.mod_revision, message.lease, message.exists
    )


def _entry(kind: bytes, body: bytes) -> bytes:
    body = kind + body
    return _HEAD.pack(len(body), zlib.crc32(body, len(body))) + body


def snapshot_entries(state: RegistryState) -> bytes:
    reply = pb.RegistryRangeReply(revision=state.revision, store_id=state.store_id)
    reply.values.extend(value_pb(state.values[key]) for key in sorted(state.values))
    leases = (_lease_entry(lease.id, lease.ttl_ms, True) for lease in state.leases.values())
    # Leases first would be natural, but the first entry names the store.
    return _entry(b"S", reply.SerializeToString()) + b"".join(leases)


def _lease_entry(lease: int, ttl_ms: int, alive: bool) -> bytes:
    message = pb.RegistryLease(id=lease, ttl_ms=ttl_ms, alive=alive)
    return _entry(b"L", message.SerializeToString())


def draft_entries(draft: Draft) -> bytes:
    parts = [_lease_entry(lease, ttl_ms, True) for lease, ttl_ms in draft.granted.items()]
    if draft.events:
        events = pb.RegistryEvents(revision=draft.revision)
        events.events.extend(map(value_pb, draft.events))
        parts.append(_entry(b"E", events.SerializeToString()))
    parts += [_lease_entry(lease, 0, False) for lease in sorted(draft.ended)]
    return b"".join(parts)


class _Replay:
    """Folds the journal's entries into a state."""

    def __init__(self, state: RegistryState, now: float) -> None:
        self.state = state
        self._now = now

    def entry(self, body: bytes) -> None:
        """Raises ValueError for what is no entry."""
        kind, message = body[:1], body[1:]
        if (kind == b"S") == bool(self.state.store_id):
            raise ValueError("the first entry, and only it, is the whole state")
        if kind == b"S":
            reply = pb.RegistryRangeReply.FromString(message)
            self.state.store_id = reply.store_id
            self.state.load(map(value_of, reply.values), reply.revision)
        elif kind == b"E":
            self.state.apply(map(value_of, pb.RegistryEvents.FromString(message).events))
        elif kind == b"L":
            self._lease(pb.RegistryLease.FromString(message))
        else:
            raise ValueError(f"an entry of kind {kind!r}")

    def _lease(self, lease: pb.RegistryLease) -> None:
        if not lease.alive:
            self.state.leases.pop(lease.id, None)
            return
        # A restart gives every lease its full time again: its holder could not refresh it.
        keys = {v.key for v in self.state.values.values() if v.lease == lease.id}
        deadline = self._now + lease.ttl_ms / 1000
        self.state.leases[lease.id] = Lease(lease.id, lease.ttl_ms, deadline, keys)


class Journal:
    def __init__(self, disk: Disk, path: str) -> None:
        self._disk = disk
        self._path = path
        self._file: File | None = None
        self._durable_bytes = 0
        self._rewrite_at = _REWRITE_BYTES
        self._broken = False

    def load(self, state: RegistryState, now: float) -> None:
        """Fold the file into the empty ``state``. Raises FileNotFoundError, Damaged. A torn tail
        is cut."""
        data = self._disk.read(self._path)
        replay = _Replay(state, now)
        at = 0
        while body := _body_at(data, at):
            try:
                replay.entry(body)
            except Exception as error:
                raise Damaged(f"{self._path} holds a wrong entry at {at}: {error}") from error
            at += _HEAD.size + len(body)
        if not state.store_id or _valid_behind(data, at):
            raise Damaged(f"{self._path} fails its check at offset {at}")
        self._open(at)

    def create(self, state: RegistryState) -> None:
        """(Re)write the file whole, atomically."""
        data = snapshot_entries(state)
        self.close()
        self._disk.write_whole(self._path, data)
        self._open(len(data))
        self._rewrite_at = max(_REWRITE_BYTES, 2 * len(data))

    def _open(self, size: int) -> None:
        self._file = self._disk.open(self._path)
        if self._file.size > size:
            log.warning(
                "a torn tail of %d bytes was cut from %s", self._file.size - size, self._path
            )
            self._file.truncate(size)
            self._file.sync()
        self._durable_bytes = size

    @property
    def has_grown(self) -> bool:
        return self._durable_bytes >= self._rewrite_at

    def append(self, data: bytes) -> None:
        """Durable when it returns. Raises DiskFull (nothing is kept) or OutcomeUnknown."""
        if self._file is None:
            self._open(self._durable_bytes)
        assert self._file is not None
        if self._broken:
            self._cut()
        self._broken = True
        try:
            self._file.append(data)
            self._file.sync()
        except Exception:
            self._cut()
            raise
        self._broken = False
        self._durable_bytes = self._file.size

    def _cut(self) -> None:
        assert self._file is not None
        self._file.truncate(self._durable_bytes)
        self._file.sync()
        self._broken = False

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _body_at(data: bytes, at: int) -> bytes | None:
    if len(data) - at < _HEAD.size:
        return None
    length, crc = _HEAD.unpack_from(data, at)
    body = data[at + _HEAD.size : at + _HEAD.size + length]
    return body if length and len(body) == length and zlib.crc32(body, length) == crc else None


def _valid_behind(data: bytes, at: int) -> bool:
    """Whether any whole entry lies behind bad bytes: damage, not a torn tail."""
    return any(_body_at(data, place) for place in _places(data, at + 1))


def _places(data: bytes, at: int) -> Iterable[int]:
    for kind in (b"E", b"L"):
        found = data.find(kind, at + _HEAD.size)
        while found >= 0:
            yield found - _HEAD.size
            found = data.find(kind, found + 1)
