"""A simulated deployment: machines that run real nodes, the network between them, SDK clients."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import re
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import aiohttp
import grpc

from imcore import pki
from imcore.errors import ImError
from imcore.listener import Listen
from imcore.pki import load_region_keys
from imcore.runtime import SystemClock
from imcore.tokens import Claims, mint
from services.engines.disk import Disk
from services.loadgen.ports import Acked, Listener
from services.loadgen.sdk import SdkSession
from services.node.config import NodeConfig
from services.node.node import Node
from services.sdk import Client, ConnectionChanged, Event, IpconfClient, Options
from services.sdk.transport import PlaintextDialer
from services.sim.disk import SimDisk
from services.sim.loop import OWNER, Owner, SimLoop
from services.sim.net import Link, Net, SimListening
from services.sim.region import ACCESS_MS, DELAY_MS, IDCS, home_of, region
from services.sim.rpc import SimChannel, SimServer

EPOCH_MS = 1_800_000_000_000
RESTART_S = 1.0  # until a process that ended by itself is started again
_PID = re.compile(r" \(pid \d+\)")

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
        said = _PID.sub("", record.getMessage()).replace(self._scratch, "")
        if record.exc_info and record.exc_info[1] is not None:
            said += f": {record.exc_info[1]!r}"
        self.add(f"{owner.name if owner else '-'} {record.levelname} {record.name} {said}")

    def add(self, line: str) -> None:
        self.lines.append(f"{self._loop.time():.6f} {line}")

    def digest(self) -> str:
        return blake2b("\n".join(self.lines).encode(), digest_size=16).hexdigest()


class SimClock(SystemClock):
    """One machine's: its wall clock may be wrong (``offset_ms``), its steady one is the loop's."""

    def __init__(self, loop: SimLoop) -> None:
        super().__init__()
        self._loop = loop

    def wall_ms(self) -> int:
        return EPOCH_MS + int(self._loop.time() * 1000) + self.offset_ms

    def now(self) -> float:
        return self._loop.time()


class SimOutside:
    """``Outside`` of one process of a machine."""

    def __init__(self, world: World, machine: Machine) -> None:
        self.clock: SystemClock = machine.clock
        self.rng = random.Random(f"{world.seed} {machine.name} {machine.boots}")
        self.secret: Callable[[int], bytes] = self.rng.randbytes
        self.disk: Disk = machine.disk
        self.executor: Callable[[int, str], Executor] = world.loop.executor
        self.listen: Listen = SimListening
        self._world = world
        self._name = machine.name

    def channel(self, peer: str, address: str) -> grpc.aio.Channel:
        return cast(grpc.aio.Channel, SimChannel(self._world.net, self._name, address))

    def server(
        self, interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]], address: str
    ) -> grpc.aio.Server:
        return cast(grpc.aio.Server, SimServer(self._world.net, interceptors, address))


class Machine:
    """One IDC's: a disk, a clock, and at most one process with all roles."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.folder = world.scratch / name
        self.disk = SimDisk(self.folder, f"{world.seed} {name}")
        self.clock = SimClock(world.loop)
        self.boots = 0
        self.owner: Owner | None = None
        self.node: Node | None = None
        self._world = world

    @property
    def running(self) -> bool:
        return self.owner is not None

    @property
    def serving(self) -> bool:
        return self.node is not None and self.node.serving and self.running

    def start(self) -> None:
        world = self._world
        self.boots += 1
        world.net.down.discard(self.name)
        owner = self.owner = Owner(f"{self.name}.{self.boots}")
        world.net.sites[owner] = self.name
        world.spawn(owner, self._serve(owner))

    async def _serve(self, owner: Owner) -> None:
        config = self._world.config(self.name, self.folder)
        while True:
            node = self.node = Node(config, SimOutside(self._world, self))
            try:
                await node.run()
            except Exception as error:
                log.exception("the process of %s ended", self.name)
                self._world.ended(self, owner, error)
                return
            if not node.again:
                self._world.ended(self, owner, None)
                return

    def crash(self, power: bool = False) -> None:
        """At once, between two steps of its tasks. ``power``: the machine with it."""
        owner, world = self.owner, self._world
        if owner is None:
            return
        self.owner = None
        world.loop.crash(owner)
        world.net.crash(owner, silently=power)
        if self.node is not None:
            _let_go(self.node)
        self.node = None
        if power:
            world.net.down.add(self.name)
            self.disk.lost_power()
        else:
            self.disk.crashed()

    def wipe(self) -> None:
        self.disk.wiped()


