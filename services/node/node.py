"""One IDC: starts the roles in order, runs them, stops them in the reverse order.

Order: disk and registry (others need it for their majority), then the gRPC server with everything
that peers may ask of an IDC that is not serving yet, then identity, logs, im, state, and last
what brings clients: gateways, ipconf, controller.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.sdk.trace.export import SpanExporter

from imcore.certificates import CertificateFiles
from imcore.convert import origin_of
from imcore.errors import ImError, StaleWriter, StoreReplaced
from imcore.hlc import Hlc
from imcore.proto import client_pb2 as pb
from imcore.proto import front_pb2_grpc as front_rpc
from imcore.proto import ipconf_pb2_grpc as ipconf_rpc
from imcore.proto import oplog_pb2 as oplog
from imcore.proto import peer_pb2_grpc as rpc
from imcore.region.rules import voters_of
from imcore.tls import gateway_ssl_context
from imcore.words import Origin, Vector
from services.adminapi.server import AdminApi
from services.control.anchoring import Anchoring
from services.control.caspaxos import Proposer
from services.core_lock import hold_folder
from services.engines.registry_grpc import RegistryServicer, RemoteRegistry
from services.gateway.server import Gateway
from services.im import keys
from services.im.partition import Partition
from services.im.server import ImServer
from services.im.sync import token_of
from services.media.server import MediaApi
from services.media.store import MediaStore
from services.mirror.progress import Progress
from services.mirror.serve import LogsService
from services.node.admin import AdminService
from services.node.archives import ArchivesService
from services.node.authorize import Authorizer
from services.node.bootstrap import Bootstrap, ranges_here
from services.node.clock import MedianClock
from services.node.config import NodeConfig
from services.node.cuts import CutChannel, Cuts, HeldCalls
from services.node.engines import (
    mirror_lag,
    open_blobs,
    open_kv,
    open_log_store,
    open_registry,
    stay_member,
)
from services.node.front import open_gateway
from services.node.identity import settle
from services.node.ipconfs import Ipconfs
from services.node.kv_moves import EnginesService
from services.node.media import MediaService, open_media
from services.node.metrics import Measured
from services.node.monitor import of_node
from services.node.outside import Machine, Outside
from services.node.peers import PeerService
from services.node.region_keys import FollowedKeys
from services.node.registers import act_before_serving, follow_registers, read_registers
from services.node.replication import Replication
from services.node.retention import Retention, Shelf
from services.node.risk import rules_of
from services.node.roles import Roles
from services.node.seals import Seals
from services.node.standby import CoreLease
from services.node.status import Status
from services.node.swaps import RegistryLimits
from services.node.tracing import provider_of, tracing_of
from services.node.traffic import Traffic
from services.node.users import UsersService
from services.node.waiting import when_it_answers
from services.node.webhooks import Webhooks
from services.ports import Blobs, Registry
from services.route.live import TURN_S, LiveRoutes
from services.route.logins import KEPT_MAX
from services.route.signals import SignalQueue
from services.route.table import RouteTable
from services.split.fronts import Fronts
from services.split.links import FrontLink
from services.state.server import StateServer

log = logging.getLogger("im.node")

TICK_S = 1.0
MIRROR_LAG_S = 2.0
STOP_S = 3.0


class Node:
    def __init__(
        self,
        config: NodeConfig,
        outside: Outside | None = None,
        exporters: Sequence[SpanExporter] = (),
    ) -> None:
        """``exporters``: where spans of followed messages go too. Raises BadInput."""
        self.config = config
        self.idc = config.idc.name
        self.outside = outside or Machine(config.pki, self.idc)
        self.clock, self.rng = self.outside.clock, self.outside.rng
        self.disk = self.outside.disk
        self.hlc = Hlc(steady_ms=lambda: int(self.clock.now() * 1000))
        self.median_clock = MedianClock(self.clock, self.hlc)
        # Where a link proxy stands between the IDCs, it is the one to cut them.
        cuts = config.faults and not config.links
        self.cuts = self._cuts() if cuts else None
        self.routes = RouteTable()
        self.seals = Seals()
        self.gateways: list[Gateway] | list[FrontLink] = []
        self.fronts: Fronts | None = None  # processes of their own; None: the roles run here
        self.partitions: list[Partition] = []
        self.alarms: list[str] = []
        self.attached = False  # its parts are there, though perhaps not started
        per_s = config.region.spec.tracing.per_s
        self.spans = provider_of(self.idc, exporters) if per_s else None
        self.tracing = tracing_of(self.spans, per_s, self.clock) if self.spans else None
        admin = config.idc.endpoints.admin
        self.measured = (
            # Roles of fronts too: what these count they tell.
            Measured(self.rng, (*Roles.ALL.value, *(["admin"] if admin else [])))
            if config.idc.endpoints.metrics
            else None
        )
        self.monitor = of_node(self)
        self.serving = False
        self.webhooks: Webhooks | None = None  # once it serves
        self.blobs: Blobs | None = None  # if the region has files
        self.media: tuple[MediaStore, MediaApi] | None = None  # likewise, if the region has files
        self.again = False  # the process is to start its roles again
        self._core = self._former_core = ""  # names of lives: this one's, and of who was here last
        self._awaited: dict[tuple[Origin, int], int] = {}  # how far the others held logs, if more
        self._known: dict[tuple[Origin, int], int] = {}  # and all that is known to be there
        self._asking = False  # whether to begin anew
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    # ---------------------------------------------------------------------------- life cycle

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        """Until ``stop``, or until a role fails for good; then raises what failed."""
        async with contextlib.AsyncExitStack() as stack:
            starting = asyncio.ensure_future(self._start(stack))
            stopping = asyncio.ensure_future(self._stopping.wait())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await stopping
            else:
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
            log.info("%s stops", self.idc)
            self.serving = False
            await self._stop_tasks()
        if self._failure is not None:
            raise self._failure

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """A role's task: when it ends with an error the whole process ends, and says why."""

        async def guarded() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                self._ended(name, error)

        task = asyncio.ensure_future(guarded())
        task.set_name(name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _ended(self, name: str, error: BaseException) -> None:
        taken_over = isinstance(error, StaleWriter) and self.config.standby
        if taken_over or isinstance(error, StoreReplaced):
            log.critical("%s: %s", name, error)
            self.begin_again()
            return
        log.critical("%s failed: %s", name, error, exc_info=error)
        self._failure = error
        self.stop()

    async def _stop_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*self._tasks, return_exceptions=True), STOP_S)

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        self.config.data.mkdir(parents=True, exist_ok=True)
        if self.config.standby:
            self._core = self.outside.secret(8).hex()
            held = await hold_folder(self.config.data, self.disk, self.outside.pid, self._core)
            stack.callback(held.lock.close)
            self._former_core = held.former
        if self.spans is not None:
            stack.push_async_callback(asyncio.to_thread, self.spans.shutdown)
        if self.config.idc.endpoints.metrics:
            host, port = self.config.listener(self.config.idc.endpoints.metrics)
            await self.monitor.start(host, port, stack)
        await self._start_stores(stack)
        await self._start_server(stack)
        self._spawn("registry membership", stay_member(self.proposer, self.own_registry))
        self._spawn("registers", follow_registers(self))
        self._spawn("audit", self.anchoring.run())
        self._spawn("region keys", self.followed_keys.run())
        await self._start_im(await self._settle())
        await act_before_serving(self)
        # Without one every IDC would count as active here, also one that is out.
        await self.traffic.holder.known()
        await self._start_clients(stack)
        self.serving = True
        log.info("%s serves as %s (pid %d)", self.idc, self.origin, self.outside.pid)

    def _cuts(self) -> Cuts:
        witness = self.config.region.spec.witness
        name = witness.name if witness is not None else ""
        return Cuts(self.idc, self.config.peers(), self.clock, self.rng, name)

    # --------------------------------------------------------------------------------- stores

    async def _start_stores(self, stack: contextlib.AsyncExitStack) -> None:
        data, spec = self.config.data, self.config.region.spec
        registry = await open_registry(self.config, self.disk, self.clock, self.rng, stack)
        if self.config.standby and self.config.idc.engines.registry.etcd is not None:
            await self._take_lease(registry, stack)
        if spec.media is not None:
            self.blobs = await open_blobs(
                self.config, self.disk, self.clock, self.outside.executor, stack
            )
        self.store = await open_log_store(
            self.config, self.disk, self.rng, self.outside.executor, stack
        )
        self.kv_engines = await open_kv(self.config, self.disk, stack)
        self.kv = self.kv_engines.kv
        self.channels: dict[str, grpc.aio.Channel] = {}
        self.registries: dict[str, Registry] = {self.idc: registry}
        for name in self.config.peers():
            channel = self.outside.channel(name, self.config.address(name))
            if self.cuts is not None:
                channel = CutChannel(channel, name, self.cuts)
            stack.push_async_callback(channel.close, 0.5)
            self.channels[name] = channel
            self.registries[name] = RemoteRegistry(channel, name)
        self.own_registry = registry
        self.proposer = Proposer(self.registries, self.idc, self.clock, self.rng)
        stack.push_async_callback(self.proposer.close)
        writer = self.config.audit_writer
        self.anchoring = Anchoring(self.config.audit_file, writer, self.proposer)
        self.progress = Progress(self._peer_holds, spec.partitions)
        self.replication = Replication(
            self.idc,
            [idc.name for idc in spec.idcs],
            spec.partitions,
            self.store,
            self.channels,
            self.progress,
            self.seals,
            self.clock,
            self.tracing,
        )
        self.mirror_lag = mirror_lag(self.config, self.clock, stack)
        self.risk = rules_of(spec.limits.risk_rules, self.clock)
        self.state = self._sessions(data / "sessions.json")
        self.traffic = Traffic(self)
        self.followed_keys = FollowedKeys(self.config.pki, self.config.keys)
        self.certificate = CertificateFiles(self.config.pki, self.idc)
        self.ipconfs = Ipconfs(
            self.idc, self.traffic.reports, self.clock, lambda: self.hlc.median_offset_ms,
            self.measured.verbs["ipconf"] if self.measured is not None else None,
        )  # fmt: skip
        self.status = Status(self)
        self._prepare_retention()
        self._measure()
        self.attached = True
        await self.traffic.prepare(stack)

    async def _take_lease(self, registry: Registry, stack: contextlib.AsyncExitStack) -> None:
        lease = CoreLease(registry, self._core, self._former_core)
        await lease.take()
        stack.push_async_callback(lease.give_up)
        self._spawn("lease of the core", lease.keep(self.begin_again))

    def _measure(self) -> None:
        if self.measured is not None:
            self.kv.read = self.measured.hot.read
        if self.fronts is not None and self.measured is not None:
            self.fronts.verbs = self.measured.verbs
        if isinstance(self.state, StateServer):  # a front measures and follows its own
            if self.measured is not None:
                self.state.measure(self.measured.verbs["state"])
            if self.tracing is not None:
                self.state.follow(self.tracing)

    def _prepare_retention(self) -> None:
        idcs = [idc.name for idc in self.config.region.spec.idcs]
        self.retention = Retention(
            self.idc, idcs, self.config.region.spec.partitions, self.config.region.spec.retention,
            Shelf(self.config.data / "snapshots", self.disk, self.clock), self.store,
            self.kv, self.channels, self.seals, partial(read_registers, self),
            self.traffic.retired,
            self.replication.applied, self.clock,
        )  # fmt: skip
        self.bootstrap = Bootstrap(self)
        for follower in self.replication.followers.values():
            follower.missed = self._missed

    def _sessions(self, checkpoint: Path) -> StateServer | Fronts:
        spec = self.config.region.spec
        if self.config.roles is Roles.ALL:
            return StateServer(
                self.config.keys,
                self.median_clock,
                spec.client,
                self.stamp,
                lambda: self.traffic.epoch(),
                lambda ticket, uid: self.traffic.shard_of(ticket, uid),
                checkpoint,
                spec.limits,
                self.risk,
                self.outside.secret,
                self.outside.look_s,
            )
        self.fronts = Fronts(
            self.idc,
            self.stamp,
            lambda: self.traffic.epoch(),
            lambda: self.hlc.median_offset_ms,
            self._since,
            self.clock,
            spec.limits,
        )
        self.gateways = self.fronts.gateways
        return self.fronts

    def _since(self) -> bytes | None:
        if any(partition.conversations.withheld for partition in self.partitions):
            return None  # what is folded is told later
        return token_of(self.im)

    def begin_again(self) -> None:
        """Stop, and start the roles again in this process."""
        if not self._stopping.is_set():
            self.again = True
            self.stop()

    def _missed(self, sentence: str) -> None:
        """Said again and again, as long as it is so."""
        if self._asking:
            return
        self._asking = True
        log.warning(sentence)
        self._spawn("a new beginning", self._ask_again(sentence))

    async def _ask_again(self, sentence: str) -> None:
        try:
            await self.bootstrap.ask_again(sentence)
        finally:
            self._asking = False

    def stamp(self) -> pb.Stamp:
        return self.im.stamp()

    def _peer_holds(self, idc: str, origin: Origin, partition: int, lsn: int) -> None:
        if self.partitions and origin == self.origin and idc != self.idc:
            self.im.peer_holds(idc, partition, lsn)

    # --------------------------------------------------------------------------------- server

    async def _start_server(self, stack: contextlib.AsyncExitStack) -> None:
        partitions = self.config.region.spec.partitions
        limits = RegistryLimits(self.idc, self.own_registry).limits
        authorizer = Authorizer(voters_of(self.config.region), limits)
        host, port = self.config.listener(self.config.idc.endpoints.peer)
        held = [HeldCalls(self.cuts)] if self.cuts is not None else []
        server = self.outside.server([authorizer, *held], f"{host}:{port}")
        self.logs_service = LogsService(
            self.idc, self.store, partitions, self.progress, self.replication.applied, self.clock
        )
        self.logs_service.seal_of = self.seals.of
        self.peer_service = PeerService(
            self.idc,
            self.clock,
            self.traffic.fill_probe,
            self._behind,
            self._deliver,
            self._typed,
            self.status.for_peers,
        )
        self.admin = AdminService(
            self.status.as_dict, self.stop, partitions, self.clock, self.disk.faults,
            self.config.faults, self.cuts,
        )  # fmt: skip
        rpc.add_RegistryServicer_to_server(RegistryServicer(self.own_registry), server)
        rpc.add_LogsServicer_to_server(self.logs_service, server)
        rpc.add_PeerServicer_to_server(self.peer_service, server)
        rpc.add_AdminServicer_to_server(self.admin, server)
        ipconf_rpc.add_IpconfServicer_to_server(self.ipconfs, server)
        if self.fronts is not None:
            front_rpc.add_FrontServicer_to_server(self.fronts, server)
        self.media_service = MediaService()
        rpc.add_MediaServicer_to_server(self.media_service, server)
        self.users = UsersService()
        rpc.add_UsersServicer_to_server(self.users, server)
        self.archives = ArchivesService(
            self.traffic.current_origins, self.traffic.retired, self._seals_of
        )
        rpc.add_ArchivesServicer_to_server(self.archives, server)
        self.engines_service = EnginesService()
        rpc.add_EnginesServicer_to_server(self.engines_service, server)
        await server.start()
        stack.push_async_callback(partial(server.stop, 0.5))

    def _behind(self, conversation: str, heads: Vector) -> bool:
        if not self.partitions:
            return False
        known = self.im.partition(conversation).conversations.get(conversation)
        return known is None or any(known.heads.get(o, 0) < seq for o, seq in heads.items())

    def _deliver(self, uids: list[str], conversation: str, heads: Vector) -> None:
        known = self.im.partition(conversation).conversations.get(conversation)
        if not uids and known is None:
            self._spawn("a signal", self._deliver_to_members(conversation, heads))
            return
        members = known.members() if known is not None else ()
        self.state.signal(uids or members, conversation, heads)

    async def _deliver_to_members(self, conversation: str, heads: Vector) -> None:
        """Of a conversation that is not in memory."""
        with contextlib.suppress(ImError):  # nobody is told: it costs time, and no message
            known = await self.im.partition(conversation).conversations.load(conversation)
            self.state.signal(known.members(), conversation, heads)

    def _typed(self, uids: Sequence[str], typing: pb.Typing) -> None:
        if self.partitions:
            self.live.typed_elsewhere(uids, typing)

    # -------------------------------------------------------------------------------- identity

    async def _settle(self) -> Origin:
        """Under which origin this IDC goes on; from then on its logs and its KV join."""
        await self.retention.shelf.load()
        mended = await self.bootstrap.mend()
        if not mended:
            await self.store.renew()
        settled = await settle(
            self.idc,
            self.config.region.spec.partitions,
            self.store,
            self.proposer,
            {name: self.channels[name] for name in self.config.peer_idcs()},
            self.traffic.retired,
            self.clock,
        )
        self.register = settled.register
        self.alarms += settled.alarms
        self.seals.learn(self.idc, settled.register)
        if settled.cut_off or not mended:
            await self.bootstrap.from_peers()
        self._awaited = settled.awaited
        held = {key: found.end for key, found in ranges_here(self.store).items()}
        self._known = held | self._awaited
        return settled.own.origin

    def _look_whether_whole(self) -> None:
        """Ends that this IDC tells others count for a seal once it holds what it held before, and
        what it does not know is not there once it has folded that."""
        if self.logs_service.starting:
            here = ranges_here(self.store)
            self.logs_service.starting = any(
                key not in here or here[key].end < min(end, self._seal(*key))
                for key, end in self._awaited.items()
            )
        if not self.im.whole and not self.logs_service.starting:
            self.im.whole = all(
                self.partitions[number].applier.lsn(origin) >= min(end, self._seal(origin, number))
                for (origin, number), end in self._known.items()
            )

    def _seals_of(self, partition: int) -> dict[Origin, int]:
        return {origin: self._seal(origin, partition) for origin in self.seals.known()}

    def _seal(self, origin: Origin, partition: int) -> int:
        seal = self.seals.of(origin, partition)
        return 1 << 63 if seal is None else seal

    # ------------------------------------------------------------------------------------- im

    async def _start_im(self, origin: Origin) -> None:
        spec = self.config.region.spec
        self.origin = origin
        own_log = self.store.own()
        assert own_log is not None
        self.partitions = [
            Partition(
                number, origin, own_log, self.kv, self.store, self.hlc, self.clock,
                spec.messages.replicas, len(spec.idcs) - 1, self._told,
                spec.messages.push_group_members_max,
            )
            for number in range(spec.partitions)
        ]  # fmt: skip
        self.signals = {
            name: SignalQueue(name, partial(self.channels.__getitem__, name), self.clock)
            for name in self.config.peer_idcs()
        }
        self.im = ImServer(
            origin, self.partitions, self.kv, self.config.keys, self.hlc, self.clock,
            spec.messages, self.bootstrap.timeline_life(), self.state, self._route_folded,
            self._signal, self.traffic.voting_origins, self.traffic.suspended_origins,
            self.seals.of, self.progress.held, len(spec.idcs) - 1,
            spec.limits, self.risk,
        )  # fmt: skip
        self.im.live = self.live = LiveRoutes(
            self.idc, self.routes, self.traffic.usable, self.traffic.usable_gateways, self.state,
            self.signals, self.clock, spec.devices,
        )  # fmt: skip
        self.im.kicked = self.live.kick_folded
        self.im.whole = False  # until the first look
        self.live.unrouted = self.im.unrouted.of
        self.im.level_written = lambda: self.traffic.levels.committed
        if self.measured is not None:
            self.im.verbs, self.im.hot = self.measured.verbs["im"], self.measured.hot
            for queue in self.signals.values():
                queue.verbs = self.measured.verbs["route"]
        self.im.tracing = self.tracing
        for partition in self.partitions:
            partition.applier.tracing = self.tracing
        self.state.im, self.state.origin = self.im, origin
        if isinstance(self.state, StateServer):
            self.state.load_checkpoint()
        self.replication.appliers = [p.applier for p in self.partitions]
        refresh = self.replication.watch_copies()
        await self._load_routes()
        await self._load_kicks()
        sequencer_id = self.outside.secret(8)
        for partition in self.partitions:
            partition.applier.base = self.retention
            partition.seal_of = self.seals.of
            # Before the logs are folded, so that nothing need be folded out again.
            await partition.applier.seal(self._seals_of(partition.number))
            await partition.open(sequencer_id)
            self._spawn(f"applier {partition.number}", partition.applier.run())
        self.admin.kv, self.users.kick = self.kv, self.im.kick
        self.archives.kv, self.archives.partitions = self.kv, self.partitions
        self.engines_service.kv = self.kv_engines
        self.logs_service.origin = self.peer_service.origin = origin
        self.logs_service.offer = self.retention.offer
        for idc, follower in self.replication.followers.items():
            self._spawn(f"mirror of {idc}", follower.run())
        if self.mirror_lag is not None:
            self._spawn("mirror lag", self.mirror_lag.run(MIRROR_LAG_S))
        for queue in self.signals.values():
            self._spawn(f"signals to {queue.idc}", queue.run())
        self._spawn("ticks", self._tick(refresh))
        self._spawn("presence", self._look_who_is_there())
        self._spawn("retention", self.retention.run())
        self._spawn("state", self.state.run())

    async def _load_routes(self) -> None:
        """Routes of all IDCs as of the last fold; the logs bring the rest."""
        async for value in self._rows(b"w"):
            row = oplog.RouteRow.FromString(value)
            self.routes.apply(origin_of(row.origin), row.hlc, row.route)

    async def _load_kicks(self) -> None:
        """Whom they meant may have been where nobody could be told. Those of all time may be many:
        the newest are known again."""
        newest: list[tuple[int, bytes]] = []
        async for value in self._rows(b"x"):
            heapq.heappush(newest, (oplog.Op.FromString(value).hlc, value))
            if len(newest) > KEPT_MAX:
                heapq.heappop(newest)
        self.live.kicks_known(oplog.Op.FromString(value) for _, value in newest)

    async def _rows(self, table: bytes) -> AsyncIterator[bytes]:
        for number in range(self.config.region.spec.partitions):
            start = keys.table(number, table)
            end = keys.prefix_end(start)
            while True:
                rows = await when_it_answers(partial(self.kv.scan, start, end, 1000), "the KV")
                for _, value in rows:
                    yield value
                if len(rows) < 1000:
                    break
                start = rows[-1][0] + b"\0"

    async def _tick(self, refresh: Any) -> None:
        """Closed HLCs into the logs, new copies under the appliers' eyes, rates."""
        while True:
            refresh()
            self._look_whether_whole()
            self.im.tick()
            self.status.sample()
            if self.measured is not None:
                self.measured.hot.turn(self.clock.now())
            await asyncio.sleep(TICK_S)

    async def _look_who_is_there(self) -> None:
        while True:
            await asyncio.sleep(TURN_S)
            self.live.turn()

    def _told(self, number: int, origin: Origin, effects: Any) -> None:
        hlc = self.partitions[number].applier.newest[origin]
        self.replication.folded(origin, number, hlc, self.median_clock.wall_ms())
        self.im.told(number, origin, effects)

    def _route_folded(self, origin: Origin, op: oplog.Op) -> None:
        self.live.route_folded(origin, op)

    def _signal(self, conversation: str, uids: tuple[str, ...], origin: Origin, seq: int) -> None:
        if not self.signals:  # no other IDC
            return
        named = 0 < len(uids) <= self.config.region.spec.routing.broadcast_members
        found = self.routes.idcs_of(uids, self.traffic.usable) if named else self._everywhere()
        for idc, users in found.items():
            queue = self.signals.get(idc)
            if queue is not None:
                queue.add(conversation, users, origin, seq)

    def _everywhere(self) -> dict[str, list[str]]:
        """All members of a large group: each IDC knows who they are."""
        return {idc: [] for idc in self.signals}

    # -------------------------------------------------------------------------------- clients

    async def _start_clients(self, stack: contextlib.AsyncExitStack) -> None:
        gateways: list[Gateway] = []
        if isinstance(self.state, StateServer):
            for number in range(1, self.config.idc.gateways + 1):
                # New in each life: routes of an earlier one are not taken for live. Boots are
                # counted on the disk, so an IDC that is built again counts anew.
                life = f"{self.origin.incarnation}.{self.store.boot_count}"
                name = f"{self.idc}-gw{number}.{life}"
                gateway = await open_gateway(
                    self.config,
                    number,
                    name,
                    self.state,
                    self.clock,
                    self.outside.listen,
                    self.measured,
                )
                stack.push_async_callback(gateway.stop)
                gateways.append(gateway)
            self.gateways = gateways
            stack.push_async_callback(self._farewell, self.state)
        self.webhooks = Webhooks(self, stack)
        for feed in self.webhooks.all():
            self._spawn(f"webhook {feed.name}", feed.run())
        self.media = open_media(self)
        if self.media is not None:
            self.media_service.store = self.media[0]
            self._spawn("media", self.media[0].run())
            self._spawn("stickers", self.media[1].stickers.run())
        await self.traffic.start(stack)
        await self._start_admin_api(stack)
        if self.fronts is not None:
            self.fronts.open = True

    async def _start_admin_api(self, stack: contextlib.AsyncExitStack) -> None:
        endpoint = self.config.idc.endpoints.admin
        if endpoint is None:
            return
        api = AdminApi(
            self.im,
            self.im.kick,
            self.stamp,
            self.config.keys,
            self.median_clock,
            self.config.region.spec.limits.service_requests_per_s,
            self.measured.verbs["admin"] if self.measured else None,
            self.outside.listen,
        )
        host, port = self.config.listener(endpoint)
        await api.start(host, port, gateway_ssl_context(self.config.pki, self.idc))
        stack.push_async_callback(api.stop)

    def turned_away(self) -> int:
        """Connections that gateways did not take, for there were too many at once."""
        if self.fronts is not None:
            return self.fronts.limited.turned_away
        return sum(
            gateway.counters.refused for gateway in self.gateways if isinstance(gateway, Gateway)
        )

    async def _farewell(self, state: StateServer) -> None:
        with contextlib.suppress(ImError):
            await state.write_checkpoint()

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """For parts of the composition root (``traffic``)."""
        self._spawn(name, work)
