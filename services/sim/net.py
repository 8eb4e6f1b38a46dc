"""The simulated network: sites, one-way links between them, connections that live on both.

A connection is what TCP gives: bytes arrive whole, once and in order, or the connection is lost.
While a link is cut nothing crosses it that way, and what was sent waits, as TCP would send it
again. A process that dies resets its connections; a machine that dies says nothing, and whoever
sends to it learns of it only once the machine runs again, or never.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from imcore.listener import Factory
from services.linkproxy.model import retransmissions
from services.sim.loop import OWNER, Owner, SimLoop

CONNECT_S = 20.0  # how long a dial goes on over a link that is cut
RESEND_S = (0.05, 1.0)  # how long after a cut ends what waited is sent again
QUEUE_S = 3.0  # the longest that a slow link holds anything: its buffers are finite
HIGH_WATER = 65_536

Deliver = Callable[[], None]


@dataclass(slots=True)
class Link:
    """One way from one site to another. ``delay_s`` and ``jitter_s``: each message takes the first
    plus up to the second. ``bytes_per_s`` 0: no limit. ``loss``: a share of packets, which
    TCP sends again, later. ``cut``: nothing crosses."""

    delay_s: float = 0.001
    jitter_s: float = 0.001
    bytes_per_s: int = 0
    loss: float = 0.0
    cut: bool = False
    cut_since: float = 0.0
    free_at: float = 0.0


class Conn:
    """Between two processes: end 0 dialled, end 1 listens. ``on_lost`` is set by each end."""

    def __init__(self, net: Net, sites: tuple[str, str], owners: tuple[Owner, Owner]) -> None:
        self.net = net
        self.sites = sites
        self.owners = owners
        self.lost = [False, False]  # that this end has been told, or has ended it
        self.silent = False  # an end is gone and did not say so
        self.on_lost: list[Callable[[str], None] | None] = [None, None]
        self.streams: list[SimTransport | None] = [None, None]
        self.early: list[list[bytes]] = [[], []]  # bytes for an end that has not begun yet
        self.caller = ""  # as whom end 0 calls (services.sim.rpc)
        self.server: Any = None  # who takes its calls at end 1
        self._links = (net.link(*sites), net.link(sites[1], sites[0]))
        self._last = [0.0, 0.0]
        self._waiting: list[deque[tuple[int, Deliver]]] = [deque(), deque()]

    def link(self, end: int) -> Link:
        """The one by which this end sends."""
        return self._links[end]

    def send(self, end: int, size: int, deliver: Deliver) -> None:
        """``deliver`` is called in the other end's process."""
        if self.lost[end]:
            return
        if self.silent:
            # Nobody is there: a machine that runs again says so, one that does not says nothing.
            if self.net.is_up(self.sites[1 - end]) and not self.link(end).cut:
                self._tell(end, "reset", self.link(end).delay_s * 2)
            return
        if self._links[end].cut or self._waiting[end]:
            self._waiting[end].append((size, deliver))
        else:
            self._put(end, size, deliver, 0.0)

    def _put(self, end: int, size: int, deliver: Deliver, late_s: float) -> None:
        # Timers of one moment have no order among them, so no two of these are of one moment.
        arrival = self.net.arrival(self._links[end], size) + late_s
        if arrival < self._last[end] + 1e-9:
            arrival = self._last[end] + 1e-9
        self._last[end] = arrival
        other = 1 - end
        self.net.loop.call_at(
            arrival, self._arrived, other, deliver, context=self.owners[other].context
        )

    def _arrived(self, end: int, deliver: Deliver) -> None:
        if not self.lost[end]:
            deliver()

    def healed(self, end: int) -> None:
        waiting, self._waiting[end] = self._waiting[end], deque()
        late_s = self.net.rng.uniform(*RESEND_S) if waiting else 0.0
        for size, deliver in waiting:
            self._put(end, size, deliver, late_s)

    def _tell(self, end: int, why: str, after_s: float) -> None:
        """This end's process, that the connection is lost."""

        def told() -> None:
            if not self.lost[end]:
                self.lost[end] = True
                self.net.forget(self)
                if (on_lost := self.on_lost[end]) is not None:
                    on_lost(why)

        self.net.loop.call_at(
            max(self._last[1 - end] + 1e-9, self.net.loop.time() + after_s),
            told,
            context=self.owners[end].context,
        )

    def end_by(self, end: int, why: str) -> None:
        """This end has done with it; the other is told, in order, once the link lets it through."""
        if self.lost[end]:
            return
        self.send(end, 0, lambda: self._lost_at(1 - end, why))
        self.lost[end] = True
        self.net.forget(self)

    def _lost_at(self, end: int, why: str) -> None:
        self.lost[end] = True
        self.net.forget(self)
        if (on_lost := self.on_lost[end]) is not None:
            on_lost(why)

    def reset(self, why: str) -> None:
        """Lost to both, at once."""
        for end in (0, 1):
            self._tell(end, why, 0.0)

    def died(self, owner: Owner, silently: bool) -> None:
        for end in (0, 1):
            if self.owners[end] is owner:
                if silently:
                    self.silent = True
                else:
                    self.end_by(end, "reset")
                self.lost[end] = True


