"""A thin client of etcd's v3 API over grpc.aio, with stubs generated from etcd's own definitions.

Why one of our own: grpcio and mutual TLS are here already, and the published Python clients either
do not run on today's protobuf or take a single host without TLS.

Several endpoints: a call goes to the current one; when that does not answer, the next call (and
this one, as long as nothing was sent) goes to the next. A call is sent only on a connection that is
up, so what fails before is surely not done; gRPC's own retries are off, because a repeated write
would hide what became of the first. Each call has one deadline, connecting and authentication
included.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import grpc.aio

from imcore.channel import LOOK_S
from imcore.errors import (
    Code,
    DiskFull,
    ImError,
    NotTrusted,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from imcore.tls import MESSAGE_BYTES_MAX
from services.engines.etcd import etcd_pb2 as pb
from services.engines.etcd import etcd_pb2_grpc as rpc

DEADLINE_S = 1.0
SILENCE_S = 2.0  # of a watch, before etcd is asked whether it is still there
_Status = grpc.StatusCode
# etcd's servers drop a client that pings more often than every 5 s (--grpc-keepalive-min-time).
_OPTIONS: list[tuple[str, int]] = [
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
]
# What etcd says of credentials, under codes that mean other things too.
_CREDENTIALS = (
    "authentication failed",
    "user name is empty",
    "authentication is not enabled",
    "permission denied",
    "invalid auth token",
)
_TOKEN_OVER = ("invalid auth token", "revision of auth store is old")


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """Where etcd is and how to be let in. ``ca`` None: no TLS."""

    endpoints: tuple[str, ...]
    prefix: str
    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    username: str = ""
    password: str = field(default="", repr=False)


RenewedSettings = Callable[[], EtcdSettings | None]


class Stubs:
    """One endpoint's channel and what can be called on it."""

    def __init__(self, endpoint: str, settings: EtcdSettings) -> None:
        self.endpoint = endpoint
        if settings.ca is None:
            self.channel = grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(
                settings.ca, settings.key, settings.certificate
            )
            self.channel = grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)
        self.kv: rpc.KVAsyncStub = rpc.KVStub(self.channel)
        self.watch: rpc.WatchAsyncStub = rpc.WatchStub(self.channel)
        self.lease: rpc.LeaseAsyncStub = rpc.LeaseStub(self.channel)
        self.maintenance: rpc.MaintenanceAsyncStub = rpc.MaintenanceStub(self.channel)
        self.auth: rpc.AuthAsyncStub = rpc.AuthStub(self.channel)


