"""The core's side: all fronts of this IDC together, as im and the mover see one state role.

Implements ``Pushes`` towards im and what ``services.control.mover`` needs, and serves the ``Front``
RPC. Each front owns its sessions; here is a mirror of them, from which it is known who is where.
What is for users goes once to each front that has some of them, and once to a route instance for
all of its fronts (``services.split.route``); what is for one session goes to its front, by whatever
way it is linked.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

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
from services.split.audiences import KEPT
from services.split.links import FrontLink, Here, Lane, RouteLink, Way, here_of
from services.split.pipe import Pipe
from services.split.where import Where
from services.state.delay import watch_delay
from services.state.dirty import Dirty
from services.state.latency import Acks, acks_of
from services.state.shedding import BEHIND, READS, Shedder

log = logging.getLogger("im.split")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
TELL_S = 0.5
UNLINKED_S = 2.0  # as a lease of a gateway lasts: one that is not linked by then is gone


class CoreIm(Im, Protocol):
    """im, as fronts need it."""

    def stood(self, session: Session) -> None:
        """A session that stands, and could be told nothing while its front had no link: what should
        have ended it meanwhile ends it now. Its route is written if it was lost."""
        ...

    def is_over(self, session: Session) -> bool:
        """Whether what ``disconnected`` has said of it is folded, so that nothing can lose it."""
        ...


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
        self.im: CoreIm
        self.origin: Origin
        self.open = False
        self.counters = Counters()
        self.limited = Limited()
        # What fronts have counted since the core started: by event, by port and event, by role.
        self.session_events: Counter[str] = Counter()
        self.gateway_events: dict[int, Counter[str]] = {}
        self.verbs: dict[str, Verbs] = {}
        self.gateways: list[FrontLink] = []
        self.routes: list[RouteLink] = []
        # Of links that have just ended: how many sessions each front had, and when that was.
        self._unlinked: dict[str, tuple[int, float]] = {}
        self._where: Where[Way] = Where()
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
        hello, pipe = first.items[0].hello, Pipe[front.Down]()
        way: Way = RouteLink(hello.route, pipe) if hello.route else FrontLink(hello, pipe)
        if isinstance(way, RouteLink):
            self._add_route(way)
        else:
            self._add(way)
        reading = asyncio.ensure_future(self._read(way, first, request_iterator))
        try:
            async for items in pipe.batches():
                yield front.DownBatch(items=items, stamp=self._stamp())
        finally:
            reading.cancel()
            if isinstance(way, RouteLink):
                self._remove_route(way)
            else:
                self._remove(way)

    def _add(self, link: FrontLink) -> None:
        """In the place of a former, half-open link of the same gateway."""
        for former in [each for each in self.gateways if each.name == link.name]:
            self._remove(former)
        self.gateways.append(link)
        link.pipe.put(self._tell(link))
        for partition, (origin, lsn) in self._levels.items():
            link.pipe.put(_replicated(origin, partition, lsn))
        by = f" by {link.way.name}" if link.way is not link else ""
        log.info("the front %s is linked%s", link.name, by)

    def _remove(self, link: FrontLink) -> None:
        link.pipe.close()
        if link in self.gateways:
            self.gateways.remove(link)
            self._unlinked[link.name] = link.shards.total(), self._clock.now()
            self._note(*link.by_id.values())
            way = link.way
            if isinstance(way, RouteLink):
                del way.fronts[link.number]
                for uid in link.devices:
                    way.turned(uid, False)
                    self._where.note(uid, way, way.has(uid))
            else:
                self._where.gone(way, way.devices)
            why = ": it did not read" if link.pipe.overflowed else ""
            log.warning("the link of the front %s ended%s", link.name, why)

    def _add_route(self, route: RouteLink) -> None:
        for former in [each for each in self.routes if each.name == route.name]:
            self._remove_route(former)
        self.routes.append(route)
        route.pipe.put(front.Down(tell=self._told()))
        log.info("the route instance %s is linked", route.name)

    def _remove_route(self, route: RouteLink) -> None:
        if route not in self.routes:
            return
        self.routes.remove(route)
        for link in list(route.fronts.values()):
            self._remove(link)
        route.pipe.close()
        self._where.gone(route, ())
        why = ": it did not read" if route.pipe.overflowed else ""
        log.warning("the link of the route instance %s ended%s", route.name, why)

    async def _read(
        self, way: Way, first: front.UpBatch, batches: AsyncIterator[front.UpBatch]
    ) -> None:
        try:
            self._take(way, first.items[1:])
            async for batch in batches:
                self._take(way, batch.items)
        except Exception:
            log.exception("what %s says cannot be taken", way.name)
        finally:
            way.pipe.close()

    def _take(self, way: Way, items: Iterable[front.Up]) -> None:
        for item in items:
            if isinstance(way, RouteLink):
                self._up_by_route(way, item)
            else:
                self._up(way, item)

    def _up_by_route(self, route: RouteLink, item: front.Up) -> None:
        number, link = item.front, route.fronts.get(item.front)
        if item.HasField("hello"):
            lane = Lane(number, route.pipe)
            link = route.fronts[number] = FrontLink(item.hello, lane, route, number)
            self._add(link)
        elif link is None:
            return  # it was told to go, and has not heard of it yet
        elif item.HasField("left"):
            self._remove(link)
        else:
            try:
                self._up(link, item)
            except Exception:
                log.exception("what the front %s says cannot be taken", link.name)
                self._remove(link)  # the others of its route instance go on

    def _up(self, link: FrontLink, item: front.Up) -> None:
        kind = item.WhichOneof("body")
        if kind == "ask":
            self._ask(link, item.ask)
        elif kind == "session":
            self._changed(link, item.session)
        elif kind == "joined":
            self._spawn(self._join(link, item.joined))
        elif kind == "gone":
            session = _session(link, item.gone)
            link.ending.append(session)
            self.im.disconnected(session)
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
        caller, row = change.caller, here_of(link, change)
        self._note(link.by_device.get((row.uid, row.device)), row)
        link.change(row, change.over)
        if link in self.gateways:  # else its link has ended, and a last batch is being read
            self._where.note(row.uid, link.way, link.way.has(row.uid))
        if change.over:
            return
        if change.stood:
            self.im.stood(_session(link, caller))
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
        while link.ending and self.im.is_over(link.ending[0]):
            link.ending.popleft()
            link.gone += 1
        return front.Down(tell=self._told(link.gone))

    def _told(self, gone: int = 0) -> front.Tell:
        return front.Tell(
            origin=origin_pb(self.origin),
            policy_epoch=self._policy_epoch(),
            clock_offset_ms=self._clock_offset_ms(),
            since=self._since() or b"",
            gone=gone,
        )

    # --------------------------------------------------------------------------- Pushes (im)

    def push_entries(
        self,
        conversation: str,
        uids: Sequence[str],
        entries: Sequence[pb.Entry],
        heads: Vector,
        stable: int,
    ) -> None:
        for way, here in self._of(uids):
            way.pipe.put(
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
        return sum(way.audiences.reached(audience) for way in self._ways())

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
        for way in self._ways():
            if number := way.audiences.number(audience):
                push = front.PushEntries(
                    conversation=audience.conversation, audience=number, merged=merged,
                    entries=entries, heads=positions_pb(heads), stable=stable,
                )  # fmt: skip
                way.pipe.put(front.Down(push=push))

    def tell_behind(self, behind: Sequence[tuple[Audience, Vector, int]], within_ms: int) -> None:
        for way in self._ways():
            for at in range(0, len(behind), KEPT):  # more of them a front does not remember
                told = front.BehindGroups(within_ms=within_ms)
                for audience, heads, stable in behind[at : at + KEPT]:
                    if number := way.audiences.number(audience):
                        group = told.groups.add(audience=number)
                        group.heads.conversation, group.heads.stable = audience.conversation, stable
                        group.heads.heads.extend(positions_pb(heads))
                if told.groups:
                    way.pipe.put(front.Down(behind=told))

    def signal(self, uids: Sequence[str], conversation: str, heads: Vector) -> None:
        for way, here in self._of(uids):
            signal = front.SignalUsers(
                uids=here, conversation=conversation, heads=positions_pb(heads)
            )
            way.pipe.put(front.Down(signal=signal))

    def cursor_moved(self, uid: str, event: pb.CursorMoved) -> None:
        for way, _ in self._of((uid,)):
            way.pipe.put(front.Down(cursor=front.CursorOf(uid=uid, event=event)))

    def tell(self, uids: Sequence[str], event: pb.Event) -> None:
        for way, here in self._of(uids):
            way.pipe.put(front.Down(tell_users=front.TellUsers(uids=here, event=event)))

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
        for way in self._ways():
            way.pipe.put(_replicated(origin, partition, lsn))

    def _ways(self) -> list[Way]:
        """Each front that is linked directly, and each route instance."""
        return [*self.routes, *(link for link in self.gateways if link.way is link)]

    def _of(self, uids: Iterable[str]) -> list[tuple[Way, list[str]]]:
        """By which ways some of these users are to be reached, and which ones."""
        return list(self._where.of(uids).items())

    # ------------------------------------------------------------- the mover, and other IDCs

    def sessions(self) -> list[Here]:
        return [row for link in self.gateways for row in link.by_device.values()]

    def connected_count(self) -> int:
        """Those of a front that is about to link anew, or has and says who is there next, count
        meanwhile: an IDC that is emptied was called drained in just that moment, with its last
        clients still there."""
        since = self._clock.now() - UNLINKED_S
        for name in [name for name, (_, at) in self._unlinked.items() if at < since]:
            del self._unlinked[name]
        found = {name: count for name, (count, _) in self._unlinked.items()}
        for link in self.gateways:
            found[link.name] = max(link.shards.total(), found.get(link.name, 0))
        return sum(found.values())

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
        caller.away_ms, caller.since_hlc,
    )  # fmt: skip


def _replicated(origin: Origin, partition: int, lsn: int) -> front.Down:
    told = pb.Replicated(origin=origin_pb(origin), partition=partition, lsn=lsn)
    return front.Down(replicated=told)


def _elsewhere(uid: str, device: str, connection_epoch: int) -> front.Down:
    told = front.Elsewhere(uid=uid, device=device, connection_epoch=connection_epoch)
    return front.Down(elsewhere=told)
