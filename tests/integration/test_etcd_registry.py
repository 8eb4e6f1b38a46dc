"""The registry on a real etcd that is killed, paused, wiped, filled, or that lets nobody in."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imcore import pki
from imcore.errors import (
    DiskFull,
    ImError,
    NotTrusted,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from imcore.runtime import SystemClock
from imctl.engines.binaries import Program
from imctl.target.places import free_port
from imctl.testing.etcd import EtcdProcess, running
from imctl.testing.lab import lab_region
from services.engines.disk import RealDisk
from services.engines.etcd import etcd_pb2 as pb
from services.engines.etcd.client import EtcdSettings
from services.engines.etcd.registry import EtcdRegistry
from services.node.config import NodeConfig, load
from services.node.engines import open_registry
from services.ports import WatchEvents

DEADLINE_S = 1.0
SLACK_S = 0.5  # a busy machine
WRITES = 60


@pytest.fixture
def settings(etcd_process: EtcdProcess) -> EtcdSettings:
    return etcd_process.settings(f"faults/{secrets.token_hex(4)}/")


@pytest.fixture
async def registry(settings: EtcdSettings) -> AsyncIterator[EtcdRegistry]:
    registry = EtcdRegistry(settings, "fra")
    yield registry
    await registry.close()


async def event(watch: AsyncIterator[WatchEvents]) -> WatchEvents:
    return await asyncio.wait_for(anext(watch), 3)


async def answers(registry: EtcdRegistry) -> None:
    """Until it does: a new connection may take gRPC's back-off of a second."""
    for _ in range(100):
        try:
            await registry.get(b"any")
            return
        except Unavailable:
            await asyncio.sleep(0.05)
    raise AssertionError("the registry does not come back")


async def cut_off(registry: EtcdRegistry) -> None:
    """Until gRPC has seen that the connection is gone: for an instant after the watch has ended it
    still writes into it, and of what it writes nobody knows the outcome, rightly."""
    for _ in range(100):
        try:
            await registry.get(b"any")
        except Unavailable as error:
            if "cannot be reached" in str(error):
                return
        await asyncio.sleep(0.01)
    raise AssertionError("the killed etcd is not missed")


async def test_a_killed_etcd_comes_back_with_all_it_had(
    etcd_process: EtcdProcess, registry: EtcdRegistry
) -> None:
    store = await registry.store_id()
    lease = await registry.grant_lease(3_000)
    await registry.put(b"leased", b"1", lease)
    watch = registry.watch(b"")
    seen = await event(watch)
    await registry.put(b"k", b"1")
    seen = await event(watch)
    await asyncio.to_thread(etcd_process.kill)
    with pytest.raises(Unavailable):
        await event(watch)
    await cut_off(registry)
    started = time.monotonic()
    for call in (registry.put(b"k", b"2"), registry.grant_lease(1_000), registry.get(b"k")):
        with pytest.raises(Unavailable, match=r"fra's etcd at 127.0.0.1:\d+ cannot be reached: .*"):
            await call  # nothing was sent: surely not done
    assert time.monotonic() - started < DEADLINE_S
    await asyncio.to_thread(etcd_process.start)
    await answers(registry)
    assert await registry.store_id() == store
    await registry.put(b"k", b"3")
    watch = registry.watch(b"", seen.revision + 1)
    resumed = await event(watch)
    assert not resumed.compacted and [e.value for e in resumed.events] == [b"3"]
    assert await registry.keep_alive(lease)
    assert await registry.get(b"leased") is not None


async def test_a_paused_etcd_costs_a_deadline_and_no_certainty(
    etcd_process: EtcdProcess, registry: EtcdRegistry
) -> None:
    await registry.put(b"k", b"1")
    lease = await registry.grant_lease(10_000)
    etcd_process.pause()
    try:
        for call, error in (
            (registry.get(b"k"), Unavailable),
            (registry.store_id(), Unavailable),
            (registry.keep_alive(lease), Unavailable),
            (registry.put(b"k", b"2"), OutcomeUnknown),
            (registry.compare_and_swap(b"new", 0, b"2"), OutcomeUnknown),
        ):
            started = time.monotonic()
            with pytest.raises(error):
                await call
            assert time.monotonic() - started < DEADLINE_S + SLACK_S
    finally:
        etcd_process.resume()
    await answers(registry)
    await asyncio.sleep(0.2)
    current = await registry.get(b"k")
    assert current is not None and current.value in (b"1", b"2")
    assert await registry.keep_alive(lease)


