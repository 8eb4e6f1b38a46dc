"""Several gateways are dialled when the best one does not answer: real sockets, real TLS."""

from __future__ import annotations

import asyncio
import gc
import queue
import random
import socket
import ssl
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from imcore import frame
from imcore.proto import client_pb2 as pb
from imcore.runtime import SystemClock
from imcore.tls import client_ssl_context, gateway_ssl_context
from imctl.loop import new_event_loop
from services.linkproxy.model import LinkSpec
from services.linkproxy.proxy import LinkProxy
from services.sdk.core.reconnect import Lost
from services.sdk.core.seen import Seen
from services.sdk.ipconf import Gateway
from services.sdk.session import Session, SessionLost
from services.sdk.testing.app import App, eventually
from services.sdk.testing.scripted import Region
from services.sdk.transport import PlaintextDialer, StreamWire, TlsDialer, Wire

PARAMETERS = {"connect_timeout_ms": 3_000, "backoff_base_ms": 5, "backoff_max_ms": 40}


@pytest.fixture
async def region(pki_dir: Path) -> AsyncIterator[Region]:
    region = Region(gateway_ssl_context(pki_dir, "fra"), parameters=dict(PARAMETERS))
    await region.start("fra", "iad", "sin")
    yield region
    await region.stop()


def failures(region: Region) -> dict[str, str]:
    return {report["idc"]: report["failure"] for report in region.reports}


async def test_one_that_never_answers_and_one_that_refuses_hold_nobody_up(region, ca_file):
    fra, iad, sin = region.idcs.values()
    await fra.stop()
    await iad.stop()
    with closing(socket.create_server(("127.0.0.1", fra.port))):  # nobody takes what comes
        began = asyncio.get_running_loop().time()
        async with App(region, ca_file) as ann:
            took_s = asyncio.get_running_loop().time() - began
            assert ann.client.state.idc == "sin" and len(sin.connects) == 1
            assert 1.0 <= took_s < 2.9  # the head start of the first, and no time-out
            # Whoever lost is found out all the same: it is what a failover goes by.
            await eventually(lambda: failures(region) == {"iad": "refused", "fra": "timeout"})
            assert ann.connections == ["sin"]


async def test_a_loser_costs_no_session(region, ca_file):
    fra, iad, _ = region.idcs.values()
    far = LinkSpec(delay_ms=250)  # three round trips until connected over TLS 1.3
    specs = {("ann", "fra"): far, ("fra", "ann"): far}
    port, address = fra.port, ("127.0.0.1", fra.port)
    proxy = LinkProxy({"ann": address, "fra": address}, specs, random.Random(1))
    fra.port = (await proxy.listen({}))["ann", "fra"][1]
    try:
        async with App(region, ca_file) as ann:
            assert ann.client.state.idc == "iad" and len(iad.connects) == 1
            link = ann.client._link
            await eventually(lambda: not link._dials._late and "fra-gw-1" in link._took)
            assert not fra.requests and not fra.connections and not region.reports
            # Now that it is known to be far away it is waited for.
            iad.connections[0].abort()
            link._last = None
            await eventually(lambda: ann.client.state.idc == "fra")
            assert len(iad.connects) == 1
    finally:
        fra.port = port
        await proxy.close()


async def test_what_nobody_acknowledges_is_not_sent_again_for_ever(region, ca_file):
    dialer = TlsDialer(client_ssl_context(ca_file))
    wire = await dialer.dial("127.0.0.1", region.idcs["fra"].port, 30.0, print, print)
    assert isinstance(wire, StreamWire) and wire._transport is not None
    raw = wire._transport.get_extra_info("socket")
    assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
    wire.close()


