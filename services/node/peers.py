"""gRPC services that an IDC offers to other IDCs: probes, and the cross-IDC signal queue."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeAlias

import grpc

from imcore.convert import origin_pb, vector_of
from imcore.proto import client_pb2 as pb
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.runtime import Clock
from imcore.words import Origin, Vector

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_SIGNAL_WAIT_S = 0.15  # what the mirror brings within this time needs no signal


class PeerService(rpc.PeerServicer):
    def __init__(
        self,
        idc: str,
        clock: Clock,
        state: Callable[[peer.ProbeReply], None],
        behind: Callable[[str, Vector], bool],
        deliver: Callable[[list[str], str, Vector], None],
        typed: Callable[[Sequence[str], pb.Typing], None],
        status: Callable[[], dict[str, Any]],
    ) -> None:
        """``state`` fills in what a probe is told; ``behind``: whether this IDC has applied less
        of a conversation than these heads; ``deliver``: signal local sessions;
        ``typed``: tell those of these users that somebody types."""
        self._idc = idc
        self._clock = clock
        self._state = state
        self._behind = behind
        self._deliver = deliver
        self._typed = typed
        self._status = status
        self._tasks: set[asyncio.Task[None]] = set()
        self.origin: Origin | None = None

    async def Probe(self, request: peer.ProbeRequest, context: Context) -> peer.ProbeReply:
        reply = peer.ProbeReply(idc=self._idc, wall_ms=self._clock.wall_ms())
        if self.origin is not None:
            reply.origin.CopyFrom(origin_pb(self.origin))
        self._state(reply)
        return reply

    async def Facts(self, request: peer.StatusRequest, context: Context) -> peer.StatusReply:
        return peer.StatusReply(idc=self._idc, json=json.dumps(self._status()))

    async def Signals(
        self, request_iterator: AsyncIterator[peer.SignalBatch], context: Context
    ) -> peer.SignalsDone:
        signals = 0
        async for batch in request_iterator:
            signals += len(batch.signals)
            for row in batch.typing:
                self._typed(row.uids, row.typing)
            if not batch.signals:
                continue
            task = asyncio.ensure_future(self._later(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return peer.SignalsDone(signals=signals)

    async def _later(self, batch: peer.SignalBatch) -> None:
        await asyncio.sleep(_SIGNAL_WAIT_S)
        for signal in batch.signals:
            heads = vector_of(signal.heads)
            if self._behind(signal.conversation, heads):
                self._deliver(list(signal.uids), signal.conversation, heads)
