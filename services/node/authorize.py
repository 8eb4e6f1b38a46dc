"""The one place where a server judges who calls: by the name in the caller's certificate, the
table of ``imcore.roles``, and for some methods by what the request says."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, TypeAlias

import grpc

from imcore import roles
from imcore.tls import caller_name

log = logging.getLogger("im.authorize")

Handler = Callable[..., Any]
# (name of the caller, request) -> why it is refused, in one sentence; empty: it is not.
Limit: TypeAlias = Callable[[str, Any], Awaitable[str]]


class Authorizer(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # not generic at run time
    """``peers``: names of the IDCs and the witness. ``limits``: by full method name, of methods
    with one request, what else must hold for a call that the table allows."""

    def __init__(self, peers: Collection[str], limits: Mapping[str, Limit] | None = None) -> None:
        self._peers = frozenset(peers)
        self._limits = dict(limits or {})
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
        guarded = _guarded(handler, self._peers, method, self._limits.get(method))
        self._guarded[method] = guarded
        return guarded


def _guarded(
    handler: grpc.RpcMethodHandler[Any, Any],
    peers: frozenset[str],
    method: str,
    limit: Limit | None,
) -> grpc.RpcMethodHandler[Any, Any]:
    async def refuse(context: Any, name: str, why: str) -> None:
        log.warning("refused to %s: %s", name or "a caller without a name", why)
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, why)

    async def check(context: Any) -> str:
        """The caller's name."""
        name = caller_name(context)
        if why := roles.refusal(name, method, peers):
            await refuse(context, name, why)
        return name

    def unary(inner: Handler) -> Handler:
        async def call(request: Any, context: Any) -> Any:
            name = await check(context)
            if limit is not None and (why := await limit(name, request)):
                await refuse(context, name, why)
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
