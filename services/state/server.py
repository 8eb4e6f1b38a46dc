"""The state role: sessions between gateways and im. Implements ``Sessions`` and ``Pushes``.

Invariant: at most one connection of a (uid, device) has a session, the one of the highest
connection epoch (rule 16); every other one is closed with ``replaced``.
The path of a request (``received`` -> im -> its answer) makes no task.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from google.protobuf.message import DecodeError

from imcore.attest import RegionKeys
from imcore.convert import error_pb, origin_pb, positions_pb, vector_of
from imcore.errors import Code, ImError, Refused, Unavailable, code_of, retry_after_ms
from imcore.limits import AWAY_MS_MAX, PULLS_MAX
from imcore.proto import client_pb2 as pb
from imcore.region.model import ClientParameters, Limits
from imcore.runtime import Clock
from imcore.words import Origin
from services.gateway.wheel import TimingWheel
from services.metrics.verbs import Verbs
from services.ports import Im, NoRisk, Risk, Session
from services.state import checkpoint
from services.state.admission import Admission, goes_on
from services.state.checkpoint import Checkpoint
from services.state.delay import SAMPLE_S, watch_delay
from services.state.latency import Acks
from services.state.outgoing import TICK_S, Outgoing
from services.state.requests import Requests
from services.state.session import Record, SessionInfo
from services.state.table import Address
from services.tracing.spans import Tracing

log = logging.getLogger("im.state")

BEHIND_S = 1.0  # owed for longer: a heartbeat's answer names it
_BEHIND_MAX = 500  # conversations in one answer; the next names the others
CONNECT_S = 5.0
_PATIENCE = 1.5  # heartbeats, before what was merged and is not acked is named again
_QUEUED_MAX = 64  # requests that wait for their Connect to be judged
_CHECKPOINT_S = 5.0


class _Opening:
    """A connection before its session."""

    __slots__ = ("peer_address", "queued", "task")

    def __init__(self, peer_address: str) -> None:
        self.peer_address = peer_address
        self.task: asyncio.Task[None] | None = None
        self.queued: list[tuple[int, pb.Request]] = []


class StateServer(Outgoing):
    """``origin`` and ``im`` are set once the IDC has settled its incarnation."""

    def __init__(
        self,
        keys: RegionKeys,
        clock: Clock,
        parameters: ClientParameters,
        stamp: Callable[[], pb.Stamp],
        policy_epoch: Callable[[], int],
        shard_of: Callable[[bytes, str], str],
        checkpoint_path: Path | None = None,
        limits: Limits | None = None,
        risk: Risk | None = None,
        secret: Callable[[int], bytes] = secrets.token_bytes,
        look_s: float = SAMPLE_S,
    ) -> None:
        """``look_s``: how often it looks how late its loop is."""
        super().__init__(clock, stamp)
        self._look_s = look_s
        self._risk: Risk = risk or NoRisk()
        self._admission = Admission(keys, clock, shard_of, secret)
        self._parameters = parameters
        self.patience_s = _PATIENCE * parameters.heartbeat_ms / 1000
        self._policy_epoch = policy_epoch
        self._checkpoint_path = checkpoint_path
        self._checkpoint = Checkpoint(checkpoint_path) if checkpoint_path is not None else None
        self.im: Im
        self.origin: Origin
        self._opening: dict[Address, _Opening] = {}
        self._requests = Requests(clock, self.gateways, self._error, limits or Limits())
        self._verbs: Verbs | None = None
        self._graces: TimingWheel[Record] = TimingWheel()
        self._ticked_at = clock.now()

    # ------------------------------------------------------------------------------ looking

    def sessions(self) -> list[SessionInfo]:
        return [record.info() for record in self._table]

    def changed(self) -> dict[str, SessionInfo | None]:
        """By session: whose connection has come or gone since this was asked last, at first all
        that stand. None: it has none (any more)."""
        since = self._table.since().items()
        return {session: record.info() if record else None for session, record in since}

    def watch(self, changed: Callable[[Session, str, bool, bool], None]) -> None:
        """``changed(session, shard, connected, over)`` from now on."""

        def told(record: Record) -> None:
            changed(record, record.shard, record.connected, not self._table.holds(record))

        self._table.changed = told

    def standing(self) -> list[tuple[Session, str, bool]]:
        """Every session, grace included, its shard, and whether it is connected."""
        return [(record, record.shard, record.connected) for record in self._table]

    def session(self, session_id: str) -> Session | None:
        return self._table.by_id(session_id)

    def pull_only_count(self) -> int:
        return self._table.by_address.pull_only

    def connected_count(self) -> int:
        """Sessions with a connection. A pull-only connection is none: it is nobody's to move, so
        an IDC that waited for it to go would never be drained."""
        return len(self._table.by_address) - self._table.by_address.pull_only

    def shards(self) -> dict[str, int]:
        """Those sessions by shard."""
        return dict(self._table.by_address.shards)

    def acks(self) -> Acks:
        """How long acks of sends took here, lately."""
        return self._requests.acks()

    def ack_buckets(self) -> Counter[int]:
        """The same as counts, which can be added to those of other processes."""
        return self._requests.ack_buckets()

    def load(self) -> dict[str, float | int | bool]:
        """What is turned away, and why."""
        requests = self._requests
        return {
            "served_share": round(requests.shedder.share, 3),
            "overloaded": requests.overloaded,
            "shed": requests.shedder.shed,
            "breaker_open": requests.breaker.is_open,
            "breaker_opened": requests.breaker.opened,
        }

    def measure(self, verbs: Verbs) -> None:
        """Count connects and requests there from now on."""
        self._verbs = self._requests.verbs = verbs

    def follow(self, tracing: Tracing) -> None:
        """Requests whose senders ask for it, from now on, and what is pushed of them."""
        self._tracing = self._requests.tracing = tracing

    def queued(self) -> dict[str, int]:
        """How many connections have no session yet, and requests no answer."""
        return {"connects": len(self._opening), "requests": len(self._requests)}

    # ------------------------------------------------------------------- Sessions (gateways)

    def opened(self, gateway: str, connection: int, peer_address: str) -> None:
        self._opening[gateway, connection] = _Opening(peer_address)

    def received(self, gateway: str, connection: int, request_id: int, body: bytes) -> None:
        address = (gateway, connection)
        try:
            request = pb.Request.FromString(body)
        except DecodeError:
            self.gateways[gateway].close(connection, "protocol")
            return
        record = self._table.by_address.get(address)
        if record is not None:
            self._request(record, request_id, request)
            return
        opening = self._opening.get(address)
        if opening is None:
            return
        if opening.task is not None:
            if len(opening.queued) >= _QUEUED_MAX:
                self.gateways[gateway].close(connection, "protocol")
            else:
                opening.queued.append((request_id, request))
        elif not request.HasField("connect"):
            self._refuse(address, request_id, Refused(Code.UNAUTHENTICATED, "connect first"))
        else:
            opening.task = asyncio.ensure_future(
                self._connect(address, opening, request_id, request)
            )

    def closed(self, gateway: str, connection: int, reason: str) -> None:
        address = (gateway, connection)
        opening = self._opening.pop(address, None)
        if opening is not None and opening.task is not None:
            opening.task.cancel()
        record = self._table.by_address.pop(address, None)
        if record is not None:
            self._away(record)

    def settled_session(self, gateway: str, connection: int) -> str | None:
        """The session of a connection which another process can go on with: it is owed no
        answer."""
        record = self._table.by_address.get((gateway, connection))
        if record is None or not record.connected or record.in_flight:
            return None
        return record.id

    def joined(self, gateway: str, connection: int, session: str) -> bool:
        """The connection stood while the process was another; its session goes on as it was.
        False: that is over, or a newer connection goes on with it."""
        record = self._table.by_id(session)
        if record is None or record.gateway:
            return False
        self._graces.cancel(record)
        record.away_at = math.inf
        record.gateway, record.connection = gateway, connection
        self._table.by_address[gateway, connection] = record
        self._stands(record)
        return True

    def overflowed(self, gateway: str, connection: int) -> None:
        """The reader has caught up: it is told at once what the pushes that were dropped said."""
        self.counters.overflowed += 1
        record = self._table.by_address.get((gateway, connection))
        if record is not None and record.connected:
            self._tell_again(record)

    # ------------------------------------------------------------------------------ connect

    def _refuse(self, address: Address, request_id: int, error: ImError) -> None:
        gateway, connection = address
        response = self._error(code_of(error), str(error), getattr(error, "retry_after_ms", 0))
        self.gateways[gateway].send(connection, request_id, response.SerializeToString())
        known = response.error.code in (Code.UNAUTHENTICATED, Code.FORBIDDEN, Code.OVERLOADED)
        reason = response.error.code if known else "unavailable"
        self.gateways[gateway].close(connection, reason, response.error.retry_after_ms)

    def _error(self, code: Code, message: str, retry_after_ms: int = 0) -> pb.Response:
        return error_pb(self._stamp(), code, message, retry_after_ms)

    async def _connect(
        self, address: Address, opening: _Opening, request_id: int, request: pb.Request
    ) -> None:
        record: Record | None = None
        answered, code, began = False, "", self._clock.now()
        try:
            record, resumed = self._admit(address, opening.peer_address, request)
            if record is None:
                return
            async with asyncio.timeout(CONNECT_S):
                known = await self.im.connected(record, request.connect)
            self._requests.breaker.succeeded()
            answered = self._start(address, opening, request_id, record, resumed, known)
        except (ImError, TimeoutError) as error:
            log.info("refused a connect from %s: %s", opening.peer_address, error)
            if isinstance(error, TimeoutError):
                self._requests.breaker.failed(self._clock.now())
                error = Unavailable("the IDC is too busy to take a connection", 500)
            code = code_of(error)
            self._refuse(address, request_id, error)
        except Exception:
            log.exception("a connect failed unexpectedly")
            code = Code.INTERNAL
            self._refuse(address, request_id, Unavailable("the connect failed", 500))
        finally:
            if record is not None and not answered:
                self._away(record)  # it may have a route by now: it ends like any other
            if self._verbs is not None and (answered or code):
                self._verbs.done("connect", self._clock.now() - began, code)

    def _admit(
        self, address: Address, peer_address: str, request: pb.Request
    ) -> tuple[Record | None, bool]:
        """The session of a valid Connect; None when it lost against a newer connection. Raises
        Refused, Unavailable."""
        record, token = self._admission.judge(address, request, self.origin)
        record.since_hlc = self._stamp().hlc
        refusal = self._risk.sign_in(record.uid, record.device, peer_address)
        if refusal is not None:
            raise refusal
        if wait_s := self._requests.breaker.wait_s(self._clock.now()):
            raise Unavailable("the IDC answers no requests now", retry_after_ms(wait_s))
        if record.pull_only:
            if (oldest := self._table.put_beside(record)) is not None:
                self._table.by_address.pop((oldest.gateway, oldest.connection), None)
                self._close_replaced(oldest.gateway, oldest.connection)
            return record, False
        former = self._table.of_device(record.uid, record.device)
        resumed = False
        if former is not None:
            if former.connection_epoch >= record.connection_epoch:
                # Rule 16: the newest connection of a device wins, whatever order they arrive in.
                self._close_replaced(*address)
                return None, False
            resumed = goes_on(record, former, token)
            self._replace(former)
            self.counters.resumed += resumed
        self._table.put(record)
        return record, resumed

    def _replace(self, former: Record) -> None:
        """A newer connection of the device takes over, whatever the former one is doing."""
        self._graces.cancel(former)
        self._owing.cancel(former)
        for waiting in self._unreplicated.values():
            waiting.pop(former, None)
        former.connected = False
        self._table.by_address.pop((former.gateway, former.connection), None)
        # A client that was told to move has made the newer connection itself, and must come back
        # if that one fails: `replaced` would forbid it.
        reason = "moved" if former.moving else "replaced"
        self._close_replaced(former.gateway, former.connection, reason)

    def _close_replaced(self, gateway: str, connection: int, reason: str = "replaced") -> None:
        queue = self.gateways.get(gateway)
        if queue is not None:
            self.counters.replaced += 1
            queue.close(connection, reason)

    def _start(
        self,
        address: Address,
        opening: _Opening,
        request_id: int,
        record: Record,
        resumed: bool,
        known: list[pb.KnownCids],
    ) -> bool:
        """The connection is a session from here on. False: it is not wanted any more."""
        if self._opening.pop(address, None) is None:
            return False  # it closed meanwhile
        held = self._table.beside if record.pull_only else self._table.holds
        if not held(record):
            self._close_replaced(*address)
            return False
        self._table.by_address[address] = record
        response = pb.Response(stamp=self._stamp())
        self._fill_connect_ok(response.connect_ok, record, resumed, known)
        self.gateways[address[0]].send(address[1], request_id, response.SerializeToString())
        if not record.pull_only:
            self._stands(record)
        for queued_id, queued in opening.queued:
            self._request(record, queued_id, queued)
        return True

    def _stands(self, record: Record) -> None:
        record.connected = True
        self._table.tell(record)
        for partition in record.unreplicated:
            self._unreplicated.setdefault(partition, {})[record] = None
        if record.owed:  # of before the connection broke, and of the time between
            self._signal_later(record)

    def _fill_connect_ok(
        self, ok: pb.ConnectOk, record: Record, resumed: bool, known: list[pb.KnownCids]
    ) -> None:
        grace_ms = self._parameters.grace_ms
        ok.session = record.id
        ok.resumed = resumed
        ok.resume_token = self._admission.resume_token(record, self.origin, grace_ms)
        ok.heartbeat_ms = self._parameters.heartbeat_ms
        ok.grace_ms = grace_ms
        ok.origin.CopyFrom(origin_pb(self.origin))
        ok.known.extend(known)
        ok.policy_epoch = self._policy_epoch()
        ok.gateway = record.gateway
        ok.pulls_max = PULLS_MAX

    # ---------------------------------------------------------------------- end of a session

    def _away(self, record: Record) -> None:
        """The connection is gone; the session lives on for its grace."""
        record.connected = False
        record.away_at = self._clock.now()
        if record.pull_only:
            self._table.remove_beside(record)
        if not self._table.holds(record):
            return
        self._owing.cancel(record)
        if self._parameters.grace_ms == 0:
            self._over(record)
        else:
            self._table.tell(record)
            self._graces.schedule(record, max(1, round(self._parameters.grace_ms / 1000 / TICK_S)))

    def _over(self, record: Record) -> None:
        """The grace is over too."""
        record.connected = False
        away_ms = round(record.unheard_s(self._clock.now()) * 1000)
        record.away_ms = min(away_ms, AWAY_MS_MAX)
        self._forget(record)
        self.im.disconnected(record)

    def _forget(self, record: Record) -> None:
        self._table.remove(record)
        self._graces.cancel(record)
        self._owing.cancel(record)
        for waiting in self._unreplicated.values():
            waiting.pop(record, None)

    # ----------------------------------------------------------------------------- requests

    def _request(self, record: Record, request_id: int, request: pb.Request) -> None:
        kind = request.WhichOneof("body") or ""
        if kind == "heartbeat":
            self._heartbeat(record, request_id, request)
        elif kind == "bye":
            self._table.by_address.pop((record.gateway, record.connection), None)
            self.gateways[record.gateway].close(record.connection, "bye")
            self._table.remove_beside(record)
            if self._table.holds(record):
                self._over(record)
        elif kind == "connect":
            self.gateways[record.gateway].close(record.connection, "protocol")
        else:
            self._requests.submit(self.im, record, request_id, request, kind)

    def _heartbeat(self, record: Record, request_id: int, request: pb.Request) -> None:
        now = self._clock.now()
        record.seen_hlc = max(record.seen_hlc, self._admission.seen(request))
        for ack in request.heartbeat.acks:
            record.ack(ack.conversation, vector_of(ack.heads), now)
        response = pb.Response(stamp=self._stamp())
        answer = response.heartbeat_ok
        answer.policy_epoch = self._policy_epoch()
        for name, owed in record.behind(now, BEHIND_S)[:_BEHIND_MAX]:
            answer.behind.add(conversation=name, heads=positions_pb(owed.heads))
        limit_ms = self._parameters.background_heartbeat_max_ms
        answer.next_ms = min(request.heartbeat.next_ms, limit_ms)
        queue = self.gateways[record.gateway]
        queue.quiet(record.connection, answer.next_ms)
        queue.send(record.connection, request_id, response.SerializeToString())
        if self._verbs is not None:
            self._verbs.done("heartbeat", self._clock.now() - now)

    # -------------------------------------------------------------------------- from others

    def move(self, session: str, within_ms: int, policy_epoch: int) -> bool:
        """Tell a client to go where the policy of that epoch wants it. False: it is not here."""
        record = self._table.by_id(session)
        if record is None or not record.connected:
            return False
        record.moving = True
        grace_ms = self._parameters.grace_ms
        event = pb.Event(stamp=self._stamp())
        event.move.resume_token = self._admission.resume_token(record, self.origin, grace_ms)
        event.move.within_ms = within_ms
        event.move.policy_epoch = policy_epoch
        self._emit([record], event)
        return True

    def close_after_move(self, session: str) -> bool:
        """End the connection of a client that was told to move and has not gone: it would keep its
        IDC from being drained for ever. The session stays for its grace, as after any loss, and the
        reason sends the client to ipconf. False: it is not here (any more)."""
        record = self._table.by_id(session)
        if record is None or not record.connected:
            return False
        return self._drain(record)

    def close_pull_only(self) -> int:
        """End the side connections, which nobody tells to move; returns how many there were."""
        found = [record for record in self._table.by_address.values() if record.pull_only]
        return sum(self._drain(record) for record in found)

    def close_all(self, reason: str) -> int:
        """Every connection, whatever it is; returns how many there were."""
        found = list(self._table.by_address)
        for gateway, connection in found:
            if gateway in self.gateways:
                self.gateways[gateway].close(connection, reason)
        return len(found)

    def _drain(self, record: Record) -> bool:
        queue = self.gateways.get(record.gateway)
        if queue is None:
            return False
        self.counters.drained += 1
        queue.close(record.connection, "drained")
        return True

    def connected_elsewhere(self, uid: str, device: str, connection_epoch: int) -> None:
        """Another IDC has a newer connection of this device (its route was folded)."""
        record = self._table.of_device(uid, device)
        if record is None or record.connection_epoch >= connection_epoch:
            return
        self._replace(record)
        self._forget(record)

    def kick(self, uid: str, device: str, connection_epoch: int) -> None:
        """Its session is over at once: one that is within its grace would count as a device."""
        record = self._table.of_device(uid, device)
        if record is None or record.connection_epoch > connection_epoch:
            return
        address = (record.gateway, record.connection)
        self._opening.pop(address, None)  # where its Connect is not answered yet
        self._table.by_address.pop(address, None)
        queue = self.gateways.get(record.gateway)
        if queue is not None:
            self.counters.kicked += 1
            queue.close(record.connection, "kicked")
        self._over(record)

    # ------------------------------------------------------------------------------- timers

    def load_checkpoint(self) -> None:
        if self._checkpoint_path is not None and self._parameters.grace_ms > 0:
            for record in checkpoint.load(self._checkpoint_path, self._clock.now()):
                self._table.put(record)
                self._away(record)

    async def run(self) -> None:
        """Signals, graces, deadlines, checkpoints and the look for overload, until cancelled."""
        self._ticked_at = self._clock.now()  # graces begin when clients can come
        async with asyncio.TaskGroup() as group:
            shedder, backlog = self._requests.shedder, lambda: self.im.backlog()
            group.create_task(watch_delay(shedder, self._clock, backlog, self._look_s))
            group.create_task(self._run_timers())
            group.create_task(self._run_checkpoints())

    async def _run_timers(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.tick()

    async def _run_checkpoints(self) -> None:
        """Apart: a disk that hangs must hold up no deadline."""
        while True:
            await asyncio.sleep(_CHECKPOINT_S)
            await self.write_checkpoint()

    def tick(self) -> None:
        ticks = int((self._clock.now() - self._ticked_at) / TICK_S)
        self._ticked_at += ticks * TICK_S
        self.counters.deadlines += self._requests.advance(ticks)
        self._look(self._owing.advance(ticks))
        for record in self._graces.advance(ticks):
            self._over(record)

    async def write_checkpoint(self) -> None:
        if self._checkpoint is not None:
            await self._checkpoint.save(list(self._table))
