"""Files of an IDC put together: where they are stored, who is asked for those of other IDCs, and
what other IDCs ask here, over gRPC with mutual TLS."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from imcore.errors import ImError, Refused, Unavailable
from imcore.media import MediaName
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.tls import caller_name
from services.media.pictures import Pictures, available
from services.media.server import MediaApi
from services.media.stickers import Stickers
from services.media.store import MediaStore, Silent
from services.media.words import Record

if TYPE_CHECKING:
    from services.node.node import Node

log = logging.getLogger("im.media")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

CHUNK_BYTES = 256 * 1024
FIND_S = 2.0
CHUNK_S = 10.0  # for the next chunk of another IDC
STICKERS = "stickers"  # the register


def _pb(name: MediaName) -> peer.MediaName:
    sha256, key = bytes.fromhex(name.sha256), bytes.fromhex(name.key)
    return peer.MediaName(idc=name.idc, sha256=sha256, key=key)


def _name(message: peer.MediaName) -> MediaName:
    return MediaName(message.idc, message.sha256.hex(), message.key.hex())


class PeerMedia:
    """The files of another IDC, as ``services.media.store.Peer``."""

    def __init__(self, idc: str, channel: grpc.aio.Channel) -> None:
        self._idc = idc
        self._stub: rpc.MediaAsyncStub = rpc.MediaStub(channel)

    def _silent(self, error: BaseException) -> Silent:
        why = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
        return Silent(f"{self._idc} does not answer: {why or type(error).__name__}")

    async def find(self, name: MediaName) -> Record | None:
        found = await self._found(name)
        try:
            return Record.from_json(found.record) if found.exists else None
        except ValueError as error:
            raise self._silent(error) from error

    async def keeps(self, name: MediaName) -> bool:
        return (await self._found(name)).kept

    async def _found(self, name: MediaName) -> peer.MediaFound:
        try:
            return await self._stub.Find(_pb(name), timeout=FIND_S)
        except grpc.RpcError as error:
            raise self._silent(error) from error

    async def read(self, name: MediaName, offset: int) -> AsyncIterator[bytes]:
        call = self._stub.Read(peer.MediaRange(name=_pb(name), offset=offset))
        chunks = aiter(call)
        try:
            while True:
                async with asyncio.timeout(CHUNK_S):
                    chunk = await anext(chunks)
                yield chunk.data
        except StopAsyncIteration:
            return
        except (grpc.RpcError, TimeoutError) as error:
            raise self._silent(error) from error
        finally:
            call.cancel()

    async def keep(self, name: MediaName, timeout_s: float) -> None:
        try:
            await self._stub.Keep(_pb(name), timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._silent(error) from error


class MediaService(rpc.MediaServicer):
    """``store`` is set once there is one; without it this region has no files."""

    def __init__(self) -> None:
        self.store: MediaStore | None = None

    async def _open(self, context: Context) -> MediaStore:
        if self.store is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "files are not served yet")
        assert self.store is not None
        return self.store

    async def Find(self, request: peer.MediaName, context: Context) -> peer.MediaFound:
        found = _found(await self._held(request, context))
        found.kept = self.store is not None and await self.store.keeps(_name(request))
        return found

    async def _held(self, request: peer.MediaName, context: Context) -> Record | None:
        store = await self._open(context)
        try:
            return await store.held(_name(request))
        except ImError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            raise

    async def Read(
        self, request: peer.MediaRange, context: Context
    ) -> AsyncIterator[peer.MediaChunk]:
        store = await self._open(context)
        record = await self._held(request.name, context)
        if record is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "it is not here")
        assert record is not None
        name = _name(request.name)
        try:
            async for data in store.read(name, request.offset, record.size, CHUNK_BYTES):
                yield peer.MediaChunk(data=data)
        except ImError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))

    async def Keep(self, request: peer.MediaName, context: Context) -> peer.MediaFound:
        store = await self._open(context)
        name = _name(request)
        if name.idc != caller_name(context):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "an IDC names its own files")
        while True:
            try:
                return _found(await store.keep(name))
            except Refused as error:
                await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
            except Unavailable as error:
                if not store.fetches(name):
                    await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))


def _found(record: Record | None) -> peer.MediaFound:
    if record is None:
        return peer.MediaFound()
    return peer.MediaFound(exists=True, record=record.to_json())


def open_media(node: Node) -> tuple[MediaStore, MediaApi] | None:
    """None: the region file has no files."""
    spec, blobs = node.config.region.spec, node.blobs
    if spec.media is None or blobs is None:
        return None
    peers = {idc: PeerMedia(idc, node.channels[idc]) for idc in node.config.peer_idcs()}
    look = Pictures().look if available() else None
    if look is None:
        log.warning("pictures are kept without thumbnails: the extra `media` is not installed")
    store = MediaStore(
        node.idc, blobs, spec.media, spec.messages, node.config.keys, node.median_clock, peers,
        look,
    )  # fmt: skip
    idcs = frozenset(idc.name for idc in spec.idcs)

    async def read() -> bytes | None:
        return (await node.proposer.read(STICKERS))[0]

    async def replace(document: bytes) -> None:
        await node.proposer.change(STICKERS, lambda _: document)

    stickers = Stickers(read, replace, store.keep, node.clock)
    store.on_deleted = stickers.deleted
    return store, MediaApi(store, stickers, node.config.keys, node.median_clock, idcs)
