"""A webhook: when a Region is applied that `imctl validate` refuses, or a Drill or DrillRun that
`imctl drill validate` does, it is refused in their words.

What schemas and rules of the CRD can say is said by the API server before it asks here. Every
operator answers, whether it holds the lease or not: it only judges.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from imcore.errors import BadInput
from imctl.api.drills import DrillRunSpec, DrillSpec
from imctl.api.kinds import DRILL, DRILL_RUN, REGION
from imctl.reconcile.decide import judge_region
from imctl.reconcile.drillrun import text_of
from imctl.reconcile.objects import CERTIFICATE, KEY
from imctl.reconcile.observed import Object
from imctl.reconcile.scheduled import problems_of

log = logging.getLogger("im.operator")

PATH = "/validate"
RELOAD_S = 60.0  # a Secret that is mounted changes under the process when it is renewed
REVIEW_BYTES = 8 * 2**20  # old and new object; the API server takes 3 MiB of each at most
INVALID = 422


def answer(review: Object) -> Object:
    """An AdmissionReview with its response. Raises KeyError, TypeError for what is none."""
    request = review["request"]
    problems = _problems(request) if request["kind"]["kind"] in _JUDGES else []
    response: Object = {"uid": request["uid"], "allowed": not problems}
    if problems:
        response["status"] = {"code": INVALID, "message": "; ".join(problems)}
    return {"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}


def _problems(request: Object) -> list[str]:
    new, old = request.get("object"), request.get("oldObject")
    if new is None:
        return []
    # One that was wrong before can be labelled, and can go.
    if old is not None and (old["spec"] == new["spec"] or "deletionTimestamp" in new["metadata"]):
        return []
    return _JUDGES[request["kind"]["kind"]](new["metadata"].get("name", ""), new["spec"])


_JUDGES: dict[str, Callable[[str, Object], list[str]]] = {
    REGION.name: lambda name, spec: judge_region(name, spec)[1],
    DRILL_RUN.name: lambda name, spec: text_of(DrillRunSpec.model_validate(spec), name)[1],
    DRILL.name: lambda name, spec: problems_of(DrillSpec.model_validate(spec), name),
}


async def _validate(request: web.Request) -> web.Response:
    try:
        # In a thread: for a drill the Chaos Toolkit is loaded.
        return web.json_response(await asyncio.to_thread(answer, await request.json()))
    except (ValueError, KeyError, TypeError) as error:
        raise web.HTTPBadRequest(text=f"expected an AdmissionReview, got {error!r}") from error


@asynccontextmanager
async def serving(host: str, port: int, folder: Path) -> AsyncIterator[None]:
    """``folder``: with `tls.crt` and `tls.key`. Raises BadInput without them, or when the address
    is taken."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    except (OSError, ssl.SSLError) as error:
        raise BadInput(f"{folder}: expected {CERTIFICATE} and {KEY}, got {error}") from error
    app = web.Application(client_max_size=REVIEW_BYTES)
    app.router.add_post(PATH, _validate)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=context).start()
    except OSError as error:
        await runner.cleanup()
        raise BadInput(f"{host}:{port}: expected a free address, got {error}") from error
    reloading = asyncio.create_task(_reload(context, folder))
    try:
        yield
    finally:
        reloading.cancel()
        await runner.cleanup()


async def _reload(context: ssl.SSLContext, folder: Path) -> None:
    """For new connections."""
    while True:
        await asyncio.sleep(RELOAD_S)
        try:
            context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
        except (OSError, ssl.SSLError) as error:  # half of it is new: the next time
            log.warning("the webhook's certificate is not taken: %s", error)
