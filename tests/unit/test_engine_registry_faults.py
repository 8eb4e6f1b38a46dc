"""The registry's file after crashes and damage; the client when nobody answers."""

from __future__ import annotations

import random
from pathlib import Path

import grpc.aio
import pytest

from imcore.errors import OutcomeUnknown, Unavailable
from imcore.proto import peer_pb2_grpc
from imcore.runtime import ManualClock
from services.engines import registry_journal
from services.engines.disk import DiskFaults, RealDisk
from services.engines.registry_grpc import RegistryServicer, RemoteRegistry
from services.engines.registry_store import RegistryStore


async def open_store(folder: Path, faults: DiskFaults | None = None) -> RegistryStore:
    return await RegistryStore.open(str(folder), RealDisk(faults), ManualClock(), random.Random())


async def keys_of(folder: Path) -> list[bytes]:
    store = await open_store(folder)
    keys = [value.key for value in await store.range(b"")]
    await store.close()
    return keys


async def test_a_torn_tail_loses_only_what_was_not_answered(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    await store.put(b"a", b"1")
    journal = tmp_path / "registry.journal"
    whole = journal.stat().st_size
    await store.put(b"b", b"2")
    store_id = await store.store_id()
    await store.close()
    data = journal.read_bytes()
    for size in range(whole, len(data)):
        journal.write_bytes(data[:size])
        assert await keys_of(tmp_path) == [b"a"]
        again = await open_store(tmp_path)
        await again.put(b"c", b"3")
        assert await again.store_id() == store_id
        await again.close()
        assert await keys_of(tmp_path) == [b"a", b"c"]


async def test_a_damaged_file_comes_up_blank_with_a_new_id(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    await store.put(b"a", b"1")
    await store.put(b"b", b"2")
    store_id = await store.store_id()
    await store.close()
    journal = tmp_path / "registry.journal"
    data = bytearray(journal.read_bytes())
    data[data.index(b"a") + 1] ^= 1
    journal.write_bytes(data)
    blank = await open_store(tmp_path)
    assert await blank.range(b"") == []
    assert await blank.store_id() != store_id
    assert (tmp_path / "registry.journal.damaged").exists()
    await blank.close()


async def test_the_file_is_rewritten_when_it_has_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_journal, "_REWRITE_BYTES", 2000)
    store = await open_store(tmp_path)
    store_id = await store.store_id()
    lease = await store.grant_lease(60_000)
    await store.put(b"leased", b"1", lease)
    for n in range(200):
        await store.put(b"k", b"%d" % n)
    revision = store.revision
    await store.close()
    assert (tmp_path / "registry.journal").stat().st_size < 3000
    again = await open_store(tmp_path)
    assert (again.revision, await again.store_id()) == (revision, store_id)
    assert [v.value for v in await again.range(b"")] == [b"199", b"1"]
    assert await again.keep_alive(lease)
    await again.revoke_lease(lease)
    assert [v.key for v in await again.range(b"")] == [b"k"]
    await again.close()


async def test_a_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    with pytest.raises(Unavailable, match="in use by another process"):
        await open_store(tmp_path)
    await store.close()


async def test_a_closed_registry_says_so(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    await store.close()
    for call in (store.get(b"k"), store.put(b"k", b"1"), store.grant_lease(5), store.store_id()):
        with pytest.raises(Unavailable):
            await call


async def test_a_write_that_times_out_has_an_unknown_outcome(tmp_path: Path) -> None:
    faults = DiskFaults(fsync_delay_ms=300)
    store = await open_store(tmp_path, faults)
    server = grpc.aio.server()
    peer_pb2_grpc.add_RegistryServicer_to_server(RegistryServicer(store), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        remote = RemoteRegistry(channel, "fra", deadline_s=0.1)
        with pytest.raises(OutcomeUnknown, match="fra's registry"):
            await remote.compare_and_swap(b"k", 0, b"1")
        faults.fsync_delay_ms = 0
        swapped, current = await RemoteRegistry(channel, "fra").compare_and_swap(b"k", 0, b"2")
        assert not swapped and current is not None and current.value == b"1", "it was done"
        await store.close()
        with pytest.raises(Unavailable):  # the server says that it was not done
            await remote.put(b"k", b"3")
        await server.stop(0)
        with pytest.raises(OutcomeUnknown):
            await remote.put(b"k", b"3")
        with pytest.raises(Unavailable):
            await remote.get(b"k")
        with pytest.raises(Unavailable):
            await anext(remote.watch(b""))
