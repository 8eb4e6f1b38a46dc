"""Whether QUIC is tried in a network. Pure.

Some networks let no UDP through, or only for a while. A client finds that out once, by the way at
the price of a moment, and then leaves it for some time.
"""

from __future__ import annotations

from collections import OrderedDict

from services.sdk.core.reconnect import Lost

# Until TLS is dialled too; both take three round trips. The second one is for paths known as long,
# and the third for gateways that are tried because others did not answer.
HEAD_START_S = 0.25
HEAD_START_MAX_S = 0.5
HEAD_START_OTHERS_S = 0.1
FAR = 1.5  # times the last handshake
CUTS = 2  # connections in a row that broke soon
LASTED_MS = 60_000
AGAIN_S = 600.0  # until QUIC is tried again; doubled when it is in vain
AGAIN_MAX_S = 14_400.0
NETWORKS_MAX = 32  # remembered; the one used longest ago is forgotten
# In the background: most NATs keep a mapping of UDP for 30 s and more, and a client whose own
# heartbeats make a new one never hears that what was sent to it meanwhile found none.
QUIET_MAX_S = 25.0


def head_start_s(handshake_s: float | None, first: bool) -> float:
    """``handshake_s``: what the last one by QUIC took at this gateway; None: not known."""
    if not first:
        return HEAD_START_OTHERS_S
    return min(max(HEAD_START_S, FAR * (handshake_s or 0.0)), HEAD_START_MAX_S)


class Passage:
    """Of one network."""

    def __init__(self) -> None:
        self._closed_until = 0.0
        self._wait_s = AGAIN_S
        self._cuts = 0

    def open(self, now: float) -> bool:
        return now >= self._closed_until

    def blocked(self, now: float) -> None:
        """Nothing came back, and TLS to the same gateway went."""
        if self.open(now):
            self._closed_until = now + self._wait_s
            self._wait_s = min(2 * self._wait_s, AGAIN_MAX_S)
        self._cuts = 0

    def ended(self, lost: Lost, now: float) -> None:
        """A connection by QUIC."""
        if lost.lived_ms >= LASTED_MS:
            self._cuts, self._wait_s = 0, AGAIN_S
        elif lost.reason in ("lost", "dead", "mute"):
            self._cuts += 1
            if self._cuts >= CUTS:
                self.blocked(now)


class Passages:
    """A network is whatever the application calls by one name."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], Passage] = OrderedDict()

    def of(self, network: tuple[str, str]) -> Passage:
        found = self._known.setdefault(network, Passage())
        self._known.move_to_end(network)
        if len(self._known) > NETWORKS_MAX:
            self._known.popitem(last=False)
        return found
