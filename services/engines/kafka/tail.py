"""Reads on in many topics at once: one waiting fetch to each broker that leads some of them.

It goes on through everything: a topic that does not exist yet is looked for again, a leader that
moved is looked up, and a broker that is away is asked until it is back. Positions belong to whoever
reads; there are no consumer groups.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Protocol

from imcore.errors import Unavailable
from services.engines.kafka.batches import Fetched
from services.engines.kafka.cluster import TAIL, At, Cluster, Gone, NoTopic

log = logging.getLogger("im.log")

WAIT_MS = 500
PACE_S = 0.03  # what comes meanwhile shares the next fetch
RETRY_S = 0.2
MISSING_S = 1.0  # before a topic that does not exist is looked for again
PARTITION_BYTES = 256 << 10  # what is parsed in one turn of the loop


class Reader(Protocol):
    """What one partition of one topic is read for."""

    @property
    def offset(self) -> int: ...

    def took(self, fetched: Fetched) -> None: ...

    async def out_of_range(self) -> None:
        """The offset is not there any more, or not yet."""
        ...


@dataclass(slots=True)
class _Followed:
    reader: Reader
    node: int | None = None
    again_at: float = 0.0


class Tail:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._followed: dict[At, _Followed] = {}
        self._loops: dict[int, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._manager = asyncio.ensure_future(self._manage())
        self.problem = ""  # why nothing can be read, while that is so

    def follow(self, at: At, reader: Reader) -> None:
        self._followed.setdefault(at, _Followed(reader))
        self._changed.set()

    def leave(self, at: At) -> None:
        self._followed.pop(at, None)

    async def close(self) -> None:
        tasks = [self._manager, *self._loops.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _manage(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            for at, followed in list(self._followed.items()):
                if followed.node is None and loop.time() >= followed.again_at:
                    await self._find(at, followed)
                if followed.node is not None and followed.node not in self._loops:
                    self._start(followed.node)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S):
                    await self._changed.wait()

    async def _find(self, at: At, followed: _Followed) -> None:
        now = asyncio.get_running_loop().time()
        try:
            followed.node = await self._cluster.leader(at)
            self.problem = ""
        except NoTopic:
            # Once for all its partitions, or a relay that was never needed costs a request each.
            for other, its in self._followed.items():
                if other.topic == at.topic and its.node is None:
                    its.again_at = now + MISSING_S
        except Unavailable as error:
            self._say(str(error))
            followed.again_at = now + RETRY_S

    def _say(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("reading on stopped: %s", problem)
        self.problem = problem

    def _start(self, node: int) -> None:
        task = asyncio.ensure_future(self._read_on(node))
        self._loops[node] = task
        task.add_done_callback(lambda _: self._loops.pop(node, None))

    async def _read_on(self, node: int) -> None:
        """Until this broker leads nothing of it any more."""
        turn = 0
        while mine := {at: it for at, it in self._followed.items() if it.node == node}:
            wanted = [(at, it.reader.offset, PARTITION_BYTES) for at, it in mine.items()]
            # An answer has room for some: another one comes first each time, or the last starve.
            turn = (turn + 1) % len(wanted)
            wanted = wanted[turn:] + wanted[:turn]
            try:
                found = await self._cluster.fetch(node, wanted, TAIL, WAIT_MS)
            except Unavailable as error:
                self._say(str(error))
                for followed in mine.values():
                    followed.node = None
                await asyncio.sleep(RETRY_S)
                continue
            offsets = {at: offset for at, offset, _ in wanted}
            for at, result in found.items():
                await self._deliver(at, mine[at], offsets[at], result)
            if any(isinstance(result, Fetched) and result.records for result in found.values()):
                await asyncio.sleep(PACE_S)

    async def _deliver(
        self, at: At, followed: _Followed, offset: int, result: Fetched | Exception
    ) -> None:
        if at not in self._followed or followed.reader.offset != offset:
            return  # moved meanwhile
        if isinstance(result, Fetched):
            followed.reader.took(result)
        elif isinstance(result, Gone):
            with contextlib.suppress(Unavailable):
                await followed.reader.out_of_range()
            followed.node, followed.again_at = None, _soon()
        else:
            if self._cluster.led(at):  # else it has only moved
                self._say(str(result))
            followed.node, followed.again_at = None, _soon()


def _soon() -> float:
    return asyncio.get_running_loop().time() + RETRY_S
