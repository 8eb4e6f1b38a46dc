"""Cores of one IDC on several hosts, each with a folder of its own, on a real Kafka and a real
etcd: the lease says who serves, the log's epochs keep out who was only paused."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from imcore import pki
from imcore.runtime import SystemClock
from imcore.servicetokens import Scope, Service, mint
from imcore.tls import client_ssl_context
from imctl.engines.binaries import Program
from imctl.target.places import free_port
from imctl.testing import etcd, kafka
from imctl.testing.child import Child
from imctl.testing.lab import lab_region, until
from imctl.testing.onenode import one_idc
from services.node.roles import Roles

SERVES, STANDS_BY = "serves as fra.1", "stands by"
START_S, ANSWER_S = 120.0, 30.0
WRITERS = 4


class Host(Child):
    """One core."""

    def __init__(self, folder: Path, number: int, name: str, admin_port: int) -> None:
        super().__init__(name, folder / f"{name}.log")
        address = self.address = f"127.0.0.{number}"
        self.url = f"https://{address}:{admin_port}/v1/messages"
        self._command = [
            sys.executable, "-m", "services.node", "--region", str(folder / "region.yaml"),
            "--idc", "fra", "--data", str(folder / name), "--pki", str(folder / "pki"),
            "--roles", ",".join(Roles.CORE.value), "--standby", "--instance", str(number),
            "--listen", address,
        ]  # fmt: skip

    def start(self) -> None:
        self.spawn(self._command)

    async def says(self, words: str, times: int = 1) -> None:
        """Until its log has said so that often."""

        async def holds() -> bool:
            assert self.alive, self.log.read_text()[-2000:]
            return self.log.read_text().count(words) >= times

        await until(holds, START_S, f"{self._name} does not say {words!r} {times} times")


@dataclass
class Operator:
    """A server that sends by the admin API. ``acked``: the keys that were answered with 200."""

    http: aiohttp.ClientSession
    token: str
    acked: list[str] = field(default_factory=list)

    async def send(self, host: Host, key: str) -> bool:
        """Whether it had been known before; ``acked`` says whether it is now."""
        headers = {"Authorization": f"Bearer {self.token}", "Idempotency-Key": key}
        body = {"to": f"u{hash(key) % 7}", "text": key}
        async with self.http.post(host.url, json=body, headers=headers) as answer:
            document = await answer.json()
            if answer.status == 200:
                self.acked.append(key)
            return bool(document.get("known"))

    async def deliver(self, host: Host, key: str) -> None:
        """Until it is acked."""

        async def acked() -> bool:
            await self.send(host, key)
            return self.acked[-1:] == [key]

        await until(acked, ANSWER_S, f"{key} is not acked")

    async def go_on(self, host: Host, name: str) -> None:
        """One message after the other, until one is not answered."""
        number = 0
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            while True:
                number += 1
                await self.send(host, f"{name}-{number}")


@pytest.fixture
def folder(tmp_path: Path, etcd_program: Program, kafka_program: Program) -> Iterator[Path]:
    """Of a region of one IDC, whose engines run."""
    keys = tmp_path / "pki"
    hosts = {"fra": ["127.0.0.1", "127.0.0.2"], "iad": ["127.0.0.1"]}
    pki.init(keys, hosts, datetime.now(UTC))
    with (
        etcd.running(etcd_program, tmp_path / "etcd", keys) as registry,
        kafka.running(kafka_program, tmp_path / "kafka", keys, flush=True) as log,
    ):
        files = {"ca_file": "ca.pem", "cert_file": "fra.pem", "key_file": "fra.key"}
        common = {name: str(keys / file) for name, file in files.items()}
        alone = {"replication_factor": 1, "min_insync_replicas": 1, "durability": "flush"}

        def edit(spec: dict[str, Any]) -> None:
            one_idc(spec)
            spec["limits"] = {"service_requests_per_s": 10_000}
            for name in ("admin", "metrics"):
                spec["idcs"][0]["endpoints"][name] = f"127.0.0.1:{free_port()}"
            spec["idcs"][0]["engines"] = {
                "registry": {"etcd": {"endpoints": [registry.server.address], **common}},
                "log": {"kafka": {"brokers": [log.server.address], **common, **alone}},
            }

        lab_region(tmp_path, edit)
        yield tmp_path


async def probed(folder: Path, host: Host) -> tuple[bool, bool]:
    """As a kubelet does it: whether it is alive, and whether it is ready."""
    ends = yaml.safe_load((folder / "region.yaml").read_text())["spec"]["idcs"][0]["endpoints"]
    metrics, peer = (int(ends[name].rpartition(":")[2]) for name in ("metrics", "peer"))
    url = f"https://{host.address}:{metrics}/livez"
    async with aiohttp.ClientSession() as http, http.get(url, ssl=False) as answer:
        lives = answer.status == 200
    try:
        _, writer = await asyncio.open_connection(host.address, peer)
    except ConnectionRefusedError:
        return lives, False
    writer.close()
    return lives, True


@pytest.fixture
async def operator(folder: Path) -> AsyncIterator[Operator]:
    service = Service("billing", "notices", tuple(Scope), SystemClock().wall_ms() + 600_000)
    token = mint(pki.load_region_keys(folder / "pki"), service)
    connector = aiohttp.TCPConnector(ssl=client_ssl_context(folder / "pki" / "ca.pem"), limit=0)
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        yield Operator(http, token)


@pytest.fixture
def hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    port = int((folder / "region.yaml").read_text().partition("admin: 127.0.0.1:")[2].split()[0])
    found = Host(folder, 1, "one", port), Host(folder, 2, "two", port)
    yield found
    for host in found:
        if host.alive:
            host.kill()


async def test_a_core_elsewhere_takes_over_from_a_paused_one_which_does_no_harm_when_it_wakes(
    hosts: tuple[Host, Host], operator: Operator, folder: Path
) -> None:
    one, two = hosts
    one.start()
    await one.says(SERVES)
    two.start()
    await two.says(STANDS_BY)
    assert await probed(folder, one) == (True, True)
    assert await probed(folder, two) == (True, False)
    writers = [asyncio.create_task(operator.go_on(one, f"one.{n}")) for n in range(WRITERS)]

    async def well_begun() -> bool:
        return len(operator.acked) > 5 * WRITERS

    await until(well_begun, ANSWER_S, "few messages are acked")
    one.pause()  # with requests on their way
    before = list(operator.acked)

    await two.says(SERVES)
    assert await probed(folder, two) == (True, True)
    for n in range(20):
        await operator.deliver(two, f"two-{n}")

    one.resume()
    await one.says("the lease of this core has ended, and another core has it")
    await one.says(STANDS_BY)
    assert await probed(folder, one) == (True, False)
    await asyncio.gather(*writers)
    late = [key for key in operator.acked if key not in before and not key.startswith("two-")]
    for n in range(20, 40):  # what the other one wrote behind its back has cost it an epoch at most
        await operator.deliver(two, f"two-{n}")

    two.kill()
    await one.says(SERVES, 2)
    acked, operator.acked = operator.acked, []
    lost = [key for key in acked if not await operator.send(one, key)]
    assert operator.acked == acked, "what was acked was not answered again"
    assert "is not whole" not in one.log.read_text() + two.log.read_text()  # their audit chains
    assert lost == [], f"acked and lost; when it woke, the paused one acked {late}"
