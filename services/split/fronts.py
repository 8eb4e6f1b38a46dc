"""The core's side: all fronts of this IDC together, as im and the mover see one state role.

Implements ``Pushes`` towards im and what ``services.control.mover`` needs, and serves the ``Front``
RPC. Each front owns its sessions; here is a mirror of them, from which it is known who is where.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import grpc

from imcore.convert import error_pb, origin_pb, positions_pb
from imcore.errors import Code, ImError, Refused, Unavailable
from imcore.proto import client_pb2 as pb
from imcore.proto import front_pb2 as front
from imcore.proto import front_pb2_grpc as rpc
from imcore.region.model import Limits
from imcore.runtime import Clock
from imcore.tls import caller_name
from imcore.words import Origin, Vector
from services.metrics.verbs import Verbs
from services.ports import Audience, Im, Session
from services.split.audiences import KEPT, Audiences
from services.split.pipe import Pipe
from services.split.where import Where
from services.state.delay import watch_delay
from services.state.dirty import Dirty
from services.state.latency import Acks, acks_of
from services.state.shedding import BEHIND, READS, Shedder

log = logging.getLogger("im.split")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
TELL_S = 0.5


class Here(NamedTuple):
    """A session of a front."""

    session: str
    uid: str
    device: str
    shard: str
    gateway: str
    connected: bool
    connection_epoch: int


@dataclass(slots=True)
class Counters:
    pushed: int = 0


@dataclass(slots=True)
class Limited:
    """What all fronts, and the core, have turned away since the core started."""

    overloaded: int = 0
    shed: int = 0
    breaker_opened: int = 0
    turned_away: int = 0


class FrontLink:
    """One front, for as long as its stream stands. Its length: connections of its gateway."""

    def __init__(self, hello: front.Hello) -> None:
        self.name = hello.gateway
        self.port = hello.port
        self.restarts = hello.restarts
        self.pipe: Pipe[front.Down] = Pipe()
        self.load = front.Load()  # as it last said
        self.gone = 0  # sessions that it has said are over
        self.by_device: dict[tuple[str, str], Here] = {}
        self.by_id: dict[str, Here] = {}
        self.devices: Counter[str] = Counter()  # by user
        self.shards: Counter[str] = Counter()  # of those that are connected
        self.audiences = Audiences(
            self.devices, lambda told: self.pipe.put(front.Down(audience=told)), hello.grows
        )

    def __len__(self) -> int:
        return self.load.connections

    def change(self, row: Here, over: bool) -> None:
        key, was_here = (row.uid, row.device), row.uid in self.devices
        former = self.by_device.pop(key, None)
        if former is not None:
            self.by_id.pop(former.session, None)
            self._count(former, -1)
            self.devices[row.uid] -= 1
            if not self.devices[row.uid]:
                del self.devices[row.uid]
        if not over:
            self.by_device[key] = self.by_id[row.session] = row
            self.devices[row.uid] += 1
            self._count(row, 1)
        if was_here is not (row.uid in self.devices):
            self.audiences.changed(row.uid)

    def _count(self, row: Here, by: int) -> None:
        if row.connected:
            self.shards[row.shard] += by
            if not self.shards[row.shard]:
                del self.shards[row.shard]


class Fronts(rpc.FrontServicer):
    """``im`` and ``origin`` are set, then ``open``, once the IDC serves. ``gateways`` is the list
    of those that are linked. ``since``: the token of im's sync (None: not to be had now)."""

    def __init__(
        self,
        idc: str,
        stamp: Callable[[], pb.Stamp],
        policy_epoch: Callable[[], int],
        clock_offset_ms: Callable[[], int],
        since: Callable[[], bytes | None],
        clock: Clock,
        limits: Limits,
    ) -> None:
        self._idc = idc
        self._stamp = stamp
        self._policy_epoch = policy_epoch
        self._clock_offset_ms = clock_offset_ms
        self._since = since
        self._clock = clock
        # A front sees how late itself is, and not how late this process is.
        self.shedder = Shedder(limits.delay_ms / 1000, limits.fold_delay_ms / 1000)
        self.im: Im
        self.origin: Origin
        self.open = False
        self.counters = Counters()
        self.limited = Limited()
        # What fronts have counted since the core started: by event, by port and event, by role.
        self.session_events: Counter[str] = Counter()
        self.gateway_events: dict[int, Counter[str]] = {}
        self.verbs: dict[str, Verbs] = {}
        self.gateways: list[FrontLink] = []
        self._where: Where[FrontLink] = Where()
        self._dirty = Dirty()
        self._levels: dict[int, tuple[Origin, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # ----------------------------------------------------------------------------- the RPC

    async def Link(
        self, request_iterator: AsyncIterator[front.UpBatch], context: Context
    ) -> AsyncIterator[front.DownBatch]:
        if (name := caller_name(context)) != self._idc:
            why = f"a front of {self._idc} shows the certificate of {self._idc}, not of {name}"
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, why)
        if not self.open:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{self._idc} does not serve yet")
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.items or not first.items[0].HasField("hello"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a front begins with a hello")
        assert first is not None
        link = self._add(first.items[0].hello)
        reading = asyncio.ensure_future(self._read(link, first, request_iterator))
        try:
            async for items in link.pipe.batches():
                yield front.DownBatch(items=items, stamp=self._stamp())
        finally:
            reading.cancel()
            self._remove(link)

    def _add(self, hello: front.Hello) -> FrontLink:
        """In the place of a former, half-open link of the same gateway."""
        for former in [link for link in self.gateways if link.name == hello.gateway]:
            self._remove(former)
        link = FrontLink(hello)
        self.gateways.append(link)
        link.pipe.put(self._tell(link))
        for partition, (origin, lsn) in self._levels.items():
            link.pipe.put(_replicated(origin, partition, lsn))
        log.info("the front %s is linked", link.name)
        return link

    def _remove(self, link: FrontLink) -> None:
        link.pipe.close()
        if link in self.gateways:
            self.gateways.remove(link)
            self._note(*link.by_id.values())
            self._where.gone(link, link.devices)
            why = ": it did not read" if link.pipe.overflowed else ""
            log.warning("the link of the front %s ended%s", link.name, why)

    async def _read(
        self, link: FrontLink, first: front.UpBatch, batches: AsyncIterator[front.UpBatch]
    ) -> None:
        try:
            for item in first.items[1:]:
                self._up(link, item)
            async for batch in batches:
                for item in batch.items:
                    self._up(link, item)
        except Exception:
            log.exception("what the front %s says cannot be taken", link.name)
        finally:
            link.pipe.close()

    def _up(self, link: FrontLink, item: front.Up) -> None:
        kind = item.WhichOneof("body")
        if kind == "ask":
            self._ask(link, item.ask)
        elif kind == "session":
            self._changed(link, item.session)
        elif kind == "joined":
            self._spawn(self._join(link, item.joined))
        elif kind == "gone":
            link.gone += 1
            self.im.disconnected(_session(link, item.gone))
        elif kind == "load":
            self._loaded(link, item.load)

    def _loaded(self, link: FrontLink, load: front.Load) -> None:
        link.load, limited = load, self.limited
        self.counters.pushed += load.pushed
        self.session_events.update(load.session_events)
        self.gateway_events.setdefault(link.port, Counter()).update(load.gateway_events)
        for row in load.verbs:
            if (verbs := self.verbs.get(row.role)) is not None:
                verbs.add(row.verb, row.buckets, row.seconds, row.failures)
        limited.overloaded += load.overloaded
        limited.shed += load.shed
        limited.breaker_opened += load.breaker_opened
        limited.turned_away += load.turned_away

    def _ask(self, link: FrontLink, ask: front.Ask) -> None:
        call = ask.call

        def reply(response: pb.Response) -> None:
            link.pipe.put(front.Down(answer=front.Answer(call=call, response=response)))

        reads = ask.request.WhichOneof("body") in READS
        now = self._clock.now()
        if not ask.catches_up and (retry_ms := self.shedder.retry_ms(ask.caller.uid, reads, now)):
            self.limited.overloaded += 1
            self.limited.shed += 1
            reply(error_pb(self._stamp(), Code.OVERLOADED, BEHIND, retry_ms))
            return
        self.im.submit(_session(link, ask.caller), ask.request, reply)

    async def _join(self, link: FrontLink, joined: front.Joined) -> None:
        answer = front.JoinAnswer(call=joined.call)
        try:
            session = _session(link, joined.caller)
            answer.known.extend(await self.im.connected(session, joined.connect))
        except ImError as error:
            answer.code = error.code if isinstance(error, Refused) else Code.UNAVAILABLE
            answer.message = str(error)
            if isinstance(error, Unavailable):
                answer.retry_after_ms = error.retry_after_ms
        except Exception:
            log.exception("a connect failed unexpectedly")
            answer.code, answer.message = Code.UNAVAILABLE, "the connect failed"
            answer.retry_after_ms = 500
        link.pipe.put(front.Down(join_answer=answer))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _changed(self, link: FrontLink, change: front.SessionChange) -> None:
        caller = change.caller
        row = Here(
            caller.id, caller.uid, caller.device, change.shard, link.name, change.connected,
            caller.connection_epoch,
        )  # fmt: skip
        self._note(link.by_device.get((row.uid, row.device)), row)
        link.change(row, change.over)
        if link in self.gateways:  # else its link has ended, and a last batch is being read
            self._where.note(row.uid, link, row.uid in link.devices)
        if change.over:
            return
        # Rule 16, between the fronts: a device has one session, of its newest connection.
        for other in self.gateways:
            theirs = other.by_device.get((row.uid, row.device)) if other is not link else None
            if theirs is None:
                continue
            loser, epoch = other, row.connection_epoch
            if theirs.connection_epoch > epoch:
                loser, epoch = link, theirs.connection_epoch
            loser.pipe.put(_elsewhere(row.uid, row.device, epoch))

    # -------------------------------------------------------------------------------- ticks

    async def run(self) -> None:
        """Tells the fronts what they must know, and looks for overload, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(watch_delay(self.shedder, self._clock, lambda: self.im.backlog()))
            group.create_task(self._tell_fronts())

    async def _tell_fronts(self) -> None:
        while True:
            await asyncio.sleep(TELL_S)
            for link in self.gateways:
                link.pipe.put(self._tell(link))

    def _tell(self, link: FrontLink) -> front.Down:
        tell = front.Tell(
            origin=origin_pb(self.origin),
            policy_epoch=self._policy_epoch(),
            clock_offset_ms=self._clock_offset_ms(),
            since=self._since() or b"",
            gone=link.gone,
        )
        return front.Down(tell=tell)

    # --------------------------------------------------------------------------- Pushes (im)

    def push_entries(
        self,
        conversation: str,
        uids: Sequence[str],
        entries: Sequence[pb.Entry],
        heads: Vector,
        stable: int,
    ) -> None:
        for link, here in self._of(uids):
            link.pipe.put(
                front.Down(
                    push=front.PushEntries(
                        conversation=conversation,
                        uids=here,
                        entries=entries,
                        heads=positions_pb(heads),
                        stable=stable,
                    )
                )
            )

    def reached(self, audience: Audience) -> int:
        return sum(link.audiences.reached(audience) for link in self.gateways)

    def waiting(self) -> int:
        return max((link.load.waiting for link in self.gateways), default=0)

    def push_group(
        self,
        audience: Audience,
        entries: Sequence[pb.Entry],
        heads: Vector,
        stable: int,
        merged: bool,
    ) -> None:
        for link in self.gateways:
            if number := link.audiences.number(audience):
                push = front.PushEntries(
                    conversation=audience.conversation, audience=number, merged=merged,
                    entries=entries, heads=positions_pb(heads), stable=stable,
                )  # fmt: skip
                link.pipe.put(front.Down(push=push))

    def tell_behind(self, behind: Sequence[tuple[Audience, Vector, int]], within_ms: int) -> None:
        for link in self.gateways:
            for at in range(0, len(behind), KEPT):  # more of them a front does not remember
                told = front.BehindGroups(within_ms=within_ms)
                for audience, heads, stable in behind[at : at + KEPT]:
                    if number := link.audiences.number(audience):
                        group = told.groups.add(audience=number)
                        group.heads.conversation, group.heads.stable = audience.conversation, stable
                        group.heads.heads.extend(positions_pb(heads))
                if told.groups:
                    link.pipe.put(front.Down(behind=told))

    def signal(self, uids: Sequence[str], conversation: str, heads: Vector) -> None:
        for link, here in self._of(uids):
            signal = front.SignalUsers(
                uids=here, conversation=conversation, heads=positions_pb(heads)
            )
            link.pipe.put(front.Down(signal=signal))

    def cursor_moved(self, uid: str, event: pb.CursorMoved) -> None:
        for link, _ in self._of((uid,)):
            link.pipe.put(front.Down(cursor=front.CursorOf(uid=uid, event=event)))

    def tell(self, uids: Sequence[str], event: pb.Event) -> None:
        for link, here in self._of(uids):
            link.pipe.put(front.Down(tell_users=front.TellUsers(uids=here, event=event)))

    def tell_devices(self, devices: Sequence[tuple[str, str]], event: pb.Event) -> None:
        for link in self.gateways:
            here = [key for key in devices if key in link.by_device]
            if here:
                told = front.TellDevices(event=event)
                for uid, device in here:
                    told.devices.add(uid=uid, device=device)
                link.pipe.put(front.Down(tell_devices=told))

    def accepted(self, session: Session, origin: Origin, partition: int, lsn: int) -> None:
        for link in self.gateways:
            if link.name == session.gateway:
                op = front.AcceptedOp(session=session.id, partition=partition, lsn=lsn)
                link.pipe.put(front.Down(accepted=op))

    def replicated(self, origin: Origin, partition: int, lsn: int) -> None:
        self._levels[partition] = (origin, lsn)
        for link in self.gateways:
            link.pipe.put(_replicated(origin, partition, lsn))

    def _of(self, uids: Iterable[str]) -> list[tuple[FrontLink, list[str]]]:
        """Each front that has sessions of some of these users, and of which ones."""
        return list(self._where.of(uids).items())

    # ------------------------------------------------------------- the mover, and other IDCs

    def sessions(self) -> list[Here]:
        return [row for link in self.gateways for row in link.by_device.values()]

    def connected_count(self) -> int:
        return sum(link.shards.total() for link in self.gateways)

    def changed(self) -> dict[str, Here | None]:
        """By session: whose connection has come or gone since this was asked last, at first all
        that stand. None: it has none (any more)."""
        dirty = self._dirty.take()
        if dirty is None:
            return {row.session: row for row in self.sessions() if row.connected}
        found: dict[str, Here | None] = {}
        for session in dirty:
            link = self._with_session(session)
            found[session] = link.by_id[session] if link is not None else None
        return found

    def _note(self, *rows: Here | None) -> None:
        self._dirty.note(row.session for row in rows if row is not None)

    def acks(self) -> Acks:
        """Of all fronts together, as they measured them towards their clients."""
        buckets: Counter[int] = Counter()
        for link in self.gateways:
            buckets.update(dict(link.load.acks))
        return acks_of(buckets)

    def load(self) -> dict[str, float | int | bool]:
        """``served_share``: of the process that serves the least; ``breaker_open``: of any."""
        loads = [link.load for link in self.gateways if link.load.ByteSize()]
        shares = [self.shedder.share, *(load.served_share for load in loads)]
        return {
            "served_share": round(min(shares), 3),
            "overloaded": self.limited.overloaded,
            "shed": self.limited.shed,
            "breaker_open": any(load.breaker_open for load in loads),
            "breaker_opened": self.limited.breaker_opened,
        }

    def queued(self) -> dict[str, int]:
        loads = [link.load for link in self.gateways]
        return {
            "connects": sum(load.connects for load in loads),
            "requests": sum(load.requests for load in loads),
        }

    def shards(self) -> dict[str, int]:
        shards: Counter[str] = Counter()
        for link in self.gateways:
            shards.update(link.shards)
        return dict(shards)

    def move(self, session: str, within_ms: int, policy_epoch: int) -> bool:
        link = self._with_session(session)
        if link is None:
            return False
        move = front.MoveSession(session=session, within_ms=within_ms, policy_epoch=policy_epoch)
        link.pipe.put(front.Down(move=move))
        return True

    def close_after_move(self, session: str) -> bool:
        link = self._with_session(session)
        if link is None:
            return False
        link.pipe.put(front.Down(close_after_move=session))
        return True

    def close_pull_only(self) -> int:
        for link in self.gateways:
            link.pipe.put(front.Down(close_pull_only=True))
        return sum(link.load.pull_only for link in self.gateways)

    def connected_elsewhere(self, uid: str, device: str, connection_epoch: int) -> None:
        for link in self.gateways:
            row = link.by_device.get((uid, device))
            if row is not None and row.connection_epoch < connection_epoch:
                link.pipe.put(_elsewhere(uid, device, connection_epoch))

    def kick(self, uid: str, device: str, connection_epoch: int) -> None:
        for link in self.gateways:
            row = link.by_device.get((uid, device))
            if row is not None and row.connection_epoch <= connection_epoch:
                kick = _elsewhere(uid, device, connection_epoch).elsewhere
                link.pipe.put(front.Down(kick=kick))

    def _with_session(self, session: str) -> FrontLink | None:
        """Where it is connected."""
        for link in self.gateways:
            row = link.by_id.get(session)
            if row is not None and row.connected:
                return link
        return None


def _session(link: FrontLink, caller: front.Caller) -> Session:
    return Session(
        caller.id, caller.uid, caller.device, caller.connection_epoch, link.name,
        caller.connection, caller.pull_only, caller.seen_hlc, caller.kind,
        caller.away_ms,
    )  # fmt: skip


def _replicated(origin: Origin, partition: int, lsn: int) -> front.Down:
    told = pb.Replicated(origin=origin_pb(origin), partition=partition, lsn=lsn)
    return front.Down(replicated=told)


def _elsewhere(uid: str, device: str, connection_epoch: int) -> front.Down:
    told = front.Elsewhere(uid=uid, device=device, connection_epoch=connection_epoch)
    return front.Down(elsewhere=told)
