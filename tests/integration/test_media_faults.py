"""Files of an IDC whose store does not answer, before or after it did what it was asked for."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from imcore.attest import RegionKeys
from imcore.errors import Refused, Unavailable
from imcore.media import Declared, MediaName
from imcore.region.model import Media, Messages
from imcore.runtime import SystemClock
from services.engines.blob_files import FileBlobs
from services.engines.disk import RealDisk
from services.media.stickers import Stickers
from services.media.store import KEY, Begun, Kept, Look, MediaStore, Peer
from services.media.testing import Near
from services.media.words import Looked, Picture, Record
from services.ports import Blobs

DATA = bytes(range(256)) * 100
SHA = hashlib.sha256(DATA).hexdigest()
JUNK = b"x" * len(DATA)


class MovedClock(SystemClock):
    moved_s = 0.0

    def now(self) -> float:
        return super().now() + self.moved_s

    def wall_ms(self) -> int:
        return super().wall_ms() + int(self.moved_s * 1000)


class Faulty:
    """A folder's blobs. The calls named in ``before`` are not answered and do nothing; those in
    ``after`` are carried out, and not answered either. ``on``: what else happens before a call."""

    def __init__(self, blobs: FileBlobs) -> None:
        self._blobs = blobs
        self.before: set[str] = set()
        self.after: set[str] = set()
        self.on: dict[str, Callable[[], Awaitable[None]]] = {}
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        async def call(*given: Any, **named: Any) -> Any:
            self.calls.append((name, given))
            if name in self.on:
                await self.on[name]()
            if name in self.before:
                raise Unavailable("not carried out")
            answer = await getattr(self._blobs, name)(*given, **named)
            if name in self.after:
                raise Unavailable("carried out")
            return answer

        return call


class Idc:
    def __init__(self, folder: Path, threads: ThreadPoolExecutor) -> None:
        self.folder = folder
        self.blobs = Faulty(FileBlobs(str(folder), RealDisk(), threads))
        self.clock = MovedClock()
        self.looks: Look | None = None
        self.name = "fra"
        self.peers: dict[str, Peer] = {}
        self.again()

    def again(self) -> None:
        """A later life; ``load`` is to follow."""
        keys = RegionKeys({1: b"k" * 32}, 1)
        blobs = cast(Blobs, self.blobs)
        self.store = MediaStore(
            self.name, blobs, Media(), Messages(), keys, self.clock, self.peers, self.looks
        )

    async def begun(self, uid: str = "ann", data: bytes = DATA) -> Begun:
        declared = Declared(hashlib.sha256(data).hexdigest(), len(data), "image/png")
        begun = await self.store.begin(uid, declared)
        assert isinstance(begun, Begun)
        return begun

    async def sent(self, uid: str = "ann", data: bytes = DATA, sent: bytes | None = None) -> str:
        """An upload that is to be completed."""
        begun = await self.begun(uid, data)
        await self.store.put(uid, begun.upload, begun.offset, data if sent is None else sent)
        return begun.upload

    async def upload(self, uid: str = "ann", data: bytes = DATA) -> MediaName:
        kept = await self.store.complete(uid, await self.sent(uid, data))
        return kept.ref.named

    def there(self) -> list[str]:
        """Files that are stored, whoever knows of it."""
        return [path.parent.name for path in self.folder.glob("files/*/*/data.*")]


@pytest.fixture
def idc(tmp_path: Path) -> Iterator[Idc]:
    with ThreadPoolExecutor(2) as threads:
        yield Idc(tmp_path, threads)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Idc]:
    """Another IDC."""
    with ThreadPoolExecutor(1) as threads:
        other = Idc(tmp_path / "other", threads)
        other.name = "iad"
        other.again()
        yield other


# --------------------------------------------------------- to name a hash is not to have the bytes


async def test_a_hash_that_is_stored_leads_to_nothing_while_other_bytes_are_judged(
    idc: Idc,
) -> None:
    await idc.store.load()
    await idc.upload()
    upload = await idc.sent("eve", sent=JUNK)
    name = MediaName("fra", SHA, upload)
    served: list[object] = []

    async def asked() -> None:
        served.append(await idc.store.held(name))

    idc.blobs.on["complete"] = asked
    with pytest.raises(Refused, match="another hash"):
        await idc.store.complete("eve", upload)
    assert served == [None]
    assert await idc.store.held(name) is None


@pytest.mark.parametrize("stored", [True, False], ids=["stored before", "stored later"])
async def test_a_hash_leads_to_nothing_when_nobody_said_what_the_bytes_are(
    idc: Idc, stored: bool
) -> None:
    await idc.store.load()
    if stored:
        await idc.upload()
    upload = await idc.sent("eve", sent=JUNK)
    name = MediaName("fra", SHA, upload)
    idc.blobs.before.add("complete")
    with pytest.raises(Unavailable):
        await idc.store.complete("eve", upload)
    idc.blobs.before.clear()
    if not stored:
        await idc.upload()
    assert await idc.store.held(name) is None
    assert isinstance(await idc.store.begin("eve", Declared(SHA, len(DATA), "image/png")), Begun)
    idc.clock.moved_s = 90_000
    await idc.store.sweep()
    assert await idc.store.held(name) is None
    idc.again()
    await idc.store.load()
    assert await idc.store.held(name) is None
    assert idc.there() == [SHA]


async def test_an_upload_whose_last_answer_never_came_is_completed_by_asking_again(
    idc: Idc,
) -> None:
    await idc.store.load()
    upload = await idc.sent()
    idc.blobs.before.add("complete")
    with pytest.raises(Unavailable):
        await idc.store.complete("ann", upload)
    idc.blobs.before.clear()
    assert isinstance(await idc.store.complete("ann", upload), Kept)


async def test_a_file_whose_record_cannot_be_written_is_uploaded_again(idc: Idc) -> None:
    await idc.store.load()
    upload = await idc.sent()
    idc.blobs.before.add("write_note")
    with pytest.raises(Unavailable):
        await idc.store.complete("ann", upload)
    idc.blobs.before.clear()
    assert await idc.store.held(MediaName("fra", SHA, upload)) is None
    assert idc.store.uploads == 0
    name = await idc.upload()
    await idc.store.sweep()
    assert await idc.store.held(name) is not None
    assert (idc.store.files, idc.store.stored, idc.there()) == (1, len(DATA), [SHA])


# ------------------------------------------------------------------ what is gone, or half gone


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("call", ["delete", "notes"])
async def test_a_deletion_that_breaks_off_is_over_for_whoever_asks_and_done_later(
    idc: Idc, fault: str, call: str
) -> None:
    await idc.store.load()
    name = await idc.upload()
    getattr(idc.blobs, fault).add(call)
    with pytest.raises(Unavailable):
        await idc.store.delete("ann", False, name)
    assert await idc.store.held(name) is None
    assert not await idc.store.keeps(name)
    with pytest.raises(Unavailable):
        await idc.store.sweep()
    idc.blobs.before.clear()
    idc.blobs.after.clear()
    await idc.store.sweep()
    assert (idc.store.files, idc.store.stored, idc.there()) == (0, 0, [])
    assert await idc.upload() == name


async def test_what_is_uploaded_again_before_its_deletion_is_done_stays(idc: Idc) -> None:
    await idc.store.load()
    name = await idc.upload()
    idc.blobs.before.add("delete")
    with pytest.raises(Unavailable):
        await idc.store.delete("ann", False, name)
    idc.blobs.before.clear()
    assert await idc.upload() == name
    await idc.store.sweep()
    assert await idc.store.held(name) is not None
    assert (idc.store.files, idc.store.stored, idc.there()) == (1, len(DATA), [SHA])


async def test_a_file_that_no_key_leads_to_goes_after_the_next_start(idc: Idc) -> None:
    """Not at once: a process that is ending may be about to write its record."""
    await idc.store.load()
    kept = await idc.upload("ann", b"kept")
    lost = await idc.upload()
    saved = await idc.upload("ann", b"saved")
    note = KEY + saved.key
    data = await idc.blobs.note(saved.sha256, note)
    for name in (lost, saved):
        await idc.blobs.remove_note(name.sha256, KEY + name.key)
    idc.again()
    await idc.store.load()
    await idc.store.sweep()
    assert idc.store.files == 3
    await idc.blobs.write_note(saved.sha256, note, data)
    idc.clock.moved_s = 60
    await idc.store.sweep()
    assert sorted(idc.there()) == sorted([kept.sha256, saved.sha256])
    assert (idc.store.files, idc.store.stored) == (2, len(b"kept") + len(b"saved"))


async def test_what_became_a_file_and_nobody_heard_of_it_goes(idc: Idc) -> None:
    await idc.store.load()
    upload = await idc.sent()
    idc.blobs.after.add("complete")
    with pytest.raises(Unavailable):
        await idc.store.complete("ann", upload)
    assert idc.there() == [SHA]
    await idc.store.sweep()
    assert (idc.store.files, idc.there()) == (0, [])


async def test_an_upload_that_its_store_has_lost_is_begun_again_as_it_was(idc: Idc) -> None:
    await idc.store.load()
    upload = (await idc.begun()).upload
    await idc.store.put("ann", upload, 0, DATA[:1000])
    (before,) = (await idc.blobs.uploads()).values()
    await idc.blobs.abandon(upload)
    assert await idc.begun() == Begun(upload, 0)
    (found,) = (await idc.blobs.uploads()).values()
    assert found == before._replace(size=0)
    await idc.upload()
    assert idc.store.uploads == 0


async def test_a_fetch_whose_beginning_its_store_has_lost_begins_again(
    idc: Idc, other: Idc
) -> None:
    await other.store.load()
    near = Near(lambda: other.store)
    idc.peers["iad"] = near
    await idc.store.load()
    name = await other.upload()
    near.cut_after = 3
    with pytest.raises(Unavailable):
        await idc.store.find(name)
    await idc.blobs.abandon("copy-" + SHA)
    near.cut_after = 0
    with pytest.raises(Unavailable):
        await idc.store.find(name)
    assert list(await idc.blobs.uploads()) == ["copy-" + SHA]
    assert await idc.store.find(name)


async def test_a_file_that_goes_while_another_idc_is_asked_for_its_key_is_fetched(
    idc: Idc, other: Idc
) -> None:
    await other.store.load()
    theirs = await other.upload("bob")
    await idc.store.load()
    mine = await idc.upload()

    class Slow(Near):
        async def find(self, name: MediaName) -> Record | None:
            await idc.store.delete("ann", False, mine)
            return await super().find(name)

    idc.peers["iad"] = Slow(lambda: other.store)
    record = await idc.store.find(theirs)
    assert b"".join([d async for d in idc.store.read(theirs, 0, record.size, 9999)]) == DATA


# -------------------------------------------------------------------------------- pictures


async def look(read: Callable[[], Awaitable[bytes]]) -> Looked | None:
    return Looked(Picture(4, 3, 5), b"small") if await read() == LARGE else None


LARGE = DATA * 90  # more than two steps
ANNOUNCED = Declared(hashlib.sha256(LARGE).hexdigest(), len(LARGE), "image/png")


async def begun_large(idc: Idc) -> str:
    begun = await idc.begun("ann", LARGE)
    for at in range(0, len(LARGE), 1 << 20):
        await idc.store.put("ann", begun.upload, at, LARGE[at : at + (1 << 20)])
    return begun.upload


@pytest.mark.parametrize("call", ["read", "write_note"])
async def test_a_picture_that_cannot_be_looked_at_is_a_file_and_is_looked_at_later(
    idc: Idc, call: str
) -> None:
    idc.looks = look
    idc.again()
    await idc.store.load()
    upload = await begun_large(idc)

    async def fail() -> None:
        if call == "read" or any(
            given[1].startswith("picture.") for _, given in idc.blobs.calls[-1:]
        ):
            raise Unavailable("not now")

    idc.blobs.on[call] = fail
    kept = await idc.store.complete("ann", upload)
    assert (kept.ref.size, kept.ref.width) == (len(LARGE), 0)
    idc.blobs.on.clear()
    again = await idc.store.begin("ann", ANNOUNCED)
    assert isinstance(again, Kept)
    assert (again.ref.width, await idc.store.thumbnail(again.ref.named)) == (4, b"small")
    sizes = [given[2] for name, given in idc.blobs.calls if name == "read"]
    assert max(sizes) <= 1 << 20
    idc.blobs.calls.clear()
    assert isinstance(await idc.store.begin("ann", ANNOUNCED), Kept)
    assert not [name for name, _ in idc.blobs.calls if name == "read"]  # once is enough


async def test_a_picture_that_is_deleted_while_it_is_looked_at_is_gone_and_nothing_else(
    idc: Idc, caplog: pytest.LogCaptureFixture
) -> None:
    idc.looks = look
    idc.again()
    await idc.store.load()
    upload = await begun_large(idc)
    name = MediaName("fra", ANNOUNCED.sha256, upload)

    async def deleted() -> None:
        idc.blobs.on.clear()
        await idc.store.delete("ann", False, name)

    idc.blobs.on["read"] = deleted
    caplog.set_level(logging.INFO)
    assert (await idc.store.complete("ann", upload)).ref.width == 0
    assert "cannot be looked at now" in caplog.text
    assert idc.there() == []


# ------------------------------------------------------------- what a disk does not give, or wrong


class BadDisk(RealDisk):
    """``bad``: the errno of what cannot be read just now; 0: all can."""

    bad = 0

    def _check(self, path: str) -> None:
        if self.bad:
            raise OSError(self.bad, os.strerror(self.bad), path)

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        self._check(path)
        return super().read(path, offset, size)

    def list(self, folder: str) -> list[str]:
        self._check(folder)
        return super().list(folder)


@pytest.mark.parametrize("problem", [errno.EIO, errno.EMFILE, errno.EACCES])
async def test_a_disk_that_cannot_be_read_is_an_alarm_and_ends_no_idc(
    tmp_path: Path, problem: int
) -> None:
    disk = BadDisk()
    with ThreadPoolExecutor(2) as threads:
        idc = Idc(tmp_path, threads)
        idc.blobs = Faulty(FileBlobs(str(tmp_path), disk, threads))
        idc.again()
        await idc.store.load()
        name = await idc.upload()
        disk.bad = problem
        with pytest.raises(Unavailable):
            await idc.store.find(name)
        with pytest.raises(Unavailable):
            await anext(idc.store.read(name, 0, 10, 10))
        idc.again()
        running = asyncio.ensure_future(idc.store.run())
        async with asyncio.timeout(10):
            while not (idc.store.alarm or running.done()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not running.done() and os.strerror(problem) in idc.store.alarm
        disk.bad = 0
        async with asyncio.timeout(10):
            while idc.store.alarm:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await idc.store.find(name)).size == len(DATA)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("damaged", [b"", b'{"uid": "ann"', b'{"uid": "ann", "size": "\xff"}'])
async def test_a_damaged_record_opens_nothing_until_the_file_is_uploaded_or_fetched_again(
    idc: Idc, other: Idc, damaged: bytes
) -> None:
    await idc.store.load()
    name = await idc.upload()
    record = next(idc.folder.glob(f"files/*/*/note.{KEY}*"))
    record.write_bytes(damaged)
    with pytest.raises(Refused, match="no such file"):
        await idc.store.find(name)
    assert (await idc.upload()) == name
    assert (await idc.store.find(name)).uid == "ann"
    # Of the copy of another IDC it is written again by the word of the one that has it.
    idc.peers["iad"], other.peers["fra"] = Near(lambda: other.store), Near(lambda: idc.store)
    await other.store.load()
    await other.store.find(name)
    record.write_bytes(damaged)
    assert (await idc.store.find(name)).uid == "ann"


@pytest.mark.parametrize("damaged", [JUNK, DATA[:100], b""], ids=["other", "cut", "empty"])
async def test_a_damaged_file_is_whole_again_once_somebody_has_uploaded_it(
    idc: Idc, damaged: bytes
) -> None:
    await idc.store.load()
    name = await idc.upload()
    next(idc.folder.glob("files/*/*/data.*")).write_bytes(damaged)
    other = await idc.upload("bob")
    for each in (name, other):
        read = [part async for part in idc.store.read(each, 0, len(DATA), 10_000)]
        assert b"".join(read) == DATA
    assert idc.store.stored == len(DATA) and idc.there() == [SHA]


async def test_a_sticker_that_nobody_has_keeps_no_other_one_away(idc: Idc, other: Idc) -> None:
    await idc.store.load()
    await other.store.load()
    other.peers["fra"] = Near(lambda: idc.store)
    refs = {
        code: (await idc.store.complete("ann", await idc.sent("ann", data))).ref
        for code, data in (("a", b"gone"), ("b", b"damaged"), ("c", b"there"))
    }
    register: list[bytes] = []

    async def read() -> bytes | None:
        return register[-1]

    async def replace(document: bytes) -> None:
        register.append(document)

    await Stickers(read, replace, idc.store.keep, idc.clock).replace(refs)
    await idc.store.delete("ann", False, refs["a"].named)
    next(idc.folder.glob(f"files/*/{refs['b'].named.sha256}/note.{KEY}*")).write_bytes(b"{")
    running = asyncio.ensure_future(Stickers(read, replace, other.store.keep, other.clock).run())
    async with asyncio.timeout(10):
        while other.store.files < 1 and not running.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not running.done()
    assert (await other.store.find(refs["c"].named)).size == 5
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
