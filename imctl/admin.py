"""Calls to the Admin, Engines and Users services of a deployment, over mutual TLS."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
import grpc.aio

from imcore.errors import BadInput, Code, ImError, OutcomeUnknown, Refused, Unavailable
from imcore.proto import peer_pb2 as pb
from imcore.proto import peer_pb2_grpc as rpc
from imcore.runtime import SystemClock
from imcore.tls import grpc_channel
from imctl import audit, roles
from imctl.reach import Reach

TIMEOUT_S = 3.0
HASH_S = 60.0  # every row of the KV is read


def _channel(target: Reach, name: str) -> grpc.aio.Channel:
    return grpc_channel(target.pki, roles.shown(target.pki), name, target.address(name))


async def status(target: Reach, name: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """One unit's status document. Raises Unavailable."""
    async with _channel(target, name) as channel:
        return await status_over(channel, name, timeout_s)


async def status_over(channel: grpc.aio.Channel, name: str, timeout_s: float) -> dict[str, Any]:
    """The same over a channel to the unit of this name."""
    try:
        reply = await rpc.AdminStub(channel).Status(pb.StatusRequest(), timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        raise translate(error, name, safe=True) from error
    document: dict[str, Any] = json.loads(reply.json)
    return document


async def statuses(
    target: Reach, names: Iterable[str], timeout_s: float = TIMEOUT_S
) -> dict[str, dict[str, Any] | ImError]:
    """Of all, at once; an error in place of the document of one that does not answer."""

    async def one(name: str) -> dict[str, Any] | ImError:
        try:
            return await status(target, name, timeout_s)
        except ImError as error:
            return error

    wanted = list(names)
    found = await asyncio.gather(*(one(name) for name in wanted))
    return dict(zip(wanted, found, strict=True))


async def state_hashes(
    target: Reach, names: Iterable[str]
) -> dict[str, dict[int, tuple[str, int]]]:
    """(hash, rows) of each partition's replicated state, in each IDC. While messages are taken the
    hashes differ, since not all IDCs are read at one instant. Raises Unavailable."""

    async def one(name: str) -> dict[int, tuple[str, int]]:
        async with _channel(target, name) as channel:
            try:
                reply = await rpc.AdminStub(channel).StateHash(
                    pb.StateHashRequest(), timeout=HASH_S
                )
            except grpc.aio.AioRpcError as error:
                raise translate(error, name, safe=True) from error
            return {part.partition: (part.hash.hex(), part.rows) for part in reply.partitions}

    wanted = list(names)
    found = await asyncio.gather(*(one(name) for name in wanted))
    return dict(zip(wanted, found, strict=True))


async def fault(
    target: Reach, name: str, request: pb.FaultRequest, timeout_s: float = TIMEOUT_S
) -> str:
    """Returns what was done, in a sentence. Raises Refused, Unavailable, OutcomeUnknown."""
    async with _channel(target, name) as channel:
        try:
            reply = await rpc.AdminStub(channel).Fault(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            translated = translate(error, name, safe=False)
            _audit(target, name, _outcome(translated), f"{request}: {translated}")
            raise translated from error
        _audit(target, name, "done", reply.sentence)
        return str(reply.sentence)


async def repeated(target: Reach, name: str, request: pb.FaultRequest) -> None:
    """A fault that was asked for before, so it stands in the audit. Raises ImError."""
    async with _channel(target, name) as channel:
        try:
            await rpc.AdminStub(channel).Fault(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise translate(error, name, safe=True) from error


async def kick(target: Reach, name: str, uid: str, device: str) -> None:
    """Asks that IDC; it takes effect in all. Raises BadInput, Refused, Unavailable,
    OutcomeUnknown."""
    what = f"{uid} is kicked from {device or 'every device'}"
    async with _channel(target, name) as channel:
        try:
            request = pb.KickRequest(uid=uid, device=device)
            await rpc.UsersStub(channel).Kick(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            translated = translate(error, name, safe=False)
            _audit(target, name, _outcome(translated), f"{what}: {translated}")
            raise translated from error
    _audit(target, name, "done", what)


async def move_kv(
    target: Reach,
    name: str,
    request: pb.MoveKvRequest,
    seen: Callable[[pb.MoveKvProgress], None],
) -> pb.MoveKvProgress:
    """Follows a move to its end; returns the last word of it. Raises BadInput, Refused,
    Unavailable: when the IDC is lost on the way, the move may go on there."""
    what = "the KV's move is cancelled" if request.cancel else f"its KV moves: {request}"
    last = pb.MoveKvProgress()
    async with _channel(target, name) as channel:
        call = rpc.EnginesStub(channel).MoveKv(request)
        try:
            async for last in call:
                seen(last)
        except grpc.aio.AioRpcError as error:
            translated = translate(error, name, safe=True)
            _audit(target, name, _outcome(translated), f"{what}: {translated}")
            raise translated from error
    _audit(target, name, "not done" if last.problem else "done", f"{what} {last.problem}")
    return last


async def closed(target: Reach, name: str) -> pb.ClosedReply:
    """How far that IDC says that messages may be archived. Raises Unavailable."""
    async with _channel(target, name) as channel:
        try:
            request = pb.ClosedRequest()
            reply: pb.ClosedReply = await rpc.ArchivesStub(channel).Closed(
                request, timeout=TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            raise translate(error, name, safe=True) from error
    return reply


async def archived(
    target: Reach, name: str, request: pb.ArchiveRequest
) -> AsyncIterator[pb.ArchiveChunk]:
    """What people have written, so it is noted who took it. Raises BadInput, Refused,
    Unavailable."""
    what = f"messages of HLC {request.after} to {request.until} are read for an archive"
    async with _channel(target, name) as channel:
        try:
            async for chunk in rpc.ArchivesStub(channel).Read(request):
                yield chunk
        except grpc.aio.AioRpcError as error:
            translated = translate(error, name, safe=True)
            _audit(target, name, _outcome(translated), f"{what}: {translated}")
            raise translated from error
    if not request.count_only:
        _audit(target, name, "done", what)


def _outcome(error: ImError) -> str:
    if isinstance(error, OutcomeUnknown):
        return "unknown"
    return "refused" if isinstance(error, Refused | BadInput) else "not done"


def _audit(target: Reach, name: str, outcome: str, sentence: str) -> None:
    said = " ".join(sentence.split())
    audit.fault(target, SystemClock().wall_ms(), name, outcome, said)


def translate(error: grpc.aio.AioRpcError, name: str, safe: bool) -> ImError:
    """``safe``: the call changes nothing, so a time-out is no unknown outcome."""
    code, details = error.code(), error.details() or "no details"
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return BadInput(details)
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return Refused(Code.FORBIDDEN, details)
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return Refused(Code.FORBIDDEN, f"{name} refuses: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and not safe:
        return OutcomeUnknown(f"{name} did not answer in time")
    return Unavailable(f"{name} does not answer ({code.name.lower().replace('_', ' ')})")
