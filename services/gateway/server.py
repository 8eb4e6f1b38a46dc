"""A gateway: listens, numbers its connections, and is their queue for the state role."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imcore import frame
from imcore.addresses import neighbourhood
from imcore.doors import Doors
from imcore.errors import Code
from imcore.listener import Listen, Listener, Listening
from imcore.places import Places
from imcore.proto import client_pb2 as pb
from imcore.runtime import Clock
from services.gateway.config import GatewayConfig
from services.gateway.connection import Connection
from services.gateway.handover import Standing
from services.gateway.intake import Intake
from services.gateway.polling import Polling
from services.gateway.wheel import TimingWheel
from services.metrics.verbs import Verbs
from services.ports import Sessions

if TYPE_CHECKING:
    from aioquic.quic.configuration import QuicConfiguration

    from services.gateway.quic import QuicListener

log = logging.getLogger("im.gateway")

TRANSPORTS = ("tcp", "websocket", "polling", "quic")

_STOP_S = 1.0  # for connections to take their goodbye
_STALL_TICKS = 5  # more that pass at a time are the process's doing, and count as so many
_MANY = 8  # receivers of a push; hardly any of them has an answer to go with it in one write
_REFUSED_MAX = 1_000  # connections that are told to come back later, at a time; others are cut


@dataclass(slots=True)
class Counters:
    accepted: int = 0
    refused: int = 0
    rubbish: int = 0
    limited: int = 0
    idle: int = 0
    slow: int = 0
    pushed: int = 0
    dropped: int = 0
    writes: int = 0


@dataclass(slots=True)
class QuicCounters:
    quic: int = 0  # connections that came by it
    migrated: int = 0  # a client that goes on from another address
    unproven: int = 0  # told to come again with a token
    dropped_datagrams: int = 0  # rubbish, beyond a limit, or of no connection


class Gateway:
    """Implements ``GatewayQueue``. Numbers are never used twice in the life of a process."""

    def __init__(
        self,
        name: str,
        sessions: Sessions,
        clock: Clock,
        config: GatewayConfig | None = None,
        listen: Listen = Listener,
    ) -> None:
        self._listen = listen
        self.name = name
        self.sessions = sessions
        self.clock = clock
        self.config = config or GatewayConfig()
        self.counters = Counters()
        self.quic_counters = QuicCounters()
        self.too_many = _too_many(self.config)  # what a connection beyond its rate is answered
        self.verbs: Verbs | None = None  # where requests are counted, once something reads that
        self.port = 0
        self.restarts = 0  # hot ones; only a process of its own can have them
        self.loop: asyncio.AbstractEventLoop
        self.wheel: TimingWheel[Connection] = TimingWheel()  # who must be heard of by when
        self.stuck: TimingWheel[Connection] = TimingWheel()  # who must have read by when
        self.throttled: list[Connection] = []  # not read from until the next tick
        self.polling: Polling
        self.quic: QuicListener | None = None
        self._connections: dict[int, Connection] = {}
        self._places: Places[Connection] = Places(
            self.config.connections_max, self.config.connections_of_address
        )
        self._refused: set[Connection] = set()
        self._last_number = 0
        self._to_flush: list[Connection] = []
        self._framed = (b"", b"")  # what was pushed last: it comes in parts, for many connections
        self._listener: Listening | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ticked_at = 0.0
        self._opened_at = 0.0
        self._accepting = True
        self._frozen = False
        self._doors: Doors
        self._emptied = asyncio.Event()

    def __len__(self) -> int:
        return len(self._connections)

    def age_s(self) -> float:
        """Since it listens."""
        return self.clock.now() - self._opened_at

    # --------------------------------------------------------------------------- life cycle

    async def start(
        self,
        host: str,
        port: int,
        ssl_context: ssl.SSLContext | None,
        quic: Callable[[], QuicConfiguration] | None = None,
    ) -> None:
        """No context: plain TCP, for benchmarks. ``quic``: with what QUIC is spoken at the same
        port, which is then that of UDP too. Raises OSError when the address is taken."""
        self.loop = asyncio.get_running_loop()
        listener = self._listen(self._made, ssl_context, self.config.first_frame_ms / 1000, _STOP_S)
        self.polling = Polling(self.config, self.clock, self._made)
        self.port = await listener.start(host, port)
        self._listener = listener
        if quic is not None:
            await self._start_quic(host, quic)
        self._ticked_at = self._opened_at = self.clock.now()
        self._doors = Doors(self.config.connects_per_s, self.config.connects_per_s, self._ticked_at)
        self._tick_later()
        log.info("gateway %s listens on %s:%d", self.name, host, self.port)

    def _made(self) -> Intake:
        """The protocol of a new connection."""
        connection = Connection(self)
        return Intake(connection, self.clock, connection.dear)

    async def _start_quic(self, host: str, configured: Callable[[], QuicConfiguration]) -> None:
        # Costs some megabytes, and is seldom wanted.
        from services.gateway.quic import QuicListener

        config = self.config
        self.quic = QuicListener(
            self._made,
            configured,
            config.first_frame_ms / 1000,
            config.user_timeout_ms / 1000,
            config.quic_retries_per_s,
            min(config.quic_handshakes_per_s, config.connects_per_s),
            self.quic_counters,
        )
        await self.quic.start(host, self.port)

    async def stop(self, reason: str = "shutdown") -> None:
        """Every client is told; returns when all connections are gone, soon in any case."""
        self._accepting = False
        if self._listener is not None:
            await self._listener.stop()
        if self.quic is not None:
            self.quic.stop()
        everybody = [*self._connections.values(), *self._refused]
        for connection in everybody:
            connection.end(reason, 100)
        if everybody:
            try:
                async with asyncio.timeout(_STOP_S):
                    await self._emptied.wait()
            except TimeoutError:
                for connection in everybody:
                    connection.abort()
                await asyncio.sleep(0)
        if self._listener is not None:
            await self.polling.stop()
        if self.quic is not None:
            self.quic.close()
        if self._timer is not None:
            self._timer.cancel()

    def freeze(self) -> None:
        """Before a hand-over: answers still go out; nothing more is taken from clients, which then
        waits in their sockets, and nothing is pushed."""
        self._accepting, self._frozen = False, True
        if self._timer is not None:
            self._timer.cancel()
        self.throttled.clear()
        if self.quic is not None:
            self.quic.stop()
        for connection in self._connections.values():
            connection.pause()

    def settled(self) -> bool:
        """Whether all that was written is the kernel's."""
        return all(connection.settled() for connection in self._connections.values())

    def numbers(self) -> list[int]:
        """Of the connections that stand."""
        return list(self._connections)

    async def stop_others(self, staying: Collection[int]) -> None:
        """Every client but these, and everybody who is connected by TLS or QUIC, is told to come
        again."""
        others = [
            one
            for number, one in self._connections.items()
            if number not in staying or not one.can_be_handed_on()
        ]
        for connection in (*others, *self._refused):
            connection.end("shutdown", 100)
        deadline = self.clock.now() + _STOP_S
        while self.clock.now() < deadline and (  # noqa: ASYNC110 - nothing to wait on
            self._refused or any(one.number in self._connections for one in others)
        ):
            await asyncio.sleep(0.01)

    def hand_on(self, session_of: Callable[[int], str | None]) -> list[Standing]:
        """The connections that a successor can go on with; what is written to them from here on
        would break them."""
        standing = []
        for number, connection in self._connections.items():
            session = session_of(number)
            handed = connection.hand_on() if session is not None else None
            if session is not None and handed is not None:
                fd, unread = handed
                standing.append(Standing(fd, number, session, unread, connection.quiet_ms))
        return standing

    def number_above(self, last: int) -> None:
        """A predecessor has given out numbers up to this one. Before anybody is let in."""
        self._last_number = max(self._last_number, last)

    async def adopt(self, standing: Standing, joined: Callable[[Standing], bool]) -> bool:
        """Go on with a predecessor's connection. ``joined`` gives it its session back; False: that
        is over, or the client has gone, and the connection is closed."""
        connection = Connection(self, standing)
        handed = socket.socket(fileno=standing.fd)
        handed.setblocking(False)
        if not joined(standing):
            handed.close()
            return False
        intake = Intake(connection, self.clock, connection.dear, standing.unread)
        try:
            await self.loop.create_connection(lambda: intake, sock=handed)
        except OSError:  # the client has gone meanwhile
            handed.close()
            self.sessions.closed(self.name, standing.number, "closed")
            return False
        return True

    def goes_on(self, connection: Connection) -> None:
        """One that was adopted is read from now on."""
        self._connections[connection.number] = connection
        self._places.come(connection, neighbourhood(connection.peer_address), shared=True)
        self.asks(connection)
        self.wheel.schedule(connection, connection.idle_ticks)

    def by_transport(self) -> dict[str, int]:
        found = dict.fromkeys(TRANSPORTS, 0)
        for connection in self._connections.values():
            found[connection.transport] += 1
        return found

    def ticks(self, ms: int) -> int:
        return -(-ms // self.config.tick_ms)

    def _tick_later(self) -> None:
        self._timer = self.loop.call_later(self.config.tick_ms / 1000, self._tick)

    def _tick(self) -> None:
        """Turns the wheels by the time that has really passed."""
        self._tick_later()
        tick_s = self.config.tick_ms / 1000
        now = self.clock.now()
        ticks = int((now - self._ticked_at) / tick_s)
        self._ticked_at += ticks * tick_s
        # If the process itself was stalled or paused, what clients sent waits in the sockets: let
        # it be read before anybody is called idle. Not for nothing, though: whoever keeps the
        # process busy must not get more time by it.
        ticks = min(ticks, _STALL_TICKS)
        throttled, self.throttled = self.throttled, []
        for connection in throttled:
            connection.unthrottle()
        for connection in self.wheel.advance(ticks):
            self._due(connection)
        for connection in self.stuck.advance(ticks):
            self.counters.slow += 1
            connection.end("slow_consumer", self.config.retry_after_ms)

    def _due(self, connection: Connection) -> None:
        silent = self.wheel.now - connection.heard_tick
        idle = connection.idle_ticks
        if connection.asked and (silent < idle or connection.paused):
            # Who does not read is not read from either: he has until he is called stuck.
            self.wheel.schedule(connection, max(1, idle - silent))
        else:
            self.counters.idle += 1
            connection.end("idle")

    # --------------------------------------------------------------------- from connections

    def opened(self, connection: Connection) -> None:
        self._last_number += 1
        connection.number = self._last_number
        if not self._accepting:
            self.counters.refused += 1
            connection.abort()
            return
        if retry_after_ms := self._turned_away(connection):
            self.counters.refused += 1
            if len(self._refused) >= _REFUSED_MAX:
                connection.abort()
            else:
                self._refused.add(connection)
                connection.refuse(retry_after_ms)
            return
        self.counters.accepted += 1
        self._connections[connection.number] = connection
        entry = self._places.come(connection, *self._from(connection))
        if entry.given_up is not None:
            self.counters.refused += 1
            entry.given_up.end("overloaded", self.config.retry_after_ms)
        self.wheel.schedule(connection, self.ticks(self.config.first_frame_ms))
        self.sessions.opened(self.name, connection.number, connection.peer_address)

    def _turned_away(self, connection: Connection) -> int:
        """0: there is room for it. Else: it may come back after so many ms."""
        if not self._places.room(*self._from(connection)):
            return self.config.retry_after_ms
        return 0 if connection.entered else self._doors.enter(self.clock.now())

    def _from(self, connection: Connection) -> tuple[str, bool]:
        """Whom it counts with, and whether these are too many to be counted as one."""
        address = connection.peer_address
        return neighbourhood(address), self.config.is_shared(address)

    def asks(self, connection: Connection) -> None:
        """A whole request has come: it keeps its place, whoever comes. One whose Connect is no good
        is ended at once."""
        self._places.asks(connection)

    def lost(self, connection: Connection) -> None:
        self.wheel.cancel(connection)
        self.stuck.cancel(connection)
        self._refused.discard(connection)
        self._places.go(connection)
        if self._connections.pop(connection.number, None) is not None:
            self.sessions.closed(self.name, connection.number, connection.reason)
        if not self._accepting and not self._connections and not self._refused:
            self._emptied.set()

    def flush_later(self, connection: Connection) -> None:
        """All that is queued in this turn of the loop goes out at its end, one write each."""
        if not self._to_flush:
            self.loop.call_soon(self._flush)
        self._to_flush.append(connection)

    def _flush(self) -> None:
        connections, self._to_flush = self._to_flush, []
        for connection in connections:
            connection.flush()

    # ------------------------------------------------------------------------- GatewayQueue

    def send(self, connection: int, request_id: int, body: bytes) -> None:
        found = self._connections.get(connection)
        if found is not None:
            found.respond(request_id, body)

    def push(self, connections: Sequence[int], body: bytes) -> None:
        if self._frozen:
            return
        if self._framed[0] is not body:
            self._framed = (body, frame.encode(frame.EVENT, 0, body))
        framed, many = self._framed[1], len(connections) >= _MANY
        for number in connections:
            found = self._connections.get(number)
            if found is not None:
                found.push(framed, many)

    def quiet(self, connection: int, ms: int) -> None:
        found = self._connections.get(connection)
        if found is not None and found.quiet_ms != ms:
            found.grant(ms)
            self.wheel.schedule(found, found.idle_ticks)

    def close(self, connection: int, reason: str, retry_after_ms: int = 0) -> None:
        found = self._connections.get(connection)
        if found is not None:
            found.end(reason, retry_after_ms)


def _too_many(config: GatewayConfig) -> bytes:
    response = pb.Response()
    response.error.code = Code.OVERLOADED
    response.error.message = "too many requests on this connection"
    response.error.retry_after_ms = int(1000 / config.requests_per_s) + 1
    return response.SerializeToString()