def _let_go(node: Node) -> None:
    """The handles on real files that the kernel would have closed with a real process."""
    engines = getattr(node, "kv_engines", None)
    store = getattr(getattr(engines, "kv", None), "_kv", None)
    if store is not None and not store._closed:
        store._release()


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
    """``close`` when done. Only one at a time: what is logged goes into its trace."""

    def __init__(self, seed: int, scratch: Path) -> None:
        self.seed = seed
        self.scratch = scratch
        self.loop = SimLoop(seed)
        self.net = Net(self.loop, seed)
        self.net.default = _link
        self.region = region()
        self.trace = Trace(self.loop, scratch)
        self.clock = SimClock(self.loop)
        self.failures: list[str] = []
        self._pki = scratch / "pki"
        self._make_pki()
        self._keys = load_region_keys(self._pki)
        self._sites = {}
        for idc in self.region.spec.idcs:
            host, _, port = idc.endpoints.gateway.rpartition(":")
            for number in range(idc.gateways):
                self._sites[f"{host}:{int(port) + number}"] = idc.name
            self._sites[idc.endpoints.ipconf] = self._sites[idc.endpoints.peer] = idc.name
        self.net.site_at = self._sites.__getitem__
        self.machines = {name: Machine(self, name) for name in IDCS}
        self.loop.disk_delay_s = self._disk_delay_s  # type: ignore[method-assign]
        self._logger = logging.getLogger()
        self._level = self._logger.level
        self._logger.addHandler(self.trace)
        self._logger.setLevel(logging.INFO)

    def close(self) -> None:
        for machine in self.machines.values():
            machine.crash()
        self._logger.removeHandler(self.trace)
        self._logger.setLevel(self._level)
        self.loop.close()

    def _make_pki(self) -> None:
        """Certificates are shown to nobody, but the roles look at their files; the region key is
        the seed's, since what is derived of it may order things."""
        self._pki.mkdir(parents=True)
        key = base64.b64encode(random.Random(f"key {self.seed}").randbytes(32)).decode()
        path = self._pki / pki.REGION_KEYS
        path.write_text(json.dumps({"current": 1, "keys": {"1": key}}))
        path.chmod(0o600)
        pki.init(self._pki, {name: () for name in IDCS}, pki.utc_now(EPOCH_MS))

    def config(self, name: str, data: Path) -> NodeConfig:
        keys = load_region_keys(self._pki)
        return NodeConfig(self.region, self.region.idc(name), data, self._pki, keys, {}, True)

    def token(self, uid: str, device: str) -> str:
        """For a day."""
        claims = Claims(uid, device, self.clock.wall_ms() + 86_400_000, False)
        return mint(self._keys, claims)

    def _disk_delay_s(self, owner: Owner | None) -> float:
        machine = self.machines.get(self.net.sites.get(owner, "")) if owner else None
        return machine.disk.faults.fsync_delay_ms / 1000 if machine else 0.0

    def spawn(self, owner: Owner, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return owner.context.run(self.loop.create_task, work)

    def ended(self, machine: Machine, owner: Owner, error: BaseException | None) -> None:
        """A process ended by itself: whoever runs it starts it again."""
        if machine.owner is not owner:
            return
        if error is not None and not isinstance(error, ImError | OSError | TimeoutError):
            self.failures.append(f"the process of {machine.name} ended: {error!r}")
        machine.crash()
        self.loop.call_later(RESTART_S, self._again, machine)

    def _again(self, machine: Machine) -> None:
        if not machine.running:
            machine.start()

    # ------------------------------------------------------------------------------ clients

    def connect(
        self, uid: str, device: str, address: str, listener: Listener, remember: bool
    ) -> SimSession:
        """``Connect`` of services.loadgen.ports."""
        owner = Owner(f"{uid}.{device}")
        self.net.sites[owner] = f"near-{home_of(address)}"
        self.net.addresses[owner] = address
        rng = random.Random(f"{self.seed} {uid} {device}")
        token = self.token(uid, device)
        urls = [f"http://{idc.endpoints.ipconf}" for idc in self.region.spec.idcs]

        def make() -> SdkSession:
            ipconf = IpconfClient(urls, self._pki / "ca.pem", rng, Connector)
            client = Client(
                token, ipconf, options=Options(client="sim/1"), clock=self.clock, rng=rng,
                dialer=PlaintextDialer(),
            )  # fmt: skip
            client.on(self._note)
            return SimSession.session_of(client, ipconf, listener)

        return SimSession(self, owner, owner.context.run(make))

    def _note(self, event: Event) -> None:
        owner = OWNER.get()
        if isinstance(event, ConnectionChanged) and owner is not None:
            self.trace.add(f"{owner.name} is at {event.gateway or 'no gateway'}")


class SimSession:
    """``Session`` of services.loadgen.ports: a device, which is a process of its own."""

    def __init__(self, world: World, owner: Owner, session: SdkSession) -> None:
        self._world = world
        self.owner = owner
        self._session = session

    @staticmethod
    def session_of(client: Client, ipconf: IpconfClient, listener: Listener) -> SdkSession:
        class Closing(SdkSession):
            async def close(self) -> None:
                await super().close()
                await ipconf.close()

        return Closing(client, listener)

    async def _there(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await self._world.spawn(self.owner, work)

    @property
    def idc(self) -> str:
        return self._session.idc

    async def open(self) -> None:
        await self._there(self._session.open())

    async def close(self) -> None:
        await self._there(self._session.close())

    def direct(self, uid: str) -> str:
        return self._session.direct(uid)

    async def create_group(self, uids: Sequence[str], name: str) -> str:
        return cast(str, await self._there(self._session.create_group(uids, name)))

    async def members(self, conversation: str) -> Sequence[str]:
        return cast(Sequence[str], await self._there(self._session.members(conversation)))

    async def send(self, conversation: str, content: bytes) -> Acked:
        return cast(Acked, await self._there(self._session.send(conversation, content)))

    async def read_up_to(self, conversation: str, key: str) -> None:
        await self._there(self._session.read_up_to(conversation, key))

    async def history(self, conversation: str) -> list[bytes]:
        return cast(list[bytes], await self._there(self._session.history(conversation)))


def _link(a: str, b: str) -> Link:
    """By place: an IDC, or what is near one."""
    ends = a.removeprefix("near-"), b.removeprefix("near-")
    far_ms = 0 if ends[0] == ends[1] else DELAY_MS[cast(tuple[str, str], tuple(sorted(ends)))]
    access_ms = ACCESS_MS * ((a != ends[0]) + (b != ends[1]))
    delay_ms = max(0.2, far_ms + access_ms)
    return Link(delay_ms / 1000, 0.05 * delay_ms / 1000 + 0.000_5)
