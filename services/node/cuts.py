"""Links of an IDC that are cut or slow on purpose, at the edge of its own process: for tests and
drills where no link proxy stands between IDCs, such as pods of a cluster.

What goes over a cut link is held, in calls that this IDC makes and in calls that it is given,
message by message. It goes on when the link heals; after ``PATIENCE_S`` the call ends, as a
connection does whose pings nobody answers. TCP itself is not touched: the kernels go on talking.

A slow link holds each message for as long as the link proxy would hold its bytes (Direction of
services.linkproxy.model). What an IDC sends it holds itself; a witness is not told, so the IDC
holds what comes from there as well.

A fault ends by itself after ``LASTS_S`` unless it is said again: whoever made it may be gone."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio

from imcore.proto import peer_pb2 as pb
from imcore.runtime import Clock
from imcore.tls import caller_name
from services.linkproxy.model import PENDING_BYTES_MAX, Direction, LinkSpec
from services.node.around import Around, Handler

LASTS_S = 10.0
PATIENCE_S = 4.0  # twice that of a ping, as imcore.tls sets it
_SAID = "the link is cut (a fault)"


class CutOff(Exception):
    """The link has been cut for longer than a call waits."""


class Cuts:
    """The links of ``own`` to ``peers``, each way. ``witness``: the peer that knows of no faults;
    empty: there is none."""

    def __init__(
        self, own: str, peers: list[str], clock: Clock, rng: random.Random, witness: str = ""
    ) -> None:
        self._own = own
        self._peers = frozenset(peers)
        self._clock = clock
        self._rng = rng
        self._witness = witness
        self._until: dict[tuple[str, str], float] = {}  # by who sends and who receives
        self._slow: dict[tuple[str, str], tuple[Direction, float]] = {}  # and until when
        self._changed = asyncio.Event()

    def apply(self, fault: pb.LinkFault) -> str:
        """Returns what was done. Raises ValueError for what cannot be done here."""
        ends = (fault.from_idc, fault.to_idc)
        if self._own not in ends or not self._peers & set(ends):
            names = ", ".join(sorted(self._peers))
            raise ValueError(f"expected a link between {self._own} and one of {names}")
        if fault.mode not in ("drop", "pass"):
            raise ValueError(f"expected the mode pass or drop, got {fault.mode!r}")
        if not 0 <= fault.loss < 0.5:
            raise ValueError(f"expected a loss of at least 0 and below 0.5, got {fault.loss:g}")
        ways = (ends, ends[::-1]) if fault.both_ways else (ends,)
        last = self._clock.now() + LASTS_S
        if fault.mode == "drop":
            said = f"is cut for {LASTS_S:g} s"
            self._until |= dict.fromkeys(ways, last)
        elif spec := _spec(fault):
            said = f"is slow for {LASTS_S:g} s"
            for way in ways:
                self._slow_down(way, spec, last)
        else:
            said = "passes"
            for way in ways:
                self._until.pop(way, None)
                self._slow.pop(way, None)
        self._changed.set()
        self._changed = asyncio.Event()
        arrow = "<->" if fault.both_ways else "->"
        return f"the link {ends[0]} {arrow} {ends[1]} {said}"

    def _slow_down(self, way: tuple[str, str], spec: LinkSpec, last: float) -> None:
        direction = found[0] if (found := self._slow.get(way)) else Direction(*way, spec)
        direction.set_spec(spec, self._clock.now())  # said again, what waits goes on waiting
        self._slow[way] = direction, last

    def now(self) -> list[str]:
        """Those that are cut, as "fra -> dub"."""
        now = self._clock.now()
        return [f"{a} -> {b}" for (a, b), until in sorted(self._until.items()) if until > now]

    def slow(self) -> list[str]:
        """Those that are slow, as "fra -> dub"."""
        now = self._clock.now()
        return [f"{a} -> {b}" for (a, b), (_, last) in sorted(self._slow.items()) if last > now]

    def is_peer(self, name: str) -> bool:
        return name in self._peers

    async def to(self, peer: str, limit_s: float | None = None) -> None:
        """Until what this IDC sends gets there. Raises CutOff."""
        await self._passes((self._own, peer), limit_s)

    async def by(self, peer: str, limit_s: float | None = None) -> None:
        """Until what a peer has sent gets here. Raises CutOff."""
        await self._passes((peer, self._own), limit_s)

    async def travel(self, peer: str, message: Any, limit_s: float | None = None) -> None:
        """As long as the message takes from here to there. Raises CutOff when that is too long."""
        await self._travels((self._own, peer), message.ByteSize(), limit_s)

    async def comes(self, peer: str, message: Any, limit_s: float | None = None) -> None:
        """As long as it took from there, where the sender does not hold it itself."""
        if peer == self._witness:
            await self._travels((peer, self._own), message.ByteSize(), limit_s)

    async def _travels(self, way: tuple[str, str], size: int, limit_s: float | None) -> None:
        if not self._slow or (due := self._due(way, size)) is None:
            return
        last = None if limit_s is None else self._clock.now() + limit_s
        await self._arrives(way, due if last is None else min(due, last))
        if last is not None and due > last and self._slow_until(way) > self._clock.now():
            raise CutOff

    def _due(self, way: tuple[str, str], size: int) -> float | None:
        """When it arrives; None: at once."""
        if not self._slow:
            return None
        if self._slow_until(way) <= (now := self._clock.now()):
            self._slow.pop(way, None)
            return None
        direction, _ = self._slow[way]
        return direction.arrival(now, size, self._rng)

    def _slow_until(self, way: tuple[str, str]) -> float:
        return self._slow[way][1] if way in self._slow else 0.0

    async def _arrives(self, way: tuple[str, str], due: float) -> None:
        """Then, or when the link is not slow any more."""
        while (now := self._clock.now()) < (until := min(due, self._slow_until(way))):
            changed = self._changed
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until - now):
                    await changed.wait()

    async def sent(self, peer: str, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """A stream's, in order, each when it has got there; several are on their way at once, as
        many as a connection would take. Ends with CutOff as ``to`` does."""
        way = (self._own, peer)
        try:
            async for message in messages:
                due = self._due(way, message.ByteSize())
                if due is not None:
                    break  # the link is slow: from here on it is read ahead
                await self.to(peer)
                yield message
            else:
                return
            async with contextlib.aclosing(self._line(way, due, message, messages)) as line:
                async for message in line:
                    await self.to(peer)
                    yield message
        finally:
            if isinstance(messages, AsyncGenerator):
                await messages.aclose()

    async def _line(
        self, way: tuple[str, str], due: float, first: Any, messages: AsyncIterator[Any]
    ) -> AsyncGenerator[Any, None]:
        """``first``, which gets there at ``due``, and what comes behind it, in order."""
        size = first.ByteSize()
        line: deque[tuple[float | None, int, Any]] = deque([(due, size, first)])
        news, room = asyncio.Event(), asyncio.Event()
        pending, done = size, False

        async def read() -> None:
            nonlocal pending, done
            try:
                async for message in messages:
                    size = message.ByteSize()
                    due = self._due(way, size)
                    line.append((due, size, message))
                    pending += size
                    news.set()
                    # Of a link that is not slow none is read before the one before is taken.
                    while line and (due is None or pending > PENDING_BYTES_MAX):
                        room.clear()
                        await room.wait()
            finally:
                done = True
                news.set()

        reading = asyncio.create_task(read())
        try:
            while True:
                while not line and not done:
                    news.clear()
                    await news.wait()
                if not line:
                    break
                arrives, size, message = line[0]
                if arrives is not None:
                    await self._arrives(way, arrives)
                yield message
                line.popleft()
                pending -= size
                room.set()
            await reading
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await reading

    async def _passes(self, way: tuple[str, str], limit_s: float | None) -> None:
        if not self._until:
            return
        wait_s = PATIENCE_S if limit_s is None else min(PATIENCE_S, limit_s)
        last = self._clock.now() + wait_s
        while (now := self._clock.now()) < (until := self._until.get(way, 0.0)):
            if now >= last:
                raise CutOff
            changed = self._changed
            try:
                async with asyncio.timeout(min(until, last) - now):
                    await changed.wait()
            except TimeoutError:
                continue


class CutChannel(grpc.aio.Channel):
    """To one peer; what is asked of it is what our stubs are asked for: a call is awaited, or its
    answers are read."""

    def __init__(self, channel: grpc.aio.Channel, peer: str, cuts: Cuts) -> None:
        self._channel = channel
        self._peer = peer
        self._cuts = cuts

    def unary_unary(self, method: str, *made_with: Any, **options: Any) -> Any:
        inner: Any = self._channel.unary_unary(method, *made_with, **options)

        async def call(
            request: Any,
            timeout: float | None = None,  # noqa: ASYNC109 - gRPC's own
            **named: Any,
        ) -> Any:
            began = asyncio.get_running_loop().time()

            def left() -> float | None:
                now = asyncio.get_running_loop().time()
                return None if timeout is None else max(0.0, timeout - (now - began))

            try:
                await self._cuts.to(self._peer, timeout)
                await self._cuts.travel(self._peer, request, left())
                reply = await inner(request, timeout=left(), **named)
                await self._cuts.comes(self._peer, reply, left())
                await self._cuts.by(self._peer, left())
            except CutOff:
                _fail(left() == 0.0)
            return reply

        return call

    def unary_stream(self, method: str, *made_with: Any, **options: Any) -> Any:
        inner: Any = self._channel.unary_stream(method, *made_with, **options)

        def call(request: Any, **named: Any) -> _Answers:
            return _Answers(lambda: inner(request, **named), self._peer, self._cuts)

        return call

    def stream_unary(self, method: str, *made_with: Any, **options: Any) -> Any:
        inner: Any = self._channel.stream_unary(method, *made_with, **options)

        async def call(requests: AsyncIterator[Any], **named: Any) -> Any:
            try:
                reply = await inner(self._held(requests), **named)
                await self._cuts.by(self._peer)
            except CutOff:
                _fail(False)
            return reply

        return call

    def stream_stream(self, method: str, *made_with: Any, **options: Any) -> Any:
        inner: Any = self._channel.stream_stream(method, *made_with, **options)

        def call(requests: AsyncIterator[Any], **named: Any) -> _Answers:
            begin = lambda: inner(self._held(requests), **named)  # noqa: E731
            return _Answers(begin, self._peer, self._cuts)

        return call

    async def _held(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        try:
            async for request in self._cuts.sent(self._peer, requests):
                yield request
        except CutOff:
            return  # the answer to this end is held as well

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    async def __aenter__(self) -> CutChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Answers:
    """A call whose answers are read."""

    def __init__(self, begin: Callable[[], Any], peer: str, cuts: Cuts) -> None:
        self._begin = begin
        self._peer = peer
        self._cuts = cuts
        self._call: Any = None

    async def read(self) -> Any:
        try:
            if self._call is None:
                await self._cuts.to(self._peer)
                self._call = self._begin()
            found = await self._call.read()
            await self._cuts.by(self._peer)
        except CutOff:
            self.cancel()
            _fail(False)
        return found

    def __aiter__(self) -> _Answers:
        return self

    async def __anext__(self) -> Any:
        found = await self.read()
        if found is grpc.aio.EOF:  # type: ignore[attr-defined]  # the stubs lack it
            raise StopAsyncIteration
        return found

    def cancel(self) -> bool:
        return bool(self._call is not None and self._call.cancel())


def _spec(fault: pb.LinkFault) -> LinkSpec | None:
    """None: it is not slow."""
    if not (fault.delay_ms or fault.jitter_ms or fault.loss or fault.rate_kbit):
        return None
    rate_kbit = fault.rate_kbit or LinkSpec().rate_kbit
    return LinkSpec(fault.delay_ms, fault.jitter_ms, fault.loss, rate_kbit)


def _fail(late: bool) -> NoReturn:
    code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.UNAVAILABLE
    raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), _SAID, None)


class HeldCalls(Around):
    """Of calls that peers make here. Behind whatever judges who calls."""

    def __init__(self, cuts: Cuts) -> None:
        super().__init__()
        self._cuts = cuts

    def around(self, method: str, inner: Handler, asks: bool, answers: bool) -> Handler:
        async def taken(request: Any, name: str) -> Any:
            """The request, or its parts, as they get here."""
            if not asks:
                await self._cuts.by(name)
                return request
            return self._arriving(request, name)

        async def unary(request: Any, context: Any) -> Any:
            if not self._cuts.is_peer(name := caller_name(context)):
                return await inner(request, context)
            try:
                reply = await inner(await taken(request, name), context)
                await self._cuts.travel(name, reply)
                await self._cuts.to(name)
            except CutOff:
                await context.abort(grpc.StatusCode.UNAVAILABLE, _SAID)
            return reply

        async def streaming(request: Any, context: Any) -> Any:
            peer = self._cuts.is_peer(name := caller_name(context))
            try:
                given = await taken(request, name) if peer else request
                replies = inner(given, context)
                async for reply in self._cuts.sent(name, replies) if peer else replies:
                    yield reply
            except CutOff:
                await context.abort(grpc.StatusCode.UNAVAILABLE, _SAID)

        return streaming if answers else unary

    async def _arriving(self, requests: AsyncIterator[Any], name: str) -> AsyncIterator[Any]:
        async for request in requests:
            await self._cuts.by(name)
            yield request
