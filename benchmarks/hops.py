"""A node that counts CPU time by hop: `python -m benchmarks.hops` takes the flags of services.node.

Each hop's functions are wrapped; CPU time of the thread counts for the innermost wrapped one. What
no hop has is the rest: event loop, sockets, TLS, gRPC, control. On SIGUSR1 the sums so far go to
the file that BENCH_HOPS names. Counting costs some 0.3 µs a call, which is part of the figures; the
total of a run without counting is printed beside them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

from services.engines import segment_log
from services.engines.lmdb_kv import LmdbKv
from services.engines.segment_log import SegmentLog
from services.gateway.connection import Connection
from services.gateway.server import Gateway
from services.im import entries
from services.im.applier import Applier
from services.im.fold import Fold
from services.im.partition import Partition
from services.im.server import ImServer
from services.mirror.follow import Follower
from services.mirror.progress import Progress
from services.mirror.serve import LogsService
from services.node import process as node
from services.node.node import Node
from services.node.replication import Replication
from services.route.signals import SignalQueue
from services.state.outgoing import Outgoing
from services.state.requests import Answer
from services.state.server import StateServer

# (hop, owner, names): in the order of a message's way.
HOPS: list[tuple[str, Any, tuple[str, ...]]] = [
    ("gateway: frames in", Connection, ("data_received",)),
    ("state: request, answer", StateServer, ("received",)),
    ("state: request, answer", Answer, ("__call__",)),
    ("im: check, sequence", ImServer, ("submit",)),
    ("im: check, sequence", Partition, ("submit",)),
    ("log: append, commit", SegmentLog, ("append", "_commit", "_committed")),
    ("log: write, fsync (threads)", SegmentLog, ("_write",)),
    ("log: write, fsync (threads)", segment_log, ("_sync",)),
    ("im: ack", ImServer, ("_sent",)),
    ("fold: apply", Applier, ("drain",)),
    ("fold: fold", Fold, ("batch",)),
    ("fold: read rows", LmdbKv, ("get_many",)),
    ("fold: commit", LmdbKv, ("commit",)),
    ("push: entries", Node, ("_told",)),
    ("push: entries", ImServer, ("told",)),
    ("push: entries", entries, ("build",)),
    ("push: signals to IDCs", Node, ("_signal",)),
    ("push: signals to IDCs", SignalQueue, ("_batch",)),
    ("push: sessions", Outgoing, ("push_entries", "_flush_replicated", "replicated", "accepted")),
    ("gateway: frames out", Gateway, ("send", "push", "_flush")),
    ("mirror: serve", LogsService, ("_read",)),
    ("mirror: serve", Progress, ("report",)),
    ("mirror: copy", Follower, ("take",)),
    ("mirror: wake appliers", Replication, ("wake_appliers",)),
]

_sums: dict[str, list[int]] = {}
_local = threading.local()


def _enter(hop: str) -> None:
    stack = _local.__dict__.setdefault("stack", [])
    now = time.thread_time_ns()
    if stack:
        _sums[stack[-1]][0] += now - _local.since
    stack.append(hop)
    _local.since = now


def _leave(hop: str) -> None:
    now = time.thread_time_ns()
    _sums[hop][0] += now - _local.since
    _local.stack.pop()
    _local.since = now


def _timed(hop: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        _sums[hop][1] += 1
        _enter(hop)
        try:
            return function(*args, **kwargs)
        finally:
            _leave(hop)

    return call


@types.coroutine
def _stepped(hop: str, work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Counts only the steps, not what is waited for between them."""
    value: Any = None
    thrown: BaseException | None = None
    while True:
        _enter(hop)
        try:
            awaited = work.send(value) if thrown is None else work.throw(thrown)
        except StopIteration as stop:
            return stop.value
        finally:
            _leave(hop)
        thrown = None
        try:
            value = yield awaited
        except BaseException as error:  # passed on, as `yield from` does
            thrown = error


def _timed_async(hop: str, function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        _sums[hop][1] += 1
        return await _stepped(hop, function(*args, **kwargs))

    return call


def install() -> None:
    for hop, owner, names in HOPS:
        _sums.setdefault(hop, [0, 0])
        for name in names:
            function = getattr(owner, name)
            is_async = function.__code__.co_flags & 0x80
            setattr(owner, name, (_timed_async if is_async else _timed)(hop, function))


def snapshot() -> dict[str, Any]:
    return {"cpu_ns": time.process_time_ns(), "hops": {k: list(v) for k, v in _sums.items()}}


def main() -> int:
    path = Path(os.environ["BENCH_HOPS"])

    def dump(number: int, frame: Any) -> None:
        new = path.with_suffix(".new")
        new.write_text(json.dumps(snapshot()))
        new.rename(path)

    install()
    signal.signal(signal.SIGUSR1, dump)
    return node.main()


if __name__ == "__main__":
    sys.exit(main())
