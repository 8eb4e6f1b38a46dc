"""Every gateway of every IDC that holds a live lease, from the registries of all IDCs."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from services.policy.poll import Poller
from services.ports import Versioned

log = logging.getLogger("im.ipconf")

PREFIX = b"gateway/"
SLOW_START_S = 30.0  # until one that has just begun is taken for as empty as it is


class Gateway(NamedTuple):
    idc: str
    name: str
    host: str
    port: int
    connections: int
    capacity: int
    age_s: float = SLOW_START_S  # since it listens, no further than it counts

    @property
    def load(self) -> float:
        """0 (empty) to 1 (full)."""
        return min(1.0, self.connections / self.capacity) if self.capacity > 0 else 1.0


class Directory:
    """A gateway is live while its IDC's registry answers and still has its leased key."""

    def __init__(self, idcs: Sequence[str], poller: Poller) -> None:
        """``poller`` is the caller's, and polls ``PREFIX``."""
        self._poller = poller
        self._idcs = idcs

    def live(self) -> dict[str, list[Gateway]]:
        """By IDC; an IDC without a live gateway is missing."""
        found = {name: self.live_in(name) for name in self._idcs}
        return {name: gateways for name, gateways in found.items() if gateways}

    def live_in(self, idc: str) -> list[Gateway]:
        parsed = (_gateway(idc, row) for row in self._poller.entries(idc, PREFIX))
        return [gateway for gateway in parsed if gateway is not None]


@lru_cache(maxsize=1024)  # the same rows are asked for thousands of times before one changes
def _gateway(idc: str, row: Versioned) -> Gateway | None:
    """An IDC's registry speaks for that IDC's gateways only."""
    try:
        document = json.loads(row.value)
        gateway = Gateway(
            str(document["idc"]),
            str(document["gateway"]),
            str(document["host"]),
            int(document["port"]),
            int(document["connections"]),
            int(document["capacity"]),
            float(document.get("age_s", SLOW_START_S)),  # of a program of before: long ago
        )
    except (ValueError, KeyError, TypeError):
        log.warning("the registry of %s holds an unreadable gateway %r", idc, row.key)
        return None
    return gateway if gateway.idc == idc else None
