"""What brings clients to this IDC and takes them away: gateway leases, ipconf, controller, mover;
and what the policy says, for the roles that only want to know."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from aiohttp import web

from imcore.errors import Unavailable
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.region.rules import ipconf_addresses
from imcore.tls import gateway_ssl_context
from imcore.words import Origin
from services.control.controller import Controller
from services.control.levels import Levels, agreed
from services.control.mover import Mover
from services.control.voting import PREFIX as VOTES
from services.gateway.server import Gateway
from services.ipconf import ticket
from services.ipconf.directory import PREFIX as GATEWAYS
from services.ipconf.directory import Directory
from services.ipconf.locate import open_locator
from services.ipconf.reports import Reports
from services.ipconf.server import IpconfServer
from services.media.listener import MediaListener
from services.metrics.verbs import Verbs
from services.node.leases import describe, keep_leases
from services.policy.document import IdcState
from services.policy.holder import PolicyHolder
from services.policy.poll import Poller

if TYPE_CHECKING:
    from services.node.node import Node

log = logging.getLogger("im.traffic")

LIVE_S = 0.05
_OUT = frozenset({IdcState.FAILED, IdcState.RETIRED})


class Traffic:
    """The controller runs from the start (its vote counts before the IDC serves); gateways, ipconf
    and mover only once it serves."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._idcs = [idc.name for idc in node.config.region.spec.idcs]
        self._live: dict[str, tuple[float, frozenset[str]]] = {}  # since when, gateways
        self.holder = PolicyHolder(node.config.data / "policy.json", node.disk)
        self.poller = Poller(node.registries, node.clock, GATEWAYS, VOTES)
        self.directory = Directory(self._idcs, self.poller)
        self._mover: Mover | None = None
        self.reports = Reports(self._idcs)
        self.controller = Controller(
            node.idc,
            node.config.region,
            node.registries,
            self.poller,
            node.proposer,
            self.holder,
            self.directory,
            self._probe,
            self._peer_facts,
            node.clock,
            node.rng,
            facts=lambda: node.status.facts(),
            reports=lambda: self.reports.counts(node.clock.now()),
            on_clock_offset=self._clock_offset,
        )
        self.levels = Levels(node.proposer, self._level_agreed)

    async def prepare(self, stack: contextlib.AsyncExitStack) -> None:
        self.poller.start()
        stack.push_async_callback(self.poller.stop)
        self.controller.start()
        stack.push_async_callback(self.controller.stop)
        self._node.spawn("level of ops", self.levels.run())

    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        node, config = self._node, self._node.config
        if node.fronts is None:  # a front registers its own
            node.spawn("gateway leases", keep_leases(node.own_registry, self._described))
        files = node.media[1].routes() if node.media is not None else []
        if files and config.idc.endpoints.media is not None:
            await self._start_media(config.idc.endpoints.media, files, stack)
            files = []
        if config.roles.ipconf:
            await self._start_ipconf(files, stack)
        mover = self._mover = Mover(
            node.idc,
            config.region,
            self.holder,
            node.state,
            self.controller.in_minority,
            self.directory.live,
            node.clock,
        )
        mover.start()
        stack.push_async_callback(mover.stop)

    async def _start_ipconf(
        self, files: Sequence[web.RouteDef], stack: contextlib.AsyncExitStack
    ) -> None:
        """At every address of an ipconf of this IDC: none of them runs in a process of its own."""
        node, config = self._node, self._node.config
        locator = open_locator(config.region.spec.geo.database, Path.cwd())
        for address in ipconf_addresses(config.idc):
            ipconf = IpconfServer(
                node.idc,
                config.region,
                config.keys,
                self.holder,
                self.directory,
                locator,
                self.reports,
                node.median_clock,
                self.controller.in_minority,
                self._ipconf_verbs(),
                node.outside.listen,
                files,
            )
            host, port = config.listener(address)
            await ipconf.start(host, port, gateway_ssl_context(config.pki, node.idc))
            stack.push_async_callback(ipconf.stop)

    async def _start_media(
        self, endpoint: str, files: Sequence[web.RouteDef], stack: contextlib.AsyncExitStack
    ) -> None:
        node, config = self._node, self._node.config
        listener = MediaListener(
            files, config.region, node.median_clock, self._ipconf_verbs(), node.outside.listen
        )
        host, port = config.listener(endpoint)
        await listener.start(host, port, gateway_ssl_context(config.pki, node.idc))
        stack.push_async_callback(listener.stop)

    def _ipconf_verbs(self) -> Verbs | None:
        measured = self._node.measured
        return measured.verbs["ipconf"] if measured is not None else None

    # ------------------------------------------------------------------------------- calls

    async def _probe(self, name: str) -> peer.ProbeReply:
        request = peer.ProbeRequest(from_idc=self._node.idc, wall_ms=self._node.clock.wall_ms())
        try:
            return await rpc.PeerStub(self._node.channels[name]).Probe(request, timeout=1.0)
        except grpc.RpcError as error:
            raise Unavailable(f"{name} does not answer a probe") from error

    async def _peer_facts(self, name: str) -> dict[str, Any]:
        try:
            stub = rpc.PeerStub(self._node.channels[name])
            reply = await stub.Facts(peer.StatusRequest(), timeout=1.0)
        except grpc.RpcError as error:
            raise Unavailable(f"{name} does not tell its status") from error
        found: dict[str, Any] = json.loads(reply.json)
        if self._node.webhooks is not None:
            self._node.webhooks.heard(name, found.get("webhooks_told", {}))
        return found

    def _clock_offset(self, offset_ms: int) -> None:
        self._node.hlc.measured(self._node.clock.wall_ms(), offset_ms)

    def fill_probe(self, reply: peer.ProbeReply) -> None:
        reply.serving = self._node.serving
        reply.gateways = len(self._node.gateways)
        reply.policy_epoch = self.epoch()

    # ------------------------------------------------------------------------------ leases

    def _described(self) -> dict[str, dict[str, Any]]:
        idc = self._node.config.idc
        own = [each for each in self._node.gateways if isinstance(each, Gateway)]
        return {gateway.name: describe(idc, gateway, gateway.port) for gateway in own}

    def _level_agreed(self) -> int:
        retired = self.retired()
        return agreed(
            [idc for idc in self._idcs if idc not in retired],
            self.controller.evidence().idcs,
            self._node.clock.wall_ms(),
            self._node.config.region.spec.safety.evidence_age_ms_max,
        )

    # -------------------------------------------------------------------------- the policy

    def epoch(self) -> int:
        return self.holder.policy.epoch if self.holder.policy else 0

    def _state(self, idc: str) -> IdcState:
        return self.holder.policy.state(idc) if self.holder.policy else IdcState.ACTIVE

    def shard_of(self, text: bytes, uid: str) -> str:
        return ticket.shard_of(self._node.config.keys, text, uid, self._node.config.region)

    def retired(self) -> frozenset[str]:
        return frozenset(idc for idc in self._idcs if self._state(idc) is IdcState.RETIRED)

    def voting_origins(self) -> frozenset[Origin]:
        """Those whose closed HLC holds the stable watermark back."""
        current = self._node.replication.current
        return frozenset(current(idc) for idc in self._idcs if self._state(idc) not in _OUT)

    def current_origins(self) -> list[Origin]:
        """Under which the IDCs accept, or will when they return; those of retired ones not."""
        retired = self.retired()
        return [self._node.replication.current(idc) for idc in self._idcs if idc not in retired]

    def suspended_origins(self) -> dict[Origin, bool]:
        """Origins that are down, and whether they are sealed for good."""
        replication = self._node.replication
        found = {replication.current(idc): False for idc in self._idcs if self._state(idc) in _OUT}
        for idc, register in replication.registers.items():
            for seal in register.seals:
                found[Origin(idc, seal.incarnation)] = True
        return found

    def usable(self, idc: str, gateway: str) -> bool:
        """Whether a route by this gateway is still good: its lease lives, its IDC is not out.
        Asked for every device of every receiver, and the answer changes by the half second, so
        it is looked up so seldom: reading the leases each time took 4 % of the process."""
        return gateway in self._live_in(idc)

    def usable_gateways(self) -> frozenset[tuple[str, str]]:
        """IDC and name of all of which ``usable`` holds."""
        idcs = [idc.name for idc in self._node.config.region.spec.idcs]
        return frozenset((idc, gateway) for idc in idcs for gateway in self._live_in(idc))

    def _live_in(self, idc: str) -> frozenset[str]:
        now = self._node.clock.now()
        known = self._live.get(idc)
        if known is None or now - known[0] > LIVE_S:
            out = self._state(idc) in _OUT
            names = () if out else (gateway.name for gateway in self.directory.live_in(idc))
            known = self._live[idc] = (now, frozenset(names))
        return known[1]

    def policy_status(self) -> dict[str, Any]:
        policy = self.holder.policy
        return {
            "epoch": self.epoch(),
            "stale": self.holder.stale,
            "operation": policy.operation.id if policy and policy.operation else "",
            "operation_state": str(policy.operation.state) if policy and policy.operation else "",
            "waiting_for": self.controller.waiting_for,
            "idcs": {
                name: {"state": str(row.state), "ramp": row.ramp}
                for name, row in (policy.idcs.items() if policy else ())
            },
        }

    def moves_status(self) -> dict[str, Any]:
        if self._mover is None:
            return {"closed": 0}
        seen = self._mover.handover()
        return {
            "closed": self._mover.closed,
            "told": seen.told,
            "gone": seen.gone,
            "usual_ms": seen.usual.limit_ms,
            "stuck": dict(seen.stuck),
        }

    def registries_status(self) -> dict[str, str]:
        return self.controller.registries()

    def alarms(self) -> list[str]:
        return self.controller.alarms()
