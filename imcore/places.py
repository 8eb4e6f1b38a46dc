"""Who may hold a connection where there are only so many places. Pure.

Who is asking for something keeps his place. Who has asked for nothing yet, or for nothing since his
last answer, gives it up to somebody who comes when all are taken: so silent connections, however
many somebody opens, keep nobody out.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

_T = TypeVar("_T", bound=Hashable)


class Entry(NamedTuple, Generic[_T]):
    taken: bool
    given_up: _T | None = None  # by whom


class Places(Generic[_T]):
    """``most`` in all, and ``most_of_one`` address."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._address: dict[_T, str] = {}
        self._count: Counter[str] = Counter()
        # Those who ask for nothing, the one that has been so for longest first.
        self._idle: OrderedDict[_T, None] = OrderedDict()
        self._idle_of: dict[str, OrderedDict[_T, None]] = {}

    def __len__(self) -> int:
        return len(self._address)

    def room(self, address: str, shared: bool = False) -> bool:
        """Whether one more would be taken, be it in the place of one who asks for nothing."""
        if not shared and self._count[address] >= self._most_of_one:
            return address in self._idle_of
        return len(self._address) < self._most or bool(self._idle)

    def come(self, one: _T, address: str, shared: bool = False) -> Entry[_T]:
        """``shared``: by so many (a proxy of ours) that it has no bound of its own."""
        waiting: OrderedDict[_T, None] | None = None
        if not shared and self._count[address] >= self._most_of_one:
            waiting = self._idle_of.get(address, OrderedDict())
        elif len(self._address) >= self._most:
            waiting = self._idle
        given_up = None
        if waiting is not None:
            if not waiting:
                return Entry(False)
            given_up = next(iter(waiting))
            self.go(given_up)
        self._address[one] = address
        self._count[address] += 1
        self.rests(one)
        return Entry(True, given_up)

    def asks(self, one: _T) -> None:
        self._idle.pop(one, None)
        address = self._address.get(one, "")
        idle = self._idle_of.get(address)
        if idle is not None:
            idle.pop(one, None)
            if not idle:
                del self._idle_of[address]

    def rests(self, one: _T) -> None:
        """It asks for nothing from now on."""
        address = self._address.get(one)
        if address is not None:
            self._idle[one] = None
            self._idle_of.setdefault(address, OrderedDict())[one] = None

    def go(self, one: _T) -> None:
        """Who has gone already may be told of again."""
        self.asks(one)
        address = self._address.pop(one, None)
        if address is not None:
            self._count[address] -= 1
            if not self._count[address]:
                del self._count[address]
