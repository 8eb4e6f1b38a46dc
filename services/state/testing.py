"""Gateways and the state role of one IDC over an im in memory, for tests and benchmarks."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from imcore.attest import RegionKeys
from imcore.convert import stamp_pb
from imcore.hlc import from_ms
from imcore.proto import client_pb2 as pb
from imcore.region.model import ClientParameters, Limits
from imcore.runtime import Clock, SystemClock
from imcore.tokens import Claims, mint
from imcore.words import Origin, Vector, direct_members
from services.gateway.config import GatewayConfig
from services.gateway.server import Gateway
from services.gateway.testing import FrameClient, dial, dial_quic
from services.ports import NO_BACKLOG, Backlog, Pushes, Reply, Risk, Session
from services.state.server import StateServer

if TYPE_CHECKING:
    from aioquic.quic.configuration import QuicConfiguration

# Tests share their machine with others: that a loop is late is then no overload of its own.
PATIENT = Limits(delay_ms=60_000)


class MemoryIm:
    """Accepts every send at once and pushes it to both members of the direct conversation.

    ``mute``: never answers. ``connect_gate``: cleared, it holds Connects up.
    """

    def __init__(self, pushes: Pushes, stamp: Callable[[], pb.Stamp], origin: Origin) -> None:
        self.pushes = pushes
        self.origin = origin
        self.entries: dict[str, list[pb.Entry]] = {}
        self.sessions: list[Session] = []
        self.over: list[Session] = []
        self.stood_before: list[Session] = []
        self.moved_from: list[pb.MovedFrom] = []
        self.waiting = NO_BACKLOG
        self.connect_gate = asyncio.Event()
        self.connect_gate.set()
        self.mute = False
        self._stamp = stamp
        self._lsn = 0

    def submit(self, session: Session, request: pb.Request, reply: Reply) -> None:
        if self.mute:
            return
        response = pb.Response(stamp=self._stamp())
        if request.HasField("send"):
            self._send(session, request.send, response.send_ack)
        elif request.HasField("pull"):
            self._pull(request.pull, response.pull_ok)
        elif request.HasField("pulls"):
            for pull in request.pulls.pulls:
                self._pull(pull, response.pulls_ok.answers.add().pull_ok)
        else:
            response.ok.SetInParent()
        reply(response)

    def _send(self, session: Session, send: pb.Send, ack: pb.SendAck) -> None:
        entry = self.store(send.conversation, send.content)
        self._lsn += 1
        ack.lsn = self._lsn
        ack.placed.seq = entry.seq
        self.pushes.accepted(session, self.origin, 0, self._lsn)
        self.push(send.conversation, [entry])

    def store(self, conversation: str, content: bytes) -> pb.Entry:
        entries = self.entries.setdefault(conversation, [])
        entry = pb.Entry(seq=len(entries) + 1, hlc=len(entries) + 1)
        entry.origin.idc, entry.origin.incarnation = self.origin
        entry.message.content = content
        entries.append(entry)
        return entry

    def heads(self, conversation: str) -> Vector:
        return {self.origin: len(self.entries.get(conversation, ()))}

    def push(self, conversation: str, entries: Sequence[pb.Entry]) -> None:
        members = direct_members(conversation) or ()
        self.pushes.push_entries(conversation, members, entries, self.heads(conversation), 0)

    def _pull(self, pull: pb.Pull, answer: pb.PullOk) -> None:
        have = sum(position.seq for position in pull.have)
        answer.conversation = pull.conversation
        answer.entries.extend(self.entries.get(pull.conversation, [])[have:])

    async def connected(self, session: Session, connect: pb.Connect) -> list[pb.KnownCids]:
        self.moved_from = list(connect.moved_from)
        await self.connect_gate.wait()
        self.sessions.append(session)
        return [pb.KnownCids(conversation=head.conversation) for head in connect.outbox]

    def backlog(self) -> Backlog:
        return self.waiting

    def disconnected(self, session: Session) -> None:
        self.over.append(session)

    def stood(self, session: Session) -> None:
        self.stood_before.append(session)

    def is_over(self, session: Session) -> bool:
        return True


class FastClock(SystemClock):
    def __init__(self, speed: float) -> None:
        super().__init__()
        self._speed = speed

    def now(self) -> float:
        return super().now() * self._speed


class Front:
    """Gateways and the state role of one IDC, real sockets, over a ``MemoryIm``.

    ``async with Front(...) as front``; then ``front.dial()`` and ``front.connect(uid)``. ``speed``:
    as many seconds of the roles' clock pass in one. ``clock``: theirs, in whose place.
    """

    def __init__(
        self,
        keys: RegionKeys,
        tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,  # server's, client's
        parameters: ClientParameters | None = None,
        limits: GatewayConfig | None = None,
        gateways: int = 1,
        checkpoint_path: Path | None = None,
        origin: Origin = Origin("fra", 1),  # noqa: B008 - a tuple
        speed: float = 1.0,
        idc_limits: Limits | None = None,
        risk: Risk | None = None,
        quic: Callable[[], QuicConfiguration] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.keys = keys
        self._quic = quic
        self._by_quic: list[FrameClient] = []  # no peer's system tells them that they are alone
        self.clock: Clock = clock or FastClock(speed)
        self._tls = tls
        self.state = StateServer(
            keys,
            self.clock,
            parameters or ClientParameters(),
            self.stamp,
            lambda: 12,
            lambda ticket, uid: ticket.decode(),
            checkpoint_path,
            idc_limits or PATIENT,
            risk,
        )
        self.im = MemoryIm(self.state, self.stamp, origin)
        self.state.im, self.state.origin = self.im, origin
        self.gateways = [
            Gateway(f"{origin.idc}-gw-{number}", self.state, self.clock, limits)
            for number in range(1, gateways + 1)
        ]
        self._task: asyncio.Task[None] | None = None

    def stamp(self) -> pb.Stamp:
        return stamp_pb(self.keys.stamp(from_ms(self.clock.wall_ms())))

    async def __aenter__(self) -> Self:
        self.state.load_checkpoint()
        for gateway in self.gateways:
            self.state.gateways[gateway.name] = gateway
            await gateway.start("127.0.0.1", 0, self._tls[0] if self._tls else None, self._quic)
        self._task = asyncio.create_task(self.state.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        for gateway in self.gateways:
            await gateway.stop()
        for client in self._by_quic:
            client.abort()
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.state.write_checkpoint()

    async def dial(
        self, gateway: int = 0, speak: bool = True, quic_port: int | None = None
    ) -> FrameClient:
        """``quic_port``: by QUIC, there."""
        if quic_port is not None:
            assert self._tls is not None
            client = await dial_quic(quic_port, self._tls[1], speak)
            self._by_quic.append(client)
            return client
        return await dial(self.gateways[gateway].port, self._tls[1] if self._tls else None, speak)

    def hello(self, uid: str, epoch: int = 1, device: str = "phone", **fields: Any) -> pb.Request:
        claims = Claims(uid, device, self.clock.wall_ms() + 60_000)
        token = mint(self.keys, claims).encode()
        return pb.Request(connect=pb.Connect(token=token, connection_epoch=epoch, **fields))

    async def connect(
        self,
        uid: str,
        epoch: int = 1,
        device: str = "phone",
        gateway: int = 0,
        quic_port: int | None = None,
        **fields: Any,
    ) -> tuple[FrameClient, pb.ConnectOk]:
        client = await self.dial(gateway, quic_port=quic_port)
        response = await client.ask(self.hello(uid, epoch, device, **fields))
        assert not response.HasField("error"), response.error
        return client, response.connect_ok
