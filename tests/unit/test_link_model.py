"""The link model by itself: times in, times out."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from services.linkproxy.model import (
    PENDING_BYTES_MAX,
    Direction,
    End,
    LinkSpec,
    Mode,
    Pipe,
)


def direction(**spec: float) -> Direction:
    return Direction("fra", "iad", LinkSpec(**spec))


def test_delay_is_added() -> None:
    assert abs(direction(delay_ms=45).arrival(10.0, 100, random.Random(1)) - 10.045) < 1e-5


def test_the_rate_is_shared_by_all_connections_of_a_direction() -> None:
    way = direction(rate_kbit=8)  # 1,000 bytes a second
    rng = random.Random(1)
    assert way.arrival(0.0, 500, rng) == 0.5
    assert way.arrival(0.0, 500, rng) == 1.0
    assert way.arrival(5.0, 500, rng) == 5.5


def test_a_faster_link_does_not_keep_the_queue_of_a_thin_one() -> None:
    way = direction(rate_kbit=8)
    rng = random.Random(1)
    assert way.arrival(0.0, 60_000, rng) == 60.0
    assert way.set_spec(LinkSpec(rate_kbit=8), 1.0) is False
    assert way.arrival(1.0, 1_000, rng) == 61.0
    assert way.set_spec(LinkSpec(rate_kbit=8_000), 1.0) is True  # its connections begin anew
    assert way.arrival(1.0, 1_000, rng) < 1.1
    assert way.set_spec(LinkSpec(rate_kbit=80_000), 1.0) is False  # nothing had piled up


def test_loss_delays_and_takes_nothing() -> None:
    rng = random.Random(1)
    way = direction(delay_ms=50, loss=0.2)
    delays = [way.arrival(float(n), 1_000, rng) - n for n in range(2_000)]
    late = sum(delay > 0.1 for delay in delays) / len(delays)
    assert 0.17 < late < 0.23
    assert min(delays) < 0.051


def test_jitter_stays_in_its_band() -> None:
    rng = random.Random(1)
    way = direction(delay_ms=50, jitter_ms=5)
    delays = [way.arrival(float(n), 100, rng) - n for n in range(500)]
    assert 0.0449 < min(delays) < 0.047
    assert 0.053 < max(delays) < 0.0551


@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(st.floats(0, 0.2), st.binary(min_size=1, max_size=50)), max_size=60),
)
def test_a_pipe_keeps_order_and_content_whatever_the_jitter(
    seed: int, sends: list[tuple[float, bytes]]
) -> None:
    rng = random.Random(seed)
    pipe = Pipe(direction(delay_ms=30, jitter_ms=30, loss=0.3), open_from=0.0)
    now, got = 0.0, b""
    for pause, data in sends:
        now += pause
        pipe.offer(now, data, rng)
        got += b"".join(item for item in pipe.due(now) if isinstance(item, bytes))
    pipe.offer(now, End.EOF, rng)
    rest = pipe.due(now + 60)
    assert rest[-1] is End.EOF
    got += b"".join(item for item in rest if isinstance(item, bytes))
    assert got == b"".join(data for _, data in sends)
    assert pipe.pending_bytes == 0


def test_a_cut_pipe_delivers_nothing_and_goes_on_after_it() -> None:
    way = direction(delay_ms=10)
    pipe = Pipe(way, open_from=0.0)
    rng = random.Random(1)
    pipe.offer(0.0, b"a", rng)
    way.set_mode(Mode.DROP, 0.005)
    assert pipe.due(1.0) == []
    assert pipe.next_at() is None
    way.set_mode(Mode.PASS, 1.0)
    assert pipe.due(1.0) == [b"a"]


def test_nothing_leaves_before_the_handshake_is_over() -> None:
    pipe = Pipe(direction(delay_ms=40), open_from=0.08)
    pipe.offer(0.0, b"hello", random.Random(1))
    at = pipe.next_at()
    assert at is not None
    assert 0.1199 < at < 0.1202


def test_a_pipe_is_full_at_its_bound() -> None:
    pipe = Pipe(direction(delay_ms=40), open_from=0.0)
    rng = random.Random(1)
    pipe.offer(0.0, bytes(PENDING_BYTES_MAX - 1), rng)
    assert not pipe.full
    pipe.offer(0.0, b"x", rng)
    assert pipe.full


def test_a_short_cut_is_bridged_and_a_long_one_is_not() -> None:
    way = direction()
    way.set_mode(Mode.DROP, 10.0)
    way.set_mode(Mode.DROP, 10.9)  # cut again: the first cut counts
    assert not way.cut_too_long(10.9)
    assert way.cut_too_long(11.1)
    way.set_mode(Mode.PASS, 11.1)
    assert not way.cut_too_long(99.0)
