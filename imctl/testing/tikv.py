"""A real PD and a TiKV-protocol mock for tests: killed, paused, wiped, split and made to fail."""

from __future__ import annotations

import contextlib
import http.client
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import urlencode

from imctl.engines.binaries import Program
from imctl.engines.tikv import MockStore, Pd
from imctl.errors import Failed
from imctl.target.places import free_ports
from imctl.testing.child import Child

START_S = 30.0
_PROGRAMS = Literal["pd", "store"]


class TikvProcesses:
    def __init__(
        self, pd: Program, store: Program, folder: Path, on_disk: bool, host: str = "127.0.0.1"
    ) -> None:
        """``host``: an address of this machine at which they are reached."""
        addresses = [f"{host}:{port}" for port in free_ports(4)]
        self._binaries = {"pd": pd.path, "store": store.path}
        self.pd = Pd("pd", folder / "pd", addresses[0], addresses[1])
        data = folder / "store" if on_disk else None
        self.store = MockStore(addresses[0], addresses[2], data, addresses[3])
        self._children = {name: Child(name, folder / f"{name}.log") for name in self._binaries}

    # -------------------------------------------------------------------------- processes

    def start(self) -> None:
        self.start_pd()
        self.start_store()

    def start_pd(self) -> None:
        """Until it serves."""
        self._children["pd"].spawn(self.pd.command(self._binaries["pd"]))
        self._children["pd"].until_ready(self.pd.healthy, START_S)

    def start_store(self) -> None:
        """Until PD has heard of it and it can be asked."""
        if self.store.data is not None:
            self.store.data.mkdir(parents=True, exist_ok=True)
        child = self._children["store"]
        child.spawn(self.store.command(self._binaries["store"]))
        child.until_ready(lambda: self._answers() and self.pd.has_store(), START_S)

    def _answers(self) -> bool:
        try:
            self.ask("GET", "/regions")
        except OSError:
            return False
        return True

    def kill(self, name: _PROGRAMS) -> None:
        self._children[name].kill()

    def pause(self, name: _PROGRAMS) -> None:
        self._children[name].pause()

    def resume(self, name: _PROGRAMS) -> None:
        self._children[name].resume()

    def wipe(self) -> None:
        """Another cluster, when both are started again."""
        for folder in (self.pd.data, self.store.data):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def stop(self) -> None:
        self.kill("store")
        self.kill("pd")

    # -------------------------------------------------------------------------- the mock

    def split(self, key: bytes, late_ms: int = 0) -> None:
        """Two regions where there was one; the right one begins with this key. PD hears of that
        one ``late_ms`` later than of the left one."""
        self.ask("POST", "/split", key=key.hex(), late_ms=late_ms)

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
    pd: Program, store: Program, folder: Path, on_disk: bool = False, host: str = "127.0.0.1"
) -> Iterator[TikvProcesses]:
    """``on_disk``: the mock finds its rows again after a restart."""
    folder.mkdir(parents=True, exist_ok=True)
    processes = TikvProcesses(pd, store, folder, on_disk, host)
    try:
        processes.start()
        yield processes
    finally:
        processes.stop()
