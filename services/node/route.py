"""A route instance of an IDC in a process of its own, as many of them as are started.

It reaches the core at the IDC's peer address, with the IDC's own certificate, and says in the
registry of the core where fronts find it, for as long as it has a link to the core. It keeps
nothing on its disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection
from typing import Any

from imcore.proto import front_pb2_grpc as rpc
from imcore.region.rules import voters_of
from services.engines.registry_grpc import RemoteRegistry
from services.node.apart import until_stopped
from services.node.authorize import Authorizer
from services.node.config import NodeConfig
from services.node.leases import keep_leases
from services.node.monitor import of_route
from services.node.outside import Machine, Outside
from services.node.succession import within
from services.policy.poll import POLL_S
from services.split.route import Route
from services.split.ways import PREFIX, described

log = logging.getLogger("im.route")

OUT_S = 1.0  # for a registry that answers to take it out of discovery
GRACE_S = 0.5


class RouteNode:
    again = False  # it has no reason to start anew by itself

    def __init__(self, config: NodeConfig, outside: Outside | None = None) -> None:
        self.config = config
        self.outside: Outside = outside or Machine(config.pki, config.idc.name)
        name, core = config.idc.name, config.address(config.idc.name)
        self._channel = self.outside.channel(name, core)
        # New in each life: a gateway never takes an earlier one for this.
        life = f"{name}-route{config.instance}.{self.outside.secret(4).hex()}"
        self.route = Route(name, life, rpc.FrontStub(self._channel))
        self._found: Collection[str] = ()
        self._leaving = False
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self._stopping.set()

    def not_ready(self) -> list[str]:
        """Why no gateway should link to it."""
        if not self.route.linked.is_set():
            return ["it has no link to its core"]
        if self.route.name not in self._found:
            return ["it is not in discovery: the registry of its core has no lease of it"]
        return []

    async def run(self) -> None:
        """Until ``stop``, or until a part fails for good; then raises what failed."""
        config, name = self.config, self.config.idc.name
        host, _ = config.listener(config.idc.endpoints.peer)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._channel.close, 0.5)
            if config.monitor_port:
                await of_route(self).start(host, config.monitor_port, stack)
            guard = Authorizer(voters_of(config.region))
            server = self.outside.server([guard], f"{host}:{config.route_port}")
            rpc.add_FrontServicer_to_server(self.route, server)
            await server.start()
            stack.push_async_callback(server.stop, GRACE_S)
            registry = RemoteRegistry(self._channel, name)
            log.info("%s listens (pid %d)", self.route.name, self.outside.pid)
            await until_stopped(
                asyncio.Event(),
                [
                    self.route.run,
                    lambda: keep_leases(registry, self._described, self._kept, PREFIX),
                    self._leave_when_told,
                ],
            )
            log.info("%s stops", self.route.name)

    async def _leave_when_told(self) -> None:
        """Out of discovery first: no gateway that links anew comes back to it."""
        await self._stopping.wait()
        self._leaving = True
        await within(OUT_S, lambda: self.route.name not in self._found)
        await asyncio.sleep(POLL_S)

    def _described(self) -> dict[str, dict[str, Any]]:
        if self._leaving or not self.route.linked.is_set():
            return {}
        return {self.route.name: described(self.route.name, self.config.advertised)}

    def _kept(self, names: Collection[str]) -> None:
        self._found = frozenset(names)
