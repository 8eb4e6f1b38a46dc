"""Which engines an IDC runs on: opens what the region file names."""

from __future__ import annotations

import asyncio
import configparser
import contextlib
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from imcore.errors import BadInput, ImError, NotTrusted, OutcomeUnknown, Unavailable
from imcore.region.model import S3, Etcd, Kafka, KvEngine
from imcore.region.rules import blobs_prefix, kv_prefix, registry_prefix
from imcore.runtime import Clock, Random
from services.control.caspaxos import Proposer
from services.engines.blob_files import FileBlobs
from services.engines.disk import Disk
from services.engines.etcd.client import EtcdSettings
from services.engines.etcd.registry import EtcdRegistry
from services.engines.kafka.cluster import Cluster
from services.engines.kafka.log_store import KafkaLogStore
from services.engines.kafka.mirror_lag import MirrorLag
from services.engines.kafka.settings import KafkaSettings
from services.engines.lmdb_kv import LmdbKv
from services.engines.log_store import SegmentLogStore
from services.engines.registry_store import RegistryStore
from services.engines.s3.blobs import S3Blobs
from services.engines.s3.client import S3Client, S3Settings
from services.engines.s3.signing import Credentials
from services.engines.tikv.client import TikvSettings
from services.engines.tikv.kv import TikvKv
from services.im.keys import SCANNED_DOWN
from services.node.config import NodeConfig
from services.node.kv_moves import KvEngines
from services.ports import Blobs, Kv, LogStore, Registry

log = logging.getLogger("im.engines")
T = TypeVar("T")

ETCD_START_S = 10.0
STORE_START_S = 60.0
S3_START_S = 3.0
BLOB_THREADS = 2  # of files on the own disk
RETRY_S = 0.5
LOOK_S = 1.0


async def open_registry(
    config: NodeConfig, disk: Disk, clock: Clock, rng: Random, stack: contextlib.AsyncExitStack
) -> Registry:
    """Closed by ``stack``. Raises BadInput for a file that cannot be read, NotTrusted when etcd
    and this IDC do not accept each other."""
    etcd = config.idc.engines.registry.etcd
    if etcd is None:
        store = await RegistryStore.open(str(config.data / "registry"), disk, clock, rng)
        stack.push_async_callback(store.close)
        return store
    prefix = registry_prefix(config.region, config.idc)
    registry = EtcdRegistry(await asyncio.to_thread(etcd_settings, etcd, prefix), config.idc.name)
    stack.push_async_callback(registry.close)
    await _wait_for(registry, config.idc.name, clock)
    return registry


async def open_log_store(
    config: NodeConfig,
    disk: Disk,
    rng: Random,
    executor: Callable[[int, str], Executor],
    stack: contextlib.AsyncExitStack,
) -> LogStore:
    """Closed by ``stack``. Raises BadInput, NotTrusted, Unavailable."""
    spec, engines = config.region.spec, config.idc.engines
    store: LogStore
    if engines.log.kafka is None:
        store = await SegmentLogStore.open(
            str(config.data / "log"), spec.partitions, disk, rng, spec.retention.segment_bytes,
            executor,
        )  # fmt: skip
    else:
        settings = await asyncio.to_thread(kafka_settings, engines.log.kafka)
        mirrored = engines.mirror.mirrormaker2 is not None
        idc, count = config.idc.name, spec.partitions
        open_kafka = partial(KafkaLogStore.open, settings, idc, count, rng, mirrored)
        store = await when_it_answers(open_kafka, f"the Kafka of {idc}")
    stack.push_async_callback(store.close)
    return store


def mirror_lag(
    config: NodeConfig, clock: Clock, stack: contextlib.AsyncExitStack
) -> MirrorLag | None:
    """How far the MirrorMaker 2 of this IDC is, which another process is; None: it has none.
    Its clusters are closed by ``stack``. Raises BadInput."""
    engines = config.idc.engines
    if engines.log.kafka is None or engines.mirror.mirrormaker2 is None:
        return None
    own, remote = kafka_settings(engines.log.kafka), engines.mirror.mirrormaker2.remote_brokers
    brokers = {config.idc.name: own.brokers}
    for name in config.peer_idcs():
        theirs = config.region.idc(name).engines.log.kafka
        assert theirs is not None  # a rule of the region file
        brokers[name] = tuple(remote.get(name) or theirs.brokers)
    clusters = {name: Cluster(replace(own, brokers=at), name) for name, at in brokers.items()}
    for cluster in clusters.values():
        stack.push_async_callback(cluster.close)
    return MirrorLag(clusters.pop(config.idc.name), clusters, config.idc.name, clock)


def kafka_settings(kafka: Kafka) -> KafkaSettings:
    """Reads the password file. Raises BadInput."""
    return KafkaSettings(
        brokers=tuple(kafka.brokers),
        prefix=kafka.topic_prefix,
        ca_file=_path(kafka.ca_file),
        cert_file=_path(kafka.cert_file),
        key_file=_path(kafka.key_file),
        username=kafka.username or "",
        password=_secret(kafka.password_file, "log.kafka"),
        replication_factor=kafka.replication_factor,
        min_insync_replicas=kafka.min_insync_replicas,
        durability=kafka.durability,
    )


