"""How long acks took: percentiles over the last seconds, and from where to where it is measured."""

from __future__ import annotations

from typing import Any

import pytest

from imcore.errors import Code
from imcore.proto import client_pb2 as pb
from imcore.region.model import Limits
from imcore.runtime import ManualClock
from services.state.latency import WINDOW_S, AckLatency
from services.state.requests import Requests
from services.state.session import Record


def test_percentiles_are_within_a_bucket_of_the_exact_ones() -> None:
    acks = AckLatency()
    assert acks.seen(0.0) == (0, None, None)
    for ms in range(1, 1001):
        acks.add(5.0, ms / 1000)
    seen = acks.seen(5.0)
    assert seen.sends == 1000
    assert seen.p50_ms == pytest.approx(500, rel=0.05)
    assert seen.p99_ms == pytest.approx(990, rel=0.05)
    assert (seen.p50_ms or 0) >= 500, "never better than it was"
    assert (seen.p99_ms or 0) >= 990


def test_only_the_last_seconds_count_also_when_nothing_comes_any_more() -> None:
    acks = AckLatency()
    acks.add(0.5, 9.0)
    acks.add(WINDOW_S - 0.1, 0.001)
    assert acks.seen(WINDOW_S - 0.1).sends == 2
    assert acks.seen(WINDOW_S + 0.1).sends == 1
    assert acks.seen(3 * WINDOW_S).sends == 0
    acks.add(4 * WINDOW_S, 0.0)
    assert acks.seen(4 * WINDOW_S).sends == 1


class Im:
    def __init__(self) -> None:
        self.replies: list[Any] = []

    def submit(self, record: Record, request: pb.Request, reply: Any) -> None:
        self.replies.append(reply)


class Queue:
    def send(self, connection: int, request_id: int, body: bytes) -> None: ...


def requests_and(im: Im, kind: str) -> tuple[ManualClock, Requests]:
    clock = ManualClock()
    requests = Requests(clock, {"gw": Queue()}, error, Limits())  # type: ignore[dict-item]
    request = pb.Request(deadline_ms=2_000)
    getattr(request, kind).SetInParent()
    record = Record(id="s", uid="u", device="d", gateway="gw", connection=1, connection_epoch=1)
    requests.submit(im, record, 1, request, kind)  # type: ignore[arg-type]
    return clock, requests


def error(code: Code, message: str, retry_after_ms: int) -> pb.Response:
    response = pb.Response()
    response.error.code = code
    return response


def test_an_ack_is_timed_from_the_request_to_the_answer() -> None:
    im = Im()
    clock, requests = requests_and(im, "send")
    clock.advance(0.25)
    response = pb.Response()
    response.send_ack.outcome = pb.SendAck.ACCEPTED
    im.replies[0](response)
    assert requests.acks().p99_ms == pytest.approx(250, rel=0.05)


def test_a_send_that_nobody_answers_in_time_took_all_of_it_and_a_refused_one_is_none() -> None:
    im = Im()
    clock, requests = requests_and(im, "send")
    clock.advance(3.0)
    assert requests.advance(100_000) == 1
    assert requests.acks().p99_ms == pytest.approx(3_000, rel=0.05)
    im.replies[0](pb.Response())
    assert requests.acks().sends == 1

    clock, requests = requests_and(im, "send")
    im.replies[1](error(Code.FORBIDDEN, "no", 0))
    assert requests.acks().sends == 0


def test_other_requests_are_not_timed() -> None:
    im = Im()
    _, requests = requests_and(im, "sync")
    response = pb.Response()
    response.sync_ok.SetInParent()
    im.replies[0](response)
    assert requests.acks().sends == 0
