"""IDCs of real processes for a benchmark: their files, their start, their CPU time, their end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import yaml

from imcore import pki
from imcore.region.load import load_region
from imcore.region.model import Region
from imcore.runtime import SystemClock
from imctl import startup
from imctl.target.local import Local, pki_names
from imctl.target.places import free_port, free_ports
from imctl.testing.lab import lab_region
from services.node.roles import Roles

START_S = 60.0
STOP_S = 8.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A benchmark cannot be made; one line."""


class Consumer(Protocol):
    """Something that uses CPU time."""

    def cpu_s(self) -> float:
        """User and system time so far, all threads."""


class Processes:
    """Several, counted together."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids

    def cpu_s(self) -> float:
        """Raises Failed when one of them has ended."""
        return sum(_cpu_s(pid) for pid in self._pids)


def _cpu_s(pid: int) -> float:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        raise Failed(f"process {pid} ended while it was measured") from None
    return (int(stat[11]) + int(stat[12])) / _TICKS


class Process:
    """One child with its log file."""

    def __init__(self, name: str, child: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self.child = child

    def cpu_s(self) -> float:
        """User and system time so far, all threads."""
        return _cpu_s(self.child.pid)

    def check(self) -> None:
        if self.child.returncode is not None:
            last = self.log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise Failed(f"{self.name} ended: {last}")

    async def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.child.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await self.child.wait()
        except TimeoutError:
            self.child.kill()
            await self.child.wait()


async def spawn(name: str, command: Sequence[str], log: Path, env: dict[str, str]) -> Process:
    with log.open("ab") as file:
        child = await asyncio.create_subprocess_exec(
            *command, stdout=file, stderr=file, env=os.environ | env
        )
    return Process(name, child, log)


def one_idc(folder: Path, **limits: int) -> Region:
    """A region file with a single IDC, and its certificates; ``limits`` as there."""
    ends = ("gateway", "ipconf", "peer")
    ports = free_ports(len(ends))
    spec: dict[str, Any] = {
        "idcs": [
            {
                "name": "fra",
                "place": {
                    "city": "Frankfurt", "country": "DE", "latitude": 50.11, "longitude": 8.68
                },
                "endpoints": {e: f"127.0.0.1:{p}" for e, p in zip(ends, ports, strict=True)},
            }
        ],
        "geo": {"default": "europe", "shards": [{"name": "europe", "weights": {"fra": 1}}]},
        "limits": limits,
    }  # fmt: skip
    document = {
        "apiVersion": "imctl.dev/v1alpha1",
        "kind": "Region",
        "metadata": {"name": "bench"},
        "spec": spec,
    }
    (folder / "region.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return _with_pki(folder)


def three_idcs(folder: Path) -> Region:
    lab_region(folder)
    return _with_pki(folder)


def _with_pki(folder: Path) -> Region:
    region = load_region(folder / "region.yaml")
    pki.init(folder / "pki", pki_names(region), pki.utc_now(SystemClock().wall_ms()))
    return region


def gateways(region: Region) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for idc in region.spec.idcs:
        host, _, port = idc.endpoints.gateway.rpartition(":")
        found[idc.name] = [host, int(port)]
    return found


@contextlib.asynccontextmanager
async def running(
    folder: Path, region: Region, plain: bool, hops: bool = False, apart: bool = False
) -> AsyncIterator[dict[str, Process]]:
    """All processes of the region, serving. ``hops``: the nodes count CPU time by hop, and write
    it to ``hops-<idc>.json`` on SIGUSR1. ``apart``: the gateway of each IDC, with its state, is a
    process of its own, ``<idc>-gw``."""
    processes: dict[str, Process] = {}
    common = ["--region", str(folder / "region.yaml"), "--pki", str(folder / "pki")]
    try:
        if len(region.spec.idcs) > 1:
            links = folder / "links.json"
            command = [sys.executable, "-m", "services.linkproxy", *common, "--admin"]
            command += [f"127.0.0.1:{free_port()}", "--listen", str(links)]
            proxy = await spawn("linkproxy", command, folder / "linkproxy.log", {})
            processes["linkproxy"] = proxy
            await _until(lambda: links.exists(), [proxy], "the link proxy does not listen")
        module = "benchmarks.hops" if hops else "services.node"
        for idc in region.spec.idcs:
            data = folder / idc.name
            data.mkdir(exist_ok=True)
            command = [sys.executable, "-m", module, *common, "--idc", idc.name]
            command += ["--data", str(data), *(["--plain-clients"] if plain else [])]
            if len(region.spec.idcs) > 1:
                addresses = json.loads((folder / "links.json").read_text())[idc.name]
                (folder / f"{idc.name}-links.json").write_text(json.dumps(addresses))
                command += ["--links", str(folder / f"{idc.name}-links.json")]
            env = {"BENCH_HOPS": str(folder / f"hops-{idc.name}.json")} if hops else {}
            log = folder / f"{idc.name}.log"
            roles = ["--roles", ",".join(Roles.CORE.value)] if apart else []
            processes[idc.name] = await spawn(idc.name, [*command, *roles], log, env)
            if apart:
                name = f"{idc.name}-gw"
                command[command.index(str(data))] = str(folder / name)
                roles = ["--roles", ",".join(Roles.FRONT.value)]
                log = folder / f"{name}.log"
                processes[name] = await spawn(name, [*command, *roles], log, {})
        for idc in region.spec.idcs:
            log = folder / f"{idc.name}.log"
            served = f"{idc.name} serves as "
            await _until(
                lambda log=log, served=served: served in log.read_text(errors="replace"),
                list(processes.values()),
                f"{idc.name} does not serve",
            )
            if apart:
                log = folder / f"{idc.name}-gw.log"
                await _until(
                    lambda log=log: " serves (pid " in log.read_text(errors="replace"),
                    list(processes.values()),
                    f"the gateway of {idc.name} does not serve",
                )
        yield processes
    finally:
        await asyncio.gather(*(process.stop() for process in processes.values()))


class Deployed(NamedTuple):
    """``data``: with the certificates below; ``nodes`` and ``engines``: of all IDCs."""

    data: Path
    region: Region
    nodes: Processes
    engines: Processes


@contextlib.asynccontextmanager
async def deployed(folder: Path, engines: Sequence[str]) -> AsyncIterator[Deployed]:
    """The folder's region as `imctl up --engines` starts it, serving."""
    data = folder / "deployment"
    target = Local.prepare(folder / "region.yaml", data, False, SystemClock(), engines)
    try:
        await startup.start_all(target, lambda name, serving: None)
        pids = {unit.name: unit.pid for unit in target.units()}
        nodes = Processes([pids[idc.name] for idc in target.region.spec.idcs])
        beside = Processes([pids[name] for name in target.engine_names()])
        yield Deployed(data, target.region, nodes, beside)
    finally:
        await asyncio.to_thread(target.stop)


async def _until(holds: Any, alive: Sequence[Process], otherwise: str) -> None:
    deadline = asyncio.get_running_loop().time() + START_S
    while not holds():
        for process in alive:
            process.check()
        if asyncio.get_running_loop().time() > deadline:
            raise Failed(f"{otherwise} within {START_S:g} s")
        await asyncio.sleep(0.05)
