"""What the world outside a node's process is to it: time, randomness, disk, threads, clients, other
IDCs.

The one place that is another in a simulation; the roles and their composition are the same.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio

from imcore.listener import Listen, Listener
from imcore.runtime import SystemClock
from imcore.tls import SERVER_OPTIONS, grpc_channel, grpc_server_credentials
from services.engines.disk import Disk, RealDisk
from services.node.posting import Http, Poster
from services.state.delay import SAMPLE_S


class Outside(Protocol):
    """``secret``: so many bytes that nobody can guess. ``executor``: so many threads of a name.
    ``pid``: of the process, as it says it of itself. ``look_s``: how often it looks how late it
    comes to what is due."""

    pid: int
    look_s: float
    clock: SystemClock
    rng: random.Random
    secret: Callable[[int], bytes]
    disk: Disk
    executor: Callable[[int, str], Executor]
    listen: Listen

    def poster(self, url: str, ca_file: str | None, timeout_s: float) -> Poster:
        """To this URL of the operator's. Raises BadInput."""
        ...

    def channel(self, peer: str, address: str) -> grpc.aio.Channel:
        """To this peer and nobody else. Raises BadInput."""
        ...

    def server(
        self, interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]], address: str
    ) -> grpc.aio.Server:
        """It listens there once it is started; callers show certificates. Raises OSError when the
        address is taken, BadInput."""
        ...


class Machine:
    """The real one."""

    def __init__(self, pki: Path, name: str) -> None:
        self.pid = os.getpid()
        self.look_s = SAMPLE_S
        self.clock = SystemClock()
        self.rng: random.Random = random.Random(secrets.randbits(64))
        self.secret: Callable[[int], bytes] = secrets.token_bytes
        self.disk: Disk = RealDisk()
        self.executor: Callable[[int, str], Executor] = ThreadPoolExecutor
        self.listen: Listen = Listener
        self._pki = pki
        self._name = name

    def poster(self, url: str, ca_file: str | None, timeout_s: float) -> Poster:
        return Http(url, ca_file, timeout_s)

    def channel(self, peer: str, address: str) -> grpc.aio.Channel:
        return grpc_channel(self._pki, self._name, peer, address)

    def server(
        self, interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]], address: str
    ) -> grpc.aio.Server:
        server = grpc.aio.server(interceptors=interceptors, options=SERVER_OPTIONS)
        credentials = grpc_server_credentials(self._pki, self._name)
        if server.add_secure_port(address, credentials) == 0:
            raise OSError(f"cannot listen on {address} (peer of {self._name})")
        return server
