"""A simulated deployment: machines that run real nodes, the network between them, SDK clients."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import aiohttp
import grpc

from imcore import pki
from imcore.errors import ImError
from imcore.listener import Listen
from imcore.pki import load_region_keys
from imcore.region.rules import ipconf_addresses
from imcore.runtime import SystemClock
from imcore.tokens import Claims, mint
from services.engines.disk import Disk
from services.engines.lmdb_kv import LmdbKv
from services.engines.registry_store import RegistryStore
from services.loadgen.ports import Acked, Listener, Standing, Stood
from services.loadgen.sdk import SdkSession
from services.node.config import NodeConfig
from services.node.front import FrontNode
from services.node.ipconf import IpconfNode
from services.node.node import Node
from services.node.outside import Outside
from services.node.posting import Poster
from services.node.roles import Roles
from services.node.route import RouteNode
from services.sdk import (
    Client,
    ConnectionChanged,
    Event,
    IpconfClient,
    NotConnected,
    Options,
)
from services.sdk.store import SqliteStore
from services.sdk.transport import PlaintextDialer
from services.sim.disk import SimDisk
from services.sim.loop import OWNER, Owner, SimLoop
from services.sim.net import Link, Net, SimListening
from services.sim.region import ACCESS_MS, DELAY_MS, Layout, layout_of, region
from services.sim.rpc import SimChannel, SimServer
from services.witness.witness import Witness

EPOCH_MS = 1_800_000_000_000
DURABLE = 0.3  # of the devices: so many keep their outbox in a file
RESTART_S = 1.0  # until a process that ended by itself is started again
ROUTES_ABOVE = 50  # the port of the peer endpoint
OPTIONS = Options(client="sim/1", transfer_timeout_ms=20_000)  # of a client
LOOK_S = 0.2  # nothing computes for long here, so the loop is late only once a pause ends

_DEFINED = re.compile("defined at [^ >]*/")

log = logging.getLogger("im.sim")


class Trace(logging.Handler):
    """What happened, line by line: the same lines for the same seed, whatever the process."""

    def __init__(self, loop: SimLoop, scratch: Path) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []
        self._loop = loop
        self._scratch = str(scratch)

    def emit(self, record: logging.LogRecord) -> None:
        owner = OWNER.get()
        said = record.getMessage().replace(self._scratch, "")
        if record.exc_info and record.exc_info[1] is not None:
            said += f": {record.exc_info[1]!r}"
        said = _DEFINED.sub("defined at ", said)  # asyncio, of tasks: where this checkout lies
        self.add(f"{owner.name if owner else '-'} {record.levelname} {record.name} {said}")

    def add(self, line: str) -> None:
        self.lines.append(f"{self._loop.time():.6f} {line}")

    def digest(self) -> str:
        return blake2b("\n".join(self.lines).encode(), digest_size=16).hexdigest()


class SimClock(SystemClock):
    """One machine's: its wall clock may be wrong, for good (``skew_ms``) and for a while
    (``offset_ms``), its steady one is the loop's."""

    def __init__(self, loop: SimLoop) -> None:
        super().__init__()
        self.skew_ms = 0
        self._loop = loop

    def wall_ms(self) -> int:
        return EPOCH_MS + int(self._loop._now * 1000) + self.skew_ms + self.offset_ms

    def now(self) -> float:
        return self._loop._now

    def cpu(self) -> float:
        return 0.0  # what this machine takes for it is no part of a run


class SimOutside:
    """``Outside`` of one process of a machine."""

    def __init__(self, world: World, machine: Machine, boot: int, beside: Beside | None = None):
        """``boot``: of the machine's core, or that of ``beside``, which is another process."""
        self.pid = boot  # the real one would have more digits here and fewer there
        self.look_s = LOOK_S
        self.clock: SystemClock = machine.clock
        life = f"{beside.name} {beside.lives}" if beside is not None else f"{boot}"
        self.rng = random.Random(f"{world.seed} {machine.name} {life}")
        self.secret: Callable[[int], bytes] = self.rng.randbytes
        self.disk: Disk = beside.disk if beside is not None else machine.disk
        self.executor: Callable[[int, str], Executor] = world.loop.executor
        self.listen: Listen = SimListening
        self._world = world
        self._name = machine.name

    def poster(self, url: str, ca_file: str | None, timeout_s: float) -> Poster:
        return self._world.posted

    def channel(self, peer: str, address: str) -> grpc.aio.Channel:
        return cast(grpc.aio.Channel, SimChannel(self._world.net, self._name, address))

    def server(
        self, interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]], address: str
    ) -> grpc.aio.Server:
        return cast(grpc.aio.Server, SimServer(self._world.net, interceptors, address))


