"""The SDK's uploads and downloads over HTTPS that is cut, in IDCs that are lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from imcore.media import MediaRef
from imcore.region.model import Media, Messages
from imcore.runtime import SystemClock
from services.engines.blob_files import FileBlobs
from services.engines.disk import RealDisk
from services.media.server import MediaApi
from services.media.stickers import Stickers
from services.media.store import MediaStore
from services.media.testing import Near
from services.media.words import Looked, Picture
from services.node.testing_ipconf import IDCS, IpconfSite
from services.sdk import IpconfClient, NotConnected, RequestRefused, SdkError
from services.sdk.core.parameters import Parameters
from services.sdk.core.sealed_file import new_secret, sealed_size
from services.sdk.ipconf import Answer, Lookup
from services.sdk.media import CHUNK_BYTES, PART, BytesSource, FileSource, Transfers

DATA = random.Random(7).randbytes(5 * CHUNK_BYTES + 12_345)


async def look(read: Callable[[], Awaitable[bytes]]) -> Looked | None:
    return Looked(Picture(4, 3, 5), b"small")


class Idc(IpconfSite):
    def __init__(self, folder: Path, pki_dir: Path, name: str, peers: dict[str, Near]) -> None:
        super().__init__(folder / name, pki_dir)
        self.folder.mkdir()
        self.name, self.peers = name, peers
        self.threads = ThreadPoolExecutor(2)
        self.near = Near(lambda: self.store)
        self.link = Link()

    async def start(self) -> None:
        blobs = FileBlobs(str(self.folder / "media"), RealDisk(), self.threads)
        clock = SystemClock()
        self.store = MediaStore(
            self.name, blobs, Media(), Messages(), self.keys, clock, self.peers, look
        )
        await self.store.load()
        self.catalogue: bytes | None = None

        async def read() -> bytes | None:
            return self.catalogue

        async def replace(document: bytes) -> None:
            self.catalogue = document

        self.stickers = Stickers(read, replace, self.store.keep, clock)
        api = MediaApi(self.store, self.stickers, self.keys, clock, frozenset(IDCS))
        self.routes = api.routes()
        await super().start()
        await self.link.start(int(self.url.rpartition(":")[2]))


@dataclass
class Link:
    """A way to an IDC's HTTPS port. ``cuts``: each connection in turn breaks after so many bytes,
    both ways together; when none is left they stand."""

    cuts: list[int] = field(default_factory=list)
    down: bool = False

    async def start(self, port: int) -> None:
        self._port = port
        self._open: set[asyncio.StreamWriter] = set()
        self._server = await asyncio.start_server(self._taken, "127.0.0.1", 0)
        self.url = f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._server.close()
        self.cut()
        await asyncio.sleep(0)

    def cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _taken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            writer.transport.abort()
            return
        there, to = await asyncio.open_connection("127.0.0.1", self._port)
        left = [self.cuts.pop(0) if self.cuts else 1 << 40]
        mine = {writer, to}
        self._open |= mine

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(16_384):
                    left[0] -= len(data)
                    if left[0] < 0:
                        return
                    sink.write(data)
                    await sink.drain()
            except OSError:
                return
            finally:
                for each in mine:
                    each.transport.abort()

        await asyncio.gather(carry(reader, to), carry(there, writer))
        self._open -= mine


class Region:
    def __init__(self, folder: Path, pki_dir: Path) -> None:
        self.peers: dict[str, dict[str, Near]] = {"fra": {}, "iad": {}}
        self.idcs = {n: Idc(folder, pki_dir, n, self.peers[n]) for n in self.peers}
        self.peers["fra"]["iad"] = self.idcs["iad"].near
        self.peers["iad"]["fra"] = self.idcs["fra"].near
        self.ipconf = IpconfClient(["https://x.invalid"], pki_dir / "ca.pem", random.Random(1))
        self.seen: list[int] = []
        self.on_progress: Callable[[int], None] = lambda done: None

    def transfers(self, uid: str) -> Transfers:
        lookup = Lookup(self.idcs["fra"].token(uid))
        media = tuple(idc.link.url for idc in self.idcs.values())
        answer = Answer(1, False, b"", (), Parameters.of({}), media)
        return Transfers(self.ipconf, lambda: lookup, lambda: answer, SystemClock())

    async def upload(self, data: bytes = DATA, timeout_ms: int = 20_000) -> MediaRef:
        def progress(done: int, size: int) -> None:
            assert size == len(data)
            self.seen.append(done)
            self.on_progress(done)

        source = BytesSource(data)
        return await self.transfers("ann").upload(source, "a/b", "x", progress, timeout_ms)

    async def download(
        self, ref: MediaRef, path: Path, timeout_ms: int = 20_000, resume: bool = True
    ) -> None:
        def progress(done: int, size: int) -> None:
            self.seen.append(done)

        await self.transfers("bob").download(ref, path, resume, progress, timeout_ms)


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@pytest.fixture
async def region(tmp_path: Path, pki_dir: Path) -> AsyncIterator[Region]:
    found = Region(tmp_path, pki_dir)
    for idc in found.idcs.values():
        await idc.start()
    yield found
    await found.ipconf.close()
    for idc in found.idcs.values():
        await idc.link.stop()
        await idc.stop()
        idc.threads.shutdown()


async def test_a_file_that_is_cut_again_and_again_is_sent_and_fetched(
    region: Region, tmp_path: Path
) -> None:
    fra = region.idcs["fra"]
    fra.link.cuts = [CHUNK_BYTES * 2, CHUNK_BYTES, CHUNK_BYTES * 2]
    ref = await region.upload()
    assert (ref.named.idc, ref.size, ref.type, ref.label) == ("fra", len(DATA), "a/b", "x")
    assert not fra.link.cuts
    # What came through was not sent again: less than a chunk for each cut.
    assert fra.store.counters.bytes_in == len(DATA)
    assert region.seen[-1] == len(DATA)
    await region.ipconf.close()  # its connections: the next ones are cut
    fra.link.cuts = [CHUNK_BYTES * 2, CHUNK_BYTES, CHUNK_BYTES * 2]
    region.seen = []
    await region.download(ref, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    assert region.seen == sorted(region.seen)
    assert names(tmp_path) == ["copy", "fra", "iad"]


async def test_an_upload_whose_idc_is_lost_is_done_in_another(region: Region) -> None:
    def lose(done: int) -> None:
        if done == 2 * CHUNK_BYTES:
            region.idcs["fra"].link.down = True
            region.idcs["fra"].link.cut()

    region.on_progress = lose
    ref = await region.upload()
    assert ref.named.idc == "iad"
    assert region.idcs["fra"].store.uploads == 1
    # It is back: what it has of the upload counts.
    region.idcs["fra"].link.down, region.seen, region.on_progress = False, [], lambda done: None
    assert (await region.upload()).named.idc == "fra"
    assert region.seen[0] >= 2 * CHUNK_BYTES


async def test_two_devices_that_send_the_same_file_at_once_both_have_it(region: Region) -> None:
    refs = await asyncio.gather(*(region.upload() for _ in range(3)))
    assert len(set(refs)) == 1
    fra = region.idcs["fra"].store
    assert (fra.counters.completed, fra.uploads) == (1, 0)


async def test_an_upload_that_was_thrown_away_is_begun_again(region: Region) -> None:
    fra = region.idcs["fra"].store

    def sweep(done: int) -> None:
        if done == 2 * CHUNK_BYTES and len(region.seen) == 3:
            for name, upload in fra._uploads.items():
                fra._uploads[name] = upload._replace(began_ms=0)
            swept.append(asyncio.ensure_future(fra.sweep()))

    swept: list[asyncio.Future[None]] = []
    region.on_progress = sweep
    assert (await region.upload()).named.idc == "fra"
    assert fra.counters.swept == 1


async def test_an_idc_that_has_no_room_keeps_nobody_from_the_next_one(region: Region) -> None:
    fra = region.idcs["fra"].store
    fra.settings = Media(store_bytes_max=1)  # it says: come again in a minute
    async with asyncio.timeout(10):
        assert (await region.upload(timeout_ms=8_000)).named.idc == "iad"


async def test_with_one_idc_full_and_one_away_the_one_that_comes_back_is_asked(
    region: Region,
) -> None:
    region.idcs["fra"].store.settings = Media(store_bytes_max=1)
    iad = region.idcs["iad"]
    iad.link.down = True

    async def back() -> None:
        await asyncio.sleep(1.5)
        iad.link.down = False

    later = asyncio.ensure_future(back())
    async with asyncio.timeout(20):
        assert (await region.upload(timeout_ms=15_000)).named.idc == "iad"
    await later


async def test_a_download_onto_a_full_disk_says_so_and_asks_nobody_else(
    region: Region, tmp_path: Path
) -> None:
    ref = await region.upload()
    (tmp_path / f"copy.{ref.named.sha256[:16]}{PART}").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        await region.download(ref, tmp_path / "copy")
    assert region.idcs["iad"].store.counters.fetched == 0


async def test_what_was_uploaded_before_is_not_sent_again(region: Region) -> None:
    ref = await region.upload()
    region.seen = []
    assert await region.upload() == ref
    assert region.seen == [len(DATA)]
    assert region.idcs["fra"].store.counters.bytes_in == len(DATA)


async def test_a_download_goes_on_where_an_earlier_one_ended(
    region: Region, tmp_path: Path
) -> None:
    ref, fra = await region.upload(), region.idcs["fra"]
    await region.ipconf.close()
    fra.link.cuts = [CHUNK_BYTES * 2, 0, 0, 0, 0, 0, 0, 0]
    region.idcs["iad"].link.down = True
    with pytest.raises(NotConnected):
        await region.download(ref, tmp_path / "copy", timeout_ms=1_000)
    assert not (tmp_path / "copy").exists()
    fra.link.cuts, region.seen = [], []
    await region.download(ref, tmp_path / "copy")
    assert region.seen[0] > CHUNK_BYTES // 2
    assert (tmp_path / "copy").read_bytes() == DATA
    await region.download(ref, tmp_path / "copy", resume=False)


async def test_one_idc_has_what_was_uploaded_in_another(region: Region, tmp_path: Path) -> None:
    ref, fra, iad = await region.upload(), region.idcs["fra"], region.idcs["iad"]
    fra.link.down = True
    fra.link.cut()
    fra.near.up = False
    with pytest.raises(NotConnected, match="fra may have it, try later"):
        await region.download(ref, tmp_path / "copy", timeout_ms=1_000)
    fra.near.up = True
    await region.download(ref, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    assert iad.store.counters.fetched == 1


async def test_what_has_another_hash_is_not_taken(region: Region, tmp_path: Path) -> None:
    ref = await region.upload()
    folder = region.idcs["fra"].folder / "media" / "files"
    stored = next(folder.glob(f"*/{ref.named.sha256}/data.*"))
    stored.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    with pytest.raises(RequestRefused, match="another hash"):
        await region.download(ref, tmp_path / "copy")
    assert names(tmp_path) == ["fra", "iad"]


@pytest.mark.parametrize("had", [0, CHUNK_BYTES])
async def test_what_one_disk_gives_wrong_is_fetched_from_another_idc(
    region: Region, tmp_path: Path, had: int
) -> None:
    """``had``: so much of it came in an earlier call."""
    ref, fra = await region.upload(), region.idcs["fra"]
    await region.idcs["iad"].store.find(ref.named)  # it has a copy
    stored = next((fra.folder / "media" / "files").glob(f"*/{ref.named.sha256}/data.*"))
    wrong = bytes([DATA[0] ^ 1]) + DATA[1:]
    stored.write_bytes(wrong)
    if had:
        (tmp_path / f"copy.{ref.named.sha256[:16]}{PART}").write_bytes(wrong[:had])
    await region.download(ref, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    assert names(tmp_path) == ["copy", "fra", "iad"]


async def test_files_of_no_and_of_one_byte(region: Region, tmp_path: Path) -> None:
    for data in (b"", b"1"):
        ref = await region.upload(data)
        await region.download(ref, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == data


async def test_a_file_on_disk_is_read_as_it_goes(region: Region, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    with (tmp_path / "file").open("rb") as file:
        ref = await region.transfers("ann").upload(
            FileSource(file), "a/b", "", lambda done, size: None, 20_000
        )
    assert ref.size == len(DATA)
    with pytest.raises(RequestRefused) as refused:
        named = ref.named._replace(key="0" * 32)
        await region.download(ref._replace(named=named), tmp_path / "copy")
    assert refused.value.code == "not_found"


async def test_a_picture_has_a_thumbnail_and_another_file_none(region: Region) -> None:
    quiet = BytesSource(b"a picture")
    ann = region.transfers("ann")
    ref = await ann.upload(quiet, "image/png", "", lambda done, size: None, 20_000)
    assert (ref.width, ref.height) == (4, 3)
    assert await region.transfers("bob").thumbnail(ref, 20_000) == b"small"
    with pytest.raises(RequestRefused) as refused:
        await ann.thumbnail(await region.upload(b"other"), 20_000)
    assert refused.value.code == "not_found"


@pytest.mark.parametrize("said", ['{"error": {"code', '{"error": "no"}'])
async def test_what_a_proxy_says_in_place_of_an_idc_sends_on_to_the_next_one(
    region: Region, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    ref = await region.upload()
    whole, fra = IpconfClient.request, region.idcs["fra"].link.url

    @contextlib.asynccontextmanager
    async def request(client: IpconfClient, method: str, url: str, **given: Any) -> Any:
        async with whole(client, method, url, **given) as response:
            if url.startswith(fra):
                response._body, response.status = said.encode(), 404
                response._headers = CIMultiDictProxy(
                    CIMultiDict({"Content-Type": "application/json"})
                )
            yield response

    monkeypatch.setattr(IpconfClient, "request", request)
    bob = region.transfers("bob")
    assert await bob.stickers(5_000) == {}
    with pytest.raises(RequestRefused, match="no thumbnail"):  # says the other one
        await bob.thumbnail(ref, 5_000)
    await region.download(ref, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    assert (await region.upload(b"another one")).named.idc == "iad"


async def test_stickers_are_named_by_code(region: Region, tmp_path: Path) -> None:
    ref = await region.upload(b"a smile")
    assert await region.transfers("bob").stickers(20_000) == {}
    await region.idcs["fra"].stickers.replace({"smile": ref})
    known = await region.transfers("bob").stickers(20_000)
    assert known["smile"].named == ref.named
    await region.download(known["smile"], tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"a smile"


async def test_an_idc_that_is_silent_keeps_nobody_from_the_stickers_of_another(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never() -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(region.idcs["fra"].stickers, "catalogue", never)
    async with asyncio.timeout(5):
        assert await region.transfers("bob").stickers(2_000) == {}
    monkeypatch.setattr(region.idcs["iad"].stickers, "catalogue", never)
    async with asyncio.timeout(5):
        with pytest.raises(NotConnected, match="does not answer in time"):
            await region.transfers("bob").stickers(2_000)


async def test_of_an_encrypted_file_no_idc_holds_a_plain_byte(
    region: Region, tmp_path: Path
) -> None:
    """Its upload is cut, and another IDC fetches it: both hold it, and neither can read it."""
    plain, secret = b"canary-90ab".join([b""] * 70_000), new_secret()
    fra, iad = region.idcs["fra"], region.idcs["iad"]
    fra.link.cuts = [CHUNK_BYTES * 2, CHUNK_BYTES]
    seen: list[tuple[int, int]] = []
    ref = await region.transfers("ann").upload(
        BytesSource(plain), "image/png", "x", lambda *at: seen.append(at), 20_000, secret
    )
    assert (ref.size, ref.type, ref.label, ref.secret) == (len(plain), "image/png", "x", secret)
    size = sealed_size(len(plain))
    assert seen[-1] == (size, size) and fra.store.counters.bytes_in == size
    await region.ipconf.close()
    fra.link.down, iad.link.cuts = True, [CHUNK_BYTES * 2, CHUNK_BYTES]
    await region.download(ref, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == plain
    assert names(tmp_path) == ["copy", "fra", "iad"]
    for idc in (fra, iad):
        files = [each for each in idc.folder.rglob("*") if each.is_file()]
        assert [each for each in files if each.stat().st_size == size]
        for each in files:
            found = each.read_bytes()
            assert b"canary" not in found and b"image/png" not in found, each
    with pytest.raises(RequestRefused) as refused:
        await region.transfers("bob").thumbnail(ref, 20_000)
    assert refused.value.code == "not_found"


async def test_an_encrypted_file_that_is_not_what_its_message_says_is_not_taken(
    region: Region, tmp_path: Path
) -> None:
    """The IDC's doing, or its sender's."""
    region.idcs["iad"].link.down = True  # it would have it right
    ref = await region.transfers("ann").upload(
        BytesSource(DATA), "a/b", "x", lambda done, size: None, 20_000, new_secret()
    )
    for other, problem in (
        (ref._replace(secret=new_secret()), "cannot be decrypted: chunk 0"),
        (ref._replace(size=ref.size - 1), "another hash"),
    ):
        with pytest.raises(RequestRefused, match=problem):
            await region.download(other, tmp_path / "copy")
    folder = region.idcs["fra"].folder / "media" / "files"
    stored = next(folder.glob(f"*/{ref.named.sha256}/data.*"))
    whole = stored.read_bytes()
    first, second = whole[: 64 * 1024], whole[64 * 1024 : 128 * 1024]
    stored.write_bytes(second + first + whole[128 * 1024 :])
    with pytest.raises(RequestRefused, match="another hash"):
        await region.download(ref, tmp_path / "copy")
    assert names(tmp_path) == ["fra", "iad"]
    stored.write_bytes(whole)
    await region.download(ref, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        await region.download(ref, tmp_path / "taken")
    part = f"taken.{ref.named.sha256[:16]}.part"  # of ciphertext, for the next try
    assert names(tmp_path) == ["copy", "fra", "iad", "taken", part]
    with pytest.raises(RequestRefused, match="not the type"):
        await region.transfers("ann").upload(
            BytesSource(DATA), "A", "x", lambda done, size: None, 20_000, new_secret()
        )


async def test_a_file_that_changes_is_given_up_before_it_is_encrypted_anew(
    region: Region, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    fra = region.idcs["fra"]

    def changed(done: int, size: int) -> None:
        if done == CHUNK_BYTES:
            path.write_bytes(DATA[:-1] + b"?")

    with path.open("rb") as file, pytest.raises(SdkError, match="was changed"):
        await region.transfers("ann").upload(
            FileSource(file), "a/b", "", changed, 20_000, new_secret()
        )
    assert fra.store.uploads == 1
