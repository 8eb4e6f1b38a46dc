"""The hash of a KV is taken beside everything else that its process does."""

from __future__ import annotations

import asyncio
from pathlib import Path

from services.engines.disk import RealDisk
from services.engines.lmdb_kv import LmdbKv
from services.im import keys
from services.node.convergence import partition_hash
from services.ports import Batch

ROWS = 5_000


async def test_others_have_their_turn_while_a_kv_is_hashed(tmp_path: Path) -> None:
    kv = await LmdbKv.open(str(tmp_path / "kv"), RealDisk())
    epoch, _ = await kv.open_partition(0)
    rows = {keys.heads(0, f"g:{number}"): b"heads" for number in range(ROWS)}
    await kv.commit(Batch(0, epoch, b"", rows))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.ensure_future(others())
    found = await partition_hash(kv, 0)
    beside.cancel()
    await asyncio.gather(beside, return_exceptions=True)
    assert found.rows == ROWS
    assert turns >= 10
    await kv.close()