async def test_a_dial_that_is_given_up_in_its_last_step_leaves_no_connection(
    pki_dir: Path, ca_file: Path
) -> None:
    """Over TLS already, and only the gateway's preface has not come."""
    said, gone = asyncio.Event(), asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read(1)
        said.set()
        while await reader.read(1024):
            pass
        gone.set()
        writer.close()

    tls = gateway_ssl_context(pki_dir, "fra")
    async with await asyncio.start_server(mute, "127.0.0.1", ssl=tls) as server:
        port = server.sockets[0].getsockname()[1]
        dialer = TlsDialer(client_ssl_context(ca_file))
        dial = asyncio.create_task(
            dialer.dial("127.0.0.1", port, 30.0, lambda frame: None, lambda reason: None)
        )
        await asyncio.wait_for(said.wait(), 10)
        dial.cancel()
        await asyncio.wait([dial])
        assert dial.cancelled()
        await asyncio.wait_for(gone.wait(), 10)


def test_a_dial_that_is_given_up_as_tls_is_agreed_leaves_nothing_behind(
    pki_dir: Path, ca_file: Path
) -> None:
    """On a loop so busy that the gateway has answered before anybody has noticed that TCP is
    connected. With uvloop, as commands with many clients have it."""
    dialer = TlsDialer(client_ssl_context(ca_file))

    class Busy(asyncio.Protocol):
        """Holds up the turn of the loop in which the dial's connection was made, too."""

        def __init__(self, dial: asyncio.Task[Wire]) -> None:
            self._dial = dial

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            asyncio.get_running_loop().call_later(0.001, self._dial.cancel)
            time.sleep(0.2)
            transport.close()

    async def dial_and_give_up(port: int, other: int) -> None:
        def nothing(_: object) -> None: ...

        dial = asyncio.create_task(dialer.dial("127.0.0.1", port, 30.0, nothing, nothing))
        await asyncio.sleep(0)  # the dial is first
        busy = Busy(dial)
        await asyncio.get_running_loop().create_connection(lambda: busy, "127.0.0.1", other)
        await asyncio.wait([dial])
        assert dial.cancelled()

    async def main(port: int) -> None:
        loop = asyncio.get_running_loop()
        async with await loop.create_server(asyncio.Protocol, "127.0.0.1") as server:
            for _ in range(5):  # one is enough, most of the time
                await dial_and_give_up(port, server.sockets[0].getsockname()[1])
                await asyncio.sleep(0.05)
                gc.collect()

    with (
        gateway_of_its_own(gateway_ssl_context(pki_dir, "fra")) as port,
        warnings.catch_warnings(record=True) as unclosed,
    ):
        warnings.simplefilter("always", ResourceWarning)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main(port))
    assert [str(one.message) for one in unclosed] == []


@contextmanager
def gateway_of_its_own(tls: ssl.SSLContext) -> Iterator[int]:
    """One that takes connections, says nothing, and answers while this thread's loop is held up."""
    started: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = queue.Queue()

    async def main() -> None:
        over = asyncio.Event()
        async with await asyncio.start_server(lambda *_: None, "127.0.0.1", ssl=tls) as server:
            started.put((asyncio.get_running_loop(), over, server.sockets[0].getsockname()[1]))
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    loop, over, port = started.get(timeout=30)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()


async def test_who_is_turned_away_while_he_dials_leaves_no_connection_open():
    left = asyncio.Event()

    async def full(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        event = pb.Event()
        event.close.reason, event.close.retry_after_ms = "overloaded", 700
        said = frame.encode(frame.EVENT, 0, event.SerializeToString())
        writer.write(frame.server_preface(1) + said)
        await reader.read()  # whatever ends it on this side gets lost on the way
        left.set()
        writer.close()

    server = await asyncio.start_server(full, "127.0.0.1", 0)
    gateway = Gateway("fra", "fra-gw-1", *server.sockets[0].getsockname()[:2])
    session = Session(gateway, Seen(), SystemClock(), lambda *_: None)
    await session.dial(PlaintextDialer(), 5.0)
    with pytest.raises(SessionLost) as error:
        await session.connect(pb.Connect(), 5.0)
    assert error.value.lost == Lost("overloaded", 0, 700)
    session.close()
    async with asyncio.timeout(5):
        await left.wait()
    server.close()
