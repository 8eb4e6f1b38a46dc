"""CASPaxos, the proposer's side without I/O: one round of a change; the joining of a blank store.

Both are state machines: they give ``Call``s, the shell (or a simulation) carries them to the
registries in any order, and gives back each ``Reply`` or says that it was lost. What is lost never
counts, though it may have happened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import NamedTuple

from imcore.sometimes import NO_MAJORITY, sometimes
from services.control.acceptor import (
    Ballot,
    Record,
    accept,
    agreeing,
    blank_pair,
    join,
    majority,
    promise,
    register,
)

Fn = Callable[[bytes | None], bytes | None]


class Call(NamedTuple):
    """To one acceptor: read its record (``record`` None) or swap it."""

    name: str
    store: str
    expected: int = 0
    record: Record | None = None


class Reply(NamedTuple):
    """What the acceptor holds now; revision 0 and None: no such record (the store is gone)."""

    name: str
    swapped: bool
    revision: int
    record: Record | None


class Status(Enum):
    RUNNING = "running"
    COMMITTED = "committed"
    CONFLICT = "conflict"  # somebody else holds a higher ballot
    NO_MAJORITY = "no majority"
    REFUSED = "refused"  # ``fn`` raised


class Round:
    """One ballot of one change. ``fn`` is called at most once, on the value the promises showed."""

    def __init__(
        self, key: str, ballot: Ballot, stores: Mapping[str, str], total: int, fn: Fn
    ) -> None:
        self.key = key
        self.ballot = ballot
        self.status = Status.RUNNING
        self.value: bytes | None = None
        self.seen = ballot  # the highest ballot met: the next round starts above it
        self.offered = False  # whether an acceptance may have reached anybody
        self._stores = dict(stores)
        self._majority = majority(total)
        self._fn = fn
        self._known: dict[str, Reply] = {}  # last state of acceptors that may still act
        self._promised: dict[str, Record] = {}
        self._slots: dict[str, tuple[Ballot, bytes | None]] = {}
        self._accepted: dict[str, Record] = {}
        self._out: set[str] = set()  # lost, abstaining or refusing
        self._busy: set[str] = set()
        self._quorum: set[str] | None = None  # whose promises the value rests on

    def start(self, cache: Mapping[str, tuple[int, Record]]) -> list[Call]:
        """A cached state saves the read: if it is stale, the swap fails and says what is there.
        (A stale promise is below the truth, so what it refuses would be refused anyway.)"""
        if len(self._stores) < self._majority:
            self.status = Status.NO_MAJORITY
            return []
        calls = []
        for name, store in self._stores.items():
            cached = cache.get(name)
            if cached is None or not cached[1].joined:
                self._busy.add(name)
                calls.append(Call(name, store))
            else:
                calls += self._act(Reply(name, False, *cached))
        return calls

    def received(self, reply: Reply) -> list[Call]:
        if self.status is not Status.RUNNING or reply.name not in self._busy:
            return []
        self._busy.discard(reply.name)
        if reply.swapped and reply.record is not None:
            return self._done(reply, reply.record)
        return self._settle(self._act(reply))

    def lost(self, name: str) -> list[Call]:
        self._busy.discard(name)
        self._out.add(name)
        return self._settle([])

    def _act(self, reply: Reply) -> list[Call]:
        """The next swap on this acceptor, from its state as last seen."""
        name, record = reply.name, reply.record
        if record is None or not record.joined:
            self._out.add(name)
            return []
        changed = self._offer(name, record) if self._quorum else self._ask(record)
        if changed is None:
            self._out.add(name)
            return []
        self._busy.add(name)
        return [Call(name, self._stores[name], reply.revision, changed)]

    def _ask(self, record: Record) -> Record | None:
        self.seen = max(self.seen, record.slot(self.key).promised)
        return promise(record, self.key, self.ballot)

    def _offer(self, name: str, record: Record) -> Record | None:
        """Invariant 3: refuse where a promise that the value rests on is of a lost store."""
        assert self._quorum is not None
        self.seen = max(self.seen, record.slot(self.key).promised)
        if not all(record.names(peer, self._stores[peer]) for peer in self._quorum):
            return None
        self.offered = True
        return accept(record, self.key, self.ballot, self.value)

    def _done(self, reply: Reply, record: Record) -> list[Call]:
        name, slot = reply.name, record.slot(self.key)
        if slot.accepted == self.ballot:
            self._accepted[name] = record
            if agreeing(self._accepted, self._stores, self._majority):
                self.status = Status.COMMITTED
            return self._settle([])
        self._promised[name] = record
        self._slots[name] = (slot.accepted, slot.value)
        self._known[name] = reply
        if self._quorum:  # a late promise: it can still accept
            return self._settle(self._act(reply))
        quorum = agreeing(self._promised, self._stores, self._majority)
        if quorum is None:
            return self._settle([])
        _, current = max((self._slots[peer] for peer in quorum), key=lambda slot: slot[0])
        self.status = Status.REFUSED  # unless fn returns
        self.value = self._fn(current)
        self.status = Status.RUNNING
        self._quorum = quorum
        calls = [call for known in self._known.values() for call in self._act(known)]
        return self._settle(calls)

    def _settle(self, calls: list[Call]) -> list[Call]:
        """Give up once what is left cannot make a majority."""
        if self.status is Status.RUNNING:
            waiting = self._busy - self._accepted.keys()
            done = self._accepted if self._quorum else self._promised
            if len(done.keys() | waiting) < self._majority or not (waiting or calls):
                higher = self.seen > self.ballot
                self.status = Status.CONFLICT if higher else Status.NO_MAJORITY
                if not higher:
                    sometimes(NO_MAJORITY)
        return calls


class Joining:
    """A blank store's way in (invariant 2), one bucket. The owner alone runs it."""

    def __init__(self, name: str, store: str, others: Mapping[str, str]) -> None:
        self.name = name
        self.store = store
        self.stores = dict(others)
        self.read: dict[str, Record] = {}

    def start(self) -> list[Call]:
        return [Call(name, store) for name, store in self.stores.items()]

    def received(self, reply: Reply) -> list[Call]:
        """An acceptor without a record has an owner that has not started yet: ask it again."""
        if reply.record is None:
            return []
        entered = register(reply.record, self.name, self.store)
        if reply.swapped or entered is reply.record:
            self.read[reply.name] = reply.record
            return []
        return [Call(reply.name, self.stores[reply.name], reply.revision, entered)]

    @property
    def complete(self) -> bool:
        return self.read.keys() == self.stores.keys()

    def blocked_by(self) -> str | None:
        """The other blank store, when two are blank at once (invariant 4)."""
        return blank_pair(self.read, self.stores)

    def joined(self, own: Record) -> Record | None:
        """What the own record becomes; None when another acceptor has changed its store since it
        was read: then all must be read again."""
        assert self.complete
        for name, store in self.stores.items():
            known = own.members.get(name)
            if known is not None and known.store != store:
                return None
        return join(own, self.name, self.store, self.read, self.stores)


def next_ballot(seen: Ballot, last_counter: int, proposer: str) -> Ballot:
    return Ballot(max(seen.counter, last_counter) + 1, proposer)
