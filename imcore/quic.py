"""One QUIC connection with one stream, as a transport of asyncio's. For gateway and SDK alike.

QUIC itself is aioquic's business, which does no I/O; here are the socket, the clock, and two things
that it leaves open. It opens flow control windows by what has come, wherever that lies, and doubles
them each time: a peer that sends single bytes far ahead makes it reserve memory without end, and
one that is not to be read from cannot be told so. Here a window opens by what was taken.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from aioquic.quic import connection as aioquic_connection
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicProtocolVersion
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from aioquic.tls import Epoch, load_pem_private_key, load_pem_x509_certificates

from imcore.certificates import CertificateFiles
from imcore.work import Work

log = logging.getLogger("im.quic")

ALPN = "imcp"
STREAM = 0  # the client's first, the only one
WINDOW = 256 * 1024  # of what the peer may send before it was taken; a whole message of the largest
# Neither side is to keep a silent path open by itself: heartbeats do, as often as they must.
IDLE_S = 600.0
# What is lost on the way leaves fewer gaps in a window; aioquic looks through all of them, and
# each time.
PIECES_MAX = 256
ACK_DELAY_S = 0.02  # for an answer to take the acknowledgement along; peers are told 25 ms

# A handshake takes a few KB, and this much is reserved by a byte that comes too far ahead.
aioquic_connection.MAX_PENDING_CRYPTO = 32 * 1024
logging.getLogger("quic").setLevel(logging.ERROR)  # it would repeat what strangers send


class Lost(ConnectionError):
    """How a connection ended, or why none came about."""


class _Connection(QuicConnection):
    """``taken``: bytes of the stream that are the application's now. The overridden part is that
    of exactly this version of aioquic."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.taken = 0
        self._ack_delay = ACK_DELAY_S
        self._local_max_streams_bidi.value = 0 if self._is_client else 1
        self._local_max_streams_uni.value = 0
        for limit in (self._local_max_streams_bidi, self._local_max_streams_uni):
            limit.sent = limit.value

    def _write_stream_limits(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream
    ) -> None:
        wanted = self.taken + WINDOW
        if wanted - stream.max_stream_data_local >= WINDOW // 2:
            stream.max_stream_data_local = wanted
        if stream.max_stream_data_local_sent != stream.max_stream_data_local:
            assert stream.stream_id is not None
            frame = builder.start_frame(
                QuicFrameType.MAX_STREAM_DATA,
                capacity=aioquic_connection.MAX_STREAM_DATA_FRAME_CAPACITY,
                handler=self._on_max_stream_data_delivery,
                handler_args=(stream,),
            )
            frame.push_uint_var(stream.stream_id)
            frame.push_uint_var(stream.max_stream_data_local)
            stream.max_stream_data_local_sent = stream.max_stream_data_local

    def stream(self) -> QuicStream | None:
        return self._streams.get(STREAM)

    def window_is_due(self) -> bool:
        """Whether the peer is to be told that more was taken."""
        stream = self.stream()
        opened = self.taken + WINDOW
        return stream is not None and opened - stream.max_stream_data_local >= WINDOW // 2

    def in_pieces(self) -> bool:
        """What came lies about in more pieces than any network would make of it."""
        streams = [*self._crypto_streams.values()]
        if (stream := self.stream()) is not None:
            streams.append(stream)
        return any(len(each.receiver._ranges) > PIECES_MAX for each in streams)

    def unacknowledged(self) -> int:
        stream = self.stream()
        return stream.sender._buffer_stop - stream.sender._buffer_start if stream is not None else 0

    def acknowledged(self) -> int:
        """The highest packet that the peer has acknowledged, after the handshake."""
        space = self._spaces.get(Epoch.ONE_RTT)
        return space.largest_acked_packet if space is not None else 0

    def before_sending(self, now: float) -> None:
        """What goes out now takes along what there is to acknowledge."""
        stream, space = self.stream(), self._spaces.get(Epoch.ONE_RTT)
        if stream is None or stream.sender.buffer_is_empty or space is None:
            return
        if space.ack_at is not None:
            space.ack_at = min(space.ack_at, now)

    def ended(self) -> Lost | None:
        """Without waiting for what the peer may still send: that finds nobody any more."""
        if self._state not in aioquic_connection.END_STATES:
            return None
        event = self._close_event
        reason = event.reason_phrase if event is not None else ""
        return Lost(reason or f"QUIC error {event.error_code if event is not None else 0}")


