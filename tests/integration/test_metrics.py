"""What a running node tells a probe and Prometheus, and whom it tells it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from imcore.attest import RegionKeys
from imcore.errors import Code
from imcore.pki import dns_name
from imcore.proto import client_pb2 as pb
from imcore.tls import client_ssl_context
from imcore.tokens import Claims, mint
from imctl.testing.onenode import running
from services import https
from services.metrics.catalog import METRICS
from services.metrics.hot import WINDOW_S
from services.metrics.verbs import Verbs
from services.node.node import Node
from services.sdk import Client
from services.sdk.testing.app import eventually
from services.state.requests import SHORT_DEADLINE
from services.state.testing import Front
from tools.genmetrics import PAGE, page

# Only where there is another IDC, or MirrorMaker 2.
ELSEWHERE = {
    "im_replication_lag_records", "im_replication_lag_seconds", "im_replication_heard_seconds",
    "im_replication_unheld_records", "im_mirror_worker_age_seconds", "im_mirror_problem",
}  # fmt: skip


async def _get(node: Node, path: str, shows: str = "") -> tuple[int, str]:
    """``shows``: whose certificate the caller has."""
    pki: Path = node.config.pki
    context = client_ssl_context(pki / "ca.pem")
    if shows:
        context.load_cert_chain(pki / f"{shows}.pem", pki / f"{shows}.key")
    url = f"https://{node.config.idc.endpoints.metrics}{path}"
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.get(url, server_hostname=dns_name(node.idc)) as response,
    ):
        return response.status, await response.text()


async def _ready(node: Node) -> None:
    """Its lease is written and read within a second of its start."""
    async with asyncio.timeout(30):
        while (await _get(node, "/readyz")) != (200, "ok\n"):  # noqa: ASYNC110 - over HTTPS
            await asyncio.sleep(0.05)


async def _talk(node: Node) -> None:
    ca = node.config.pki / "ca.pem"
    token = mint(node.config.keys, Claims("annika", "phone", node.clock.wall_ms() + 60_000))
    ipconf = [f"https://{node.config.idc.endpoints.ipconf}"]
    async with Client(token, ipconf=ipconf, ca_file=ca, forwarded_for="127.0.0.1") as me:
        await me.send(me.direct("bob"), b"hello")
        # Of eight messages one is counted for the hottest at least.
        await asyncio.gather(*(me.send(me.direct("bob"), b"again") for _ in range(8)))
        group = await me.create_group(["bob"])
        await me.send(group, b"all", media=[await me.upload(b"a file")], sticker="smile")
        assert await me.stickers() == {}


async def test_a_node_shows_what_the_page_lists_and_nothing_else(tmp_path):
    async with running(tmp_path, False, edit=lambda spec: spec.update(media={})) as node:
        assert await _get(node, "/livez") == (200, "ok\n")
        await _ready(node)
        await _talk(node)
        measured = node.measured
        assert measured is not None
        measured.hot.turn(node.clock.now() + WINDOW_S)
        status, text = await _get(node, "/metrics", "viewer")
        assert status == 200
        families = {family.name: family for family in text_string_to_metric_families(text)}
        own = {metric.name.removesuffix("_total") for metric in METRICS}
        assert {name for name in families if name.startswith("im_")} == own
        for metric in METRICS:
            family = families[metric.name.removesuffix("_total")]
            assert family.type == metric.kind
            assert family.samples or metric.name in ELSEWHERE, metric.name
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == set(metric.labels)
        assert {name for name in families if not name.startswith("im_")} >= {
            "process_cpu_seconds", "process_resident_memory_bytes", "process_open_fds",
        }  # fmt: skip
        counts = {
            (s.labels["role"], s.labels["verb"]): s.value
            for s in families["im_request_seconds"].samples
            if s.name.endswith("_count")
        }
        assert counts["state", "send"] == counts["im", "send"] == 10
        assert counts["state", "connect"] == counts["ipconf", "gateways"] == 1
        assert counts["im", "group_create"] == 1
        assert counts["gateway", "request"] >= counts["state", "send"] + 2
        status, hottest = await _get(node, "/hot", "admin")
        assert status == 200
        assert "annika" in hottest
        assert "annika" not in text  # names of people are not labels


async def test_who_talks_and_how_much_is_for_people_with_a_certificate(tmp_path):
    async with running(tmp_path, False, callers=["stranger"]) as node:
        for path in ("/metrics", "/hot"):
            for shows in ("", "stranger", node.idc, "linkproxy"):
                status, text = await _get(node, path, shows)
                assert status == 403, (path, shows)
                assert "im_" not in text
            assert (await _get(node, path, "operator"))[0] == 200
        address = node.config.idc.endpoints.metrics
        with pytest.raises(aiohttp.ClientError):
            async with aiohttp.ClientSession() as session, session.get(f"http://{address}/livez"):
                pass


async def test_a_certificate_of_another_region_is_not_let_in(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "other").mkdir()
    async with running(tmp_path / "own", False) as node, running(tmp_path / "other", False) as far:
        context = client_ssl_context(node.config.pki / "ca.pem")
        context.load_cert_chain(far.config.pki / "viewer.pem", far.config.pki / "viewer.key")
        url = f"https://{node.config.idc.endpoints.metrics}/metrics"
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            async with (
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
                session.get(url, server_hostname=dns_name(node.idc)) as response,
            ):
                await response.text()


async def test_silent_connections_keep_no_probe_out(tmp_path, monkeypatch):
    monkeypatch.setattr(https, "OF_ONE_ADDRESS_MAX", 4)
    async with running(tmp_path, False) as node:
        await _ready(node)
        host, _, port = str(node.config.idc.endpoints.metrics).rpartition(":")
        tls: dict[str, Any] = {
            "ssl": client_ssl_context(node.config.pki / "ca.pem"),
            "server_hostname": dns_name(node.idc),
        }
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(12)]
        silent += [await asyncio.open_connection(host, int(port), **tls) for _ in range(12)]
        assert (await _get(node, "/livez"))[0] == 200
        for reader, _ in silent[12:20]:
            async with asyncio.timeout(5):  # they made room
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
        for _, writer in silent:
            writer.transport.abort()


async def test_it_says_why_it_is_not_ready(tmp_path):
    async with running(tmp_path, False) as node:
        await _ready(node)
        gateways, node.gateways = node.gateways, []
        status, text = await _get(node, "/readyz")
        assert (status, "no gateway of it is in discovery" in text) == (503, True)
        node.gateways = gateways
        node.serving = False
        status, text = await _get(node, "/readyz")
        assert (status, "roles are not all up" in text) == (503, True)
        assert (await _get(node, "/livez"))[0] == 200


async def test_a_deadline_that_a_client_sets_too_short_is_no_failure_of_the_service():
    async with Front(RegionKeys({1: b"k" * 32}, 1)) as front:
        verbs = Verbs()
        front.state.measure(verbs)
        client, _ = await front.connect("ann")
        front.im.mute = True
        for deadline_ms in (1, 9_999):
            request = pb.Request(deadline_ms=deadline_ms, sync=pb.Sync())
            asked = asyncio.ensure_future(client.ask(request))
            await eventually(lambda: front.state.queued()["requests"] == 1)
            front.state._requests.advance(200)  # twenty seconds pass
            assert (await asked).error.code == Code.DEADLINE
        assert verbs.known["sync"].failures == {SHORT_DEADLINE: 1, "deadline": 1}
        client.transport.abort()


async def test_without_an_endpoint_nothing_listens_and_nothing_is_measured(tmp_path):
    async with running(tmp_path, False, edit=_without_metrics) as node:
        assert node.measured is None
        assert node.im.verbs is None


def _without_metrics(spec: dict[str, Any]) -> None:
    for idc in spec["idcs"]:
        idc["endpoints"].pop("metrics", None)


def test_the_page_is_not_stale():
    assert page(PAGE.read_text()) == PAGE.read_text()
