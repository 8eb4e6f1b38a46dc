"""Who runs the simulated deployment: brings traffic back to an IDC that was declared failed and
runs again. By the same evaluator and the same commit as ``imctl failback``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from typing import Any, cast

import grpc

from imcore.errors import ImError
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from services.control.caspaxos import Proposer
from services.control.evidence import Evidence, IdcFacts, facts_from_status, mark_of
from services.control.operations import UNDER_WAY, commit
from services.control.rules import Change, Kind
from services.engines.registry_grpc import RemoteRegistry
from services.policy.document import POLICY_KEY, IdcState, Policy, from_json
from services.sim.loop import Owner
from services.sim.region import IDCS
from services.sim.rpc import SimChannel
from services.sim.world import World

LOOK_S = 1.0
_ASK_S = 1.0


def _lacks_traffic(policy: Policy, idc: str) -> bool:
    """A failback ends early when another IDC fails: then it is asked for again."""
    row = policy.idcs.get(idc)
    return row is not None and (row.state is not IdcState.ACTIVE or row.ramp < 100)


class Operator:
    """``run`` in a task of its own until cancelled. ``policy``: as it was last seen."""

    def __init__(self, world: World) -> None:
        self.owner = Owner("operator")
        self.policy: Policy | None = None
        self.refusal = ""
        self.asked = 0
        self._world = world
        self._rng = random.Random(f"operator {world.seed}")
        world.net.sites[self.owner] = "near-iad"

    @property
    def settled(self) -> bool:
        """Every IDC has its traffic and no operation is under way."""
        policy = self.policy
        return (
            policy is not None
            and not any(_lacks_traffic(policy, name) for name in IDCS)
            and (policy.operation is None or policy.operation.state not in UNDER_WAY)
        )

    async def run(self) -> None:
        world = self._world
        channels = {
            idc.name: cast(grpc.aio.Channel, SimChannel(world.net, "admin", idc.endpoints.peer))
            for idc in world.region.spec.idcs
        }
        registries = {name: RemoteRegistry(each, name) for name, each in channels.items()}
        proposer = Proposer(registries, "admin", world.clock, self._rng)
        while True:
            with contextlib.suppress(ImError):
                await self._look(proposer, channels)
            await asyncio.sleep(LOOK_S)

    async def _look(self, proposer: Proposer, channels: dict[str, grpc.aio.Channel]) -> None:
        value, _ = await proposer.read(POLICY_KEY)
        if value is None:
            return
        policy = self.policy = from_json(value)
        for name in IDCS:
            if _lacks_traffic(policy, name) and self._world.machines[name].serving:
                await self._bring_back(name, proposer, channels)
                return

    async def _bring_back(
        self, name: str, proposer: Proposer, channels: dict[str, grpc.aio.Channel]
    ) -> None:
        facts: dict[str, IdcFacts] = {}
        for idc, channel in channels.items():
            with contextlib.suppress(grpc.RpcError):
                reply = await rpc.AdminStub(channel).Status(peer.StatusRequest(), timeout=_ASK_S)
                document: dict[str, Any] = json.loads(reply.json)
                facts[idc] = facts_from_status(document, self._world.clock.wall_ms())
        marks = {idc: mark_of(each) for idc, each in facts.items()}
        change = Change(Kind.FAILBACK, name, f"{self._rng.getrandbits(64):016x}", "operator")
        decision = await commit(
            proposer, self._world.region, change, Evidence(facts, (), list(IDCS), marks),
            self._world.clock,
        )  # fmt: skip
        self.asked += 1
        if decision.sentence != self.refusal:
            self.refusal = decision.sentence
            self._world.trace.add(f"operator failback {name}: {decision.sentence}")