class Posted:
    """The operator's server, which takes what any IDC posts; ``status``: what it answers."""

    def __init__(self) -> None:
        self.status = 200
        self.bodies: list[tuple[bytes, Mapping[str, str]]] = []

    async def post(self, body: bytes, headers: Mapping[str, str]) -> int:
        self.bodies.append((body, headers))
        return self.status

    async def close(self) -> None:
        pass


class Beside:
    """A process beside the core of an IDC, with a folder of its own on the disk of their machine;
    at most one of it runs."""

    disk: SimDisk
    lives: int

    def __init__(
        self,
        world: World,
        machine: Machine,
        name: str,
        make: Callable[[Outside], FrontNode | IpconfNode | RouteNode],
    ) -> None:
        self.name = name
        self.disk = SimDisk(machine.folder / name, f"{world.seed} {machine.name} {name}")
        self.owner: Owner | None = None
        self._world = world
        self._machine = machine
        self._make = make
        self._node: FrontNode | IpconfNode | RouteNode | None = None
        self.lives = 0

    @property
    def gateway(self) -> str:
        """The name of the one that runs in it; empty: none, or it stands still."""
        runs = self.owner is not None and not self.owner.paused
        gateway = self._node.gateway if isinstance(self._node, FrontNode) and runs else None
        return gateway.name if gateway is not None else ""

    def start(self) -> None:
        world, machine = self._world, self._machine
        self.lives += 1
        owner = self.owner = Owner(f"{machine.name}.{self.name}.{self.lives}")
        world.net.sites[owner] = machine.name
        world.spawn(owner, self._serve(owner))

    async def _serve(self, owner: Owner) -> None:
        again = True
        while again:
            outside = SimOutside(self._world, self._machine, self._machine.boots, self)
            node = self._node = self._make(outside)
            try:
                await node.run()
                again = node.again
            except Exception as error:
                log.exception("the process %s ended", owner.name)
                self._world.unexpected(owner.name, error)
                again = False
        if self.owner is owner:
            self.crash()
            self._world.loop.call_later(RESTART_S, self._again)

    def _again(self) -> None:
        if self.owner is None and self._machine.running:
            self.start()

    def crash(self, power: bool = False) -> None:
        """As of a ``Machine``."""
        if self.owner is None:
            return
        self._world.loop.crash(self.owner)
        self._world.net.crash(self.owner, silently=power)
        self.owner = None
        if power:
            self.disk.lost_power()
        else:
            self.disk.crashed()


