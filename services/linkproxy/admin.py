"""The link proxy's fault API: gRPC over mutual TLS, off without --faults. Who may call what is the
server's interceptor's (``services.node.authorize``)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any, NoReturn

import grpc
import grpc.aio

from imcore.errors import Refused
from imcore.proto import peer_pb2 as pb
from imcore.proto import peer_pb2_grpc as rpc
from services.linkproxy.model import LinkSpec, Mode
from services.linkproxy.proxy import Fault, LinkProxy

log = logging.getLogger("im.linkproxy")

Context = grpc.aio.ServicerContext[Any, Any]


class AdminService(rpc.AdminServicer):
    """Status and link faults; a link proxy has no state to hash."""

    def __init__(self, proxy: LinkProxy, faults: bool, shutdown: Callable[[], None]) -> None:
        self._proxy = proxy
        self._faults = faults
        self._shutdown = shutdown

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:
        document = {"links": self._proxy.links(), "faults": self._faults}
        return pb.StatusReply(idc="linkproxy", json=json.dumps(document))

    async def Fault(self, request: pb.FaultRequest, context: Context) -> pb.FaultReply:
        if not self._faults:
            await _fail(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                "the link proxy was started without --faults",
            )
        try:
            sentence = self._proxy.apply(fault_of(request))
        except (Refused, ValueError) as error:
            await _fail(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        log.warning("Fault: %s.", sentence)
        return pb.FaultReply(sentence=sentence)

    async def StateHash(self, request: pb.StateHashRequest, context: Context) -> pb.StateHashReply:
        await _fail(context, grpc.StatusCode.UNIMPLEMENTED, "a link proxy holds no state")

    async def Shutdown(self, request: pb.ShutdownRequest, context: Context) -> pb.ShutdownReply:
        self._shutdown()
        return pb.ShutdownReply()


async def _fail(context: Context, code: grpc.StatusCode, sentence: str) -> NoReturn:
    await context.abort(code, sentence)
    raise AssertionError("abort always raises")


def fault_of(request: pb.FaultRequest) -> Fault:
    """Raises ValueError for what is no link fault."""
    if request.WhichOneof("fault") != "link":
        raise ValueError("a link proxy takes link faults only")
    link = request.link
    if link.mode not in set(Mode):
        raise ValueError(f"expected the mode pass, drop or reject, got {link.mode!r}")
    if not 0 <= link.loss < 0.5:
        raise ValueError(f"expected a loss of at least 0 and below 0.5, got {link.loss:g}")
    spec = None
    if link.delay_ms or link.jitter_ms or link.loss or link.rate_kbit:
        rate_kbit = link.rate_kbit or LinkSpec().rate_kbit
        spec = LinkSpec(link.delay_ms, link.jitter_ms, link.loss, rate_kbit)
    return Fault(link.from_idc, link.to_idc, Mode(link.mode), link.both_ways, spec)
