"""What operators do to users of the service, over gRPC."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from imcore.errors import ImError, Refused
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Kick = Callable[[str, str], Awaitable[None]]
log = logging.getLogger("im.users")


class UsersService(rpc.UsersServicer):
    """``kick`` is set once the IDC can: ``ImServer.kick``."""

    def __init__(self) -> None:
        self.kick: Kick | None = None

    async def Kick(self, request: peer.KickRequest, context: Context) -> peer.KickReply:
        if self.kick is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the IDC does not serve yet")
        assert self.kick is not None
        try:
            await self.kick(request.uid, request.device)
        except Refused as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except ImError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        log.warning("kicked: %s, %s", request.uid, request.device or "every device")
        return peer.KickReply()
