"""Which copies of other IDCs' files make room for others, and which stay."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imcore.errors import Refused, Unavailable
from imcore.media import Declared, MediaName
from imcore.pki import load_region_keys
from imcore.region.model import Media, Messages
from imcore.runtime import SystemClock
from services.engines.blob_files import FileBlobs
from services.engines.disk import RealDisk
from services.media.store import IN_USE_S, Begun, Kept, MediaStore
from services.media.testing import Near

SIZE = 1_000
FILES = [bytes([number]) * SIZE for number in range(5)]


class MovedClock(SystemClock):
    moved_s = 0.0

    def now(self) -> float:
        return super().now() + self.moved_s


class Idc:
    """With room for two copies of ``FILES``."""

    def __init__(self, folder: Path, pki_dir: Path, name: str) -> None:
        self.name, self.folder = name, folder / name
        self.threads = ThreadPoolExecutor(2)
        self.keys = load_region_keys(pki_dir)
        self.clock = MovedClock()
        self.peers: dict[str, Near] = {}
        self.near = Near(lambda: self.store)

    async def start(self) -> None:
        blobs = FileBlobs(str(self.folder), RealDisk(), self.threads)
        settings = Media(copies_bytes_max=2 * SIZE)
        self.store = MediaStore(
            self.name, blobs, settings, Messages(), self.keys, self.clock, self.peers
        )
        await self.store.load()

    async def upload(self, data: bytes, uid: str = "ann") -> MediaName:
        declared = Declared(hashlib.sha256(data).hexdigest(), len(data), "a/b")
        begun = await self.store.begin(uid, declared)
        if isinstance(begun, Kept):
            return begun.ref.named
        assert isinstance(begun, Begun)
        await self.store.put(uid, begun.upload, 0, data)
        return (await self.store.complete(uid, begun.upload)).ref.named

    async def content(self, name: MediaName) -> bytes:
        record = await self.store.find(name)
        return b"".join([each async for each in self.store.read(name, 0, record.size, 999)])

    async def evict(self) -> None:
        """When all that was read just now has been read long ago."""
        self.clock.moved_s += IN_USE_S
        await self.store.evict()

    async def holds(self, names: list[MediaName]) -> list[bool]:
        return [await self.store.held(name) is not None for name in names]


class Region:
    def __init__(self, folder: Path, pki_dir: Path) -> None:
        self.idcs = [Idc(folder, pki_dir, name) for name in ("fra", "iad", "sin")]
        for idc in self.idcs:
            idc.peers |= {other.name: other.near for other in self.idcs if other is not idc}


@pytest.fixture
async def region(tmp_path: Path, pki_dir: Path) -> AsyncIterator[Region]:
    found = Region(tmp_path, pki_dir)
    for idc in found.idcs:
        await idc.start()
    yield found
    for idc in found.idcs:
        idc.threads.shutdown()


async def test_the_copy_that_was_not_asked_for_longest_goes_and_comes_back(region: Region) -> None:
    fra, iad, _ = region.idcs
    names = [await fra.upload(data) for data in FILES]
    for name in names[:3]:
        await iad.content(name)
        iad.clock.moved_s += 1
    await iad.content(names[0])
    await iad.store.evict()
    assert await iad.holds(names[:3]) == [True] * 3  # they are in use
    await iad.evict()
    assert await iad.holds(names[:3]) == [True, False, True]
    assert (iad.store.counters.evicted, iad.store.copied, iad.store.stored) == (1, 2_000, 2_000)
    assert not list(iad.folder.rglob(f"{names[1].sha256}/*"))
    assert await iad.content(names[1]) == FILES[1]
    assert iad.store.counters.fetched == 4
    # It is known what is a copy in a later life too.
    await iad.start()
    await iad.evict()
    assert (iad.store.counters.evicted, iad.store.files) == (1, 2)
    assert await fra.holds(names) == [True] * 5 and fra.store.copied == 0


async def test_what_was_uploaded_here_stays_whoever_else_had_it_before(region: Region) -> None:
    fra, iad, _ = region.idcs
    names = [await fra.upload(data) for data in FILES]
    for name in names:
        await iad.content(name)
    # By the same user, who need not send it again, and by another one, who must.
    again = [await iad.upload(FILES[0]), await iad.upload(FILES[1], "bob")]
    assert again[0].idc == "iad" and iad.store.copied == 3_000
    await iad.evict()
    await iad.start()
    await iad.evict()
    assert await iad.holds(again) == [True, True]
    assert sum(await iad.holds(names[2:])) == 2


async def test_a_copy_that_is_made_to_stay_takes_room_of_who_makes_it(region: Region) -> None:
    fra, iad, _ = region.idcs
    for idc in (fra, iad):
        idc.store.settings = idc.store.settings.model_copy(update={"user_bytes_max": 2 * SIZE})
    first = [await fra.upload(data) for data in FILES[:2]]
    with pytest.raises(Refused, match="2000 of 2000 bytes"):
        await fra.upload(FILES[2])
    others = [await fra.upload(data, "bob") for data in FILES[2:4]]
    for name in (*first, *others):
        await iad.content(name)  # as copies they are in nobody's share
    assert [(await iad.upload(data)).idc for data in FILES[:2]] == ["iad", "iad"]
    with pytest.raises(Refused, match="2000 of 2000 bytes"):
        await iad.upload(FILES[4])
    # What was announced in vain is said again, and changes nothing.
    await iad.store.delete("ann", False, first[0])
    await iad.content(first[0])
    await iad.upload(FILES[4])
    with pytest.raises(Refused, match="2000 of 2000 bytes"):
        await iad.upload(FILES[0])
    assert iad.store.copied == 3 * SIZE


async def test_what_an_idc_was_asked_to_keep_stays(region: Region) -> None:
    fra, iad, _ = region.idcs
    names = [await fra.upload(data) for data in FILES]
    await fra.peers["iad"].keep(names[0], 1.0)
    for name in names:
        await iad.content(name)
    await iad.evict()
    assert (await iad.holds(names))[0] and iad.store.files == 3


async def test_the_only_copy_never_goes(region: Region) -> None:
    """Two IDCs have copies; neither takes the other's for a reason to let its own go."""
    fra, iad, sin = region.idcs
    names = [await fra.upload(data) for data in FILES]
    for name in names:
        await iad.content(name)
        await sin.content(name)
    fra.near.up = False
    for idc in (iad, sin):
        await idc.evict()
        assert await idc.holds(names) == [True] * 5
    fra.near.up = True
    for name in names[:2]:
        await fra.store.delete("ann", False, name)
    await iad.evict()
    assert await iad.holds(names) == [True, True, False, False, False]


