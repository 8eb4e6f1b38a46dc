"""gRPC over the simulated network: what generated stubs take for a channel, and generated
servicers for a server. Messages are serialized as for the real one; statuses, deadlines,
cancellation, keepalive and back-off behave as grpc.aio's do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from typing import Any, NamedTuple

import grpc

from imcore.pki import dns_name
from services.sim.net import Conn, Listener, Net

log = logging.getLogger("im.sim")

KEEPALIVE_S = 4.0  # as imcore.tls: a ping after two seconds, two more for its answer
CONNECT_S = 2.0
BACKOFF_S = (0.1, 1.0)
WINDOW = 16  # messages of one call on their way; the sender of more waits
_HEADER_BYTES = 60

Status = grpc.StatusCode
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # its stubs forget it


def _error(code: Status, details: str, trailing: Sequence[tuple[str, str]] = ()) -> Any:
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details, None
    )


class _Half:
    """Messages one way of a call, in order; None ends them."""

    def __init__(self) -> None:
        self._queue: deque[bytes | None] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.error: Exception | None = None

    def put(self, message: bytes | None) -> None:
        self._queue.append(message)
        self._wake()

    def fail(self, error: Exception) -> None:
        if self.error is None:
            self.error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> bytes | None:
        while not self._queue:
            if self.error is not None:
                raise self.error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._queue[0] is None:
            return None
        return self._queue.popleft()


class _Sender:
    """Sends messages of one call; no more than WINDOW are on their way."""

    def __init__(self, conn: Conn, end: int) -> None:
        self._conn = conn
        self._end = end
        self._flying = 0
        self._room: asyncio.Future[None] | None = None

    async def send(self, data: bytes, deliver: Callable[[], None]) -> None:
        while self._flying >= WINDOW:
            self._room = asyncio.get_running_loop().create_future()
            await self._room
        self._flying += 1

        def arrived() -> None:
            self._flying -= 1
            if self._room is not None and not self._room.done():
                self._room.set_result(None)
            deliver()

        self._conn.send(self._end, len(data) + _HEADER_BYTES, arrived)


# ------------------------------------------------------------------------------------- client


class SimChannel:
    """One channel of the current process to an address. ``name``: under which it calls."""

    def __init__(self, net: Net, name: str, address: str) -> None:
        self._net = net
        self._name = name
        self._address = address
        self._conn: Conn | None = None
        self._connecting: asyncio.Task[Conn] | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._calls: dict[SimCall, None] = {}
        self._keepalive: asyncio.TimerHandle | None = None
        self._closed = False

    def _multi(self, path: str, many_in: bool, many_out: bool, rest: dict[str, Any]) -> Any:
        def call(request: Any = None, *, timeout: float | None = None, **_: Any) -> SimCall:
            return SimCall(
                self, path, many_in, many_out, request, timeout,
                rest["request_serializer"], rest["response_deserializer"],
            )  # fmt: skip

        return call

    def unary_unary(self, method: str, **rest: Any) -> Any:
        return self._multi(method, False, False, rest)

    def unary_stream(self, method: str, **rest: Any) -> Any:
        return self._multi(method, False, True, rest)

    def stream_unary(self, method: str, **rest: Any) -> Any:
        return self._multi(method, True, False, rest)

    def stream_stream(self, method: str, **rest: Any) -> Any:
        return self._multi(method, True, True, rest)

    async def connection(self) -> Conn:
        """Raises AioRpcError with UNAVAILABLE."""
        if self._closed:
            raise _error(Status.UNAVAILABLE, "the channel is closed")
        if self._conn is not None:
            return self._conn
        loop = self._net.loop
        if self._connecting is None:
            if loop.time() < self._retry_at:
                raise _error(Status.UNAVAILABLE, f"{self._address}: in back-off")
            self._connecting = loop.create_task(self._connect())
        try:
            return await asyncio.shield(self._connecting)
        except (OSError, TimeoutError) as error:
            raise _error(Status.UNAVAILABLE, f"{self._address}: {error}") from error

    async def _connect(self) -> Conn:
        loop = self._net.loop
        try:
            async with asyncio.timeout(CONNECT_S):
                conn = await self._net.dial(self._address)
        except (OSError, TimeoutError):
            low, high = BACKOFF_S
            self._retry_at = loop.time() + min(high, low * 2.0**self._failures)
            self._failures += 1
            raise
        finally:
            self._connecting = None
        if conn.lost[0]:
            raise ConnectionResetError(104, "reset")
        self._failures = 0
        conn.on_lost[0] = lambda why: self._lost(conn, why)
        conn.caller = self._name
        self._conn = conn
        self._watch(conn)
        return conn

    def _watch(self, conn: Conn) -> None:
        """Keepalive: pings that no answer can come to end the connection."""
        if self._conn is not conn:
            return
        now = self._net.loop.time()
        if conn.silent or any(
            link.cut and now - link.cut_since >= KEEPALIVE_S
            for link in (conn.link(0), conn.link(1))
        ):
            conn.end_by(0, "keepalive")
            self._lost(conn, "no answer to a ping")
            return
        self._keepalive = self._net.loop.call_later(0.5, self._watch, conn)

    def _lost(self, conn: Conn, why: str) -> None:
        if self._conn is conn:
            self._conn = None
        for call in [call for call in self._calls if call.conn is conn]:
            call.ended(Status.UNAVAILABLE, f"{self._address}: {why}")

    async def close(self, grace: float | None = None) -> None:
        self._closed = True
        for call in list(self._calls):
            call.cancel()
        if self._keepalive is not None:
            self._keepalive.cancel()
        if self._conn is not None:
            self._conn.end_by(0, "closed")
            self._conn = None

    def began(self, call: SimCall) -> None:
        self._calls[call] = None

    def over(self, call: SimCall) -> None:
        self._calls.pop(call, None)


class SimCall:
    """One call, of any of the four kinds. It begins at once, as grpc.aio's do."""

    def __init__(
        self,
        channel: SimChannel,
        path: str,
        many_in: bool,
        many_out: bool,
        request: Any,
        timeout: float | None,
        pack: Callable[[Any], bytes],
        unpack: Callable[[bytes], Any],
    ) -> None:
        self._channel = channel
        self._path = path
        self._many_out = many_out
        self._unpack = unpack
        self._in = _Half()
        self._served: _Served | None = None
        self._over = False
        self._cancelled = False
        self.conn: Conn | None = None
        loop = asyncio.get_running_loop()
        channel.began(self)
        self._deadline = loop.call_later(timeout, self._expire) if timeout is not None else None
        self._work = loop.create_task(self._run(request, many_in, pack))

    async def _run(self, request: Any, many_in: bool, pack: Callable[[Any], bytes]) -> None:
        try:
            conn = self.conn = await self._channel.connection()
            if self._over:
                return
            served = self._served = _Served(self, conn, self._path)
            if not many_in:  # goes out whole, as gRPC sends it
                data = pack(request)
                conn.send(0, len(data) + 2 * _HEADER_BYTES, lambda: served.begin(data))
                return
            conn.send(0, _HEADER_BYTES, served.begin)
            sender = _Sender(conn, 0)
            async for message in request:
                await self._send(sender, served, pack(message))
            conn.send(0, _HEADER_BYTES, lambda: served.requests.put(None))
        except grpc.aio.AioRpcError as error:
            self.ended(error.code(), error.details() or "")
        except asyncio.CancelledError:
            raise
        except Exception as error:  # of the caller's own iterator
            log.error("the requests of %s failed: %r", self._path, error)
            self._give_up(Status.UNKNOWN, f"the requests failed: {error!r}")

    async def _send(self, sender: _Sender, served: _Served, data: bytes) -> None:
        await sender.send(data, lambda: served.requests.put(data))

    # ------------------------------------------------------------------ from the other side

    def received(self, data: bytes) -> None:
        if not self._over:
            self._in.put(data)

    def ended(self, code: Status, details: str, trailing: Sequence[tuple[str, str]] = ()) -> None:
        if self._over:
            return
        self._finish()
        if code is Status.OK:
            self._in.put(None)
        else:
            self._in.fail(_error(code, details, trailing))

    def _finish(self) -> None:
        self._over = True
        self._served = None  # they hold each other, and cycles are not collected
        self._channel.over(self)
        if self._deadline is not None:
            self._deadline.cancel()
        if not self._work.done() and asyncio.current_task() is not self._work:
            self._work.cancel()

    def _expire(self) -> None:
        self._give_up(Status.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _give_up(self, code: Status, details: str) -> None:
        if self._over:
            return
        if self.conn is not None and (served := self._served) is not None:
            self.conn.send(0, _HEADER_BYTES, served.cancel)
        self.ended(code, details)

    # -------------------------------------------------------------------- grpc.aio's surface

    def cancel(self) -> bool:
        if self._over:
            return False
        self._cancelled = True
        self._give_up(Status.CANCELLED, "Locally cancelled by application!")
        return True

    def cancelled(self) -> bool:
        return self._cancelled

    def done(self) -> bool:
        return self._over

    def __await__(self) -> Generator[Any, None, Any]:
        return self._result().__await__()

    async def _result(self) -> Any:
        try:
            data = await self._in.get()
            if data is None:
                raise _error(Status.INTERNAL, "no reply")
            await self._in.get()  # the status
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self._unpack(data)

    async def read(self) -> Any:
        try:
            data = await self._in.get()
        except asyncio.CancelledError:
            self.cancel()
            raise
        return _EOF if data is None else self._unpack(data)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._messages()

    async def _messages(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not _EOF:
            yield message


# ------------------------------------------------------------------------------------- server


class _Details(NamedTuple):
    method: str
    invocation_metadata: tuple[()] = ()


class _Context:
    """The part of grpc.aio.ServicerContext that the roles use."""

    def __init__(self, caller: str) -> None:
        self._caller = caller

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_subject_alternative_name": [dns_name(self._caller).encode()]}

    async def abort(
        self, code: Status, details: str = "", trailing_metadata: Sequence[tuple[str, str]] = ()
    ) -> None:
        raise _Aborted(code, details, tuple(trailing_metadata))


class _Aborted(grpc.aio.AbortError):
    def __init__(self, code: Status, details: str, trailing: tuple[tuple[str, str], ...]) -> None:
        super().__init__(details)
        self.code, self.details, self.trailing = code, details, trailing


class _Served:
    """A call at the server."""

    def __init__(self, call: SimCall, conn: Conn, path: str) -> None:
        self.requests = _Half()
        self._call = call
        self._conn = conn
        self._path = path
        self._task: asyncio.Task[None] | None = None

    def begin(self, request: bytes | None = None) -> None:
        """``request``: the only one."""
        if request is not None:
            self.requests.put(request)
            self.requests.put(None)
        server: SimServer = self._conn.server
        self._task = asyncio.get_running_loop().create_task(self._run(server))
        server.serves(self._conn, self._task)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _end(
        self, code: Status, details: str = "", trailing: Sequence[tuple[str, str]] = ()
    ) -> None:
        call = self._call
        self._conn.send(1, _HEADER_BYTES, lambda: call.ended(code, details, trailing))

    def _reply(self, data: bytes) -> None:
        """The only one, and the end of the call with it."""
        call = self._call

        def arrived() -> None:
            call.received(data)
            call.ended(Status.OK, "")

        self._conn.send(1, len(data) + 2 * _HEADER_BYTES, arrived)

    async def _run(self, server: SimServer) -> None:
        try:
            handler = await server.handler(self._path)
            if handler is None:
                raise _Aborted(Status.UNIMPLEMENTED, f"no method {self._path}", ())
            await self._handle(handler, _Context(self._conn.caller))
        except _Aborted as aborted:
            self._end(aborted.code, aborted.details, aborted.trailing)
        except asyncio.CancelledError:
            self._end(Status.CANCELLED, "the call was cancelled")
            raise
        except Exception as error:
            log.exception("%s failed", self._path)
            self._end(Status.UNKNOWN, f"Unexpected {type(error)}: {error}")

    async def _handle(self, handler: Any, context: _Context) -> None:
        unpack = handler.request_deserializer
        if handler.request_streaming:
            request: Any = self._iterate(unpack)
        else:
            data = await self.requests.get()
            if data is None:
                raise _Aborted(Status.INTERNAL, "no request", ())
            request = unpack(data)
        if handler.response_streaming:
            sender = _Sender(self._conn, 1)
            method = handler.stream_stream if handler.request_streaming else handler.unary_stream
            async with contextlib.aclosing(method(request, context)) as replies:
                async for reply in replies:
                    await self._send(sender, handler.response_serializer(reply))
            self._end(Status.OK)
        else:
            method = handler.stream_unary if handler.request_streaming else handler.unary_unary
            self._reply(handler.response_serializer(await method(request, context)))

    async def _send(self, sender: _Sender, data: bytes) -> None:
        await sender.send(data, lambda: self._call.received(data))

    async def _iterate(self, unpack: Callable[[bytes], Any]) -> AsyncIterator[Any]:
        while (data := await self.requests.get()) is not None:
            yield unpack(data)


class SimServer:
    """Of the current process."""

    def __init__(self, net: Net, interceptors: Sequence[Any], address: str) -> None:
        self._net = net
        self._interceptors = list(interceptors)
        self._address = address
        self._generic: list[Any] = []
        self._listener: Listener | None = None
        self._tasks: dict[asyncio.Task[None], Conn] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self._generic.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """The generic ones serve them as well."""

    async def start(self) -> None:
        self._listener = self._net.listen_on(self._address, self._accept)

    def _accept(self, conn: Conn) -> None:
        conn.server = self
        conn.on_lost[1] = lambda why: self._lost(conn)

    def _lost(self, conn: Conn) -> None:
        for task in [task for task, its in self._tasks.items() if its is conn]:
            task.cancel()

    def serves(self, conn: Conn, task: asyncio.Task[None]) -> None:
        self._tasks[task] = conn
        task.add_done_callback(lambda done: self._tasks.pop(task, None))

    async def handler(self, path: str) -> Any:
        details = _Details(path)

        async def found(details: Any) -> Any:
            for generic in self._generic:
                if (handler := generic.service(details)) is not None:
                    return handler
            return None

        continuation: Callable[[Any], Awaitable[Any]] = found
        for interceptor in reversed(self._interceptors):
            continuation = _intercepted(interceptor, continuation)
        return await continuation(details)

    async def stop(self, grace: float | None = None) -> None:
        if self._listener is not None:
            self._listener.close()
        conns = dict.fromkeys(self._tasks.values())
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for conn in conns:
            conn.end_by(1, "the server stops")


def _intercepted(
    interceptor: Any, continuation: Callable[[Any], Awaitable[Any]]
) -> Callable[[Any], Awaitable[Any]]:
    async def call(details: Any) -> Any:
        return await interceptor.intercept_service(continuation, details)

    return call
