"""The ipconf API over HTTPS. Whatever request comes: it is answered by an error of its own or by
what it asked for, never by a 500; nothing is logged as an error; another client's request is
answered while this one's connection stands.

The input is the raw request; ``@TOKEN@`` and ``@ADMIN@`` in it stand for good tokens."""

from __future__ import annotations

import asyncio
import atexit
import json
import random
import ssl
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from fuzz.lab import BYSTANDER_S, FAR_MS, Loop, folder
from fuzz.target import Target
from imcore import pki
from imcore.pki import load_region_keys
from imcore.region.load import load_region
from imcore.runtime import SystemClock
from imcore.tls import client_ssl_context, gateway_ssl_context
from imcore.tokens import Claims, mint
from services.engines.disk import RealDisk
from services.engines.registry_store import RegistryStore
from services.ipconf.directory import PREFIX, Directory
from services.ipconf.locate import Cached, CountryTable
from services.ipconf.reports import Reports
from services.ipconf.server import IpconfServer
from services.policy.document import initial
from services.policy.holder import PolicyHolder
from services.policy.poll import Poller
from services.state.testing import FastClock

REGION = Path(__file__).parents[2] / "regions" / "three-idc.yaml"
IDCS = ("fra", "iad", "sin")
_ANSWER_S = 0.05  # for one that waits for more of its body, and gets none
_loop = Loop()
_api: list[Api] = []


class Api:
    """ipconf of one IDC; registries and policy are real, and full. Its clock runs fast: the limit
    on reports is of half a second, and inputs come faster."""

    async def start(self) -> None:
        place, clock = folder("ipconf"), SystemClock()
        pki.init(place / "pki", {"fra": ("127.0.0.1",)}, datetime.now(UTC))
        keys, region = load_region_keys(place / "pki"), load_region(REGION)
        holder = PolicyHolder(place / "policy.json", RealDisk())
        await holder.offer(initial(region, 0))
        stores = {}
        for idc in IDCS:
            store = await RegistryStore.open(str(place / idc), RealDisk(), clock, random.Random(1))
            row = {"idc": idc, "gateway": f"{idc}-gw-1", "host": "127.0.0.1", "port": 17110}
            value = json.dumps(row | {"connections": 5, "capacity": 100})
            await store.put(f"gateway/{idc}-gw-1".encode(), value.encode())
            stores[idc] = store
        self.poller = Poller(stores, clock, PREFIX)
        self._server = IpconfServer(
            "fra", region, keys, holder, Directory(IDCS, self.poller), Cached(CountryTable()),
            Reports(IDCS), FastClock(10_000.0),
        )  # fmt: skip
        tls = gateway_ssl_context(place / "pki", "fra")
        self.port = await self._server.start("127.0.0.1", 0, tls)
        self.tls: ssl.SSLContext = client_ssl_context(place / "pki" / "ca.pem")
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self.tls))
        atexit.register(lambda: _loop.run(self._http.close(), watched=False))
        self.token = mint(keys, Claims("mallory", "phone", FAR_MS)).encode()
        self.admin = mint(keys, Claims("root", "phone", FAR_MS, admin=True)).encode()
        self._bob = {"Authorization": f"Bearer {mint(keys, Claims('bob', 'phone', FAR_MS))}"}

    async def bystander(self) -> None:
        url = f"https://127.0.0.1:{self.port}/v1/gateways?network=wifi"
        async with asyncio.timeout(BYSTANDER_S), self._http.get(url, headers=self._bob) as answer:
            assert answer.status == 200, await answer.text()
            assert (await answer.json())["gateways"]


def check(data: bytes) -> None:
    _loop.run(_check(data))


async def _check(data: bytes) -> None:
    if not _api:
        api = Api()
        await api.start()
        _api.append(api)
    api = _api[0]
    await api.poller.poll_all()  # as its polling does while the loop runs by itself
    request = data.replace(b"@TOKEN@", api.token).replace(b"@ADMIN@", api.admin)
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port, ssl=api.tls)
    try:
        writer.write(request)
        await api.bystander()
        try:
            async with asyncio.timeout(_ANSWER_S):
                line = await reader.readline()
                body = await reader.read(65_536)
        except (TimeoutError, ConnectionError):
            return
        if line:
            status = int(line.split()[1])
            assert status < 500 or status == 503, (line, body)
    finally:
        writer.transport.abort()


def _request(line: str, *headers: str, body: str = "", token: str = "@TOKEN@") -> bytes:
    every = [
        line + " HTTP/1.1", "Host: ipconf", f"Authorization: Bearer {token}", "Connection: close",
        *headers, *([f"Content-Length: {len(body)}"] if body else []),
    ]  # fmt: skip
    return ("\r\n".join(every) + "\r\n\r\n" + body).encode()


def seeds() -> list[bytes]:
    report = {"reports": [{"gateway": "fra-gw-1", "idc": "fra", "failure": "refused"}]}
    chunked = "1\r\n[\r\n0\r\n\r\n"
    return [
        _request("GET /v1/gateways"),
        _request("GET /v1/gateways?network=cellular&last=iad-gw-1"),
        _request("GET /v1/gateways?network=cellular&connect_ms=1700&heartbeat_ms=600"),
        _request("GET /v1/gateways", "X-Forwarded-For: 8.8.8.8, 127.0.0.2"),
        _request("GET /v1/gateways", "X-Forwarded-For: 2001:4860::1"),
        _request("GET /v1/gateways", "X-Im-Address: 81.2.69.142", token="@ADMIN@"),
        _request("GET /v1/gateways", "X-Im-Address: ::ffff:1.2.3.4", token="@ADMIN@"),
        _request("POST /v1/reports", body=json.dumps(report)),
        _request("POST /v1/reports", body='{"reports": []}'),
        _request("POST /v1/reports", body="[" * 5_000),
        _request("POST /v1/reports", "Transfer-Encoding: chunked") + chunked.encode(),
        _request("PUT /v1/reports"), _request("GET /", token="x.y"), b"\x16\x03\x01", b"\r\n",
    ]  # fmt: skip


WORDS = [
    b"Content-Length: ", b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"%00", b"%ff",
    b"X-Forwarded-For: ", b"X-Im-Address: ", b"fe80::1%eth0", b"::ffff:0.0.0.0", b"[[[[[[[[",
    b"null", b"1e999", b'{"reports":', b"Content-Encoding: gzip", b"HTTP/1.0", b"OPTIONS * ",
    b"Upgrade: websocket", b"Content-Type: multipart/form-data; boundary=x", b"..%2f", b"?last=",
]  # fmt: skip
TARGET = Target("ipconf", check, seeds, words=WORDS, bytes_max=20_000, cpu_s=3.0)
