"""Trace contexts as they travel in requests, ops and entries. Pure; knows no tracing library."""

from __future__ import annotations

from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog

SAMPLED = 1  # the one flag that W3C Trace Context defines
_TRACE_BYTES, _SPAN_BYTES = 16, 8

# How `Op.trace` begins in a serialized op: field 5, 30 bytes; field 1 of these, 16 bytes. Looking
# for it costs a hundredth of parsing the op; where a message's text has it, the op is parsed.
_MARK = b"\x2a\x1e\x0a\x10"


def is_sampled(trace: pb.TraceContext) -> bool:
    """Whether it is a valid context of a trace that is to be followed. Ids of zeros are none."""
    return (
        trace.flags & SAMPLED == SAMPLED
        and len(trace.trace_id) == _TRACE_BYTES
        and len(trace.span_id) == _SPAN_BYTES
        and any(trace.trace_id)
        and any(trace.span_id)
    )


def sampled(trace_id: int, span_id: int) -> pb.TraceContext:
    return pb.TraceContext(
        trace_id=trace_id.to_bytes(_TRACE_BYTES, "big"),
        span_id=span_id.to_bytes(_SPAN_BYTES, "big"),
        flags=SAMPLED,
    )


def traceparent(trace: pb.TraceContext) -> str:
    """As the header of W3C Trace Context."""
    return f"00-{trace.trace_id.hex()}-{trace.span_id.hex()}-{trace.flags:02x}"


def of_payload(payload: bytes) -> pb.TraceContext | None:
    """The trace of a log record's payload; None: it is not followed."""
    if _MARK not in payload:
        return None
    op = oplog.Op.FromString(payload)
    return op.trace if op.HasField("trace") else None


class Allowance:
    """How many traces a process takes up: ``per_s``, and ``burst`` at once. A client asks for one
    with a bit, and each costs as much as the message itself."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left = burst
        self._at = 0.0

    def take(self, now: float) -> bool:
        """``now`` in seconds."""
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
