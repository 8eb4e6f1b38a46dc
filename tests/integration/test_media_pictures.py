"""What an IDC makes of pictures, and of what only says that it is one."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import random
import struct
import zlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from imcore.attest import RegionKeys
from imcore.errors import Code, Refused
from imcore.media import Declared, MediaName, MediaRef
from imcore.region.model import Media, Messages
from imcore.runtime import SystemClock
from services.engines.blob_files import FileBlobs
from services.engines.disk import RealDisk
from services.media.pictures import Pictures
from services.media.store import COMPARED_AT_ONCE, NEAREST_MAX, Begun, Kept, MediaStore
from services.media.words import Picture, Record


def drawn(seed: int, size: tuple[int, int] = (400, 300)) -> Image.Image:
    rng, picture = random.Random(seed), Image.new("RGB", size)
    draw = ImageDraw.Draw(picture)
    for _ in range(12):
        x, y = rng.uniform(-0.2, 0.9) * size[0], rng.uniform(-0.2, 0.9) * size[1]
        box = (x, y, x + rng.uniform(0.2, 0.6) * size[0], y + rng.uniform(0.2, 0.6) * size[1])
        draw.ellipse(box, fill=tuple(rng.randrange(256) for _ in range(3)))
    return picture


def encoded(picture: Image.Image, kind: str = "JPEG", **more: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **more)
    return out.getvalue()


def bomb() -> bytes:
    """A PNG of 10 KB that claims to be 30,000 by 30,000 dots."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


class Store(MediaStore):
    async def upload(self, data: bytes, type_: str = "image/png", uid: str = "ann") -> MediaRef:
        declared = Declared(hashlib.sha256(data).hexdigest(), len(data), type_)
        begun = await self.begin(uid, declared)
        assert isinstance(begun, Begun)
        await self.put(uid, begun.upload, 0, data)
        return (await self.complete(uid, begun.upload)).ref


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    with ThreadPoolExecutor(2) as threads:

        def opened() -> Store:
            blobs = FileBlobs(str(tmp_path), RealDisk(), threads)
            keys = RegionKeys({1: b"k" * 32}, 1)
            return Store(
                "fra", blobs, Media(), Messages(), keys, SystemClock(), {}, Pictures().look
            )

        found = opened()
        await found.load()
        yield found


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
async def test_a_picture_has_its_size_and_a_thumbnail(store: Store, kind: str) -> None:
    ref = await store.upload(encoded(drawn(1), kind), f"image/{kind.lower()}")
    assert (ref.width, ref.height) == (400, 300)
    small = Image.open(io.BytesIO(await store.thumbnail(ref.named)))
    assert (small.format, small.size) == ("JPEG", (320, 240))


async def test_a_picture_on_its_side_is_shown_upright_and_keeps_nothing_else(store: Store) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "the camera"
    ref = await store.upload(encoded(drawn(1), exif=exif))
    assert (ref.width, ref.height) == (300, 400)
    data = await store.thumbnail(ref.named)
    assert b"the camera" not in data
    assert Image.open(io.BytesIO(data)).size == (240, 320)


@pytest.mark.parametrize(
    "data",
    [bomb(), b"", b"no picture", encoded(drawn(1))[:2_000], b"%!PS-Adobe-3.0 EPSF-3.0\n"],
    ids=["bomb", "empty", "text", "cut", "postscript"],
)
async def test_what_cannot_be_shown_is_a_file_all_the_same(store: Store, data: bytes) -> None:
    ref = await store.upload(data)
    assert (ref.size, ref.width, ref.height) == (len(data), 0, 0)
    for asked in (store.thumbnail(ref.named), store.similar("ann", False, ref.named, 32)):
        with pytest.raises(Refused) as refused:
            await asked
        assert refused.value.code == Code.NOT_FOUND


async def test_a_picture_is_a_file_while_no_program_can_be_started_and_looked_at_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    data = encoded(drawn(1))
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "create_subprocess_exec", full)
        ref = await store.upload(data)
        assert (ref.width, ref.height) == (0, 0)
    declared = Declared(ref.named.sha256, len(data), "image/png")
    again = await store.begin("ann", declared)
    assert isinstance(again, Kept)
    assert (again.ref.width, again.ref.height) == (400, 300)


