"""Settings of a client that are the application's; connection parameters come from ipconf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


@dataclass(frozen=True, slots=True)
class Options:
    network: str = "unknown"  # wifi, cellular, wired: ipconf may choose by it
    client: str = "sdk/1"  # name and version, for the service's logs
    outbox_entries_max: int = 10_000  # not yet replicated; beyond it a send fails visibly
    outbox_bytes_max: int = 64 << 20
    window: int = 32  # sends in flight of one conversation
    in_flight_max: int = 256  # sends in flight in all
    start_timeout_ms: int = 30_000  # `async with` raises NotConnected after it
    request_timeout_ms: int = 10_000  # of requests other than sends; one retry round each second
    transfer_timeout_ms: int = 600_000  # of a whole upload or download; what came is not lost
    pull_limit: int = 200  # entries of one page
    pulls_max: int = 4  # requests at the same time that pull conversations
    signal_wait_ms: int = 300  # before a named origin is asked in parallel
    side_idle_ms: int = 5_000  # a side connection without use is closed after it
    move_drain_ms: int = 1_000  # a move waits so long for acks in flight
    sync_before_offer_ms: int = 500  # on another IDC: what it has is asked for first
    lag_wait_ms: int = 8_000  # another IDC may not know this user's groups yet: asked again so long
    claim_after_ms: int = 3_000  # a place the IDC does not know for as long is told to it
    trace_one_in: int = 1_000  # messages; the service is asked to follow one of so many; 0: none
    tracer: Tracer | None = None  # of OpenTelemetry, for the client's own spans of these
