"""A guard against a client that tears batches: what the last one wrote stands beside it once more.

tikv-client 0.0.4 commits a transaction without some of its keys, be it the primary, and reports
success, when they lie in a region that was just split off and that PD has not heard of. Its reads
are not wrong then: they wait. So a batch is done once every row of it has been read back; and all
of itself is one more row, so that who takes the store over after a crash can read it back again.

What tells that this row belongs to the last batch: its number, which stands in the redo, below all
rows; in the partition's own row (Meta), which every batch writes anyway; and in a mark, above all
rows. What is left out is one range of keys. If it held all three, there was no such batch. If redo
and Meta have the number, the rest can be mended. Else it is known that something is missing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from imcore.errors import Damaged
from services.engines.tikv.client import Pair

_HEAD = struct.Struct(">QQI")  # batch, generation, number of puts
_SIZES = struct.Struct(">HI")  # of a key and its value
_SIZE = struct.Struct(">H")
# Of the row. The client takes answers of 4 MiB from a store: what is larger it could write, and
# never read again.
BYTES_MAX = 3 << 20


class Redo(NamedTuple):
    """One batch: ``puts`` and ``deletes`` are rows as they lie in the store, shadows included."""

    batch: int
    generation: int
    puts: tuple[Pair, ...]
    deletes: tuple[bytes, ...]

    def packed(self) -> bytes:
        parts = [_HEAD.pack(self.batch, self.generation, len(self.puts))]
        for key, value in self.puts:
            parts += (_SIZES.pack(len(key), len(value)), key, value)
        for key in self.deletes:
            parts += (_SIZE.pack(len(key)), key)
        return b"".join(parts)

    def beside(self, key: bytes, packed: bytes) -> Redo:
        """With the row that it is itself among the puts, as it is read back."""
        return self._replace(puts=(*self.puts, (key, packed)))

    def row_keys(self) -> Iterable[bytes]:
        yield from (key for key, _ in self.puts)
        yield from self.deletes

    def left_out(self, found: Mapping[bytes, bytes]) -> tuple[list[Pair], list[bytes]]:
        """Its rows that are not there, and those that are still there. ``found``: what was read
        under ``row_keys``."""
        puts = [(key, value) for key, value in self.puts if found.get(key) != value]
        return puts, [key for key in self.deletes if key in found]


def parse(row: bytes) -> Redo:
    """Raises Damaged."""
    try:
        batch, generation, count = _HEAD.unpack_from(row)
        at, puts, deletes = _HEAD.size, [], []
        for _ in range(count):
            of_key, of_value = _SIZES.unpack_from(row, at)
            at += _SIZES.size
            puts.append((_piece(row, at, of_key), _piece(row, at + of_key, of_value)))
            at += of_key + of_value
        while at < len(row):
            (of_key,) = _SIZE.unpack_from(row, at)
            deletes.append(_piece(row, at + _SIZE.size, of_key))
            at += _SIZE.size + of_key
    except struct.error as error:
        raise Damaged(f"a redo row of {len(row)} bytes ends too early") from error
    return Redo(batch, generation, tuple(puts), tuple(deletes))


def _piece(row: bytes, at: int, size: int) -> bytes:
    piece = row[at : at + size]
    if len(piece) != size:
        raise Damaged(f"a redo row of {len(row)} bytes ends too early")
    return piece
