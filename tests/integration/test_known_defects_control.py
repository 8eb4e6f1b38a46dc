"""Known defects of systems like this, where traffic is steered; each fails without its fix."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imcore.pki import load_region_keys
from imcore.proto import oplog_pb2 as oplog
from imcore.region.load import load_region
from imcore.words import Origin
from services.control.caspaxos import Proposer
from services.engines.registry_store import RegistryStore
from services.node.config import NodeConfig
from services.node.node import Node
from services.node.traffic import LIVE_S, Traffic
from services.policy.document import IdcPolicy, IdcState, initial

REGION = load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml")
LEASE_MS = 700
SOON_S = 20.0


class Site:
    """An IDC's real traffic part over three real registries; one gateway of `iad` holds a lease."""

    def __init__(self, folder: Path, pki_dir: Path) -> None:
        self.folder = folder
        config = NodeConfig(
            REGION, REGION.idc("fra"), folder, pki_dir, load_region_keys(pki_dir), {}, False
        )
        self.node = Node(config)
        self.stores: dict[str, RegistryStore] = {}

    async def open(self) -> None:
        node = self.node
        for idc in REGION.spec.idcs:
            path = str(self.folder / f"registry-{idc.name}")
            self.stores[idc.name] = await RegistryStore.open(
                path, node.disk, node.clock, random.Random(1)
            )
        node.registries = dict(self.stores)
        node.proposer = Proposer(node.registries, "fra", node.clock, node.rng)
        self.traffic = Traffic(node)
        self.traffic.poller.start()
        self.iad = self.stores["iad"]
        self.lease = await self.iad.grant_lease(LEASE_MS)
        row = {"idc": "iad", "gateway": "iad-gw1.1", "host": "h", "port": 1}
        value = json.dumps(row | {"connections": 1, "capacity": 9}).encode()
        await self.iad.put(b"gateway/iad-gw1.1", value, self.lease)

    async def close(self) -> None:
        await self.traffic.poller.stop()
        await self.node.proposer.close()
        for store in self.stores.values():
            await store.close()

    def receivers(self) -> dict[str, list[str]]:
        """Where a signal to bob would be sent, as the node asks for it."""
        return self.node.routes.idcs_of(["bob"], self.traffic.usable)

    async def until(self, wanted: dict[str, list[str]], alive: bool) -> None:
        async with asyncio.timeout(SOON_S):
            while self.receivers() != wanted:
                if alive:
                    assert await self.iad.keep_alive(self.lease)
                await asyncio.sleep(0.05)


@pytest.fixture
async def site(tmp_path: Path, pki_dir: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path, pki_dir)
    await site.open()
    route = oplog.RouteOp(
        uid="bob", device="phone", connection_epoch=1, gateway="iad-gw1.1", connection=7
    )
    site.node.routes.apply(Origin("iad", 1), 10, route)
    try:
        yield site
    finally:
        await site.close()


async def test_routes_of_a_dead_gateway_are_not_used_any_more(site: Site) -> None:
    """Nobody writes a removal for a gateway that died: the route stays in the table, and only the
    end of the gateway's lease says that it leads nowhere."""
    await site.until({"iad": ["bob"]}, alive=True)
    for _ in range(8):  # a lease that is renewed keeps the route, for longer than it lasts
        assert await site.iad.keep_alive(site.lease)
        await asyncio.sleep(0.15)
        assert site.receivers() == {"iad": ["bob"]}
    await site.until({}, alive=False)
    assert site.node.routes.routes("bob")["phone"].gateway == "iad-gw1.1"


async def test_routes_of_a_gateways_earlier_life_are_not_used(site: Site) -> None:
    await site.until({"iad": ["bob"]}, alive=True)
    lease = await site.iad.grant_lease(60_000)
    row = {"idc": "iad", "gateway": "iad-gw1.2", "host": "h", "port": 1}
    value = json.dumps(row | {"connections": 1, "capacity": 9}).encode()
    await site.iad.put(b"gateway/iad-gw1.2", value, lease)
    await site.until({}, alive=False)
    assert site.traffic.usable("iad", "iad-gw1.2")


async def test_routes_of_an_idc_that_was_given_up_go_although_its_leases_live(site: Site) -> None:
    await site.until({"iad": ["bob"]}, alive=True)
    row = {"idc": "iad", "gateway": "iad-gw1.1", "host": "h", "port": 1}
    value = json.dumps(row | {"connections": 1, "capacity": 9}).encode()
    await site.iad.put(b"gateway/iad-gw1.1", value, await site.iad.grant_lease(60_000))
    policy = initial(REGION, 0)
    rows = {**policy.idcs, "iad": IdcPolicy(IdcState.FAILED)}
    await site.traffic.holder.offer(type(policy)(2, rows))
    await asyncio.sleep(2 * LIVE_S)
    assert site.traffic.directory.live_in("iad")
    assert site.receivers() == {}