class EtcdClient:
    """For use from one event loop. ``name`` says in errors whose etcd it is."""

    def __init__(
        self, settings: EtcdSettings, name: str, deadline_s: float = DEADLINE_S,
        renewed: RenewedSettings = lambda: None,
    ) -> None:  # fmt: skip
        """``renewed``: other settings since it was asked last, if there are."""
        self._settings = settings
        self._renewed = renewed
        self._looked_at = 0.0
        self._name = name
        self._deadline_s = deadline_s
        self._stubs: dict[str, Stubs] = {}
        # Watches stay where they are until they end (imcore.channel says why).
        self._former: list[Stubs] = []
        self._current = 0
        self._token = ""
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        for stubs in (*self._former, *self._stubs.values()):
            await stubs.channel.close(None)

    # --------------------------------------------------------------------------- calls

    async def read(self, method: Callable[[Stubs], Any], request: Any) -> Any:
        """Raises Unavailable; Refused when etcd finds the request wrong."""
        return await self._call(method, request, write=False)

    async def write(self, method: Callable[[Stubs], Any], request: Any) -> Any:
        """Raises Refused, DiskFull and Unavailable (not done), and OutcomeUnknown. DiskFull is
        less sure than elsewhere: ``EtcdRegistry`` looks what became of such a write."""
        return await self._call(method, request, write=True)

    async def keep_alive(self, lease: int) -> int:
        """The seconds that the lease has left; 0: it has ended."""

        async def once(stubs: Stubs, request: Any, left_s: float, metadata: Any) -> Any:
            call = stubs.lease.LeaseKeepAlive(None, timeout=left_s, metadata=metadata)
            try:
                with contextlib.suppress(asyncio.InvalidStateError):  # it has ended; read says why
                    await call.write(request)
                reply = await call.read()
                if isinstance(reply, pb.LeaseKeepAliveResponse):
                    return reply
                await _fail(call)
            finally:
                call.cancel()

        reply = await self._attempt(once, pb.LeaseKeepAliveRequest(ID=lease), write=False)
        return int(reply.TTL)

    async def watch(self, create: pb.WatchCreateRequest) -> AsyncGenerator[pb.WatchResponse, None]:
        """What etcd sends, until something ends it: then Unavailable. A response with
        ``compact_revision`` is the last one."""
        deadline = self._deadline()
        stubs = await self._connected(deadline)
        call = stubs.watch.Watch(None, metadata=await self._metadata(stubs, deadline))
        responses = self._responses(call, create, deadline)
        try:
            async for response in responses:
                if response.canceled and not response.compact_revision:
                    self._token = ""  # perhaps that is why; a new one costs little
                    raise Unavailable(f"{self._where(stubs)} ended a watch: {_reason(response)}")
                if response.events or response.compact_revision:
                    yield response
                if response.canceled:
                    return
        except TimeoutError as error:
            self._rotate(stubs)
            raise Unavailable(f"{self._where(stubs)} does not answer a watch") from error
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            self._rotate(stubs)
            raise Unavailable(f"{self._where(stubs)} is lost: {_details(error)}") from error
        finally:
            await responses.aclose()

    async def _responses(
        self, call: Any, begin: pb.WatchCreateRequest, deadline: float
    ) -> AsyncGenerator[pb.WatchResponse, None]:
        """All that comes, progress too. Raises TimeoutError when etcd is silent and does not even
        answer when it is asked how far it is: nothing else tells a paused one from a quiet one."""
        reading: asyncio.Future[Any] | None = None
        try:
            async with asyncio.timeout_at(deadline):
                await call.write(pb.WatchRequest(create_request=begin))
            wait_s, asked = max(0.0, deadline - asyncio.get_running_loop().time()), True
            while True:
                reading = reading or asyncio.ensure_future(call.read())
                done, _ = await asyncio.wait({reading}, timeout=wait_s)
                if not done and asked:
                    raise TimeoutError
                if not done:
                    async with asyncio.timeout(self._deadline_s):
                        await call.write(
                            pb.WatchRequest(progress_request=pb.WatchProgressRequest())
                        )
                    wait_s, asked = self._deadline_s, True
                    continue
                response, reading = reading.result(), None
                if not isinstance(response, pb.WatchResponse):
                    await _fail(call)
                yield response
                wait_s, asked = SILENCE_S, False
        finally:
            call.cancel()
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _call(self, method: Callable[[Stubs], Any], request: Any, write: bool) -> Any:
        async def once(stubs: Stubs, request: Any, left_s: float, metadata: Any) -> Any:
            return await method(stubs)(request, timeout=left_s, metadata=metadata)

        return await self._attempt(once, request, write)

    async def _attempt(self, once: Callable[..., Any], request: Any, write: bool) -> Any:
        deadline = self._deadline()
        for renewed in (False, True):
            stubs = await self._connected(deadline)
            metadata = await self._metadata(stubs, deadline)
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                raise Unavailable(f"{self._where(stubs)} does not connect in time")
            try:
                return await once(stubs, request, left, metadata)
            except grpc.aio.AioRpcError as error:
                if self._token and not renewed and _says(error, _TOKEN_OVER):
                    self._token = ""
                    continue
                if error.code() in (_Status.UNAVAILABLE, _Status.DEADLINE_EXCEEDED):
                    self._rotate(stubs)
                raise self._translated(error, stubs, write) from error
        raise AssertionError("a second attempt returns or raises")

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._deadline_s

    # ---------------------------------------------------------------------- connections

    async def _connected(self, deadline: float) -> Stubs:
        """An endpoint whose connection is up, the current one first."""
        if self._closed:
            raise Unavailable(f"{self._name}'s etcd client is closed")
        self._renew()
        count = len(self._settings.endpoints)
        for tried in range(count):
            stubs = self._endpoint(self._current)
            left = deadline - asyncio.get_running_loop().time()
            if await _ready(stubs.channel, left / (count - tried)):
                return stubs
            if tried < count - 1:
                self._rotate(stubs)
        raise await self._unreachable(stubs)

    def _renew(self) -> None:
        """gRPC's channels show the certificate that they were made with for as long as they live:
        with another one there are others."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        settings = self._renewed()
        if settings is not None:
            self._settings = settings
            self._former += self._stubs.values()
            self._stubs = {}

    def _endpoint(self, number: int) -> Stubs:
        endpoint = self._settings.endpoints[number]
        if endpoint not in self._stubs:
            self._stubs[endpoint] = Stubs(endpoint, self._settings)
        return self._stubs[endpoint]

    def _rotate(self, failed: Stubs) -> None:
        """Unless another call that failed there has done so meanwhile."""
        if self._settings.endpoints[self._current] == failed.endpoint:
            self._current = (self._current + 1) % len(self._settings.endpoints)

    async def _unreachable(self, stubs: Stubs) -> Unavailable:
        """gRPC tells why a connection fails only to a call, so one that changes nothing asks."""
        why = "no answer in time"
        try:
            await stubs.maintenance.Status(pb.StatusRequest(), timeout=0.1)
        except grpc.aio.AioRpcError as error:
            if error.code() is not _Status.DEADLINE_EXCEEDED:
                why = _details(error)
        sentence = f"{self._where(stubs)} cannot be reached: {why}"
        if "handshake failed" in why.lower():
            return NotTrusted(f"{sentence}; check ca_file, cert_file and key_file")
        return Unavailable(sentence)

    def _where(self, stubs: Stubs) -> str:
        return f"{self._name}'s etcd at {stubs.endpoint}"

    # ------------------------------------------------------------------- authentication

    async def _metadata(self, stubs: Stubs, deadline: float) -> tuple[tuple[str, str], ...]:
        # "hasleader": without it a watch on a member that is cut off would stay open, silent.
        metadata = (("hasleader", "true"),)
        if not self._settings.username:
            return metadata
        if not self._token:
            await self._authenticate(stubs, deadline)
        return (*metadata, ("token", self._token))

    async def _authenticate(self, stubs: Stubs, deadline: float) -> None:
        request = pb.AuthenticateRequest(
            name=self._settings.username, password=self._settings.password
        )
        left = max(0.01, deadline - asyncio.get_running_loop().time())
        try:
            self._token = (await stubs.auth.Authenticate(request, timeout=left)).token
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, stubs, write=False) from error

    # --------------------------------------------------------------------------- errors

    def _translated(self, error: grpc.aio.AioRpcError, stubs: Stubs, write: bool) -> ImError:
        """Of a call that was sent. Only what etcd itself says can be a refusal."""
        text, status = f"{self._where(stubs)}: {_details(error)}", error.code()
        if _says(error, _CREDENTIALS):
            user = self._settings.username
            remedy = "check username and password_file" if user else "it wants username"
            return NotTrusted(f"{text} (user {user or 'none'}); {remedy}")
        if _says(error, ("database space exceeded",)):
            return DiskFull(f"{text}: its disk is full, as far as its quota goes")
        if _says(error, ("too many requests",)):
            return Unavailable(text)
        if status is _Status.NOT_FOUND:
            return Refused(Code.NOT_FOUND, text)
        if status is _Status.INVALID_ARGUMENT:
            return Refused(Code.BAD_REQUEST, text)
        return OutcomeUnknown(text) if write else Unavailable(text)


async def _ready(channel: grpc.aio.Channel, seconds: float) -> bool:
    """False as soon as an attempt has failed: gRPC goes on trying by itself."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, seconds)):
            while True:
                state = channel.get_state(try_to_connect=True)
                if state is grpc.ChannelConnectivity.READY:
                    return True
                if state in (
                    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
                    grpc.ChannelConnectivity.SHUTDOWN,
                ):
                    return False
                await channel.wait_for_state_change(state)
    return False


async def _fail(call: Any) -> NoReturn:
    """The stream ended: raise what ended it."""
    raise grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(),
        await call.details() or "the stream ended", None,
    )  # fmt: skip


def _says(error: grpc.aio.AioRpcError, sentences: tuple[str, ...]) -> bool:
    details = error.details() or ""
    return details.startswith("etcdserver: ") and any(one in details for one in sentences)


def _details(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return error.details() or error.code().name
    return str(error) or type(error).__name__


def _reason(response: pb.WatchResponse) -> str:
    return response.cancel_reason or "it gives no reason"
