"""Heartbeats of an application in the background: as seldom as its network allows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imcore.attest import RegionKeys
from imcore.proto import client_pb2 as pb
from imcore.region.model import ClientParameters
from imcore.runtime import ManualClock
from imcore.tls import gateway_ssl_context
from imcore.words import ClientKey
from services.gateway.config import GatewayConfig
from services.linkproxy.model import LinkSpec, Mode
from services.linkproxy.proxy import Fault, LinkProxy
from services.sdk.testing.app import App, eventually
from services.sdk.testing.scripted import Region
from services.state.testing import Front

CHAT = "d:ann:bob"
NAT_MS = 400
PARAMETERS = {
    "heartbeat_ms": 150,
    "heartbeat_timeout_ms": 300,
    "connect_timeout_ms": 1_000,
    "backoff_base_ms": 5,
    "backoff_max_ms": 40,
    "idle_pull_ms": 500,
    "background_heartbeat_max_ms": 5_000,
}


@pytest.fixture
async def region(pki_dir: Path) -> AsyncIterator[Region]:
    region = Region(gateway_ssl_context(pki_dir, "fra"), parameters=dict(PARAMETERS))
    await region.start("fra")
    yield region
    await region.stop()


@pytest.fixture
async def nat(region: Region) -> AsyncIterator[LinkProxy]:
    """On the way to the gateway; it forgets connections."""
    fra = region.idcs["fra"]
    address = ("127.0.0.1", fra.port)
    specs = {("ann", "fra"): LinkSpec(idle_ms=NAT_MS), ("fra", "ann"): LinkSpec()}
    proxy = LinkProxy({"ann": address, "fra": address}, specs, random.Random(1))
    port, fra.port = fra.port, (await proxy.listen({}))["ann", "fra"][1]
    yield proxy
    fra.port = port
    await proxy.close()


async def test_it_finds_out_what_a_nat_allows_and_messages_come_as_before(region, nat, ca_file):
    fra = region.idcs["fra"]
    async with App(region, ca_file) as ann:
        ann.client.background(True)
        for number in range(4):
            ann.client.network("wifi", f"home{number}")
            longest = ann.client._longest()
            # Longer and longer, until one was too long: then it was connected anew, and resumed.
            before = len(fra.connects)
            await eventually(
                lambda: longest._breaks_s is not None and len(fra.connects) > before,  # noqa: B023
                15.0,
            )
            if (longest._breaks_s or 0.0) > NAT_MS / 1000:
                break  # else this machine stood still for longer than the NAT remembers
        assert (longest._breaks_s or 0.0) > NAT_MS / 1000 > longest.interval_s > 0.15
        assert not region.reports  # it is no gateway's fault
        assert fra.connects[-1].resume_token == b"resume" and fra.connects[-1].network == "wifi"
        await eventually(lambda: bool(ann.client.state.idc))
        for cid in range(1, 4):
            fra.accept(ClientKey("bob", "phone", "box", CHAT, cid), b"bob %d" % cid)
        await eventually(lambda: len(ann.list) == 3)
        await eventually(lambda: sum(fra.acks.get(CHAT, {}).values()) == 3)  # acked, at once
        # Another network has its own; this one is remembered.
        ann.client.network("cellular")
        assert ann.client._longest() is not longest
        ann.client.network("wifi", f"home{number}")
        assert ann.client._longest() is longest
        ann.client.background(False)
        await eventually(lambda: fra.quiet_ms[-3:] == [0, 0, 0])
        with pytest.raises(ValueError, match="expected one of"):
            ann.client.network("5g")


async def test_a_service_that_allows_less_is_obeyed(region, ca_file):
    fra = region.idcs["fra"]
    fra.quiet_max_ms = 250
    region.parameters["heartbeat_timeout_ms"] = 10_000
    async with App(region, ca_file) as ann:
        ann.client.background(True)
        await eventually(
            lambda: max(fra.quiet_ms, default=0) > 250
        )  # the second step asks for more
        before = fra.requests["heartbeat"]
        await eventually(lambda: fra.requests["heartbeat"] > before + 2)
        assert ann.client._longest().interval_s <= 0.3 and len(fra.connects) == 1


async def test_a_lost_network_is_noticed_when_the_application_says_that_it_changed(
    region, nat, ca_file
):
    async with App(region, ca_file) as ann:
        ann.client.background(True)
        longest = ann.client._longest()
        longest.interval_s = 5.0
        await eventually(lambda: region.idcs["fra"].quiet_ms[-1:] == [5_000])
        nat.apply(Fault("ann", "fra", Mode.DROP, True))
        ann.client.network("cellular")
        await eventually(lambda: ann.client.state.idc == "", 3.0)  # not after five seconds
        nat.apply(Fault("ann", "fra", Mode.PASS, True))
        await eventually(lambda: ann.client.state.idc == "fra")
        assert longest._breaks_s is None  # that tells nothing of either network


# ------------------------------------------------------------------------------- the gateway

KEYS = RegionKeys({1: b"k" * 32}, 1)


def heartbeat(next_ms: int) -> pb.Request:
    return pb.Request(heartbeat=pb.Heartbeat(next_ms=next_ms))


async def test_a_gateway_waits_as_long_as_it_granted_and_no_longer():
    limits = GatewayConfig(idle_ms=200, tick_ms=20)
    parameters = ClientParameters(background_heartbeat_max_ms=700)
    clock = ManualClock()

    async def elapse(seconds: float) -> None:
        """A tick has seen it."""
        clock.advance(seconds)
        await asyncio.sleep(0.06)

    async with Front(KEYS, parameters=parameters, limits=limits, clock=clock) as front:
        ann, _ = await front.connect("ann")
        answer = await ann.ask(heartbeat(60_000))
        assert answer.heartbeat_ok.next_ms == 700
        for _ in range(5):
            await elapse(0.1)
        assert not ann.closed.done()  # more than twice as long as in the foreground
        for _ in range(6):
            await elapse(0.1)
        assert (await ann.event("close")).close.reason == "idle"

        bob, _ = await front.connect("bob")
        assert (await bob.ask(heartbeat(600))).heartbeat_ok.next_ms == 600
        assert (await bob.ask(heartbeat(0))).heartbeat_ok.next_ms == 0  # in the foreground again
        for _ in range(4):
            await elapse(0.1)
        assert (await bob.event("close")).close.reason == "idle"
