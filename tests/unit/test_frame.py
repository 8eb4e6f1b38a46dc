"""The frame codec: any split of the stream gives the same frames; rubbish raises."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imcore import frame

bodies = st.one_of(
    st.binary(max_size=40),
    st.integers(1_300, 4_500).map(lambda size: bytes(i % 251 for i in range(size))),
)
messages = st.tuples(
    st.sampled_from((frame.REQUEST, frame.RESPONSE, frame.EVENT)), st.integers(1, 2**32 - 1), bodies
).map(lambda m: frame.Frame(m[0], 0 if m[0] == frame.EVENT else m[1], m[2]))


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(at)]


@given(st.lists(messages, max_size=5), st.lists(st.integers(0, 2**31), max_size=12))
def test_any_split_of_the_stream_gives_the_same_frames(sent, cuts):
    decoder = frame.FrameDecoder()
    stream = b"".join(frame.encode(*message) for message in sent)
    assert [f for part in split(stream, cuts) for f in decoder.feed(part)] == sent


@given(messages)
def test_no_frame_is_larger_than_a_segment(message):
    stream = frame.encode(*message)
    at = 0
    while at < len(stream):
        _, _, length, _ = frame.HEADER.unpack_from(stream, at)
        assert frame.HEADER.size + length <= frame.FRAME_BYTES_MAX
        at += frame.HEADER.size + length
    assert at == len(stream)


@given(st.binary(max_size=3_000))
def test_rubbish_raises_frame_error_or_waits_for_more(data):
    decoder = frame.FrameDecoder()
    try:
        for received in decoder.feed(data):
            assert len(received.body) <= frame.MESSAGE_BYTES_MAX
    except frame.FrameError:
        pass


@pytest.mark.parametrize(
    "header",
    [
        (0, 0, 0, 1),
        (4, 0, 0, 1),
        (frame.REQUEST, 2, 0, 1),
        (frame.REQUEST, 0, frame.BODY_BYTES_MAX + 1, 1),
        (frame.REQUEST, 0, 0, 0),
        (frame.EVENT, 0, 0, 1),
        (frame.REQUEST, 1, 0, 1),
    ],
    ids=["type 0", "type 4", "unknown flag", "too long", "no id", "event id", "empty chunk"],
)
def test_a_header_that_breaks_a_rule_is_refused_before_its_body_comes(header):
    with pytest.raises(frame.FrameError):
        frame.FrameDecoder().feed(frame.HEADER.pack(*header))


def test_another_frame_between_chunks_is_refused():
    first = frame.encode(frame.REQUEST, 7, bytes(3_000))[: frame.FRAME_BYTES_MAX]
    with pytest.raises(frame.FrameError, match="between the chunks"):
        frame.FrameDecoder().feed(first + frame.encode(frame.REQUEST, 8, b"x"))


def test_a_message_has_a_bound_both_ways():
    whole = frame.encode(frame.REQUEST, 1, bytes(frame.MESSAGE_BYTES_MAX))
    assert len(frame.FrameDecoder().feed(whole)[0].body) == frame.MESSAGE_BYTES_MAX
    with pytest.raises(ValueError, match="at most"):
        frame.encode(frame.REQUEST, 1, bytes(frame.MESSAGE_BYTES_MAX + 1))
    with pytest.raises(frame.FrameError, match="at most 5000 bytes"):
        frame.FrameDecoder(message_bytes_max=5_000).feed(
            frame.encode(frame.REQUEST, 1, bytes(5_001))
        )


@pytest.mark.parametrize(
    ("lowest", "highest", "chosen"), [(1, 1, 1), (1, 9, 1), (2, 9, 0)], ids=str
)
def test_the_version_is_negotiated(lowest, highest, chosen):
    assert frame.parse_client_preface(frame.MAGIC + bytes((lowest, highest))) == chosen


def test_prefaces_meet_their_own_parsers():
    assert frame.parse_client_preface(frame.client_preface()) == frame.VERSION
    assert frame.parse_server_preface(frame.server_preface(frame.VERSION)) == frame.VERSION


@pytest.mark.parametrize(
    "preface", [b"HTTP/1", b"IMCP", b"IMCP\x02\x01", b"IMCP\x00\x01"], ids=repr
)
def test_a_client_preface_that_breaks_a_rule_is_refused(preface):
    with pytest.raises(frame.FrameError):
        frame.parse_client_preface(preface)


@pytest.mark.parametrize("preface", [b"SSH-2.", frame.server_preface(0)], ids=repr)
def test_a_server_that_has_no_version_for_us_is_refused(preface):
    with pytest.raises(frame.FrameError):
        frame.parse_server_preface(preface)


def test_small_chunks_take_no_more_memory_than_what_was_sent():
    decoder = frame.FrameDecoder()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(20_000):
            chunk = number.to_bytes(2, "big")
            decoder.feed(frame.HEADER.pack(frame.REQUEST, 1, len(chunk), 5) + chunk)
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert decoder.held_bytes == 40_000
    assert held < 3 * 40_000
