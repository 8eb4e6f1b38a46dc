"""Which engines an IDC runs on: opens what the region file names."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING

from imcore.errors import ImError
from imcore.region.model import KvEngine
from imcore.runtime import Clock, Random
from services.control.caspaxos import Proposer
from services.engines.blob_files import FileBlobs
from services.engines.disk import Disk
from services.engines.lmdb_kv import LmdbKv
from services.engines.log_store import SegmentLogStore
from services.engines.registry_store import RegistryStore
from services.node.config import NodeConfig
from services.node.kv_moves import KvEngines
from services.ports import Blobs, Kv, LogStore, Registry

if TYPE_CHECKING:
    from services.engines.kafka.mirror_lag import MirrorLag

log = logging.getLogger("im.engines")

BLOB_THREADS = 2  # of files on the own disk
LOOK_S = 1.0


async def open_registry(
    config: NodeConfig, disk: Disk, clock: Clock, rng: Random, stack: contextlib.AsyncExitStack
) -> Registry:
    """Closed by ``stack``. Raises BadInput for a file that cannot be read, NotTrusted when etcd
    and this IDC do not accept each other."""
    if (etcd := config.idc.engines.registry.etcd) is not None:
        from services.node import external

        return await external.open_etcd(config, etcd, clock, stack)
    store = await RegistryStore.open(str(config.data / "registry"), disk, clock, rng)
    stack.push_async_callback(store.close)
    return store


async def open_log_store(
    config: NodeConfig,
    disk: Disk,
    rng: Random,
    executor: Callable[[int, str], Executor],
    stack: contextlib.AsyncExitStack,
) -> LogStore:
    """Closed by ``stack``. Raises BadInput, NotTrusted, Unavailable."""
    spec = config.region.spec
    store: LogStore
    if (kafka := config.idc.engines.log.kafka) is not None:
        from services.node import external

        store = await external.open_kafka(config, kafka, rng)
    else:
        store = await SegmentLogStore.open(
            str(config.data / "log"), spec.partitions, disk, rng, spec.retention.segment_bytes,
            executor,
        )  # fmt: skip
    stack.push_async_callback(store.close)
    return store


def mirror_lag(
    config: NodeConfig, clock: Clock, stack: contextlib.AsyncExitStack
) -> MirrorLag | None:
    """How far the MirrorMaker 2 of this IDC is, which another process is; None: it has none.
    Closed by ``stack``. Raises BadInput."""
    kafka, mirror = config.idc.engines.log.kafka, config.idc.engines.mirror.mirrormaker2
    if kafka is None or mirror is None:
        return None
    from services.node import external

    return external.lag_of(config, kafka, mirror, clock, stack)


async def open_blobs(
    config: NodeConfig,
    disk: Disk,
    clock: Clock,
    executor: Callable[[int, str], Executor],
    stack: contextlib.AsyncExitStack,
) -> Blobs:
    """Closed by ``stack``. Raises BadInput, NotTrusted."""
    if (s3 := config.idc.engines.blobs.s3) is not None:
        from services.node import external

        return await external.open_s3(config, s3, clock, stack)
    threads = executor(BLOB_THREADS, "media")
    stack.callback(threads.shutdown, wait=False)
    return FileBlobs(str(config.data / "media"), disk, threads)


async def open_kv(config: NodeConfig, disk: Disk, stack: contextlib.AsyncExitStack) -> KvEngines:
    """Open, and closed by ``stack``."""
    engines = KvEngines(config, disk, partial(_open_store, config, disk))
    await engines.open()
    stack.push_async_callback(engines.close)
    return engines


async def _open_store(config: NodeConfig, disk: Disk, engine: KvEngine) -> Kv:
    if engine.tikv is not None:
        from services.node import external

        return await external.open_tikv(config, engine.tikv, disk)
    return await LmdbKv.open(str(config.data / "kv"), disk)


async def stay_member(proposer: Proposer, registry: Registry) -> None:
    """Joins the registry as an acceptor, and again whenever its store is another one: unlike the
    embedded one, an etcd can be wiped while this process runs."""
    joined = b""
    while True:
        with contextlib.suppress(ImError):  # away is not replaced
            store = await registry.store_id()
            if store != joined:
                if joined:
                    log.warning("the registry is another store now, and abstains until it joins")
                await proposer.ensure_member()
                joined = store
                log.info("the registry votes as store %s", store.hex()[:8])
        await asyncio.sleep(LOOK_S)
