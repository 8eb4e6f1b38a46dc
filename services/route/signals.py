"""The cross-IDC queue: tells the receivers' IDCs that there is something to pull (rule 17).

Per IDC one bounded queue; signals of one conversation merge (users joined, heads by maximum), so a
burst crosses a WAN link as one line. Losing one costs time, not messages: clients pull anyway.
Who types goes along, the last word of each (conversation, user); losing that costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import islice

import grpc

from imcore.convert import positions_pb
from imcore.errors import Code
from imcore.proto import client_pb2 as pb
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.runtime import Clock
from imcore.words import Origin, Vector
from services.metrics.verbs import Verbs

log = logging.getLogger("im.route")

_FLUSH_S = 0.1  # the other IDC waits for longer before it acts on one (services.node.peers)
_QUEUED_MAX = 10_000  # conversations; beyond it the oldest is dropped
_BATCH_MAX = 500  # conversations in one message, so that an outage's backlog stays under its limit
_TYPING_MAX = 1_000  # of (conversation, user) that wait; beyond it no more is taken
_RETRY_S = 0.5


class SignalQueue:
    """To one other IDC."""

    def __init__(self, idc: str, channel: Callable[[], grpc.aio.Channel], clock: Clock) -> None:
        self.idc = idc
        self._channel = channel
        self._clock = clock
        self._queued: dict[str, tuple[set[str], Vector, float]] = {}  # the last: since when
        self._typing: dict[tuple[str, str], tuple[list[str], pb.Typing]] = {}
        self.verbs: Verbs | None = None  # where signals are counted, once something reads that
        self._grown = asyncio.Event()
        self._stream = 0  # how many have ended
        self.sent = 0
        self.dropped = 0

    def add(self, conversation: str, uids: Iterable[str], origin: Origin, seq: int) -> None:
        queued = self._queued.get(conversation)
        if queued is None:
            if len(self._queued) >= _QUEUED_MAX:
                del self._queued[next(iter(self._queued))]
                self.dropped += 1
                if self.verbs is not None:
                    self.verbs.done("signal", 0.0, Code.OVERLOADED)
            queued = self._queued[conversation] = (set(), {}, self._clock.now())
        queued[0].update(uids)
        queued[1][origin] = max(seq, queued[1].get(origin, 0))
        self._grown.set()

    def add_typing(self, uids: list[str], typing: pb.Typing) -> None:
        """To these users."""
        key = (typing.conversation, typing.uid)
        if key in self._typing or len(self._typing) < _TYPING_MAX:
            self._typing[key] = (uids, typing)
            self._grown.set()
        else:
            self.dropped += 1

    def __len__(self) -> int:
        """Conversations."""
        return len(self._queued)

    def _batch(self) -> peer.SignalBatch:
        batch, now = peer.SignalBatch(), self._clock.now()
        for conversation in list(islice(self._queued, _BATCH_MAX)):
            uids, heads, since = self._queued.pop(conversation)
            if self.verbs is not None:
                self.verbs.done("signal", now - since)
            batch.signals.add(
                uids=sorted(uids), conversation=conversation, heads=positions_pb(heads)
            )
        for told, typing in self._typing.values():
            batch.typing.add(uids=told, typing=typing)
        self._typing.clear()
        self.sent += len(batch.signals)
        return batch

    async def _batches(self, stream: int = 0) -> AsyncIterator[peer.SignalBatch]:
        while True:
            await self._grown.wait()
            await asyncio.sleep(_FLUSH_S)
            if stream != self._stream:
                return  # it has ended, and gRPC goes on waiting for what is to be written to it
            self._grown.clear()
            while self._queued or self._typing:
                yield self._batch()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await rpc.PeerStub(self._channel()).Signals(self._batches(self._stream))
            except grpc.RpcError as error:
                log.debug("signals to %s: %s", self.idc, error)
            self._stream += 1
            self._grown.set()
            await asyncio.sleep(_RETRY_S)
