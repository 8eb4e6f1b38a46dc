"""The last entries of conversations in memory, as clients are given them. Pure.

A *tail* holds, without a hole, what of a conversation lies above a vector (``floor``) and at or
below another (``heads``), so a pull by somebody who has at least the floor needs no KV. What it
holds was told to it by the fold, and what the fold changes of earlier entries (a recall, another
copy, another place) costs the tail. A rebuild that leaves entries out makes heads lower than the
tail's for ever, so it is of no use any more, as one with a hole.

Room is bounded in bytes. Where it ends, the tail goes that was begun, or pulled, longest ago. To
count heat, and to let in only what is pulled (as TinyLFU does), was tried and found no better: what
is pulled is what has just been written (docs/benchmarks.md).
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Sequence

from imcore.convert import origin_of
from imcore.proto import client_pb2 as pb
from imcore.words import Origin, Vector

ROOM_BYTES = 32 << 20
ENTRIES_MAX = 256  # of a conversation
_OVERHEAD_BYTES = 400  # of an entry, beside what it says

_Held = tuple[int, Origin, int, pb.Entry, int]  # hlc, origin, seq; its bytes
Page = tuple[list[pb.Entry], bool]


class _Tail:
    __slots__ = ("bytes", "entries", "floor", "heads", "key_id")

    def __init__(self, floor: Vector, key_id: int) -> None:
        self.floor = floor
        self.heads = dict(floor)
        self.entries: list[_Held] = []
        self.bytes = 0
        self.key_id = key_id

    def add(self, entry: pb.Entry) -> bool:
        """False: it does not follow what is here."""
        origin = origin_of(entry.origin)
        if entry.seq != self.heads.get(origin, 0) + 1:
            return False
        self.heads[origin] = entry.seq
        size = entry.ByteSize() + _OVERHEAD_BYTES
        held = (entry.hlc, origin, entry.seq, entry, size)
        if not self.entries or self.entries[-1][:3] < held[:3]:
            self.entries.append(held)
        else:  # of another IDC, and late
            insort(self.entries, held, key=_order)
        self.bytes += size
        return True

    def above(self, have: Vector) -> list[tuple[pb.Entry, int]]:
        """The entries above a vector that reaches the floor, and their sizes, in order. There is no
        hole, so it is known how many they are, and whoever pulls lacks the newest ones only: they
        are looked for from the end."""
        lacks = 0
        for origin, head in self.heads.items():
            lacks += max(0, head - have.get(origin, 0))
        found = []
        for _, origin, seq, entry, size in reversed(self.entries):
            if not lacks:
                break
            if seq > have.get(origin, 0):
                found.append((entry, size))
                lacks -= 1
        found.reverse()
        return found

    def shorten(self, count: int) -> int:
        """Forget the oldest; within an origin the HLC rises with the seq, so no hole comes of it.
        Returns how many bytes they took."""
        gone, self.entries = self.entries[:count], self.entries[count:]
        for _, origin, seq, _, _ in gone:
            self.floor[origin] = seq
        size = sum(held[4] for held in gone)
        self.bytes -= size
        return size


def _order(held: _Held) -> tuple[int, Origin, int]:
    return held[:3]


class Recent:
    """All tails of an IDC. ``key_id``: of the region key that entries are attested with now."""

    def __init__(self, room_bytes: int = ROOM_BYTES, entries_max: int = ENTRIES_MAX) -> None:
        self._room = room_bytes
        self._entries_max = entries_max
        self._tails: OrderedDict[str, _Tail] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._tails)

    def folded(
        self, name: str, origin: Origin, built: Sequence[pb.Entry], heads: Vector, key_id: int
    ) -> None:
        """Entries of this origin that have just been folded, and how far they made it reach."""
        tail = self._tails.get(name)
        if tail is not None and tail.key_id != key_id:
            self.drop(name)
            tail = None
        if tail is None:
            floor = heads | {origin: built[0].seq - 1}
            tail = self._tails[name] = _Tail(floor, key_id)
        self._fill(name, tail, built, heads)

    def read(
        self, name: str, have: Vector, built: Sequence[pb.Entry], heads: Vector, key_id: int
    ) -> None:
        """All that the KV had above ``have``, just now."""
        tail = self._tails.get(name)
        more = tail is None or tail.heads != heads or len(built) > len(tail.entries)
        if built and more:
            self.drop(name)
            floor = {origin: min(have.get(origin, 0), head) for origin, head in heads.items()}
            self._tails[name] = tail = _Tail(floor, key_id)
            self._fill(name, tail, built, heads)

    def _fill(self, name: str, tail: _Tail, built: Sequence[pb.Entry], heads: Vector) -> None:
        before = tail.bytes
        whole = all(tail.add(entry) for entry in built) and tail.heads == heads
        self.bytes += tail.bytes - before
        if not whole:
            self.drop(name)
            return
        if len(tail.entries) > self._entries_max:
            self.bytes -= tail.shorten(len(tail.entries) - self._entries_max * 3 // 4)
        while self.bytes > self._room:
            self.drop(next(iter(self._tails)))

    def drop(self, name: str) -> None:
        """What is known of its earlier entries is not so any more."""
        tail = self._tails.pop(name, None)
        if tail is not None:
            self.bytes -= tail.bytes

    def page(
        self, name: str, have: Vector, heads: Vector, limit: int, bytes_max: int, key_id: int
    ) -> Page | None:
        """As ``reads.pull``; None: that is not all here."""
        tail = self._tails.get(name)
        if tail is None or tail.heads != heads or tail.key_id != key_id:
            return None
        if any(have.get(origin, 0) < seq for origin, seq in tail.floor.items()):
            return None
        self._tails.move_to_end(name)
        page: list[pb.Entry] = []
        room = bytes_max
        for entry, size in tail.above(have):
            room -= size
            if page and (len(page) == limit or room < 0):
                return page, True
            page.append(entry)
        return page, False