async def test_a_watch_of_a_paused_etcd_ends(
    etcd_process: EtcdProcess, registry: EtcdRegistry
) -> None:
    watch = registry.watch(b"")
    await event(watch)
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0.3)
    etcd_process.pause()
    try:
        with pytest.raises(Unavailable):
            await asyncio.wait_for(waiting, 12)
    finally:
        etcd_process.resume()
    await answers(registry)


async def test_a_compaction_under_a_watcher(
    etcd_process: EtcdProcess, registry: EtcdRegistry
) -> None:
    await registry.put(b"k", b"1")
    watch = registry.watch(b"k")
    before = await event(watch)
    await registry.put(b"k", b"2")
    assert [e.value for e in (await event(watch)).events] == [b"2"]
    for n in range(5):
        await registry.put(b"other", b"%d" % n)
    await etcd_process.compact()
    # One that is up to date does not notice; one that resumes from before reads everything.
    await registry.put(b"k", b"3")
    assert [e.value for e in (await event(watch)).events] == [b"3"]
    late = registry.watch(b"k", before.revision + 1)
    found = await event(late)
    assert found.compacted and [e.value for e in found.events] == [b"3"]
    await registry.put(b"k", b"4")
    assert [e.value for e in (await event(late)).events] == [b"4"]


async def test_a_wiped_etcd_is_another_store(
    etcd_program: Program, pki_dir: Path, tmp_path: Path
) -> None:
    with running(etcd_program, tmp_path, pki_dir) as process:
        registry = EtcdRegistry(process.settings("p/"), "fra")
        store = await registry.store_id()
        for n in range(20):
            await registry.put(b"k", b"%d" % n)
        head = await event(registry.watch(b""))
        process.kill()
        process.wipe()
        await asyncio.to_thread(process.start)
        await answers(registry)
        assert await registry.store_id() != store
        assert await registry.store_id() == await registry.store_id()
        await registry.put(b"k", b"new")
        found = await event(registry.watch(b"", head.revision + 1))
        assert found.compacted and [e.value for e in found.events] == [b"new"]
        await registry.close()


async def test_two_prefixes_are_two_registries(
    settings: EtcdSettings, registry: EtcdRegistry
) -> None:
    other = EtcdRegistry(replace(settings, prefix=settings.prefix[:-1] + "2/"), "iad")
    assert await registry.store_id() != await other.store_id()
    await registry.put(b"k", b"1")
    assert await other.range(b"") == [] and await other.get(b"k") is None
    await other.close()


async def test_the_next_endpoint_is_taken_when_one_is_away(settings: EtcdSettings) -> None:
    away = f"127.0.0.1:{free_port()}"
    registry = EtcdRegistry(replace(settings, endpoints=(away, *settings.endpoints)), "fra")
    await registry.put(b"k", b"1")
    started = time.monotonic()
    for _ in range(20):
        assert await registry.get(b"k") is not None
    assert time.monotonic() - started < DEADLINE_S
    await registry.close()


async def test_what_is_said_to_be_not_done_is_not_done(
    etcd_process: EtcdProcess, settings: EtcdSettings
) -> None:
    """Writes that only together go over the quota: etcd does some of them and says no space."""
    registry = EtcdRegistry(settings, "fra")
    value = b"x" * 200_000

    async def write(number: int) -> str:
        key = b"big/%d" % number
        await asyncio.sleep(number / 100)  # etcd counts what it holds every 0.1 s
        try:
            if number % 2:
                await registry.put(key, value)
            else:
                assert (await registry.compare_and_swap(key, 0, value))[0]
            return "done"
        except DiskFull:
            return "not done"
        except OutcomeUnknown:
            return "unknown"

    said = await asyncio.gather(*(write(number) for number in range(WRITES)))
    assert "done" in said and "not done" in said
    for number, outcome in enumerate(said):
        held = await registry.get(b"big/%d" % number) is not None
        assert outcome == "unknown" or held == (outcome == "done"), (number, outcome)
    for number in range(WRITES):
        await registry.put(b"big/%d" % number, None)  # removing is possible
    await etcd_process.empty()
    await registry.put(b"k", b"1")
    await registry.close()


