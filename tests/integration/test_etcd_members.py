"""The registry on an etcd of three members: what one of them costs, and what two do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imcore.errors import ImError, OutcomeUnknown, Unavailable
from imctl.engines.binaries import Program
from imctl.testing.etcd import EtcdProcess, running_members
from services.engines.etcd import etcd_pb2 as pb
from services.engines.etcd.registry import EtcdRegistry
from services.ports import Registry

ELECTION_S = 6.0  # etcd's own limit is 1 to 2 s; a busy machine


@pytest.fixture(scope="module")
def members(
    etcd_program: Program, pki_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[EtcdProcess]]:
    with running_members(etcd_program, tmp_path_factory.mktemp("members"), pki_dir) as members:
        yield members


@pytest.fixture
async def registry(
    members: list[EtcdProcess], request: pytest.FixtureRequest
) -> AsyncIterator[EtcdRegistry]:
    endpoints = tuple(member.server.address for member in members)
    settings = replace(members[0].settings(f"{request.node.name}/"), endpoints=endpoints)
    registry = EtcdRegistry(settings, "fra")
    yield registry
    await registry.close()


async def leader_of(members: list[EtcdProcess]) -> EtcdProcess:
    for member in members:
        async with member.stubs() as on:
            status = await on.maintenance.Status(pb.StatusRequest())
        if status.leader == status.header.member_id:
            return member
    raise AssertionError("no leader")


async def counted(registry: Registry, attempts: int) -> tuple[set[int], set[int], float]:
    """Compare-and-swap on one key, a number higher each time: those that were done for sure, those
    that may have been, and the longest time without one (s)."""
    done: set[int] = set()
    unknown: set[int] = set()
    longest, last = 0.0, time.monotonic()
    for number in range(1, attempts + 1):
        try:
            current = await registry.get(b"count")
            expected = current.mod_revision if current else 0
            if (await registry.compare_and_swap(b"count", expected, b"%d" % number))[0]:
                await registry.put(b"seen/%d" % number, b"")
                done.add(number)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
        except OutcomeUnknown:
            unknown.add(number)
        except Unavailable:
            await asyncio.sleep(0.02)
    return done, unknown, longest


@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_a_leader_that_goes_costs_an_election(
    how: str,
    members: list[EtcdProcess],
    registry: EtcdRegistry,
    figures: Callable[[str, object], None],
) -> None:
    store = await registry.store_id()
    leader = await leader_of(members)
    counting = asyncio.ensure_future(counted(registry, 1_500))
    await asyncio.sleep(0.3)
    (leader.kill if how == "killed" else leader.pause)()
    try:
        done, unknown, longest = await asyncio.wait_for(counting, 60)
    finally:
        if how == "killed":
            await asyncio.to_thread(leader.start)
        else:
            leader.resume()
    assert len(done) > 300 and longest < ELECTION_S
    figures(f"longest time without a registry write, leader {how}", f"{longest:.2f} s")
    seen = {int(row.key.removeprefix(b"seen/")) for row in await registry.range(b"seen/")}
    assert done <= seen <= done | unknown
    assert await registry.store_id() == store


async def test_a_watch_goes_on_at_another_member(
    members: list[EtcdProcess], registry: EtcdRegistry
) -> None:
    values: list[bytes] = []
    began = asyncio.Event()

    async def follow() -> None:
        revision = 0
        while True:
            with contextlib.suppress(Unavailable):
                async for news in registry.watch(b"k", revision + 1 if revision else 0):
                    revision = news.revision
                    values.extend(row.value for row in news.events)
                    began.set()
            await asyncio.sleep(0.05)

    following = asyncio.ensure_future(follow())
    await asyncio.wait_for(began.wait(), 5)
    member = members[0]  # the one that the watch is on
    written = []
    for number in range(100):
        if number == 30:
            await asyncio.to_thread(member.kill)
        with contextlib.suppress(ImError):
            await registry.put(b"k", b"%d" % number)
            written.append(b"%d" % number)
        await asyncio.sleep(0.01)
    await asyncio.to_thread(member.start)
    for _ in range(200):
        if values[-1:] == written[-1:]:
            break
        await asyncio.sleep(0.05)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert [value for value in values if value in written] == written


async def test_without_a_majority_nothing_is_done_and_nothing_is_claimed(
    members: list[EtcdProcess], registry: EtcdRegistry
) -> None:
    await registry.put(b"k", b"1")
    for member in members[1:]:
        await asyncio.to_thread(member.kill)
    try:
        with pytest.raises(Unavailable):
            await registry.get(b"k")  # linearizable: a member alone cannot say
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await registry.put(b"k", b"2")
    finally:
        for member in members[1:]:
            member.begin()
        for member in members[1:]:
            await asyncio.to_thread(member.wait)
    deadline = time.monotonic() + ELECTION_S
    while True:
        try:
            current = await registry.get(b"k")
            break
        except Unavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    assert current is not None and current.value in (b"1", b"2")
