"""The registry over gRPC: a servicer over any Registry, and a Registry over a channel.

What an error means must survive the wire: a write that was surely not done (Unavailable, DiskFull)
is told apart from one that may have been (OutcomeUnknown). The servicer says so in trailing
metadata; where nobody says anything (a time-out, a lost connection), a write's outcome is unknown
and a read is simply Unavailable.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio

from imcore.errors import Code, DiskFull, ImError, OutcomeUnknown, Refused, Unavailable
from imcore.proto import peer_pb2 as pb
from imcore.proto import peer_pb2_grpc
from services.engines.registry_journal import value_of, value_pb
from services.ports import Registry, Versioned, WatchEvents

DEADLINE_S = 1.0
_OUTCOME = "im-outcome"
NOT_DONE = ((_OUTCOME, "not-done"),)  # trailers
_T = TypeVar("_T")
_Context = grpc.aio.ServicerContext[Any, Any]

_STATUS = {
    Code.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    Code.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Code.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Code.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
}
_CODES = {status: code for code, status in _STATUS.items()}


async def _abort(context: _Context, error: Exception) -> NoReturn:
    if isinstance(error, Refused):
        status, outcome = _STATUS.get(error.code, grpc.StatusCode.FAILED_PRECONDITION), "refused"
    elif isinstance(error, ValueError):
        status, outcome = grpc.StatusCode.INVALID_ARGUMENT, "refused"
    elif isinstance(error, DiskFull):
        status, outcome = grpc.StatusCode.RESOURCE_EXHAUSTED, "not-done"
    elif isinstance(error, Unavailable):
        status, outcome = grpc.StatusCode.UNAVAILABLE, "not-done"
    else:
        status, outcome = grpc.StatusCode.UNKNOWN, "unknown"
    await context.abort(status, str(error), ((_OUTCOME, outcome),))
    raise AssertionError("abort returns never")


async def _answered(context: _Context, call: Awaitable[_T]) -> _T:
    try:
        return await call
    except (ImError, ValueError) as error:
        await _abort(context, error)


class RegistryServicer(peer_pb2_grpc.RegistryServicer):
    """Authorization is the server's interceptor's."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def Info(self, request: pb.RegistryInfoRequest, context: _Context) -> pb.RegistryInfo:
        return pb.RegistryInfo(store_id=await _answered(context, self._registry.store_id()))

    async def Get(self, request: pb.RegistryGet, context: _Context) -> pb.RegistryValue:
        value = await _answered(context, self._registry.get(request.key))
        return value_pb(value) if value else pb.RegistryValue(key=request.key)

    async def Range(self, request: pb.RegistryRange, context: _Context) -> pb.RegistryRangeReply:
        values = await _answered(context, self._registry.range(request.prefix, *request.more))
        return pb.RegistryRangeReply(values=map(value_pb, values), more=len(request.more))

    async def CompareAndSwap(
        self, request: pb.RegistryCas, context: _Context
    ) -> pb.RegistryCasReply:
        value = None if request.remove else request.value
        if request.unconditional:
            await _answered(context, self._registry.put(request.key, value, request.lease))
            return pb.RegistryCasReply(swapped=True)
        swapped, current = await _answered(
            context,
            self._registry.compare_and_swap(
                request.key, request.expected_mod_revision, value, request.lease
            ),
        )
        return pb.RegistryCasReply(swapped=swapped, current=value_pb(current) if current else None)

    async def LeaseGrant(
        self, request: pb.RegistryLeaseGrant, context: _Context
    ) -> pb.RegistryLease:
        lease = await _answered(context, self._registry.grant_lease(request.ttl_ms))
        return pb.RegistryLease(id=lease, ttl_ms=request.ttl_ms, alive=True)

    async def LeaseKeepAlive(
        self, request: pb.RegistryLease, context: _Context
    ) -> pb.RegistryLease:
        alive = await _answered(context, self._registry.keep_alive(request.id))
        return pb.RegistryLease(id=request.id, alive=alive)

    async def LeaseRevoke(self, request: pb.RegistryLease, context: _Context) -> pb.RegistryLease:
        await _answered(context, self._registry.revoke_lease(request.id))
        return pb.RegistryLease(id=request.id)

    async def Watch(
        self, request: pb.RegistryWatch, context: _Context
    ) -> AsyncIterator[pb.RegistryEvents]:
        try:
            async for found in self._registry.watch(request.prefix, request.from_revision):
                yield pb.RegistryEvents(
                    events=map(value_pb, found.events),
                    revision=found.revision,
                    compacted=found.compacted,
                )
        except ImError as error:
            await _abort(context, error)


