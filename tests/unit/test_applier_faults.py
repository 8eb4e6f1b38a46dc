"""The applier over a real log and a real KV whose disk is full for a while."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from imcore.attest import content_hash
from imcore.convert import key_pb
from imcore.errors import DiskFull
from imcore.hlc import Hlc
from imcore.proto import oplog_pb2 as oplog
from imcore.words import ClientKey, Origin
from services.engines.disk import RealDisk
from services.engines.lmdb_kv import LmdbKv
from services.engines.log_store import SegmentLogStore
from services.im import applier as applier_module
from services.im import keys
from services.im.applier import Applier
from services.im.cache import ConversationCache
from services.ports import Batch, Log, Record

FRA = Origin("fra", 1)
CONVERSATION = "d:ann:bob"


class Bench:
    def __init__(self, log: Log, kv: LmdbKv, kv_disk: RealDisk, applier: Applier) -> None:
        self.log, self.kv, self.kv_disk, self.applier = log, kv, kv_disk, applier

    async def message(self, seq: int) -> None:
        op = oplog.Op(hlc=seq, conversation=CONVERSATION, seq=seq)
        op.message.key.CopyFrom(key_pb(ClientKey("ann", "phone", "o1", CONVERSATION, seq)))
        op.message.content = b"%d" % seq
        op.message.content_hash = content_hash(op.message.content)
        await self.op(op)

    async def op(self, op: oplog.Op) -> None:
        durable: asyncio.Future[Sequence[Record] | Exception]
        durable = asyncio.get_running_loop().create_future()
        self.log.append(0, 1, [op.SerializeToString()], durable.set_result)
        assert not isinstance(await durable, Exception)

    async def folded(self) -> int:
        """Messages that stand in the conversation."""
        prefix = keys.order_prefix(0, CONVERSATION)
        return len(await self.kv.scan(prefix, keys.prefix_end(prefix), 100))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = await SegmentLogStore.open(str(tmp_path / "log"), 1, RealDisk(), random.Random(1))
    log = await store.open_own(FRA)
    disk = RealDisk()
    kv = await LmdbKv.open(str(tmp_path / "kv"), disk)
    cache = ConversationCache(kv, 0)
    applier = Applier(0, kv, store, cache, Hlc(), lambda origin, effects: None)
    await applier.open()
    yield Bench(log, kv, disk, applier)
    await kv.close()
    await store.close()


async def test_what_would_be_too_large_for_one_batch_is_several(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, count, batches = 3_000, 60, list[Batch]()
    monkeypatch.setattr(applier_module, "BATCH_BYTES_MAX", limit)
    commit = bench.kv.commit

    async def seen(batch: Batch) -> None:
        batches.append(batch)
        await commit(batch)

    monkeypatch.setattr(bench.kv, "commit", seen)
    for seq in range(1, count + 1):
        await bench.message(seq)
    await bench.applier.drain()
    assert await bench.folded() == count == bench.applier.lsn(FRA)
    assert all(batch.size <= limit for batch in batches)
    assert 2 < len(batches) < count / 2
    monkeypatch.setattr(applier_module, "BATCH_BYTES_MAX", 1)
    await bench.message(count + 1)  # one record is one batch, whatever it takes
    await bench.applier.drain()
    assert await bench.folded() == count + 1


async def test_a_batch_that_could_not_be_committed_is_folded_by_whoever_drains_next(
    bench: Bench,
) -> None:
    await bench.message(1)
    bench.kv_disk.faults.full = True
    with pytest.raises(DiskFull):
        await bench.applier.drain()
    bench.kv_disk.faults.full = False
    await bench.message(2)
    await bench.applier.drain()
    assert await bench.folded() == 2
    assert bench.applier.applied() == {FRA: 2}


async def test_a_take_over_that_failed_half_way_is_repeated(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The KV had raised its epoch when it could not make that durable."""
    bench.kv_disk.faults.full = True
    await bench.message(1)
    with pytest.raises(DiskFull):
        await bench.applier.drain()
    bench.kv_disk.faults.full = False

    async def full() -> None:
        raise DiskFull("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(bench.kv, "sync", full)
        with pytest.raises(DiskFull):
            await bench.applier.drain()
    await bench.applier.drain()
    assert await bench.folded() == 1


async def test_an_op_that_cannot_be_stored_is_left_out_and_counted(bench: Bench) -> None:
    """It is in a log, perhaps of an IDC that took too long names: no partition may stop at it."""
    for name in ("d:ann:" + "x" * 600, "d:ann:b\0b", "g:" + "x" * 500):
        poison = oplog.Op(hlc=1, conversation=name, seq=1)
        poison.message.key.CopyFrom(key_pb(ClientKey("ann", "phone", "o1", name, 1)))
        await bench.op(poison)
    claim = oplog.Op(hlc=2, conversation=CONVERSATION, seq=1)
    claim.message.key.CopyFrom(key_pb(ClientKey("ann", "phone", "o1", CONVERSATION, 1)))
    claim.message.claims.add().key.CopyFrom(key_pb(ClientKey("x" * 600, "d", "o", "c", 1)))
    await bench.op(claim)
    await bench.message(2)
    await bench.applier.drain()
    assert await bench.folded() == 2
    assert bench.applier.lsn(FRA) == 5
    assert bench.applier.alarm == ("3 records of partition 0 cannot be stored and are left out")
    await bench.message(3)
    await bench.applier.drain()
    assert await bench.folded() == 3
