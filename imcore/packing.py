"""Pushes that are compressed, for clients whose Connect says that they can unpack them. Pure.

What is packed is one Push, whose members all may read it: no secret of one receiver is beside what
another one wrote, so its size tells nobody on the way what he could not know.
"""

from __future__ import annotations

import zlib

from imcore import frame
from imcore.proto import client_pb2 as pb

# What fits one frame takes one packet, packed or not.
LEAST_BYTES = frame.BODY_BYTES_MAX
_LEVEL = 3  # of 15 KB in 250 us; the best one takes twice as long for 2 % less
_WORTH = 0.9


def pack(push: bytes) -> pb.Packed | None:
    """Of an encoded Push. None: it is too small, or hardly becomes smaller (what is encrypted)."""
    if len(push) < LEAST_BYTES:
        return None
    body = zlib.compress(push, _LEVEL)
    if len(body) > _WORTH * len(push):
        return None
    return pb.Packed(packing=pb.PACKING_ZLIB, size=len(push), body=body)


def unpack(packed: pb.Packed) -> bytes:
    """The encoded Push. Never more than a message may have, whatever is in there, nor more than it
    says. Raises FrameError."""
    if packed.packing != pb.PACKING_ZLIB:
        raise frame.FrameError(f"no way of packing that was asked for: {packed.packing}")
    size = packed.size
    if not 0 < size <= frame.MESSAGE_BYTES_MAX:
        raise frame.FrameError(f"a packed push says that it has {size} bytes")
    inflate = zlib.decompressobj()
    try:
        # One more than it says: the end of the stream is only seen when there is room behind it.
        push = inflate.decompress(packed.body, size + 1)
    except zlib.error as error:
        raise frame.FrameError(f"a packed push cannot be unpacked: {error}") from None
    if len(push) != size or not inflate.eof or inflate.unused_data:
        raise frame.FrameError("a packed push is not what it says")
    return push
