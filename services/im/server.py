"""The business role behind the ``Im`` port: checks, authorizes, dispatches to partitions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.trace import Span

from imcore import frame
from imcore.attest import RegionKeys, content_hash
from imcore.breaker import Breaker
from imcore.bucket import Buckets
from imcore.convert import (
    attested_of,
    fill_positions,
    key_of,
    origin_of,
    origin_pb,
    place_of,
    stamp_of,
    stamp_pb,
    vector_of,
)
from imcore.errors import Code, ImError, Overloaded, Refused, Unavailable, code_of, retry_after_ms
from imcore.hlc import Hlc
from imcore.levels import ENCRYPTION, LEVEL
from imcore.limits import CID_MAX, CLAIMS_MAX, MEDIA_MAX, MENTIONS_MAX, PULLS_MAX
from imcore.media import is_sticker, media_problem
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.region.model import Limits, Messages
from imcore.runtime import Clock
from imcore.sometimes import KNOWN, MOVED_AHEAD, WANTED, sometimes
from imcore.words import (
    Attested,
    ClientKey,
    Lane,
    Origin,
    is_group,
    valid_conversation,
    valid_id,
)
from services.im import (
    acks,
    changes,
    device_keys,
    devices,
    entries,
    friends,
    groups,
    keys,
    known,
    listing,
    presence,
    readers,
    reads,
    search,
)
from services.im.conversation import Conversation
from services.im.diffusion import Diffusion
from services.im.fold import Effects, Entry
from services.im.keys import partition_of
from services.im.load import ConversationLoad
from services.im.looking import Looking
from services.im.partition import Outcome, Partition
from services.im.presence import TYPING_BURST, TYPING_PER_S
from services.im.pulls import Pulls
from services.im.sequencer import Accepted, Submission, Want
from services.im.sync import sync_page
from services.im.unrouted import Unrouted, said_later
from services.metrics.hot import Hot
from services.metrics.verbs import Verbs
from services.ports import (
    Backlog,
    Kv,
    Live,
    NoLive,
    NoRisk,
    Pushes,
    Record,
    Reply,
    Risk,
    Session,
)
from services.tracing.spans import Tracing, context_of, end

log = logging.getLogger("im.im")

MOVED_WAIT_S = 0.5
_LANES_KEPT = 50_000
_READS = frozenset(
    (
        "pull",
        "pulls",
        "sync",
        "history",
        "group_info",
        "conversations",
        "friends",
        "readers",
        "search",
        "device_keys",
        "watch",
    )
)
PULLS_S = 1.0  # for those of one request; a client waits for some seconds
_PULL_HEAD_BYTES = 8  # of each answer of many, at most
_PULLS_BYTES_MAX = frame.MESSAGE_BYTES_MAX - 1024
_KV_SLOW_S = 0.5  # a read that fails only after so long has waited for an engine
KV_FAILURES = 20  # such reads in a row, and the KV is asked by one at a time
KV_PAUSE_S = 0.5
KV_PAUSE_MAX_S = 4.0
_READ_AGAIN = 10  # times, a page that changed while it was read

RouteFold = Callable[[Origin, Any], None]
_Handler = Callable[["ImServer", Session, Any], Coroutine[Any, Any, pb.Response]]
Signals = Callable[[str, tuple[str, ...], Origin, int], None]  # no users: all members
SealOf = Callable[[Origin, int], int | None]
_Page = Coroutine[Any, Any, tuple[list[pb.Entry], bool]]


@dataclass(slots=True)
class Counters:
    accepted: int = 0
    known: int = 0
    refused: int = 0
    degraded: int = 0


@dataclass(slots=True)
class ImServer:
    """``partitions`` must be open. ``suspended`` names origins whose IDC is out: their closed HLC
    no longer holds back the stable watermark, and pulls say where they end; True: sealed, at
    ``seal_of``. ``copies``: what other IDCs hold of each log, by (IDC, origin) and partition;
    ``others``: how many other IDCs there are."""

    origin: Origin
    partitions: list[Partition]
    kv: Kv
    keys: RegionKeys
    hlc: Hlc
    clock: Clock
    policy: Messages
    log_id: bytes
    pushes: Pushes
    route_folded: RouteFold
    signal: Signals
    voters: Callable[[], frozenset[Origin]]
    suspended: Callable[[], dict[Origin, bool]]
    seal_of: SealOf
    copies: Mapping[tuple[str, Origin], Mapping[int, int]]
    others: int
    limits: Limits = field(default_factory=Limits)
    risk: Risk = field(default_factory=NoRisk)
    kv_breaker: Breaker = field(
        default_factory=lambda: Breaker(KV_FAILURES, KV_PAUSE_S, KV_PAUSE_MAX_S)
    )
    counters: Counters = field(default_factory=Counters)
    _stamp: pb.Stamp = field(default_factory=pb.Stamp)
    _queued: dict[Lane, deque[Callable[[], None]]] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    applied_changed: asyncio.Event = field(default_factory=asyncio.Event)
    held_changed: asyncio.Event = field(default_factory=asyncio.Event)
    # By group and uid: the lsn of a membership that no other IDC is known to hold yet.
    granted: dict[str, dict[str, int]] = field(default_factory=dict)
    # Where requests and conversations are counted, once something reads that.
    tracing: Tracing | None = None
    verbs: Verbs | None = None
    hot: Hot | None = None
    live: Live = field(default_factory=NoLive)
    kicked: Callable[[oplog.Op], None] = lambda op: None
    level_written: Callable[[], int] = lambda: LEVEL  # what every IDC folds
    whole: bool = True  # all that was known anywhere when this IDC started is folded here
    pulls: Pulls = field(init=False)
    typing_rate: Buckets = field(default_factory=lambda: Buckets(TYPING_PER_S, TYPING_BURST))
    receipts: readers.Receipts = field(default_factory=readers.Receipts)
    unrouted: Unrouted = field(default_factory=Unrouted)
    load: ConversationLoad = field(init=False)
    diffusion: Diffusion = field(init=False)
    looking: Looking = field(init=False)

    def __post_init__(self) -> None:
        self.load = ConversationLoad(self.limits, self.policy.push_group_members_max)
        self.diffusion = Diffusion(self, self.limits)
        self.looking = Looking(self.clock)
        self.pulls = Pulls(self.kv, self.keys)

    # ------------------------------------------------------------------------------- common

    def stamp(self) -> pb.Stamp:
        """The highest HLC of this IDC, signed; made once per value."""
        if self._stamp.hlc != self.hlc.last:
            self._stamp = stamp_pb(self.keys.stamp(self.hlc.last))
        return self._stamp

    def partition(self, text: str) -> Partition:
        return self.partitions[partition_of(text, len(self.partitions))]

    def stable(self, partition: Partition) -> int:
        """Below this HLC nothing new can come: the least closed HLC of the origins that serve."""
        closed = partition.applier.closed
        return min((closed.get(origin, 0) for origin in self.voters()), default=0)

    def need_level(self, level: int) -> None:
        """Raises Unavailable: an IDC still runs a program that does not fold such an op."""
        if self.level_written() < level:
            raise Unavailable("not every IDC has the program for this yet; ask again", 1_000)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def until(
        self, holds: Callable[[], bool], changed: asyncio.Event, deadline: float
    ) -> bool:
        """Wait for what ``changed`` announces; False: it did not come to hold by the deadline."""
        while not holds():
            left = deadline - self.clock.now()
            if left <= 0:
                return False
            changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await changed.wait()
        return True

    def submit(self, session: Session, request: pb.Request, reply: Reply) -> None:
        # What the clock here has passed pushes nothing forward: nearly every stamp, so that only
        # one of another IDC costs the check of its MAC.
        if request.HasField("seen") and request.seen.hlc > self.hlc.last:
            session.seen_hlc = max(session.seen_hlc, self.keys.seen(stamp_of(request.seen)))
        if self.verbs is not None:
            reply = self._measured(self.verbs, request.WhichOneof("body") or "", reply)
        if request.HasField("send"):
            self._send(session, request, reply)
        else:
            self.spawn(self._answer(session, request, reply))

    def _measured(self, verbs: Verbs, verb: str, reply: Reply) -> Reply:
        began = self.clock.now()

        def answered(response: pb.Response) -> None:
            code = response.error.code if response.HasField("error") else ""
            verbs.done(verb, self.clock.now() - began, code)
            reply(response)

        return answered

    def queued(self) -> int:
        """Sends that wait for their lane or conversation to be read."""
        return sum(map(len, self._queued.values()))

    async def _answer(self, session: Session, request: pb.Request, reply: Reply) -> None:
        try:
            if request.WhichOneof("body") in _READS:
                response = await self._read(session, request)
            else:
                response = await self._dispatch(session, request)
        except Exception as error:
            response = self.error(error)
        response.stamp.CopyFrom(self.stamp())
        reply(response)

    def error(self, error: Exception) -> pb.Response:
        self.counters.refused += 1
        response = pb.Response(stamp=self.stamp())
        if isinstance(error, Refused):
            response.error.code = error.code
            response.error.message = str(error)
        elif isinstance(error, ImError):
            response.error.code = code_of(error)
            response.error.message = str(error)
            response.error.retry_after_ms = getattr(error, "retry_after_ms", 200)
        else:
            log.exception("a request failed unexpectedly", exc_info=error)
            response.error.code = Code.INTERNAL
            response.error.message = "the request failed; the server's log says why"
            response.error.retry_after_ms = 500
        return response

    async def _read(self, session: Session, request: pb.Request) -> pb.Response:
        """What needs the KV alone. While that lets everybody wait and then fails, nobody waits."""
        begun = self.clock.now()
        if wait_s := self.kv_breaker.wait_s(begun):
            raise Unavailable("the KV does not answer now", retry_after_ms(wait_s))
        try:
            response = await self._dispatch(session, request)
        except Unavailable:
            if (now := self.clock.now()) - begun >= _KV_SLOW_S:
                self.kv_breaker.failed(now)
            raise
        self.kv_breaker.succeeded()
        return response

    async def _dispatch(self, session: Session, request: pb.Request) -> pb.Response:
        kind = request.WhichOneof("body") or ""
        handler = _HANDLERS.get(kind)
        if handler is None:
            raise Refused(Code.BAD_REQUEST, f"this server does not know the request {kind!r}")
        return await handler(self, session, getattr(request, kind))

    # --------------------------------------------------------------------------------- send

    def _send(self, session: Session, request: pb.Request, reply: Reply) -> None:
        send = request.send
        try:
            submission = self._submission(session, send)
        except ImError as error:
            reply(self.error(error))
            return
        partition = self.partition(send.conversation)
        replicated = self._wants_replicated(send)
        span = None
        if self.tracing is not None and request.HasField("trace"):
            span = self.tracing.begin("im.append", request.trace, partition=partition.number)
            submission = submission._replace(trace=context_of(span))

        def done(outcome: Outcome) -> None:
            if span is not None:
                _end(span, outcome)
            self._sent(session, partition, submission, outcome, replicated, reply)

        lane = Lane(*submission.key[:4])
        conversation = partition.conversations.get(send.conversation)
        if (
            conversation is None
            or lane in self._queued
            or not self._submit(partition, conversation, lane, session, submission, done)
        ):
            self._later(partition, lane, session, submission, done)

    def _submit(
        self,
        partition: Partition,
        conversation: Conversation,
        lane: Lane,
        session: Session,
        submission: Submission,
        done: Callable[[Outcome], None],
    ) -> bool:
        """Whether it was judged; False: its lane must be read first."""
        if not partition.is_prepared(lane, submission.floor):
            return False
        name = conversation.id
        refusal = self._refusal(partition, conversation, session)
        if refusal is None and submission.placed is None:  # else an IDC has taken it before
            refusal = friends.refusal(conversation, session.uid)
            refusal = refusal or device_keys.refusal(conversation, submission.encrypted)
        if refusal is None:
            content = b"" if submission.encrypted else submission.content
            refusal = self.risk.send(session.uid, session.device, name, content)
        if refusal is not None:
            done(refusal)
            return True
        # Only now: whoever is no member takes nothing of what the members may have.
        members = len(conversation.members())
        if retry_ms := self.load.begin(name, members, self.clock.now()):
            done(Overloaded("too much at once in this conversation", retry_ms))
            return True

        # Its place may have to be lowered, which takes a look into the KV. What its sender composed
        # later must not be accepted before that, or it would be shown before it for a moment.
        holds = submission.placed is not None and partition.knows(submission.key)
        if holds:
            self._queued[lane] = deque()

        def finished(outcome: Outcome) -> None:
            self.load.end(name)
            done(outcome)
            if holds:
                self._go_on(lane)

        partition.submit(submission, finished)
        return True

    def _wants_replicated(self, send: pb.Send) -> bool:
        return send.durability == pb.DURABILITY_REPLICATED or self.policy.ack == "replicated"

    def _submission(self, session: Session, send: pb.Send) -> Submission:
        if not valid_id(send.outbox) or not 1 <= send.cid <= CID_MAX or send.floor > CID_MAX:
            message = "a send needs an outbox id, and a cid and floor from 1 to 2^63 - 1"
            raise Refused(Code.BAD_REQUEST, message)
        check_conversation(send.conversation)
        if len(send.content) + len(send.refs) > self.policy.content_bytes_max:
            limit = self.policy.content_bytes_max
            raise Refused(Code.TOO_LARGE, f"a message holds at most {limit} bytes")
        if send.refs:
            _check_refs(send)
        if send.encrypted:
            self.need_level(ENCRYPTION)
        key = ClientKey(session.uid, session.device, send.outbox, send.conversation, send.cid)
        digest = content_hash(send.content, send.refs)
        placed = self._verified_place(send, key, digest)
        claims = tuple(self._verified_claims(send))
        seen = max(session.seen_hlc, placed.place.hlc if placed else 0)
        return Submission(
            key,
            send.content,
            digest,
            max(1, send.floor),
            placed,
            claims,
            send.composed_ms,
            seen,
            send.refs,
            encrypted=send.encrypted,
        )

    def _verified_place(self, send: pb.Send, key: ClientKey, digest: bytes) -> Attested | None:
        """A bad or expired MAC costs the place, never the message (rule 12)."""
        if not send.HasField("placed"):
            return None
        placed = attested_of(send.placed)
        fits = placed.key == key and placed.content_hash == digest and self.keys.verify(placed)
        return placed if fits else None

    def _verified_claims(self, send: pb.Send | pb.Claim) -> list[Attested]:
        claims = []
        for message in send.claims[:CLAIMS_MAX]:
            if message.key.conversation == send.conversation:
                claim = attested_of(message)
                if self.keys.verify(claim):
                    claims.append(claim)
        return claims

    def _refusal(
        self, partition: Partition, conversation: Conversation, session: Session
    ) -> ImError | None:
        """Why this user may not send there now. A member whose membership no other IDC holds must
        wait: were this IDC lost, the others would refuse the message as a stranger's."""
        uid = session.uid
        if session.service and is_group(conversation.id):
            return None if conversation.exists else _no_group(conversation.id)
        if not conversation.is_member(uid):
            return _not_a_member(conversation.id)
        lsn = self.granted.get(conversation.id, {}).get(uid) if self.granted else None
        if lsn is not None and not self.safe(partition, lsn):
            return Unavailable("no other IDC knows of the membership yet; ask again", 100)
        return None

    def _later(
        self,
        partition: Partition,
        lane: Lane,
        session: Session,
        submission: Submission,
        done: Callable[[Outcome], None],
    ) -> None:
        """The lane or the conversation is not in memory: read it, then submit in arrival order."""

        def again() -> None:
            conversation = partition.conversations.get(lane.conversation)
            if conversation is None:
                done(Unavailable("the conversation cannot be read now; ask again", 50))
            elif not self._submit(partition, conversation, lane, session, submission, done):
                done(Unavailable("the conversation is being read; ask again", 20))

        waiting = self._queued.get(lane)
        if waiting is not None:
            waiting.append(again)
            return
        self._queued[lane] = deque([again])
        self.spawn(self._prepare(partition, lane, submission.floor))

    async def _prepare(self, partition: Partition, lane: Lane, floor: int) -> None:
        try:
            await partition.prepare(lane, floor)
            partition.sequencer.forget_idle_lanes(_LANES_KEPT)
        except Exception as error:
            log.warning("lane of %s could not be read: %s", lane.conversation, error)
        self._go_on(lane)

    def _go_on(self, lane: Lane) -> None:
        """With those that wait for a lane, in order, until one of them holds it again."""
        waiting = self._queued.pop(lane)
        while waiting:
            waiting.popleft()()
            if lane in self._queued:
                self._queued[lane].extend(waiting)
                return

    def _sent(
        self,
        session: Session,
        partition: Partition,
        submission: Submission,
        outcome: Outcome,
        replicated: bool,
        reply: Reply,
    ) -> None:
        if isinstance(outcome, Exception):
            reply(self.error(outcome))
            return
        response = pb.Response()
        response.stamp.CopyFrom(self.stamp())
        ack = response.send_ack
        if isinstance(outcome, Want):
            ack.outcome = pb.SendAck.WANT
            ack.want = outcome.cid
            sometimes(WANTED)
            reply(response)
            return
        self._fill_ack(ack, partition, submission, outcome)
        if outcome.known:
            self.counters.known += 1
            sometimes(KNOWN)
        else:
            self.counters.accepted += 1
        if not (outcome.known and ack.replicated):
            self.pushes.accepted(session, self.origin, partition.number, outcome.lsn)
        if session.service:
            self.spawn(self._settle(session, partition, outcome, response, reply))
        elif replicated:
            acks.when_replicated(self, partition, submission.key, outcome, response, reply)
        else:
            reply(response)

    async def _settle(
        self,
        session: Session,
        partition: Partition,
        outcome: Accepted,
        response: pb.Response,
        reply: Reply,
    ) -> None:
        """A service has no outbox either that would bring its message back: it is answered like a
        change of a group."""
        lsn = outcome.lsn or partition.applier.lsn(self.origin)
        try:
            await groups.settled(self, session, partition, lsn)
        except Unavailable as error:
            response = self.error(error)
        reply(response)

    def _fill_ack(
        self, ack: pb.SendAck, partition: Partition, submission: Submission, outcome: Accepted
    ) -> None:
        ack.outcome = pb.SendAck.KNOWN if outcome.known else pb.SendAck.ACCEPTED
        entries.attest(
            ack.placed, submission.key, submission.content_hash,
            outcome.origin, outcome.seq, outcome.place, self.keys,
        )  # fmt: skip
        ack.partition = partition.number
        ack.lsn = outcome.lsn
        ack.replicated = acks.leaves_outbox(partition, outcome)

    # -------------------------------------------------------------------------------- reads

    async def readable(self, session: Session, name: str) -> tuple[Partition, Conversation]:
        """The conversation, if this user is in it or a service asks. Raises Refused."""
        check_conversation(name)
        partition = self.partition(name)
        conversation = await partition.conversations.load(name)
        if session.service:
            if not conversation.exists:
                raise _no_group(name)
        elif not conversation.is_member(session.uid):
            raise _not_a_member(name)
        return partition, conversation

    async def _pull(self, session: Session, pull: pb.Pull) -> pb.Response:
        have = vector_of(pull.have)

        def page(partition: Partition, conversation: Conversation) -> _Page:
            return self.pulls.page(partition, conversation, have, pull.limit)

        try:
            return await self._pulled(session, pull.conversation, page)
        except Refused as refused:
            if refused.code != Code.FORBIDDEN:
                raise
            response = await self._left(session, pull.conversation)
            if response is None:
                raise
            return response

    async def _pulls(self, session: Session, request: pb.Pulls) -> pb.Response:
        """As many of them, from the first on, as one message holds and a short time allows."""
        if not 1 <= len(request.pulls) <= PULLS_MAX:
            raise Refused(Code.BAD_REQUEST, f"a request pulls 1 to {PULLS_MAX} conversations")
        response, room, until = pb.Response(), _PULLS_BYTES_MAX, self.clock.now() + PULLS_S
        answers = response.pulls_ok.answers
        for pull in request.pulls:
            try:
                answer = await self._pull(session, pull)
            except Refused as refused:
                answer = self.error(refused)
            except ImError:
                if not answers:
                    raise
                break  # what has been read is worth something
            room -= answer.ByteSize() + _PULL_HEAD_BYTES
            if answers and room < 0:
                break
            answers.append(answer)
            if self.clock.now() >= until:
                break
            await asyncio.sleep(0)  # all others have waited for one
        return response

    async def _left(self, session: Session, name: str) -> pb.Response | None:
        """The last thing that a former member is told of a group, as it was pushed to him."""
        partition = self.partition(name)
        at = (await partition.conversations.load(name)).left(session.uid)
        if at is None:
            return None
        value = await self.kv.get(keys.entry(partition.number, name, at.origin, at.seq))
        if value is None:  # it was above a seal, and stands elsewhere now
            return None
        op = oplog.Op.FromString(value)
        response = pb.Response(pull_ok=pb.PullOk(conversation=name, left=True))
        response.pull_ok.entries.append(entries.build(Entry(at.origin, op), self.keys))
        return response

    async def _history(self, session: Session, history: pb.History) -> pb.Response:
        check_conversation(history.conversation)
        before = place_of(history.before) if history.HasField("before") else None
        if before is not None and before.origin.idc and not valid_id(before.origin.idc):
            raise Refused(Code.BAD_REQUEST, "`before` names no valid origin")

        def page(partition: Partition, conversation: Conversation) -> _Page:
            return reads.history(
                self.kv, partition.number, conversation, before, history.limit, self.keys
            )

        return await self._pulled(session, history.conversation, page)

    async def _pulled(
        self,
        session: Session,
        name: str,
        page: Callable[[Partition, Conversation], _Page],
    ) -> pb.Response:
        """A page with the heads that it belongs to. Reading it takes time: what is said of the
        conversation is of before, and what a rebuild may have thrown away is read again."""
        for _ in range(_READ_AGAIN):
            partition, conversation = await self.readable(session, name)
            begun = partition.applier.begun
            response = self._reached(partition, conversation)
            try:
                found, more = await page(partition, conversation)
            except reads.Moved:
                continue
            if begun == partition.applier.begun:
                response.pull_ok.entries.extend(found)
                response.pull_ok.more = more
                return response
        raise Unavailable("the conversation changes faster than it can be read; ask again")

    def _reached(self, partition: Partition, conversation: Conversation) -> pb.Response:
        response = pb.Response()
        pulled = response.pull_ok
        pulled.conversation = conversation.id
        fill_positions(pulled.heads, conversation.heads)
        pulled.stable = self.stable(partition)
        applied = partition.applier.applied()
        for origin, sealed in self.suspended().items():
            end = conversation.heads.get(origin, 0)
            # A client forgets what lies above the end of a sealed origin. So the end must be that
            # of the seal: neither one that the fold has still to reach, nor one above it.
            final = sealed and applied.get(origin, 0) == self.seal_of(origin, partition.number)
            pulled.suspended.add(origin=origin_pb(origin), end=end, sealed=final)
        return response

    async def _read_cursor(self, session: Session, cursor: pb.ReadCursor) -> pb.Response:
        partition, _ = await self.readable(session, cursor.conversation)
        if not valid_id(cursor.place.origin.idc):
            raise Refused(Code.BAD_REQUEST, "a read cursor needs the place of a message")
        op = partition.sequencer.plain(cursor.conversation, self.clock.wall_ms(), session.seen_hlc)
        op.cursor.uid = session.uid
        op.cursor.place.CopyFrom(cursor.place)
        await partition.append(op)
        return pb.Response(ok=pb.Ok())

    async def _claim(self, session: Session, claim: pb.Claim) -> pb.Response:
        partition, _ = await self.readable(session, claim.conversation)
        if claims := self._verified_claims(claim):
            await partition.claim(claims, session.seen_hlc)
        return pb.Response(ok=pb.Ok())

    # ------------------------------------------------------------------- connects and routes

    async def connected(self, session: Session, connect: pb.Connect) -> list[pb.KnownCids]:
        await self._wait_applied(connect)
        if not session.pull_only:
            self._route(session, gone=False)
        found = await known.of_outboxes(self.kv, self.partition, session, connect.outbox)
        if any(origin_of(moved.origin) != self.origin for moved in connect.moved_from):
            known_here = sum(cids.last - cids.first + 1 for lane in found for cids in lane.ranges)
            if known_here < sum(head.top - head.floor + 1 for head in connect.outbox):
                sometimes(MOVED_AHEAD)
        return found

    async def _wait_applied(self, connect: pb.Connect) -> None:
        """What a move brought along must be folded before cids are judged; at most 500 ms."""
        deadline = self.clock.now() + MOVED_WAIT_S
        for moved in connect.moved_from:
            if moved.partition < len(self.partitions):
                await self.folded(
                    self.partitions[moved.partition], origin_of(moved.origin), moved.lsn, deadline
                )

    async def folded(self, partition: Partition, origin: Origin, lsn: int, deadline: float) -> bool:
        applier = partition.applier
        return await self.until(lambda: applier.lsn(origin) >= lsn, self.applied_changed, deadline)

    def safe(self, partition: Partition, lsn: int) -> bool:
        """Whether at least one other IDC holds the own log up to lsn, or none is in service that
        could: then waiting for one would protect nobody and stop everybody."""
        return partition.replication.level(1) >= lsn or all(
            origin.idc == self.origin.idc for origin in self.voters()
        )

    async def held_elsewhere(self, partition: Partition, lsn: int, deadline: float) -> bool:
        """Whether it comes to be ``safe`` in time."""
        return await self.until(lambda: self.safe(partition, lsn), self.held_changed, deadline)

    def backlog(self) -> Backlog:
        return max(partition.backlog() for partition in self.partitions)

    def disconnected(self, session: Session) -> None:
        if not session.pull_only:
            self.live.forget(session.uid, session.device)
            self._route(session, gone=True)

    def stood(self, session: Session) -> None:
        """As of ``services.split.fronts.CoreIm``."""
        if not self.live.stood(session):
            self._route(session, gone=False, since_hlc=session.since_hlc)

    def is_over(self, session: Session) -> bool:
        """The same."""
        return session.pull_only or self.live.is_over(session)

    async def kick(self, uid: str, device: str) -> None:
        """For an operator: a device of a user, or all of them. Raises Refused, Unavailable."""
        await devices.end(self, uid, device)

    def _route(self, session: Session, gone: bool, since_hlc: int = 0) -> None:
        partition = self.partition(session.uid)
        op = partition.sequencer.plain("", self.clock.wall_ms(), session.seen_hlc)
        op.route.uid = session.uid
        op.route.device = session.device
        op.route.connection_epoch = session.connection_epoch
        op.route.gateway = session.gateway
        op.route.connection = session.connection
        op.route.gone = gone
        op.route.kind = session.kind
        op.route.away_ms = session.away_ms if gone else 0
        op.route.since_hlc = since_hlc
        self.unrouted.overtaken(op.route)
        self._put_route(partition, op)

    def _put_route(self, partition: Partition, op: oplog.Op) -> None:
        """Nobody waits for it, and nobody would say it again."""

        def done(result: Record | Exception) -> None:
            if isinstance(result, Exception):
                self.unrouted.failed(op)

        partition.put(op, done)

    def _route_again(self) -> None:
        for lost in self.unrouted.take(lambda uid: self.partition(uid).open_for_writes):
            partition = self.partition(lost.route.uid)
            op = partition.sequencer.plain("", self.clock.wall_ms(), 0)
            op.route.CopyFrom(said_later(lost, op.hlc))
            self._put_route(partition, op)

    # ------------------------------------------------------------------ from appliers, peers

    def told(self, number: int, origin: Origin, effects: Effects) -> None:
        """A batch is committed: push, signal, merge what is known."""
        partition = self.partitions[number]
        for key in effects.keys:
            partition.sequencer.folded(key)
        stable = self.stable(partition)
        for name, folded in effects.entries.items():
            if self.hot is not None:
                self.hot.messages(name, len(folded))
            conversation = partition.conversations.get(name)
            if conversation is None:
                self.pulls.recent.drop(name)
                continue
            head = conversation.heads.get(origin, 0)
            if origin == self.origin:
                partition.sequencer.trim(name, head)
            built = [entries.build(entry, self.keys) for entry in folded]
            self.pulls.folded(name, origin, built, conversation.heads)
            if name in self.diffusion or self._is_huge(conversation):
                self.diffusion.told(partition, conversation, folded, effects.partings(name))
                continue
            if origin == self.origin:
                self.signal(name, effects.audience[name], origin, head)
            self.pushes.push_entries(
                name, effects.audience[name], built, conversation.heads, stable
            )
            partings = effects.partings(name)
            if origin == self.origin:
                for seq, uids in partings.items():
                    self.signal(name, uids, origin, seq)
            self.push_partings(conversation, partings, folded, built, stable)
        for name in effects.moved:
            self.pulls.recent.drop(name)
        for uid, name, place in effects.cursors:
            moved = pb.CursorMoved(conversation=name, uid=uid)
            moved.place.hlc, moved.place.seq = place.hlc, place.seq
            moved.place.origin.CopyFrom(origin_pb(place.origin))
            self.pushes.cursor_moved(uid, moved)
            self.receipts.moved(uid, name, place)
        for name, (before, after) in effects.friends.items():
            friends.tell(self, name, before, after)
        for route_origin, op in effects.routes:
            self.route_folded(route_origin, op)
        for op in effects.kicks:
            self.kicked(op)
        self.applied_changed.set()

    def push_partings(
        self,
        conversation: Conversation,
        partings: Mapping[int, Sequence[str]],
        said: Sequence[Entry],
        built: Sequence[pb.Entry],
        stable: int,
    ) -> None:
        """Who left is given all of ``built`` up to his leave, by its seq, and told of nothing after
        it. ``said``: what a batch of one origin brought, with which ``built`` ends."""
        for seq, uids in partings.items():
            theirs = built[: len(built) - sum(entry.op.seq > seq for entry in said)]
            heads = conversation.heads | {said[0].origin: seq}
            self.pushes.push_entries(conversation.id, uids, theirs, heads, stable)

    def _is_huge(self, conversation: Conversation) -> bool:
        return len(conversation.members()) > self.policy.push_group_members_max

    def peer_holds(self, idc: str, number: int, lsn: int) -> None:
        """Another IDC holds the own log durably up to lsn."""
        partition = self.partitions[number]
        if partition.replication.peer_holds(idc, lsn):
            self.held_changed.set()
            self.pushes.replicated(self.origin, number, partition.replication.level(1))

    def tick(self) -> None:
        """Each partition logs its closed HLC, and routes that it could not take before; those who
        waited too long for a copy are told, and who has read what. What was held elsewhere since
        is forgotten."""
        now = self.clock.now()
        for partition in self.partitions:
            partition.replication.expire(now)
            op = partition.sequencer.plain("", self.clock.wall_ms(), 0)
            op.tick.SetInParent()
            partition.put(op, lambda _: None)
        self._route_again()
        groups.forget_held(self)
        readers.tell(self)


