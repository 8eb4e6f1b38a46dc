"""One client connection: bytes to frames, frames to the state role, and back.

Frames queued in one turn of the loop are written as one. Unsent bytes are bounded: a reader that
is slow loses pushes (and learns of them by a signal), one that stays stuck loses the connection.
Whatever a client sends costs only its own connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import TYPE_CHECKING, cast

from imcore import frame
from imcore.bucket import Bucket
from imcore.errors import Code
from imcore.limits import CONNECT_BYTES_MAX
from imcore.proto import client_pb2 as pb
from services.gateway import polling, websocket
from services.gateway.handover import Standing
from services.gateway.intake import Intake

if TYPE_CHECKING:
    from services.gateway.server import Gateway

log = logging.getLogger("im.gateway")

REQUEST = "request"  # the only verb that a gateway knows: bodies are not its business
_MEASURED_MAX = 1_024  # requests of one connection at a time; more are not timed
_WRITE_BYTES = 64 * 1024  # as much in one turn is written without waiting for its end
_GOODBYE_S = 2.0  # for a peer that never reads, or never answers TLS's goodbye
# Why it is not read from.
_LIMITED, _UNREAD, _FROZEN = 1, 2, 4


class Connection(asyncio.Protocol):
    """``paused``: the transport holds more than ``push_bytes_max`` that the peer did not take; it
    is not read from until it has."""

    def __init__(self, gateway: Gateway, standing: Standing | None = None) -> None:
        self._gateway = gateway
        self._standing = standing  # it goes on here, after it began in a predecessor
        self._config = config = gateway.config
        self._decoder = frame.FrameDecoder(CONNECT_BYTES_MAX)
        self._preface = b""
        self._spoken = False
        self._refused_ms = 0  # it is told to come back after so long
        self._ended = False
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._cut: asyncio.TimerHandle | None = None
        self._bucket = Bucket(config.requests_per_s, config.requests_burst, gateway.clock.now())
        self._stopped = 0
        self._was_dear = False
        self._overflowed = False
        self.number = 0
        self.peer_address = ""
        self.reason = "closed"  # what the state role is told
        self.asked = False  # a whole request has come
        self.entered = False  # by a door already, as part of another connection
        self.grant(standing.quiet_ms if standing is not None else 0)
        self.heard_tick = 0  # of the gateway's wheel, when the last frame came
        self.paused = False
        self._unanswered: dict[int, float] = {}  # request id -> since when, while that is measured

    def grant(self, quiet_ms: int) -> None:
        """It may be silent for so long beyond the usual time-out."""
        self.quiet_ms = quiet_ms
        # Without a frame for so many it only looks online.
        self.idle_ticks = self._gateway.ticks(self._config.idle_ms + quiet_ms)

    # --------------------------------------------------------------------- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # What is pushed to a client in the background that is not there any more would else be
            # sent again for a quarter of an hour, or until its next heartbeat is overdue.
            timeout_ms = self._config.user_timeout_ms
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        peer = transport.get_extra_info("peername")
        self.peer_address = str(peer[0]) if peer else ""
        self.entered = bool(transport.get_extra_info("entered"))
        self._transport.set_write_buffer_limits(high=self._config.push_bytes_max)
        if self._standing is None:
            self._gateway.opened(self)
            return
        standing, self._standing = self._standing, None
        self.number = standing.number
        self._spoken = self.asked = True
        self._decoder.message_bytes_max = frame.MESSAGE_BYTES_MAX
        self._gateway.goes_on(self)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        try:
            if not self._spoken:
                data = self._speak(data)
            for received in self._decoder.feed(data) if data else ():
                self._received(received)
                if self._ended:
                    return
        except frame.FrameError as error:
            self.rubbish(str(error))

    def rubbish(self, why: str) -> None:
        self._gateway.counters.rubbish += 1
        log.info("rubbish from %s: %s", self.peer_address, why)
        self.end("protocol")

    def dear(self) -> None:
        """What it sends has cost its share of the CPU. What comes before a Connect never could."""
        if self._transport is None:
            return
        self._gateway.counters.limited += 1
        if not self.asked and self._was_dear:  # once may be a pause of the process
            self.rubbish("what it sends costs more than any Connect")
        self._was_dear = True

    def pause_writing(self) -> None:
        self.paused = True
        self._gateway.stuck.schedule(self, self._gateway.ticks(self._config.stuck_ms))
        self._stop(_UNREAD)

    def resume_writing(self) -> None:
        self.paused = False
        self._gateway.stuck.cancel(self)
        self.heard_tick = self._gateway.wheel.now  # its heartbeats were not read meanwhile
        self._go_on(_UNREAD)
        if self._overflowed and not self._ended:
            self._overflowed = False  # once for all that was dropped, now that it can be told
            self._gateway.sessions.overflowed(self._gateway.name, self.number)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._ended = True
        self._out.clear()
        if self._cut is not None:
            self._cut.cancel()
        self._gateway.lost(self)

    # ------------------------------------------------------------------------------ receive

    def _speak(self, data: bytes) -> bytes:
        """The prefaces; returns what follows the client's."""
        self._preface += data
        for asks, become in ((websocket.ASKS, self._become_web), (polling.ASKS, self._carry_polls)):
            if asks.startswith(self._preface[:4]):
                if not self._on_tcp():
                    raise frame.FrameError("an HTTP request came inside of one")
                if len(self._preface) >= len(asks):
                    become()
                return b""
        if not frame.MAGIC.startswith(self._preface[:4]):
            raise frame.FrameError("it did not begin with this protocol's preface")
        if len(self._preface) < frame.CLIENT_PREFACE_BYTES:
            return b""
        head = self._preface[: frame.CLIENT_PREFACE_BYTES]
        rest = self._preface[frame.CLIENT_PREFACE_BYTES :]
        version = frame.parse_client_preface(head)
        self._preface = b""
        self._queue(frame.server_preface(version))
        if version == 0:
            raise frame.FrameError("it speaks none of our versions")
        self._spoken = True
        if self._refused_ms:
            self.end("overloaded", self._refused_ms)
            return b""
        return rest

    @property
    def transport(self) -> str:
        return getattr(self._transport, "kind", "tcp")

    def _on_tcp(self) -> bool:
        """Directly, with TLS or without: neither inside HTTP nor by QUIC."""
        transport = self._transport
        return (
            transport is not None
            and transport.get_extra_info("socket") is not None
            and not isinstance(transport, websocket.WebSocket)
        )

    def _become_web(self) -> None:
        """What has come so far is an HTTP request, or the beginning of one."""
        asked, self._preface = self._preface, b""
        assert self._transport is not None
        web = self._transport = websocket.begin(self._transport, self, self._gateway)
        web.data_received(asked)

    def _carry_polls(self) -> None:
        """It is none itself: what comes by it is for connections that outlive it."""
        asked, self._preface = self._preface, b""
        below, refused_ms = self._transport, self._refused_ms
        assert below is not None
        self.connection_lost(None)
        self._gateway.polling.begin(below, asked, refused_ms)

    def _received(self, received: frame.Frame) -> None:
        if received.type != frame.REQUEST:
            raise frame.FrameError(f"a client sends requests, not frames of type {received.type}")
        gateway = self._gateway
        self.heard_tick = gateway.wheel.now
        if not self.asked:
            self.asked = True
            self._decoder.message_bytes_max = frame.MESSAGE_BYTES_MAX
            gateway.asks(self)
            gateway.wheel.schedule(self, self.idle_ticks)
        now = gateway.clock.now()
        if not self._bucket.take(now):
            if gateway.verbs is not None and len(self._unanswered) < _MEASURED_MAX:
                self._unanswered[received.id] = now
            gateway.sessions.received(gateway.name, self.number, received.id, received.body)
        else:
            self._limit(received.id)

    def _limit(self, request_id: int) -> None:
        """Say so, and read no more until the bucket has something again: a client that does not
        listen is slowed down by TCP."""
        gateway = self._gateway
        gateway.counters.limited += 1
        if gateway.verbs is not None:
            gateway.verbs.done(REQUEST, 0.0, Code.OVERLOADED)
        self.respond(request_id, gateway.too_many)
        if not self._stopped & _LIMITED and not self._ended:
            self._stop(_LIMITED)
            gateway.throttled.append(self)

    def unthrottle(self) -> None:
        self._go_on(_LIMITED)

    def _stop(self, why: int) -> None:
        if not self._stopped and self._transport is not None and not self._ended:
            self._transport.pause_reading()
        self._stopped |= why

    def _go_on(self, why: int) -> None:
        stopped, self._stopped = self._stopped, self._stopped & ~why
        if stopped and not self._stopped and self._transport is not None and not self._ended:
            self._transport.resume_reading()

    # --------------------------------------------------------------------------------- send

    def _unsent(self) -> int:
        """Bytes not handed to the kernel yet."""
        if self._transport is None:
            return 0
        return self._out_bytes + self._transport.get_write_buffer_size()

    def respond(self, request_id: int, body: bytes) -> None:
        if self._unanswered:
            gateway, since = self._gateway, self._unanswered.pop(request_id, None)
            if gateway.verbs is not None and since is not None:
                gateway.verbs.done(REQUEST, gateway.clock.now() - since)
        if self.paused and self._unsent() > self._config.response_bytes_max:
            self._gateway.counters.slow += 1
            self.end("slow_consumer", self._config.retry_after_ms)
            return
        if not self._ended:
            self._queue(frame.encode(frame.RESPONSE, request_id, body))

    def push(self, framed: bytes, at_once: bool = False) -> None:
        """``at_once``: it need not wait for what else this turn of the loop has for it."""
        if self._ended:
            return
        if self.paused:
            self._gateway.counters.dropped += 1
            self._overflowed = True
            return
        counters = self._gateway.counters
        counters.pushed += 1
        if at_once and not self._out and self._transport is not None:
            counters.writes += 1
            self._transport.write(framed)
        else:
            self._queue(framed)

    def _queue(self, data: bytes) -> None:
        if not self._out:
            self._gateway.flush_later(self)
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes >= _WRITE_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._transport is not None and self._out:
            data = b"".join(self._out)
            self._out.clear()
            self._out_bytes = 0
            self._gateway.counters.writes += 1
            self._transport.write(data)

    # ---------------------------------------------------------------------------------- end

    def refuse(self, retry_after_ms: int) -> None:
        """Too many connections, or too many at once: once it has said its preface, it is told when
        to come back."""
        self._refused_ms = retry_after_ms
        self._cut_after(self._config.first_frame_ms / 1000)

    def end(self, reason: str, retry_after_ms: int = 0) -> None:
        """Say why, then close once that is written; a stuck connection is cut at once."""
        if self._ended or self._transport is None:
            return
        self._ended = True
        self.reason = reason
        if self.paused:
            self._transport.abort()
            return
        if self._spoken:
            event = pb.Event()
            event.close.reason = reason
            event.close.retry_after_ms = retry_after_ms
            self._queue(frame.encode(frame.EVENT, 0, event.SerializeToString()))
        self.flush()
        self._transport.close()
        self._cut_after(_GOODBYE_S)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # ---------------------------------------------------------------------------- hand over

    def pause(self) -> None:
        """Take nothing more of what the client sends; it waits in the socket."""
        self._stop(_FROZEN)

    def settled(self) -> bool:
        """Whether all that was written is the kernel's."""
        return not self._out and not self._unsent()

    def can_be_handed_on(self) -> bool:
        transport = self._transport
        return (
            transport is not None
            and not self._ended
            and self.asked
            and self.settled()
            and transport.get_extra_info("ssl_object") is None
            and self._on_tcp()  # the state of all others is in memory
        )

    def hand_on(self) -> tuple[int, bytes] | None:
        """A descriptor of the socket, for a successor, and what of a message has come. None: it
        cannot be handed on."""
        if self._transport is None or not self.can_be_handed_on():
            return None
        held = self._transport.held() if isinstance(self._transport, Intake) else b""
        unread = self._decoder.unread() + held
        return os.dup(self._transport.get_extra_info("socket").fileno()), unread

    def _cut_after(self, seconds: float) -> None:
        if self._cut is not None:
            self._cut.cancel()
        self._cut = self._gateway.loop.call_later(seconds, self.abort)
