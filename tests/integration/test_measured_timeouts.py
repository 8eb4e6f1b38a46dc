"""Time-outs that ipconf computes from what clients say that their connections took."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from imcore.proto import client_pb2 as pb
from imcore.tls import client_ssl_context, gateway_ssl_context
from services.ipconf.timeouts import LEAST
from services.linkproxy.model import LinkSpec, Mode
from services.linkproxy.proxy import Fault, LinkProxy
from services.node.testing_ipconf import IpconfSite
from services.policy.document import IdcState
from services.sdk import Client, IpconfClient, NotConnected, Options
from services.sdk.core.parameters import Parameters
from services.sdk.ipconf import Lookup, NoAnswer
from services.sdk.testing.app import App, eventually
from services.sdk.testing.scripted import Region, token_of
from services.state.testing import Front

PARAMETERS = {
    "heartbeat_ms": 200,
    "heartbeat_timeout_ms": 4_000,
    "connect_timeout_ms": 3_000,
    "backoff_base_ms": 5,
    "backoff_max_ms": 40,
}
FAR = LinkSpec(delay_ms=250)  # three round trips of half a second until it is connected over TLS
FAR_MS = 1_500


@asynccontextmanager
async def way_to(port: int) -> AsyncIterator[tuple[LinkProxy, int]]:
    """A link that adds nothing until it is told to, and the port that leads over it."""
    address = ("127.0.0.1", port)
    specs = {("app", "fra"): LinkSpec(), ("fra", "app"): LinkSpec()}
    proxy = LinkProxy({"app": address, "fra": address}, specs, random.Random(1))
    listening = (await proxy.listen({}))["app", "fra"][1]
    try:
        yield proxy, listening
    finally:
        await proxy.close()


def link(proxy: LinkProxy, spec: LinkSpec | None, mode: Mode = Mode.PASS) -> None:
    proxy.apply(Fault("app", "fra", mode, True, spec))


# ------------------------------------------------------------------- what an SDK says, and does


@pytest.fixture
async def region(pki_dir: Path) -> AsyncIterator[tuple[Region, LinkProxy]]:
    region = Region(gateway_ssl_context(pki_dir, "fra"), parameters=dict(PARAMETERS))
    await region.start("fra", "iad")
    region.order = ["fra"]
    fra = region.idcs["fra"]
    async with way_to(fra.port) as (proxy, listening):
        port, fra.port = fra.port, listening
        yield region, proxy
        fra.port = port
    await region.stop()


async def asked_again(region: Region) -> dict[str, str]:
    """What it said to ipconf after it was told to leave its gateway."""
    before = len(region.lookups)
    for idc in region.idcs.values():
        idc.everybody(pb.Event(close=pb.Close(reason="drained")))
    await eventually(lambda: len(region.lookups) > before)
    return region.lookups[before]


async def connected_again(app: App, idc: str = "fra") -> None:
    await eventually(lambda: app.client.state.idc == idc)


async def test_with_its_next_question_a_client_says_what_the_last_connection_took(
    region: tuple[Region, LinkProxy], ca_file: Path
) -> None:
    served, proxy = region
    fra = served.idcs["fra"]
    link(proxy, LinkSpec(delay_ms=50))
    async with App(served, ca_file, options=Options(network="wifi")) as ann:
        assert "connect_ms" not in served.lookups[0] and "heartbeat_ms" not in served.lookups[0]
        await eventually(lambda: fra.requests["heartbeat"] > 1)
        said = await asked_again(served)
        assert 300 <= int(said["connect_ms"]) < 3_000  # three round trips
        assert 100 <= int(said["heartbeat_ms"]) < 3_000
        # Said once: what comes now is of the new connection.
        await connected_again(ann)
        link(proxy, None)
        fra.mute.add("heartbeat")
        await asked_again(served)
        await connected_again(ann)
        said = await asked_again(served)
        assert "heartbeat_ms" not in said and int(said["connect_ms"]) < 3_000
        # Of another kind of network it says nothing yet.
        await connected_again(ann)
        ann.client.network("cellular")
        said = await asked_again(served)
        assert said["network"] == "cellular" and "connect_ms" not in said


async def test_a_dead_gateway_is_no_slow_network(
    region: tuple[Region, LinkProxy], ca_file: Path
) -> None:
    served, proxy = region
    served.parameters |= {"connect_timeout_ms": 1_000, "timeout_max_ms": 10_000}
    served.order = ["fra", "iad"]
    link(proxy, None, Mode.DROP)
    async with App(served, ca_file) as ann:
        assert ann.client.state.idc == "iad"
        await eventually(lambda: bool(served.reports), 6.0)
        assert served.reports[0]["idc"] == "fra"
        said = await asked_again(served)
        assert int(said["connect_ms"]) < 1_000
        assert ann.client._link._timeout_s() == 1.0


async def test_what_is_only_slow_is_reached_by_waiting_longer_and_then_said(
    region: tuple[Region, LinkProxy], ca_file: Path
) -> None:
    served, proxy = region
    served.parameters |= {"connect_timeout_ms": 600, "timeout_max_ms": 5_000}
    link(proxy, FAR)
    async with App(served, ca_file, options=Options(start_timeout_ms=20_000)) as ann:
        assert {report["failure"] for report in served.reports} <= {"timeout", "mute"}
        said = await asked_again(served)
        assert int(said["connect_ms"]) >= FAR_MS
        await ann.client.close()
    # An ipconf that says nothing of it, as older ones, is obeyed.
    del served.parameters["timeout_max_ms"]
    with pytest.raises(NotConnected):
        async with App(served, ca_file, options=Options(start_timeout_ms=4_000)):
            pass


async def test_over_a_cellular_network_the_answer_of_ipconf_itself_is_waited_for_longer(
    region: tuple[Region, LinkProxy], ca_file: Path
) -> None:
    served, _ = region
    async with way_to(urlsplit(served.url).port or 0) as (proxy, port):
        link(proxy, LinkSpec(delay_ms=400))  # three round trips: 2.4 s
        ipconf = IpconfClient([f"https://127.0.0.1:{port}"], ca_file, random.Random(1))
        try:
            answer = await ipconf.lookup(Lookup(token_of("ann"), "cellular"))
            assert [gateway.idc for gateway in answer.gateways] == ["fra"]
            await ipconf.close()  # and the connection, over which it would be one round trip
            with pytest.raises(NoAnswer):
                await ipconf.lookup(Lookup(token_of("ann"), "wifi"))
        finally:
            await ipconf.close()


# ------------------------------------------------------- a real ipconf, a real gateway, many SDKs


class Site(IpconfSite):
    """``wifi`` and ``cellular`` begin with time-outs to connect of so many ms."""

    def __init__(self, folder: Path, pki_dir: Path, port: int, wifi: int, cellular: int) -> None:
        super().__init__(folder, pki_dir, port=port)
        client = self.region.spec.client
        kind = client.cellular.model_copy(update={"connect_timeout_ms": cellular})
        parameters = client.model_copy(
            update={"connect_timeout_ms": wifi, "timeout_max_ms": 10_000, "cellular": kind}
        )
        spec = self.region.spec.model_copy(update={"client": parameters})
        self.region = self.region.model_copy(update={"spec": spec})


async def told(site: IpconfSite, ipconf: IpconfClient, network: str) -> Parameters:
    """What a client that comes now is told."""
    options = Options(network=network, start_timeout_ms=30_000)
    async with Client(site.token("newcomer"), ipconf, options=options) as client:
        answer = client._link.answer
        assert answer is not None
        return answer.parameters


async def come_and_go(
    site: IpconfSite, ipconf: IpconfClient, front: Front, network: str, uids: Sequence[str]
) -> None:
    """They connect, are sent away, and ask again."""
    options = Options(network=network, start_timeout_ms=60_000)
    clients = [Client(site.token(uid), ipconf, options=options) for uid in uids]
    try:
        await asyncio.gather(*(client.__aenter__() for client in clients))
        asked = len(front.im.sessions)
        front.state.close_all("drained")
        await eventually(lambda: len(front.im.sessions) >= asked + len(uids), 60.0)
    finally:
        await asyncio.gather(*(client.close() for client in clients))


async def test_who_comes_over_a_slow_network_is_told_what_those_before_needed(
    tmp_path: Path, pki_dir: Path
) -> None:
    count = int(LEAST) + 2
    tls = gateway_ssl_context(pki_dir, "fra"), client_ssl_context(pki_dir / "ca.pem")
    keys = IpconfSite(tmp_path, pki_dir).keys
    async with Front(keys, tls) as front, way_to(front.gateways[0].port) as (proxy, port):
        site = Site(tmp_path, pki_dir, port, wifi=3_000, cellular=1_000)
        await site.start()
        await site.holder.offer(site.policy(iad=IdcState.FAILED, sin=IdcState.FAILED))
        ipconf = IpconfClient([site.url], pki_dir / "ca.pem", random.Random(1))
        try:
            before = {each: await told(site, ipconf, each) for each in ("wifi", "cellular")}
            assert before["wifi"].connect_timeout_ms == 3_000
            assert before["cellular"].connect_timeout_ms == 1_000
            for number in range(0, count, 17):  # a few at a time: what is slow is the network
                uids = [f"w{each}" for each in range(number, min(number + 17, count))]
                await come_and_go(site, ipconf, front, "wifi", uids)
            link(proxy, FAR)  # it takes longer than they are told to wait
            uids = [f"c{each}" for each in range(count)]
            await come_and_go(site, ipconf, front, "cellular", uids)
            after = {each: await told(site, ipconf, each) for each in ("wifi", "cellular")}
            assert 2 * FAR_MS <= after["cellular"].connect_timeout_ms <= 10_000
            assert 1_500 <= after["wifi"].connect_timeout_ms <= 3_000
            for network in ("wifi", "cellular"):  # round trips of half a second need no more
                ms = before[network].heartbeat_timeout_ms
                assert after[network].heartbeat_timeout_ms == ms
        finally:
            await ipconf.close()
            await site.stop()