class Machine:
    """One IDC's: a disk, a clock, and at most one process with all roles; or, where the layout is
    split, one with those of the core, and ``beside`` it the others. ``waits``: a second core, which
    stands by for it on the same folder; ``taken_over``: how often one has become the first."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.folder = world.scratch / name
        self.disk = SimDisk(self.folder, f"{world.seed} {name}")
        self.clock = SimClock(world.loop)
        self.boots = 0
        self.damages = 0  # of its disk: wiped, or bits of its files flipped
        self.owner: Owner | None = None
        self.waits: Owner | None = None
        self.taken_over = 0
        self._nodes: dict[Owner, Node] = {}
        self._world = world
        self.beside: list[Beside] = []
        if world.layout.split and name in world.layout.idcs:
            self._set_beside()

    def _set_beside(self) -> None:
        def front(number: int, outside: Outside) -> FrontNode:
            folder = self.folder / f"gateway-{number}"
            config = self._world.config(self.name, folder, Roles.FRONT, number)
            return FrontNode(config, None, outside)

        def route(number: int, outside: Outside) -> RouteNode:
            port = self._world.route_port(self.name, number)
            config = self._world.config(self.name, self.folder, Roles.ROUTE, number, port)
            return RouteNode(config, outside)

        def ipconf(number: int, outside: Outside) -> IpconfNode:
            folder = self.folder / f"ipconf-{number}"
            return IpconfNode(self._world.config(self.name, folder, Roles.IPCONF, number), outside)

        idc, routes = self._world.region.idc(self.name), self._world.layout.routes
        for name, count, make in (
            ("route", routes, route), ("gateway", idc.gateways, front),
            ("ipconf", idc.ipconfs, ipconf),
        ):  # fmt: skip
            self.beside += [
                Beside(self._world, self, f"{name}-{number}", partial(make, number))
                for number in range(1, count + 1)
            ]

    @property
    def node(self) -> Node | None:
        """Of the process that is to serve; None: it has not begun."""
        return self._nodes.get(self.owner) if self.owner is not None else None

    @property
    def running(self) -> bool:
        return self.owner is not None

    @property
    def serving(self) -> bool:
        return self.node is not None and self.node.serving and self.running

    @property
    def registry(self) -> RegistryStore | None:
        """Of the process that runs; None: it is not open yet."""
        return getattr(self.node, "own_registry", None)

    def start(self) -> None:
        """What of it does not run."""
        self._world.net.down.discard(self.name)
        if self.owner is None:
            self.owner = self._new_process()
        if self._stands_by and self.waits is None:
            self.waits = self._new_process()
        for each in self.beside:
            if each.owner is None:
                each.start()

    @property
    def _stands_by(self) -> bool:
        layout = self._world.layout
        return layout.standby and self.name in layout.idcs

    def _new_process(self) -> Owner:
        world = self._world
        self.boots += 1
        owner = Owner(f"{self.name}.{self.boots}")
        world.net.sites[owner] = self.name
        world.spawn(owner, self._serve(owner, self.boots))
        return owner

    async def _serve(self, owner: Owner, boot: int) -> None:
        config = self._world.config(
            self.name, self.folder, self._world.core_roles, standby=self._stands_by
        )
        while True:
            node = self._nodes[owner] = Node(config, SimOutside(self._world, self, boot))
            try:
                await node.run()
            except Exception as error:
                log.exception("the process of %s ended", self.name)
                self._world.ended(self, owner, error)
                return
            if not node.again:
                self._world.ended(self, owner, None)
                return

    def crash(self, power: bool = False, alone: bool = False) -> None:
        """At once, between two steps of its tasks. ``power``: the machine with it. ``alone``: what
        runs beside it goes on, and a core that waits takes its place."""
        world = self._world
        if not alone:
            for each in self.beside:
                each.crash(power)
            if self.waits is not None:
                self._end(self.waits, power)
                self.waits = None
        if self.owner is None:
            return
        world.before_crash()
        self._end(self.owner, power)
        self.owner, self.waits = self.waits, None
        self.taken_over += self.owner is not None
        self._let_go()
        if power:
            world.net.down.add(self.name)
            self.disk.lost_power()
        else:
            self.disk.crashed()

    def stop(self) -> None:
        """Its core is told to, and says its farewell first; one that stands still does so later."""
        if self.owner is not None and self.node is not None:
            self._world.spawn(self.owner, _stopped(self.node))

    def lose(self, owner: Owner) -> None:
        """One of its cores."""
        if owner is self.waits:
            self.waits = None
            self._end(owner, power=False)
        else:
            self.crash(alone=True)

    def _end(self, owner: Owner, power: bool) -> None:
        self._world.loop.crash(owner)
        self._world.net.crash(owner, silently=power)
        self._nodes.pop(owner, None)

    def wipe(self) -> None:
        self.damages += 1
        self.disk.wiped()
        for each in self.beside:
            each.disk.wiped()

    def _let_go(self) -> None:
        """The handles on real files that the kernel would have closed with a real process, those
        too that it was only opening."""
        for kv in list(LmdbKv.opened):
            if not kv._closed and Path(kv._folder).is_relative_to(self.folder):
                kv._release()


async def _stopped(node: Node) -> None:
    node.stop()


class WitnessMachine(Machine):
    """Its process votes, and has no roles."""

    _witness: Witness | None = None

    @property
    def serving(self) -> bool:
        return self.running

    @property
    def registry(self) -> RegistryStore | None:
        return self._witness.store if self._witness is not None and self.running else None

    async def _serve(self, owner: Owner, boot: int) -> None:
        witness = Witness(self._world.region, self.folder, {}, SimOutside(self._world, self, boot))
        self._witness = witness
        try:
            await witness.run()
        except Exception as error:
            log.exception("the process of %s ended", self.name)
            self._world.ended(self, owner, error)


class Connector(aiohttp.BaseConnector):
    """HTTP over the simulated network, a connection a request: aiohttp's pool reads the real clock
    to tell whether one is too old to be used again."""

    def __init__(self) -> None:
        super().__init__(force_close=True)

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> Any:  # noqa: ASYNC109
        loop = asyncio.get_running_loop()
        try:
            _, protocol = await loop.create_connection(self._factory, req.host, req.port)
        except OSError as error:
            raise aiohttp.ClientConnectorError(req.connection_key, error) from error
        return protocol


class World:
    """``layout``: else that of the seed. ``close`` when done. Only one at a time: what is logged
    goes into its trace."""

    def __init__(self, seed: int, scratch: Path, layout: Layout | None = None) -> None:
        self.seed = seed
        self.scratch = scratch
        self.loop = SimLoop(seed)
        self.net = Net(self.loop, seed)
        self.net.default = _link
        self.layout = layout or layout_of(seed)
        self.region = region(self.layout)
        self.trace = Trace(self.loop, scratch)
        self.clock = SimClock(self.loop)
        self.failures: list[str] = []
        self.before_crash: Callable[[], None] = lambda: None  # of a machine's process
        self.posted = Posted()
        self._starts: Counter[tuple[str, str]] = Counter()  # of each device's application
        self._gone: list[SimSession] = []  # kept: to collect one would run what it left behind
        (scratch / "outboxes").mkdir(parents=True)
        self.pki = scratch / "pki"
        self._make_pki()
        self._keys = load_region_keys(self.pki)
        self._sites = {}
        for idc in self.region.spec.idcs:
            host, _, port = idc.endpoints.gateway.rpartition(":")
            for number in range(idc.gateways):
                self._sites[f"{host}:{int(port) + number}"] = idc.name
            for address in (*ipconf_addresses(idc), idc.endpoints.peer):
                self._sites[address] = idc.name
            for number in range(1, self.layout.routes + 1):
                self._sites[f"{host}:{self.route_port(idc.name, number)}"] = idc.name
            for endpoint in (idc.endpoints.admin, idc.endpoints.media):
                if endpoint is not None:
                    self._sites[endpoint] = idc.name
        self.witness: WitnessMachine | None = None
        if (witness := self.region.spec.witness) is not None:
            self._sites[witness.peer] = witness.name
            self.witness = WitnessMachine(self, witness.name)
        self.net.site_at = self._sites.__getitem__
        self.machines = {name: Machine(self, name) for name in self.layout.idcs}
        self.loop.disk_delay_s = self._disk_delay_s  # type: ignore[method-assign]
        self._logger = logging.getLogger()
        self._level = self._logger.level
        self._logger.addHandler(self.trace)
        self._logger.setLevel(logging.INFO)

    def close(self) -> None:
        for machine in self.voters:
            machine.crash()
        self._logger.removeHandler(self.trace)
        self._logger.setLevel(self._level)
        self.loop.close()

    @property
    def voters(self) -> list[Machine]:
        """All machines, the witness's too."""
        machines = list(self.machines.values())
        return [*machines, self.witness] if self.witness is not None else machines

    def machine(self, name: str) -> Machine:
        if self.witness is not None and self.witness.name == name:
            return self.witness
        return self.machines[name]

    def _make_pki(self) -> None:
        """Certificates are shown to nobody, but the roles look at their files; the region key is
        the seed's, since what is derived of it may order things."""
        self.pki.mkdir(parents=True)
        key = base64.b64encode(random.Random(f"key {self.seed}").randbytes(32)).decode()
        path = self.pki / pki.REGION_KEYS
        path.write_text(json.dumps({"current": 1, "keys": {"1": key}}))
        path.chmod(0o600)
        pki.init(self.pki, {name: () for name in self.layout.voters}, pki.utc_now(EPOCH_MS))

    @property
    def core_roles(self) -> Roles:
        """Of the first process of an IDC."""
        if not self.layout.split:
            return Roles.ALL
        return Roles.CORE_ALONE if self.layout.ipconfs else Roles.CORE

    def route_port(self, idc: str, number: int) -> int:
        """Of a route instance, counted from 1."""
        peer = self.region.idc(idc).endpoints.peer
        return int(peer.rpartition(":")[2]) + ROUTES_ABOVE + number

    def config(
        self,
        name: str,
        data: Path,
        roles: Roles = Roles.ALL,
        instance: int = 1,
        route_port: int = 0,
        standby: bool = False,
    ) -> NodeConfig:
        keys = load_region_keys(self.pki)
        return NodeConfig(
            self.region, self.region.idc(name), data, self.pki, keys, {}, True, roles=roles,
            instance=instance, route_port=route_port, standby=standby,
        )  # fmt: skip

    def token(self, uid: str, device: str, kind: str = "") -> str:
        """For a day."""
        claims = Claims(uid, device, self.clock.wall_ms() + 86_400_000, kind=kind)
        return mint(self._keys, claims)

    def _disk_delay_s(self, owner: Owner | None) -> float:
        site = self.net.sites.get(owner, "") if owner else ""
        machine = self.machine(site) if site in self.layout.voters else None
        return machine.disk.faults.fsync_delay_ms / 1000 if machine else 0.0

    def spawn(self, owner: Owner, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return owner.context.run(self.loop.create_task, work)

    def ended(self, machine: Machine, owner: Owner, error: BaseException | None) -> None:
        """A process ended by itself: whoever runs it starts it again."""
        if owner not in (machine.owner, machine.waits):
            return
        if error is not None:
            self.unexpected(f"of {machine.name}", error)
        machine.lose(owner)
        self.loop.call_later(RESTART_S, self._again, machine)

    def unexpected(self, process: str, error: BaseException) -> None:
        """A process may end by what is out of its hands, and by nothing else."""
        if not isinstance(error, ImError | OSError | TimeoutError):
            self.failures.append(f"the process {process} ended: {error!r}")

    def _again(self, machine: Machine) -> None:
        if machine.name not in self.net.down:
            machine.start()

    # ------------------------------------------------------------------------------ clients

    def connect(
        self,
        uid: str,
        device: str,
        address: str,
        listener: Listener,
        remember: bool,
        kind: str = "",
        encryption_key: bytes | None = None,
    ) -> SimSession:
        """``Connect`` of services.loadgen.ports. ``kind``: of the device. With an
        encryption key what is to be remembered always is."""
        self._starts[uid, device] += 1
        start = self._starts[uid, device]
        owner = Owner(f"{uid}.{device}" if start == 1 else f"{uid}.{device}.{start}")
        self.net.sites[owner] = f"near-{self.layout.home_of(address)}"
        self.net.addresses[owner] = address
        rng = random.Random(f"{self.seed} {owner.name}")
        store = None
        durable = random.Random(f"{self.seed} {uid} {device}").random() < DURABLE
        if remember and (durable or encryption_key is not None):
            store = SqliteStore(self.scratch / "outboxes" / f"{uid}.{device}.db")
        token = self.token(uid, device, kind)
        idcs = self.region.spec.idcs
        urls = [f"http://{address}" for idc in idcs for address in ipconf_addresses(idc)]

        def make() -> tuple[Client, SdkSession]:
            ipconf = IpconfClient(urls, self.pki / "ca.pem", rng, Connector)
            client = Client(
                token, ipconf, outbox=store, options=OPTIONS, clock=self.clock, rng=rng,
                dialer=PlaintextDialer(), encryption_key=encryption_key,
            )  # fmt: skip
            client.on(self._note)
            return client, SimSession.session_of(client, ipconf, listener)

        return SimSession(self, owner, *owner.context.run(make), store)

    def end(self, session: SimSession) -> None:
        """Of an application, at once, between two steps of its tasks."""
        self.trace.add(f"{session.owner.name} is ended")
        self.loop.crash(session.owner)
        self.net.crash(session.owner)
        self._gone.append(session)

    def _note(self, event: Event) -> None:
        owner = OWNER.get()
        if isinstance(event, ConnectionChanged) and owner is not None:
            self.trace.add(f"{owner.name} is at {event.gateway or 'no gateway'}")


class SimSession:
    """``Session`` of services.loadgen.ports: a device, which is a process of its own."""

    def __init__(
        self,
        world: World,
        owner: Owner,
        client: Client,
        session: SdkSession,
        store: SqliteStore | None,
    ) -> None:
        self._world = world
        self.owner = owner
        self.client = client
        self._session = session
        self._store = store
        # What the next message of a conversation refers to, as `send` of the SDK takes it.
        self.refers: Callable[[str], Mapping[str, Any]] = lambda conversation: {}
        self._opened = False
        self._calls: dict[asyncio.Future[Any], None] = {}

    @staticmethod
    def session_of(client: Client, ipconf: IpconfClient, listener: Listener) -> SdkSession:
        class Closing(SdkSession):
            async def close(self) -> None:
                await super().close()
                await ipconf.close()

        return Closing(client, listener)

    async def there(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What the device does; ``client`` is to be used from there only. Raises NotConnected
        too: the application has ended meanwhile, or does not run yet."""
        if not self.running:
            work.close()
            raise NotConnected("the application does not run")
        return await self._done(work)

    async def _done(self, work: Coroutine[Any, Any, Any]) -> Any:
        answer: asyncio.Future[Any] = self._world.loop.create_future()
        self._calls[answer] = None
        task = self._world.spawn(self.owner, work)

        def done(task: asyncio.Task[Any]) -> None:
            if answer.done():
                if not task.cancelled():
                    task.exception()
            elif task.cancelled():
                answer.cancel()
            elif (error := task.exception()) is not None:
                answer.set_exception(error)
            else:
                answer.set_result(task.result())

        task.add_done_callback(done)
        try:
            return await answer
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            self._calls.pop(answer, None)

    @property
    def running(self) -> bool:
        return self._opened and not self.owner.dead

    @property
    def durable(self) -> bool:
        """Its outbox outlives it."""
        return self._store is not None

    @property
    def outbox(self) -> int:
        """Messages that are not replicated."""
        return self.client.state.outbox

    def crash(self) -> None:
        """Its outbox is as it was committed; who waits for an answer gets none."""
        self._world.end(self)
        if self._store is not None:
            self._store.let_go()
        if (http := self.client._ipconf._http) is not None:
            http.detach()  # or it says that nobody has closed it
        for answer in self._calls:
            if not answer.done():
                answer.set_exception(NotConnected("the application has ended"))

    @property
    def idc(self) -> str:
        return self._session.idc

    async def open(self) -> None:
        await self._done(self._session.open())
        self._opened = True

    async def close(self) -> None:
        if not self.owner.dead:
            await self._done(self._session.close())
        self._opened = False

    def direct(self, uid: str) -> str:
        return self._session.direct(uid)

    async def create_group(self, uids: Sequence[str], name: str) -> str:
        return cast(str, await self.there(self._session.create_group(uids, name)))

    async def members(self, conversation: str) -> Sequence[str]:
        return cast(Sequence[str], await self.there(self._session.members(conversation)))

    async def send(self, conversation: str, content: bytes) -> Acked:
        refs = self.refers(conversation)
        return cast(Acked, await self.there(self._session.send(conversation, content, **refs)))

    async def read_up_to(self, conversation: str, key: str) -> None:
        await self.there(self._session.read_up_to(conversation, key))

    async def unread(self) -> dict[str, int]:
        return cast(dict[str, int], await self.there(self._session.unread()))

    async def history(self, conversation: str) -> list[Stood]:
        return cast(list[Stood], await self.there(self._session.history(conversation)))

    async def standing(self, words: Sequence[tuple[str, str]]) -> list[Standing]:
        return cast(list[Standing], await self.there(self._session.standing(words)))

    async def join(self, conversation: str, uid: str) -> None:
        await self.there(self.client.join(conversation, [uid]))

    async def leave(self, conversation: str) -> None:
        await self.there(self.client.leave(conversation))

    async def edit(self, conversation: str, key: str, content: bytes) -> None:
        await self.there(self.client.edit(conversation, key, content))

    async def recall(self, conversation: str, key: str) -> None:
        await self.there(self.client.recall(conversation, key))

    async def react(self, conversation: str, key: str, code: str, on: bool) -> None:
        await self.there(self.client.react(conversation, key, code, on))

    def changes(self, conversation: str, key: str) -> object:
        """What changes have made of a message; None: it is not shown."""
        try:
            return self.client.changes(conversation, key)
        except KeyError:
            return None


def _link(a: str, b: str) -> Link:
    """By place: an IDC, or what is near one."""
    ends = a.removeprefix("near-"), b.removeprefix("near-")
    far_ms = 0 if ends[0] == ends[1] else DELAY_MS[cast(tuple[str, str], tuple(sorted(ends)))]
    access_ms = ACCESS_MS * ((a != ends[0]) + (b != ends[1]))
    delay_ms = max(0.2, far_ms + access_ms)
    return Link(delay_ms / 1000, 0.05 * delay_ms / 1000 + 0.000_5)
