"""A running ipconf of a region, for tests: its registries hold a gateway of each IDC."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import aiohttp
from aiohttp import web

from imcore.attest import RegionKeys
from imcore.pki import load_region_keys
from imcore.region.load import load_region
from imcore.region.model import Limits
from imcore.runtime import Clock, SystemClock
from imcore.tls import client_ssl_context, gateway_ssl_context
from imcore.tokens import Claims, mint
from services.engines.disk import RealDisk
from services.engines.registry_store import RegistryStore
from services.ipconf.directory import PREFIX as GATEWAYS
from services.ipconf.directory import Directory
from services.ipconf.locate import CountryTable
from services.ipconf.reports import Reports
from services.ipconf.server import IpconfServer
from services.policy.document import IdcPolicy, IdcState, Policy, initial
from services.policy.holder import PolicyHolder
from services.policy.poll import Poller

LOCATOR = CountryTable()
IDCS = ("fra", "iad", "sin")


class IpconfSite:
    """That of fra. ``url``: where, once started. ``port``: of every gateway that it knows."""

    def __init__(
        self, folder: Path, pki_dir: Path, limits: Limits | None = None, port: int = 17110
    ) -> None:
        self.folder = folder
        self.pki_dir = pki_dir
        self.keys: RegionKeys = load_region_keys(pki_dir)
        self.clock: Clock = SystemClock()
        region = load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml")
        spec = region.spec.model_copy(update={"limits": limits or region.spec.limits})
        self.region = region.model_copy(update={"spec": spec})
        self.port = port
        self.holder = PolicyHolder(folder / "policy.json", RealDisk())
        self.reports = Reports(IDCS)
        self.minority = False
        self.stores: dict[str, RegistryStore] = {}
        self.routes: Sequence[web.RouteDef] = ()  # what else is served there

    async def start(self) -> None:
        for idc in IDCS:
            store = await RegistryStore.open(
                str(self.folder / idc), RealDisk(), self.clock, random.Random(1)
            )
            self.stores[idc] = store
            row = {"idc": idc, "gateway": f"{idc}-gw-1", "host": "127.0.0.1", "port": self.port}
            value = json.dumps(row | {"connections": 5, "capacity": 100, "score": 0.95})
            await store.put(f"gateway/{idc}-gw-1".encode(), value.encode())
        self.poller = Poller(self.stores, self.clock, GATEWAYS)
        await self.poller.poll_all()
        self.poller.start()  # what it knows counts for two seconds only
        self.directory = Directory(IDCS, self.poller)
        self.server = IpconfServer(
            "fra",
            self.region,
            self.keys,
            self.holder,
            self.directory,
            LOCATOR,
            self.reports,
            self.clock,
            lambda: self.minority,
            routes=self.routes,
        )
        tls = gateway_ssl_context(self.pki_dir, "fra")
        port = await self.server.start("127.0.0.1", 0, tls)
        self.url = f"https://127.0.0.1:{port}"

    async def stop(self) -> None:
        await self.server.stop()
        await self.poller.stop()
        for store in self.stores.values():
            await store.close()

    def client(self) -> aiohttp.ClientSession:
        """To be closed by who asked for it."""
        connector = aiohttp.TCPConnector(ssl=client_ssl_context(self.pki_dir / "ca.pem"))
        return aiohttp.ClientSession(connector=connector)

    def token(self, uid: str = "alice", admin: bool = False, for_ms: int = 60_000) -> str:
        return mint(self.keys, Claims(uid, "phone", self.clock.wall_ms() + for_ms, admin))

    def policy(self, epoch: int = 3, **idcs: IdcState) -> Policy:
        base = initial(self.region, 0)
        states = {idc: IdcPolicy(state) for idc, state in idcs.items()}
        return Policy(epoch, {**base.idcs, **states})
