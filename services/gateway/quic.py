"""QUIC for clients: UDP datagrams to connections, and what strangers may cost.

Nobody gets a connection, and no memory, before he has shown that his address is his: he must come
again with the token of a Retry, which is computed and not kept. Retries and handshakes are answered
up to a rate; beyond it datagrams are dropped, and a client goes by TLS then, or tries once more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from aioquic._buffer import Buffer
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler

from imcore.bucket import Bucket
from imcore.quic import QuicTransport, server_connection
from imcore.udp import Udp, bind
from services.gateway.server import QuicCounters

log = logging.getLogger("im.gateway.quic")

HANDSHAKES_MAX = 500  # that wait for slow clients
_ID_BYTES = 8
_LONG = 0x80  # the bit of a first byte that says so
_SOCKET_BYTES = 4 << 20  # of datagrams that wait; the kernel gives net.core.rmem_max at most


class QuicListener:
    """``connect`` makes the protocol of a connection, ``configured`` says with what certificate.
    ``retries_per_s`` and ``handshakes_per_s``: what is begun at most."""

    def __init__(
        self,
        connect: Callable[[], asyncio.BaseProtocol],
        configured: Callable[[], QuicConfiguration],
        handshake_timeout_s: float,
        user_timeout_s: float,
        retries_per_s: float,
        handshakes_per_s: float,
        counters: QuicCounters | None = None,
    ) -> None:
        self._connect = connect
        self._configured = configured
        self._handshake_timeout_s = handshake_timeout_s
        self._user_timeout_s = user_timeout_s
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._retries = Bucket(retries_per_s, retries_per_s, now)
        self._handshakes = Bucket(handshakes_per_s, handshakes_per_s, now)
        self._tokens = QuicRetryTokenHandler()
        self._by_id: dict[bytes, QuicTransport] = {}
        self._shaking: dict[QuicTransport, asyncio.TimerHandle] = {}
        self._sockets: list[Udp] = []
        self._accepting = True
        self.counters = counters or QuicCounters()

    async def start(self, host: str, port: int) -> None:
        """Raises OSError when the address is taken."""
        found = await self._loop.getaddrinfo(
            host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
        )
        try:
            for family, _, _, _, address in dict.fromkeys(found):
                bound = bind(family, address)
                for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                    bound.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BYTES)
                self._listen(bound)
        except BaseException:
            self.close()
            raise

    def _listen(self, bound: socket.socket) -> None:
        # That an address is not reached any more, its connection finds out by itself.
        made = Udp(bound, lambda data, address: self.received(data, address, made), lambda _: None)
        self._sockets.append(made)

    def ports(self) -> list[int]:
        return [bound.port for bound in self._sockets]

    def stop(self) -> None:
        """Connections that stand stay; those that shake hands are ended."""
        self._accepting = False
        for shaking in list(self._shaking):
            shaking.abort()

    def close(self) -> None:
        self.stop()
        for each in dict.fromkeys(self._by_id.values()):
            each.abort()
        for bound in self._sockets:
            bound.close()

    # ------------------------------------------------------------------------------- datagrams

    def received(self, data: bytes, address: Any, via: Udp) -> None:
        if not data or data[0] & _LONG:
            self._long(data, address, via)
            return
        found = self._by_id.get(data[1 : 1 + _ID_BYTES])
        if found is None:
            self.counters.dropped_datagrams += 1
        else:
            self._take(found, data, address, via)

    def _long(self, data: bytes, address: Any, via: Udp) -> None:
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=_ID_BYTES)
        except ValueError:
            self.counters.dropped_datagrams += 1
            return
        found = self._by_id.get(header.destination_cid)
        if found is not None:
            self._take(found, data, address, via)
            return
        # Whatever is answered from here on is smaller than what came.
        if len(data) < SMALLEST_MAX_DATAGRAM_SIZE or not self._accepting:
            self.counters.dropped_datagrams += 1
        elif header.version not in (versions := self._configured().supported_versions):
            self._other_version(header, versions, address, via)
        elif header.packet_type is QuicPacketType.INITIAL:
            self._initial(header, data, address, via)
        else:
            self.counters.dropped_datagrams += 1

    def _other_version(
        self, header: QuicHeader, versions: list[int], address: Any, via: Udp
    ) -> None:
        if header.packet_type is QuicPacketType.VERSION_NEGOTIATION or self._retries.take(
            self._loop.time()
        ):
            self.counters.dropped_datagrams += 1
            return
        via.sendto(
            encode_quic_version_negotiation(
                source_cid=header.destination_cid,
                destination_cid=header.source_cid,
                supported_versions=versions,
            ),
            address,
        )

    def _initial(self, header: QuicHeader, data: bytes, address: Any, via: Udp) -> None:
        now = self._loop.time()
        if not header.token:
            if self._retries.take(now):
                self.counters.dropped_datagrams += 1
                return
            self.counters.unproven += 1
            self._retry(header, address, via, now)
            return
        try:
            original = self._tokens.validate_token(
                address=address,
                destination_cid=header.destination_cid,
                token=header.token,
                now=now,
            )
        except ValueError:
            self.counters.dropped_datagrams += 1
            return
        if len(self._shaking) >= HANDSHAKES_MAX or self._handshakes.take(now):
            self.counters.dropped_datagrams += 1
            return
        quic = server_connection(self._configured(), original, header.destination_cid)
        made = QuicTransport(quic, self._connect, via.sendto, self._user_timeout_s, True)
        ids = {header.destination_cid, quic.host_cid}
        self._by_id |= dict.fromkeys(ids, made)

        def changed(ident: bytes, used: bool) -> None:
            if used:
                ids.add(ident)
                self._by_id[ident] = made
            else:
                ids.discard(ident)
                self._by_id.pop(ident, None)

        def ended(_: Exception | None) -> None:
            self._shaken(made)
            for ident in ids:
                self._by_id.pop(ident, None)

        made.on_id, made.on_end, made.on_migrated = changed, ended, self._migrated
        self._shaking[made] = self._loop.call_later(self._handshake_timeout_s, made.abort)
        self._take(made, data, address, via)

    def _retry(self, header: QuicHeader, address: Any, via: Udp, now: float) -> None:
        own_id = os.urandom(_ID_BYTES)
        token = self._tokens.create_token(
            address=address,
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=own_id,
            now=now,
        )
        assert header.version is not None
        via.sendto(
            encode_quic_retry(
                version=header.version,
                source_cid=own_id,
                destination_cid=header.source_cid,
                original_destination_cid=header.destination_cid,
                retry_token=token,
            ),
            address,
        )

    def _take(self, one: QuicTransport, data: bytes, address: Any, via: Udp) -> None:
        if one.send != via.sendto:
            one.send = via.sendto  # the client has come to another of the sockets
        if not one.datagram_received(data, address):
            self.counters.dropped_datagrams += 1
        if one.ready and one in self._shaking:
            self.counters.quic += 1
            self._shaken(one)

    def _shaken(self, one: QuicTransport) -> None:
        timer = self._shaking.pop(one, None)
        if timer is not None:
            timer.cancel()

    def _migrated(self) -> None:
        self.counters.migrated += 1
