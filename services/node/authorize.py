"""Who may call which gRPC service, by the name in the caller's certificate."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc

from imcore.tls import caller_name

log = logging.getLogger("im.authorize")

Handler = Callable[..., Any]


class Authorizer(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # not generic at run time
    """``allowed``: gRPC service name -> names of callers. What is not listed is refused."""

    def __init__(self, allowed: Mapping[str, frozenset[str]]) -> None:
        self._allowed = allowed
        self._guarded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}  # by method

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]
        ],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        method = str(details.method)
        known = self._guarded.get(method)
        if known is not None:
            return known
        handler = await continuation(details)
        if handler is None:
            return handler
        service = method.split("/")[1].rpartition(".")[2]
        guarded = _guarded(handler, self._allowed.get(service, frozenset()), method)
        self._guarded[method] = guarded
        return guarded


def _guarded(
    handler: grpc.RpcMethodHandler[Any, Any], names: frozenset[str], method: str
) -> grpc.RpcMethodHandler[Any, Any]:
    async def check(context: Any) -> None:
        name = caller_name(context)
        if name not in names:
            log.warning("refused %s to %s", method, name or "a caller without a name")
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED, f"{name or 'nobody'} may not call {method}"
            )

    def unary(inner: Handler) -> Handler:
        async def call(request: Any, context: Any) -> Any:
            await check(context)
            return await inner(request, context)

        return call

    def streaming(inner: Handler) -> Handler:
        async def call(request: Any, context: Any) -> Any:
            await check(context)
            async for reply in inner(request, context):
                yield reply

        return call

    serializers = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(unary(handler.unary_unary), **serializers)
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(streaming(handler.unary_stream), **serializers)
    if handler.stream_unary:
        return grpc.stream_unary_rpc_method_handler(unary(handler.stream_unary), **serializers)
    assert handler.stream_stream is not None
    return grpc.stream_stream_rpc_method_handler(streaming(handler.stream_stream), **serializers)
