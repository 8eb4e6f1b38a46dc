"""Who runs the simulated deployment: moves traffic away from an IDC now and then, and brings it
back to one that has none and runs. By the same evaluator and the same commit as ``imctl``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Mapping
from typing import Any, TypeAlias, cast

import grpc

from imcore.errors import ImError
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from services.control.caspaxos import Proposer
from services.control.evidence import Evidence, IdcFacts, facts_from_status, mark_of
from services.control.operations import UNDER_WAY, commit
from services.control.rules import Change, Kind
from services.control.voting import votes_now
from services.engines.registry_grpc import RemoteRegistry
from services.policy.document import POLICY_KEY, IdcState, Policy, from_json
from services.ports import Registry
from services.sim.loop import Owner
from services.sim.region import OPERATOR
from services.sim.rpc import SimChannel
from services.sim.world import World

Channels: TypeAlias = Mapping[str, grpc.aio.Channel]
LOOK_S = 1.0
_ASK_S = 1.0


def settled(policy: Policy | None) -> bool:
    """Every IDC has its traffic and no operation is under way."""
    return (
        policy is not None
        and not any(_lacks_traffic(policy, name) for name in policy.idcs)
        and (policy.operation is None or policy.operation.state not in UNDER_WAY)
    )


def _lacks_traffic(policy: Policy, idc: str) -> bool:
    """A failback ends early when another IDC fails: then it is asked for again."""
    row = policy.idcs.get(idc)
    return row is not None and (row.state is not IdcState.ACTIVE or row.ramp < 100)


class Operator:
    """``run`` in a task of its own until cancelled."""

    def __init__(self, world: World) -> None:
        self.owner = Owner("operator")
        self.refusal = ""
        self.epoch = 0  # of the last committed policy that it read
        self._wished: list[tuple[str, str]] = []  # planned moves, from and to
        self._refused: list[tuple[str, str]] = []  # to be asked for once more
        self._world = world
        self._rng = random.Random(f"operator {world.seed}")
        world.net.sites[self.owner] = OPERATOR

    def move(self, source: str, target: str) -> None:
        """To be asked for at once, whatever goes on, so that the rules have to refuse some of it;
        and what was refused, once more when every IDC has its traffic."""
        self._wished.append((source, target))

    async def run(self) -> None:
        world = self._world
        channels = {
            idc.name: cast(grpc.aio.Channel, SimChannel(world.net, "admin", idc.endpoints.peer))
            for idc in world.region.spec.idcs
        }
        voters = dict(channels)
        if (witness := world.region.spec.witness) is not None:
            channel = SimChannel(world.net, "admin", witness.peer)
            voters[witness.name] = cast(grpc.aio.Channel, channel)
        registries = {name: RemoteRegistry(each, name) for name, each in voters.items()}
        proposer = Proposer(registries, "admin", world.clock, self._rng)
        while True:
            with contextlib.suppress(ImError):
                await self._look(proposer, channels, registries)
            await asyncio.sleep(LOOK_S)

    async def _look(
        self, proposer: Proposer, channels: Channels, registries: Mapping[str, Registry]
    ) -> None:
        value, _ = await proposer.read(POLICY_KEY)
        if value is None:
            return
        policy = from_json(value)
        self.epoch = max(self.epoch, policy.epoch)
        if self._wished:
            source, target = self._wished.pop()
            if not await self._ask(Kind.SWITCHOVER, source, target, proposer, channels, registries):
                self._refused.append((source, target))
            return
        for name in self._world.layout.idcs:
            if _lacks_traffic(policy, name) and self._world.machines[name].serving:
                # A failover of another IDC ends a drain in the middle, and nobody goes on with it.
                stays = policy.state(name) is IdcState.DRAINING and policy.operation is None
                kind = Kind.UNDRAIN if stays else Kind.FAILBACK
                await self._ask(kind, name, "", proposer, channels, registries)
                return
        if self._refused:
            source, target = self._refused.pop()
            await self._ask(Kind.SWITCHOVER, source, target, proposer, channels, registries)

    async def _ask(
        self,
        kind: str,
        idc: str,
        target: str,
        proposer: Proposer,
        channels: Channels,
        registries: Mapping[str, Registry],
    ) -> bool:
        """Whether it was committed."""
        facts: dict[str, IdcFacts] = {}
        for name, channel in channels.items():
            with contextlib.suppress(grpc.RpcError):
                reply = await rpc.AdminStub(channel).Status(peer.StatusRequest(), timeout=_ASK_S)
                document: dict[str, Any] = json.loads(reply.json)
                facts[name] = facts_from_status(document, self._world.clock.wall_ms())
        marks = {name: mark_of(each) for name, each in facts.items()}
        request = f"{self._rng.getrandbits(64):016x}"
        change = Change(kind, idc, request, "operator", target)
        votes = await votes_now("admin", registries, self._world.clock)
        evidence = Evidence(facts, votes, list(self._world.layout.voters), marks)
        decision = await commit(proposer, self._world.region, change, evidence, self._world.clock)
        if decision.sentence != self.refusal:
            self.refusal = decision.sentence
            self._world.trace.add(f"operator {kind} {idc}: {decision.sentence}")
        return decision.policy is not None