class Listener:
    """What asyncio's Server is to those who made it, and what accepts connections."""

    def __init__(
        self, net: Net, site: str, owner: Owner, address: str, accept: Callable[[Conn], None]
    ) -> None:
        self.site = site
        self.owner = owner
        self.accept = accept
        self._net = net
        self._address = address

    def close(self) -> None:
        if self._net.listeners.get(self._address) is self:
            del self._net.listeners[self._address]

    async def wait_closed(self) -> None:
        return

    def is_serving(self) -> bool:
        return self._net.listeners.get(self._address) is self

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._net.loop

    @property
    def sockets(self) -> tuple[Listener]:
        return (self,)

    def getsockname(self) -> tuple[str, int]:
        host, _, port = self._address.rpartition(":")
        return host, int(port)


class SimListening:
    """``Listening`` of imcore.listener: TLS is left out."""

    def __init__(
        self,
        factory: Factory,
        tls: ssl.SSLContext | None,
        handshake_timeout_s: float,
        shutdown_timeout_s: float,
    ) -> None:
        self._factory = factory
        self._server: asyncio.AbstractServer | None = None

    async def start(self, host: str, port: int) -> int:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._factory, host, port)
        return port

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()


class Net:
    """``site_of`` of a process is where it runs: its IDC, or the place of a client."""

    def __init__(self, loop: SimLoop, seed: int) -> None:
        self.loop = loop
        self.rng = random.Random(f"net {seed}")
        self.listeners: dict[str, Listener] = {}  # by HOST:PORT
        self.sites: dict[Owner, str] = {}
        self.addresses: dict[Owner, str] = {}  # what a listener sees of who dials; default: local
        self.down: set[str] = set()  # machines that are off
        self._links: dict[tuple[str, str], Link] = {}
        self._conns: dict[Conn, None] = {}
        self.default: Callable[[str, str], Link] = lambda a, b: Link()
        # Where an address belongs to, whether or not somebody listens there.
        self.site_at: Callable[[str], str] = lambda address: ""
        loop.network = self

    # ------------------------------------------------------------------------------ links

    def link(self, a: str, b: str) -> Link:
        found = self._links.get((a, b))
        if found is None:
            found = self._links[a, b] = self.default(a, b)
        return found

    def arrival(self, link: Link, size: int) -> float:
        begin = now = self.loop._now
        if link.bytes_per_s:
            queued = max(now, link.free_at) + size / link.bytes_per_s
            link.free_at = begin = min(queued, now + QUEUE_S)
        if link.loss:
            begin += retransmissions(size, link.loss, self.rng) * 2 * link.delay_s
        return begin + link.delay_s + self.rng.random() * link.jitter_s

    def cut(self, a: str, b: str) -> None:
        """One way."""
        link = self.link(a, b)
        if not link.cut:
            link.cut, link.cut_since = True, self.loop.time()

    def heal(self, a: str, b: str) -> None:
        link = self.link(a, b)
        link.cut = False
        for conn in list(self._conns):
            for end in (0, 1):
                if (conn.sites[end], conn.sites[1 - end]) == (a, b):
                    conn.healed(end)

    def is_up(self, site: str) -> bool:
        return site not in self.down

    # ------------------------------------------------------------------------ connections

    def conns_between(self, a: str, b: str) -> list[Conn]:
        return [conn for conn in self._conns if set(conn.sites) == {a, b}]

    def forget(self, conn: Conn) -> None:
        if all(conn.lost):
            self._conns.pop(conn, None)

    def crash(self, owner: Owner, silently: bool = False) -> None:
        """Its connections and its listeners end with it."""
        for address, listener in list(self.listeners.items()):
            if listener.owner is owner:
                del self.listeners[address]
        for conn in list(self._conns):
            if owner in conn.owners:
                conn.died(owner, silently)

    def listen_on(self, address: str, accept: Callable[[Conn], None]) -> Listener:
        """For the current process. Raises OSError when the address is taken."""
        if address in self.listeners:
            raise OSError(98, f"address already in use: {address}")
        owner = _current()
        listener = Listener(self, self.sites[owner], owner, address, accept)
        self.listeners[address] = listener
        return listener

    async def dial(self, address: str) -> Conn:
        """For the current process. Raises OSError: refused, or no answer in time."""
        owner = _current()
        here = self.sites[owner]
        deadline = self.loop.time() + CONNECT_S
        while True:
            listener = self.listeners.get(address)
            there = listener.site if listener else self.site_at(address)
            out, back = self.link(here, there), self.link(there, here)
            if not (out.cut or back.cut) and self.is_up(there):
                break
            if self.loop.time() >= deadline:
                raise OSError(110, f"connection timed out: {address}")
            await asyncio.sleep(0.2)
        await asyncio.sleep(max(0.0, self.arrival(out, 60) - self.loop.time()))
        listener = self.listeners.get(address)
        if listener is None or listener.owner.dead:
            await asyncio.sleep(back.delay_s)
            raise ConnectionRefusedError(111, f"connection refused: {address}")
        conn = Conn(self, (here, there), (owner, listener.owner))
        self._conns[conn] = None
        accept = listener.accept
        self.loop.call_soon(accept, conn, context=listener.owner.context)
        await asyncio.sleep(max(0.0, self.arrival(back, 60) - self.loop.time()))
        return conn

    # ---------------------------------------------------------------- asyncio's transports

    async def connect(self, factory: Callable[..., Any], host: str, port: int) -> tuple[Any, Any]:
        conn = await self.dial(f"{host}:{port}")
        protocol = factory()
        transport = SimTransport(conn, 0, protocol)
        transport.begin()
        return transport, protocol

    def listen(self, factory: Callable[..., Any], host: str, port: int) -> Listener:
        def accept(conn: Conn) -> None:
            SimTransport(conn, 1, factory()).begin()

        return self.listen_on(f"{host}:{port}", accept)


