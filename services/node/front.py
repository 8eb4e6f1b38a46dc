"""A front of an IDC: one gateway and its state role, in a process beside the core.

It reaches the core at the IDC's peer address, or by a route instance if there is one, with the
IDC's own certificate, and listens for clients once the core serves. While the core is away
connections stand and requests are answered with `unavailable`; after the hold time of the region
file clients are sent to ipconf.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

from imcore.errors import ImError
from imcore.hlc import Hlc
from imcore.listener import Factory, Listen, Listener, Listening
from imcore.proto import front_pb2 as front
from imcore.proto import front_pb2_grpc as rpc
from imcore.runtime import Clock
from imcore.tls import gateway_ssl_context
from imcore.words import Origin
from services.engines.registry_grpc import RemoteRegistry
from services.gateway.config import GatewayConfig
from services.gateway.handover import Handover
from services.gateway.server import Gateway
from services.ipconf import ticket
from services.node.apart import until_stopped
from services.node.clock import MedianClock
from services.node.config import NodeConfig, split_address
from services.node.front_load import LoadReport
from services.node.leases import describe, keep_leases
from services.node.metrics import Measured
from services.node.monitor import of_front
from services.node.outside import Machine, Outside
from services.node.region_keys import FollowedKeys
from services.node.risk import rules_of
from services.node.roles import Roles
from services.node.succession import (
    become,
    go_on,
    hand_over,
    leave,
    others,
    startable,
    within,
)
from services.node.tracing import provider_of, tracing_of
from services.policy.poll import POLL_S
from services.ports import Registry
from services.split.core import CoreLink
from services.split.ways import ByRoute
from services.state.server import StateServer

if TYPE_CHECKING:
    from aioquic.quic.configuration import QuicConfiguration

log = logging.getLogger("im.front")

LOOK_S = 0.2
OUT_S = 2.0  # for a registry that answers to take a gateway out of discovery


async def open_gateway(
    config: NodeConfig,
    number: int,
    name: str,
    state: StateServer,
    clock: Clock,
    listen: Listen,
    measured: Measured | None = None,
) -> Gateway:
    """The IDC's gateway of this number (from 1), listening. Raises OSError, BadInput."""
    spec = config.region.spec
    host, port = config.listener(config.idc.endpoints.gateway)
    limits = GatewayConfig(
        idle_ms=2 * spec.client.heartbeat_ms + spec.client.heartbeat_timeout_ms,
        connects_per_s=spec.limits.connects_per_s,
        connections_of_address=spec.limits.connections_of_address,
        shared=tuple(ip_network(text) for text in spec.geo.trusted_proxies),
    )
    context = None
    if config.plain_clients:
        log.warning("%s takes clients without TLS (--plain-clients)", name)
    else:
        context = gateway_ssl_context(config.pki, config.idc.name)
    gateway = Gateway(name, state, clock, limits, listen)
    if measured is not None:
        gateway.verbs = measured.verbs["gateway"]
    state.gateways[name] = gateway
    await gateway.start(
        host, config.gateway_port or port + number - 1, context, _quic(config) if context else None
    )
    return gateway


def _quic(config: NodeConfig) -> Callable[[], QuicConfiguration] | None:
    """Raises BadInput."""
    if not config.region.spec.client.quic:
        return None
    from imcore.quic import server_configuration

    return server_configuration(config.pki, config.idc.name)


