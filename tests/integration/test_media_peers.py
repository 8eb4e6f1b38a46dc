"""Files between IDCs over gRPC with mutual TLS, as services.node puts it together."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import grpc.aio
import pytest

from imcore.errors import Code, Refused
from imcore.media import Declared, MediaName
from imcore.pki import load_region_keys
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.region.model import Media, Messages
from imcore.runtime import SystemClock
from imctl.target.places import free_ports
from services.engines.blob_files import FileBlobs
from services.engines.disk import RealDisk
from services.media.store import Begun, Kept, MediaStore, Silent
from services.node.authorize import Authorizer
from services.node.media import CHUNK_BYTES, MediaService, PeerMedia
from services.node.outside import Machine

DATA = bytes(range(256)) * (CHUNK_BYTES // 256 * 2 + 3)
SHA = hashlib.sha256(DATA).hexdigest()


class Idc:
    """``store`` asks the other one over the network."""

    def __init__(self, folder: Path, pki_dir: Path, name: str, port: int) -> None:
        self.name, self.pki_dir, self.address = name, pki_dir, f"127.0.0.1:{port}"
        self.threads = ThreadPoolExecutor(2)
        self.service = MediaService()
        self.peers: dict[str, PeerMedia] = {}
        self.outside = Machine(pki_dir, name)
        blobs = FileBlobs(str(folder / name), RealDisk(), self.threads)
        keys = load_region_keys(pki_dir)
        messages = Messages(ack="replicated", replicated_timeout_ms=20_000)
        self.store = MediaStore(name, blobs, Media(), messages, keys, SystemClock(), self.peers)

    async def start(self, other: Idc) -> None:
        self.server = self.outside.server([Authorizer({"fra", "iad"})], self.address)
        rpc.add_MediaServicer_to_server(self.service, self.server)
        await self.server.start()
        self.channel = self.outside.channel(other.name, other.address)
        self.peers[other.name] = PeerMedia(other.name, self.channel)
        await self.store.load()
        self.service.store = self.store

    async def stop(self) -> None:
        await self.channel.close(None)
        await self.server.stop(0)
        self.threads.shutdown()

    async def upload(self) -> Kept:
        begun = await self.store.begin("ann", Declared(SHA, len(DATA), "a/b"))
        assert isinstance(begun, Begun)
        await self.store.put("ann", begun.upload, 0, DATA)
        return await self.store.complete("ann", begun.upload)


@pytest.fixture
async def idcs(tmp_path: Path, pki_dir: Path) -> AsyncIterator[tuple[Idc, Idc]]:
    ports = free_ports(2)
    fra, iad = Idc(tmp_path, pki_dir, "fra", ports[0]), Idc(tmp_path, pki_dir, "iad", ports[1])
    await fra.start(iad)
    await iad.start(fra)
    yield fra, iad
    await fra.stop()
    await iad.stop()


async def test_a_copy_is_in_another_idc_before_the_answer(idcs: tuple[Idc, Idc]) -> None:
    fra, iad = idcs
    kept = await fra.upload()
    assert not kept.degraded
    name = kept.ref.named
    assert await fra.peers["iad"].keeps(name) and await iad.peers["fra"].keeps(name)
    chunks = [each async for each in fra.peers["iad"].read(name, 100)]
    assert b"".join(chunks) == DATA[100:]
    assert len(chunks) == 3
    await iad.store.delete("ann", False, name)
    assert not await fra.peers["iad"].keeps(name)
    await iad.store.find(name)  # for somebody who asks: it may go again
    assert await fra.peers["iad"].find(name) and not await fra.peers["iad"].keeps(name)
    nothing = name._replace(key="0" * 32)
    with pytest.raises(Refused) as refused:
        await iad.store.find(nothing)
    assert refused.value.code == Code.NOT_FOUND
    with pytest.raises(Silent):
        async for _ in fra.peers["iad"].read(nothing, 0):
            pass


async def test_one_that_does_not_serve_yet_is_silent(idcs: tuple[Idc, Idc]) -> None:
    fra, iad = idcs
    iad.service.store = None
    assert (await fra.upload()).degraded
    with pytest.raises(Silent, match="iad does not answer: files are not served yet"):
        await fra.peers["iad"].find(MediaName("fra", SHA, "0" * 32))


async def test_people_ask_for_nothing_and_an_idc_sends_its_own_files_only(
    idcs: tuple[Idc, Idc], pki_dir: Path
) -> None:
    _, iad = idcs
    name = peer.MediaName(idc="sin", sha256=bytes(32), key=bytes(16))
    for who, call in (("admin", "Find"), ("viewer", "Find"), ("fra", "Keep")):
        async with Machine(pki_dir, who).channel("iad", iad.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await getattr(rpc.MediaStub(channel), call)(name, timeout=3.0)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
