"""What targets with real servers stand on: one event loop, a data centre's roles over real engines,
and a watch over what is logged and over what the loop itself has to catch."""

from __future__ import annotations

import asyncio
import atexit
import logging
import random
import shutil
import tempfile
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from imcore.convert import stamp_pb
from imcore.hlc import from_ms
from imcore.proto import client_pb2 as pb
from imcore.region.model import ClientParameters, Messages
from imcore.runtime import SystemClock
from imcore.tokens import Claims, mint
from services.engines.disk import RealDisk
from services.engines.lmdb_kv import LmdbKv
from services.engines.log_store import SegmentLogStore
from services.gateway.config import GatewayConfig
from services.gateway.server import Gateway
from services.gateway.testing import FrameClient, dial
from services.im.testing import KEYS, Idc
from services.state.server import StateServer
from services.state.testing import PATIENT

T = TypeVar("T")
FAR_MS = 4_102_444_800_000  # the year 2100: seeds hold tokens
ORIGIN = "fra.1"
FUZZ = "fuzz-gw"  # the gateway of who sends without a socket
BYSTANDER_S = 5.0  # wall time; the machine may be busy

# A burst of one client runs into the limit, and the bystander's one request an input does not.
LIMITS = GatewayConfig(requests_per_s=10_000.0, requests_burst=100, connects_per_s=1e9)


def folder(name: str) -> Path:
    """Removed at the end of the process; in memory where there is such a place."""
    shared = Path("/dev/shm")
    where = tempfile.mkdtemp(prefix=f"fuzz-{name}-", dir=shared if shared.is_dir() else None)
    atexit.register(shutil.rmtree, where, ignore_errors=True)
    return Path(where)


class Trouble(logging.Handler):
    """Errors that nobody raised: logged ones, and those that the loop caught."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._found.append(logging.Formatter().format(record))

    def caught(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._found.append(f"the loop caught {context.get('message')}: {error!r}")

    def check(self) -> None:
        found, self._found = self._found, []
        assert not found, "\n".join(found)


class Loop:
    """Its own event loop, which a check drives from outside."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._trouble = Trouble()
        self.loop.set_exception_handler(self._trouble.caught)

    def run(self, work: Coroutine[Any, Any, T], watched: bool = True) -> T:
        """``watched``: raises AssertionError for trouble too. Logs are one for all loops of a
        process, so it is only listened to while this one runs."""
        logger = logging.getLogger("im")
        if watched:
            logger.addHandler(self._trouble)
        try:
            result = self.loop.run_until_complete(work)
        finally:
            logger.removeHandler(self._trouble)
        if watched:
            self._trouble.check()
        return result


class Answers:
    """A gateway without sockets: what the state role sends to its connections."""

    def __init__(self) -> None:
        self.name = FUZZ
        self.answers: dict[int, list[tuple[int, pb.Response]]] = {}
        self.closed: dict[int, str] = {}
        self.changed = asyncio.Event()

    def send(self, connection: int, request_id: int, body: bytes) -> None:
        answer = (request_id, pb.Response.FromString(body))
        self.answers.setdefault(connection, []).append(answer)
        self.changed.set()

    def push(self, connections: Sequence[int], body: bytes) -> None:
        pb.Event.FromString(body)

    def quiet(self, connection: int, ms: int) -> None:
        """Nobody here is closed for being silent."""

    def close(self, connection: int, reason: str, retry_after_ms: int = 0) -> None:
        self.closed.setdefault(connection, reason)
        self.changed.set()


class Centre:
    """Gateway, state role and im of one IDC over LMDB and segment files. ``bob`` is the bystander,
    connected by a socket; hostile input comes from ``mallory``, who shares a conversation and a
    group with him."""

    def __init__(self) -> None:
        self.answers = Answers()
        self.clock = SystemClock()
        parameters = ClientParameters(grace_ms=1_000)
        self.state = StateServer(
            KEYS, self.clock, parameters, self._stamp, lambda: 12,
            lambda ticket, uid: ticket.decode("utf-8", "replace"), limits=PATIENT,
        )  # fmt: skip
        self.gateway = Gateway("fra-gw-1", self.state, self.clock, LIMITS)
        self.idc: Idc
        self.bob: FrameClient
        self._cid = 0
        self._connection = 0
        self._run: asyncio.Task[None]

    def _stamp(self) -> pb.Stamp:
        return stamp_pb(KEYS.stamp(from_ms(self.clock.wall_ms())))

    async def start(self) -> None:
        place, disk = folder("centre"), RealDisk()
        logs = await SegmentLogStore.open(str(place / "log"), 2, disk, random.Random(1))
        kv = await LmdbKv.open(str(place / "kv"), disk)
        policy = Messages(replicated_timeout_ms=200)
        self.idc = Idc(ORIGIN, kv, logs, policy, partitions=2, followers=("iad", "sin"))
        await self.idc.start()
        self.idc.im.pushes = self.state
        self.state.im, self.state.origin = self.idc.im, self.idc.origin
        self.state.gateways.update({FUZZ: self.answers, self.gateway.name: self.gateway})
        await self.gateway.start("127.0.0.1", 0, None)
        self._run = asyncio.create_task(self.state.run())
        self.bob = await dial(self.gateway.port, None)
        answer = await self.bob.ask(hello("bob"))
        assert answer.HasField("connect_ok"), answer
        create = pb.GroupCreate(conversation="g:all", members=["bob", "mallory"], name="all")
        answer = await self.bob.ask(pb.Request(group_create=create))
        assert not answer.HasField("error"), answer

    def connection(self) -> int:
        self._connection += 1
        self.state.opened(FUZZ, self._connection, "192.0.2.1")
        return self._connection

    async def bystander(self) -> None:
        """Bob goes on: he sends, it is taken, and what the log holds by then is folded."""
        self._cid += 1
        send = pb.Send(
            conversation="d:ann:bob", outbox="o1", cid=self._cid, floor=self._cid, content=b"hello"
        )
        answer = await self.bob.ask(pb.Request(send=send), BYSTANDER_S)
        assert answer.send_ack.outcome == pb.SendAck.ACCEPTED, f"bob was not served: {answer}"
        async with asyncio.timeout(BYSTANDER_S):
            await self.idc.folded()
        while not self.bob.events.empty():
            self.bob.events.get_nowait()
        for partition in self.idc.im.partitions:
            assert partition.alarm is None, partition.alarm


def hello(uid: str, epoch: int = 1, **fields: Any) -> pb.Request:
    token = mint(KEYS, Claims(uid, "phone", FAR_MS)).encode()
    return pb.Request(connect=pb.Connect(token=token, connection_epoch=epoch, **fields))
