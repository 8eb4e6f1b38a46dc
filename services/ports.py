"""The ports: what the services need from engines and from each other.

No service imports an adapter; the process's composition root (services.node) picks them from the
region file. Nothing outside an adapter knows the engine's name. One contract suite
(tests/contract) runs against every adapter of a port.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from imcore.errors import ImError
from imcore.proto import client_pb2 as pb
from imcore.words import Origin, Vector

# ------------------------------------------------------------------------------------- KV

# Of keys and values: whoever could write more in one batch makes several. A store may refuse what
# is several times as large, as Unavailable.
BATCH_BYTES_MAX = 1 << 20


@dataclass(slots=True)
class Batch:
    """What one applied batch of a partition writes, atomically.

    ``checkpoint`` holds the applier's epoch and vector; every batch *writes* it, so that a
    snapshot-isolated store sees two appliers of one partition in conflict.
    """

    partition: int
    applier_epoch: int
    checkpoint: bytes
    puts: dict[bytes, bytes] = field(default_factory=dict)
    deletes: set[bytes] = field(default_factory=set)

    @property
    def size(self) -> int:
        values = self.puts.values()
        return sum(map(len, self.puts)) + sum(map(len, values)) + sum(map(len, self.deletes))


class Kv(Protocol):
    """Ordered keys of 1 to 511 bytes, every key of one partition number: it starts with that
    number, big-endian, two bytes. To write a longer one raises ValueError. State may be lost back
    to an earlier batch by a crash (it is a fold of the logs), but never torn and never out of
    order.

    Any call may suspend. Reads raise Unavailable. Writes of a partition raise it when they are
    surely not done, and OutcomeUnknown when they may be, or may still come to be: then the
    partition is opened again before anything else, which settles it.

    A snapshot is a folder in the one form of services.engines.lmdb_snapshot, whatever the store:
    it is shown to other IDCs, and leads from one store to another."""

    @property
    def rolled_back(self) -> bool:
        """It was found in an earlier state than it was left in."""
        ...

    async def get(self, key: bytes) -> bytes | None: ...

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]: ...

    async def scan(
        self, start: bytes, end: bytes, limit: int, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """Up to ``limit`` pairs with start <= key < end, ascending (or descending)."""
        ...

    async def open_partition(self, partition: int) -> tuple[int, bytes | None]:
        """Take the partition over: raises its applier epoch durably and returns it with the stored
        checkpoint (None: empty). From then on every older epoch's commit raises StaleWriter."""
        ...

    async def commit(self, batch: Batch) -> None:
        """Raises StaleWriter when the epoch is not the newest, DiskFull when it cannot write."""
        ...

    async def clear_partition(self, partition: int, applier_epoch: int, checkpoint: bytes) -> None:
        """Throw the partition's rows away, before a rebuild from the logs, and write this
        checkpoint, atomically. Same errors."""
        ...

    async def sync(self) -> None:
        """Everything committed so far survives a power loss when this returns."""
        ...

    async def snapshot(self, folder: Path) -> None:
        """A consistent, verified copy in a new folder, checkpoints included. Raises Damaged when
        the copy does not hold what it was made of, BadInput when the folder exists."""
        ...

    async def restore(self, snapshot: Path) -> None:
        """Put a snapshot in the place of everything; no partition is open then. Raises Damaged
        when the snapshot fails its check, BadInput when it is not there: nothing has changed."""
        ...

    async def load_partition(
        self, snapshot: Path, partition: int, applier_epoch: int, checkpoint: bytes
    ) -> None:
        """Put the rows that a snapshot has of one partition in the place of what is here, with this
        checkpoint. Raises StaleWriter, Damaged when the snapshot fails its check."""
        ...

    async def close(self) -> None: ...


# ---------------------------------------------------------------------------------- Blobs


class UploadFound(NamedTuple):
    """One that is under way: what was noted when it began, and how much of it is durable."""

    note: bytes
    size: int


