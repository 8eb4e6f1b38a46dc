"""Where rows lie in TiKV, and what a partition's own row says. Pure.

    PREFIX 0 'd' partition                        the redo of its last batch (redo.py)
    PREFIX 0 'i'                                  which life of the store this is (identity.py)
    PREFIX 0 'm' partition                        Meta: every batch reads and writes it
    PREFIX 0 'r' partition generation key         a row; ``key`` is without its partition
    PREFIX 0 's' partition generation inverted    its shadow, for scans that go down
    PREFIX 0 't' partition                        the number of its last batch once more (redo.py)

A partition is thrown away by making another generation the current one; the rows of the others are
garbage. TiKV's client cannot scan down, so rows of the tables that are read so have a shadow with
the same value, whose key sorts the other way round: bytes escaped and ended, so that none is the
beginning of another, then complemented.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_PARTITION = struct.Struct(">H")
_PLACE = struct.Struct(">HQ")  # partition, generation
_META = struct.Struct(">QQQQB")
_MARK = struct.Struct(">Q")
_COMPLEMENT = bytes(255 - byte for byte in range(256))
_END = b"\0\0"
PARTITION_BYTES = _PARTITION.size
PARTITIONS_END = 1 << 16


class Meta(NamedTuple):
    """``spare``: the next generation that nobody has used yet. ``batch``: how many there were, the
    number of the last one."""

    epoch: int = 0
    generation: int = 0
    spare: int = 1
    checkpoint: bytes | None = None
    batch: int = 0

    @property
    def version(self) -> tuple[int, int, int]:
        """Never falls while the store lives."""
        return self.epoch, self.spare, self.generation

    def packed(self) -> bytes:
        there = self.checkpoint is not None
        head = _META.pack(self.epoch, self.generation, self.spare, self.batch, there)
        return head + (self.checkpoint or b"")


def parse(row: bytes | None) -> Meta:
    if row is None:
        return Meta()
    epoch, generation, spare, batch, there = _META.unpack_from(row)
    return Meta(epoch, generation, spare, row[_META.size :] if there else None, batch)


def packed_mark(batch: int) -> bytes:
    return _MARK.pack(batch)


def parse_mark(row: bytes | None) -> int:
    return 0 if row is None else int(_MARK.unpack(row)[0])


def partition_of(key: bytes) -> int:
    return int(_PARTITION.unpack(key[:PARTITION_BYTES].ljust(PARTITION_BYTES, b"\0"))[0])


def inverted(key: bytes) -> bytes:
    return (key.replace(b"\0", b"\0\xff") + _END).translate(_COMPLEMENT)


def upright(inverted_key: bytes) -> bytes:
    return inverted_key.translate(_COMPLEMENT)[: -len(_END)].replace(b"\0\xff", b"\0")


class Layout:
    def __init__(self, prefix: str) -> None:
        start = prefix.encode() + b"\0"  # no prefix reaches into that of another deployment
        self.identity = start + b"i"
        self._redo, self._meta = start + b"d", start + b"m"
        self._rows, self._shadows, self._mark = start + b"r", start + b"s", start + b"t"

    def redo(self, partition: int) -> bytes:
        return self._redo + _PARTITION.pack(partition)

    def mark(self, partition: int) -> bytes:
        return self._mark + _PARTITION.pack(partition)

    def meta(self, partition: int) -> bytes:
        return self._meta + _PARTITION.pack(partition)

    def metas(self, first: int, last: int) -> tuple[bytes, bytes]:
        """The range of the own rows of these partitions, the last one included."""
        return self.meta(first), self.meta(last) + b"\0"

    def partition_of_meta(self, key: bytes) -> int:
        return partition_of(key[len(self._meta) :])

    def rows(self, partition: int, generation: int) -> bytes:
        """What the rows of a generation begin with."""
        return self._rows + _PLACE.pack(partition, generation)

    def shadows(self, partition: int, generation: int) -> bytes:
        return self._shadows + _PLACE.pack(partition, generation)

    def garbage(self, partition: int, first: int, end: int) -> list[tuple[bytes, bytes]]:
        """The ranges of the generations from ``first`` to below ``end``."""
        return [
            (self.rows(partition, first), self.rows(partition, end)),
            (self.shadows(partition, first), self.shadows(partition, end)),
        ]


def after(prefix: bytes) -> bytes:
    """The smallest key above all that start with ``prefix`` (a generation is never the last)."""
    number = int.from_bytes(prefix, "big") + 1
    return number.to_bytes(len(prefix), "big")


def below(key: bytes, width: int) -> bytes:
    """The key whose last eight bytes, read as a number, are smaller by ``width``."""
    at = len(key) - 8
    number = int.from_bytes(key[at:], "big") if at >= 0 else 0
    return key[:at] + (number - width).to_bytes(8, "big") if number >= width else b""