async def open_blobs(
    config: NodeConfig,
    disk: Disk,
    clock: Clock,
    executor: Callable[[int, str], Executor],
    stack: contextlib.AsyncExitStack,
) -> Blobs:
    """Closed by ``stack``. A bucket that does not answer keeps nobody from starting: messages need
    no files. Raises BadInput, NotTrusted."""
    s3 = config.idc.engines.blobs.s3
    if s3 is None:
        threads = executor(BLOB_THREADS, "media")
        stack.callback(threads.shutdown, wait=False)
        return FileBlobs(str(config.data / "media"), disk, threads)
    prefix = blobs_prefix(config.region, config.idc)
    settings = await asyncio.to_thread(s3_settings, s3, config.idc.name, prefix)
    blobs = S3Blobs(await asyncio.to_thread(S3Client, settings, clock))
    stack.push_async_callback(blobs.close)
    try:
        async with asyncio.timeout(S3_START_S):
            await blobs.look()
        log.info("the files of %s are in %s/%s", settings.idc, settings.endpoint, settings.bucket)
    except NotTrusted:
        raise
    except (TimeoutError, Unavailable) as error:
        said = str(error) or f"the S3 at {settings.endpoint} does not answer"
        log.error("%s starts without its files: %s", settings.idc, said)
    return blobs


def s3_settings(s3: S3, idc: str, prefix: str) -> S3Settings:
    """Reads the credentials file. Raises BadInput."""
    return S3Settings(
        idc=idc,
        endpoint=s3.endpoint,
        bucket=s3.bucket,
        region=s3.region,
        prefix=prefix,
        credentials=_credentials(s3.credentials_file),
        ca_file=s3.ca_file,
    )


def _credentials(path: str) -> Credentials:
    """As AWS's tools write them. What the file has is in no message."""
    text = (_read(path, "blobs.s3") or b"").decode(errors="replace")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text)
        section = parser["default"]
        found = Credentials(section["aws_access_key_id"], section["aws_secret_access_key"])
    except (configparser.Error, KeyError):
        found = Credentials("", "")
    if not found.access_key or not found.secret_key:
        raise BadInput(
            f"{path}: expected `[default]` with `aws_access_key_id = ...` and "
            "`aws_secret_access_key = ...`, got something else, not shown here (engines.blobs.s3)"
        )
    return found


async def open_kv(config: NodeConfig, disk: Disk, stack: contextlib.AsyncExitStack) -> KvEngines:
    """Open, and closed by ``stack``."""
    engines = KvEngines(config, disk, partial(_open_store, config, disk))
    kv = await engines.open()
    stack.push_async_callback(kv.close)
    return engines


async def _open_store(config: NodeConfig, disk: Disk, engine: KvEngine) -> Kv:
    if engine.tikv is not None:
        prefix = engine.tikv.prefix or kv_prefix(config.region, config.idc)
        settings = TikvSettings(pd=tuple(engine.tikv.pd), prefix=prefix)
        open_tikv = partial(TikvKv.open, settings, config.data / "tikv", disk, SCANNED_DOWN)
        return await when_it_answers(open_tikv, f"the TiKV of {config.idc.name}")
    return await LmdbKv.open(str(config.data / "kv"), disk)


async def when_it_answers(attempt: Callable[[], Awaitable[T]], what: str) -> T:
    """An IDC can do nothing without its logs and its KV. Raises what came last, and NotTrusted at
    once."""
    deadline = asyncio.get_running_loop().time() + STORE_START_S
    said = ""
    while True:
        try:
            return await attempt()
        except NotTrusted:
            raise
        except (Unavailable, OutcomeUnknown) as error:
            if asyncio.get_running_loop().time() >= deadline:
                raise
            if str(error) != said:
                log.warning("waiting for %s: %s", what, error)
            said = str(error)
        await asyncio.sleep(RETRY_S)


async def _wait_for(registry: EtcdRegistry, idc: str, clock: Clock) -> None:
    """An etcd that is away must not keep the IDC from serving what it can: its logs to the other
    IDCs, for one. Its clients stay with the others until its registry is back."""
    deadline = clock.now() + ETCD_START_S
    while True:
        try:
            await registry.store_id()
            log.info("the registry of %s is on etcd %s", idc, await registry.version())
            return
        except NotTrusted:
            raise
        except Unavailable as error:
            if clock.now() >= deadline:
                log.error("%s starts without its registry: %s", idc, error)
                return
        await asyncio.sleep(RETRY_S)


def etcd_settings(etcd: Etcd, prefix: str) -> EtcdSettings:
    """Reads the files that the region file names. Raises BadInput."""
    field = "registry.etcd"
    return EtcdSettings(
        endpoints=tuple(etcd.endpoints),
        prefix=prefix,
        ca=_read(etcd.ca_file, field),
        certificate=_read(etcd.cert_file, field),
        key=_read(etcd.key_file, field),
        username=etcd.username or "",
        password=_secret(etcd.password_file, field),
    )


def _path(path: str | None) -> Path | None:
    return None if path is None else Path(path)


def _secret(path: str | None, field: str) -> str:
    """A file's first line."""
    text = (_read(path, field) or b"").decode(errors="replace")
    return (text.splitlines() or [""])[0]


def _read(path: str | None, field: str) -> bytes | None:
    try:
        return None if path is None else Path(path).read_bytes()
    except OSError as error:
        raise BadInput(
            f"{path}: expected a readable file, got {error.strerror} (engines.{field})"
        ) from error


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