class FrontNode:
    def __init__(
        self,
        config: NodeConfig,
        handover: Handover | None = None,
        outside: Outside | None = None,
    ) -> None:
        self.config = config
        self._handover = handover  # of the predecessor whose hot restart this is
        self._restarts = handover.restarts if handover is not None else 0
        self.outside: Outside = outside or Machine(config.pki, config.idc.name)
        self.clock = self.outside.clock
        self.hlc = Hlc(steady_ms=lambda: int(self.clock.now() * 1000))
        self.again = False  # the process is to start its roles again
        self.gateway: Gateway | None = None
        self._report: LoadReport
        self._origin: Origin | None = None
        self._stopping = asyncio.Event()
        self._restart = asyncio.Event()
        self._leaving = False
        self._goes = asyncio.Event()
        self._found: Collection[str] = ()  # gateways of this process that clients are sent to
        self._listener: Listening

    def restart(self) -> None:
        """Become a successor (``services.node.succession``), once all is ready for it."""
        self._restart.set()

    @property
    def port(self) -> int:
        """Where clients find it, wherever it listens."""
        return split_address(self.config.idc.endpoints.gateway)[1] + self.config.instance - 1

    def stop(self) -> None:
        self._stopping.set()

    def leave(self) -> None:
        """Stop, once its clients are at other gateways of the IDC, if there are some."""
        self._goes.set()

    def not_ready(self) -> list[str]:
        """Why no client should be sent here."""
        if self.gateway is None:
            return ["it has no link to its core yet"]
        if self._leaving:
            return ["its clients are sent to other gateways: it stops"]
        if self.gateway.name not in self._found:
            return ["it is not in discovery: the registry of its core has no lease of it"]
        return []

    async def run(self) -> None:
        """Until ``stop``, or until a role fails for good; then raises what failed."""
        config = self.config
        name, idc, spec = config.idc.name, config.idc, config.region.spec
        config.data.mkdir(parents=True, exist_ok=True)
        async with contextlib.AsyncExitStack() as stack:
            if config.monitor_port:
                host, _ = config.listener(idc.endpoints.gateway)
                await of_front(self).start(host, config.monitor_port, stack)
            channel = self.outside.channel(name, config.address(name))
            stack.push_async_callback(channel.close, 0.5)
            stub: rpc.FrontAsyncStub = rpc.FrontStub(channel)
            # New in each life: routes of an earlier one are never taken for live.
            gateway = f"{name}-gw{config.instance}.{self.outside.secret(4).hex()}"
            if self._handover is not None:
                gateway = self._handover.gateway
            registry = RemoteRegistry(channel, name)
            way = ByRoute(
                gateway, stub, registry, partial(self.outside.channel, name), self.clock,
                self.outside.rng,
            )  # fmt: skip
            stack.push_async_callback(way.close)
            link = CoreLink(way, config.keys, self.clock, self._told, self._load)
            self.state = state = StateServer(
                config.keys, MedianClock(self.clock, self.hlc), spec.client,
                link.stamp, lambda: link.policy_epoch, self._shard_of,
                config.data / "sessions.json", spec.limits,
                rules_of(spec.limits.risk_rules, self.clock), self.outside.secret,
                self.outside.look_s,
            )  # fmt: skip
            if spec.tracing.per_s:
                spans = provider_of(name, ())
                stack.push_async_callback(asyncio.to_thread, spans.shutdown)
                state.follow(tracing_of(spans, spec.tracing.per_s, self.clock))
            state.im, link.state = link, state
            # Its core shows them, for all fronts together.
            shown = bool(idc.endpoints.metrics)
            measured = Measured(self.outside.rng, Roles.FRONT.value) if shown else None
            if measured is not None:
                state.measure(measured.verbs["state"])
            self._report = LoadReport(state, measured.verbs if measured is not None else {})
            link.hello = front.Hello(
                gateway=gateway, port=self.port, restarts=self._restarts, grows=True
            )
            works: list[Callable[[], Coroutine[Any, Any, None]]] = [
                link.run, lambda: self._link_better(link, way),
                FollowedKeys(config.pki, config.keys).run,
                lambda: self._serve(stack, link, gateway, measured),
                lambda: keep_leases(registry, self._described, self._kept),
                lambda: self._restart_when_told(link, registry, gateway),
                lambda: self._leave_when_told(link, registry, gateway),
            ]  # fmt: skip
            await until_stopped(self._stopping, works)
            log.info("%s stops", gateway)

    async def _serve(
        self,
        stack: contextlib.AsyncExitStack,
        link: CoreLink,
        name: str,
        measured: Measured | None,
    ) -> None:
        await link.linked.wait()
        assert link.origin is not None
        state = self.state
        state.origin = link.origin
        state.load_checkpoint()
        state.watch(link.changed)
        link.tell_standing()
        stack.push_async_callback(self._farewell)
        handover, self._handover = self._handover, None
        self.gateway = await open_gateway(
            self.config,
            self.config.instance,
            name,
            state,
            self.clock,
            self._listen(handover),
            measured,
        )
        stack.push_async_callback(self.gateway.stop)
        if handover is not None:
            await go_on(handover, self.gateway, state, link)
        log.info("%s serves (pid %d)", name, self.outside.pid)
        async with asyncio.TaskGroup() as group:
            group.create_task(state.run())
            group.create_task(self._look_at_core(link))

    def _listen(self, handover: Handover | None) -> Listen:
        inherited = [socket.socket(fileno=fd) for fd in handover.listeners] if handover else []

        def listen(
            factory: Factory, tls: ssl.SSLContext | None, handshake_s: float, shutdown_s: float
        ) -> Listening:
            if inherited:
                self._listener = Listener(factory, tls, handshake_s, shutdown_s, inherited)
            else:
                self._listener = self.outside.listen(factory, tls, handshake_s, shutdown_s)
            return self._listener

        return listen

    async def _restart_when_told(self, link: CoreLink, registry: Registry, name: str) -> None:
        while True:
            await self._restart.wait()
            self._restart.clear()
            if self.gateway is None:
                continue  # it is only starting, on what is installed now
            why = await startable()
            if why:
                log.error("no restart, it goes on as it is: %s", why)
                continue
            if not self.config.plain_clients:
                await self._leave(link, registry, name)
            assert isinstance(self._listener, Listener)  # of the real outside
            handover = await hand_over(
                self.gateway, self._listener, self.state, link, self._restarts + 1
            )
            log.info("restarts with %d connections", len(handover.standing))
            become(handover)

    async def _leave(self, link: CoreLink, registry: Registry, name: str) -> None:
        if count := await others(registry, name):
            await self._out_of_discovery(name)
            rate = self.config.region.spec.limits.connects_per_s * count / 2
            await leave(self.state, rate, link.policy_epoch)

    async def _leave_when_told(self, link: CoreLink, registry: Registry, name: str) -> None:
        await self._goes.wait()
        if self.gateway is not None:
            await self._out_of_discovery(name)
            await self._leave(link, registry, name)
        self.stop()

    async def _out_of_discovery(self, name: str) -> None:
        """Before clients are sent away: who comes after that would have to go at once, and a
        neighbour that restarts next would send its clients to a gateway that is only starting."""
        self._leaving = True
        await within(OUT_S, lambda: name not in self._found)
        await asyncio.sleep(POLL_S)  # until ipconfs have seen it

    async def _look_at_core(self, link: CoreLink) -> None:
        """Clients must not be held by an IDC that can do nothing for them."""
        hold_s = self.config.region.spec.safety.hold_ms / 1000
        while True:
            await asyncio.sleep(LOOK_S)
            alone_s = self.clock.now() - link.lost_at
            if not link.linked.is_set() and alone_s >= hold_s:
                count = self.state.close_all("drained")  # on which an SDK asks ipconf
                if count:
                    log.warning("the core is away for %.1f s: %d clients go", alone_s, count)

    async def _farewell(self) -> None:
        with contextlib.suppress(ImError):
            await self.state.write_checkpoint()

    async def _link_better(self, link: CoreLink, way: ByRoute) -> None:
        while True:
            await way.better(lambda: not self.state.standing())
            log.info("a route instance is there: the link to the core is made anew, by it")
            link.again()

    # ------------------------------------------------------------------------ to and from core

    def _told(self, tell: front.Tell) -> None:
        self.hlc.measured(self.clock.wall_ms(), tell.clock_offset_ms)
        origin = Origin(tell.origin.idc, tell.origin.incarnation)
        if self._origin is None:
            self._origin = origin
        elif origin != self._origin and not self._stopping.is_set():
            # Positions that sessions hold are of the former one.
            log.warning("the IDC goes on as %s: begin again", origin)
            self.again = True
            self.stop()

    def _load(self) -> front.Load:
        return self._report.make(self.gateway)

    def _described(self) -> dict[str, dict[str, Any]]:
        gateway = self.gateway
        if gateway is None or self._leaving:
            return {}
        return {gateway.name: describe(self.config.idc, gateway, self.port)}

    def _kept(self, names: Collection[str]) -> None:
        self._found = frozenset(names)

    def _shard_of(self, text: bytes, uid: str) -> str:
        return ticket.shard_of(self.config.keys, text, uid, self.config.region)