class Blobs(Protocol):
    """Files by the SHA-256 of their bytes, in hex, each stored once; and uploads, which become
    files. A file has notes, small, each under a name of letters, digits, "-" and ".".

    All of it is durable when a call returns. Calls for one upload or one file do not overlap: the
    caller sees to that. Raises DiskFull when there is no room, and then nothing has changed. Raises
    Unavailable or OutcomeUnknown for what does not answer: it may have been done, and may be asked
    for again."""

    async def look(self) -> None:
        """Whether it can be used now. Raises Unavailable (NotTrusted among it), and BadInput for
        what the region file names and is not there."""
        ...

    async def close(self) -> None: ...

    async def uploads(self) -> dict[str, UploadFound]:
        """By name, of this and earlier lives."""
        ...

    async def begin(self, upload: str, note: bytes) -> None: ...

    async def put(self, upload: str, offset: int, data: bytes, last: bool = False) -> None:
        """Raises ValueError unless ``offset`` is where it ends, Refused for chunks that are too
        small, unless it is the last one."""
        ...

    async def uploaded(self, upload: str) -> int:
        """Bytes of it that are durable."""
        ...

    async def complete(self, upload: str, sha256: str) -> bool:
        """At once, or not at all: False when its bytes have another hash. The upload is gone then,
        either way."""
        ...

    async def abandon(self, upload: str) -> None: ...

    async def files(self) -> dict[str, int]:
        """Sizes by SHA-256, of all."""
        ...

    async def read(self, sha256: str, offset: int, size: int) -> bytes:
        """Less at its end, nothing beyond. Raises FileNotFoundError."""
        ...

    async def delete(self, sha256: str) -> None:
        """With its notes; also one that is not there."""
        ...

    async def write_note(self, sha256: str, name: str, data: bytes) -> None:
        """The file need not be there yet."""
        ...

    async def note(self, sha256: str, name: str) -> bytes | None: ...

    async def notes(self, sha256: str) -> list[str]:
        """Names, sorted."""
        ...

    async def noted(self) -> dict[str, set[str]]:
        """The names of the notes of all files, by SHA-256. None is read: what is to be known of
        many files at once stands in a name."""
        ...

    async def remove_note(self, sha256: str, name: str) -> None: ...


# ------------------------------------------------------------------------------------ Log


class Record(NamedTuple):
    """One record of a log. ``chain`` is the hash over this record and its predecessor's chain."""

    partition: int
    epoch: int
    lsn: int
    chain: bytes
    payload: bytes  # a serialized oplog.Op


class LogEnd(NamedTuple):
    """Where a partition's log ends: lsn 0 and 16 zero bytes when empty."""

    lsn: int
    chain: bytes
    epoch: int


class Log(Protocol):
    """One origin's log in this IDC: the own log, or the durable copy of another's.

    Only the own log is appended with ``append``; a copy takes whole records, positions kept, with
    ``append_copy``. Both are durable (``LogStore.durability``) when the call returns.
    """

    origin: Origin
    partitions: int

    def end(self, partition: int) -> LogEnd:
        """The durable end."""
        ...

    def first_lsn(self, partition: int) -> int:
        """The lowest lsn still stored (end + 1 when nothing is)."""
        ...

    def append(
        self,
        partition: int,
        epoch: int,
        payloads: Sequence[bytes],
        done: Callable[[Sequence[Record] | Exception], None],
    ) -> int:
        """Give the payloads the next lsns; returns the first of them at once. ``done`` is called
        from the loop, in lsn order across calls, once the records are durable, or with DiskFull or
        Unavailable when they are not and never will be, or with OutcomeUnknown: they may still come
        to be, but never behind the marker of an epoch that is opened after ``reopen``. Then every
        later append fails likewise until ``reopen``. Calls of one loop turn share one write, and
        so do those that arrive while a write is under way (group commit)."""
        ...

    async def reopen(self, partition: int) -> LogEnd:
        """After a failed append: cut, or find, what was not acknowledged; the end is then what the
        log really holds, and appends are taken again."""
        ...

    async def append_copy(self, records: Sequence[Record]) -> None:
        """Records of any partitions, each partition's contiguous from its end. Already held ones
        are dropped. Raises Damaged when a chain does not continue, DiskFull."""
        ...

    async def read(self, partition: int, from_lsn: int, limit_bytes: int) -> list[Record]:
        """Records from ``from_lsn`` on, durable ones only; empty at the end. Raises Damaged, and
        LookupError when ``from_lsn`` has been truncated away."""
        ...

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """``callback`` is called from the loop after the durable end of any partition has risen.
        Returns a function that ends the subscription."""
        ...

    async def truncate_below(self, partition: int, lsn: int) -> None:
        """Forget whole segments that lie below lsn."""
        ...

    async def cut_above(self, partition: int, lsn: int) -> None:
        """Forget what lies above lsn (copies only: records above a committed seal)."""
        ...

    async def restart_at(self, partition: int, end: LogEnd) -> None:
        """Forget what is held of a copy and go on behind ``end``."""
        ...

    def stored_bytes(self, partition: int, above_lsn: int) -> int:
        """About how much room the records above that lsn take."""
        ...

    async def close(self) -> None: ...


