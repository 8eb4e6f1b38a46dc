"""A client whose long connections do not last: it polls, loses nothing by it, and comes back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from imcore.runtime import SystemClock
from imcore.tls import gateway_ssl_context
from services.gateway.config import GatewayConfig
from services.gateway.polling import ASKS, Polling
from services.linkproxy.model import LinkSpec, Mode
from services.linkproxy.proxy import Fault, LinkProxy
from services.sdk.core import degrade
from services.sdk.testing.app import App, eventually
from services.sdk.testing.scripted import Connection, Idc, Region

CHAT = "d:ann:bob"
PARAMETERS = {
    "heartbeat_ms": 300,
    "heartbeat_timeout_ms": 1_000,
    "connect_timeout_ms": 1_000,
    "backoff_base_ms": 5,
    "backoff_max_ms": 40,
    "idle_pull_ms": 60_000,
}


class Sniffing(asyncio.Protocol):
    """What a gateway does with a connection's first bytes."""

    def __init__(self, idc: Idc, polling: Polling) -> None:
        self._idc = idc
        self._polling = polling

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if data.startswith(ASKS):
            self._polling.begin(self._transport, data, 0)
            return
        connection = Connection(self._idc)
        self._transport.set_protocol(connection)
        connection.connection_made(self._transport)
        connection.data_received(data)


class Way:
    """The only one to the region's gateway. ``cut``: a proxy on it resets what is as old."""

    def __init__(self, proxy: LinkProxy, polling: Polling) -> None:
        self._proxy = proxy
        self.polling = polling

    def cut_after(self, life_ms: float) -> None:
        spec = LinkSpec(delay_ms=1, life_ms=life_ms)
        self._proxy.apply(Fault("ann", "fra", Mode.PASS, True, spec))


@pytest.fixture
async def region(pki_dir: Path) -> AsyncIterator[Region]:
    region = Region(gateway_ssl_context(pki_dir, "fra"), parameters=dict(PARAMETERS))
    await region.start("fra")
    yield region
    await region.stop()


@pytest.fixture
async def way(region: Region) -> AsyncIterator[Way]:
    fra = region.idcs["fra"]
    polling = Polling(GatewayConfig(), SystemClock(), lambda: Connection(fra))
    server = await asyncio.get_running_loop().create_server(
        lambda: Sniffing(fra, polling), "127.0.0.1", 0, ssl=region.tls
    )
    address = server.sockets[0].getsockname()[:2]
    specs = {("ann", "fra"): LinkSpec(), ("fra", "ann"): LinkSpec()}
    proxy = LinkProxy({"ann": address, "fra": address}, specs, random.Random(1))
    port, fra.port = fra.port, (await proxy.listen({}))["ann", "fra"][1]
    yield Way(proxy, polling)
    fra.port = port
    await proxy.close()
    await polling.stop()
    server.close()


async def test_it_polls_when_connections_are_cut_and_comes_back_by_itself(
    region, way, ca_file, monkeypatch
):
    monkeypatch.setattr(degrade, "BACK_S", 1.0)
    monkeypatch.setattr(degrade, "BACK_MAX_S", 1.0)
    monkeypatch.setattr(degrade, "LASTED_MS", 1_000)
    way.cut_after(500)
    async with App(region, ca_file, "ann") as ann, App(region, ca_file, "bob") as bob:
        sent: list[bytes] = []

        async def chat(until: bool) -> None:
            """Both talk until ann polls, or does so no longer."""
            async with asyncio.timeout(30):
                while ann.client.state.polling is not until:
                    sent.append(b"%d" % len(sent))
                    who = ann if len(sent) % 2 else bob
                    await who.client.send(CHAT, sent[-1])
                    await asyncio.sleep(0.01)

        await chat(True)
        for _ in range(30):  # on HTTP connections that are cut as well, but nobody feels it
            sent.append(b"%d" % len(sent))
            await ann.client.send(CHAT, sent[-1])
            await asyncio.sleep(0.02)
        way.cut_after(0)
        await chat(False)
        await eventually(lambda: len(ann.list) == len(bob.list) == len(sent))
        assert set(ann.list) == set(sent) and ann.list == bob.list
        # Nothing of ann was shown twice: App has seen to that. The session was resumed.
        connects = [c for c in region.idcs["fra"].connects if b"ann" in c.token]
        assert all(connect.resume_token == b"resume" for connect in connects[1:])
        await eventually(lambda: not bob.client.state.polling and not len(way.polling))


async def test_it_does_not_go_on_polling_in_another_network(region, way, ca_file):
    way.cut_after(300)
    async with App(region, ca_file, "ann") as ann:
        await eventually(lambda: ann.client.state.polling, 20.0)
        way.cut_after(0)
        ann.client.network("wifi", "at home")  # a minute before it would be tried in the other one
        await eventually(lambda: not ann.client.state.polling)


async def test_a_service_that_knows_no_polling_is_not_asked_for_ever(region, way, ca_file):
    way.polling._paths.clear()  # every request is answered with 404
    way.cut_after(150)
    async with App(region, ca_file, "ann") as ann:
        await eventually(lambda: len(region.idcs["fra"].connects) > 5)
        assert not ann.client.state.polling
        way.cut_after(0)
        await eventually(lambda: bool(ann.client.state.idc))
        await ann.client.send(CHAT, b"1")
