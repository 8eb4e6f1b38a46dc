"""What a server answers when it cannot tell whether a call is allowed."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from imcore.errors import Unavailable
from services.engines.registry_grpc import NOT_DONE
from services.node import authorize
from services.node.authorize import Authorizer


class Aborted(Exception):
    pass


class Context:
    async def abort(self, *said: Any) -> None:
        self.said = said
        raise Aborted


async def test_what_cannot_be_judged_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authorize, "caller_name", lambda context: "iad")

    async def limit(name: str, request: Any) -> str:
        raise Unavailable("the own registry cannot be read")

    async def inner(request: Any, context: Any) -> Any:
        raise AssertionError("it was let through")

    method = "/im.v1.Registry/CompareAndSwap"
    call: Any = Authorizer(["fra", "iad"], {method: limit}).around(method, inner, False, False)
    context = Context()
    with pytest.raises(Aborted):
        await call(None, context)
    unavailable = grpc.StatusCode.UNAVAILABLE
    assert context.said == (unavailable, "the own registry cannot be read", NOT_DONE)
