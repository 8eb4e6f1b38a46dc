"""The one place where a server judges who calls: by the name in the caller's certificate, the
table of ``imcore.roles``, and for some methods by what the request says."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, TypeAlias

import grpc

from imcore import roles
from imcore.errors import ImError
from imcore.tls import caller_name
from services.engines.registry_grpc import NOT_DONE
from services.node.around import Around, Handler

log = logging.getLogger("im.authorize")

# (name of the caller, request) -> why it is refused, in one sentence; empty: it is not.
Limit: TypeAlias = Callable[[str, Any], Awaitable[str]]


class Authorizer(Around):
    """``peers``: names of the IDCs and the witness. ``limits``: by full method name, of methods
    with one request, what else must hold for a call that the table allows."""

    def __init__(self, peers: Collection[str], limits: Mapping[str, Limit] | None = None) -> None:
        super().__init__()
        self._peers = frozenset(peers)
        self._limits = dict(limits or {})

    def around(self, method: str, inner: Handler, asks: bool, answers: bool) -> Handler:
        limit = self._limits.get(method)

        async def unary(request: Any, context: Any) -> Any:
            name = await self._check(method, context)
            if limit is not None:
                try:
                    why = await limit(name, request)
                except ImError as error:  # what is judged by cannot be read
                    await context.abort(grpc.StatusCode.UNAVAILABLE, str(error), NOT_DONE)
                if why:
                    await _refuse(context, name, why)
            return await inner(request, context)

        async def streaming(request: Any, context: Any) -> Any:
            await self._check(method, context)
            async for reply in inner(request, context):
                yield reply

        return streaming if answers else unary

    async def _check(self, method: str, context: Any) -> str:
        """The caller's name."""
        name = caller_name(context)
        if why := roles.refusal(name, method, self._peers):
            await _refuse(context, name, why)
        return name


async def _refuse(context: Any, name: str, why: str) -> None:
    log.warning("refused to %s: %s", name or "a caller without a name", why)
    await context.abort(grpc.StatusCode.PERMISSION_DENIED, why)
