"""A message that is followed from its sender's SDK in one IDC to its receiver's in another."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from imcore import pki
from imcore.logs import JsonLines, parse
from imcore.proto import client_pb2 as pb
from imcore.region.load import load_region
from imcore.tls import client_ssl_context
from imcore.tokens import Claims, mint
from imctl.target.local import pki_names
from imctl.testing.lab import lab_region
from imctl.testing.onenode import running
from services.gateway.testing import dial
from services.node.config import load
from services.node.node import Node
from services.node.outside import Machine
from services.node.tracing import BURST, ENDPOINT, EXPORT_S, provider_of
from services.sdk import Client, Message, Options
from services.sdk.testing.app import eventually
from services.witness.witness import Witness

TWO = Path(__file__).parents[2] / "regions" / "two-idc.yaml"
GERMAN, IRISH = "85.214.132.117", "87.32.0.1"


@contextlib.asynccontextmanager
async def two_idcs(folder: Path, spans: InMemorySpanExporter) -> AsyncIterator[list[Node]]:
    """With their witness, all in this process; they serve."""
    path = lab_region(folder, source=TWO)
    region = load_region(path)
    pki.init(folder / "pki", pki_names(region), datetime.now(UTC))
    witness = Witness(region, folder / "witness", {}, Machine(folder / "pki", "witness"))
    nodes = [
        Node(
            load(path, idc.name, folder / idc.name, folder / "pki", None, False), exporters=[spans]
        )
        for idc in region.spec.idcs
    ]
    everything: list[Node | Witness] = [*nodes, witness]
    tasks = [asyncio.create_task(one.run()) for one in everything]
    try:
        async with asyncio.timeout(90):
            while not all(map(_knows_both, nodes)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield nodes
    finally:
        for one in everything:
            one.stop()
        await asyncio.gather(*tasks)


def _knows_both(node: Node) -> bool:
    """Clients may come, and its ipconf sends each to its own IDC."""
    return not node.monitor.not_ready() and len(node.traffic.directory.live()) == 2


def _client(nodes: list[Node], uid: str, address: str, options: Options) -> Client:
    token = mint(nodes[0].config.keys, Claims(uid, "phone", nodes[0].clock.wall_ms() + 60_000))
    ipconf = [f"https://{node.config.idc.endpoints.ipconf}" for node in nodes]
    ca = nodes[0].config.pki / "ca.pem"
    return Client(token, ipconf=ipconf, ca_file=ca, options=options, forwarded_for=address)


def _where(span: ReadableSpan) -> str:
    return str(span.resource.attributes.get("service.instance.id", "sdk"))


async def test_one_message_between_two_idcs_is_one_trace_with_every_hop(tmp_path, caplog):
    caplog.set_level(logging.INFO, "im.trace")
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("app")
    quiet = Options(trace_one_in=0, tracer=tracer)
    got = asyncio.Event()
    async with (
        two_idcs(tmp_path, exporter) as nodes,
        _client(nodes, "annika", GERMAN, quiet) as ann,
        _client(nodes, "bob", IRISH, quiet) as bob,
    ):
        assert (ann.state.idc, bob.state.idc) == ("fra", "dub")
        bob.on(lambda event: got.set() if isinstance(event, Message) else None)
        await (await ann.send(ann.direct("bob"), b"not followed")).replicated()
        await asyncio.wait_for(got.wait(), 30)
        assert exporter.get_finished_spans() == ()
        got.clear()
        with tracer.start_as_current_span("the application's"):
            sent = await ann.send(ann.direct("bob"), b"followed")
        await sent.replicated()
        await asyncio.wait_for(got.wait(), 30)
        # The sender's own device has it too, and each IDC has applied and pushed it.
        await eventually(lambda: len(exporter.get_finished_spans()) >= 11, 20.0)
        await asyncio.sleep(0.2)  # and nothing more comes
        await _metrics_of_two(nodes)
    trace_id = sent.traceparent.split("-")[1]
    spans = exporter.get_finished_spans()
    named = {(span.name, _where(span)): span for span in spans}
    assert {span.context.trace_id for span in spans} == {int(trace_id, 16)}
    assert set(named) == {
        ("the application's", "sdk"), ("sdk.send", "sdk"), ("gateway.request", "fra"),
        ("im.append", "fra"), ("im.apply", "fra"), ("push", "fra"), ("mirror.copy", "dub"),
        ("im.apply", "dub"), ("push", "dub"), ("sdk.receive", "sdk"),
    }  # fmt: skip
    assert sum(span.name == "sdk.receive" for span in spans) == 2
    way = [
        ("the application's", "sdk"), ("sdk.send", "sdk"), ("gateway.request", "fra"),
        ("im.append", "fra"),
    ]  # fmt: skip
    after = [("mirror.copy", "dub"), ("im.apply", "dub"), ("im.apply", "fra"), ("push", "dub")]
    links = [*pairwise(way), *((way[-1], one) for one in after)]
    for parent, child in links:
        above = named[child].parent
        assert above is not None, child
        assert above.span_id == named[parent].context.span_id, child
    append, copied = named["im.append", "fra"], named["mirror.copy", "dub"]
    assert append.attributes is not None and copied.attributes is not None
    assert append.attributes["lsn"] == copied.attributes["lsn"]
    lines = [parse(JsonLines().format(record)) for record in caplog.records]
    logged = {line["name"] for line in lines if line and line.get("trace_id") == trace_id}
    assert logged == {
        "gateway.request", "im.append", "im.apply", "mirror.copy", "push"
    }  # fmt: skip
    assert "annika" not in "".join(json.dumps(line) for line in lines)


async def _metrics_of_two(nodes: list[Node]) -> None:
    """What only an IDC with another one shows."""
    for node, other in ((nodes[0], "dub"), (nodes[1], "fra")):
        registry = node.monitor.registry
        flows = {"log": "im_replication_lag_records", "kv": "im_replication_lag_records"}
        for flow, name in flows.items():
            assert (
                registry.get_sample_value(name, {"peer": other, "flow": flow, "partition": ""})
                is not None
            )
        lag = {"peer": other, "flow": "kv"}
        assert registry.get_sample_value("im_replication_lag_seconds", lag) is not None
        for name in ("im_replication_heard_seconds", "im_replication_unheld_records"):
            assert registry.get_sample_value(name, {"peer": other}) is not None


async def test_a_client_cannot_have_everything_followed_nor_put_rubbish_in_the_log(tmp_path):
    exporter = InMemorySpanExporter()
    async with running(tmp_path, False, exporters=[exporter]) as node:
        tls = client_ssl_context(node.config.pki / "ca.pem")
        client = await dial(node.gateways[0].port, tls)
        token = mint(node.config.keys, Claims("ann", "phone", node.clock.wall_ms() + 60_000))
        connect = pb.Connect(token=token.encode(), connection_epoch=1)
        await client.ask(pb.Request(connect=connect))
        began = time.monotonic()
        for cid in range(1, 101):
            request = pb.Request(trace=pb.TraceContext(trace_id=b"t" * 16, span_id=b"s" * 8))
            request.trace.flags = cid % 2
            request.send.conversation, request.send.outbox = "d:ann:bob", "o1"
            request.send.cid, request.send.floor = cid, 1
            answer = await client.ask(request)
            assert answer.send_ack.lsn
        more = node.config.region.spec.tracing.per_s * (time.monotonic() - began)
        await asyncio.sleep(0.2)
        client.transport.abort()
        followed = [s for s in exporter.get_finished_spans() if s.name == "im.append"]
        assert BURST <= len(followed) <= BURST + 1 + more  # of 50 that asked for it


async def test_spans_go_to_a_collector_that_the_environment_names(tmp_path, monkeypatch):
    found: list[str] = []

    async def traces(request: web.Request) -> web.Response:
        body = ExportTraceServiceRequest.FromString(await request.read())
        for resource in body.resource_spans:
            found.extend(span.name for scope in resource.scope_spans for span in scope.spans)
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", traces)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    monkeypatch.setenv(ENDPOINT, f"http://{host}:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    async with (
        running(tmp_path, False) as node,
        _client([node], "ann", "127.0.0.1", Options(trace_one_in=1)) as ann,
    ):
        sent = await ann.send(ann.direct("bob"), b"hello")
        assert sent.traceparent
    await runner.cleanup()
    assert {"gateway.request", "im.append", "im.apply"} <= set(found)


def test_a_collector_that_hangs_does_not_hold_up_the_end(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:  # nobody accepts
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{listener.getsockname()[1]}")
        provider = provider_of("fra")
        provider.get_tracer("im").start_span("push").end()
        began = time.monotonic()
        provider.shutdown()
        assert time.monotonic() - began < 2 * EXPORT_S + 5
