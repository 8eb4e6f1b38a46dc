"""Which (origin, seq) of a conversation this device has: a prefix per origin and what lies
beyond a hole. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from imcore.words import Origin, Vector


class Received:
    """Positions received, positions that are known to exist, and origins with an end.

    ``suspended``: an origin that is down; positions above its end are legal, not gaps.
    ``sealed``: an origin that will never say more; its positions above the end are void, and what
    stood there comes again under another origin."""

    __slots__ = ("_beyond", "expected", "prefix", "sealed", "suspended")

    def __init__(self) -> None:
        self.prefix: Vector = {}
        self._beyond: dict[Origin, set[int]] = {}
        self.expected: Vector = {}
        self.suspended: Vector = {}
        self.sealed: Vector = {}

    def add(self, origin: Origin, seq: int) -> bool:
        """False: it was here already (or is void)."""
        prefix = self.prefix.get(origin, 0)
        self._lives(origin, seq)
        if seq == prefix + 1:
            beyond = self._beyond.get(origin)
            if beyond is not None:
                while seq + 1 in beyond:
                    seq += 1
                    beyond.remove(seq)
                if not beyond:
                    del self._beyond[origin]
            elif self.sealed and seq > self.sealed.get(origin, seq):
                return False
            self.prefix[origin] = seq
            return True
        if seq <= prefix or seq > self.sealed.get(origin, seq):
            return False
        beyond = self._beyond.setdefault(origin, set())
        if seq in beyond:
            return False
        beyond.add(seq)
        return True

    def expect(self, heads: Mapping[Origin, int]) -> None:
        """These positions exist (an IDC has applied them)."""
        for origin, seq in heads.items():
            self._lives(origin, seq)
            if seq > self.expected.get(origin, 0):
                self.expected[origin] = seq

    def give_up(self) -> None:
        """What is missing will not come."""
        self.expected.clear()
        self._beyond.clear()

    def has(self, origin: Origin, seq: int) -> bool:
        return seq <= self.prefix.get(origin, 0) or seq in self._beyond.get(origin, ())

    def _lives(self, origin: Origin, seq: int) -> None:
        """Something above its end came: the origin is back, or more of its log was found."""
        if seq > self.suspended.get(origin, seq):
            del self.suspended[origin]

    def ends(self, suspended: Mapping[Origin, int], sealed: Mapping[Origin, int]) -> None:
        """What an IDC says of origins that are down. Seals are for ever."""
        self.suspended = dict(suspended)
        for origin, end in sealed.items():
            self.sealed[origin] = end
            if self.prefix.get(origin, 0) > end:
                self.prefix[origin] = end
            beyond = {seq for seq in self._beyond.pop(origin, ()) if seq <= end}
            if beyond:
                self._beyond[origin] = beyond

    def covers(self, heads: Mapping[Origin, int]) -> bool:
        """Whether all of this was received, or never will be."""
        prefix = self.prefix
        for origin, seq in heads.items():
            if seq > prefix.get(origin, 0) and self._legal(origin, seq) > prefix.get(origin, 0):
                return False
        return True

    def _legal(self, origin: Origin, seq: int) -> int:
        seq = min(seq, self.sealed.get(origin, seq))
        return min(seq, self.suspended.get(origin, seq))

    def behind(self) -> bool:
        """A hole, or something that exists and was not received."""
        return self.hole() or not self.covers(self.expected)

    def hole(self) -> bool:
        return bool(self._beyond) and any(
            self._legal(origin, min(beyond) - 1) > self.prefix.get(origin, 0)
            for origin, beyond in self._beyond.items()
        )
