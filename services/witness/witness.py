"""Composition of the witness: registry store, gRPC server, controller."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from imcore import auditfile
from imcore.certificates import CertificateFiles
from imcore.errors import BadInput, ImError
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.region.model import Region
from imcore.region.rules import split, voters_of
from services.control.anchoring import Anchoring
from services.control.caspaxos import Proposer
from services.control.controller import Controller
from services.control.peer_calls import PeerCalls
from services.control.voting import PREFIX as VOTES
from services.engines.registry_grpc import RegistryServicer, RemoteRegistry
from services.engines.registry_store import RegistryStore
from services.ipconf.directory import PREFIX as GATEWAYS
from services.ipconf.directory import Directory
from services.node.authorize import Authorizer
from services.node.identity import register_key
from services.node.monitor import Monitor
from services.node.outside import Outside
from services.node.swaps import RegistryLimits
from services.policy.holder import PolicyHolder
from services.policy.poll import Poller
from services.ports import Registry
from services.witness.metrics import registry_of

log = logging.getLogger("im.witness")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
STOP_S = 0.5
REGISTERS_EACH_S = 1.0
_NO_TRAFFIC = "a witness carries no messages"


class _Peers(rpc.PeerServicer):
    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    async def Probe(self, request: peer.ProbeRequest, context: Context) -> peer.ProbeReply:
        policy = self._witness.holder.policy
        return peer.ProbeReply(
            idc=self._witness.name,
            wall_ms=self._witness.clock.wall_ms(),
            serving=True,
            policy_epoch=policy.epoch if policy else 0,
        )

    async def Facts(self, request: peer.StatusRequest, context: Context) -> peer.StatusReply:
        return peer.StatusReply(idc=self._witness.name, json=json.dumps(self._witness.status()))

    async def Signals(
        self, request_iterator: AsyncIterator[peer.SignalBatch], context: Context
    ) -> peer.SignalsDone:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, _NO_TRAFFIC)
        raise AssertionError("abort returns never")


class _Admin(rpc.AdminServicer):
    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    async def Status(self, request: peer.StatusRequest, context: Context) -> peer.StatusReply:
        status = self._witness.status()
        return peer.StatusReply(idc=self._witness.name, json=json.dumps(status))

    async def Shutdown(self, request: peer.ShutdownRequest, context: Context) -> peer.ShutdownReply:
        self._witness.stop()
        return peer.ShutdownReply()

    async def StateHash(
        self, request: peer.StateHashRequest, context: Context
    ) -> peer.StateHashReply:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, _NO_TRAFFIC)
        raise AssertionError("abort returns never")

    async def Fault(self, request: peer.FaultRequest, context: Context) -> peer.FaultReply:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "a witness takes no faults")
        raise AssertionError("abort returns never")


class Witness:
    """``links``: at which address to dial each IDC, where that is not its own endpoint. ``audit``:
    the file of its audit chain; None: beside its data. ``listen``: the host to listen at; "": that
    of its endpoint. ``pki``: where its certificate lies, for the listener of its metrics; None: it
    has none. Raises BadInput for a region without a witness."""

    def __init__(
        self,
        region: Region,
        data: Path,
        links: Mapping[str, str],
        outside: Outside,
        audit: Path | None = None,
        listen: str = "",
        pki: Path | None = None,
    ) -> None:
        if region.spec.witness is None:
            raise BadInput("the region file has no spec.witness; nothing to run")
        self.name = region.spec.witness.name
        self.clock = outside.clock
        self._outside = outside
        self._disk = outside.disk
        self.holder = PolicyHolder(data / "policy.json", self._disk)
        host, _, port = region.spec.witness.peer.rpartition(":")
        self._address = f"{listen or host}:{port}"
        self._region = region
        self._data = data
        self._links = links
        self._rng = outside.rng
        self._stopped = asyncio.Event()
        self._started = self.clock.now()
        self.audit_file = audit or data / auditfile.FILE
        self._anchoring: Anchoring | None = None
        self._controller: Controller | None = None
        self.store: RegistryStore | None = None  # once it is open
        self._pki = pki
        self._metrics_at = region.spec.witness.metrics
        self._listen = listen

    def not_ready(self) -> list[str]:
        """It answers and votes from the moment that it knows a policy."""
        return [] if self.holder.policy else ["it knows no policy yet: it starts, or is alone"]

    def stop(self) -> None:
        self._stopped.set()

    async def run(self) -> None:
        """Until ``stop``. Raises OSError when the address is taken, Unavailable when another
        process holds the data folder."""
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            log.info("%s votes at %s (pid %d)", self.name, self._address, self._outside.pid)
            await self._stopped.wait()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        self._data.mkdir(parents=True, exist_ok=True)
        if self._metrics_at is not None and self._pki is not None:
            registry = registry_of(self, CertificateFiles(self._pki, self.name))
            host, port = split(self._metrics_at)
            monitor = Monitor(self.name, self._pki, registry, self.not_ready)
            await monitor.start(self._listen or host, port, stack)
        self.store = store = await RegistryStore.open(
            str(self._data / "registry"), self._disk, self.clock, self._rng
        )
        stack.push_async_callback(store.close)
        registries: dict[str, Registry] = {}
        stubs: dict[str, rpc.PeerAsyncStub] = {}
        for idc in self._region.spec.idcs:
            target = self._links.get(idc.name, idc.endpoints.peer)
            channel = self._outside.channel(idc.name, target)
            stack.push_async_callback(channel.close, STOP_S)
            registries[idc.name] = RemoteRegistry(channel, idc.name)
            stubs[idc.name] = rpc.PeerStub(channel)
        registries[self.name] = store
        await self._serve(store, stack)
        proposer = Proposer(registries, self.name, self.clock, self._rng)
        stack.push_async_callback(proposer.close)
        poller = Poller(registries, self.clock, GATEWAYS, VOTES)
        poller.start()
        stack.push_async_callback(poller.stop)
        peers = PeerCalls(self.name, stubs, self.clock)
        self._controller = Controller(
            self.name,
            self._region,
            registries,
            poller,
            proposer,
            self.holder,
            Directory([idc.name for idc in self._region.spec.idcs], poller),
            peers.probe,
            peers.facts,
            self.clock,
            self._rng,
        )
        self._controller.start()
        stack.push_async_callback(self._controller.stop)
        self._anchoring = Anchoring(self.audit_file, self.name, proposer)
        anchoring = asyncio.create_task(self._anchoring.run())
        stack.callback(anchoring.cancel)
        joining = asyncio.create_task(proposer.ensure_member())
        stack.callback(joining.cancel)
        settling = asyncio.create_task(self._settle_registers(proposer))
        stack.callback(settling.cancel)

    async def _settle_registers(self, proposer: Proposer) -> None:
        """As IDCs do by following them. What an IDC left half done is settled by those that hold
        the registries, each in its own: no other IDC may write it there."""
        while True:
            for idc in self._region.spec.idcs:
                with contextlib.suppress(ImError):
                    await proposer.read(register_key(idc.name))
            await asyncio.sleep(REGISTERS_EACH_S)

    async def _serve(self, store: RegistryStore, stack: contextlib.AsyncExitStack) -> None:
        limits = RegistryLimits(self.name, store).limits
        authorizer = Authorizer(voters_of(self._region), limits)
        server = self._outside.server([authorizer], self._address)
        rpc.add_RegistryServicer_to_server(RegistryServicer(store), server)
        rpc.add_PeerServicer_to_server(_Peers(self), server)
        rpc.add_AdminServicer_to_server(_Admin(self), server)
        await server.start()
        stack.push_async_callback(server.stop, STOP_S)

    def status(self) -> dict[str, Any]:
        """The part of the status JSON that a witness has."""
        controller, policy = self._controller, self.holder.policy
        return {
            "idc": self.name,
            "pid": self._outside.pid,
            "uptime_s": round(self.clock.now() - self._started, 1),
            "serving": True,
            "policy": {
                "epoch": policy.epoch if policy else 0,
                "stale": self.holder.stale,
                "idcs": {
                    name: {"state": known.state, "ramp": known.ramp}
                    for name, known in (policy.idcs.items() if policy else ())
                },
            },
            "alarms": self._alarms(),
            "registries": controller.registries() if controller else {},
        }

    def _alarms(self) -> list[str]:
        found = self._controller.alarms() if self._controller else []
        said = self._anchoring.alarm if self._anchoring else None
        return [*found, said] if said else found
