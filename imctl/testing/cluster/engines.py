"""The engines of an IDC in pods, which run on this machine, where the pods of a test cluster reach
them: a Kafka, a PD with the TiKV-protocol mock, an etcd."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imcore import pki
from imctl.engines.binaries import Program
from imctl.reconcile.objects import ETC
from imctl.testing import etcd, kafka, tikv

SECRET = "engines"  # noqa: S105 - its name
SERVER, CLIENT = "iad", "fra"  # as those processes call themselves, and whom they let in
FILES = {"ca_file": "ca.pem", "cert_file": f"{CLIENT}.pem", "key_file": f"{CLIENT}.key"}


@dataclass(frozen=True, slots=True)
class Engines:
    """``keys``: a pki folder of their own, not the region's."""

    keys: Path
    log: kafka.KafkaProcess
    kv: tikv.TikvProcesses
    registry: etcd.EtcdProcess

    def spec(self) -> dict[str, Any]:
        """`engines` of the IDC in the region file."""
        files = {field: f"{ETC}/secrets/{SECRET}/{file}" for field, file in FILES.items()}
        alone = {"replication_factor": 1, "min_insync_replicas": 1, "durability": "flush"}
        return {
            "log": {"kafka": {"brokers": [self.log.server.address], **files, **alone}},
            "kv": {"tikv": {"pd": [self.kv.pd.address]}},
            "registry": {"etcd": {"endpoints": [self.registry.server.address], **files}},
        }

    def secret(self) -> dict[str, Any]:
        """What the IDC shows to them."""
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET},
            "stringData": {file: (self.keys / file).read_text() for file in FILES.values()},
        }


@contextlib.contextmanager
def running(
    kafka_program: Program,
    tikv_programs: tuple[Program, Program],
    etcd_program: Program,
    folder: Path,
    host: str,
) -> Iterator[Engines]:
    """``host``: the address of this machine that pods reach. Raises Failed."""
    keys = folder / "pki"
    pki.init(keys, {SERVER: [host], CLIENT: [host]}, datetime.now(UTC))
    with (
        etcd.running(etcd_program, folder / "etcd", keys, host) as registry,
        tikv.running(*tikv_programs, folder / "tikv", host=host) as kv,
        kafka.running(kafka_program, folder / "kafka", keys, flush=True, host=host) as log,
    ):
        yield Engines(keys, log, kv, registry)
