"""What other IDCs hold, have applied and have announced, per origin and partition (rule 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from imcore.proto import peer_pb2 as peer
from imcore.words import Origin

Ends = dict[int, int]  # partition -> lsn


class Progress:
    """Of ``partitions`` partitions; what a peer says of any other one is left aside.
    ``announced`` is the highest end ever heard of, from whomever: what a returning origin must
    reach to keep its incarnation (rule 6)."""

    def __init__(self, on_held: Callable[[str, Origin, int, int], None], partitions: int) -> None:
        self._on_held = on_held
        self._partitions = partitions
        self.held: dict[tuple[str, Origin], Ends] = {}
        self.applied: dict[tuple[str, Origin], Ends] = {}
        self.announced: dict[Origin, Ends] = {}

    def report(
        self,
        idc: str,
        origin: Origin,
        held: Iterable[peer.PartitionEnd],
        applied: Iterable[peer.PartitionEnd],
    ) -> None:
        holds = self.held.setdefault((idc, origin), {})
        for end in held:
            if end.partition < self._partitions and end.lsn > holds.get(end.partition, 0):
                holds[end.partition] = end.lsn
                self.announce(origin, end.partition, end.lsn)
                self._on_held(idc, origin, end.partition, end.lsn)
        has = self.applied.setdefault((idc, origin), {})
        for end in applied:
            if end.partition < self._partitions:
                has[end.partition] = max(end.lsn, has.get(end.partition, 0))

    def announce(self, origin: Origin, partition: int, lsn: int) -> None:
        if partition >= self._partitions:
            return
        ends = self.announced.setdefault(origin, {})
        ends[partition] = max(lsn, ends.get(partition, 0))

    def forget(self, idc: str, origin: Origin) -> None:
        """The IDC starts again from nothing: what it held counts no more."""
        self.held.pop((idc, origin), None)
        self.applied.pop((idc, origin), None)
