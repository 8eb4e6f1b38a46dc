"""Several cores of one IDC: one serves, and another takes its place when it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from imcore import pki
from imcore.errors import BadInput, OutcomeUnknown, StaleWriter, Unavailable
from imcore.runtime import ManualClock
from imctl.engines.binaries import Program
from imctl.errors import Failed
from imctl.target import process
from imctl.target.local import Local
from imctl.target.runfile import RunFile
from imctl.testing import etcd
from imctl.testing.cli import imctl
from imctl.testing.lab import REGION
from imctl.testing.onenode import running
from services.core_lock import LOOK_S, hold_folder, serving_pid, waiting_pid
from services.engines.disk import RealDisk
from services.engines.etcd.registry import EtcdRegistry
from services.engines.registry_store import RegistryStore
from services.node.config import load
from services.node.node import Node
from services.node.roles import Roles
from services.node.standby import ASK_S, CORE, LEASE_MS, REFRESH_S, CoreLease, audit_writer
from services.sdk.testing.app import eventually

SOON_S = 20.0

HOLD = """
import asyncio, os, sys
from pathlib import Path
from services.core_lock import hold_folder
from services.engines.disk import RealDisk

async def hold():
    held = await hold_folder(Path(sys.argv[1]), RealDisk(), os.getpid(), "child")
    print("held", flush=True)
    await asyncio.sleep(60)

