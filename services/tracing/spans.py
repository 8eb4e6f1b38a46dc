"""Spans of OpenTelemetry for the hops of sampled messages; others cost nothing here."""

from __future__ import annotations

import time
from collections.abc import Callable

from opentelemetry import trace as otel
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, Status, StatusCode, TraceFlags

from imcore.proto import client_pb2 as pb
from services.tracing.context import Allowance, is_sampled, sampled

Value = str | int | float | bool


def wall_ns() -> int:
    """For ``begin``: when a span begins that is perhaps made later."""
    return time.time_ns()


def begin(
    tracer: otel.Tracer, name: str, parent: pb.TraceContext, began_ns: int | None, **of: Value
) -> Span:
    """Under a valid context; it ends by ``end``. ``began_ns`` None: now. ``of``: attributes."""
    remote = SpanContext(
        int.from_bytes(parent.trace_id, "big"),
        int.from_bytes(parent.span_id, "big"),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),  # its other bits are not ours
    )
    context = otel.set_span_in_context(NonRecordingSpan(remote))
    return tracer.start_span(name, context, attributes=of, start_time=began_ns)


class Tracing:
    """``allowance``: how many traces it takes up from outside, by ``now`` (seconds)."""

    def __init__(self, tracer: otel.Tracer, allowance: Allowance, now: Callable[[], float]) -> None:
        self._tracer = tracer
        self._allowance = allowance
        self._now = now

    def admit(self, name: str, parent: pb.TraceContext, **of: Value) -> Span | None:
        """A span for what a client asks to be followed. None: not sampled, or too many are."""
        if not is_sampled(parent) or not self._allowance.take(self._now()):
            return None
        return begin(self._tracer, name, parent, None, **of)

    def begin(self, name: str, parent: pb.TraceContext, **of: Value) -> Span:
        """Of a context that was admitted."""
        return begin(self._tracer, name, parent, None, **of)

    def hop(self, name: str, parent: pb.TraceContext, began_ns: int, **of: Value) -> None:
        """A span that ends now, of a context that was admitted."""
        begin(self._tracer, name, parent, began_ns, **of).end()


def context_of(span: Span) -> pb.TraceContext:
    context = span.get_span_context()
    return sampled(context.trace_id, context.span_id)


def end(span: Span, problem: str = "") -> None:
    if problem:
        span.set_status(Status(StatusCode.ERROR, problem))
    span.end()