async def _set_conversation(
    server: ImServer, session: Session, request: pb.SetConversation
) -> pb.Response:
    if request.HasField("encrypted"):
        return await device_keys.switch_on(server, session, request)
    return await listing.set_one(server, session, request)


# Each request but ``send``, by its name in the protocol.
_HANDLERS: dict[str, _Handler] = {
    "pull": ImServer._pull,
    "pulls": ImServer._pulls,
    "history": ImServer._history,
    "sync": sync_page,
    "conversations": listing.page,
    "set_conversation": _set_conversation,
    "read_cursor": ImServer._read_cursor,
    "claim": ImServer._claim,
    "change": changes.change,
    "readers": readers.page,
    "search": search.page,
    "friends": friends.page,
    "set_friend": friends.set_one,
    "group_create": groups.create,
    "group_change": groups.change,
    "group_info": groups.info,
    "typing": presence.typing,
    "watch": presence.watch,
    "publish_keys": device_keys.publish,
    "device_keys": device_keys.page,
    "devices": devices.page,
    "kick": devices.kick,
}


def _end(span: Span, outcome: Outcome) -> None:
    """Of an append: whether it is durable, and where."""
    if isinstance(outcome, Accepted):
        span.set_attribute("origin", str(outcome.origin))
        span.set_attribute("lsn", outcome.lsn)
        span.set_attribute("known", outcome.known)
        end(span)
    else:
        end(span, f"cid {outcome.cid} is wanted" if isinstance(outcome, Want) else str(outcome))


