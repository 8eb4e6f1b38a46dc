"""What a WAN link does to bytes: delay, jitter, loss, rate, cuts. Pure: times come in, go out.

A *direction* is one way of one link; all connections between its two ends share its rate. A *pipe*
is one direction of one connection and keeps its bytes in order, as TCP does. Loss is felt the way
TCP lets a program feel it: as the delay of a retransmission, never as missing bytes.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

PACKET_BYTES = 1_400
# A pipe that holds this much stops its source: as a send buffer does, somewhat above the
# product of bandwidth and delay of one fast connection.
PENDING_BYTES_MAX = 4 << 20
# After a longer cut, TCP's own retransmission timer has backed off: a connection that waits for it
# is reset when the link heals, so that its owner dials again at once.
PATIENCE_S = 1.0
# Timers fire to the nearest millisecond: what is due within half of one is due now, or the loop
# would spin until then.
SLACK_S = 0.0005


class Mode(StrEnum):
    PASS = "pass"  # noqa: S105 - lets pass
    DROP = "drop"  # silent: nothing arrives, nobody is told
    REJECT = "reject"  # connections are reset


class LinkSpec(NamedTuple):
    """One way of a link. ``loss`` is a share of packets from 0 to 0.5.

    What counts of the way out is for a connection, both ways. ``life_ms``: a proxy resets it after
    so long. ``idle_ms``: a NAT forgets it when nothing went for so long, and says nothing: what is
    sent afterwards is lost. 0: neither."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    rate_kbit: float = 1e6
    life_ms: float = 0.0
    idle_ms: float = 0.0


def retransmissions(size: int, loss: float, rng: random.Random) -> int:
    """Rounds until the last of the packets of so many bytes is through."""
    packets = max(1, -(-size // PACKET_BYTES))
    lost_any = 1 - (1 - loss) ** packets
    rounds = 0
    while rounds < 5 and rng.random() < lost_any:
        rounds += 1
        lost_any = loss
    return rounds


@dataclass(slots=True)
class Direction:
    """One way of one link, as it is now."""

    source: str
    target: str
    spec: LinkSpec
    mode: Mode = Mode.PASS
    busy_until: float = 0.0
    cut_since: float = 0.0

    def arrival(self, now: float, size: int, rng: random.Random) -> float:
        """When ``size`` bytes that are sent now arrive at the far end. Takes up the link."""
        spec = self.spec
        sent = max(now, self.busy_until) + size * 8 / (spec.rate_kbit * 1_000)
        self.busy_until = sent
        jitter = rng.uniform(-spec.jitter_ms, spec.jitter_ms) if spec.jitter_ms else 0.0
        extra = retransmissions(size, spec.loss, rng) * 2 * spec.delay_ms if spec.loss else 0.0
        return sent + max(0.0, spec.delay_ms + jitter + extra) / 1_000

    def set_spec(self, spec: LinkSpec, now: float) -> bool:
        """What waits for the link goes on at the new rate. True: at the old one it would have
        waited for longer than a connection bridges, and what is queued keeps its time."""
        waiting = max(0.0, self.busy_until - now)
        faster = spec.rate_kbit > self.spec.rate_kbit
        self.busy_until = now + waiting * self.spec.rate_kbit / spec.rate_kbit
        self.spec = spec
        return faster and waiting > PATIENCE_S

    def set_mode(self, mode: Mode, now: float) -> None:
        if mode is Mode.DROP and self.mode is not Mode.DROP:
            self.cut_since = now
        self.mode = mode

    def cut_too_long(self, now: float) -> bool:
        """Whether it has been dropping for longer than TCP would bridge without a long pause."""
        return self.mode is Mode.DROP and now - self.cut_since > PATIENCE_S


class End(StrEnum):
    """What follows a pipe's last bytes."""

    EOF = "eof"
    CLOSED = "closed"
    RESET = "reset"


class Pipe:
    """The bytes of one connection on their way in one direction, in order."""

    def __init__(self, direction: Direction, open_from: float) -> None:
        """``open_from``: when the source's handshake is over; nothing leaves earlier."""
        self.direction = direction
        self._open_from = open_from
        self._queue: deque[tuple[float, bytes | End]] = deque()
        self._last_arrival = 0.0
        self.pending_bytes = 0

    def offer(self, now: float, item: bytes | End, rng: random.Random) -> None:
        size = 0 if isinstance(item, End) else len(item)
        arrival = self.direction.arrival(max(now, self._open_from), size, rng)
        self._last_arrival = max(arrival, self._last_arrival)
        self._queue.append((self._last_arrival, item))
        self.pending_bytes += size

    def due(self, now: float) -> list[bytes | End]:
        """What has arrived by now; nothing while the direction is cut."""
        items: list[bytes | End] = []
        while (
            self._queue and self._queue[0][0] <= now + SLACK_S and self.direction.mode is Mode.PASS
        ):
            item = self._queue.popleft()[1]
            if not isinstance(item, End):
                self.pending_bytes -= len(item)
            items.append(item)
        return items

    def next_at(self) -> float | None:
        """When something arrives next; None when nothing is on its way or the link is cut."""
        if not self._queue or self.direction.mode is not Mode.PASS:
            return None
        return self._queue[0][0]

    @property
    def full(self) -> bool:
        return self.pending_bytes >= PENDING_BYTES_MAX

    @property
    def holds(self) -> bool:
        return bool(self._queue)

    def clear(self) -> None:
        self._queue.clear()
        self.pending_bytes = 0
