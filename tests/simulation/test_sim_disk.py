"""The simulated disk: what survives a crash of a process, and what a loss of power."""

from __future__ import annotations

from pathlib import Path

import pytest

from imcore.errors import DiskFull, Unavailable
from services.sim.disk import SimDisk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "disk"


def disk_in(folder: Path, seed: int = 1) -> SimDisk:
    disk = SimDisk(folder, str(seed))
    disk.make_folder(str(folder))
    return disk


def test_a_crash_of_the_process_loses_nothing_and_gives_up_its_locks(folder: Path) -> None:
    disk = disk_in(folder)
    disk.lock(f"{folder}/lock", "the test")
    with pytest.raises(Unavailable):
        disk.lock(f"{folder}/lock", "the test")
    disk.open(f"{folder}/log").append(b"written")
    disk.crashed()
    assert disk.read(f"{folder}/log") == b"written"
    disk.lock(f"{folder}/lock", "the test")


def test_a_loss_of_power_tears_what_was_not_synced_and_nothing_else(folder: Path) -> None:
    left = set()
    for seed in range(40):
        disk = disk_in(folder / str(seed), seed)
        path = f"{folder}/{seed}/log"
        file = disk.open(path)
        file.append(b"synced")
        file.sync()
        disk.sync_folder(f"{folder}/{seed}")
        file.append(b"-torn")
        disk.lost_power()
        left.add(disk.read(path))
    assert left == {b"synced-torn"[:n] for n in range(6, 12)}


def test_a_name_survives_once_its_folder_is_synced(folder: Path) -> None:
    outcomes = set()
    for seed in range(40):
        at = folder / str(seed)
        disk = disk_in(at, seed)
        disk.write_whole(f"{at}/whole", b"old")
        disk.open(f"{at}/new").sync()
        disk.rename(f"{at}/whole", f"{at}/moved")
        disk.remove(f"{at}/new")
        disk.lost_power()
        names = tuple(disk.list(str(at)))
        outcomes.add(names)
        assert disk.read(f"{at}/{'moved' if 'moved' in names else 'whole'}") == b"old"
    # In order: none of it, the new file, the rename as well, the removal as well.
    assert outcomes == {("whole",), ("new", "whole"), ("moved", "new"), ("moved",)}


def test_write_whole_is_the_former_file_or_the_new_one_and_the_new_one_once_done(
    folder: Path,
) -> None:
    for seed in range(10):
        at = folder / str(seed)
        disk = disk_in(at, seed)
        disk.write_whole(f"{at}/file", b"one")
        disk.write_whole(f"{at}/file", b"two")
        disk.lost_power()
        assert disk.read(f"{at}/file") == b"two"


def test_a_full_disk_and_a_flipped_bit(folder: Path) -> None:
    disk = disk_in(folder)
    file = disk.open(f"{folder}/a.seg")
    file.append(bytes(500))
    disk.faults.full = True
    with pytest.raises(DiskFull):
        file.append(b"more")
    assert disk.flip() == "a.seg"
    assert sum(byte.bit_count() for byte in disk.read(f"{folder}/a.seg")) == 1