asyncio.run(hold())
"""


@contextlib.contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder, or stands by."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


async def not_yet(task: asyncio.Task[Any], seconds: float) -> None:
    await asyncio.sleep(seconds)
    assert not task.done()


# ------------------------------------------------------------------------------- the folder


async def test_who_stands_by_waits_for_a_paused_core_and_takes_over_from_a_dead_one(
    tmp_path: Path,
) -> None:
    with holder(tmp_path) as serves:
        assert await asyncio.to_thread(said, serves) == "held"
        assert serving_pid(tmp_path) == serves.pid
        serves.send_signal(signal.SIGSTOP)
        waits = asyncio.create_task(hold_folder(tmp_path, RealDisk(), os.getpid(), "mine"))
        await not_yet(waits, 4 * LOOK_S)  # it would write behind whoever came after it
        assert waiting_pid(tmp_path) == os.getpid()
        serves.kill()
        held = await asyncio.wait_for(waits, SOON_S)
    assert serving_pid(tmp_path) == os.getpid()
    assert held.former == "child"
    with holder(tmp_path) as other:
        nothing = asyncio.create_task(asyncio.to_thread(said, other))
        await not_yet(nothing, 1.0)
        held.lock.close()
        assert await asyncio.wait_for(nothing, SOON_S) == "held"


def test_each_folder_has_an_audit_chain_of_its_own() -> None:
    assert [audit_writer("fra", n) for n in (1, 2)] == ["fra", "fra.2"]


def test_nobody_serves_where_nobody_did(tmp_path: Path) -> None:
    assert serving_pid(tmp_path) == waiting_pid(tmp_path) == 0
    for text in ("", "1\n", "one name\n", "1 2 3\n"):
        (tmp_path / "core.lock").write_text(text)
        assert serving_pid(tmp_path) == 0


# -------------------------------------------------------------------------------- the lease


class Doubtful:
    """A registry whose answers are lost: ``lost`` names the calls that are done all the same."""

    def __init__(self, store: RegistryStore) -> None:
        self._store = store
        self.lost: set[str] = set()
        self.away = False

    def __getattr__(self, name: str) -> Any:
        async def called(*given: Any, **named: Any) -> Any:
            if self.away:
                raise Unavailable("the registry does not answer")
            answer = await getattr(self._store, name)(*given, **named)
            if name in self.lost:
                self.lost.discard(name)
                raise OutcomeUnknown("the answer was lost")
            return answer

        return called


class Leases:
    def __init__(self, store: RegistryStore, clock: ManualClock) -> None:
        self.store, self._clock = store, clock
        self._kept = 0  # so often was one renewed
        keep_alive = store.keep_alive

        async def counted(lease: int) -> bool:
            lives = await keep_alive(lease)
            self._kept += 1
            return lives

        store.keep_alive = counted  # type: ignore[method-assign]

    async def elapse(self, seconds: float) -> None:
        self._clock.advance(seconds)
        await self.store.expire()

    async def renewed(self, task: asyncio.Task[Any]) -> None:
        """It was, once more, by this task, which goes on."""
        before = self._kept
        await eventually(lambda: self._kept > before, SOON_S)
        assert not task.done()


@pytest.fixture
async def leases(tmp_path: Path) -> AsyncIterator[Leases]:
    clock = ManualClock()
    store = await RegistryStore.open(str(tmp_path / "r"), RealDisk(), clock, random.Random(1))
    yield Leases(store, clock)
    await store.close()


async def test_the_lease_is_had_by_one_core_until_it_ends(leases: Leases) -> None:
    first, second = CoreLease(leases.store, "1"), CoreLease(leases.store, "2")
    await first.take()
    waits = asyncio.create_task(second.take())
    await not_yet(waits, 3 * ASK_S)
    await leases.elapse(LEASE_MS / 1000 + 0.1)  # nobody kept it: its core is dead, or paused
    await asyncio.wait_for(waits, SOON_S)
    lost = asyncio.Event()
    await asyncio.wait_for(first.keep(lost.set), SOON_S)
    assert lost.is_set(), "the former one must hear that it serves no more"

    kept = asyncio.create_task(second.keep(lost.clear))
    for _ in range(4):
        await leases.elapse(0.9 * LEASE_MS / 1000)
        await leases.renewed(kept)
    third = asyncio.create_task(CoreLease(leases.store, "3").take())
    await not_yet(third, 2 * ASK_S)
    kept.cancel()
    await second.give_up()
    await asyncio.wait_for(third, SOON_S)


async def test_a_lease_that_ended_for_nobody_is_taken_again(leases: Leases) -> None:
    lease, lost = CoreLease(leases.store, "1"), asyncio.Event()
    await lease.take()
    await leases.elapse(LEASE_MS / 1000 + 0.1)
    kept = asyncio.create_task(lease.keep(lost.set))
    await not_yet(kept, 1.5 * REFRESH_S)
    assert not lost.is_set()
    other = asyncio.create_task(CoreLease(leases.store, "2").take())
    await not_yet(other, 2 * ASK_S)
    other.cancel()
    kept.cancel()


async def test_nobody_waits_for_the_lease_of_a_core_that_is_gone_for_sure(leases: Leases) -> None:
    await CoreLease(leases.store, "1").take()
    waits = asyncio.create_task(CoreLease(leases.store, "2", former="of before").take())
    await not_yet(waits, 2 * ASK_S)
    heir, lost = CoreLease(leases.store, "3", former="1"), asyncio.Event()
    await asyncio.wait_for(heir.take(), SOON_S)
    await leases.elapse(0.9 * LEASE_MS / 1000)
    kept = asyncio.create_task(heir.keep(lost.set))
    await leases.renewed(kept)
    await leases.elapse(0.9 * LEASE_MS / 1000)  # by now that of the first has ended
    await not_yet(kept, 1.5 * REFRESH_S)
    assert not lost.is_set() and not waits.done()
    kept.cancel()
    waits.cancel()


async def test_a_registry_that_does_not_answer_gives_no_lease_and_takes_none(
    leases: Leases,
) -> None:
    registry = Doubtful(leases.store)
    registry.away = True
    lease, lost = CoreLease(registry, "1"), asyncio.Event()
    waits = asyncio.create_task(lease.take())
    await not_yet(waits, 3 * ASK_S)
    registry.away = False
    await asyncio.wait_for(waits, SOON_S)
    registry.away = True
    kept = asyncio.create_task(lease.keep(lost.set))
    await not_yet(kept, 2.5 * REFRESH_S)
    registry.away = False
    await not_yet(kept, 2.5 * REFRESH_S)
    assert not lost.is_set()
    kept.cancel()


async def test_a_lease_that_was_taken_without_an_answer_is_ones_own(leases: Leases) -> None:
    registry = Doubtful(leases.store)
    registry.lost.add("compare_and_swap")
    lease = CoreLease(registry, "1")
    await asyncio.wait_for(lease.take(), SOON_S)
    await lease.give_up()
    assert await leases.store.get(CORE) is None


# ------------------------------------------------------------------------------- whole cores


def state_of(node: Node) -> str:
    return "serves" if node.serving else "waits"


async def until_serving(node: Node, task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(30):
        while not node.serving:
            if task.done():
                task.result()
            await asyncio.sleep(0.02)


async def test_a_core_that_stands_by_goes_on_where_the_other_one_ended(tmp_path: Path) -> None:
    async with running(tmp_path, False, standby=True) as first:
        second = Node(first.config)
        task = asyncio.create_task(second.run())
        try:
            await not_yet(task, 1.0)
            assert (state_of(first), state_of(second)) == ("serves", "waits")
            epochs = [partition.epoch for partition in first.partitions]
            first.stop()
            await until_serving(second, task)
            assert second.origin == first.origin
            assert [p.epoch for p in second.partitions] == [epoch + 1 for epoch in epochs]
        finally:
            second.stop()
            await task


async def test_a_core_ends_while_it_stands_by_and_others_take_no_standby(tmp_path: Path) -> None:
    async with running(tmp_path, False, standby=True) as first:
        second = Node(first.config)
        task = asyncio.create_task(second.run())
        await not_yet(task, 0.3)
        second.stop()
        await asyncio.wait_for(task, SOON_S)
        config = first.config
        with pytest.raises(BadInput, match="--standby: expected only with --roles im,route"):
            load(
                tmp_path / "region.yaml", "fra", config.data, config.pki, None, False,
                roles=Roles.ALL, standby=True,
            )  # fmt: skip


async def test_a_core_on_an_etcd_has_the_lease_and_begins_again_once_it_is_gone(
    tmp_path: Path, etcd_program: Program
) -> None:
    names = {"fra": ["127.0.0.1"], "iad": ["127.0.0.1"]}
    pki.init(tmp_path / "pki", names, datetime.now(UTC))
    with etcd.running(etcd_program, tmp_path / "etcd", tmp_path / "pki") as server:

        def on_etcd(spec: dict[str, Any]) -> None:
            files = {"ca_file": "ca.pem", "cert_file": "fra.pem", "key_file": "fra.key"}
            given: dict[str, Any] = {
                name: str(tmp_path / "pki" / file) for name, file in files.items()
            }
            given |= {"endpoints": [server.server.address], "prefix": "t/"}
            spec["idcs"][0]["engines"] = {"registry": {"etcd": given}}

        registry = EtcdRegistry(server.settings("t/"), "fra")
        # Of a core that died on this folder: its lease is not waited for.
        (tmp_path / "fra" / "data").mkdir(parents=True)
        (tmp_path / "fra" / "data" / "core.lock").write_text("1 dead\n")
        await registry.put(CORE, b"dead")
        async with running(tmp_path, False, ("iad",), on_etcd, standby=True) as node:
            holds = await registry.get(CORE)
            assert holds is not None
            waits = asyncio.create_task(CoreLease(registry, "of another host").take())
            await not_yet(waits, 2 * ASK_S)
            assert not node.again
            # As if it had been paused for so long that the other one has it by now.
            await registry.put(CORE, b"of another host")
            await registry.revoke_lease(holds.lease)
            async with asyncio.timeout(30):
                await waits
                while not node.again:  # noqa: ASYNC110 - nothing to wait on
                    await asyncio.sleep(0.02)
        await registry.close()


async def test_a_core_that_was_fenced_off_stands_by_again(tmp_path: Path) -> None:
    async def fenced() -> None:
        raise StaleWriter("another one has the partition")

    async with running(tmp_path, False, standby=True) as node:
        node.spawn("applier", fenced())
        async with asyncio.timeout(SOON_S):
            while not node.again:  # noqa: ASYNC110 - nothing to wait on
                await asyncio.sleep(0.02)


# --------------------------------------------------------------------------- the local target


@contextlib.contextmanager
def sleeper(*arguments: str) -> Iterator[process.Identity]:
    command = [sys.executable, "-c", "import time; time.sleep(60)", *arguments]
    with subprocess.Popen(command, start_new_session=True) as child:
        try:
            found = process.identify(child.pid)
            assert found is not None
            yield found
        finally:
            child.kill()


def test_the_core_that_serves_has_the_name_of_the_idc(tmp_path: Path) -> None:
    data = tmp_path / "fra" / "data"
    data.mkdir(parents=True)

    def cores(target: Local) -> dict[str, tuple[int, str]]:
        return {unit.name: (unit.pid, unit.state) for unit in target.units()}

    with sleeper() as one, sleeper() as two:
        found = {"fra": one, "fra.standby": two}
        RunFile(str(REGION), False, "127.0.0.1:1", found, split=True, standby=True).write(tmp_path)
        (data / "core.lock").write_text(f"{one.pid} one\n")
        target = Local.open(tmp_path)
        running_ = "running"
        assert cores(target) == {"fra": (one.pid, running_), "fra.standby": (two.pid, running_)}
        (data / "core.lock").write_text(f"{two.pid} two\n")
        assert cores(target) == {"fra": (two.pid, running_), "fra.standby": (one.pid, running_)}
        assert cores(Local.open(tmp_path)) == cores(target)

        assert not target.stands_by("fra")
        (data / "core.standby").write_text(f"{one.pid}\n")
        assert target.stands_by("fra")
        assert target.kill_role("fra", "im") == ["fra"]
        assert process.state(two) == "gone"
        target.check_alive(["fra"])
        # Before it has written that it serves: nobody else can.
        assert cores(target) == {"fra": (one.pid, running_), "fra.standby": (two.pid, "gone")}
        with pytest.raises(Failed, match=r"fra\.standby ended while starting"):
            target.stands_by("fra")
        assert target.log_file("fra.standby") == target.log_file("fra")
        assert target.ours("fra") == ["fra", "fra.standby", "fra.gateway-1"]
        target.kill("fra")
        assert process.state(one) == "gone"
        with pytest.raises(Failed, match="fra is not running"):
            target.renew_standby("fra")
        RunFile(str(REGION), False, "127.0.0.1:1", found, split=True).write(tmp_path)
        with pytest.raises(Failed, match="fra has no second core: `imctl up --split --standby`"):
            Local.open(tmp_path).renew_standby("fra")
        refused = imctl(tmp_path, "restart", "fra", "--core")
        assert (refused.returncode, refused.stderr) == (
            1, "error: fra has no second core: `imctl up --split --standby` starts one\n",
        )  # fmt: skip


def test_two_cores_that_nobody_wrote_down_are_both_found(tmp_path: Path) -> None:
    data = tmp_path / "fra" / "data"
    data.mkdir(parents=True)
    told = ("services.node", "--data", str(data), "--region", str(REGION))
    with sleeper(*told) as one, sleeper(*told) as two:
        RunFile(str(REGION), False, "127.0.0.1:1", split=True, standby=True).write(tmp_path)
        (data / "core.lock").write_text(f"{two.pid} two\n")
        Local.open(tmp_path).find_lost()
        found = {unit.name: unit.pid for unit in Local.open(tmp_path).units()}
        assert found == {"fra": two.pid, "fra.standby": one.pid}
