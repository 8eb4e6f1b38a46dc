"""Frames of the client protocol (docs/protocol.md). Pure: bytes in, frames out.

After a preface each way: frames of an 8-byte header and at most BODY_BYTES_MAX bytes, so that
a small message fits one TCP segment. A larger body is cut into chunks of the same type and id
that follow each other at once; all but the last carry MORE. Only events have the id 0.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from imcore.errors import ImError

REQUEST, RESPONSE, EVENT = 1, 2, 3
_TYPES = frozenset((REQUEST, RESPONSE, EVENT))

HEADER = struct.Struct(">BBHI")  # type, flags, length of the body, id
FRAME_BYTES_MAX = 1_400
BODY_BYTES_MAX = FRAME_BYTES_MAX - HEADER.size
MESSAGE_BYTES_MAX = 256 * 1024
_MORE = 0x01

MAGIC = b"IMCP"
VERSION = 1
CLIENT_PREFACE_BYTES = SERVER_PREFACE_BYTES = 6


class FrameError(ImError):
    """The peer does not speak this protocol; its connection is of no use any more."""


class Frame(NamedTuple):
    type: int
    id: int
    body: bytes


def client_preface() -> bytes:
    """The versions that this client speaks, lowest and highest."""
    return MAGIC + bytes((VERSION, VERSION))


def parse_client_preface(data: bytes) -> int:
    """The version to speak, 0 when none fits. Raises FrameError."""
    if data[:4] != MAGIC or len(data) != CLIENT_PREFACE_BYTES:
        raise FrameError("the peer did not send this protocol's preface")
    lowest, highest = data[4], data[5]
    if not 0 < lowest <= highest:
        raise FrameError(f"the preface names versions {lowest} to {highest}")
    return VERSION if lowest <= VERSION <= highest else 0


def server_preface(version: int) -> bytes:
    return MAGIC + bytes((version, 0))


def parse_server_preface(data: bytes) -> int:
    """The version that the server chose. Raises FrameError, also when none fits."""
    if data[:4] != MAGIC or len(data) != SERVER_PREFACE_BYTES:
        raise FrameError("the peer did not send this protocol's preface")
    if data[4] != VERSION:
        raise FrameError(f"the server speaks none of our versions ({VERSION})")
    return data[4]


def encode(type_: int, id_: int, body: bytes) -> bytes:
    """One message as its frame or frames. Raises ValueError when it is too large."""
    if len(body) <= BODY_BYTES_MAX:
        return HEADER.pack(type_, 0, len(body), id_) + body
    if len(body) > MESSAGE_BYTES_MAX:
        raise ValueError(f"a message has at most {MESSAGE_BYTES_MAX} bytes, not {len(body)}")
    out = []
    for start in range(0, len(body), BODY_BYTES_MAX):
        chunk = body[start : start + BODY_BYTES_MAX]
        flags = _MORE if start + BODY_BYTES_MAX < len(body) else 0
        out.append(HEADER.pack(type_, flags, len(chunk), id_) + chunk)
    return b"".join(out)


class FrameDecoder:
    """Of one direction of one connection. ``feed`` takes any split of the byte stream.
    ``message_bytes_max`` may be changed between two of them."""

    def __init__(self, message_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self.message_bytes_max = message_bytes_max
        self._buffer = b""
        self._chunks = bytearray()  # a list takes 22 bytes for each in chunks of two
        self._chunked: tuple[int, int] | None = None  # type and id of an unfinished message

    @property
    def held_bytes(self) -> int:
        """Of what has come and is no whole message yet."""
        return len(self._buffer) + len(self._chunks)

    def unread(self) -> bytes:
        """Those bytes, in frames: what another decoder must be fed to go on from here."""
        if self._chunked is None:
            return self._buffer
        type_, id_ = self._chunked
        out = []
        for start in range(0, len(self._chunks), BODY_BYTES_MAX):
            chunk = self._chunks[start : start + BODY_BYTES_MAX]
            out.append(HEADER.pack(type_, _MORE, len(chunk), id_) + chunk)
        return b"".join(out) + self._buffer

    def feed(self, data: bytes) -> list[Frame]:
        """Whole messages, in order. Raises FrameError; the decoder is of no use afterwards."""
        buffer = self._buffer + data if self._buffer else data
        frames: list[Frame] = []
        at, size = 0, len(buffer)
        while size - at >= HEADER.size:
            type_, flags, length, id_ = HEADER.unpack_from(buffer, at)
            if type_ not in _TYPES or flags & ~_MORE or length > BODY_BYTES_MAX:
                raise FrameError(f"not a frame header: type {type_}, flags {flags}, {length} bytes")
            if (type_ == EVENT) != (id_ == 0) or (flags and not length):
                # An empty chunk that promises more would cost its sender nothing and us memory.
                raise FrameError(f"not a frame header: type {type_} with id {id_}, {length} bytes")
            end = at + HEADER.size + length
            if end > size:
                break
            body = buffer[at + HEADER.size : end]
            at = end
            if flags or self._chunked is not None:
                whole = self._chunk(type_, id_, bool(flags), body)
                if whole is not None:
                    frames.append(Frame(type_, id_, whole))
            else:
                frames.append(Frame(type_, id_, body))
        self._buffer = bytes(buffer[at:])
        return frames

    def _chunk(self, type_: int, id_: int, more: bool, body: bytes) -> bytes | None:
        if self._chunked is None:
            self._chunked = (type_, id_)
        elif self._chunked != (type_, id_):
            raise FrameError("another frame came between the chunks of a message")
        if len(self._chunks) + len(body) > self.message_bytes_max:
            raise FrameError(f"a message has at most {self.message_bytes_max} bytes")
        self._chunks += body
        if more:
            return None
        whole = bytes(self._chunks)
        self._chunked = None
        self._chunks.clear()
        return whole
