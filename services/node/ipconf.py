"""An ipconf of an IDC in a process of its own, as many of them as the region file says.

What it answers by it reads itself, from the registries of all IDCs, so it goes on without its core.
It reaches the others with the IDC's own certificate. Its core hears, while it is there, what
clients have reported and how many were answered.

Invariant: the policy is on its disk before a client sees it, so that a restart serves no lower
epoch (``services.policy.holder``). A blank disk waits for a majority of the registries.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from pathlib import Path
from typing import Any

import grpc

from imcore.hlc import Hlc
from imcore.proto import ipconf_pb2 as pb
from imcore.proto import ipconf_pb2_grpc as rpc
from imcore.region.rules import voters_of
from imcore.tls import gateway_ssl_context
from services.control.caspaxos import Proposer
from services.control.controller import POLICY_S
from services.control.reading import Reading
from services.engines.registry_grpc import RemoteRegistry
from services.ipconf.directory import PREFIX as GATEWAYS
from services.ipconf.directory import Directory
from services.ipconf.locate import open_locator
from services.ipconf.reports import Reports
from services.ipconf.server import IpconfServer
from services.metrics.verbs import Verb
from services.node.apart import until_stopped
from services.node.clock import MedianClock
from services.node.config import NodeConfig
from services.node.engines import open_registry
from services.node.ipconfs import HEARD_S
from services.node.metrics import Measured
from services.node.monitor import of_ipconf
from services.node.outside import Machine, Outside
from services.node.region_keys import FollowedKeys
from services.node.succession import replace, startable, within
from services.node.verb_counts import verb_count
from services.policy.holder import PolicyHolder
from services.policy.poll import Poller
from services.ports import Registry

log = logging.getLogger("im.ipconf")

START_S = 3.0  # for the policy and the first gateways, before clients are let in
TELL_S = 0.5
TELL_DEADLINE_S = 1.0


class IpconfNode:
    """Raises Damaged for a disk that holds something else than a policy."""

    def __init__(self, config: NodeConfig, outside: Outside | None = None) -> None:
        self.config = config
        self.again = False
        self.outside: Outside = outside or Machine(config.pki, config.idc.name)
        self.clock = self.outside.clock
        self.hlc = Hlc(steady_ms=lambda: int(self.clock.now() * 1000))
        self.holder = PolicyHolder(config.data / "policy.json", self.outside.disk)
        self.reports = Reports(idc.name for idc in config.region.spec.idcs)
        shown = bool(config.idc.endpoints.metrics)
        measured = Measured(self.outside.rng, config.roles.value) if shown else None
        self._verbs = measured.verbs["ipconf"] if measured is not None else None
        self._who = f"ipconf {config.instance} of {config.idc.name}"
        self._life = self.outside.secret(4).hex()
        self._heard_at = -math.inf  # when the core has heard this process last
        self._stopping = asyncio.Event()
        self._restart = asyncio.Event()
        self._directory: Directory | None = None  # of all gateways, once it is asked for
        self._reading: Reading

    def stop(self) -> None:
        self._stopping.set()

    def restart(self) -> None:
        """Become what is installed now, if that can start."""
        self._restart.set()

    def not_ready(self) -> list[str]:
        """Why a client would get no answer here."""
        if self.holder.policy is None:
            return ["no policy is known yet: no majority of the registries has told it"]
        if self._directory is None or not self._directory.live():
            return ["no gateway is alive in any IDC, as far as its registry answers"]
        return []

    async def run(self) -> None:
        """Until ``stop``, or until a part fails for good; then raises what failed."""
        config, name = self.config, self.config.idc.name
        config.data.mkdir(parents=True, exist_ok=True)
        async with contextlib.AsyncExitStack() as stack:
            if config.monitor_port:
                host, _ = config.listener(config.idc.endpoints.ipconf)
                await of_ipconf(self).start(host, config.monitor_port, stack)
            channels = {}
            for voter in voters_of(config.region):
                channel = self.outside.channel(voter, config.address(voter))
                stack.push_async_callback(channel.close, 0.5)
                channels[voter] = channel
            registries = await self._registries(channels, stack)
            proposer = Proposer(registries, name, self.clock, self.outside.rng)
            stack.push_async_callback(proposer.close)
            self._reading = Reading(self._who, proposer, self.holder, self.clock)
            idcs = [idc.name for idc in config.region.spec.idcs]
            poller = Poller({idc: registries[idc] for idc in idcs}, self.clock, GATEWAYS)
            poller.start()
            stack.push_async_callback(poller.stop)
            directory = Directory(idcs, poller)
            self._directory = directory
            await until_stopped(
                self._stopping,
                [
                    self._follow,
                    FollowedKeys(config.pki, config.keys).run,
                    lambda: self._serve(directory, stack),
                    lambda: self._tell(rpc.IpconfStub(channels[name])),
                ],
            )
            log.info("%s stops", self._who)

    async def _registries(
        self, channels: dict[str, grpc.aio.Channel], stack: contextlib.AsyncExitStack
    ) -> dict[str, Registry]:
        """Every voter's. That of the own IDC is asked itself where it is an etcd."""
        found: dict[str, Registry] = {
            voter: RemoteRegistry(channel, voter) for voter, channel in channels.items()
        }
        if self.config.idc.engines.registry.etcd is not None:
            found[self.config.idc.name] = await open_registry(
                self.config, self.outside.disk, self.clock, self.outside.rng, stack
            )
        return found

    async def _follow(self) -> None:
        while True:
            await self._reading.read()
            await asyncio.sleep(POLICY_S)

    async def _serve(self, directory: Directory, stack: contextlib.AsyncExitStack) -> None:
        config = self.config
        await within(START_S, lambda: not self.not_ready())
        server = IpconfServer(
            config.idc.name,
            config.region,
            config.keys,
            self.holder,
            directory,
            open_locator(config.region.spec.geo.database, Path.cwd()),
            self.reports,
            MedianClock(self.clock, self.hlc),
            self._in_minority,
            self._verbs,
            self.outside.listen,
            is_heard=lambda: self.clock.now() - self._heard_at <= HEARD_S,
        )
        host, port = config.listener(config.idc.endpoints.ipconf)
        tls = gateway_ssl_context(config.pki, config.idc.name)
        await server.start(host, port + config.instance - 1, tls)
        stack.push_async_callback(server.stop)
        log.info("%s serves (pid %d)", self._who, self.outside.pid)
        while True:
            await self._restart.wait()
            self._restart.clear()
            why = await startable()
            if not why:
                await server.stop()
                log.info("%s restarts", self._who)
                replace()
            log.error("no restart, it goes on as it is: %s", why)

    def _in_minority(self) -> bool:
        hold_s = self.config.region.spec.safety.hold_ms / 1000
        return self.clock.now() - self._reading.answered_at > hold_s

    # ------------------------------------------------------------------------------ its core

    async def _tell(self, core: Any) -> None:
        heard_until = self.clock.now()  # of the reports
        while True:
            now = self.clock.now()
            said, counted = self._said(heard_until)
            try:
                heard: pb.IpconfHeard = await core.Tell(said, timeout=TELL_DEADLINE_S)
            except grpc.RpcError:  # it is told again
                if self._verbs is not None:
                    for verb, counts in counted.items():
                        self._verbs.add(verb, counts.buckets, counts.seconds, counts.failures)
            else:
                heard_until, self._heard_at = now, self.clock.now()
                self.hlc.measured(self.clock.wall_ms(), heard.clock_offset_ms)
            await asyncio.sleep(TELL_S)

    def _said(self, since: float) -> tuple[pb.IpconfSaid, dict[str, Verb]]:
        """And what was counted in it."""
        policy = self.holder.policy
        said = pb.IpconfSaid(
            instance=self.config.instance,
            pid=self.outside.pid,
            life=self._life,
            ready=not self.not_ready(),
            policy_epoch=policy.epoch if policy is not None else 0,
            stale=self.holder.stale,
        )
        for idc, uids in self.reports.since(since).items():
            said.accused.add(idc=idc, uids=uids)
        counted = self._verbs.taken() if self._verbs is not None else {}
        said.verbs.extend(verb_count("ipconf", name, verb) for name, verb in counted.items())
        return said, counted
