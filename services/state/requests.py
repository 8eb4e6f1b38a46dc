"""Requests between a session and im: each is answered exactly once, by im or by its deadline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from opentelemetry.trace import Span

from imcore import frame
from imcore.breaker import Breaker
from imcore.bucket import Buckets
from imcore.convert import origin_of, vector_of
from imcore.errors import Code, retry_after_ms
from imcore.limits import PULLS_MAX
from imcore.proto import client_pb2 as pb
from imcore.region.model import Limits
from imcore.runtime import Clock
from services.gateway.wheel import TimingWheel
from services.metrics.verbs import Verbs
from services.ports import GatewayQueue, Im
from services.state.latency import AckLatency, Acks
from services.state.outgoing import TICK_S
from services.state.session import Record
from services.state.shedding import BEHIND, READS, Shedder
from services.tracing.spans import Tracing, context_of, end

DEADLINE_S = 10.0
IN_FLIGHT_MAX = 1_000  # requests of one session that im has not answered
_PULL_ONLY = frozenset(("pull", "pulls", "sync", "history", "group_info"))  # reads
_PULLS_COST = 0.5  # of each of several in one request, beside one that comes alone
_BURST_S = 2.0  # a user's requests of so many seconds may come at once
_FULL_RETRY_MS = 500
# An im that answers nothing at all for as many requests is not asked for a while.
BREAKER_FAILURES = 50
BREAKER_PAUSE_S = 0.5
BREAKER_PAUSE_MAX_S = 4.0
SHORT_DEADLINE = "short_deadline"  # what it is counted as
_TIMELY_S = DEADLINE_S / 4  # a client that sets itself a shorter deadline proves nothing

MakeError = Callable[[Code, str, int], pb.Response]


class Answer:
    """What im calls once with the answer to a request; expires when it does not."""

    __slots__ = (
        "_connection",
        "_pulls",
        "_request_id",
        "_requests",
        "_span",
        "_verb",
        "began",
        "record",
        "timely",
    )

    def __init__(
        self,
        requests: Requests,
        record: Record,
        request_id: int,
        verb: str,
        span: Span | None = None,
        pulls: Sequence[pb.Pull] = (),
    ) -> None:
        self._span = span
        self._pulls = [pull.conversation for pull in pulls]
        self._requests = requests
        self._verb = verb
        self.began = requests.now()
        self.timely = False  # it has a deadline that im should meet
        self._connection = record.connection
        self._request_id = request_id
        self.record = record

    @property
    def is_send(self) -> bool:
        return self._verb == "send"

    def __call__(self, response: pb.Response) -> None:
        if not self._requests.answered(self):
            return
        if response.HasField("send_ack"):
            self._requests.took(self.began)
        several = response.HasField("pulls_ok")
        for conversation, answer in zip(
            self._pulls, response.pulls_ok.answers if several else [response], strict=False
        ):
            self._pulled(conversation, answer)
        self.send(response)

    def _pulled(self, conversation: str, answer: pb.Response) -> None:
        """What the session is not owed any more."""
        for suspended in answer.pull_ok.suspended:
            if suspended.sealed:
                self.record.excuse(conversation, origin_of(suspended.origin), suspended.end)
        if answer.pull_ok.left or answer.error.code == Code.FORBIDDEN:
            self.record.forget(conversation)

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
            # What a client asks in too little time for anybody is no failure of the service.
            counted = SHORT_DEADLINE if code == Code.DEADLINE and not self.timely else code
            verbs.done(self._verb, self._requests.now() - self.began, counted)
        if span is not None:
            end(span, code)


class Requests:
    """``verbs``: where answers are counted, once something reads that; ``tracing``: where messages
    are followed."""

    def __init__(
        self,
        clock: Clock,
        gateways: Mapping[str, GatewayQueue],
        make_error: MakeError,
        limits: Limits,
    ) -> None:
        self.now = clock.now
        self.verbs: Verbs | None = None
        self.tracing: Tracing | None = None
        self._in_flight_max = limits.idc_in_flight
        self._users = Buckets(limits.user_requests_per_s, _BURST_S * limits.user_requests_per_s)
        self.shedder = Shedder(limits.delay_ms / 1000, limits.fold_delay_ms / 1000)
        self.breaker = Breaker(BREAKER_FAILURES, BREAKER_PAUSE_S, BREAKER_PAUSE_MAX_S)
        self.overloaded = 0  # answered so, for whatever reason
        self._make_error = make_error
        self._deadlines: TimingWheel[Answer] = TimingWheel()
        self._acks = AckLatency()
        self.gateways = gateways

    def submit(
        self, im: Im, record: Record, request_id: int, request: pb.Request, kind: str
    ) -> None:
        span = self._followed(record, request, kind) if request.HasField("trace") else None
        asked = _pulls(request, kind)
        pulls = asked[:PULLS_MAX]  # im refuses more, and here they are no work
        answer = Answer(self, record, request_id, kind, span, pulls)
        if record.pull_only and kind not in _PULL_ONLY:
            message = "a pull-only connection may only read"
            answer.send(self._make_error(Code.FORBIDDEN, message, 0))
            return
        if refusal := self._refusal(record, kind, 1.0 + _PULLS_COST * max(0, len(asked) - 1)):
            answer.send(refusal)
            return
        for pull in pulls:
            record.ack(pull.conversation, vector_of(pull.have), self.now())
        deadline_s = min(request.deadline_ms / 1000 or DEADLINE_S, DEADLINE_S)
        answer.timely = deadline_s >= _TIMELY_S
        record.in_flight += 1
        self._deadlines.schedule(answer, round(deadline_s / TICK_S) + 1)
        im.submit(record, request, answer)

    def _refusal(self, record: Record, kind: str, cost: float) -> pb.Response | None:
        """What is said before im is asked. The cheapest look comes first, and what concerns this
        client alone before what concerns all."""
        now = self.now()
        if record.in_flight >= IN_FLIGHT_MAX:
            return self._overloaded("too many requests are unanswered", 100)
        if wait_s := self._users.take(record.uid, now, cost):
            return self._overloaded("too many requests of this user", round(wait_s * 1000))
        if len(self._deadlines) >= self._in_flight_max:
            return self._overloaded("the IDC works on too many requests", _FULL_RETRY_MS)
        if retry_ms := self.shedder.retry_ms(record.uid, kind in READS, now):
            return self._overloaded(BEHIND, retry_ms)
        if wait_s := self.breaker.wait_s(now):
            message = "the IDC answers no requests now"
            return self._make_error(Code.UNAVAILABLE, message, retry_after_ms(wait_s))
        return None

    def _overloaded(self, message: str, retry_ms: int) -> pb.Response:
        self.overloaded += 1
        return self._make_error(Code.OVERLOADED, message, max(1, retry_ms))

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
        self.breaker.succeeded()
        if not self._deadlines.cancel(answer):
            return False
        answer.record.in_flight -= 1
        return True

    def took(self, began: float) -> None:
        """A send was acked, or not in its time."""
        now = self.now()
        self._acks.add(now, now - began)

    def acks(self) -> Acks:
        """Of the last ten seconds."""
        return self._acks.seen(self.now())

    def ack_buckets(self) -> Counter[int]:
        return self._acks.buckets(self.now())

    def __len__(self) -> int:
        """Requests that are not answered."""
        return len(self._deadlines)

    def too_large(self) -> pb.Response:
        message = "the answer is too large for one message; ask for less"
        return self._make_error(Code.TOO_LARGE, message, 0)

    def advance(self, ticks: int) -> int:
        """Answers what has waited too long; returns how many."""
        expired = self._deadlines.advance(ticks)
        now = self.now()
        for answer in expired:
            if answer.timely:
                self.breaker.failed(now)
            answer.record.in_flight -= 1
            if answer.is_send:
                self.took(answer.began)
            message = "the request was not answered in time"
            answer.send(self._make_error(Code.DEADLINE, message, 200))
        return len(expired)


def _pulls(request: pb.Request, kind: str) -> Sequence[pb.Pull]:
    if kind == "pull":
        return (request.pull,)
    return request.pulls.pulls if kind == "pulls" else ()
