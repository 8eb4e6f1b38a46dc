"""Packed pushes: what goes in comes out, and whatever is in there costs little."""

from __future__ import annotations

import contextlib
import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imcore import frame
from imcore.packing import LEAST_BYTES, pack, unpack
from imcore.proto import client_pb2 as pb


def push(count: int, content: bytes = b"the same words again, as people do") -> bytes:
    made = pb.Push(conversation="g:huge", merged=True)
    for seq in range(1, count + 1):
        entry = made.entries.add(seq=seq)
        entry.message.content = content
    return made.SerializeToString()


def packed(body: bytes, size: int, packing: pb.Packing.ValueType = pb.PACKING_ZLIB) -> pb.Packed:
    return pb.Packed(packing=packing, size=size, body=body)


@given(st.integers(60, 300), st.binary(min_size=20, max_size=60))
def test_what_is_packed_comes_out_again_and_is_smaller(count: int, content: bytes) -> None:
    whole = push(count, content)
    found = pack(whole)
    assert found is not None and found.ByteSize() < len(whole)
    assert unpack(pb.Packed.FromString(found.SerializeToString())) == whole


def test_what_fits_a_frame_or_does_not_become_smaller_stays_as_it_is() -> None:
    small = push(1, b"a" * (LEAST_BYTES - 100))
    assert len(small) < LEAST_BYTES and pack(small) is None
    assert pack(push(1, random.Random(1).randbytes(2_000))) is None


WHOLE = push(100)
BODY = zlib.compress(WHOLE)


@pytest.mark.parametrize(
    "lie",
    [
        packed(BODY, len(WHOLE), pb.PACKING_NONE),
        packed(BODY, 0),
        packed(BODY, len(WHOLE) - 1),
        packed(BODY, len(WHOLE) + 1),
        packed(BODY[:-1], len(WHOLE)),
        packed(BODY + b"x", len(WHOLE)),
        packed(b"", len(WHOLE)),
        packed(zlib.compress(b""), 1),
        packed(zlib.compress(bytes(frame.MESSAGE_BYTES_MAX + 1)), frame.MESSAGE_BYTES_MAX + 1),
        packed(BODY, 0xFFFF_FFFF),
    ],
)
def test_what_is_not_as_it_says_is_not_taken(lie: pb.Packed) -> None:
    with pytest.raises(frame.FrameError):
        unpack(lie)


@pytest.mark.parametrize("size", [1, 1_000, frame.MESSAGE_BYTES_MAX])
def test_a_bomb_takes_no_more_room_than_a_message(size: int) -> None:
    bomb = packed(zlib.compress(bytes(50 * 1024 * 1024), 1), size)
    assert bomb.ByteSize() < frame.MESSAGE_BYTES_MAX  # it comes through a gateway's frames
    tracemalloc.start()
    try:
        with pytest.raises(frame.FrameError):
            unpack(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    finally:
        tracemalloc.stop()


@given(st.integers(0, len(BODY) - 1), st.integers(1, 255))
def test_a_changed_byte_is_seen(at: int, change: int) -> None:
    body = bytearray(BODY)
    body[at] ^= change
    with contextlib.suppress(frame.FrameError):  # some bits of its header mean little
        assert unpack(packed(bytes(body), len(WHOLE))) == WHOLE
