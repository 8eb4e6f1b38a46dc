"""Whether an IDC that starts may go on under its old incarnation (rule 6). Pure.

An origin's log may have lost its end: a disk was wiped, a backup restored, a sector went bad. To
go on under the same name would give old lsns to new ops, and replicas would differ for ever. So
it goes on only if the store is the one that the committed register names, nothing that it ever
announced is missing or different, and nothing that was known whole is damaged. Otherwise it takes
the next incarnation and seals the old one at what the survivors hold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Seal:
    """Records of this incarnation above these ends (per partition) do not count."""

    incarnation: int
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Register:
    """What the registries have committed of one IDC (key ``idc/<name>``)."""

    incarnation: int
    log_id: str
    boot_count: int
    seals: tuple[Seal, ...] = ()

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @staticmethod
    def from_json(text: bytes) -> Register:
        data = json.loads(text)
        seals = tuple(Seal(s["incarnation"], tuple(s["ends"])) for s in data["seals"])
        return Register(data["incarnation"], data["log_id"], data["boot_count"], seals)

    def seal_of(self, incarnation: int) -> Seal | None:
        for seal in self.seals:
            if seal.incarnation == incarnation:
                return seal
        return None


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """The IDC's own log store as it was found at start."""

    log_id: str
    boot_count: int  # of this boot
    confirmed_boot_count: int  # of the last boot that was confirmed to the register
    incarnation: int  # of its own log; 0: it has none
    ends: tuple[int, ...]
    clean: bool  # no CRC error below a written end
    fsynced: bool  # what was acked survives a crash of all its machines


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """What another IDC says of the starting IDC's last incarnation."""

    idc: str
    answered: bool
    ends: tuple[int, ...] = ()  # durable in its copy
    announced: tuple[int, ...] = ()  # the highest it has heard of
    chains_agree: bool = True  # its chain at its end equals the store's at that lsn
    retired: bool = False
    starting: bool = False  # what it held once may still be on its way to it


@dataclass(frozen=True, slots=True)
class Decision:
    register: Register  # to be committed, by compare-and-swap, before the IDC serves
    kept: bool
    sentence: str
    alarms: tuple[str, ...] = field(default=())


def decide(committed: Register | None, store: StoreFacts, peers: Sequence[PeerFacts]) -> Decision:
    if committed is None:
        if store.incarnation > 1:
            return _next(Register(store.incarnation, "", 0), store, peers, "the register is empty")
        first = Register(1, store.log_id, store.boot_count)
        return Decision(first, True, "first start: incarnation 1")
    reason = _why_not(committed, store, peers)
    if reason:
        return _next(committed, store, peers, reason)
    kept = Register(committed.incarnation, store.log_id, store.boot_count, committed.seals)
    return Decision(kept, True, f"goes on as incarnation {kept.incarnation}")


def may_seal(peers: Sequence[PeerFacts]) -> bool:
    """Whether the ends that were heard are those of the survivors. Logs may be cut below what
    every IDC holds (rule 8), so a seal must not lie below the least of them: one that is whole must
    have answered, or all must have, since then nobody has more."""
    counting = [peer for peer in peers if not peer.retired]
    if not counting or all(peer.answered for peer in counting):
        return True
    return any(peer.answered and not peer.starting for peer in counting)


def _why_not(committed: Register, store: StoreFacts, peers: Sequence[PeerFacts]) -> str | None:
    """The reason against keeping the incarnation, or None."""
    if store.log_id != committed.log_id:
        return "its log is not the one that the register names"
    if store.incarnation not in (0, committed.incarnation):
        return f"its log is of incarnation {store.incarnation}"
    # A boot that died before its own note of the commit, or before the commit, leaves them apart.
    if not store.confirmed_boot_count <= committed.boot_count < store.boot_count:
        return (
            f"its boot count {store.confirmed_boot_count} is not the {committed.boot_count} "
            "of the register: an older copy of the disk"
        )
    if not store.clean:
        return "its log is damaged below an end that it had announced"
    for peer in peers:
        if peer.retired:
            continue
        if not peer.answered:
            if store.fsynced:  # the same log, and whole: it ends where it ended
                continue
            return f"{peer.idc} may hold more of its log, which is not synced to disk"
        for partition, own in enumerate(store.ends):
            known = max(_at(peer.ends, partition), _at(peer.announced, partition))
            if known > own:
                return f"{peer.idc} knows partition {partition} up to {known}, it ends at {own}"
        if not peer.chains_agree:
            return f"its records differ from the copy in {peer.idc}"
    return None


def _at(ends: tuple[int, ...], partition: int) -> int:
    return ends[partition] if partition < len(ends) else 0


def _next(
    committed: Register, store: StoreFacts, peers: Sequence[PeerFacts], reason: str
) -> Decision:
    partitions = (
        max(len(store.ends), *(len(p.ends) for p in peers), 0) if peers else len(store.ends)
    )
    answering = [p for p in peers if p.answered and not p.retired]
    answering = answering or [p for p in peers if p.answered]  # a retired one is better than none
    ends = tuple(
        max((_at(p.ends, partition) for p in answering), default=0)
        for partition in range(partitions)
    )
    seal = Seal(committed.incarnation, ends)
    register = Register(
        committed.incarnation + 1, store.log_id, store.boot_count, (*committed.seals, seal)
    )
    silent = [p.idc for p in peers if not p.answered and not p.retired]
    alarms = (
        (f"sealed without hearing from {', '.join(silent)}: it will publish again what it holds",)
        if silent
        else ()
    )
    sentence = (
        f"takes incarnation {register.incarnation}, because {reason}; incarnation "
        f"{committed.incarnation} is sealed at {list(ends)}"
    )
    return Decision(register, False, sentence, alarms)
