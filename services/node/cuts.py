"""Links of an IDC that are cut on purpose, at the edge of its own process: for tests and drills
where no link proxy stands between IDCs, such as pods of a cluster.

What goes over a cut link is held, in calls that this IDC makes and in calls that it is given,
message by message. It goes on when the link heals; after ``PATIENCE_S`` the call ends, as a
connection does whose pings nobody answers. TCP itself is not touched: the kernels go on talking.

A cut ends by itself after ``LASTS_S`` unless it is said again: whoever cuts may be gone by then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio

from imcore.proto import peer_pb2 as pb
from imcore.runtime import Clock
from imcore.tls import caller_name
from services.node.around import Around, Handler

LASTS_S = 10.0
PATIENCE_S = 4.0  # twice that of a ping, as imcore.tls sets it
_SAID = "the link is cut (a fault)"


class CutOff(Exception):
    """The link has been cut for longer than a call waits."""


class Cuts:
    """The links of ``own`` to ``peers``, each way."""

    def __init__(self, own: str, peers: list[str], clock: Clock) -> None:
        self._own = own
        self._peers = frozenset(peers)
        self._clock = clock
        self._until: dict[tuple[str, str], float] = {}  # by who sends and who receives
        self._changed = asyncio.Event()

    def apply(self, fault: pb.LinkFault) -> str:
        """Returns what was done. Raises ValueError for what cannot be done here."""
        ends = (fault.from_idc, fault.to_idc)
        if self._own not in ends or not self._peers & set(ends):
            names = ", ".join(sorted(self._peers))
            raise ValueError(f"expected a link between {self._own} and one of {names}")
        if fault.mode not in ("drop", "pass"):
            raise ValueError(f"expected the mode pass or drop, got {fault.mode!r}")
        if fault.delay_ms or fault.jitter_ms or fault.loss or fault.rate_kbit:
            raise ValueError("an IDC cuts its links, and slows none down")
        until = self._clock.now() + LASTS_S if fault.mode == "drop" else 0.0
        for way in (ends, ends[::-1]) if fault.both_ways else (ends,):
            self._until[way] = until
        self._changed.set()
        self._changed = asyncio.Event()
        arrow = "<->" if fault.both_ways else "->"
        said = f"is cut for {LASTS_S:g} s" if until else "passes"
        return f"the link {ends[0]} {arrow} {ends[1]} {said}"

    def now(self) -> list[str]:
        """Those that are cut, as "fra -> dub"."""
        now = self._clock.now()
        return [f"{a} -> {b}" for (a, b), until in sorted(self._until.items()) if until > now]

    def is_peer(self, name: str) -> bool:
        return name in self._peers

    async def to(self, peer: str, limit_s: float | None = None) -> None:
        """Until what this IDC sends gets there. Raises CutOff."""
        await self._passes((self._own, peer), limit_s)

    async def by(self, peer: str, limit_s: float | None = None) -> None:
        """Until what a peer has sent gets here. Raises CutOff."""
        await self._passes((peer, self._own), limit_s)

    async def _passes(self, way: tuple[str, str], limit_s: float | None) -> None:
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
                reply = await inner(request, timeout=left(), **named)
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
        async for request in requests:
            try:
                await self._cuts.to(self._peer)
            except CutOff:
                return  # the answer to this end is held as well
            yield request

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
                await self._cuts.to(name)
            except CutOff:
                await context.abort(grpc.StatusCode.UNAVAILABLE, _SAID)
            return reply

        async def streaming(request: Any, context: Any) -> Any:
            peer = self._cuts.is_peer(name := caller_name(context))
            try:
                given = await taken(request, name) if peer else request
                async for reply in inner(given, context):
                    if peer:
                        await self._cuts.to(name)
                    yield reply
            except CutOff:
                await context.abort(grpc.StatusCode.UNAVAILABLE, _SAID)

        return streaming if answers else unary

    async def _arriving(self, requests: AsyncIterator[Any], name: str) -> AsyncIterator[Any]:
        async for request in requests:
            await self._cuts.by(name)
            yield request
