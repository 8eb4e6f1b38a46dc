"""Makes the class archives (jvm.py): a broker and a MirrorMaker run once, for a few seconds."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from imcore import pki
from imctl.engines import jvm
from imctl.engines.kafka import Server
from imctl.engines.mm2 import MirrorMaker
from imctl.engines.mm2_config import Cluster, Credentials, Flows
from imctl.errors import Failed
from imctl.target.places import free_ports

_READY_S = 90.0
_SETTLE_S = 3.0  # what comes after the first record
_END_S = 60.0
_TARGET, _SOURCE = "fra", "iad"


def recorded(lib: Path) -> bool:
    return all(jvm.archive(lib, kind).exists() for kind in jvm.KINDS)


def record(lib: Path, progress: Callable[[str, int, int], None]) -> None:
    """Beside the folder of the jars. Raises Failed."""
    with tempfile.TemporaryDirectory(prefix="imctl-record-") as scratch:
        folder = Path(scratch)
        certificates = folder / "pki"
        names = {name: ["127.0.0.1"] for name in (_TARGET, _SOURCE)}
        pki.init(certificates, names, datetime.now(UTC))
        address, controller = (f"127.0.0.1:{port}" for port in free_ports(2))
        server = Server(folder / "kafka", address, controller, certificates, _SOURCE, _TARGET)
        progress("starting a broker", 0, 0)
        server.prepare(lib)
        archives = {kind: folder / f"{kind}.jsa" for kind in jvm.KINDS}
        with _running(server.command(lib, archives["broker"]), folder / "kafka.log") as broker:
            _until(server.healthy, broker, folder / "kafka.log")
            # Its own mirror: both ends are this broker.
            ends = [Cluster(name, (address,), tls=True, sasl=False) for name in (_TARGET, _SOURCE)]
            shown = Credentials(
                certificates / "ca.pem",
                certificates / f"{_TARGET}.pem",
                certificates / f"{_TARGET}.key",
            )
            flows = Flows(ends[0], (ends[1],), "im", 1)
            mirror = MirrorMaker(folder / "mm2", flows, shown)
            mirror.prepare()
            progress("starting a MirrorMaker", 0, 0)
            copied = server.data / "logs" / f"{_SOURCE}.heartbeats-0"
            with _running(mirror.command(lib, archives["mirror"]), folder / "mm2.log") as process:
                _until(copied.exists, process, folder / "mm2.log")
                time.sleep(_SETTLE_S)
                progress("recording classes", 0, 0)
        for kind, made in archives.items():
            if not made.exists():
                raise Failed(f"java made no class archive of the {kind}")
            fresh = jvm.archive(lib, kind).with_suffix(".new")
            fresh.write_bytes(made.read_bytes())
            fresh.replace(jvm.archive(lib, kind))


@contextmanager
def _running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Asked to end, in time, and waited for: the archive is written at the end."""
    with (
        log.open("wb") as out,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            yield process
            process.terminate()
            process.wait(_END_S)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"a process did not end within {_END_S:g} s") from error
        finally:
            process.kill()


def _until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while not ready():
        if process.poll() is not None or time.monotonic() >= deadline:
            said = jvm.reason(log.read_text(errors="replace"))
            raise Failed(f"a process does not start: {said}")
        time.sleep(0.1)
