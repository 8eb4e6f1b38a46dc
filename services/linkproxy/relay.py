"""Sockets around the link model: one relayed connection between two IDCs."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Callable
from typing import cast

from services.linkproxy.model import Direction, End, Mode, Pipe

HostPort = tuple[str, int]


class Relay:
    """One connection that ``source`` dialled to ``target``: two sockets, two pipes.

    Each socket's bytes go into the pipe towards the other. A cut link stops a pipe's deliveries;
    the socket behind it is stopped once the pipe is full (back-pressure, bounded memory).
    """

    def __init__(
        self,
        out: Direction,
        back: Direction,
        address: HostPort,
        rng: random.Random,
        gone: Callable[[Relay], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._gone = gone
        self._dialling: asyncio.Task[None] | None = None
        now = self._loop.time()
        handshake_s = (out.spec.delay_ms + back.spec.delay_ms) / 1_000
        self.near = Socket(self, Pipe(out, now + handshake_s), rng)
        self.far = Socket(self, Pipe(back, 0.0), rng)
        self.near.other, self.far.other = self.far, self.near
        self._delay_s = out.spec.delay_ms / 1_000
        self._back_delay_s = back.spec.delay_ms / 1_000
        self._cut: asyncio.TimerHandle | None = None
        if out.spec.life_ms:
            self._cut = self._loop.call_later(out.spec.life_ms / 1_000, self.reset)
        self._traffic_at = now
        self._forgotten = False

    @property
    def directions(self) -> tuple[Direction, Direction]:
        return self.near.pipe.direction, self.far.pipe.direction

    def accepted(self) -> None:
        """The near socket is there. A reset at once, silence, or the way through."""
        modes = [direction.mode for direction in self.directions]
        if Mode.REJECT in modes:
            self.reset()
        elif Mode.DROP not in modes:
            self._dialling = self._loop.create_task(self._dial())

    async def _dial(self) -> None:
        await asyncio.sleep(self._delay_s)
        host, port = self._address
        try:
            await self._loop.create_connection(lambda: self.far, host, port)
        except OSError:
            await asyncio.sleep(self._back_delay_s)
            self._dialling = None
            self.reset()
        self._dialling = None

    def passes(self) -> bool:
        """Whether what is sent now gets through: a NAT may have forgotten the connection."""
        now, idle_ms = self._loop.time(), self.near.pipe.direction.spec.idle_ms
        self._forgotten |= bool(idle_ms) and now - self._traffic_at > idle_ms / 1_000
        self._traffic_at = now
        return not self._forgotten

    def changed(self, healed: bool) -> None:
        """A direction of this connection changed. ``healed``: after a cut too long for TCP."""
        stuck = self.far.transport is None or any(s.pipe.holds for s in (self.near, self.far))
        if any(d.mode is Mode.REJECT for d in self.directions) or (healed and stuck):
            self.reset()
            return
        self.near.other.deliver()
        self.far.other.deliver()

    def reset(self) -> None:
        """Both ends learn of it at once."""
        if self._dialling is not None:
            self._dialling.cancel()
        if self._cut is not None:
            self._cut.cancel()
        for end in (self.near, self.far):
            end.reset()
        self._gone(self)

    def ended(self) -> None:
        """A socket is gone; the relay with it once the other is gone, or will never be there."""
        never_there = self.far.transport is None and not self._dialling
        if self.near.lost and (self.far.lost or never_there):
            if self._cut is not None:
                self._cut.cancel()
            self._gone(self)


class Socket(asyncio.Protocol):
    """One end of a relay: what it reads enters ``pipe``; what ``other.pipe`` brings, it writes."""

    other: Socket

    def __init__(self, relay: Relay, pipe: Pipe, rng: random.Random) -> None:
        self._relay = relay
        self.pipe = pipe
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._stuck = False  # the program behind this socket does not read
        self._paused = False  # nor do we, because the pipe is full
        self._halves = 2  # directions in which this socket is still open
        self.transport: asyncio.Transport | None = None
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._relay.near is self:
            self._relay.accepted()
        else:
            self.deliver()

    def data_received(self, data: bytes) -> None:
        self._enter(bytes(data))
        if self.pipe.full and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self._enter(End.EOF)
        self._half_closed()
        return True  # what the other side still has to say is delivered

    def connection_lost(self, exc: Exception | None) -> None:
        if self.lost:
            return
        self.lost = True
        self._cancel_timer()
        self.other.pipe.clear()
        self._enter(End.CLOSED if exc is None else End.RESET)
        self._relay.ended()

    def pause_writing(self) -> None:
        self._stuck = True

    def resume_writing(self) -> None:
        self._stuck = False
        self.deliver()

    def _enter(self, item: bytes | End) -> None:
        if not self._relay.passes():
            return
        self.pipe.offer(self._loop.time(), item, self._rng)
        self.other.deliver()

    def deliver(self) -> None:
        """Write what has arrived here; be back when the next bytes arrive."""
        self._cancel_timer()
        transport = self.transport
        if transport is None or self.lost or self._stuck:
            return
        source = self.other
        for item in source.pipe.due(self._loop.time()):
            self._write(transport, item)
        source.resume()
        at = source.pipe.next_at()
        if at is not None and not self._stuck:
            self._timer = self._loop.call_at(at, self.deliver)

    def resume(self) -> None:
        """Read again, if the pipe has room."""
        if self._paused and not self.pipe.full and self.transport is not None:
            self._paused = False
            if not self.lost and not self.transport.is_closing():
                self.transport.resume_reading()

    def _write(self, transport: asyncio.Transport, item: bytes | End) -> None:
        if item is End.EOF:
            if transport.can_write_eof() and not transport.is_closing():
                with contextlib.suppress(OSError):  # its program has reset it meanwhile
                    transport.write_eof()
                self._half_closed()
        elif item is End.CLOSED:
            transport.close()
        elif item is End.RESET:
            self.reset()
        elif not transport.is_closing():
            transport.write(item)

    def _half_closed(self) -> None:
        self._halves -= 1
        if self._halves == 0 and self.transport is not None:
            self.transport.close()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def reset(self) -> None:
        """Close so that the other program gets ECONNRESET, not an orderly end."""
        self._cancel_timer()
        self.pipe.clear()
        if self.transport is None or self.lost:
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
