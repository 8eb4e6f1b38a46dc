"""Which trace contexts are taken up, how they are found in a log, and how many."""

from __future__ import annotations

import random

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from imcore.hlc import from_ms
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from services.sdk.traces import RECENT_MS, Traces
from services.tracing.context import Allowance, is_sampled, of_payload, sampled, traceparent

GOOD = sampled(0xABC, 0x12)


def test_a_traceparent_is_that_of_the_w3c():
    assert traceparent(GOOD) == f"00-{'0' * 29}abc-{'0' * 14}12-01"


@pytest.mark.parametrize(
    "change",
    [
        {"flags": 0},
        {"trace_id": b"short"},
        {"trace_id": bytes(16)},
        {"span_id": bytes(8)},
        {"span_id": b"x" * 9},
        {"trace_id": b"x" * 1_000},
    ],
)
def test_what_is_no_sampled_context_is_not_followed(change):
    fields = {"trace_id": GOOD.trace_id, "span_id": GOOD.span_id, "flags": 1} | change
    assert is_sampled(GOOD)
    assert not is_sampled(pb.TraceContext(**fields))
    assert not is_sampled(pb.TraceContext())


def test_it_is_found_in_a_record_and_nothing_else_is():
    op = oplog.Op(hlc=(1 << 62), conversation="d:ann:bob", seq=1 << 40, wall_ms=1 << 41)
    op.message.content = b"\x2a\x1e\x0a\x10" * 4  # as a trace begins
    assert of_payload(op.SerializeToString()) is None
    op.trace.CopyFrom(GOOD)
    for _ in range(200):
        op.trace.trace_id = random.randbytes(16)
        op.hlc = random.getrandbits(64)
        assert of_payload(op.SerializeToString()) == op.trace


def test_clients_cannot_have_more_followed_than_is_allowed():
    allowance = Allowance(per_s=5, burst=20)
    assert sum(allowance.take(100.0) for _ in range(1_000)) == 20
    assert sum(allowance.take(101.0) for _ in range(1_000)) == 5
    assert sum(allowance.take(1_000.0) for _ in range(1_000)) == 20


def test_a_client_without_a_tracer_has_one_message_in_so_many_followed():
    traces = Traces(None, 10, random.Random(3))
    found = [trace for _ in range(5_000) if (trace := traces.begin()) is not None]
    assert 400 < len(found) < 600
    assert all(is_sampled(trace.context) for trace in found)
    assert len({trace.context.trace_id for trace in found}) == len(found)
    assert all(Traces(None, 0, random.Random(3)).begin() is None for _ in range(100))


def test_what_is_read_long_after_is_no_hop_any_more():
    spans = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    traces = Traces(provider.get_tracer("app"), 0, random.Random(3))
    entry = pb.Entry(hlc=from_ms(1_000_000_000), trace=GOOD)
    traces.received(entry, 1_000_000_000 + RECENT_MS)
    assert spans.get_finished_spans() == ()
    traces.received(entry, 1_000_000_000 + RECENT_MS - 1)
    assert [span.name for span in spans.get_finished_spans()] == ["sdk.receive"]
