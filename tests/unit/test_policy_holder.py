"""The policy is on disk before anybody sees it, and a disk that takes nothing is no secret."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from imcore.errors import Damaged
from imcore.region.load import load_region
from services.engines.disk import RealDisk
from services.policy.document import Policy, initial
from services.policy.holder import PolicyHolder

REGION = load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml")


def policy(epoch: int) -> Policy:
    return replace(initial(REGION, 0), epoch=epoch)


def epoch(holder: PolicyHolder) -> int:
    assert holder.policy is not None
    return holder.policy.epoch


async def test_a_restart_serves_no_lower_epoch(tmp_path: Path) -> None:
    path = tmp_path / "made" / "policy.json"
    holder = PolicyHolder(path, RealDisk())
    assert holder.stale
    assert await holder.offer(policy(3))
    assert not holder.stale
    again = PolicyHolder(path, RealDisk())
    assert (epoch(again), again.stale) == (3, True)
    assert not await again.offer(policy(2))
    assert (epoch(again), again.stale) == (3, True)  # an older one confirms nothing
    assert not await again.offer(policy(3))
    assert not again.stale


async def test_on_a_full_disk_the_former_policy_stays_flagged_and_with_an_alarm(
    tmp_path: Path,
) -> None:
    disk = RealDisk()
    path = tmp_path / "policy.json"
    holder = PolicyHolder(path, disk)
    await holder.offer(policy(3))
    disk.faults.full = True
    assert not await holder.offer(policy(4))
    assert (epoch(holder), holder.stale) == (3, True)
    assert "epoch 4 cannot be kept" in holder.alarm
    assert epoch(PolicyHolder(path, disk)) == 3  # nothing half-written either
    disk.faults.full = False
    assert await holder.offer(policy(4))
    assert (epoch(holder), holder.stale, holder.alarm) == (4, False, "")


async def test_a_folder_that_cannot_be_written_is_no_different(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    holder = PolicyHolder(tmp_path / "file2", RealDisk())
    holder._path = tmp_path / "file" / "policy.json"
    assert not await holder.offer(policy(4))
    assert holder.policy is None
    assert holder.stale and holder.alarm


async def test_a_slow_disk_does_not_hold_up_the_loop(tmp_path: Path) -> None:
    disk = RealDisk()
    disk.faults.fsync_delay_ms = 300
    holder = PolicyHolder(tmp_path / "policy.json", disk)
    offering = asyncio.create_task(holder.offer(policy(3)))
    longest, last = 0.0, time.monotonic()
    while not offering.done():
        assert holder.policy is None  # not seen before it is kept
        await asyncio.sleep(0.01)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert longest < 0.25
    assert await offering


async def test_a_cancelled_offer_leaves_no_write_behind(tmp_path: Path) -> None:
    disk = RealDisk()
    disk.faults.fsync_delay_ms = 200
    path = tmp_path / "policy.json"
    holder = PolicyHolder(path, disk)
    offering = asyncio.create_task(holder.offer(policy(3)))
    await asyncio.sleep(0.05)
    offering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await offering
    assert epoch(PolicyHolder(path, disk)) == 3


def test_a_file_that_is_no_policy_is_named(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text("{}")
    with pytest.raises(Damaged, match=r"policy\.json"):
        PolicyHolder(path, RealDisk())
