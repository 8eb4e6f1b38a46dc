"""The outbox: which messages are not safe yet, and which of them to offer next (rules 11, 13).

Pure. A conversation's messages count their cids in a *lane* (outbox id, conversation), from 1 and
without holes. What keeps a lane from ever getting stuck or doubling a message:

- entries leave in cid order only: one that is replicated waits for those below it, because an
  IDC may still ask for it (it takes the lowest cid at or above ``floor`` that it does not know);
- after every connect everything in the outbox is offered again, in order; a known cid is
  answered with its place, so nothing has to be guessed;
- a cid that was offered and not answered keeps its key for ever: it may have been accepted.
  Only what was never offered, or was offered on this connection and turned away, can get
  another key when its lane has to be given up (``cid_conflict``, or a refusal in the middle).

What keeps a sender's order when a lane is given up: the lane *closes* first. Nothing more of it
is offered, and new messages still join it, until nothing of it is in flight. Only then is it
known what may get another key, and all of that moves at once, in order, to a new lane. It is
always the end of the conversation's messages that moves: one that has to keep its key keeps
those before it where they are (they wait for the floor to pass what was refused).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from heapq import nsmallest
from typing import NamedTuple

from imcore.convert import origin_of, place_of
from imcore.limits import CONVERSATION_CHARS_MAX, OUTBOX_HEADS_BYTES_MAX, OUTBOX_HEADS_MAX
from imcore.proto import client_pb2 as pb
from imcore.words import Origin
from services.sdk.errors import OutboxFull


class Flight(Enum):
    """Where an entry is on the present connection."""

    WRITING = "writing"  # not yet durable in the store: must not be offered
    IDLE = "idle"  # to be offered
    OFFERED = "offered"
    DONE = "done"  # answered on this connection


class Step(Enum):
    """How far an entry is, as the application sees it."""

    COMPOSED = "composed"
    IN_FLIGHT = "in flight"
    ACKED = "acked"
    REPLICATED = "replicated"


@dataclass(slots=True, eq=False)
class Entry:
    """One message that is not known to be replicated."""

    lane: Lane
    cid: int
    content: bytes
    composed_ms: int
    durability: int = 0  # pb.Durability
    refs: bytes = b""  # an encoded pb.Refs: as it is hashed
    placed: pb.Attested | None = None  # the smallest place it was acked with
    origin: Origin | None = None  # with partition and lsn: where the last ack put it
    partition: int = 0
    lsn: int = 0
    flight: Flight = Flight.WRITING
    replicated: bool = False
    tried: bool = False  # offered on an earlier connection, outcome unknown
    writes: int = 0  # batches for the store that hold it and are not durable yet
    encrypted: bool = False  # content is a Sealed, once and for all
    conflicted: bool = False  # its key was used for other content: it gets another one

    @property
    def bytes(self) -> int:
        return len(self.content) + len(self.refs)

    @property
    def movable(self) -> bool:
        """It is known not to be accepted anywhere under its key."""
        return self.placed is None and not self.tried

    @property
    def step(self) -> Step:
        if self.replicated:
            return Step.REPLICATED
        if self.placed is not None:
            return Step.ACKED
        return Step.IN_FLIGHT if self.flight is Flight.OFFERED else Step.COMPOSED


@dataclass(slots=True, eq=False)
class Lane:
    conversation: str
    outbox: str
    number: int = 1  # lanes of one conversation, oldest first
    next_cid: int = 1
    abandoned: bool = False  # takes no new messages: a successor does
    entries: dict[int, Entry] = field(default_factory=dict)  # by cid, ascending
    idle: list[int] = field(default_factory=list)  # cids to offer, ascending
    in_flight: int = 0
    unacked: int = 0
    barrier: int = 0  # a cid that the IDC asked for: nothing else is offered before its answer
    held: bool = False  # the IDC asked for a pause
    closing: int = 0  # what stands above this cid is to move to a new lane; 0: nothing
    proven: bool = False  # acked once on this connection: more than one may be in flight

    def floor(self) -> int:
        """The lowest cid still in the outbox; all below it is replicated."""
        return next(iter(self.entries), self.next_cid)


# ------------------------------------------------------------ what the store has to write


class Put(NamedTuple):
    """Write (or overwrite) this entry as it is now."""

    conversation: str
    outbox: str
    cid: int
    content: bytes
    composed_ms: int
    durability: int
    placed: bytes
    replicated: bool
    refs: bytes = b""
    encrypted: bool = False


class Delete(NamedTuple):
    conversation: str
    outbox: str
    cid: int


class PutLane(NamedTuple):
    conversation: str
    outbox: str
    number: int
    next_cid: int
    abandoned: bool


class PutRow(NamedTuple):
    """Of what is encrypted with (core.sealed)."""

    name: str
    value: bytes


Change = Put | Delete | PutLane | PutRow


def _cid(change: Put | Delete | PutLane) -> int:
    return 0 if isinstance(change, PutLane) else change.cid  # cids count from 1


class Answer(NamedTuple):
    """What an answer meant: ``acked``: stored, now for the first time; ``replicated``: entries
    that are safe now; ``hold``: offer nothing of this lane for a moment."""

    acked: bool = False
    replicated: tuple[Entry, ...] = ()
    hold: bool = False


class Outbox:
    """All lanes of one device's outbox store.

    The shell writes the changes of ``take_batch()`` to the store, in order, each batch
    atomically, then calls ``written`` with its entries; it offers what ``offers`` gives.
    """

    def __init__(
        self,
        outbox_id: str,
        new_id: Callable[[], str],
        entries_max: int = 10_000,
        bytes_max: int = 64 << 20,
        window: int = 32,
        row: Callable[[str], bytes] = lambda name: b"",
    ) -> None:
        self.id = outbox_id
        self._new_id = new_id
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._window = window
        self._lanes: dict[str, list[Lane]] = {}
        self._ready: dict[Lane, None] = {}
        self._changes: list[Change] = []
        self._unwritten: list[Entry] = []
        self._row = row  # the value of one as it is now
        self._rows: dict[str, None] = {}  # those to write
        self.size = 0
        self.bytes = 0
        self.in_flight = 0

    def __len__(self) -> int:
        return self.size

    # ------------------------------------------------------------------------- composing

    def compose(
        self,
        conversation: str,
        content: bytes,
        composed_ms: int,
        durability: int = 0,
        refs: bytes = b"",
        encrypted: bool = False,
    ) -> Entry:
        """A new entry; durable once the shell says ``written``. Raises OutboxFull."""
        if (
            self.size >= self._entries_max
            or self.bytes + len(content) + len(refs) > self._bytes_max
        ):
            raise OutboxFull(
                f"the outbox holds {self.size} messages ({self.bytes} bytes) that are not "
                "replicated yet; it takes no more until some are"
            )
        lane = self._current_lane(conversation)
        entry = Entry(
            lane, lane.next_cid, content, composed_ms, durability, refs, encrypted=encrypted
        )
        lane.next_cid += 1
        self._insert(lane, entry)
        self._put_lane(lane)
        self._put_first(entry)
        return entry

    def written(self, entries: Iterable[Entry]) -> None:
        """A batch is durable: these may be offered."""
        for entry in entries:
            entry.writes -= 1
            if entry.flight is Flight.WRITING and entry.writes == 0 and self._has(entry):
                self._make_idle(entry)

    def unwritable(self, entries: Iterable[Entry]) -> None:
        """The store could not take them: they were never offered and are given up."""
        for entry in sorted(entries, key=lambda entry: -entry.cid):
            entry.writes -= 1
            if entry.flight is not Flight.WRITING or not self._has(entry):
                continue
            lane = entry.lane
            self._remove(entry)
            if lane.next_cid == entry.cid + 1:
                lane.next_cid = entry.cid
            else:
                self._close(lane, entry.cid)

    def unwritten(self, changes: Sequence[Change]) -> None:
        """The store could not take these: they are written again, as things are by now. What was
        changed since is in a later batch, and an old state must never come after it."""
        kept = [change for change in changes if not isinstance(change, PutRow)]
        self._rows.update((c.name, None) for c in changes if isinstance(c, PutRow))
        rows = dict.fromkeys((c.conversation, c.outbox, _cid(c)) for c in kept)
        for conversation, outbox, cid in rows:
            lane = next((x for x in self._lanes[conversation] if x.outbox == outbox), None)
            if lane is None:
                continue
            if not cid:
                self._put_lane(lane)
            elif (entry := lane.entries.get(cid)) is not None:
                self._put(entry)
            else:
                self._changes.append(Delete(conversation, outbox, cid))

    def load(self, lanes: Iterable[PutLane], entries: Iterable[Put]) -> None:
        """What the store held, at start; entries of a lane in cid order."""
        by_name: dict[tuple[str, str], Lane] = {}
        for row in sorted(lanes, key=lambda row: row.number):
            lane = Lane(row.conversation, row.outbox, row.number, row.next_cid, row.abandoned)
            by_name[row.conversation, row.outbox] = lane
            self._lanes.setdefault(row.conversation, []).append(lane)
        for stored in sorted(entries, key=lambda stored: stored.cid):
            lane = by_name[stored.conversation, stored.outbox]
            placed = pb.Attested.FromString(stored.placed) if stored.placed else None
            entry = Entry(
                lane, stored.cid, stored.content, stored.composed_ms, stored.durability,
                stored.refs, placed, encrypted=bool(stored.encrypted),
            )  # fmt: skip
            entry.replicated = stored.replicated
            entry.tried = True  # it may have been offered before the process ended
            self._insert(lane, entry)
            self._make_idle(entry)

    def _current_lane(self, conversation: str) -> Lane:
        lanes = self._lanes.get(conversation)
        if lanes is None:
            lanes = self._lanes[conversation] = [Lane(conversation, self.id)]
        elif lanes[-1].abandoned:
            lanes.append(Lane(conversation, self._new_id(), lanes[-1].number + 1))
        return lanes[-1]

    @staticmethod
    def _has(entry: Entry) -> bool:
        return entry.lane.entries.get(entry.cid) is entry

    def _insert(self, lane: Lane, entry: Entry) -> None:
        lane.entries[entry.cid] = entry
        lane.unacked += entry.placed is None
        self.size += 1
        self.bytes += entry.bytes

    # -------------------------------------------------------------------------- offering

    def connected(self) -> None:
        """A new connection: everything is to be offered again, in order."""
        self.disconnected()
        for lanes in self._lanes.values():
            for lane in lanes:
                lane.barrier, lane.held, lane.proven = 0, False, False
                lane.idle = [e.cid for e in lane.entries.values() if e.flight is not Flight.WRITING]
                for cid in lane.idle:
                    lane.entries[cid].flight = Flight.IDLE
                if lane.idle:
                    self._ready[lane] = None

    def disconnected(self) -> None:
        """No answer can come any more: what was offered may have been accepted."""
        for lanes in self._lanes.values():
            for lane in lanes:
                if lane.in_flight:
                    for entry in lane.entries.values():
                        if entry.flight is Flight.OFFERED:
                            entry.tried = True
                            self._make_idle(entry)
                    lane.in_flight = 0
        self.in_flight = 0
        for lanes in self._lanes.values():
            for lane in list(lanes):
                self._finish(lane)

    def offers(self, limit: int = 256) -> list[Entry]:
        """Entries to send now, in this order; they count as in flight from here on."""
        found: list[Entry] = []
        for lane in list(self._ready):
            room = min(limit - self.in_flight, self._room(lane))
            while room > 0 and lane.idle:
                cid = lane.barrier or lane.idle[0]
                if lane.barrier:
                    if lane.entries[cid].flight is not Flight.IDLE:
                        break
                    lane.idle.remove(cid)
                else:
                    lane.idle.pop(0)
                entry = lane.entries[cid]
                entry.flight = Flight.OFFERED
                lane.in_flight += 1
                self.in_flight += 1
                room -= 1
                found.append(entry)
            if not lane.idle or self._room(lane) <= 0 or lane.barrier:
                del self._ready[lane]
            if self.in_flight >= limit:
                break
        return found

    def _room(self, lane: Lane) -> int:
        if lane.held or lane.closing:
            return 0
        for earlier in self._lanes[lane.conversation]:
            if earlier is lane:
                break
            if earlier.unacked:
                return 0  # messages of one conversation are accepted in the order they were sent
        # One until the IDC has shown that it knows this lane as we do: a refused or
        # conflicting cid is found before later ones are on their way under its lane.
        return (self._window if lane.proven else 1) - lane.in_flight

    def _make_idle(self, entry: Entry) -> None:
        entry.flight = Flight.IDLE
        insort(entry.lane.idle, entry.cid)
        self._ready[entry.lane] = None

    def heads(self) -> list[pb.OutboxHead]:
        """For Connect: the range of cids of each lane that has some, the oldest messages' lanes
        first. No more than a Connect may hold: the rest is offered without having been named."""
        lanes = [
            lane
            for some in self._lanes.values()
            for lane in some
            if lane.entries and len(lane.conversation) <= CONVERSATION_CHARS_MAX  # else: refused
        ]
        heads = [_head(lane) for lane in lanes]
        if len(heads) <= OUTBOX_HEADS_MAX and _size(heads) <= OUTBOX_HEADS_BYTES_MAX:
            return heads
        oldest = nsmallest(
            OUTBOX_HEADS_MAX, lanes, key=lambda lane: lane.entries[lane.floor()].composed_ms
        )
        heads = [_head(lane) for lane in oldest]
        while _size(heads) > OUTBOX_HEADS_BYTES_MAX:
            del heads[-max(1, len(heads) // 20) :]
        return heads

    def refresh(self) -> int:
        """Offer what is acked but not replicated once more: the notice may have been lost."""
        count = 0
        for lanes in self._lanes.values():
            for lane in lanes:
                for entry in lane.entries.values():
                    if entry.flight is Flight.DONE and not entry.replicated:
                        self._make_idle(entry)
                        count += 1
        return count

    # --------------------------------------------------------------------------- answers

    def answered(self, entry: Entry, ack: pb.SendAck, serving: Origin) -> Answer:
        """The answer of the IDC that serves this connection, as ``serving``."""
        if not self._landed(entry):
            return Answer()
        if ack.outcome == pb.SendAck.WANT:
            return self._wanted(entry, ack.want)
        lane = entry.lane
        lane.proven = True
        self._settled(entry)
        first = entry.placed is None
        if entry.placed is None or place_of(ack.placed.place) < place_of(entry.placed.place):
            entry.placed = pb.Attested()
            entry.placed.CopyFrom(ack.placed)
        origin = origin_of(ack.placed.origin)
        if ack.lsn:
            # Of the log of whoever serves, though an earlier life of it may have taken the message.
            entry.origin, entry.partition, entry.lsn = serving, ack.partition, ack.lsn
        lane.unacked -= first
        # Known there though another IDC accepted it: it came by that IDC's log, so two hold it.
        mirrored = ack.outcome == pb.SendAck.KNOWN and origin.idc != serving.idc
        self._finish(lane)
        self._wake(lane)
        if ack.replicated or mirrored:
            return Answer(first, self._safe([entry]))
        if first:
            self._put(entry)
        return Answer(first)

    def _landed(self, entry: Entry) -> bool:
        """Takes it out of flight. False: it is no longer in the outbox (replicated meanwhile)."""
        if entry.flight is not Flight.OFFERED:
            return False
        entry.lane.in_flight -= 1
        self.in_flight -= 1
        entry.flight = Flight.DONE
        self._wake(entry.lane)
        if self._has(entry):
            return True
        self._finish(entry.lane)
        return False

    @staticmethod
    def _settled(entry: Entry) -> None:
        if entry.lane.barrier == entry.cid:
            entry.lane.barrier = 0

    def _wake(self, lane: Lane) -> None:
        for other in self._lanes[lane.conversation]:
            if other.idle:
                self._ready[other] = None

    def _wanted(self, entry: Entry, want: int) -> Answer:
        lane = entry.lane
        wanted = lane.entries.get(want)
        self._make_idle(entry)
        if lane.closing:
            self._finish(lane)  # whatever is wanted: what of this lane goes on decides itself there
            return Answer()
        if wanted is None:
            # Below the floor it cannot be (the floor went along), above the top neither: an IDC
            # that is confused, or a refused cid that only the floor can pass. Ask again later.
            lane.barrier = 0
            lane.held = True
            return Answer(hold=True)
        if wanted.flight is Flight.DONE:
            self._make_idle(wanted)
        lane.barrier = want
        self._wake(lane)
        return Answer()

    def delayed(self, entry: Entry, judged: bool = False) -> None:
        """The IDC could not take it now: offered again after ``release``. ``judged``: it is certain
        that it was not taken; other errors may hide an acceptance."""
        if self._landed(entry):
            entry.tried = entry.tried or not judged
            entry.lane.held = True
            self._make_idle(entry)
            self._finish(entry.lane)

    def release(self, lane: Lane) -> None:
        lane.held = False
        self._wake(lane)

    def conflict(self, entry: Entry) -> None:
        """The IDC knows this cid with other content: the rest of the lane gets a new outbox id."""
        if not self._landed(entry):
            return
        lane = entry.lane
        self._settled(entry)
        if entry.placed is None:
            entry.conflicted, entry.tried = True, False  # under this key it is nowhere
            self._make_idle(entry)
            self._close(lane, entry.cid - 1)
        else:
            self._finish(lane)
        self._wake(lane)

    def refused(self, entry: Entry) -> bool:
        """The message was judged and refused for good. True: it is out of the outbox and its
        sender must be told; False: it was acked before, so it stays until it is replicated."""
        if not self._landed(entry):
            return False
        lane = entry.lane
        self._settled(entry)
        gone = entry.placed is None
        lowest = lane.floor() == entry.cid
        if gone:
            self._remove(entry)
        if gone and lowest:
            self._finish(lane)
        else:
            # The IDC goes on wanting this cid: what comes after it needs another lane.
            self._close(lane, entry.cid)
        self._wake(lane)
        return gone

    def _close(self, lane: Lane, above: int) -> None:
        lane.closing = min(lane.closing or above + 1, above + 1)
        self._finish(lane)

    def _finish(self, lane: Lane) -> None:
        """Nothing of a closing lane is in flight any more: give it up."""
        if not lane.closing or lane.in_flight:
            return
        first, lane.closing = lane.closing, 0
        lanes = self._lanes[lane.conversation]
        later = lanes[lanes.index(lane) :]
        moving: list[Entry] = []
        for entry in reversed([e for some in later for e in some.entries.values()]):
            if not entry.movable or (entry.lane is lane and entry.cid < first):
                break
            moving.append(entry)
        moving.reverse()
        moving[:0] = [e for e in lane.entries.values() if e.conflicted and e not in moving]
        if not any(entry.lane is lane for entry in moving):
            moving, later = [], [lane]  # later lanes move only to stay behind this one's
        for given_up in later:
            if not given_up.abandoned:
                given_up.abandoned = True
                self._put_lane(given_up)
        self._renumber(moving)
        self._wake(lane)

    def _renumber(self, entries: list[Entry]) -> None:
        """Give these the next cids of the conversation's successor lane."""
        for entry in entries:
            old = entry.lane
            self._remove(entry)
            lane = self._current_lane(old.conversation)
            entry.lane, entry.cid = lane, lane.next_cid
            entry.tried = entry.conflicted = False
            lane.next_cid += 1
            self._insert(lane, entry)
            self._put_lane(lane)
            self._put_first(entry)

    # ------------------------------------------------------------------------ replication

    def replicated(self, origin: Origin, partition: int, lsn: int) -> tuple[Entry, ...]:
        """Everything up to lsn in that partition of that origin is held elsewhere."""
        return self._safe(
            [
                entry
                for lanes in self._lanes.values()
                for lane in lanes
                for entry in lane.entries.values()
                if entry.origin == origin
                and entry.partition == partition
                and 0 < entry.lsn <= lsn
                and not entry.replicated
            ]
        )

    def _safe(self, entries: list[Entry]) -> tuple[Entry, ...]:
        changed = tuple(entry for entry in entries if not entry.replicated)
        for entry in changed:
            entry.replicated = True
        for lane in {id(e.lane): e.lane for e in changed}.values():
            for entry in list(lane.entries.values()):
                if not entry.replicated:
                    break
                self._remove(entry)
            self._wake(lane)
        for entry in changed:
            if entry.cid in entry.lane.entries:
                self._put(entry)  # it waits for one below it
        return changed

    def _remove(self, entry: Entry) -> None:
        lane = entry.lane
        del lane.entries[entry.cid]
        if entry.flight is Flight.IDLE:
            lane.idle.remove(entry.cid)
        if lane.barrier == entry.cid:
            lane.barrier = 0
        lane.unacked -= entry.placed is None
        self.size -= 1
        self.bytes -= entry.bytes
        self._changes.append(Delete(lane.conversation, lane.outbox, entry.cid))

    # ------------------------------------------------------------------------------ store

    def _put_first(self, entry: Entry) -> None:
        """A new key: nothing is sent under it before it is durable."""
        entry.flight = Flight.WRITING
        entry.writes += 1
        self._unwritten.append(entry)
        self._put(entry)

    def _put(self, entry: Entry) -> None:
        lane = entry.lane
        placed = entry.placed.SerializeToString() if entry.placed is not None else b""
        self._changes.append(
            Put(
                lane.conversation,
                lane.outbox,
                entry.cid,
                entry.content,
                entry.composed_ms,
                entry.durability,
                placed,
                entry.replicated,
                entry.refs,
                entry.encrypted,
            )
        )

    def _put_lane(self, lane: Lane) -> None:
        self._changes.append(
            PutLane(lane.conversation, lane.outbox, lane.number, lane.next_cid, lane.abandoned)
        )

    def put_row(self, name: str) -> None:
        """It is written with the next batch, as it is by then."""
        self._rows[name] = None

    def take_batch(self) -> tuple[list[Change], list[Entry]]:
        """What is to be written, and the entries that may be offered once it is."""
        rows = [PutRow(name, self._row(name)) for name in self._rows]
        batch = (rows + self._changes, self._unwritten)
        self._changes, self._unwritten = [], []
        self._rows = {}
        return batch


def _head(lane: Lane) -> pb.OutboxHead:
    return pb.OutboxHead(
        conversation=lane.conversation,
        outbox=lane.outbox,
        floor=lane.floor(),
        top=lane.next_cid - 1,
    )


def _size(heads: Sequence[pb.OutboxHead]) -> int:
    """As a Connect is written, in bytes: with a tag and a length for each."""
    return sum(head.ByteSize() + 4 for head in heads)
