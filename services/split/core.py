"""The front's side: im, in the core's process, as the state role sees it. Between the two there may
be a route instance (``services.split.route``), which changes nothing here.

The link may end at any time (the core was killed) and is made again; client connections stand
meanwhile. What was asked and not answered is answered with `unavailable`, on which an SDK asks
again under the same client key. What the core told nobody while there was no link is caught up on
when there is one: im is asked what has changed since the last token, for every user of a session,
and clients are told that they may have missed what nobody owes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import grpc

from imcore.attest import RegionKeys
from imcore.convert import error_pb, origin_of, stamp_of, vector_of
from imcore.errors import Code, Refused, Unavailable
from imcore.limits import AWAY_MS_MAX
from imcore.proto import client_pb2 as pb
from imcore.proto import front_pb2 as front
from imcore.runtime import Clock
from imcore.words import Origin, Vector
from services.ports import NO_BACKLOG, Backlog, Kicks, Pushes, Reply, Session
from services.split.audiences import Named
from services.split.links import up_batches
from services.split.pipe import Pipe
from services.split.ways import Way

log = logging.getLogger("im.split")

AGAIN_S = 0.1
LOAD_S = 0.5
FIRST_S = 2.0  # for the first word of whom it links to
RETRY_MS = 100
_CATCHING_UP = 16  # users at a time
_CATCH_UP_AGAIN_S = 0.3
_CATCH_UP_AGAIN_MAX_S = 3.0


class State(Pushes, Kicks, Protocol):
    """The state role, as its core commands it."""

    def standing(self) -> Sequence[tuple[Session, str, bool]]:
        """Every session (grace included), its shard, and whether it is connected."""
        ...

    def session(self, session_id: str) -> Session | None: ...
    def owe(self, uid: str, conversation: str, heads: Vector) -> None: ...
    def move(self, session: str, within_ms: int, policy_epoch: int) -> object: ...
    def close_after_move(self, session: str) -> object: ...
    def close_pull_only(self) -> int: ...


class CoreLink:
    """Implements ``Im``. ``load`` says what the core is told of this front twice a second."""

    def __init__(
        self,
        way: Way,
        keys: RegionKeys,
        clock: Clock,
        told: Callable[[front.Tell], None],
        load: Callable[[], front.Load],
    ) -> None:
        self._way = way
        self._keys = keys
        self._clock = clock
        self._told = told
        self._load = load
        self.state: State
        self.hello = front.Hello()
        self.policy_epoch = 0
        self.origin: Origin | None = None  # once there was a link
        self.linked = asyncio.Event()  # and the core has said who it is
        self.lost_at = clock.now()  # when the last link ended
        self._stamp = pb.Stamp()
        self._pipe: Pipe[front.Up] = Pipe()
        self._pipe.close()
        self._calls: dict[int, Reply] = {}
        self._named = Named(grows=True)  # members of huge groups, by this link
        self._joins: dict[int, asyncio.Future[front.JoinAnswer]] = {}
        self._last_call = 0
        # Ended, and when; the core has not said that this is folded. Told again by the next link,
        # or the routes would stand until the users come again.
        self._over: deque[tuple[Session, float]] = deque()
        self._taken = 0  # as many of them are, of this link
        self._since = b""
        self._behind = False  # something since then may not have been told here
        self._catching: asyncio.Task[None] | None = None

    @property
    def since(self) -> bytes:
        """The token of im's sync up to which everybody here was told everything."""
        return self._since

    def catch_up_from(self, since: bytes) -> None:
        """The sessions here were told everything up to this token, by a predecessor."""
        self._since, self._behind = since, True
        self._catching = asyncio.ensure_future(self._catch_up())

    def stamp(self) -> pb.Stamp:
        """The highest that the core has given out."""
        return self._stamp

    # --------------------------------------------------------------------------- the stream

    async def run(self) -> None:
        """Links, again and again, until cancelled."""
        said = ""
        while True:
            try:
                await self._link()
                why = "the core closed it"
            except grpc.aio.AioRpcError as error:
                why = str(error.details())
            except Unavailable as error:
                why = str(error)
            finally:
                was = self.linked.is_set()
                self._lost()
            self._way.ended(why)
            if was or why != said:
                log.warning("no link to the core: %s", why)
            said = why
            await asyncio.sleep(AGAIN_S)

    def again(self) -> None:
        """End this link, and make another one."""
        self._pipe.close()

    async def _link(self) -> None:
        stub = await self._way.next()
        self._named = Named(grows=True)
        pipe = self._pipe = Pipe()
        pipe.put(front.Up(hello=self.hello))
        self.tell_standing()
        self._taken = 0
        for gone in self.ended():
            pipe.put(front.Up(gone=gone))
        call = stub.Link(up_batches(pipe), wait_for_ready=False)
        loads = asyncio.ensure_future(self._loads())
        batches = aiter(call)
        try:
            # A process that stands still takes a connection, and then says nothing.
            async with asyncio.timeout(FIRST_S):
                first = await anext(batches, None)
            if first is not None:
                self._down(first)
            async for batch in batches:
                self._down(batch)
        except TimeoutError:
            raise Unavailable(f"it says nothing for {FIRST_S:g} s") from None
        finally:
            loads.cancel()
            pipe.close()
            call.cancel()

    async def _loads(self) -> None:
        while True:
            self._pipe.put(front.Up(load=self._load()))
            await asyncio.sleep(LOAD_S)

    def _lost(self) -> None:
        self._pipe.close()
        if self.linked.is_set():
            self.lost_at = self._clock.now()
            self._behind = True
        self.linked.clear()
        if self._catching is not None:
            self._catching.cancel()
        calls, self._calls = self._calls, {}
        for reply in calls.values():
            reply(self._unavailable())
        joins, self._joins = self._joins, {}
        for join in joins.values():
            if not join.done():
                join.set_exception(_away())

    def _down(self, batch: front.DownBatch) -> None:
        if batch.stamp.hlc > self._stamp.hlc:
            self._stamp = batch.stamp
        for item in batch.items:
            self._item(item, item.WhichOneof("body") or "")

    def _item(self, item: front.Down, kind: str) -> None:
        state = self.state
        if kind == "answer":
            reply = self._calls.pop(item.answer.call, None)
            if reply is not None:
                reply(item.answer.response)
        elif kind == "push":
            push = item.push
            heads = vector_of(push.heads)
            if push.audience:
                audience = self._named.of(push.audience)
                state.push_group(audience, push.entries, heads, push.stable, push.merged)
            else:
                state.push_entries(push.conversation, push.uids, push.entries, heads, push.stable)
        elif kind == "audience":
            self._named.told(item.audience)
        elif kind == "behind":
            named = item.behind
            behind = [
                (
                    self._named.of(group.audience),
                    vector_of(group.heads.heads),
                    group.heads.stable,
                )
                for group in named.groups
            ]
            state.tell_behind(behind, named.within_ms)
        elif kind == "accepted":
            session = state.session(item.accepted.session)
            if session is not None and self.origin is not None:
                accepted = item.accepted
                state.accepted(session, self.origin, accepted.partition, accepted.lsn)
        elif kind == "replicated":
            told = item.replicated
            state.replicated(origin_of(told.origin), told.partition, told.lsn)
        elif kind == "tell":
            self._tell(item.tell)
        elif kind == "join_answer":
            join = self._joins.pop(item.join_answer.call, None)
            if join is not None and not join.done():
                join.set_result(item.join_answer)
        else:
            self._command(item, kind)

    def _command(self, item: front.Down, kind: str) -> None:
        state = self.state
        if kind == "signal":
            signal = item.signal
            state.signal(signal.uids, signal.conversation, vector_of(signal.heads))
        elif kind == "cursor":
            state.cursor_moved(item.cursor.uid, item.cursor.event)
        elif kind == "tell_users":
            state.tell(item.tell_users.uids, item.tell_users.event)
        elif kind == "tell_devices":
            devices = [(row.uid, row.device) for row in item.tell_devices.devices]
            state.tell_devices(devices, item.tell_devices.event)
        elif kind == "move":
            state.move(item.move.session, item.move.within_ms, item.move.policy_epoch)
        elif kind == "close_after_move":
            state.close_after_move(item.close_after_move)
        elif kind == "close_pull_only":
            state.close_pull_only()
        elif kind == "kick":
            state.kick(item.kick.uid, item.kick.device, item.kick.connection_epoch)
        elif kind == "elsewhere":
            there = item.elsewhere
            state.connected_elsewhere(there.uid, there.device, there.connection_epoch)

    def _tell(self, tell: front.Tell) -> None:
        for _ in range(tell.gone - self._taken):
            self._over.popleft()
        self._taken = max(tell.gone, self._taken)
        self.policy_epoch = tell.policy_epoch
        self.origin = origin_of(tell.origin)
        first = not self.linked.is_set()
        self.linked.set()
        if first and self._behind:
            if self._catching is not None:
                self._catching.cancel()
            self._catching = asyncio.ensure_future(self._catch_up())
        elif tell.since and not self._behind:
            self._since = tell.since
        self._told(tell)

    # ---------------------------------------------------------------------------- sessions

    def changed(self, session: Session, shard: str, connected: bool, over: bool) -> None:
        """To be told of every change, so that the core's mirror is right."""
        self._put_change(session, shard, connected, over)

    def tell_standing(self) -> None:
        """Of all sessions here, which the core does not know (any more)."""
        for session, shard, connected in self.state.standing():
            self._put_change(session, shard, connected, False, stood=True)

    def _put_change(
        self, session: Session, shard: str, connected: bool, over: bool, stood: bool = False
    ) -> None:
        if not self._pipe.closed:
            change = front.SessionChange(
                caller=_caller(session), shard=shard, connected=connected, over=over, stood=stood
            )
            self._pipe.put(front.Up(session=change))

    # ---------------------------------------------------------------------------------- Im

    def submit(self, session: Session, request: pb.Request, reply: Reply) -> None:
        if request.HasField("seen"):
            session.seen_hlc = max(session.seen_hlc, self._keys.seen(stamp_of(request.seen)))
        self._put_ask(front.Ask(caller=_caller(session), request=request), reply)

    def _put_ask(self, ask: front.Ask, reply: Reply) -> None:
        if not self.linked.is_set():
            reply(self._unavailable())
            return
        self._last_call += 1
        self._calls[self._last_call] = reply
        ask.call = self._last_call
        self._pipe.put(front.Up(ask=ask))

    async def connected(self, session: Session, connect: pb.Connect) -> list[pb.KnownCids]:
        if not self.linked.is_set():
            raise _away()
        self._last_call += 1
        call = self._last_call
        join = self._joins[call] = asyncio.get_running_loop().create_future()
        joined = front.Joined(call=call, caller=_caller(session), connect=connect)
        self._pipe.put(front.Up(joined=joined))
        try:
            answer = await join
        finally:
            self._joins.pop(call, None)
        if answer.code == Code.UNAVAILABLE:
            raise Unavailable(answer.message, answer.retry_after_ms)
        if answer.code:
            raise Refused(Code(answer.code), answer.message)
        return list(answer.known)

    def backlog(self) -> Backlog:
        return NO_BACKLOG  # the core sheds for itself

    def disconnected(self, session: Session) -> None:
        self._over.append((session, self._clock.now()))
        self._pipe.put(front.Up(gone=_caller(session)))

    def ended(self) -> list[front.Caller]:
        """Sessions that are over, and of which the core has not said that it has folded that."""
        found = []
        for session, ended_at in self._over:
            gone = _caller(session)
            # Its end is logged with a later time: whoever reads that reckons back from it.
            later_ms = round((self._clock.now() - ended_at) * 1000)
            gone.away_ms = min(gone.away_ms + later_ms, AWAY_MS_MAX)
            found.append(gone)
        return found

    def ended_before(self, ended: Sequence[front.Caller]) -> None:
        """Those of a predecessor, whose gateway this goes on with."""
        for gone in ended:
            self.disconnected(
                Session(
                    gone.id, gone.uid, gone.device, gone.connection_epoch, self.hello.gateway,
                    gone.connection, gone.pull_only, gone.seen_hlc, gone.kind, gone.away_ms,
                    gone.since_hlc,
                )
            )  # fmt: skip

    def _unavailable(self) -> pb.Response:
        return error_pb(self._stamp, Code.UNAVAILABLE, str(_away()), RETRY_MS)

    # ---------------------------------------------------------------------------- catching up

    async def _catch_up(self) -> None:
        """Until every user's devices have been told what has changed; a link that ends meanwhile
        begins it again, from the same token."""
        users: dict[str, Session] = {}
        for session, _, _ in self.state.standing():
            users.setdefault(session.uid, session)
        left = iter(users.values())

        async def some() -> None:
            for session in left:
                await self._catch_up_user(session)

        async with asyncio.TaskGroup() as group:
            for _ in range(_CATCHING_UP):
                group.create_task(some())
        self._behind = False
        log.info("caught up for %d users", len(users))

    async def _catch_up_user(self, session: Session) -> None:
        """For as long as it takes. To begin again with a new link would cost all that is under way
        an answer, and the core all that it has answered."""
        page, wait_s = b"", _CATCH_UP_AGAIN_S
        while True:
            request = pb.Request(sync=pb.Sync(since=self._since, page=page))
            response = await self._ask(session, request)
            if response.HasField("error"):
                await asyncio.sleep(max(wait_s, response.error.retry_after_ms / 1000))
                wait_s = min(2 * wait_s, _CATCH_UP_AGAIN_MAX_S)
                continue
            for row in (*response.sync_ok.conversations, *response.sync_ok.left):
                self.state.owe(session.uid, row.conversation, vector_of(row.heads))
            page = response.sync_ok.next_page
            if not page:
                break
        # A watch was in the memory of the core, and the rest is owed to nobody: clients ask.
        self.state.tell([session.uid], pb.Event(missed=pb.Missed()))

    async def _ask(self, session: Session, request: pb.Request) -> pb.Response:
        answer: asyncio.Future[pb.Response] = asyncio.get_running_loop().create_future()

        def reply(response: pb.Response) -> None:
            if not answer.done():
                answer.set_result(response)

        asked = front.Ask(caller=_caller(session), request=request, catches_up=True)
        self._put_ask(asked, reply)
        return await answer


def _caller(session: Session) -> front.Caller:
    return front.Caller(
        id=session.id,
        uid=session.uid,
        device=session.device,
        connection_epoch=session.connection_epoch,
        connection=session.connection,
        pull_only=session.pull_only,
        seen_hlc=session.seen_hlc,
        kind=session.kind,
        away_ms=session.away_ms,
        since_hlc=session.since_hlc,
    )


def _away() -> Unavailable:
    return Unavailable("this IDC's core is away; ask again", RETRY_MS)
