"""The SDK by QUIC, and how it gets on where that does not go: real sockets, real certificates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imcore.quic import server_configuration
from imcore.tls import gateway_ssl_context
from services.gateway.quic import QuicListener
from services.sdk.core import passage
from services.sdk.options import Options
from services.sdk.testing.app import App, eventually
from services.sdk.testing.scripted import Connection, Idc, Region
from tests.integration.udp import Line

PARAMETERS = {
    "connect_timeout_ms": 1_500,
    "backoff_base_ms": 5,
    "backoff_max_ms": 40,
    "heartbeat_ms": 500,
    "heartbeat_timeout_ms": 1_000,
}


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is busy with others TLS would win now and then."""
    monkeypatch.setattr(passage, "HEAD_START_S", 5.0)
    monkeypatch.setattr(passage, "HEAD_START_MAX_S", 5.0)


@pytest.fixture
async def region(pki_dir: Path) -> AsyncIterator[Region]:
    transports = ["quic", "tcp", "websocket", "polling"]
    parameters = {**PARAMETERS, "transports": transports}
    region = Region(gateway_ssl_context(pki_dir, "fra"), parameters=parameters)
    await region.start("fra", "iad")
    yield region
    await region.stop()


@pytest.fixture
async def listener(region: Region, pki_dir: Path) -> AsyncIterator[QuicListener]:
    """Of fra, at a port of its own, to which a ``Line`` leads from fra's."""
    made = QuicListener(
        lambda: Connection(region.idcs["fra"]),
        server_configuration(pki_dir, "fra"),
        5.0, 20.0, 1_000.0, 1_000.0,
    )  # fmt: skip
    await made.start("127.0.0.1", 0)
    yield made
    made.close()


@pytest.fixture
async def line(region: Region, listener: QuicListener) -> AsyncIterator[Line]:
    async with Line(listener.ports()[0], port=region.idcs["fra"].port) as line:
        yield line


async def chats(app: App, text: bytes, idc: Idc) -> None:
    await app.client.send("d:ann:bob", text)
    await eventually(lambda: text in app.list)
    assert idc.requests["connect"] == len(idc.connects)


async def test_what_ipconf_names_first_is_taken(
    region: Region, line: Line, ca_file: Path, patient: None
):
    fra = region.idcs["fra"]
    async with App(region, ca_file) as ann:
        assert ann.client.state.quic and ann.client.state.idc == "fra"
        await chats(ann, b"hello", fra)
        assert len(fra.connections) == len(fra.connects) == 1
    await eventually(lambda: not fra.connections)


async def test_it_is_not_tried_where_it_is_not_offered(region: Region, line: Line, ca_file: Path):
    region.parameters["transports"] = ["tcp", "websocket", "polling"]
    async with App(region, ca_file) as ann:
        assert not ann.client.state.quic
        await chats(ann, b"hello", region.idcs["fra"])
        assert not line.passed_up


