"""Limits of a gateway. Each says its unit and why it is there."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from imcore.addresses import listed

Networks = tuple[IPv4Network | IPv6Network, ...]


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    connections_max: int = 20_000  # beyond it a client is told to come back later
    # A fifth of them: behind one address may be a company or a network of phones, and still it can
    # not take the places of all others.
    connections_of_address: int = 4_000
    shared: Networks = ()  # proxies, from which so many come that they have no bound of their own
    connects_per_s: float = 500.0  # beyond it a client is told when there is room
    first_frame_ms: int = 5_000  # preface and Connect must be in by then
    idle_ms: int = 12_000  # no frame for this long: the client only looks online
    tick_ms: int = 100  # resolution of the timing wheels
    push_bytes_max: int = 256 * 1024  # unsent: beyond it pushes are dropped (the reader is slow)
    response_bytes_max: int = 2 * 1024 * 1024  # unsent: beyond it the connection is closed
    stuck_ms: int = 10_000  # over push_bytes_max for this long: closed, slow_consumer
    user_timeout_ms: int = 20_000  # unacknowledged by the peer's TCP for this long: it is gone
    requests_per_s: float = 200.0  # one client cannot take the process: refill of its bucket
    requests_burst: int = 400  # and its size (an outbox offered again after a move comes at once)
    controls_per_s: float = 10.0  # WebSocket frames that bring nothing: browsers send none unasked
    controls_burst: int = 100
    retry_after_ms: int = 1_000  # told to clients that are turned away or closed as too slow
    polled_max: int = 2_000  # connections that are polled by HTTP: each costs requests all the time
    polls_of_address: float = 0.2  # of connects_per_s: what one address may begin to poll
    polls_of_carrier_per_s: float = 0.5  # begun by one HTTP connection, which stands for one client
    polls_of_carrier_burst: int = 3
    poll_wait_ms: int = 25_000  # the longest that one request waits; proxies cut at 30 or 60 s
    # QUIC: one CPU does some hundred handshakes a second, and ten times as many Retries, which
    # whoever forges his address is answered with too.
    quic_handshakes_per_s: float = 100.0
    quic_retries_per_s: float = 1_000.0

    def is_shared(self, address: str) -> bool:
        """Whether it is that of a proxy."""
        return listed(address, self.shared)
