"""A real PD and a TiKV-protocol mock for tests: killed, paused, wiped, split and made to fail."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import urlencode

from imctl.engines.binaries import Program
from imctl.engines.tikv import MockStore, Pd
from imctl.errors import Failed
from imctl.target.engines import free_port

START_S = 30.0
_PROGRAMS = Literal["pd", "store"]


class TikvProcesses:
    def __init__(self, pd: Program, store: Program, folder: Path, on_disk: bool) -> None:
        taken: set[int] = set()
        ports = []
        for _ in range(4):
            ports.append(free_port(taken))
            taken.add(ports[-1])
        addresses = [f"127.0.0.1:{port}" for port in ports]
        self._folder = folder
        self._binaries = {"pd": pd.path, "store": store.path}
        self.pd = Pd("pd", folder / "pd", addresses[0], addresses[1])
        data = folder / "store" if on_disk else None
        self.store = MockStore(addresses[0], addresses[2], data, addresses[3])
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    # -------------------------------------------------------------------------- processes

    def start(self) -> None:
        self.start_pd()
        self.start_store()

    def start_pd(self) -> None:
        """Until it serves."""
        self._start("pd", self.pd.command(self._binaries["pd"]))
        self._wait("pd", self.pd.healthy)

    def start_store(self) -> None:
        """Until PD has heard of it and it can be asked."""
        if self.store.data is not None:
            self.store.data.mkdir(parents=True, exist_ok=True)
        self._start("store", self.store.command(self._binaries["store"]))
        self._wait("store", lambda: self._answers() and self.pd.has_store())

    def _answers(self) -> bool:
        try:
            self.ask("GET", "/regions")
        except OSError:
            return False
        return True

    def _start(self, name: str, command: list[str]) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_S
        while not ready():
            if self._children[name].poll() is not None or time.monotonic() >= deadline:
                log = (self._folder / f"{name}.log").read_text()
                raise Failed(f"{name} does not start: {log[-500:]}")
            time.sleep(0.05)

    def kill(self, name: _PROGRAMS) -> None:
        child = self._children.pop(name, None)
        if child is not None:
            child.kill()
            child.wait()

    def pause(self, name: _PROGRAMS) -> None:
        """Returns once it stands still: some of its threads go on for a moment."""
        child = self._children[name]
        child.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{child.pid}/task")
        while any(_state(task) not in "TtZX" for task in tasks.iterdir()):
            time.sleep(0.001)

    def resume(self, name: _PROGRAMS) -> None:
        self._children[name].send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Another cluster, when both are started again."""
        for folder in (self.pd.data, self.store.data):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def stop(self) -> None:
        self.kill("store")
        self.kill("pd")

    # -------------------------------------------------------------------------- the mock

    def split(self, key: bytes) -> None:
        """Two regions where there was one; the right one begins with this key."""
        self.ask("POST", "/split", key=key.hex())

    def fail(self, method: str, kind: str, delay_ms: int = 0) -> None:
        """All calls of a method ("KvCommit") by the next transaction that makes one. ``kind``:
        "lost" (not done), "mute" (done), both without an answer; "late": after ``delay_ms``."""
        self.ask("POST", "/fault", method=method, kind=kind, delay_ms=delay_ms)

    def ask(self, verb: str, path: str, **fields: object) -> bytes:
        host, _, port = self.store.control.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=5)
        try:
            connection.request(verb, f"{path}?{urlencode(fields)}")
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise Failed(f"the TiKV-protocol mock refuses {path}: {said.decode(errors='replace')}")
        return said


@contextlib.contextmanager
def running(
    pd: Program, store: Program, folder: Path, on_disk: bool = False
) -> Iterator[TikvProcesses]:
    """``on_disk``: the mock finds its rows again after a restart."""
    folder.mkdir(parents=True, exist_ok=True)
    processes = TikvProcesses(pd, store, folder, on_disk)
    try:
        processes.start()
        yield processes
    finally:
        processes.stop()


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"
