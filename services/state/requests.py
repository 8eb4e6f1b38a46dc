"""Requests between a session and im: each is answered exactly once, by im or by its deadline."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from opentelemetry.trace import Span

from imcore import frame
from imcore.convert import origin_of, vector_of
from imcore.errors import Code
from imcore.proto import client_pb2 as pb
from imcore.runtime import Clock
from services.gateway.wheel import TimingWheel
from services.metrics.verbs import Verbs
from services.ports import GatewayQueue, Im
from services.state.outgoing import TICK_S
from services.state.session import Record
from services.tracing.spans import Tracing, context_of, end

DEADLINE_S = 10.0
IN_FLIGHT_MAX = 1_000  # requests of one session that im has not answered
_PULL_ONLY = frozenset(("pull", "sync", "history", "group_info"))

MakeError = Callable[[Code, str, int], pb.Response]


class Answer:
    """What im calls once with the answer to a request; expires when it does not."""

    __slots__ = ("_began", "_connection", "_request_id", "_requests", "_span", "_verb", "record")

    def __init__(
        self,
        requests: Requests,
        record: Record,
        request_id: int,
        verb: str,
        span: Span | None = None,
    ) -> None:
        self._span = span
        self._requests = requests
        self._verb = verb
        self._began = requests.now()
        self._connection = record.connection
        self._request_id = request_id
        self.record = record

    def __call__(self, response: pb.Response) -> None:
        if not self._requests.answered(self):
            return
        if response.HasField("pull_ok"):
            for suspended in response.pull_ok.suspended:
                if suspended.sealed:
                    origin = origin_of(suspended.origin)
                    self.record.excuse(response.pull_ok.conversation, origin, suspended.end)
        self.send(response)

    def send(self, response: pb.Response) -> None:
        body = response.SerializeToString()
        if len(body) > frame.MESSAGE_BYTES_MAX:
            response = self._requests.too_large()
            body = response.SerializeToString()
        queue = self._requests.gateways[self.record.gateway]
        queue.send(self._connection, self._request_id, body)
        verbs, span = self._requests.verbs, self._span
        code = response.error.code if response.HasField("error") else ""
        if verbs is not None:
            verbs.done(self._verb, self._requests.now() - self._began, code)
        if span is not None:
            end(span, code)


class Requests:
    """``verbs``: where answers are counted, once something reads that; ``tracing``: where messages
    are followed."""

    def __init__(
        self, clock: Clock, gateways: Mapping[str, GatewayQueue], make_error: MakeError
    ) -> None:
        self.now = clock.now
        self.verbs: Verbs | None = None
        self.tracing: Tracing | None = None
        self._make_error = make_error
        self._deadlines: TimingWheel[Answer] = TimingWheel()
        self.gateways = gateways

    def submit(
        self, im: Im, record: Record, request_id: int, request: pb.Request, kind: str
    ) -> None:
        span = self._followed(record, request, kind) if request.HasField("trace") else None
        answer = Answer(self, record, request_id, kind, span)
        if record.pull_only and kind not in _PULL_ONLY:
            message = "a pull-only connection may only read"
            answer.send(self._make_error(Code.FORBIDDEN, message, 0))
            return
        if record.in_flight >= IN_FLIGHT_MAX:
            message = "too many requests are unanswered"
            answer.send(self._make_error(Code.OVERLOADED, message, 100))
            return
        if kind == "pull":
            have = vector_of(request.pull.have)
            record.ack(request.pull.conversation, have, self.now())
        deadline_s = min(request.deadline_ms / 1000 or DEADLINE_S, DEADLINE_S)
        record.in_flight += 1
        self._deadlines.schedule(answer, round(deadline_s / TICK_S) + 1)
        im.submit(record, request, answer)

    def _followed(self, record: Record, request: pb.Request, kind: str) -> Span | None:
        """A request that asks to be followed, and is from here on under a span of its own or not
        at all: what a client writes there comes no further unjudged."""
        span = None
        if self.tracing is not None:
            span = self.tracing.admit(
                "gateway.request", request.trace, verb=kind, gateway=record.gateway
            )
        if span is None:
            request.ClearField("trace")
        else:
            request.trace.CopyFrom(context_of(span))
        return span

    def answered(self, answer: Answer) -> bool:
        """False: it had been answered, or its deadline has passed."""
        if not self._deadlines.cancel(answer):
            return False
        answer.record.in_flight -= 1
        return True

    def __len__(self) -> int:
        """Requests that are not answered."""
        return len(self._deadlines)

    def too_large(self) -> pb.Response:
        message = "the answer is too large for one message; ask for less"
        return self._make_error(Code.TOO_LARGE, message, 0)

    def advance(self, ticks: int) -> int:
        """Answers what has waited too long; returns how many."""
        expired = self._deadlines.advance(ticks)
        for answer in expired:
            answer.record.in_flight -= 1
            message = "the request was not answered in time"
            answer.send(self._make_error(Code.DEADLINE, message, 200))
        return len(expired)