async def test_a_file_of_two_users_goes_when_both_can_have_it_elsewhere(region: Region) -> None:
    fra, iad, sin = region.idcs
    names = [await fra.upload(FILES[0]), await sin.upload(FILES[0], "bob")]
    for name in names:
        await iad.content(name)
    for data in FILES[1:3]:
        await iad.content(await fra.upload(data))
    sin.near.up = False
    await iad.evict()
    assert await iad.holds(names) == [True, True] and iad.store.counters.evicted == 1
    await iad.content(await fra.upload(FILES[1]))
    sin.near.up = True
    iad.clock.moved_s += IN_USE_S
    await iad.content(await fra.upload(FILES[2]))
    await iad.evict()
    assert await iad.holds(names) == [False, False]


async def test_a_reader_of_what_goes_meanwhile_is_told_to_come_again(region: Region) -> None:
    fra, iad, _ = region.idcs
    names = [await fra.upload(data) for data in FILES[:3]]
    for name in names:
        await iad.store.find(name)
    chunks = iad.store.read(names[0], 0, SIZE, 100)
    assert len(await anext(chunks)) == 100
    iad.clock.moved_s += 1
    for name in names[1:]:
        await iad.store.find(name)
    await iad.evict()
    with pytest.raises(Unavailable):
        await anext(chunks)
    assert await iad.content(names[0]) == FILES[0]
