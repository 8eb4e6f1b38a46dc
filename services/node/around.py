"""What is put around the calls that a server takes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

Handler = Callable[..., Any]

_MAKE: dict[tuple[bool, bool], Callable[..., grpc.RpcMethodHandler[Any, Any]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class Around(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # not generic at run time
    """Made once for each method."""

    def __init__(self) -> None:
        self._made: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def around(self, method: str, inner: Handler, asks: bool, answers: bool) -> Handler:
        """``asks``, ``answers``: whether requests and replies of this method are streams."""
        raise NotImplementedError

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]
        ],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        method = str(details.method)
        if (known := self._made.get(method)) is not None:
            return known
        handler = await continuation(details)
        if handler is None:
            return handler
        inner: Any = (
            handler.unary_unary or handler.unary_stream
            or handler.stream_unary or handler.stream_stream
        )  # fmt: skip
        form = handler.request_streaming, handler.response_streaming
        self._made[method] = _MAKE[form](
            self.around(method, inner, *form),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return self._made[method]