async def test_where_udp_is_blocked_tls_is_there_at_once_and_that_is_remembered(
    region: Region,
    listener: QuicListener,
    line: Line,
    ca_file: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    fra = region.idcs["fra"]
    line.blocked = True
    loop = asyncio.get_running_loop()
    async with App(region, ca_file, options=Options(network="wifi")) as ann:
        assert not ann.client.state.quic and ann.client.state.idc == "fra"
        assert len(fra.connects) == 1
        link = ann.client._link
        here = link._passages.of(("wifi", ""))
        # The one that lost is waited for: then it is known that nothing passes.
        await eventually(lambda: not here.open(loop.time()))
        assert not region.reports, "the gateway is not to blame"
        line.blocked = False
        fra.connections[0].abort()
        await eventually(lambda: len(fra.connects) == 2)
        assert not ann.client.state.quic and not line.passed_up
        # Another network is another matter. Where QUIC passes it is to win, however slow this
        # machine is.
        monkeypatch.setattr(passage, "HEAD_START_S", 5.0)
        monkeypatch.setattr(passage, "HEAD_START_MAX_S", 5.0)
        ann.client.network("cellular")
        fra.connections[0].abort()
        await eventually(lambda: len(fra.connects) == 3 and ann.client.state.quic)
        assert not region.reports


async def test_the_first_connection_waits_a_quarter_of_a_second_at_most(
    region: Region, line: Line, ca_file: Path
):
    async with App(region, ca_file):
        pass  # all is loaded
    line.blocked = True
    loop, times_s = asyncio.get_running_loop(), [9.0]
    for number in range(5):  # the machine may stand still
        began = loop.time()
        async with App(region, ca_file, f"bob{number}") as bob:
            times_s.append(loop.time() - began)
            assert not bob.client.state.quic
        if times_s[-1] < 1.0:
            break
    assert min(times_s) < 1.0  # 0.25 and a handshake, on a busy machine


async def test_where_nobody_listens_by_udp_nothing_is_waited_for(region: Region, ca_file: Path):
    fra = region.idcs["fra"]
    async with App(region, ca_file) as ann:
        assert not ann.client.state.quic and len(fra.connects) == 1
        link = ann.client._link
        assert not region.reports and link._passages.of(("unknown", "")).open(0.0)


async def test_a_change_of_the_address_costs_no_reconnect(
    region: Region, listener: QuicListener, line: Line, ca_file: Path, patient: None
):
    fra = region.idcs["fra"]
    async with App(region, ca_file) as ann:
        assert ann.client.state.quic
        await chats(ann, b"at home", fra)
        line.rebind("127.0.0.2")  # a NAT, or the system, without a word to anybody
        await chats(ann, b"on the way", fra)
        assert listener.counters.migrated == 1
        before = len(line.sources)
        ann.client.network("cellular", "train")  # the application knows of it
        await eventually(lambda: len(line.sources) > before)
        await chats(ann, b"in the train", fra)
        assert listener.counters.migrated == 2
        assert len(fra.connects) == 1 and ann.connections == ["fra"]
        assert ann.list == [b"at home", b"on the way", b"in the train"]


async def test_in_the_background_it_is_quiet_for_no_longer_than_a_nat_remembers(
    region: Region, line: Line, ca_file: Path, patient: None
):
    region.parameters["background_heartbeat_max_ms"] = 240_000
    async with App(region, ca_file) as ann:
        assert ann.client.state.quic
        ann.client.background(True)
        for _ in range(40):
            longest = ann.client._longest()
            longest.survived(longest.interval_s)
        assert ann.client._longest().interval_s <= passage.QUIET_MAX_S


async def test_a_gateway_that_is_killed_is_found_out_by_the_next_datagram(
    region: Region, ca_file: Path, pki_dir: Path, patient: None
):
    fra = region.idcs["fra"]
    made = QuicListener(
        lambda: Connection(fra), server_configuration(pki_dir, "fra"), 5.0, 20.0, 1e3, 1e3
    )
    await made.start("127.0.0.1", fra.port)
    async with App(region, ca_file) as ann:
        assert ann.client.state.quic
        for bound in made._sockets:
            bound.close()
        passage.HEAD_START_S = passage.HEAD_START_MAX_S = 0.25
        began = asyncio.get_running_loop().time()
        await fra.stop()
        await ann.client.send("d:ann:bob", b"hello")
        assert asyncio.get_running_loop().time() - began < 3.0
        assert ann.client.state.idc == "iad"


async def test_a_path_that_dies_is_left_for_tls(
    region: Region, line: Line, ca_file: Path, patient: None
):
    fra = region.idcs["fra"]
    async with App(region, ca_file) as ann:
        assert ann.client.state.quic
        passage.HEAD_START_S = passage.HEAD_START_MAX_S = 0.25
        line.blocked = True
        await eventually(lambda: len(fra.connects) == 2 and bool(ann.client.state.idc), 10.0)
        assert not ann.client.state.quic and not ann.client.state.polling
        await chats(ann, b"hello", fra)
