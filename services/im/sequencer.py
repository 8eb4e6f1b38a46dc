"""One partition's sequencer: which op comes next, and under which identity (rules 9-12). Pure.

It decides on what is known of a lane: the cids that are folded (``known``) and those that it has
accepted but that are not folded yet (``pending``). It accepts the lowest cid at or above the
sender's floor that it does not know; a known cid is answered with what was accepted; anything
else with the cid that it wants. So no lane can have a hole that nobody will ever fill, and no
resend becomes a second message in one IDC, whatever connection it comes by.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from imcore.convert import (
    attested_pb,
    fill_key,
    fill_place,
    key_pb,
    origin_of,
    place_of,
    place_pb,
)
from imcore.errors import Unavailable
from imcore.hlc import Hlc
from imcore.levels import ENCRYPTION
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import Attested, ClientKey, Lane, Origin, Place
from services.im.fold import place_kept

# A lane, or the same four as a slice of a client key: they are equal, and a lane made at each of
# the six places where a message's is looked up took 2 us.
Names = tuple[str, str, str, str]


@dataclass(slots=True)
class Pending:
    """Accepted, not folded yet."""

    content_hash: bytes
    seq: int
    place: Place
    lsn: int = 0  # once it is durable


class Accept(NamedTuple):
    op: oplog.Op
    pending: Pending


class Joined(NamedTuple):
    """The same message is on its way to the log already: answer when that is durable."""

    pending: Pending


class Known(NamedTuple):
    """It is folded: its class row says the rest."""


class Want(NamedTuple):
    cid: int


class Conflict(NamedTuple):
    """The client key is taken by other content."""


Verdict = Accept | Joined | Known | Want | Conflict


@dataclass(slots=True)
class LaneState:
    """Cids from ``floor`` on; below it everything is replicated and nobody will ask.

    Invariant: between ``floor`` and ``_next`` nothing is wanted. A client may leave its floor
    where it is for ever, so no message may cost what all before it do."""

    known: set[int] = field(default_factory=set)
    pending: dict[int, Pending] = field(default_factory=dict)
    floor: int = 1
    loaded: bool = False  # False while the KV is being asked what is known
    _next: int = 1

    def raise_floor(self, floor: int) -> None:
        if floor > self.floor:
            if floor - self.floor < len(self.known):
                self.known.difference_update(range(self.floor, floor))
            else:
                self.known = {cid for cid in self.known if cid >= floor}
            self.floor = floor

    def lower_floor(self, floor: int) -> None:
        """Not loaded from now on: below the old floor nothing is known."""
        self.floor = min(self.floor, max(1, floor))
        self._next = self.floor
        self.loaded = False

    def forget_known(self) -> None:
        """It is read again."""
        self.known.clear()
        self._next = self.floor
        self.loaded = False

    def want(self) -> int:
        cid = max(self.floor, self._next)
        while cid in self.known or cid in self.pending:
            cid += 1
        self._next = cid
        return cid


class Submission(NamedTuple):
    key: ClientKey
    content: bytes
    content_hash: bytes
    floor: int
    placed: Attested | None  # verified: MAC, key and hash fit
    claims: tuple[Attested, ...]  # verified
    composed_ms: int
    seen_hlc: int
    refs: bytes = b""
    trace: pb.TraceContext | None = None  # under which it is logged, when it is followed
    encrypted: bool = False


@dataclass(slots=True)
class Accepted:
    """What became of a message: durable here, or known before."""

    origin: Origin
    seq: int
    place: Place
    lsn: int  # 0: of another origin, or not known any more
    known: bool = False
    elsewhere: bool = False  # known, and another IDC accepted a copy that is held here


class Sealed(NamedTuple):
    """Known, but every copy lies above a seal: none counts before it is published again."""


def judge_known(
    row: oplog.ClassRow,
    submission: Submission,
    own: Origin,
    void: Callable[[Origin], bool] = lambda origin: False,
) -> tuple[Accepted | Conflict | Sealed, bool]:
    """The answer to a known cid, and whether a place op is due: it was presented with a smaller
    attested place than its class has here (rule 12). ``void``: whether copies of this origin may
    lie above its seal. An earlier life of this IDC is not another IDC."""
    copies = [copy for copy in row.copies if not void(origin_of(copy.origin))]
    if not copies:
        return Sealed(), False
    shown = copies[0]
    if shown.content_hash != submission.content_hash:
        return Conflict(), False
    place = place_of(row.place)
    lower = submission.placed is not None and submission.placed.place < place
    if submission.placed is not None and lower:
        place = submission.placed.place
    elsewhere = any(copy.origin.idc != own.idc for copy in copies)
    accepted = Accepted(
        origin_of(shown.origin), shown.seq, place, 0, known=True, elsewhere=elsewhere
    )
    return accepted, lower


def unknown_places(
    claims: Sequence[Attested], rows: Sequence[oplog.ClassRow | None]
) -> list[Attested]:
    """Of these claims, with the class rows of their client keys: those that would lower a class."""
    return [
        claim
        for claim, row in zip(claims, rows, strict=True)
        if row is None or not row.HasField("place") or claim.place < place_of(row.place)
    ]


class Sequencer:
    """``heads`` of a conversation are the folded seqs of the own origin; ``_seq`` what is given
    out above them. From ``close`` (an append has failed) to ``reset`` no seq is given out: one that
    no record carries would be a hole in its conversation for ever (rule 9)."""

    def __init__(self, origin: Origin, hlc: Hlc) -> None:
        self.origin = origin
        self._hlc = hlc
        self._seq: dict[str, int] = {}
        self._lanes: OrderedDict[Names, LaneState] = OrderedDict()  # the last used one last
        self._closed: str | None = None

    # ------------------------------------------------------------------------------ lanes

    def lane(self, lane: Names) -> LaneState | None:
        state = self._lanes.get(lane)
        if state is not None:
            self._lanes.move_to_end(lane)
        return state

    def open_lane(self, lane: Lane, floor: int) -> LaneState:
        """Before the KV is read, so that nothing folded meanwhile is missed."""
        return self._lanes.setdefault(lane, LaneState(floor=max(1, floor)))

    def forget_idle_lanes(self, keep: int) -> None:
        """Bound the memory: lanes with nothing pending can be loaded again. Those not used for
        longest go, a tenth of all at once: to look for one costs as much as to look at all."""
        if len(self._lanes) <= keep:
            return
        idle = (lane for lane, state in self._lanes.items() if not state.pending)
        for lane in list(islice(idle, len(self._lanes) - keep * 9 // 10)):
            del self._lanes[lane]

    def folded(self, key: ClientKey) -> None:
        """An op of this client key is folded, wherever it was accepted."""
        state = self._lanes.get(key[:4])
        if state is not None:
            state.pending.pop(key.cid, None)
            if key.cid >= state.floor:
                state.known.add(key.cid)

    def forget_known(self) -> None:
        """The partition is folded again, perhaps without some of it: lanes are read again. What is
        pending is in the own log, which stays, and so do the seqs that were given out for it."""
        self._lanes = OrderedDict(
            (lane, state) for lane, state in self._lanes.items() if state.pending
        )
        for state in self._lanes.values():
            state.forget_known()

    def sizes(self) -> tuple[int, int, int]:
        """Lanes in memory, and of all of them the cids that are known and that are pending."""
        states = self._lanes.values()
        known = sum(len(state.known) for state in states)
        return len(states), known, sum(len(state.pending) for state in states)

    def close(self, reason: str) -> None:
        self._closed = reason

    def reset(self) -> None:
        """Forget all that is not folded, when all that is durable is, and give out again."""
        self._seq.clear()
        self._lanes.clear()
        self._closed = None

    # ------------------------------------------------------------------------------- ops

    def _next(self, conversation: str, head: int) -> int:
        if self._closed is not None:
            raise Unavailable(self._closed, 500)
        seq = max(self._seq.get(conversation, 0), head) + 1
        self._seq[conversation] = seq
        return seq

    def trim(self, conversation: str, head: int) -> None:
        """Folded up to head: nothing is in flight in this conversation any more."""
        if self._seq.get(conversation) == head:
            del self._seq[conversation]

    def message(self, submission: Submission, head: int, wall_ms: int) -> Verdict:
        """``head``: folded seq of the own origin in the conversation. The lane must be loaded."""
        key = submission.key
        lane = self._lanes[key[:4]]
        lane.raise_floor(submission.floor)
        pending = lane.pending.get(key.cid)
        if pending is not None:
            same = pending.content_hash == submission.content_hash
            return Joined(pending) if same else Conflict()
        if key.cid in lane.known:
            return Known()
        want = lane.want()
        if key.cid != want:
            return Want(want)
        op = self._op(key.conversation, head, wall_ms, submission.seen_hlc)
        own = Place(op.hlc, self.origin, op.seq)
        place = submission.placed.place if submission.placed else own
        message = op.message
        fill_key(message.key, key)
        message.content = submission.content
        message.refs = submission.refs
        message.content_hash = submission.content_hash
        message.composed_ms = submission.composed_ms
        if submission.encrypted:
            message.encrypted, op.level = True, ENCRYPTION
        if submission.trace is not None:
            op.trace.CopyFrom(submission.trace)
        if place != own:
            fill_place(message.place, place)
        if submission.claims:
            message.claims.extend(attested_pb(claim) for claim in submission.claims)
        accepted = lane.pending[key.cid] = Pending(submission.content_hash, op.seq, place)
        return Accept(op, accepted)

    def place_op(self, submission: Submission, place: Place, head: int, wall_ms: int) -> oplog.Op:
        """A known cid was presented with a smaller attested place."""
        op = self._op(submission.key.conversation, head, wall_ms, submission.seen_hlc)
        op.place.key.CopyFrom(key_pb(submission.key))
        op.place.content_hash = submission.content_hash
        op.place.place.CopyFrom(place_pb(place))
        op.place.claims.extend(attested_pb(claim) for claim in submission.claims)
        return op

    def claim_op(self, claims: Sequence[Attested], head: int, wall_ms: int, seen: int) -> oplog.Op:
        """Places that a device shows and this IDC does not know; at least one."""
        op = self._op(claims[0].key.conversation, head, wall_ms, seen)
        op.place.key.CopyFrom(key_pb(claims[0].key))
        op.place.content_hash = claims[0].content_hash
        op.place.place.CopyFrom(place_pb(claims[0].place))
        op.place.claims.extend(attested_pb(claim) for claim in claims[1:])
        return op

    def membership(
        self,
        conversation: str,
        changes: list[tuple[str, bool]],
        actor: str,
        head: int,
        wall_ms: int,
        seen_hlc: int,
        create: bool = False,
        name: str = "",
        roles: Sequence[pb.RoleChange] = (),
        announcement: pb.Announcement | None = None,
        encrypted: bool = False,
    ) -> oplog.Op:
        op = self._op(conversation, head, wall_ms, seen_hlc)
        for uid, member in changes:
            op.membership.changes.add(uid=uid, member=member)
        op.membership.create = create
        op.membership.name = name
        op.membership.actor = actor
        op.membership.encrypted = encrypted
        if encrypted:
            op.level = ENCRYPTION
        op.membership.roles.extend(roles)
        if announcement is not None:
            op.membership.announcement.CopyFrom(announcement)
        return op

    def change(self, change: pb.ChangeEntry, head: int, wall_ms: int, seen_hlc: int) -> oplog.Op:
        op = self._op(change.key.conversation, head, wall_ms, seen_hlc)
        op.change.CopyFrom(change)
        if change.encrypted:
            op.level = ENCRYPTION
        return op

    def republish(self, original: oplog.Op, origin: Origin, head: int, wall_ms: int) -> oplog.Op:
        """An op of this origin that lies above a committed seal, accepted again under the own
        origin with its old place and client key (rule 7)."""
        op = self._op(original.conversation, head, wall_ms, original.hlc) if original.seq else None
        if op is None:
            op = self.plain(original.conversation, wall_ms, original.hlc)
        hlc, seq = op.hlc, op.seq
        op.CopyFrom(original)
        op.hlc, op.seq = hlc, seq
        place = place_pb(place_kept(original, origin))
        if op.HasField("message"):
            op.message.place.CopyFrom(place)
        elif op.HasField("membership"):
            op.membership.place.CopyFrom(place)
        return op

    def plain(self, conversation: str, wall_ms: int, seen_hlc: int) -> oplog.Op:
        """An op without a seq: cursors, routes, ticks, markers."""
        hlc = self._hlc.next(wall_ms, seen_hlc)
        op = oplog.Op()
        op.hlc, op.conversation, op.wall_ms = hlc, conversation, wall_ms
        return op

    def _op(self, conversation: str, head: int, wall_ms: int, seen_hlc: int) -> oplog.Op:
        seq = self._next(conversation, head)  # first: it may refuse
        op = self.plain(conversation, wall_ms, seen_hlc)
        op.seq = seq
        return op