class RemoteRegistry:
    """Registry of services.ports over a channel, which the caller owns and closes."""

    def __init__(
        self, channel: grpc.aio.Channel, name: str, deadline_s: float = DEADLINE_S
    ) -> None:
        """``name`` says in errors whose registry it is."""
        self._stub: peer_pb2_grpc.RegistryAsyncStub = peer_pb2_grpc.RegistryStub(channel)
        self._name = name
        self._deadline_s = deadline_s

    async def store_id(self) -> bytes:
        reply = await self._read(self._stub.Info, pb.RegistryInfoRequest())
        return bytes(reply.store_id)

    async def get(self, key: bytes) -> Versioned | None:
        value = await self._read(self._stub.Get, pb.RegistryGet(key=key))
        return value_of(value) if value.exists else None

    async def range(self, prefix: bytes, *more: bytes) -> list[Versioned]:
        reply = await self._read(self._stub.Range, pb.RegistryRange(prefix=prefix, more=more))
        found = [value_of(value) for value in reply.values]
        if reply.more != len(more):  # an IDC with older code: it has told of the first alone
            for each in more:
                found += await self.range(each)
        return found

    async def compare_and_swap(
        self, key: bytes, expected_mod_revision: int, value: bytes | None, lease: int = 0
    ) -> tuple[bool, Versioned | None]:
        request = pb.RegistryCas(
            key=key,
            expected_mod_revision=expected_mod_revision,
            value=value or b"",
            remove=value is None,
            lease=lease,
        )
        reply = await self._write(self._stub.CompareAndSwap, request)
        return reply.swapped, value_of(reply.current) if reply.HasField("current") else None

    async def put(self, key: bytes, value: bytes | None, lease: int = 0) -> None:
        request = pb.RegistryCas(
            key=key, value=value or b"", remove=value is None, lease=lease, unconditional=True
        )
        await self._write(self._stub.CompareAndSwap, request)

    async def grant_lease(self, ttl_ms: int) -> int:
        if not 0 < ttl_ms < 2**32:
            raise ValueError(f"a lease lasts at least 1 ms, not {ttl_ms}")
        reply = await self._write(self._stub.LeaseGrant, pb.RegistryLeaseGrant(ttl_ms=ttl_ms))
        return int(reply.id)

    async def keep_alive(self, lease: int) -> bool:
        # Like a read: doing it twice, or not knowing whether it was done, harms nobody.
        reply = await self._read(self._stub.LeaseKeepAlive, pb.RegistryLease(id=lease))
        return bool(reply.alive)

    async def revoke_lease(self, lease: int) -> None:
        await self._write(self._stub.LeaseRevoke, pb.RegistryLease(id=lease))

    async def watch(self, prefix: bytes, from_revision: int = 0) -> AsyncIterator[WatchEvents]:
        call = self._stub.Watch(pb.RegistryWatch(prefix=prefix, from_revision=from_revision))
        try:
            async for found in call:
                events = [value_of(event) for event in found.events]
                yield WatchEvents(found.revision, events, found.compacted)
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, write=False) from error
        finally:
            call.cancel()
        raise Unavailable(f"the watch of {self._name}'s registry ended")

    async def _read(self, method: Any, request: Any) -> Any:
        return await self._call(method, request, write=False)

    async def _write(self, method: Any, request: Any) -> Any:
        return await self._call(method, request, write=True)

    async def _call(self, method: Any, request: Any, write: bool) -> Any:
        try:
            return await method(request, timeout=self._deadline_s)
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, write) from error

    def _translated(self, error: grpc.aio.AioRpcError, write: bool) -> ImError:
        status, details = error.code(), error.details()
        text = f"{self._name}'s registry: {details}"
        if status in _CODES:
            return Refused(_CODES[status], text)
        trailing: Any = error.trailing_metadata() or ()
        said = dict(trailing).get(_OUTCOME)
        if said == "not-done":
            full = status == grpc.StatusCode.RESOURCE_EXHAUSTED
            return DiskFull(text) if full else Unavailable(text)
        return OutcomeUnknown(text) if write else Unavailable(text)
