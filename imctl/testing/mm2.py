"""Real Kafkas of several IDCs for tests, the links between them, and their MirrorMakers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

from imctl.engines.binaries import Program
from imctl.engines.kafka import Listener, principal
from imctl.engines.mirror_watch import GIVEN_UP
from imctl.engines.mm2 import MirrorMaker
from imctl.engines.mm2_config import Cluster, Credentials, Flows
from imctl.target.places import free_ports
from imctl.testing.child import Child
from imctl.testing.kafka import KafkaProcess
from services.engines.kafka import acls, cluster
from services.engines.kafka.settings import KafkaSettings
from services.linkproxy.model import LinkSpec, Mode
from services.linkproxy.proxy import Fault, LinkProxy

Pair = tuple[str, str]

_LOG_TAIL_BYTES = 1 << 20


class Links:
    """All ways on which MirrorMakers reach brokers elsewhere. A loop of its own serves them:
    brokers and MirrorMakers outlive a test's loop."""

    def __init__(self, brokers: Mapping[Pair, int], reached: Mapping[Pair, int]) -> None:
        """(who dials, who is dialled) -> the broker's port, and the one at which it is reached."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._proxies = {}
        for dials in {pair[0] for pair in brokers}:  # a broker has a listener for each of them
            ways = [pair for pair in brokers if pair[0] == dials]
            targets = {pair[1]: ("127.0.0.1", brokers[pair]) for pair in ways}
            targets[dials] = ("127.0.0.1", 1)  # nobody dials back
            specs = {way: LinkSpec() for pair in ways for way in (pair, pair[::-1])}
            self._proxies[dials] = LinkProxy(targets, specs, random.Random(1))
            wanted = {pair: ("127.0.0.1", reached[pair]) for pair in ways}
            self._do(self._proxies[dials].listen(wanted))

    def set(self, dials: str, dialled: str, mode: Mode) -> None:
        """Both ways, for what ``dials`` has opened."""

        async def apply() -> None:
            self._proxies[dials].apply(Fault(dials, dialled, mode, True))

        self._do(apply())

    def close(self) -> None:
        for proxy in self._proxies.values():
            self._do(proxy.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _do(self, what: Coroutine[Any, Any, object]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(5)


class MirrorProcess(Child):
    """The MirrorMaker of one IDC."""

    def __init__(self, mirror: MirrorMaker, lib: Path) -> None:
        super().__init__("MirrorMaker", mirror.folder.with_suffix(".log"))
        self.mirror = mirror
        self._lib = lib

    def start(self) -> None:
        """Does not wait until it copies."""
        self.mirror.prepare()
        self.spawn(self.mirror.command(self._lib))

    def memory_mb(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) >> 10


class Mesh:
    """A Kafka for each IDC, which shows that IDC's certificate, and a MirrorMaker into each. They
    reach the others through ``links``, with the rights that they have in production."""

    def __init__(
        self, program: Program, folder: Path, pki: Path, idcs: Sequence[str], prefix: str = "im"
    ) -> None:
        self.pki, self.prefix, self.idcs = pki, prefix, tuple(idcs)
        pairs = list(permutations(idcs, 2))
        ports = free_ports(2 * len(pairs))
        listening = dict(zip(pairs, ports[::2], strict=True))
        self._reached = dict(zip(pairs, ports[1::2], strict=True))
        self.kafkas = {idc: KafkaProcess(program, folder / idc, pki) for idc in idcs}
        for idc, kafka in self.kafkas.items():
            (folder / idc).mkdir(parents=True)
            kafka.server = replace(
                kafka.server,
                certificate=idc,
                client=idc,
                remote={
                    dials: Listener(_at(listening[dials, idc]), _at(self._reached[dials, idc]))
                    for dials in idcs
                    if dials != idc
                },
            )
        self.links = Links(listening, self._reached)
        self.mirrors = {
            idc: MirrorProcess(self._mirror(idc, folder / f"{idc}-mm2"), program.path)
            for idc in idcs
        }

    def _mirror(self, idc: str, folder: Path) -> MirrorMaker:
        sources = tuple(
            Cluster(other, (_at(self._reached[idc, other]),), tls=True, sasl=False)
            for other in self.idcs
            if other != idc
        )
        own = Cluster(idc, (self.kafkas[idc].server.address,), tls=True, sasl=False)
        pem = self.pki
        shown = Credentials(pem / "ca.pem", pem / f"{idc}.pem", pem / f"{idc}.key")
        return MirrorMaker(folder, Flows(own, sources, self.prefix, 1), shown)

    def settings(self, idc: str, of: str | None = None) -> KafkaSettings:
        """To talk to the Kafka of ``idc`` as itself, or as another, which goes over the link."""
        there = self.kafkas[idc].server.address if of is None else _at(self._reached[of, idc])
        name, pem = of or idc, self.pki
        return KafkaSettings(
            brokers=(there,),
            prefix=self.prefix,
            ca_file=pem / "ca.pem",
            cert_file=pem / f"{name}.pem",
            key_file=pem / f"{name}.key",
            replication_factor=1,
            min_insync_replicas=1,
            deadline_s=2.0,
        )

    def start(self) -> None:
        """All Kafkas, until they serve and let the others read."""
        with ThreadPoolExecutor(len(self.idcs)) as pool:
            list(pool.map(KafkaProcess.start, self.kafkas.values()))
        for idc in self.idcs:
            asyncio.run(self._grant(idc))

    async def _grant(self, idc: str) -> None:
        on = cluster.Cluster(self.settings(idc), idc)
        try:
            for other in self.idcs:
                if other != idc:
                    may = acls.of_mirrors(on.settings.prefix)
                    await acls.allow(on, principal(other), may)
        finally:
            await on.close()

    def stop(self) -> None:
        for mirror in self.mirrors.values():
            mirror.kill()
        for kafka in self.kafkas.values():
            kafka.kill()
        self.links.close()


def _at(port: int) -> str:
    return f"127.0.0.1:{port}"


@contextlib.contextmanager
def running(program: Program, folder: Path, pki: Path, idcs: Sequence[str]) -> Iterator[Mesh]:
    mesh = Mesh(program, folder, pki, idcs)
    try:
        mesh.start()
        yield mesh
    finally:
        mesh.stop()


def gave_up(log: Path, since: int = 0) -> bool:
    """Whether the log says, behind ``since`` bytes, that a task was given up: the process lives
    and copies nothing any more, and must be started again. Reads no more than its last part."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(since, end - _LOG_TAIL_BYTES))
            return GIVEN_UP.encode() in file.read()
    except OSError:
        return False
