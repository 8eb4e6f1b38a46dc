"""A NAT and a bad line for UDP, between clients and one address."""

from __future__ import annotations

import random
import socket
from typing import Any, Self

from imcore.udp import Udp, bind


class Line:
    """``port``: where clients send to. ``loss``: of each datagram, each way. ``blocked``: nothing
    goes through. ``rebind``: forgets all mappings, as a NAT does, or a change of the network."""

    def __init__(self, target: int, loss: float = 0.0, seed: int = 1, port: int = 0) -> None:
        self.loss = loss
        self.blocked = False
        self.port = port
        self.passed_up = self.passed_down = 0
        self.sources: list[Any] = []  # that the target saw
        self._inside: Udp
        self._target = ("127.0.0.1", target)
        self._rng = random.Random(seed)
        self._host = "127.0.0.1"
        self._out: dict[Any, Udp] = {}

    async def __aenter__(self) -> Self:
        self._inside = Udp(bind(socket.AF_INET, ("127.0.0.1", self.port)), self._up, _ignore)
        self.port = self._inside.port
        return self

    async def __aexit__(self, *_: object) -> None:
        self.rebind()
        self._inside.close()

    def rebind(self, host: str = "127.0.0.1") -> None:
        """From now on the target sees other ports, of this address."""
        self._host = host
        for side in self._out.values():
            side.close()
        self._out.clear()

    def _lost(self) -> bool:
        return self.blocked or self._rng.random() < self.loss

    def _up(self, data: bytes, client: Any) -> None:
        if self._lost():
            return
        if client not in self._out:
            self._out[client] = self._side(client)
        self.passed_up += len(data)
        self._out[client].sendto(data, self._target)

    def _side(self, client: Any) -> Udp:
        def down(data: bytes, _: Any) -> None:
            if not self._lost():
                self.passed_down += len(data)
                self._inside.sendto(data, client)

        made = Udp(bind(socket.AF_INET, (self._host, 0)), down, _ignore)
        self.sources.append((self._host, made.port))
        return made


def _ignore(_: OSError) -> None: ...