async def test_nobody_looks_at_what_says_that_it_is_no_picture(store: Store) -> None:
    assert (await store.upload(encoded(drawn(1)), "application/pdf")).width == 0


async def test_near_duplicates_of_ones_own_are_found_also_in_a_later_life(
    store: Store, tmp_path: Path
) -> None:
    first = await store.upload(encoded(drawn(1), quality=95))
    again = await store.upload(encoded(drawn(1).resize((200, 150)), "WEBP", quality=40))
    others = await store.upload(encoded(drawn(1), quality=50), uid="bob")
    for seed in range(2, 6):
        await store.upload(encoded(drawn(seed)))
    await store.load()
    mine = await store.similar("ann", False, first.named, 10)
    assert [ref.named for _, _, ref in mine] == [first.named, again.named]
    assert mine[0][0] == 0
    everyones = await store.similar("root", True, first.named, 10)
    assert {(uid, ref.named) for _, uid, ref in everyones} == {
        ("ann", first.named), ("ann", again.named), ("bob", others.named),
    }  # fmt: skip
    await store.delete("ann", False, again.named)
    assert len(await store.similar("ann", False, first.named, 10)) == 1


async def test_the_program_says_nothing_but_its_answer() -> None:
    async def read() -> bytes:
        return encoded(drawn(3), "PNG")

    looked = await Pictures().look(read)
    assert looked is not None
    assert looked.picture[:2] == (400, 300)
    assert 0 < looked.picture.dhash < 1 << 64
    assert Picture.from_name(looked.picture.to_name()) == looked.picture


async def test_many_pictures_are_compared_as_one_by_one_and_others_have_their_turn(
    store: Store,
) -> None:
    rng = random.Random(3)
    count = 5 * COMPARED_AT_ONCE + 17
    pictures = {}
    for _ in range(count):
        near = sum(1 << rng.randrange(64) for _ in range(rng.randrange(16)))
        dhash = near % (1 << 64) if rng.random() < 0.02 else rng.getrandbits(64)
        pictures[rng.randbytes(32).hex()] = Picture(4, 3, dhash)
    ref = await store.upload(encoded(drawn(1)))
    store._pictures.update(pictures)
    store._pictures[ref.named.sha256] = Picture(4, 3, 0)
    looked: list[str] = []

    async def notes(sha256: str) -> list[str]:
        looked.append(sha256)
        return []

    async def find(name: MediaName) -> Record:  # without a wait, in which others had their turn
        return Record("ann", 1, "image/png")

    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    store._blobs.notes = notes  # type: ignore[method-assign]
    store.find = find  # type: ignore[method-assign]
    others = asyncio.create_task(turn())
    assert await store.similar("ann", False, ref.named, 14) == []
    others.cancel()
    assert turns >= 5
    rows = sorted((one.dhash.bit_count(), sha256) for sha256, one in store._pictures.items())
    wanted = [sha256 for differs, sha256 in rows if differs <= 14]
    assert 100 < len(wanted) <= NEAREST_MAX
    assert looked == wanted
    looked.clear()
    await store.similar("ann", False, ref.named, 32)
    assert looked == [sha256 for _, sha256 in rows[:NEAREST_MAX]]


async def test_whose_pictures_are_near_is_asked_so_often_and_no_more(store: Store) -> None:
    """Also where one picture has many uploaders: each has a note of his own."""
    ref = await store.upload(encoded(drawn(1)))
    for number in range(NEAREST_MAX + 50):
        record = Record(f"u{number}", ref.size, "image/png")
        key = f"key.{number:032x}"
        await store._blobs.write_note(ref.named.sha256, key, record.to_json())
    read: list[str] = []
    note = store._blobs.note

    async def counted(sha256: str, name: str) -> bytes | None:
        read.append(name)
        return await note(sha256, name)

    async def find(name: MediaName) -> Record:  # without a note of its own
        return Record("ann", ref.size, "image/png")

    store._blobs.note = counted  # type: ignore[method-assign]
    store.find = find  # type: ignore[method-assign]
    assert await store.similar("nobody", False, ref.named, 32) == []
    assert len(read) == NEAREST_MAX