def _current() -> Owner:
    owner = OWNER.get()
    assert owner is not None, "only a simulated process has connections"
    return owner


class SimTransport(asyncio.Transport):
    """One end of a byte stream. What has not arrived yet counts as its write buffer."""

    def __init__(self, conn: Conn, end: int, protocol: Any) -> None:
        peer = conn.net.addresses.get(conn.owners[1 - end], "127.0.0.1")
        super().__init__({"peername": (peer, 50_000), "sockname": ("127.0.0.1", 1)})
        self._conn = conn
        self._end = end
        self._protocol = protocol
        self._closing = False
        self._buffered = 0
        self._high, self._low = HIGH_WATER, HIGH_WATER // 4
        self._writing_paused = False
        self._reading = True
        self._unread: list[bytes] = []
        self._told_lost = False
        conn.on_lost[end] = self._lost

    def begin(self) -> None:
        self._conn.streams[self._end] = self
        self._protocol.connection_made(self)
        early, self._conn.early[self._end] = self._conn.early[self._end], []
        for data in early:
            self._received(data)

    # ------------------------------------------------------------------------------ writing

    def write(self, data: Any) -> None:
        if self._closing or not data:
            return
        copied = bytes(data)
        self._buffered += len(copied)
        other = 1 - self._end

        def deliver() -> None:
            self._drained(len(copied))
            peer = self._conn.streams[other]
            if peer is not None:
                peer._received(copied)
            else:
                self._conn.early[other].append(copied)

        self._conn.send(self._end, len(copied), deliver)
        if self._buffered > self._high and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def _drained(self, size: int) -> None:
        self._buffered -= size
        if self._writing_paused and self._buffered <= self._low and not self._told_lost:
            self._writing_paused = False
            self._conn.net.loop.call_soon(
                self._protocol.resume_writing, context=self._conn.owners[self._end].context
            )

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_WATER if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        return self._buffered

    def can_write_eof(self) -> bool:
        return False

    # ------------------------------------------------------------------------------ reading

    def _received(self, data: bytes) -> None:
        if self._told_lost:
            return
        if self._reading:
            self._protocol.data_received(data)
        else:
            self._unread.append(data)

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._conn.net.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        unread, self._unread = self._unread, []
        for data in unread:
            self._received(data)

    def is_reading(self) -> bool:
        return self._reading

    # ---------------------------------------------------------------------------------- end

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._conn.end_by(self._end, "closed")
            self._conn.net.loop.call_soon(self._lost, "")

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._closing

    def _lost(self, why: str) -> None:
        if self._told_lost:
            return
        if self._unread and self._reading:
            self._read_on()
        self._told_lost = self._closing = True
        if why == "closed" and hasattr(self._protocol, "eof_received"):
            self._protocol.eof_received()
        error = ConnectionResetError(104, why) if why not in ("", "closed") else None
        self._protocol.connection_lost(error)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(Any, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast(asyncio.BaseProtocol, self._protocol)
