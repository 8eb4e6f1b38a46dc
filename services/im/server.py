"""The business role behind the ``Im`` port: checks, authorizes, dispatches to partitions."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from imcore.attest import RegionKeys, content_hash
from imcore.convert import (
    attested_of,
    origin_of,
    origin_pb,
    place_of,
    stamp_of,
    stamp_pb,
    vector_of,
)
from imcore.errors import Code, ImError, Refused, Unavailable
from imcore.hlc import Hlc
from imcore.limits import CLAIMS_MAX
from imcore.proto import client_pb2 as pb
from imcore.region.model import Messages, WhenUnreplicated
from imcore.runtime import Clock
from imcore.words import (
    Attested,
    ClientKey,
    Lane,
    Origin,
    direct_members,
    is_group,
    valid_id,
)
from services.im import entries, groups, reads
from services.im.conversation import Conversation
from services.im.fold import Effects
from services.im.keys import partition_of
from services.im.partition import Outcome, Partition
from services.im.sequencer import Accepted, Submission, Want
from services.im.sync import sync_page
from services.ports import Kv, Pushes, Reply, Session

log = logging.getLogger("im.im")

MOVED_WAIT_S = 0.5
_LANES_KEPT = 50_000
_OUTBOX_HEADS_MAX = 1_000

RouteFold = Callable[[Origin, Any], None]
Signals = Callable[[str, tuple[str, ...], Origin, int], None]


@dataclass(slots=True)
class Counters:
    accepted: int = 0
    known: int = 0
    refused: int = 0
    degraded: int = 0


@dataclass(slots=True)
class ImServer:
    """``partitions`` must be open. ``suspended`` names origins whose IDC is out: their closed HLC
    no longer holds back the stable watermark, and pulls say where they end."""

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
    counters: Counters = field(default_factory=Counters)
    _stamp: pb.Stamp = field(default_factory=pb.Stamp)
    _queued: dict[Lane, deque[Callable[[], None]]] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    applied_changed: asyncio.Event = field(default_factory=asyncio.Event)

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

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def submit(self, session: Session, request: pb.Request, reply: Reply) -> None:
        if request.HasField("seen"):
            session.seen_hlc = max(session.seen_hlc, self.keys.seen(stamp_of(request.seen)))
        if request.HasField("send"):
            self._send(session, request.send, reply)
        else:
            self.spawn(self._answer(session, request, reply))

    async def _answer(self, session: Session, request: pb.Request, reply: Reply) -> None:
        try:
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
            response.error.code = Code.UNAVAILABLE
            response.error.message = str(error)
            response.error.retry_after_ms = getattr(error, "retry_after_ms", 200)
        else:
            log.exception("a request failed unexpectedly", exc_info=error)
            response.error.code = Code.INTERNAL
            response.error.message = "the request failed; the server's log says why"
            response.error.retry_after_ms = 500
        return response

    async def _dispatch(self, session: Session, request: pb.Request) -> pb.Response:
        kind = request.WhichOneof("body")
        if kind == "pull":
            return await self._pull(session, request.pull)
        if kind == "sync":
            return await sync_page(self, session.uid, request.sync)
        if kind == "history":
            return await self._history(session, request.history)
        if kind == "read_cursor":
            return await self._read_cursor(session, request.read_cursor)
        if kind == "claim":
            return await self._claim(session, request.claim)
        if kind == "group_create":
            return await groups.create(self, session, request.group_create)
        if kind == "group_change":
            return await groups.change(self, session, request.group_change)
        if kind == "group_info":
            return await groups.info(self, session, request.group_info)
        raise Refused(Code.BAD_REQUEST, f"this server does not know the request {kind!r}")

    # --------------------------------------------------------------------------------- send

    def _send(self, session: Session, send: pb.Send, reply: Reply) -> None:
        try:
            submission = self._submission(session, send)
        except Refused as error:
            reply(self.error(error))
            return
        partition = self.partition(send.conversation)
        replicated = self._wants_replicated(send)

        def done(outcome: Outcome) -> None:
            self._sent(session, partition, submission, outcome, replicated, reply)

        lane = Lane(*submission.key[:4])
        conversation = partition.conversations.get(send.conversation)
        if lane in self._queued or conversation is None:
            self._later(partition, lane, session, submission, done)
        elif not self._may_send(conversation, session.uid):
            reply(self.error(_not_a_member(send.conversation)))
        elif not partition.submit(submission, done):
            self._later(partition, lane, session, submission, done)

    def _wants_replicated(self, send: pb.Send) -> bool:
        return send.durability == pb.DURABILITY_REPLICATED or self.policy.ack == "replicated"

    def _submission(self, session: Session, send: pb.Send) -> Submission:
        if not valid_id(send.outbox) or send.cid < 1:
            raise Refused(Code.BAD_REQUEST, "a send needs an outbox id and a cid from 1")
        if direct_members(send.conversation) is None and not is_group(send.conversation):
            raise Refused(Code.BAD_REQUEST, "the conversation id is of no known form")
        if len(send.content) > self.policy.content_bytes_max:
            limit = self.policy.content_bytes_max
            raise Refused(Code.TOO_LARGE, f"a message holds at most {limit} bytes")
        key = ClientKey(session.uid, session.device, send.outbox, send.conversation, send.cid)
        digest = content_hash(send.content)
        placed = self._verified_place(send, key, digest)
        claims = tuple(self._verified_claims(send))
        seen = max(session.seen_hlc, placed.place.hlc if placed else 0)
        return Submission(
            key, send.content, digest, max(1, send.floor), placed, claims, send.composed_ms, seen
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

    def _may_send(self, conversation: Conversation, uid: str) -> bool:
        return conversation.is_member(uid)

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
            elif not self._may_send(conversation, session.uid):
                done(_not_a_member(lane.conversation))
            elif not partition.submit(submission, done):
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
        for again in self._queued.pop(lane):
            again()

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
        response = pb.Response(stamp=self.stamp())
        ack = response.send_ack
        if isinstance(outcome, Want):
            ack.outcome = pb.SendAck.WANT
            ack.want = outcome.cid
            reply(response)
            return
        self._fill_ack(ack, partition, submission, outcome)
        if not outcome.known:
            self.counters.accepted += 1
            self.pushes.accepted(session, self.origin, partition.number, outcome.lsn)
        else:
            self.counters.known += 1
            if not ack.replicated:
                self.pushes.accepted(session, self.origin, partition.number, outcome.lsn)
        if replicated and not ack.replicated:
            self._reply_when_replicated(partition, outcome, response, reply)
        else:
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
        held = partition.replication.level(1)
        ack.replicated = outcome.elsewhere or 0 < outcome.lsn <= held

    def _reply_when_replicated(
        self, partition: Partition, outcome: Accepted, response: pb.Response, reply: Reply
    ) -> None:
        """`replicated` before the ack; what happens when it cannot be had is the policy's word."""

        def answer(held: bool) -> None:
            response.send_ack.replicated = held
            if not held and self.policy.when_unreplicated is WhenUnreplicated.REFUSE:
                refusal = self.error(
                    Refused(
                        Code.NOT_REPLICATED, "no other IDC holds the message yet; send it again"
                    )
                )
                refusal.error.retry_after_ms = 500
                reply(refusal)
                return
            if not held:
                self.counters.degraded += 1
                response.send_ack.degraded = True
                log.warning("an ack was degraded: no other IDC held lsn %d in time", outcome.lsn)
            reply(response)

        deadline = self.clock.now() + self.policy.replicated_timeout_ms / 1000
        partition.replication.wait(outcome.lsn, deadline, answer)

    # -------------------------------------------------------------------------------- reads

    async def readable(self, session: Session, name: str) -> tuple[Partition, Conversation]:
        """The conversation, if this user is in it. Raises Refused."""
        partition = self.partition(name)
        if direct_members(name) is None and not is_group(name):
            raise Refused(Code.BAD_REQUEST, "the conversation id is of no known form")
        conversation = await partition.conversations.load(name)
        if not conversation.is_member(session.uid):
            raise _not_a_member(name)
        return partition, conversation

    async def _pull(self, session: Session, pull: pb.Pull) -> pb.Response:
        partition, conversation = await self.readable(session, pull.conversation)
        found, more = await reads.pull(
            self.kv,
            partition.number,
            conversation,
            vector_of(pull.have),
            pull.limit,
            self.keys,
        )
        return self._pulled(partition, conversation, found, more)

    async def _history(self, session: Session, history: pb.History) -> pb.Response:
        partition, conversation = await self.readable(session, history.conversation)
        before = place_of(history.before) if history.HasField("before") else None
        found, more = await reads.history(
            self.kv, partition.number, conversation, before, history.limit, self.keys
        )
        return self._pulled(partition, conversation, found, more)

    def _pulled(
        self, partition: Partition, conversation: Conversation, found: list[pb.Entry], more: bool
    ) -> pb.Response:
        response = pb.Response()
        pulled = response.pull_ok
        pulled.conversation = conversation.id
        pulled.entries.extend(found)
        pulled.more = more
        state = reads.heads(conversation, self.stable(partition))
        pulled.heads.extend(state.heads)
        pulled.stable = state.stable
        for origin, sealed in self.suspended().items():
            end = conversation.heads.get(origin, 0)
            pulled.suspended.add(origin=origin_pb(origin), end=end, sealed=sealed)
        return response

    async def _read_cursor(self, session: Session, cursor: pb.ReadCursor) -> pb.Response:
        partition, _ = await self.readable(session, cursor.conversation)
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
        known = []
        for head in connect.outbox[:_OUTBOX_HEADS_MAX]:
            if not valid_id(head.outbox):
                continue
            partition = self.partition(head.conversation)
            lane = Lane(session.uid, session.device, head.outbox, head.conversation)
            cids = await partition.known_cids(lane, head.floor)
            if cids:
                known.append(pb.KnownCids(conversation=head.conversation, ranges=_ranges(cids)))
        return known

    async def _wait_applied(self, connect: pb.Connect) -> None:
        """What a move brought along must be folded before cids are judged; at most 500 ms."""
        deadline = self.clock.now() + MOVED_WAIT_S
        for moved in connect.moved_from:
            if moved.partition >= len(self.partitions):
                continue
            applier = self.partitions[moved.partition].applier
            origin = origin_of(moved.origin)
            while applier.applied().get(origin, 0) < moved.lsn:
                left = deadline - self.clock.now()
                if left <= 0:
                    return
                self.applied_changed.clear()
                try:
                    await asyncio.wait_for(self.applied_changed.wait(), left)
                except TimeoutError:
                    return

    def disconnected(self, session: Session) -> None:
        if not session.pull_only:
            self._route(session, gone=True)

    def _route(self, session: Session, gone: bool) -> None:
        partition = self.partition(session.uid)
        op = partition.sequencer.plain("", self.clock.wall_ms(), session.seen_hlc)
        op.route.uid = session.uid
        op.route.device = session.device
        op.route.connection_epoch = session.connection_epoch
        op.route.gateway = session.gateway
        op.route.connection = session.connection
        op.route.gone = gone
        partition.put(op, lambda _: None)

    # ------------------------------------------------------------------ from appliers, peers

    def told(self, number: int, origin: Origin, effects: Effects) -> None:
        """A batch is committed: push, signal, merge what is known."""
        partition = self.partitions[number]
        for key in effects.keys:
            partition.sequencer.folded(key)
        stable = self.stable(partition)
        for name, folded in effects.entries.items():
            conversation = partition.conversations.get(name)
            if conversation is None:
                continue
            if origin == self.origin:
                head = conversation.heads.get(origin, 0)
                partition.sequencer.trim(name, head)
                self.signal(name, effects.audience[name], origin, head)
            built = [entries.build(entry, self.keys) for entry in folded]
            self.pushes.push_entries(
                name, effects.audience[name], built, conversation.heads, stable
            )
        for uid, name, place in effects.cursors:
            moved = pb.CursorMoved(conversation=name, uid=uid)
            moved.place.hlc, moved.place.seq = place.hlc, place.seq
            moved.place.origin.CopyFrom(origin_pb(place.origin))
            self.pushes.cursor_moved(uid, moved)
        for route_origin, op in effects.routes:
            self.route_folded(route_origin, op)
        self.applied_changed.set()

    def peer_holds(self, idc: str, number: int, lsn: int) -> None:
        """Another IDC holds the own log durably up to lsn."""
        partition = self.partitions[number]
        if partition.replication.peer_holds(idc, lsn):
            self.pushes.replicated(self.origin, number, partition.replication.level(1))

    def tick(self) -> None:
        """Each partition logs its closed HLC; those who waited too long for a copy are told."""
        now = self.clock.now()
        for partition in self.partitions:
            partition.replication.expire(now)
            op = partition.sequencer.plain("", self.clock.wall_ms(), 0)
            op.tick.SetInParent()
            partition.put(op, lambda _: None)


def _not_a_member(name: str) -> Refused:
    return Refused(Code.FORBIDDEN, f"not a member of {name}")


def _ranges(cids: set[int]) -> list[pb.CidRange]:
    ranges: list[pb.CidRange] = []
    for cid in sorted(cids):
        if ranges and ranges[-1].last == cid - 1:
            ranges[-1].last = cid
        else:
            ranges.append(pb.CidRange(first=cid, last=cid))
    return ranges