class LogStore(Protocol):
    """All logs that this IDC holds.

    A boot count is used in two steps: opening persists the new one as pending; the caller commits
    it to its register and then calls ``confirm_boot``.
    """

    log_id: bytes  # random, made with the store, 16 bytes
    boot_count: int  # of this boot
    confirmed_boot_count: int  # of the last boot that was confirmed
    clean: bool  # nothing of the own log is damaged since a boot was last confirmed
    durability: str  # what "durable" means here, in one word for ``status``
    fsynced: bool  # an acked record survives a crash of all machines of this IDC
    # Something beside this process brings the other IDCs' records into the copies; what it leaves
    # out is brought by ``append_copy``.
    filled_from_outside: bool

    def own(self) -> Log | None: ...

    async def open_own(self, origin: Origin) -> Log:
        """Opens (or makes) this IDC's own log under this incarnation."""
        ...

    async def open_copy(self, origin: Origin) -> Log: ...

    def held(self) -> dict[Origin, Log]:
        """Every log here, earlier incarnations included."""
        ...

    def alarms(self) -> list[str]:
        """What an operator must know: that nothing can be read, that its settings differ."""
        ...

    async def confirm_boot(self) -> None:
        """The caller's register holds this boot count (and, after damage, what it decided)."""
        ...

    async def renew(self) -> None:
        """Become another store than the one that any register names: what this one knew is about to
        be replaced, so it must not go on under its incarnation."""
        ...

    async def close(self) -> None: ...


# --------------------------------------------------------------------------------- Mirror


class Mirror(Protocol):
    """Follows all incarnations of one other IDC into durable copies in this IDC's LogStore: each
    partition in order, at least once, resumed after any fault. A record counts as held (and is
    reported so) once it is durable in the copy. While the origin is away, or cannot serve what
    comes next, whichever other IDC holds the longest copy is the source. What does not continue a
    copy raises an alarm and is not taken; nothing above a seal is."""

    idc: str  # whose logs
    missed: Callable[[str], None] | None  # told, in a sentence, that nobody has what comes next

    @property
    def source(self) -> str:
        """From whom the last batch came; empty: from nobody yet."""
        ...

    @property
    def heard_at(self) -> float:
        """When (``Clock.now``)."""
        ...

    @property
    def alarm(self) -> str | None: ...

    async def run(self) -> None:
        """Until cancelled; no fault of a source ends it."""
        ...

    def behind(self) -> int:
        """Records known to exist at the origin that are not held here."""
        ...


# ------------------------------------------------------------------------------- Registry


class Versioned(NamedTuple):
    """A value with the store revision that wrote it; ``exists`` False for a removed key."""

    key: bytes
    value: bytes
    mod_revision: int
    lease: int = 0
    exists: bool = True


class WatchEvents(NamedTuple):
    revision: int
    events: list[Versioned]
    compacted: bool = False  # the history was gone: ``events`` is a full re-read


class Registry(Protocol):
    """One IDC's registry. All calls raise Unavailable (not done) or OutcomeUnknown (maybe done)."""

    async def store_id(self) -> bytes:
        """Random id made with the store: a blank store is known by its new id."""
        ...

    async def get(self, key: bytes) -> Versioned | None: ...

    async def range(self, prefix: bytes, *more: bytes) -> list[Versioned]:
        """What lies under the first of these prefixes, by key, then what under the next."""
        ...

    async def compare_and_swap(
        self, key: bytes, expected_mod_revision: int, value: bytes | None, lease: int = 0
    ) -> tuple[bool, Versioned | None]:
        """Write when the key's mod_revision is as expected (0: it must not exist); None removes.
        Durable when it returns. Second: what the key holds now."""
        ...

    async def put(self, key: bytes, value: bytes | None, lease: int = 0) -> None: ...

    async def grant_lease(self, ttl_ms: int) -> int: ...

    async def keep_alive(self, lease: int) -> bool:
        """False: the lease has ended, and its keys are gone."""
        ...

    async def revoke_lease(self, lease: int) -> None: ...

    def watch(self, prefix: bytes, from_revision: int = 0) -> AsyncIterator[WatchEvents]:
        """From ``from_revision`` on (0: a full read first, then changes). Ends with Unavailable
        when the registry is lost; the caller resumes from the last revision + 1."""
        ...