async def test_too_large_a_value_is_refused(registry: EtcdRegistry) -> None:
    with pytest.raises(Refused, match="too large"):
        await registry.put(b"k", b"x" * 1_700_000)


# --------------------------------------------------------------------------------- who is who


async def refusal(settings: EtcdSettings) -> ImError:
    registry = EtcdRegistry(settings, "fra")
    try:
        with pytest.raises(Unavailable) as caught:
            await registry.put(b"k", b"1")
    finally:
        await registry.close()
    assert "\n" not in str(caught.value)
    return caught.value


async def test_another_ca_is_one_clear_error(settings: EtcdSettings, tmp_path: Path) -> None:
    pki.init(tmp_path / "other", {"fra": ()}, pki.utc_now(SystemClock().wall_ms()))
    error = await refusal(replace(settings, ca=(tmp_path / "other" / "ca.pem").read_bytes()))
    assert isinstance(error, NotTrusted)
    assert "certificate verify failed" in str(error).lower().replace("_", " ")
    assert "check ca_file, cert_file and key_file" in str(error)


async def test_no_certificate_and_anothers_are_not_let_in(
    etcd_process: EtcdProcess, settings: EtcdSettings
) -> None:
    await refusal(replace(settings, certificate=None, key=None))
    await refusal(replace(etcd_process.settings("x/", "sin"), prefix=settings.prefix))


async def test_users_and_passwords(etcd_program: Program, pki_dir: Path, tmp_path: Path) -> None:
    with running(etcd_program, tmp_path, pki_dir) as process:
        async with process.stubs() as on:
            await on.auth.UserAdd(pb.AuthUserAddRequest(name="root", password="secret"))
            await on.auth.UserGrantRole(pb.AuthUserGrantRoleRequest(user="root", role="root"))
            await on.auth.AuthEnable(pb.AuthEnableRequest())
        known = replace(process.settings("p/"), username="root", password="secret")
        assert "secret" not in repr(known)
        wrong = await refusal(replace(known, password="guess"))
        assert isinstance(wrong, NotTrusted) and "guess" not in str(wrong)
        assert "check username and password_file" in str(wrong)
        assert isinstance(await refusal(replace(known, username="", password="")), NotTrusted)
        registry = EtcdRegistry(known, "fra")
        lease = await registry.grant_lease(60_000)
        await registry.put(b"k", b"1", lease)
        watch = registry.watch(b"k")
        await event(watch)
        await registry.put(b"k", b"2", lease)
        assert [e.value for e in (await event(watch)).events] == [b"2"]
        process.kill()  # it forgets the tokens that it gave out
        await asyncio.to_thread(process.start)
        await answers(registry)
        assert await registry.keep_alive(lease)
        await registry.put(b"k", b"3")
        await registry.close()


async def test_an_etcd_without_users_says_so(settings: EtcdSettings) -> None:
    error = await refusal(replace(settings, username="root", password="secret"))
    assert isinstance(error, NotTrusted) and "authentication is not enabled" in str(error)


async def test_a_node_does_not_start_where_nobody_trusts_it(
    etcd_process: EtcdProcess, pki_dir: Path, tmp_path: Path
) -> None:
    pki.init(tmp_path / "other", {"fra": ()}, pki.utc_now(SystemClock().wall_ms()))

    def with_etcd(ca: Path) -> NodeConfig:
        def edit(spec: dict[str, Any]) -> None:
            spec["idcs"][0]["engines"] = {
                "registry": {
                    "etcd": {
                        "endpoints": [etcd_process.server.address],
                        "ca_file": str(ca),
                        "cert_file": str(pki_dir / "fra.pem"),
                        "key_file": str(pki_dir / "fra.key"),
                        "prefix": f"node/{tmp_path.name}",
                    }
                }
            }

        return load(lab_region(tmp_path, edit), "fra", tmp_path, pki_dir, None, False)

    async with contextlib.AsyncExitStack() as stack:
        wanted = (RealDisk(), SystemClock(), random.Random(), stack)
        with pytest.raises(NotTrusted, match="check ca_file"):
            await open_registry(with_etcd(tmp_path / "other" / "ca.pem"), *wanted)
        registry = await open_registry(with_etcd(pki_dir / "ca.pem"), *wanted)
        assert len(await registry.store_id()) == 16
