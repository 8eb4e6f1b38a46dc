"""What the simulation sees of the policy's way through the registries, for ``safety`` to judge.

Everything that a registry has ever taken is looked at, also of one that has died since.
"""

from __future__ import annotations

import json

from services.control.acceptor import PREFIX, bucket_of, decode
from services.control.voting import PREFIX as VOTES
from services.engines.registry_store import RegistryStore
from services.policy.document import POLICY_KEY, from_json
from services.ports import Versioned
from services.sim.net import QUEUE_S, RESEND_S
from services.sim.safety import Ballot, Ends, Look, Pair, Safety, Site
from services.sim.world import Machine, World

AFTER_S = QUEUE_S + RESEND_S[1]  # a way that is mended brings first what had to wait
_RECORD = f"/{bucket_of(POLICY_KEY):02d}".encode()


class Truth:
    """``look`` a few times a second."""

    def __init__(self, world: World) -> None:
        self.safety = Safety(world.region, world.layout.voters)
        self._world = world
        self._read: dict[str, tuple[RegistryStore, int]] = {}  # and up to which revision
        self._slow_until: dict[Pair, float] = {}
        # What a process did since the last look may have been told, and is not to be seen again.
        world.before_crash = lambda: self.safety.look(self._look(world.loop.time()))

    def look(self) -> None:
        world, now = self._world, self._world.loop.time()
        for machine in world.voters:
            self._read_registry(machine, now)
        self.safety.look(self._look(now))
        self.safety.judge(now)
        for name, machine in world.machines.items():
            if machine.node is not None and machine.serving and not _paused(machine):
                policy = machine.node.traffic.holder.policy
                if policy is not None:
                    self.safety.follows(name, policy, now)

    # -------------------------------------------------------------------------- registries

    def _read_registry(self, machine: Machine, now: float) -> None:
        known, store = self._read.get(machine.name), machine.registry
        if known is not None:
            self._took(machine.name, *known, now)  # the last words of one that has died, too
        if store is not None and (known is None or known[0] is not store):
            self._took(machine.name, store, 0, now)

    def _took(self, name: str, store: RegistryStore, revision: int, now: float) -> None:
        found = store._state.since(b"", revision + 1)
        self._read[name] = store, found.revision
        for event in found.events:
            if event.key.startswith(PREFIX.encode()) and event.key.endswith(_RECORD):
                self._accepted(name, event, now)

    def _accepted(self, name: str, event: Versioned, now: float) -> None:
        record = decode(event.value)
        slot = record.slot(POLICY_KEY)
        if record.joined and slot.value is not None:
            self.safety.accepted(name, Ballot(*slot.accepted), from_json(slot.value), now)

    # ------------------------------------------------------------------------------- a look

    def _look(self, now: float) -> Look:
        world = self._world
        names = world.layout.voters
        cut = any(world.net.link(a, b).cut for a in names for b in names if a != b)
        votes = [vote for each in world.voters for vote in _votes(each)]
        hold_ms = world.region.spec.safety.hold_ms
        return Look(
            now,
            {name: site for name, each in world.machines.items() if (site := _site(world, each))},
            frozenset((a, b) for a in names for b in names if a != b and self._troubled(a, b)),
            frozenset(pair for pair, _ in votes),
            not cut and not any(_paused(each) for each in world.voters),
            frozenset(pair for pair, held_ms in votes if held_ms >= hold_ms),
        )

    def _troubled(self, voter: str, other: str) -> bool:
        world = self._world
        links = (world.net.link(voter, other), world.net.link(other, voter))
        machine = world.machine(other)
        now = world.loop.time()
        if any(link.cut or link.bytes_per_s or link.loss for link in links):
            self._slow_until[voter, other] = now + AFTER_S
        if now < self._slow_until.get((voter, other), 0.0):
            return True
        if not machine.serving or _paused(machine) or _paused(world.machine(voter)):
            return True
        return machine.disk.faults.full or machine.disk.faults.fsync_delay_ms > 0


def _paused(machine: Machine) -> bool:
    return machine.owner is not None and machine.owner.paused


def _votes(machine: Machine) -> list[tuple[Pair, int]]:
    """That its process has cast, as they stand in its own registry, and for how long it says that
    it has held them, in ms."""
    store = machine.registry
    rows = store.standing(VOTES) if store is not None else []
    votes = [json.loads(row.value) for row in rows]
    return [((machine.name, str(vote["accused"])), int(vote["held_ms"])) for vote in votes]


def _site(world: World, machine: Machine) -> Site | None:
    node = machine.node
    if node is None or not machine.serving or _paused(machine):
        return None
    held: dict[str, Ends] = {}
    applied: dict[str, Ends] = {}
    for origin, log in node.store.held().items():
        held[str(origin)] = tuple(log.end(p.number).lsn for p in node.partitions)
        applied[str(origin)] = tuple(p.applier.lsn(origin) for p in node.partitions)
    own = node.store.own()
    ends = tuple(own.end(p.number).lsn for p in node.partitions) if own is not None else ()
    sealed = {str(origin): seal for origin, seal in node.seals.known().items()}
    return Site(str(node.origin), node.state.connected_count(), ends, held, applied, sealed)
