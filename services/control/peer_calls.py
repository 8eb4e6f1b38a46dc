"""What a controller asks of its peers, over gRPC."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import grpc

from imcore.errors import Unavailable
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.runtime import Clock

CALL_S = 1.0


class PeerCalls:
    """``Controller``'s probe and peer_facts. Both raise Unavailable."""

    def __init__(self, own: str, stubs: Mapping[str, rpc.PeerAsyncStub], clock: Clock) -> None:
        self._own = own
        self._stubs = stubs
        self._clock = clock

    async def probe(self, idc: str) -> peer.ProbeReply:
        request = peer.ProbeRequest(from_idc=self._own, wall_ms=self._clock.wall_ms())
        try:
            return await self._stubs[idc].Probe(request, timeout=CALL_S)
        except grpc.RpcError as error:
            raise Unavailable(f"{idc} does not answer a probe") from error

    async def facts(self, idc: str) -> Mapping[str, Any]:
        try:
            reply = await self._stubs[idc].Facts(peer.StatusRequest(), timeout=CALL_S)
            document: Mapping[str, Any] = json.loads(reply.json)
            return document
        except (grpc.RpcError, ValueError) as error:
            raise Unavailable(f"{idc} does not tell its status") from error
