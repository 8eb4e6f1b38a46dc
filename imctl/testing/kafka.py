"""A real Kafka for tests: killed, paused, wiped and asked for raw things as they like."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from imctl.engines.binaries import Program
from imctl.engines.kafka import Listener, Server
from imctl.target.places import free_ports
from imctl.testing.child import Child, started
from services.engines.kafka.settings import KafkaSettings

START_S = 60.0


class KafkaProcess(Child):
    """TLS on, as the broker ``iad`` of a pki folder that serves the IDC ``fra``."""

    def __init__(self, program: Program, folder: Path, pki: Path, flush: bool = False) -> None:
        self._lib = program.path
        super().__init__("kafka", folder / "kafka.log")
        address, controller, remote, nowhere = (f"127.0.0.1:{port}" for port in free_ports(4))
        # Nothing listens where it sends sin's clients: a test may.
        self.for_sin = Listener(remote, nowhere)
        self.server = Server(
            folder / "kafka",
            address,
            controller,
            pki,
            "iad",
            "fra",
            {"sin": self.for_sin},
            flush=flush,
        )

    def settings(
        self,
        prefix: str,
        name: str = "fra",
        deadline_s: float = 5.0,
        durability: str = "replicated",
    ) -> KafkaSettings:
        pki = self.server.pki
        return KafkaSettings(
            brokers=(self.server.address,),
            prefix=prefix,
            ca_file=pki / "ca.pem",
            cert_file=pki / f"{name}.pem",
            key_file=pki / f"{name}.key",
            replication_factor=1,
            min_insync_replicas=1,
            deadline_s=deadline_s,
            durability=durability,
        )

    # -------------------------------------------------------------------------- processes

    def launch(self) -> None:
        self.server.prepare(self._lib)
        self.spawn(self.server.command(self._lib))

    def start(self) -> None:
        """Until it serves."""
        self.launch()
        self.until_ready(self.server.healthy, START_S)

    def wipe(self) -> None:
        shutil.rmtree(self.server.data)


@contextlib.contextmanager
def running(
    program: Program, folder: Path, pki: Path, data: Path | None = None, flush: bool = False
) -> Iterator[KafkaProcess]:
    """``data``: where its storage lies, when not in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    kafka = KafkaProcess(program, folder, pki, flush)
    if data is not None:
        kafka.server = replace(kafka.server, data=data)
    with started(kafka):
        yield kafka
