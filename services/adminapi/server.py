"""The listener of the admin API: who asks, whether they may, and what becomes of it.

It judges nothing that im judges: a request becomes one of the client protocol, asked by a session
of a service. Nothing is kept here, so any IDC goes on where another one was lost.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from imcore.attest import RegionKeys
from imcore.bearer import token_of
from imcore.bucket import Buckets
from imcore.errors import (
    Code,
    ImError,
    OutcomeUnknown,
    Overloaded,
    Refused,
    code_of,
    retry_after_ms,
)
from imcore.listener import Listen, Listener
from imcore.proto import client_pb2 as pb
from imcore.runtime import Clock
from imcore.servicetokens import Service, verify
from services.adminapi import actions
from services.adminapi import documents as docs
from services.adminapi.routes import ROUTES, Route
from services.https import CODES, Handler, Https, errors, whole
from services.metrics.verbs import Verbs
from services.ports import Im, Session

log = logging.getLogger("im.adminapi")
audit_log = logging.getLogger("im.audit")

BODY_BYTES_MAX = 1 << 18  # of a message of the greatest length, in base64
ANSWER_S = 15.0  # im answers within its own time-outs, which are shorter
DETAILS = web.RequestKey("details", dict[str, Any])  # what the audit log says of a request

Kick = Callable[[str, str], Awaitable[None]]
Act = Callable[[web.Request, Service], Awaitable[docs.Document]]
_T = TypeVar("_T")


class AdminApi:
    """``kick``: ``ImServer.kick``. ``stamp``: the highest HLC of this IDC, signed. ``clock``: the
    one that tokens are judged by. ``per_s``: requests of one service that are taken."""

    def __init__(
        self,
        im: Im,
        kick: Kick,
        stamp: Callable[[], pb.Stamp],
        keys: RegionKeys,
        clock: Clock,
        per_s: int,
        verbs: Verbs | None = None,
        listen: Listen = Listener,
    ) -> None:
        self._im = im
        self._kick = kick
        self._stamp = stamp
        self._keys = keys
        self._clock = clock
        self._verbs = verbs
        self._rates = Buckets(per_s, per_s)
        acts: dict[str, Act] = {
            "send": self._send,
            "recall": self._recall,
            "create_group": self._create_group,
            "change_group": self._change_group,
            "group": self._group,
            "kick": self._end,
            "users": self._users,
        }
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[errors])
        for route in ROUTES:
            handler = self._handler(route, acts[route.verb])
            app.router.add_route(route.method, route.path, handler)
        self._https = Https(app, listen)

    async def start(self, host: str, port: int, tls: ssl.SSLContext) -> int:
        """Returns the port (for 0). Raises OSError when the address is taken."""
        return await self._https.start(host, port, tls)

    async def stop(self) -> None:
        await self._https.stop()

    # ---------------------------------------------------------------------------- every one

    def _handler(self, route: Route, act: Act) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            began = self._clock.now()
            response = await errors(request, judged)
            if self._verbs is not None:
                code = CODES.get(response.status, "")
                self._verbs.done(route.verb, self._clock.now() - began, code)
            return response

        async def judged(request: web.Request) -> web.StreamResponse:
            service = self._service(request)
            try:
                service.demand(route.scope)
                if wait_s := self._rates.take(service.name, self._clock.now()):
                    wait_ms = retry_after_ms(wait_s)
                    raise Overloaded("this service asks too often", wait_ms)
                answer = await act(request, service)
            except BaseException as error:  # also when the IDC stops meanwhile
                decision, sentence = _outcome(error)
                if route.changes and decision:
                    self._audit(route, request, service, decision, sentence)
                raise
            if route.changes:
                self._audit(route, request, service, "committed", "done")
            return web.json_response(answer.model_dump(mode="json"))

        return handle

    def _service(self, request: web.Request) -> Service:
        token = token_of(request.headers.get("Authorization", ""))
        return verify(self._keys, token, self._clock.wall_ms())

    def _audit(
        self, route: Route, request: web.Request, service: Service, decision: str, sentence: str
    ) -> None:
        """Never what a message says."""
        details = request.get(DETAILS, {})
        about = next(iter(details.values()), "")
        row = {
            "at_ms": self._clock.wall_ms(),
            "decision": decision,
            "sentence": f"{route.verb} {about}: {sentence}",
            "by": f"service {service.name}",
            "as": service.uid,
            **details,
        }
        audit_log.info("%s", json.dumps(row))

    async def _ask(self, uid: str, request: pb.Request) -> pb.Response:
        """As a service, on behalf of this user. Raises ImError."""
        answer: asyncio.Future[pb.Response] = asyncio.get_running_loop().create_future()

        def reply(response: pb.Response) -> None:
            if not answer.done():
                answer.set_result(response)

        session = Session("service", uid, actions.DEVICE, 0, "", 0, service=True)
        self._im.submit(session, request, reply)
        try:
            async with asyncio.timeout(ANSWER_S):
                response = await answer
        except TimeoutError:
            raise OutcomeUnknown("there is no answer in time; ask again") from None
        if response.HasField("error"):
            raise actions.error_of(response.error)
        return response

    # --------------------------------------------------------------------------------- acts

    async def _send(self, request: web.Request, service: Service) -> docs.Document:
        header = request.headers.get("Idempotency-Key", "")
        idempotency_key = _form(docs.IDEMPOTENCY_KEY, header, "the header Idempotency-Key")
        asked = await _body(request, docs.SEND)
        request[DETAILS] = {"to": asked.to, "idempotency_key": idempotency_key}
        wanted = actions.send(service.uid, asked, idempotency_key, self._clock.wall_ms())
        return actions.sent(await self._ask(service.uid, wanted))

    async def _recall(self, request: web.Request, service: Service) -> docs.Document:
        asked = await _body(request, TypeAdapter(docs.Recall))
        request[DETAILS] = {"message": list(asked.key.model_dump().values())}
        await self._ask(service.uid, actions.recall(asked, self._stamp()))
        return docs.Done()

    async def _create_group(self, request: web.Request, service: Service) -> docs.Document:
        conversation = _group_id(request)
        asked = await _body(request, TypeAdapter(docs.CreateGroup))
        request[DETAILS] = {"conversation": conversation, **asked.model_dump()}
        await self._ask(asked.owner, actions.create(conversation, asked))
        return docs.Done()

    async def _change_group(self, request: web.Request, service: Service) -> docs.Document:
        conversation = _group_id(request)
        asked = await _body(request, TypeAdapter(docs.ChangeGroup))
        request[DETAILS] = {
            "conversation": conversation, **asked.model_dump(exclude_defaults=True)
        }  # fmt: skip
        await self._ask(service.uid, actions.change(conversation, asked))
        return docs.Done()

    async def _group(self, request: web.Request, service: Service) -> docs.Document:
        after = request.query.get("after", "")
        if after:
            _form(docs.UID, after, "after")
        wanted = actions.look(_group_id(request), after)
        return actions.group(await self._ask(service.uid, wanted))

    async def _end(self, request: web.Request, service: Service) -> docs.Document:
        uid = _form(docs.UID, request.match_info["uid"], "uid")
        asked = await _body(request, TypeAdapter(docs.Kick))
        request[DETAILS] = {"uid": uid, "device": asked.device or ""}
        await self._kick(uid, asked.device or "")
        return docs.Done()

    async def _users(self, request: web.Request, service: Service) -> docs.Document:
        uids = request.query.getall("uid", [])
        if not 1 <= len(uids) <= docs.UIDS_MAX:
            raise Refused(Code.BAD_REQUEST, f"uid: expected 1 to {docs.UIDS_MAX} of them")
        for uid in uids:
            _form(docs.UID, uid, "uid")
        wanted = pb.Request(devices=pb.Devices())
        found = [actions.user(uid, await self._ask(uid, wanted)) for uid in dict.fromkeys(uids)]
        return docs.Users(users=found)


def _outcome(error: BaseException) -> tuple[str, str]:
    """What the audit log says of a request that ended so: the decision, empty if nothing, and why.
    What is turned away unheard would let one fill the log with nothing."""
    if isinstance(error, Overloaded | ConnectionError | web.RequestPayloadError):
        return "", ""
    if isinstance(error, ImError):
        code = Code.DEADLINE if isinstance(error, OutcomeUnknown) else code_of(error)
        return "refused" if isinstance(error, Refused) else "unknown", f"{code}: {error}"
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return "refused", f"{Code.TOO_LARGE}: the body is too long"
    if isinstance(error, asyncio.CancelledError):
        return "unknown", f"{Code.UNAVAILABLE}: the IDC stopped before it was answered"
    return "unknown", f"{Code.INTERNAL}: it failed unexpectedly; the log says why"


def _group_id(request: web.Request) -> str:
    return _form(docs.GROUP_ID, request.match_info["conversation"], "the id of a group")


def _form(form: TypeAdapter[_T], text: str, what: str) -> _T:
    try:
        return form.validate_python(text)
    except ValidationError as error:
        raise Refused(Code.BAD_REQUEST, f"{what}: {_first(error)}") from None


async def _body(request: web.Request, form: TypeAdapter[_T]) -> _T:
    try:
        return form.validate_json(await whole(request))
    except ValidationError as error:
        raise Refused(Code.BAD_REQUEST, f"the body: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    """Where and what, and never what was sent."""
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
