"""CASPaxos, the acceptor's side: what one registry stores and which changes to it are allowed.

Rystsov, "CASPaxos: Replicated State Machines without logs" (2018). A registry is a dumb acceptor:
its state is changed by whichever proposer acts, by compare-and-swap. The unit of the swap is a
*record*: one bucket of CASPaxos keys (their promised ballot, accepted ballot and value) with the
store ids of all acceptors, kept under a registry key that names the store and the bucket.

Invariants that make a wiped registry harmless:

1. Only the owner of a store creates its records. Everybody else swaps an existing one, and its key
   names the store; so nothing meant for a store that is gone ever lands in its successor.
2. A blank store's record is not ``joined`` and abstains. It joins after it has entered its own
   store id into *all* others' records, read them in the same swap, taken the highest accepted
   value per key, and promised above every ballot seen.
3. A promise or acceptance counts only together with others whose records name the store that
   gave it, and a record takes an acceptance only when it names the stores of all that promised.
   So a round that leans on a store that is gone can finish nowhere once the successor has read.
4. Two stores blank at once (other than at the very first start) could have held a commit alone:
   then neither joins. ``generation`` counts an acceptor's stores to tell that from the first start.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import combinations
from typing import Any, NamedTuple
from zlib import crc32

BUCKETS = 16
PREFIX = "caspaxos"


class Ballot(NamedTuple):
    """Compared as (counter, proposer); a proposer never uses a counter twice."""

    counter: int
    proposer: str


ZERO = Ballot(0, "")


class Slot(NamedTuple):
    """One CASPaxos key in one acceptor."""

    promised: Ballot = ZERO
    accepted: Ballot = ZERO
    value: bytes | None = None


class Member(NamedTuple):
    store: str
    generation: int = 1


@dataclass(frozen=True, slots=True)
class Record:
    """One bucket of one acceptor. ``floor`` is the promise for keys that have no slot."""

    joined: bool = False
    members: Mapping[str, Member] = field(default_factory=dict)
    slots: Mapping[str, Slot] = field(default_factory=dict)
    floor: Ballot = ZERO

    def slot(self, key: str) -> Slot:
        return self.slots.get(key) or Slot(promised=self.floor)

    def names(self, member: str, store: str) -> bool:
        known = self.members.get(member)
        return known is not None and known.store == store

    def highest(self) -> Ballot:
        return max([self.floor, *(slot.promised for slot in self.slots.values())])


def bucket_of(key: str) -> int:
    return crc32(key.encode()) % BUCKETS


def record_key(store: str, bucket: int) -> bytes:
    return f"{PREFIX}/{store}/{bucket:02d}".encode()


def majority(total: int) -> int:
    return total // 2 + 1


def promise(record: Record, key: str, ballot: Ballot) -> Record | None:
    """The record with the promise, or None when it has promised as much or more."""
    slot = record.slot(key)
    if slot.promised >= ballot:
        return None
    return _with(record, key, slot._replace(promised=ballot))


def accept(record: Record, key: str, ballot: Ballot, value: bytes | None) -> Record | None:
    """The record with the value accepted, or None when it has promised more."""
    if record.slot(key).promised > ballot:
        return None
    return _with(record, key, Slot(ballot, ballot, value))


def _with(record: Record, key: str, slot: Slot) -> Record:
    return replace(record, slots={**record.slots, key: slot})


def agreeing(acts: Mapping[str, Record], stores: Mapping[str, str], size: int) -> set[str] | None:
    """``size`` acceptors whose records name each other's stores as used (invariant 3), or None."""
    for names in combinations(sorted(acts), size):
        if all(acts[a].names(b, stores[b]) for a in names for b in names):
            return set(names)
    return None


def register(record: Record, name: str, store: str) -> Record:
    """The record with the acceptor's store entered; unchanged when it is already there."""
    known = record.members.get(name)
    if known is not None and known.store == store:
        return record
    generation = known.generation + 1 if known else 1
    return replace(record, members={**record.members, name: Member(store, generation)})


def blank_pair(others: Mapping[str, Record], stores: Mapping[str, str]) -> str | None:
    """An acceptor that lost an earlier store and has not joined again, or None (invariant 4).
    ``stores``: where each record was read."""
    for other, record in others.items():
        known = [seen.members[other] for seen in others.values() if other in seen.members]
        if not record.joined and any(
            member.generation > 1 or member.store != stores[other] for member in known
        ):
            return other
    return None


def join(
    own: Record, name: str, store: str, others: Mapping[str, Record], stores: Mapping[str, str]
) -> Record:
    """The own record as a member, from what all others held when they took ``store`` in."""
    members = own.members
    for other, other_store in {**stores, name: store}.items():
        members = register(replace(own, members=members), other, other_store).members
    seen = [*others.values(), own]
    top = max(record.highest() for record in seen)
    floor = Ballot(top.counter + 1, name)
    keys = sorted({key for record in seen for key in record.slots})
    slots = {}
    for key in keys:
        best = max((record.slot(key) for record in seen), key=lambda slot: slot.accepted)
        slots[key] = Slot(floor, best.accepted, best.value)
    return Record(True, members, slots, floor)


def chosen(key: str, records: Iterable[Record], total: int) -> Slot | None:
    """The slot that a majority has accepted under one ballot (ballot zero: nothing was ever), or
    None when these records do not settle it."""
    by_ballot: dict[Ballot, list[Slot]] = {}
    for record in records:
        if record.joined:
            slot = record.slot(key)
            by_ballot.setdefault(slot.accepted, []).append(slot)
    for slots in by_ballot.values():
        if len(slots) >= majority(total):
            return slots[0]
    return None


def encode(record: Record) -> bytes:
    return json.dumps(
        {
            "joined": record.joined,
            "members": {name: list(member) for name, member in record.members.items()},
            "slots": {
                key: [slot.promised, slot.accepted, _b64(slot.value)]
                for key, slot in record.slots.items()
            },
            "floor": list(record.floor),
        },
        separators=(",", ":"),
    ).encode()


@lru_cache(maxsize=64)
def decode(data: bytes) -> Record:
    """Raises ValueError for anything that is not a record. Registers are read several times a
    second and change once an hour: to parse what was parsed before was a hundredth of a process
    that does little else."""
    try:
        document: dict[str, Any] = json.loads(data)
        return Record(
            bool(document["joined"]),
            {name: Member(*member) for name, member in document["members"].items()},
            {
                key: Slot(Ballot(*promised), Ballot(*accepted), _unb64(value))
                for key, (promised, accepted, value) in document["slots"].items()
            },
            Ballot(*document["floor"]),
        )
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("not a CASPaxos record") from error


def _b64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _unb64(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
