"""Which messages of a client are followed, and the client's own spans of them.

Without a tracer there are none, and the service follows one message in so many all the same: its
trace begins at the gateway, under an id that ``Sent.traceparent`` tells.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from imcore.hlc import to_ms
from imcore.proto import client_pb2 as pb
from services.tracing.context import is_sampled, sampled

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer


RECENT_MS = 600_000


class Trace:
    """Of one message, from the call of ``send`` until it is stored."""

    __slots__ = ("_span", "context")

    def __init__(self, context: pb.TraceContext, span: Span | None) -> None:
        self.context = context
        self._span = span

    def end(self, problem: str = "") -> None:
        if self._span is not None:
            from services.tracing.spans import end

            end(self._span, problem)


class Traces:
    """``one_in``: of so many messages one is followed (0: none), and every one that is sent within
    a sampled span of the application."""

    def __init__(self, tracer: Tracer | None, one_in: int, rng: random.Random) -> None:
        self._tracer = tracer
        self._one_in = one_in
        self._rng = rng

    def begin(self) -> Trace | None:
        chosen = self._one_in > 0 and self._rng.randrange(self._one_in) == 0
        if self._tracer is None:
            if not chosen:
                return None
            # Ids of zeros are invalid.
            ids = self._rng.getrandbits(128) | 1, self._rng.getrandbits(64) | 1
            return Trace(sampled(*ids), None)
        # Not before there is a tracer: it takes longer to import than `imctl send` takes else.
        from opentelemetry.trace import get_current_span

        from services.tracing.spans import context_of

        if not chosen and not get_current_span().get_span_context().trace_flags.sampled:
            return None
        span = self._tracer.start_span("sdk.send")
        if not span.get_span_context().trace_flags.sampled:
            return None  # the application's own sampler does not want it
        return Trace(context_of(span), span)

    @property
    def follows(self) -> bool:
        """Whether there is anybody to tell of what is received."""
        return self._tracer is not None

    def received(self, entry: pb.Entry, wall_ms: int) -> None:
        """An entry of a followed message is here. What a new device reads of last year is no hop
        of its trace any more."""
        trace = entry.trace
        recent = wall_ms - to_ms(entry.hlc) < RECENT_MS
        if self._tracer is not None and recent and is_sampled(trace):
            from services.tracing.spans import begin

            begin(self._tracer, "sdk.receive", trace, None).end()
