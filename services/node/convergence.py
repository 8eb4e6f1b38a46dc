"""The hash of an IDC's replicated state, for comparing replicas: an independent scan of the KV."""

from __future__ import annotations

import asyncio
import hashlib

from imcore.proto import peer_pb2 as peer
from services.im import keys
from services.ports import Kv

_PAGE = 500  # about a millisecond


async def partition_hash(kv: Kv, partition: int) -> peer.PartitionHash:
    """Over keys and values of every replicated table; timelines and checkpoints are local. Others
    have their turn between pages, so only a KV that is at rest has one hash."""
    digest, rows = hashlib.blake2b(digest_size=16), 0
    for name in keys.REPLICATED_TABLES:
        prefix = keys.table(partition, name)
        start, end = prefix, keys.prefix_end(prefix)
        while True:
            page = await kv.scan(start, end, _PAGE)
            for key, value in page:
                digest.update(len(key).to_bytes(4, "big") + key)
                digest.update(len(value).to_bytes(4, "big") + value)
            rows += len(page)
            await asyncio.sleep(0)
            if len(page) < _PAGE:
                break
            start = page[-1][0] + b"\0"
    return peer.PartitionHash(partition=partition, hash=digest.digest(), rows=rows)