# -------------------------------------------------------------------- roles of the service


@dataclass(slots=True, eq=False)
class Session:
    """What a connection means; owned by the state role, read by im."""

    id: str
    uid: str
    device: str
    connection_epoch: int
    gateway: str
    connection: int  # the gateway's number for it
    pull_only: bool = False
    seen_hlc: int = 0  # highest valid stamp this session has presented
    kind: str = ""  # of device, as its token says
    away_ms: int = 0  # once it is over: so long it had had no connection
    since_hlc: int = 0  # of the last op that was known here when it connected
    # Of one of the operator's own servers, which speaks in every group and stands above its roles.
    # No connection is behind it, and nothing but what was answered outlives it.
    service: bool = False


Reply = Callable[[pb.Response], None]


class Risk(Protocol):
    """The operator's own rules against abuse, called for every sign-in and every send. They are on
    the path of the request: they look at what they know already, and wait for nothing.

    None: go on. Refused or Overloaded: what the client is told instead."""

    def sign_in(self, uid: str, device: str, address: str) -> ImError | None:
        """The token is good. ``address``: of the client's socket."""
        ...

    def send(self, uid: str, device: str, conversation: str, content: bytes) -> ImError | None:
        """By a member, before anything is written. ``content`` is empty of what is encrypted."""
        ...


class NoRisk:
    """Where there are no such rules."""

    def sign_in(self, uid: str, device: str, address: str) -> ImError | None:
        return None

    def send(self, uid: str, device: str, conversation: str, content: bytes) -> ImError | None:
        return None


class Live(Protocol):
    """The route role, as im sees it: who is online, and those who are told what nobody logs."""

    def typing(self, uids: Sequence[str], typing: pb.Typing) -> None:
        """Tell these users' devices, in every IDC, now or not at all."""
        ...

    def watch(self, session: Session, uids: Sequence[str]) -> list[pb.Presence]:
        """From now on this device is told when one of them comes or goes, in place of those that it
        watched before. Raises Overloaded."""
        ...

    def stood(self, session: Session) -> bool:
        """A session that stands, and could be told nothing for a while: what should have ended it
        meanwhile ends it now. Whether its route, or a newer one, is known."""
        ...

    def is_over(self, session: Session) -> bool:
        """Whether the route of this session is known to have gone, or a newer one of its device."""
        ...

    def forget(self, uid: str, device: str) -> None:
        """The device has no session here any more."""
        ...

    def devices(self, uid: str) -> list[pb.DeviceState]:
        """Of this user, in all IDCs; the last one connected first."""
        ...


class NoLive:
    """Where no routes are known."""

    def typing(self, uids: Sequence[str], typing: pb.Typing) -> None:
        pass

    def watch(self, session: Session, uids: Sequence[str]) -> list[pb.Presence]:
        return [pb.Presence(uid=uid, unwatched=True) for uid in uids]

    def stood(self, session: Session) -> bool:
        return True

    def is_over(self, session: Session) -> bool:
        return True

    def forget(self, uid: str, device: str) -> None:
        pass

    def devices(self, uid: str) -> list[pb.DeviceState]:
        return []


class Backlog(NamedTuple):
    """What is acked and not told yet: how long the oldest has waited at least, and how many."""

    oldest_s: float
    records: int


NO_BACKLOG = Backlog(0.0, 0)


class Im(Protocol):
    """The business role, as the state role sees it."""

    def submit(self, session: Session, request: pb.Request, reply: Reply) -> None:
        """Judge the request; ``reply`` is called exactly once, from the loop, perhaps at once.
        Never raises for bad input: that is an ``error`` in the response."""
        ...

    async def connected(self, session: Session, connect: pb.Connect) -> list[pb.KnownCids]:
        """A session starts or moves to a new connection: waits (at most 500 ms) until what the
        client moved with is applied, writes its route, lists the known cids of its outbox heads."""
        ...

    def disconnected(self, session: Session) -> None:
        """The session is over (the grace period too): its route goes."""
        ...

    def backlog(self) -> Backlog:
        """Of the partition that is behind for longest, because folding does not keep up."""
        ...


