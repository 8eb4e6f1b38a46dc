"""What every Blobs adapter must do. A further adapter adds its factory to ADAPTERS."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imcore.errors import DiskFull
from imcore.runtime import SystemClock
from imctl.testing.s3 import S3Process
from services.engines.blob_files import FileBlobs
from services.engines.disk import Disk, RealDisk
from services.engines.s3.blobs import S3Blobs
from services.engines.s3.client import S3Client
from services.ports import Blobs
from services.sim.disk import SimDisk

DATA = bytes(range(256)) * 17
SHA = hashlib.sha256(DATA).hexdigest()
Open = Callable[[], Blobs]  # again on the same: a later life


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


DISKS = ["files", "simulated-disk"]
ADAPTERS = [*DISKS, "s3"]


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return RealDisk() if request.param == "files" else SimDisk(tmp_path, "contract")


@pytest.fixture(params=ADAPTERS)
async def opened(
    request: pytest.FixtureRequest, tmp_path: Path, threads: ThreadPoolExecutor
) -> AsyncIterator[Open]:
    if request.param != "s3":
        disk = RealDisk() if request.param == "files" else SimDisk(tmp_path, "contract")
        yield lambda: FileBlobs(str(tmp_path / "media"), disk, threads)
        return
    process: S3Process = request.getfixturevalue("s3_process")
    settings = process.settings(f"contract/{secrets.token_hex(4)}/")
    lives: list[S3Blobs] = []

    def again() -> Blobs:
        lives.append(S3Blobs(S3Client(settings, SystemClock())))
        return lives[-1]

    yield again
    for life in lives:
        await life.close()


async def stored(blobs: Blobs, data: bytes = DATA) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    await blobs.begin("u", b"note")
    await blobs.put("u", 0, data)
    assert await blobs.complete("u", sha256)
    return sha256


async def test_an_upload_goes_on_in_a_later_life_where_it_ended(opened: Open) -> None:
    blobs = opened()
    assert await blobs.uploads() == {}
    await blobs.begin("u-1", b"who and what")
    await blobs.put("u-1", 0, DATA[:1000])
    again = opened()
    assert await again.uploads() == {"u-1": (b"who and what", 1000)}
    assert await again.uploaded("u-1") == 1000
    assert await again.files() == {}
    await again.put("u-1", 1000, DATA[1000:])
    assert await again.complete("u-1", SHA)
    assert await again.uploads() == {}
    later = opened()
    assert await later.files() == {SHA: len(DATA)}
    assert await later.read(SHA, 0, len(DATA) + 1) == DATA


@pytest.mark.parametrize("offset", [0, 999, 1001])
async def test_a_chunk_at_another_offset_is_not_taken(opened: Open, offset: int) -> None:
    blobs = opened()
    await blobs.begin("u", b"")
    await blobs.put("u", 0, DATA[:1000])
    with pytest.raises(ValueError, match="1000"):
        await blobs.put("u", offset, b"x")
    assert await blobs.uploaded("u") == 1000


async def test_other_bytes_than_were_named_are_no_file(opened: Open) -> None:
    blobs = opened()
    await blobs.begin("u", b"")
    await blobs.put("u", 0, DATA + b"x")
    assert not await blobs.complete("u", SHA)
    assert (await blobs.uploads(), await blobs.files()) == ({}, {})


async def test_other_bytes_than_a_stored_file_has_are_not_taken_for_it(opened: Open) -> None:
    blobs = opened()
    await stored(blobs)
    for other in (DATA[:-1] + b"x", b""):
        await blobs.begin("u", b"")
        await blobs.put("u", 0, other)
        assert not await blobs.complete("u", SHA)
    assert (await blobs.uploads(), await blobs.files()) == ({}, {SHA: len(DATA)})
    assert await blobs.read(SHA, 0, len(DATA)) == DATA


async def test_ranges_end_with_the_file(opened: Open) -> None:
    blobs = opened()
    await stored(blobs)
    assert await blobs.read(SHA, 10, 5) == DATA[10:15]
    assert await blobs.read(SHA, len(DATA) - 1, 100) == DATA[-1:]
    assert await blobs.read(SHA, len(DATA), 1) == b""
    with pytest.raises(FileNotFoundError):
        await blobs.read("0" * 64, 0, 1)


async def test_the_same_bytes_are_stored_once(opened: Open) -> None:
    blobs = opened()
    await stored(blobs)
    await blobs.write_note(SHA, "a", b"kept")
    await stored(blobs)
    assert await blobs.files() == {SHA: len(DATA)}
    assert await blobs.note(SHA, "a") == b"kept"
    assert await stored(blobs, b"") == hashlib.sha256(b"").hexdigest()
    assert await blobs.read(hashlib.sha256(b"").hexdigest(), 0, 1) == b""


async def test_notes_may_come_first_and_are_replaced_and_removed(opened: Open) -> None:
    blobs = opened()
    assert (await blobs.note(SHA, "a"), await blobs.notes(SHA)) == (None, [])
    await blobs.write_note(SHA, "b.1", b"1")
    await blobs.write_note(SHA, "a", b"1")
    await blobs.write_note(SHA, "a", b"2")
    assert await blobs.files() == {}
    await stored(blobs)
    assert await opened().notes(SHA) == ["a", "b.1"]
    assert await opened().note(SHA, "a") == b"2"
    await blobs.remove_note(SHA, "a")
    await blobs.remove_note(SHA, "a")
    assert await blobs.notes(SHA) == ["b.1"]


async def test_what_is_deleted_or_abandoned_is_gone(opened: Open) -> None:
    blobs = opened()
    await blobs.delete(SHA)
    await stored(blobs)
    await blobs.write_note(SHA, "a", b"1")
    await blobs.delete(SHA)
    assert (await blobs.files(), await blobs.notes(SHA)) == ({}, [])
    await blobs.begin("u", b"")
    await blobs.put("u", 0, b"x")
    await blobs.abandon("u")
    await blobs.abandon("u")
    assert await blobs.uploads() == {}


async def test_all_notes_are_found_at_once(opened: Open) -> None:
    blobs = opened()
    assert await blobs.noted() == {}
    other = await stored(blobs, b"other")
    await stored(blobs, b"without")
    await stored(blobs)
    await blobs.write_note(SHA, "a", b"1")
    await blobs.write_note(SHA, "picture.640.480.00ff00ff00ff00ff", b"")
    await blobs.write_note(other, "a", b"4")
    assert await opened().noted() == {
        SHA: {"a", "picture.640.480.00ff00ff00ff00ff"},
        other: {"a"},
    }


async def test_what_is_begun_again_has_nothing_of_what_was_abandoned(opened: Open) -> None:
    blobs = opened()
    await blobs.begin("u", b"first")
    await blobs.put("u", 0, b"other bytes")
    await blobs.abandon("u")
    await blobs.begin("u", b"second")
    assert await blobs.uploaded("u") == 0
    assert await opened().uploads() == {"u": (b"second", 0)}
    await blobs.put("u", 0, DATA)
    assert await blobs.complete("u", SHA)


async def test_an_upload_of_many_chunks_is_one_file(opened: Open) -> None:
    blobs = opened()
    data = DATA * 100
    sha256 = hashlib.sha256(data).hexdigest()
    await blobs.begin("u", b"")
    for at in range(0, len(data), 30_000):
        await blobs.put("u", at, data[at : at + 30_000])
    assert await opened().uploaded("u") == len(data)
    assert await blobs.complete("u", sha256)
    assert await opened().files() == {sha256: len(data)}
    assert await opened().read(sha256, 29_990, 50_000) == data[29_990:79_990]


@pytest.mark.parametrize("disk", DISKS, indirect=True)
async def test_a_full_disk_refuses_and_changes_nothing(
    disk: Disk, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    blobs = FileBlobs(str(tmp_path / "media"), disk, threads)
    await blobs.begin("u", b"")
    await blobs.put("u", 0, DATA[:1000])
    disk.faults.full = True
    with pytest.raises(DiskFull):
        await blobs.put("u", 1000, DATA[1000:])
    with pytest.raises(DiskFull):
        await blobs.begin("v", b"")
    with pytest.raises(DiskFull):
        await blobs.write_note(SHA, "a", b"1")
    assert await blobs.uploaded("u") == 1000
    assert (list(await blobs.uploads()), await blobs.notes(SHA)) == (["u"], [])
    disk.faults.full = False
    await blobs.put("u", 1000, DATA[1000:])
    assert await blobs.complete("u", SHA)


@pytest.mark.parametrize("seed", range(20))
async def test_a_chunk_that_was_answered_survives_a_power_loss(
    tmp_path: Path, threads: ThreadPoolExecutor, seed: int
) -> None:
    disk = SimDisk(tmp_path, f"chunk {seed}")
    blobs = FileBlobs(str(tmp_path / "media"), disk, threads)
    await blobs.begin("u", b"note")
    assert await blobs.uploaded("u") == 0
    for at in range(seed % 3 + 1):
        await blobs.put("u", at * 100, DATA[at * 100 : at * 100 + 100])
    disk.lost_power()
    found = await FileBlobs(str(tmp_path / "media"), disk, threads).uploads()
    assert found["u"] == (b"note", seed % 3 * 100 + 100)


@pytest.mark.parametrize("disk", DISKS, indirect=True)
async def test_nothing_is_left_of_what_broke_off_or_is_gone(
    disk: Disk, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    folder = tmp_path / "media"
    blobs = FileBlobs(str(folder), disk, threads)
    await blobs.begin("u", b"note")
    await blobs.put("u", 0, DATA[:1000])
    disk.faults.full = True
    for name in "vwx":  # users announce files, and are refused
        with pytest.raises(DiskFull):
            await blobs.begin(name, b"note")
    disk.faults.full = False
    (folder / "uploads" / "gone.part").write_bytes(DATA)  # whoever ended it lost power
    later = FileBlobs(str(folder), disk, threads)
    assert list(await later.uploads()) == ["u"]
    assert sorted(os.listdir(folder / "uploads")) == ["u.note", "u.part"]
    await later.put("u", 1000, DATA[1000:])
    assert await later.complete("u", SHA)
    await later.write_note(SHA, "a", b"1")
    await later.delete(SHA)
    await later.delete(SHA)
    assert [path for path in folder.glob("files/*/*")] == []
