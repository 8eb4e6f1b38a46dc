"""A running admin API in front of a real im role, for tests."""

from __future__ import annotations

import random
from pathlib import Path

import aiohttp

from imcore.runtime import SystemClock
from imcore.servicetokens import Scope, Service, mint
from imcore.tls import client_ssl_context, gateway_ssl_context
from services.adminapi.server import AdminApi
from services.engines.disk import RealDisk
from services.engines.lmdb_kv import LmdbKv
from services.engines.log_store import SegmentLogStore
from services.im.testing import KEYS, Idc
from services.metrics.verbs import Verbs


class AdminSite:
    """That of fra, whose log iad holds as soon as it grows. ``url``: where, once started."""

    def __init__(self, folder: Path, pki_dir: Path, per_s: int = 10_000) -> None:
        self.pki_dir = pki_dir
        self.clock = SystemClock()
        self.verbs = Verbs()
        self._folder = folder
        self._per_s = per_s

    async def start(self) -> None:
        disk = RealDisk()
        logs = await SegmentLogStore.open(str(self._folder / "log"), 1, disk, random.Random(1))
        kv = await LmdbKv.open(str(self._folder / "kv"), disk)
        self.idc = Idc("fra.1", kv, logs, followers=["iad"])
        await self.idc.start()
        im = self.idc.im
        self.api = AdminApi(im, im.kick, im.stamp, KEYS, self.clock, self._per_s, self.verbs)
        tls = gateway_ssl_context(self.pki_dir, "fra")
        self.url = f"https://127.0.0.1:{await self.api.start('127.0.0.1', 0, tls)}"

    async def stop(self) -> None:
        await self.api.stop()
        await self.idc.stop()

    def client(self) -> aiohttp.ClientSession:
        """To be closed by who asked for it."""
        connector = aiohttp.TCPConnector(ssl=client_ssl_context(self.pki_dir / "ca.pem"))
        return aiohttp.ClientSession(connector=connector)

    def token(self, *scopes: Scope, name: str = "billing", for_ms: int = 60_000) -> str:
        """All scopes when none is named."""
        ends = self.clock.wall_ms() + for_ms
        return mint(KEYS, Service(name, "notices", scopes or tuple(Scope), ends))
