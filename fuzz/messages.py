"""Mutations that know Protobuf: changed fields instead of changed bytes, most of which would be no
message any more. An input is a row of messages, each behind its length (two bytes)."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

_LENGTH = struct.Struct(">H")
_DEEP = 4
_STRINGS = (
    "", "ann", "bob", "mallory", "fra", "iad", "phone", "o1", "d:ann:bob", "d:bob:mallory",
    "d:mallory:mallory", "g:all", "g:", "d::", "\0", "ä", "x" * 64, "x" * 65, "d:bob:mallory\0",
    "../..", "fra.1", "\U0010ffff", "g:" + "y" * 64,
)  # fmt: skip
_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (True, 32), FieldDescriptor.CPPTYPE_INT64: (True, 64),
    FieldDescriptor.CPPTYPE_UINT32: (False, 32), FieldDescriptor.CPPTYPE_UINT64: (False, 64),
    FieldDescriptor.CPPTYPE_ENUM: (True, 32),
}  # fmt: skip

M = TypeVar("M", bound=Message)


def row(bodies: Iterable[bytes]) -> bytes:
    return b"".join(_LENGTH.pack(len(body)) + body for body in bodies)


def bodies(data: bytes) -> list[bytes]:
    """Never raises: what is cut short is taken as it is."""
    found, at = [], 0
    while at + _LENGTH.size <= len(data):
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        found.append(data[at : at + size])
        at += size
    return found


def mutated(kind: type[M], data: bytes, seed: int, bytes_max: int, others: Sequence[M]) -> bytes:
    """``others``: well-formed messages to take whole or in parts."""
    rng = random.Random(seed)
    messages = []
    for body in bodies(data):
        try:
            messages.append(kind.FromString(body))
        except DecodeError:
            continue
    dice = rng.random()
    if not messages or dice < 0.1:
        messages.insert(rng.randint(0, len(messages)), _copy(rng.choice(others)))
    elif dice < 0.15:
        messages.pop(rng.randrange(len(messages)))
    elif dice < 0.2:
        messages.append(_copy(rng.choice(messages)))
    elif dice < 0.25:
        rng.choice(messages).MergeFrom(rng.choice(others))
    for _ in range(rng.randint(1, 3)):
        if messages:
            _change(rng.choice(messages), rng, 0)
    encoded = [message.SerializeToString() for message in messages]
    while encoded and len(row(encoded)) > bytes_max:
        encoded.pop()
    return row(body[: 1 << 15] for body in encoded)


def _copy(message: M) -> M:
    return type(message).FromString(message.SerializeToString())


def _change(message: Any, rng: random.Random, depth: int) -> None:
    set_fields = [descriptor for descriptor, _ in message.ListFields()]
    every = list(message.DESCRIPTOR.fields)
    descriptor = rng.choice(set_fields if set_fields and rng.random() < 0.8 else every or [None])
    if descriptor is None:
        return
    name, repeated = descriptor.name, descriptor.is_repeated
    nested = descriptor.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
    if rng.random() < 0.1:
        message.ClearField(name)
    elif nested and repeated:
        items = getattr(message, name)
        if items and rng.random() < 0.6:
            if rng.random() < 0.2:
                items.add().CopyFrom(rng.choice(items))
            _change(rng.choice(items), rng, depth + 1)
        else:
            _change(items.add(), rng, depth + 1)
    elif nested:
        inner = getattr(message, name)
        inner.SetInParent()
        if depth < _DEEP:
            _change(inner, rng, depth + 1)
    elif repeated:
        items = getattr(message, name)
        if items and rng.random() < 0.3:
            items.pop(rng.randrange(len(items)))
        else:
            items.extend([_value(descriptor, None, rng)] * rng.choice((1, 1, 1, 300)))
    else:
        setattr(message, name, _value(descriptor, getattr(message, name), rng))


def _value(descriptor: Any, old: Any, rng: random.Random) -> Any:
    kind = descriptor.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if descriptor.type == FieldDescriptor.TYPE_BYTES:
            return _bytes(old or b"", rng)
        return rng.choice(_STRINGS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind in _BITS:
        signed, bits = _BITS[kind]
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        near = (old or 0) + rng.choice((-1, 1))
        number = rng.choice((0, 1, 2, 7, 300, low, high, high - 1, high // 2, near))
        return min(max(number, low), high)
    return rng.choice((0.0, -1.0, float("nan"), float("inf")))


def _bytes(old: bytes, rng: random.Random) -> bytes:
    dice = rng.randrange(4)
    if dice == 0 or not old:
        return rng.randbytes(rng.choice((0, 1, 8, 16, 20, 40)))
    at = rng.randrange(len(old))
    if dice == 1:
        return old[:at]
    if dice == 2:
        return old + rng.randbytes(rng.choice((1, 2, 8)))
    return old[:at] + bytes([old[at] ^ (1 << rng.randrange(8))]) + old[at + 1 :]
