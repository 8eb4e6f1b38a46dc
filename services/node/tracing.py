"""Where the spans of a node go: into its log, and to a collector where OTEL_EXPORTER_OTLP_ENDPOINT
says so (docs/metrics.md)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)

from imcore.errors import BadInput
from imcore.logs import FIELDS
from imcore.runtime import Clock
from services.tracing.context import Allowance
from services.tracing.spans import Tracing

log = logging.getLogger("im.trace")

BURST = 20
EXPORT_S = 1.0  # retries included: a collector that hangs holds up the end of the process as long
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"  # a standard name of OpenTelemetry, as are its others


class LogExporter(SpanExporter):
    """A line in the log of the process for each span: `imctl logs --trace` finds it."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            log.info("%s: %s", span.name, _words(span), extra={FIELDS: _fields(span)})
        return SpanExportResult.SUCCESS


def _ms(span: ReadableSpan) -> float:
    return ((span.end_time or 0) - (span.start_time or 0)) / 1e6


def _words(span: ReadableSpan) -> str:
    problem = span.status.description
    return f"{_ms(span):.1f} ms" + (f", {problem}" if problem else "")


def _fields(span: ReadableSpan) -> dict[str, object]:
    context, parent = span.get_span_context(), span.parent
    return {
        "trace_id": f"{context.trace_id:032x}" if context else "",
        "span_id": f"{context.span_id:016x}" if context else "",
        "parent_id": f"{parent.span_id:016x}" if parent else "",
        "name": span.name,
        "ms": round(_ms(span), 3),
        **(span.attributes or {}),
    }


def provider_of(idc: str, exporters: Sequence[SpanExporter] = ()) -> TracerProvider:
    """``exporters``: beside the log and the collector, at once. Raises BadInput when a collector is
    named and what talks to it is not installed."""
    resource = Resource.create({"service.name": "im", "service.instance.id": idc})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in (LogExporter(), *exporters):
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    if os.environ.get(ENDPOINT):
        provider.add_span_processor(BatchSpanProcessor(_otlp()))
    return provider


def _otlp() -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise BadInput(
            f"{ENDPOINT} is set, and opentelemetry-exporter-otlp-proto-http is not installed: "
            "install imctl[otlp], or unset it"
        ) from error
    return OTLPSpanExporter(timeout=EXPORT_S)


def tracing_of(provider: TracerProvider, per_s: float, clock: Clock) -> Tracing:
    return Tracing(provider.get_tracer("im"), Allowance(per_s, BURST), clock.now)