class Sessions(Protocol):
    """The state role, as gateways see it. A gateway knows a connection only by its number."""

    def opened(self, gateway: str, connection: int, peer_address: str) -> None: ...

    def received(self, gateway: str, connection: int, request_id: int, body: bytes) -> None:
        """One REQUEST frame's body. The answer comes by ``GatewayQueue.send``."""
        ...

    def closed(self, gateway: str, connection: int, reason: str) -> None: ...

    def overflowed(self, gateway: str, connection: int) -> None:
        """A slow reader has caught up; pushes to it were dropped meanwhile: told once for all of
        them, so that it learns of them by a signal."""
        ...


class GatewayQueue(Protocol):
    """The queue of one gateway, as state and route see it."""

    name: str

    def send(self, connection: int, request_id: int, body: bytes) -> None:
        """A RESPONSE frame. Unknown connections are ignored."""
        ...

    def push(self, connections: Sequence[int], body: bytes) -> None:
        """One EVENT frame, encoded once, to many. A connection over its bound drops it, and
        ``Sessions.overflowed`` is called once it is below again."""
        ...

    def quiet(self, connection: int, ms: int) -> None:
        """Its next frame may take so long to come; 0: as usual."""
        ...

    def close(self, connection: int, reason: str, retry_after_ms: int = 0) -> None:
        """Send a Close event, then close once it is written (or at once when it is stuck)."""
        ...


class Kicks(Protocol):
    """The state role, as the route role commands it."""

    def connected_elsewhere(self, uid: str, device: str, connection_epoch: int) -> None:
        """Another IDC has a newer connection of this device, of that epoch."""
        ...

    def kick(self, uid: str, device: str, connection_epoch: int) -> None:
        """End the session of this device at once, unless its connection is newer than that."""
        ...


@dataclass(slots=True, eq=False)
class Audience:
    """The members of a huge group, sorted, between two changes of them: the same object until
    then, so that who of them is here need not be looked up for each message. ``joined``, at a
    front, which knows of those only who are there: who has come since, appended."""

    conversation: str
    uids: tuple[str, ...]
    joined: list[str] = field(default_factory=list)


class Pushes(Protocol):
    """The state role, as im's applier sees it: pushes to the local devices of users."""

    def reached(self, audience: Audience) -> int:
        """How many of these users have a session here."""
        ...

    def waiting(self) -> int:
        """Deliveries to huge groups still to be made, of the gateway that has the most of them."""
        ...

    def push_group(
        self,
        audience: Audience,
        entries: Sequence[pb.Entry],
        heads: Vector,
        stable: int,
        merged: bool,
    ) -> None:
        """As ``push_entries``. ``merged``: nobody need ack it before a heartbeat is due anyway."""
        ...

    def tell_behind(self, behind: Sequence[tuple[Audience, Vector, int]], within_ms: int) -> None:
        """These groups have come to these heads (and stable watermark), which nobody pushes: to
        every session one event for all of its groups. It pulls within that time."""
        ...

    def push_entries(
        self,
        conversation: str,
        uids: Sequence[str],
        entries: Sequence[pb.Entry],
        heads: Vector,
        stable: int,
    ) -> None:
        """To every local session of these users (the sender's own device too): one Push event; the
        state role remembers, per session, the heads that it should come to have."""
        ...

    def signal(self, uids: Sequence[str], conversation: str, heads: Vector) -> None: ...

    def cursor_moved(self, uid: str, event: pb.CursorMoved) -> None: ...

    def tell(self, uids: Sequence[str], event: pb.Event) -> None:
        """What is nowhere else and owed to nobody: to the devices of these users that are connected
        here. The state role puts the stamp on it."""
        ...

    def tell_devices(self, devices: Sequence[tuple[str, str]], event: pb.Event) -> None:
        """The same to these devices alone."""
        ...

    def accepted(self, session: Session, origin: Origin, partition: int, lsn: int) -> None:
        """This session has an op that is stored but not yet replicated."""
        ...

    def replicated(self, origin: Origin, partition: int, lsn: int) -> None:
        """Everything of the own log up to lsn is held by another IDC: tell who waits."""
        ...
