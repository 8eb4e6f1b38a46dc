"""Where the engines of a local deployment listen: chosen once, and kept in a file, because some
engines write their addresses down in their data."""

from __future__ import annotations

import contextlib
import json
import random
import socket
from collections import deque
from collections.abc import Collection, Iterable
from pathlib import Path

from imctl.errors import Failed
from imctl.target.replacing import replacing

NAME = "engines.json"
# Below the range from which kernels take the ports of outgoing connections: nobody else's
# connection can take one of these between the look and the start.
PORTS = range(20_000, 32_000)
# So many of those that this process chose last are chosen again only when no other one is free:
# whoever got them may not have bound them yet, or is just starting again.
LATELY = 1_000
_lately: deque[int] = deque(maxlen=LATELY)


class Places:
    """HOST:PORT on loopback by name. A name that is new gets a free port."""

    def __init__(self, folder: Path, taken: Iterable[int] = ()) -> None:
        """``taken``: ports that others will want. Raises Failed for a damaged file."""
        self._file = folder / NAME
        self._taken = set(taken)
        self._known: dict[str, str] = {}
        try:
            self._known = dict(json.loads(self._file.read_text()))
            self._taken |= {int(at.rpartition(":")[2]) for at in self._known.values()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise Failed(f"{self._file}: expected names and addresses, got {error}") from error

    def at(self, name: str) -> str:
        """Raises Failed when no port is free."""
        if name not in self._known:
            self._known[name] = self.unnamed()
        return self._known[name]

    def unnamed(self) -> str:
        """For what may listen elsewhere at its next start: not kept, and no name gets it from
        these places. Raises Failed when no port is free."""
        port = free_port(self._taken)
        self._taken.add(port)
        return f"127.0.0.1:{port}"

    def write(self) -> None:
        with replacing(self._file) as new:
            new.write_text(json.dumps(self._known, indent=1) + "\n")


def free_ports(count: int) -> list[int]:
    """Different ones; see ``free_port``."""
    found: list[int] = []
    while len(found) < count:
        found.append(free_port(found))
    return found


def free_port(taken: Collection[int] = ()) -> int:
    """Free when looked at. Raises Failed."""
    return free_row(1, taken)


def free_row(count: int, taken: Collection[int] = ()) -> int:
    """The first of so many ports next to each other, all free when looked at. Raises Failed."""
    for avoided in ({*taken, *_lately}, taken):
        for first in random.sample(PORTS, len(PORTS)):
            row = range(first, first + count)
            if all(port in PORTS and port not in avoided and _is_free(port) for port in row):
                _lately.extend(row)
                return first
    raise Failed(f"there is no free port from {PORTS[0]} to {PORTS[-1]}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False