class QuicTransport(asyncio.Transport):
    """``connect`` makes the protocol, which is told of it once the handshake is over. ``send``
    takes a datagram and where to. ``user_timeout_s``: what the peer does not acknowledge for so
    long ends the connection. ``bounded``: the peer gets no more than a share of the CPU. ``on_end``
    is called once, at the end, whether it ever was ready.

    All that is written, or comes, in one turn of the loop goes out at its end."""

    kind = "quic"

    def __init__(
        self,
        quic: _Connection,
        connect: Callable[[], asyncio.BaseProtocol],
        send: Callable[[bytes, Any], None],
        user_timeout_s: float | None = None,
        bounded: bool = False,
    ) -> None:
        super().__init__()
        self.quic = quic
        self.send = send
        self.on_id: Callable[[bytes, bool], None] = lambda ident, used: None
        self.on_end: Callable[[Lost | None], None] = lambda why: None
        self.on_migrated: Callable[[], None] = lambda: None
        self._connect = connect
        self._protocol: Any = None
        self._user_timeout_s = user_timeout_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None
        self._high = 64 * 1024
        self._paused = False  # the protocol was told to write no more
        self._reading = True
        self._held: list[bytes] = []  # what came while it is not to be read from
        self._eof = False
        self._waits_since = 0.0  # since when nothing was acknowledged
        self._closing = False
        self._over = False
        self._peer: Any = None
        self._work = Work(self._loop.time()) if bounded else None

    @property
    def ready(self) -> bool:
        """The handshake is over."""
        return self._protocol is not None

    # ------------------------------------------------------------------------- from the socket

    def datagram_received(self, data: bytes, address: Any) -> bool:
        """False: it was passed over, as if it had been lost on the way."""
        now, work = self._loop.time(), self._work
        if self._over or (work is not None and work.empty(now)):
            return False
        began = time.thread_time()
        self._safely(partial(self._take, data, address, now))
        if work is not None:
            work.pay(time.thread_time() - began)
        return True

    def _safely(self, work: Callable[[], None]) -> None:
        """What aioquic trips over is the peer's doing, and costs his connection alone."""
        try:
            work()
        except Exception as error:
            log.info("a QUIC connection is given up: %r", error)
            self._end(Lost("protocol"))

    def _take(self, data: bytes, address: Any, now: float) -> None:
        before = self.quic.acknowledged()
        self.quic.receive_datagram(data, address, now)
        if self.quic.acknowledged() > before:  # anybody can send datagrams, and only he this
            self._waits_since = now
        if self.quic.in_pieces():
            self.abort()
        self._happened()
        if not self._over:
            self._relieved()
            self._transmit_soon()

    def _happened(self) -> None:
        while not self._over and (event := self.quic.next_event()) is not None:
            if isinstance(event, events.StreamDataReceived):
                self._came(event.data, event.end_stream)
            elif isinstance(event, events.HandshakeCompleted):
                self._peer = self.quic.get_peer_address()
                self._protocol = self._connect()
                self._tell(self._protocol.connection_made, self)
            elif isinstance(event, events.ConnectionIdIssued):
                self.on_id(event.connection_id, True)
            elif isinstance(event, events.ConnectionIdRetired):
                self.on_id(event.connection_id, False)
            elif isinstance(event, events.StreamReset | events.StopSendingReceived):
                self.abort()
        if self._over:
            return
        if (ended := self.quic.ended()) is not None:
            self._end(ended)
        elif self.ready and (peer := self.quic.get_peer_address()) != self._peer:
            self._peer = peer
            self.on_migrated()

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        """As other transports do with what a protocol raises."""
        try:
            what(*arguments)
        except Exception as error:
            context = {"message": "a protocol failed", "exception": error, "transport": self}
            self._loop.call_exception_handler(context)
            self.abort()

    def _came(self, data: bytes, last: bool) -> None:
        self._eof = self._eof or last
        if data and not self._reading:
            self._held.append(data)
        elif data:
            self.quic.taken += len(data)
            self._tell(self._protocol.data_received, data)
        if self._eof and not self._held:
            self.close()

    def _relieved(self) -> None:
        """Something may have been acknowledged."""
        if self._paused and self.get_write_buffer_size() <= self._high // 4:
            self._paused = False
            self._tell(self._protocol.resume_writing)
        stream = self.quic.stream()
        if self._closing and (stream is None or stream.sender.is_finished):
            self._leave()

    # -------------------------------------------------------------------------- to the socket

    def transmit(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if not self._over:
            self._safely(self._transmit)

    def _transmit(self) -> None:
        now = self._loop.time()
        self.quic.before_sending(now)
        for data, address in self.quic.datagrams_to_send(now):
            self.send(data, address)
        if (ended := self.quic.ended()) is not None:  # for what the peer did
            self._end(ended)
        else:
            self._arm()

    def _transmit_soon(self) -> None:
        if self._soon is None and not self._over:
            self._soon = self._loop.call_soon(self.transmit)

    def _arm(self) -> None:
        due = self.quic.get_timer()
        if self._user_timeout_s is not None and self.get_write_buffer_size():
            given_up = self._waits_since + self._user_timeout_s
            due = given_up if due is None else min(due, given_up)
        if due is None:
            return
        if self._timer is not None:
            if self._timer.when() <= due:
                return  # it is looked at again then
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._loop.time()
        if (
            self._user_timeout_s is not None
            and self.get_write_buffer_size()
            and now - self._waits_since >= self._user_timeout_s
        ):
            self.abort()
            return
        self._safely(partial(self._time_passed, now))
        self.transmit()

    def _time_passed(self, now: float) -> None:
        due = self.quic.get_timer()
        if due is not None and due <= now:
            self.quic.handle_timer(now)
            self._happened()

    # ------------------------------------------------------------------------- of a transport

    def write(self, data: Any) -> None:
        if self._closing or self._over:
            return
        if not self.get_write_buffer_size():
            self._waits_since = self._loop.time()
        self.quic.send_stream_data(STREAM, bytes(data))
        self._transmit_soon()
        if not self._paused and self.get_write_buffer_size() > self._high:
            self._paused = True
            self._tell(self._protocol.pause_writing)

    def close(self) -> None:
        """Once the peer has all that was written."""
        if self._closing or self._over:
            return
        self._closing = True
        if self.quic.stream() is None:
            self._leave()
        else:
            self.quic.send_stream_data(STREAM, b"", end_stream=True)
            self.transmit()

    def abort(self) -> None:
        self._closing = True
        self._leave()

    def lose(self, why: Lost) -> None:
        """Without a word to the peer, who is not there."""
        self._end(why)

    def _leave(self) -> None:
        if not self._over:
            self.quic.close(QuicErrorCode.NO_ERROR)
            self.transmit()
            self._end(None)

    def _end(self, why: Lost | None) -> None:
        if self._over:
            return
        self._over = True
        for handle in (self._timer, self._soon):
            if handle is not None:
                handle.cancel()
        self._held.clear()
        self.on_end(why)
        if self._protocol is not None:
            self._loop.call_soon(self._protocol.connection_lost, why)

    def is_closing(self) -> bool:
        return self._closing or self._over

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        held, self._held = self._held, []
        while held and self._reading and not self._over:
            self._came(held.pop(0), False)
        self._held = held + self._held
        if self._over:
            return
        if self._eof and not self._held:
            self.close()
        if self.quic.window_is_due():
            self._transmit_soon()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = self._high if high is None else high

    def get_write_buffer_size(self) -> int:
        """All that the peer has not acknowledged: it is kept here, not in a socket."""
        return self.quic.unacknowledged()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._peer if name == "peername" else default

    def change_path(self) -> None:
        """The own address is another one now. Who sees both paths is not to tell by a connection id
        that they are one connection's."""
        self.quic.change_connection_id()
        self.quic.send_ping(0)
        self.transmit()


def server_connection(
    configuration: QuicConfiguration, original_id: bytes, retry_id: bytes
) -> _Connection:
    """After a Retry, which the client has answered."""
    return _Connection(
        configuration=configuration,
        original_destination_connection_id=original_id,
        retry_source_connection_id=retry_id,
    )


def client_connection(configuration: QuicConfiguration) -> _Connection:
    return _Connection(configuration=configuration)


def _configuration(**more: Any) -> QuicConfiguration:
    return QuicConfiguration(
        alpn_protocols=[ALPN],
        idle_timeout=IDLE_S,
        max_data=WINDOW,
        max_stream_data=WINDOW,
        supported_versions=[QuicProtocolVersion.VERSION_1],
        **more,
    )


def server_configuration(pki_dir: Path, name: str) -> Callable[[], QuicConfiguration]:
    """With the certificate that the files hold when it is called. Raises BadInput, now."""
    files = CertificateFiles(Path(pki_dir), name)

    def made() -> QuicConfiguration:
        found = _configuration(is_client=False)
        chain = load_pem_x509_certificates(files.pair.certificate)
        found.certificate, found.certificate_chain = chain[0], chain[1:]
        found.private_key = load_pem_private_key(files.pair.key)
        return found

    current = made()

    def renewed() -> QuicConfiguration:
        nonlocal current
        if files.renewed():
            current = made()
        return current

    return renewed


def client_configuration(trusted: ssl.SSLContext, host: str) -> QuicConfiguration:
    """Trusts whom ``trusted`` does, and checks the name."""
    found = _configuration(is_client=True, server_name=host)
    authorities = trusted.get_ca_certs(binary_form=True)
    # Never None, or aioquic would trust others. A folder of the machine's is only read when needed.
    found.cadata = "".join(map(ssl.DER_cert_to_PEM_cert, authorities)).encode()
    if not authorities:
        found.capath = ssl.get_default_verify_paths().capath
    return found