def _check_refs(send: pb.Send) -> None:
    """Raises Refused. Whether there is such a message is not asked: it may come yet."""
    try:
        refs = pb.Refs.FromString(send.refs)
    except DecodeError:
        raise Refused(Code.BAD_REQUEST, "what the message refers to cannot be read") from None
    key = key_of(refs.reply)
    if refs.HasField("reply") and not (
        key.conversation == send.conversation
        and all(map(valid_id, (key.uid, key.device, key.outbox)))
        and 1 <= key.cid <= CID_MAX
    ):
        raise Refused(Code.BAD_REQUEST, "a message replies to one of the same conversation")
    problem = next(filter(None, map(media_problem, refs.media)), "")
    if len(refs.media) > MEDIA_MAX or problem:
        raise Refused(Code.BAD_REQUEST, problem or f"a message has at most {MEDIA_MAX} files")
    if refs.sticker and not is_sticker(refs.sticker):
        raise Refused(Code.BAD_REQUEST, "this is no code of a sticker")
    if len(refs.mentions) > MENTIONS_MAX or not all(map(valid_id, refs.mentions)):
        raise Refused(Code.BAD_REQUEST, f"a message mentions at most {MENTIONS_MAX} users, by uid")


def check_conversation(name: str) -> None:
    """Raises Refused. Before an id becomes part of a key, and before anything of it is logged."""
    if not valid_conversation(name):
        raise Refused(Code.BAD_REQUEST, "the conversation id is of no known form")


def _no_group(name: str) -> Refused:
    return Refused(Code.NOT_FOUND, f"there is no conversation {name} here (yet)")


def _not_a_member(name: str) -> Refused:
    return Refused(Code.FORBIDDEN, f"not a member of {name}")
