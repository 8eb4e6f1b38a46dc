"""Engines that run somewhere else: Kafka, TiKV, etcd, S3. ``services.node.engines`` loads this
module for an IDC that has one of them, and for no other: their clients are a tenth of what a
process loads before it serves."""

from __future__ import annotations

import asyncio
import configparser
import contextlib
import logging
import ssl
from dataclasses import replace
from functools import partial
from pathlib import Path

from imcore.errors import BadInput, NotTrusted, Unavailable
from imcore.region.model import S3, Etcd, Kafka, MirrorMaker2, Tikv
from imcore.region.rules import blobs_prefix, kv_prefix, registry_prefix
from imcore.runtime import Clock, Random
from services.engines.disk import Disk
from services.engines.etcd.client import EtcdSettings
from services.engines.etcd.registry import EtcdRegistry
from services.engines.kafka.cluster import Cluster
from services.engines.kafka.log_store import KafkaLogStore
from services.engines.kafka.mirror_lag import MirrorLag
from services.engines.kafka.settings import KafkaSettings
from services.engines.renewed import Renewed, load_pair
from services.engines.s3.blobs import S3Blobs
from services.engines.s3.client import S3Client, S3Settings
from services.engines.s3.signing import Credentials
from services.engines.tikv.client import TikvSettings
from services.engines.tikv.kv import TikvKv
from services.im.keys import SCANNED_DOWN
from services.node.config import NodeConfig
from services.node.waiting import RETRY_S, when_it_answers

log = logging.getLogger("im.engines")
ETCD_START_S = 10.0
S3_START_S = 3.0


async def open_etcd(
    config: NodeConfig, etcd: Etcd, clock: Clock, stack: contextlib.AsyncExitStack
) -> EtcdRegistry:
    """Closed by ``stack``. Raises BadInput for a file that cannot be read, NotTrusted when etcd
    and this IDC do not accept each other."""
    prefix = registry_prefix(config.region, config.idc)
    load = partial(etcd_settings, etcd, prefix)
    settings = await asyncio.to_thread(Renewed, etcd_files(etcd), load)
    registry = EtcdRegistry(
        settings.value, config.idc.name, lambda: settings.value if settings.look() else None
    )
    stack.push_async_callback(registry.close)
    await _wait_for(registry, config.idc.name, clock)
    return registry


async def open_kafka(config: NodeConfig, kafka: Kafka, rng: Random) -> KafkaLogStore:
    """Raises BadInput, NotTrusted, Unavailable."""
    settings = await asyncio.to_thread(kafka_settings, kafka)
    mirrored = config.idc.engines.mirror.mirrormaker2 is not None
    idc, count = config.idc.name, config.region.spec.partitions
    opened = partial(KafkaLogStore.open, settings, idc, count, rng, mirrored)
    return await when_it_answers(opened, f"the Kafka of {idc}")


async def open_tikv(config: NodeConfig, tikv: Tikv, disk: Disk) -> TikvKv:
    """Raises NotTrusted, Unavailable."""
    prefix = tikv.prefix or kv_prefix(config.region, config.idc)
    settings = TikvSettings(pd=tuple(tikv.pd), prefix=prefix)
    opened = partial(TikvKv.open, settings, config.data / "tikv", disk, SCANNED_DOWN)
    return await when_it_answers(opened, f"the TiKV of {config.idc.name}")


async def open_s3(
    config: NodeConfig, s3: S3, clock: Clock, stack: contextlib.AsyncExitStack
) -> S3Blobs:
    """Closed by ``stack``. A bucket that does not answer keeps nobody from starting: messages need
    no files. Raises BadInput, NotTrusted."""
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


def lag_of(
    config: NodeConfig,
    kafka: Kafka,
    mirror: MirrorMaker2,
    clock: Clock,
    stack: contextlib.AsyncExitStack,
) -> MirrorLag:
    """How far the MirrorMaker 2 of this IDC is, which another process is. Its clusters are closed
    by ``stack``. Raises BadInput."""
    own, remote = kafka_settings(kafka), mirror.remote_brokers
    brokers = {config.idc.name: own.brokers}
    for name in config.peer_idcs():
        theirs = config.region.idc(name).engines.log.kafka
        assert theirs is not None  # a rule of the region file
        brokers[name] = tuple(remote.get(name) or theirs.brokers)
    clusters = {name: Cluster(replace(own, brokers=at), name) for name, at in brokers.items()}
    for cluster in clusters.values():
        stack.push_async_callback(cluster.close)
    return MirrorLag(clusters.pop(config.idc.name), clusters, config.idc.name, clock)


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


def etcd_settings(etcd: Etcd, prefix: str) -> EtcdSettings:
    """Reads the files that the region file names. Raises BadInput."""
    field = "registry.etcd"
    settings = EtcdSettings(
        endpoints=tuple(etcd.endpoints),
        prefix=prefix,
        ca=_read(etcd.ca_file, field),
        certificate=_read(etcd.cert_file, field),
        key=_read(etcd.key_file, field),
        username=etcd.username or "",
        password=_secret(etcd.password_file, field),
    )
    if etcd.cert_file is not None:
        # gRPC takes two that do not belong together, and fails in each handshake then.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        load_pair(context, Path(etcd.cert_file), _path(etcd.key_file), f"engines.{field}")
    return settings


def etcd_files(etcd: Etcd) -> list[Path]:
    return [Path(path) for path in (etcd.ca_file, etcd.cert_file, etcd.key_file) if path]


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
