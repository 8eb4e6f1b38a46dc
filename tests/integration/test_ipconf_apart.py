"""An ipconf in a process of its own: what it answers with its core, without it, after a restart.
The registries of three IDCs are real and are asked over gRPC with certificates."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from imcore import pki
from imcore.errors import BadInput
from imcore.proto import ipconf_pb2 as pb
from imcore.proto import ipconf_pb2_grpc as ipconf_rpc
from imcore.proto import peer_pb2_grpc as rpc
from imcore.region.load import load_region
from imcore.region.model import Region
from imcore.region.rules import ipconf_addresses, registry_prefix
from imcore.runtime import SystemClock
from imcore.tls import client_ssl_context
from imcore.tokens import Claims, mint
from imctl.target.local import pki_names
from imctl.testing.etcd import EtcdProcess
from imctl.testing.lab import lab_region, row_of_ports
from imctl.testing.onenode import running
from services.control.caspaxos import Proposer
from services.engines.disk import RealDisk
from services.engines.etcd.registry import EtcdRegistry
from services.engines.registry_grpc import RegistryServicer
from services.engines.registry_store import RegistryStore
from services.ipconf.reports import Reports
from services.metrics.verbs import Verbs
from services.node.authorize import Authorizer
from services.node.config import NodeConfig, load
from services.node.external import etcd_settings
from services.node.ipconf import IpconfNode
from services.node.ipconfs import Ipconfs
from services.node.outside import Machine
from services.node.roles import Roles, parse_roles
from services.node.swaps import RegistryLimits
from services.policy.document import POLICY_KEY, initial

IDCS = ("fra", "iad", "sin")
EPOCH = 7
CLOCK = SystemClock()


def two_ipconfs(spec: dict[str, Any]) -> None:
    first = spec["idcs"][0]
    first["ipconfs"] = 2
    first["endpoints"]["ipconf"] = f"127.0.0.1:{row_of_ports(spec, 2)}"


class Cores:
    """What an ipconf asks of the cores of three IDCs: their registries, and the ear of its own."""

    def __init__(self, folder: Path, region: Region) -> None:
        self._folder, self._region = folder, region
        self.stores: dict[str, RegistryStore | EtcdRegistry] = {}
        self._servers: dict[str, grpc.aio.Server] = {}
        self.reports = Reports(IDCS)
        self.verbs = Verbs()
        self.ipconfs = Ipconfs("fra", self.reports, CLOCK, lambda: 0, self.verbs)

    async def start(self) -> None:
        for name in IDCS:
            store = self.stores[name] = await self._open(name)
            row = {"idc": name, "gateway": f"{name}-gw1", "host": "127.0.0.1", "port": 1}
            value = json.dumps(row | {"connections": 1, "capacity": 10}).encode()
            await store.put(f"gateway/{name}-gw1".encode(), value)
        proposers = [Proposer(self.stores, name, CLOCK, random.Random(name)) for name in IDCS]
        await asyncio.gather(*(each.ensure_member() for each in proposers))
        document = replace(initial(self._region, 0), epoch=EPOCH).to_json()
        await proposers[0].change(POLICY_KEY, lambda _: document)
        for each in proposers:
            await each.close()
        for name in IDCS:
            await self.serve(name)

    async def _open(self, name: str) -> RegistryStore | EtcdRegistry:
        idc = self._region.idc(name)
        if (etcd := idc.engines.registry.etcd) is not None:
            return EtcdRegistry(etcd_settings(etcd, registry_prefix(self._region, idc)), name)
        folder = str(self._folder / "registries" / name)
        return await RegistryStore.open(folder, RealDisk(), CLOCK, random.Random(name))

    async def serve(self, name: str) -> None:
        limits = RegistryLimits(name, self.stores[name]).limits
        address = self._region.peer(name)
        server = Machine(self._folder / "pki", name).server([Authorizer(IDCS, limits)], address)
        rpc.add_RegistryServicer_to_server(RegistryServicer(self.stores[name]), server)
        if name == "fra":
            ipconf_rpc.add_IpconfServicer_to_server(self.ipconfs, server)
        await server.start()
        self._servers[name] = server

    async def kill(self, name: str) -> None:
        await self._servers.pop(name).stop(None)

    async def stop(self) -> None:
        for name in list(self._servers):
            await self.kill(name)
        for store in self.stores.values():
            await store.close()


class Site:
    """``async with site.ipconf(1):`` while it runs; then ``await site.ask()``."""

    def __init__(self, folder: Path, edit: Callable[[dict[str, Any]], None] = two_ipconfs) -> None:
        self.folder = folder
        self.file = lab_region(folder, edit)
        self.region = load_region(self.file)
        pki.init(folder / "pki", pki_names(self.region), datetime.now(UTC))
        self.cores = Cores(folder, self.region)
        self.addresses = ipconf_addresses(self.region.idc("fra"))
        self._running: dict[int, tuple[IpconfNode, asyncio.Task[None]]] = {}

    def config(self, number: int, folder: str = "") -> NodeConfig:
        data = self.folder / (folder or f"ipconf-{number}")
        return load(
            self.file, "fra", data, self.folder / "pki", None, False, roles=Roles.IPCONF,
            instance=number,
        )  # fmt: skip

    async def start(self, number: int = 1, folder: str = "") -> IpconfNode:
        node = IpconfNode(self.config(number, folder))
        self._running[number] = node, asyncio.create_task(node.run())
        return node

    async def end(self, number: int = 1) -> None:
        node, task = self._running.pop(number)
        node.stop()
        await task

    async def stop(self) -> None:
        for number in list(self._running):
            await self.end(number)
        await self.cores.stop()

    async def request(self, method: str, path: str, number: int = 1, **more: Any) -> Any:
        """(status, document)"""
        keys = pki.load_region_keys(self.folder / "pki")
        token = mint(keys, Claims("ann", "phone", CLOCK.wall_ms() + 600_000))
        connector = aiohttp.TCPConnector(ssl=client_ssl_context(self.folder / "pki" / "ca.pem"))
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            aiohttp.ClientSession(headers=headers, connector=connector) as session,
            session.request(
                method, f"https://{self.addresses[number - 1]}{path}", **more
            ) as response,
        ):
            return response.status, await response.json() if response.status != 204 else None

    async def answer(self, fits: Callable[[dict[str, Any]], bool], number: int = 1) -> Any:
        """The first that fits."""
        seen: Any = None
        try:
            async with asyncio.timeout(20):
                while True:
                    try:
                        status, seen = await self.request("GET", "/v1/gateways", number)
                    except aiohttp.ClientError as error:
                        status, seen = 0, str(error)
                    if status == 200 and fits(seen):
                        return seen
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"no such answer; the last one: {seen}") from None


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    await made.cores.start()
    yield made
    await made.stop()


def idcs(document: dict[str, Any]) -> set[str]:
    return set(document["idcs"])


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing to wait on
            await asyncio.sleep(0.02)


async def test_every_instance_answers_by_the_registries_of_all_idcs(site: Site) -> None:
    for number in (1, 2):
        await site.start(number)
        found = await site.answer(
            lambda each: idcs(each) == set(IDCS) and not each["stale"], number
        )
        assert found["policy_epoch"] == EPOCH
        assert found["shard"] and found["placement"]

    def told() -> list[tuple[int, int]]:
        return [(row["instance"], row["policy_epoch"]) for row in site.cores.ipconfs.status()]

    # What it told first may have been before it knew the policy.
    await until(lambda: told() == [(1, EPOCH), (2, EPOCH)])


async def test_without_its_core_it_sends_clients_to_the_other_idcs(site: Site) -> None:
    await site.start()
    await site.answer(lambda each: idcs(each) == set(IDCS))
    await site.cores.kill("fra")
    found = await site.answer(lambda each: idcs(each) == {"iad", "sin"} and not each["stale"])
    assert found["policy_epoch"] == EPOCH
    # Started while the core is away, it answers all the same.
    await site.start(2)
    await site.answer(lambda each: idcs(each) == {"iad", "sin"} and not each["stale"], 2)
    await site.cores.serve("fra")
    await site.answer(lambda each: idcs(each) == set(IDCS))


async def test_a_restart_serves_no_lower_epoch_and_a_blank_disk_none(site: Site) -> None:
    """Invariant of ``services.policy.holder``: what was served is on the disk."""
    await site.start()
    await site.answer(lambda each: each["policy_epoch"] == EPOCH and not each["stale"])
    await site.end()
    for name in ("fra", "sin"):
        await site.cores.kill(name)
    again = await site.start()
    found = await site.answer(lambda each: idcs(each) == {"iad"})
    assert (found["policy_epoch"], found["stale"]) == (EPOCH, True)
    assert again.not_ready() == []

    blank = await site.start(2)
    await asyncio.sleep(4)
    status, document = await site.request("GET", "/v1/gateways", 2)
    assert (status, document["error"]["message"]) == (503, "no policy is known yet")
    assert blank.not_ready() == [
        "no policy is known yet: no majority of the registries has told it"
    ]

    await site.cores.serve("sin")
    for number in (1, 2):
        found = await site.answer(lambda each: not each["stale"], number)
        assert found["policy_epoch"] == EPOCH


async def test_without_a_majority_it_keeps_its_policy_and_says_so(site: Site) -> None:
    await site.start()
    await site.answer(lambda each: not each["stale"])
    for name in ("fra", "iad"):
        await site.cores.kill(name)
    found = await site.answer(lambda each: each["stale"] and idcs(each) == {"sin"})
    assert found["policy_epoch"] == EPOCH


async def test_an_etcd_of_its_own_idc_is_asked_itself(
    tmp_path: Path, etcd_process: EtcdProcess, pki_dir: Path
) -> None:
    def on_etcd(spec: dict[str, Any]) -> None:
        two_ipconfs(spec)
        spec["idcs"][0]["engines"] = {
            "registry": {
                "etcd": {
                    "endpoints": [etcd_process.server.address],
                    "ca_file": str(pki_dir / "ca.pem"),
                    "cert_file": str(pki_dir / "fra.pem"),
                    "key_file": str(pki_dir / "fra.key"),
                    "prefix": tmp_path.name,
                }
            }
        }

    site = Site(tmp_path, on_etcd)
    await site.cores.start()
    try:
        await site.start()
        await site.answer(lambda each: idcs(each) == set(IDCS))
        for name in ("fra", "iad"):
            await site.cores.kill(name)
        await site.answer(lambda each: idcs(each) == {"fra", "sin"})
        await asyncio.sleep(3)  # STALE_S: its etcd and sin are a majority
        await site.answer(lambda each: idcs(each) == {"fra", "sin"} and not each["stale"])
    finally:
        await site.stop()


async def test_its_core_hears_reports_and_counts_and_without_it_they_go_elsewhere(
    site: Site,
) -> None:
    body: dict[str, Any] = {
        "json": {"reports": [{"gateway": "iad-gw1", "idc": "iad", "failure": "dial"}]}
    }
    cores = site.cores
    await site.start()
    await site.answer(lambda each: True)
    await until(cores.ipconfs.status)
    assert await site.request("POST", "/v1/reports", **body) == (204, None)
    await until(lambda: cores.reports.counts(CLOCK.now())["iad"] == 1)
    assert cores.reports.counts(CLOCK.now()) == {"fra": 0, "iad": 1, "sin": 0}

    await cores.kill("fra")
    async with asyncio.timeout(30):
        while (await site.request("POST", "/v1/reports", **body))[0] != 503:  # noqa: ASYNC110
            await asyncio.sleep(0.3)
    await asyncio.sleep(2.5)  # HEARD_S
    assert cores.ipconfs.status() == []


async def test_answers_counted_while_the_core_was_away_are_told_later(tmp_path: Path) -> None:
    def with_metrics(spec: dict[str, Any]) -> None:
        two_ipconfs(spec)
        spec["idcs"][0]["endpoints"]["metrics"] = f"127.0.0.1:{row_of_ports(spec, 1)}"

    site = Site(tmp_path, with_metrics)
    await site.cores.start()
    try:
        await site.start()
        await site.answer(lambda each: idcs(each) == set(IDCS))
        verbs = site.cores.verbs
        await until(lambda: "gateways" in verbs.known)
        await site.cores.kill("fra")
        before = sum(verbs.known["gateways"].buckets)
        for _ in range(5):
            await site.request("GET", "/v1/gateways")
        await asyncio.sleep(2)  # it tells them, in vain
        assert sum(verbs.known["gateways"].buckets) == before
        await site.cores.serve("fra")
        await until(lambda: sum(verbs.known["gateways"].buckets) >= before + 5)
    finally:
        await site.stop()


async def test_an_ipconf_of_another_idc_is_not_heard(site: Site) -> None:
    channel = Machine(site.folder / "pki", "iad").channel("fra", site.region.peer("fra"))
    stub: Any = ipconf_rpc.IpconfStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Tell(pb.IpconfSaid(instance=1, ready=True))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert site.cores.ipconfs.status() == []
    await channel.close(None)


def test_what_is_told_to_such_a_process_is_checked(tmp_path: Path) -> None:
    assert parse_roles("ipconf") is Roles.IPCONF
    assert parse_roles("control,im,route") is Roles.CORE_ALONE
    file = lab_region(tmp_path, two_ipconfs)
    pki.init(tmp_path / "pki", pki_names(load_region(file)), datetime.now(UTC))

    def read(idc: str, roles: Roles, **more: Any) -> NodeConfig:
        return load(
            file, idc, tmp_path / "data", tmp_path / "pki", None, False, roles=roles, **more
        )

    assert read("fra", Roles.IPCONF, instance=2, monitor_port=9).instance == 2
    assert read("fra", Roles.CORE_ALONE).roles is Roles.CORE_ALONE
    for idc, roles, more, why in (
        ("fra", Roles.IPCONF, {"instance": 3}, "1 to 2 .its ipconfs. with --roles ipconf"),
        ("fra", Roles.IPCONF, {"gateway_port": 9}, "only with --roles gateway,state"),
        (
            "fra",
            Roles.CORE_ALONE,
            {"monitor_port": 9},
            "only with --roles gateway,state, ipconf or r",
        ),
        ("iad", Roles.IPCONF, {}, "--roles ipconf: expected `ipconfs` of 1 or more at iad"),
        ("iad", Roles.CORE_ALONE, {}, "--roles im,route,control: expected `ipconfs`"),
    ):
        with pytest.raises(BadInput, match=why):
            read(idc, roles, **more)


async def test_in_one_process_ipconf_listens_at_each_address_and_files_where_the_region_says(
    tmp_path: Path,
) -> None:
    def edited(spec: dict[str, Any]) -> None:
        two_ipconfs(spec)
        spec["media"] = {}
        spec["idcs"][0]["endpoints"]["media"] = f"127.0.0.1:{row_of_ports(spec, 1)}"

    async with running(tmp_path, False, edit=edited) as node:
        ends = node.config.idc.endpoints
        claims = Claims("ann", "phone", CLOCK.wall_ms() + 600_000)
        headers = {"Authorization": f"Bearer {mint(node.config.keys, claims)}"}
        context = client_ssl_context(tmp_path / "pki" / "ca.pem")
        connector = aiohttp.TCPConnector(ssl=context)
        await until(node.traffic.directory.live)
        async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
            for address in ipconf_addresses(node.config.idc):
                async with session.get(f"https://{address}/v1/gateways") as response:
                    document = await response.json()
                assert document["media"] == [{"idc": "fra", "url": f"https://{ends.media}"}]
                async with session.get(f"https://{address}/v1/stickers") as response:
                    assert response.status == 404
            async with session.get(f"https://{ends.media}/v1/stickers") as response:
                assert (response.status, await response.json()) == (200, {})
