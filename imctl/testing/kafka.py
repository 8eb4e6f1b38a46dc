"""A real Kafka for tests: killed, paused, wiped and asked for raw things as they like."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from imctl.engines.binaries import Program
from imctl.engines.kafka import Listener, Server
from imctl.errors import Failed
from imctl.target.engines import free_port
from services.engines.kafka.settings import KafkaSettings

START_S = 60.0


class KafkaProcess:
    """TLS on, as the broker ``iad`` of a pki folder that serves the IDC ``fra``."""

    def __init__(self, program: Program, folder: Path, pki: Path, flush: bool = False) -> None:
        self._lib = program.path
        self._log = folder / "kafka.log"
        taken: set[int] = set()
        address, controller, remote = (f"127.0.0.1:{_fresh(taken)}" for _ in range(3))
        # Nothing listens where it sends sin's clients: a test may.
        self.for_sin = Listener(remote, f"127.0.0.1:{_fresh(taken)}")
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
        self._child: subprocess.Popen[bytes] | None = None

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
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                self.server.command(self._lib),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start(self) -> None:
        """Until it serves."""
        self.launch()
        assert self._child is not None
        deadline = time.monotonic() + START_S
        while not self.server.healthy():
            if self._child.poll() is not None or time.monotonic() >= deadline:
                raise Failed(f"kafka does not start: {self._log.read_text()[-800:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def pause(self) -> None:
        assert self._child is not None
        self._child.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._child is not None
        self._child.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        shutil.rmtree(self.server.data)


def _fresh(taken: set[int]) -> int:
    port = free_port(taken)
    taken.add(port)
    return port


@contextlib.contextmanager
def running(
    program: Program, folder: Path, pki: Path, data: Path | None = None, flush: bool = False
) -> Iterator[KafkaProcess]:
    """``data``: where its storage lies, when not in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    kafka = KafkaProcess(program, folder, pki, flush)
    if data is not None:
        kafka.server = replace(kafka.server, data=data)
    try:
        kafka.start()
        yield kafka
    finally:
        kafka.kill()
