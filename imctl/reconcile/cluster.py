"""Calls of the Kubernetes API, as the operator and the `kubernetes` target make them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
from kubernetes_asyncio.client import ApiClient, ApiException
from kubernetes_asyncio.stream import WsApiClient
from pydantic import BaseModel, ValidationError

from imcore.errors import ImError, Unavailable
from imctl.api.kinds import KINDS
from imctl.reconcile.measured import Calls

if TYPE_CHECKING:
    from imctl.reconcile.applied import Applied

T = TypeVar("T", bound=BaseModel)
Object = dict[str, Any]
CALL_S = 5.0
MANAGER = "imctl-operator"
LOOKER = "imctl-operator-look"  # of what it sees and does by asking an IDC's process
LIFTER = "imctl-operator-let-up"  # of pods that a drill had taken, where nothing else is applied
_APPLY = "application/apply-patch+yaml"
_PLURALS = {
    "ServiceAccount": "serviceaccounts",
    "ConfigMap": "configmaps",
    "Secret": "secrets",
    "Service": "services",
    "Pod": "pods",
    "Namespace": "namespaces",
    "Event": "events",
    "StatefulSet": "statefulsets",
    "Deployment": "deployments",
    "KafkaMirrorMaker2": "kafkamirrormaker2s",
    "NetworkPolicy": "networkpolicies",
    "Certificate": "certificates",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "HorizontalPodAutoscaler": "horizontalpodautoscalers",
    "Lease": "leases",
    **{kind.name: kind.plural for kind in KINDS},
}


class Conflict(ImError):
    """Somebody else has changed or made it meanwhile."""


class Rejected(ImError):
    """The API server does not take it: what is asked for is wrong, or forbidden."""


def read(model: type[T], part: Object) -> T:
    """``part``: of an object, such as its spec. Raises Rejected."""
    try:
        return model.model_validate(part)
    except ValidationError as error:
        # The schema of the CRD is made of the same model: they are of different versions.
        raise Rejected(f"the operator and the CRD differ in version: {error}") from error


class Cluster:
    """``may_write_s``: how long a write may take now; raises NotLeading when none may be sent."""

    def __init__(self, api: ApiClient, may_write_s: Callable[[], float]) -> None:
        self._api = api
        self._may_write_s = may_write_s
        self.calls = Calls()

    async def get(
        self, api: str, kind: str, namespace: str, name: str, limit_s: float = CALL_S
    ) -> Object | None:
        return await self._call("GET", _path(api, kind, namespace, name), limit_s=limit_s)

    async def serves(self, api: str) -> bool:
        """Whether the cluster knows this group and version."""
        return await self._call("GET", _root(api)) is not None

    async def knows(self, api: str, kind: str) -> bool:
        """Whether it serves this kind: of a group it may have others only."""
        found = await self._call("GET", _root(api)) or {}
        return any(each["kind"] == kind for each in found.get("resources", ()))

    async def everywhere(self, api: str, kind: str, name: str) -> list[Object]:
        """Of this name, in all namespaces."""
        query = [("fieldSelector", f"metadata.name={name}")]
        found = await self._call("GET", _path(api, kind, ""), query)
        items: list[Object] = found["items"] if found else []
        return items

    async def list(self, api: str, kind: str, namespace: str, labels: str = "") -> list[Object]:
        query = [("labelSelector", labels)] if labels else []
        found = await self._call("GET", _path(api, kind, namespace), query)
        items: list[Object] = found["items"] if found else []
        return items

    async def named(self, wanted: Object) -> Object | None:
        """What has its kind and name. By a list: to get each of those is no right of an operator,
        which has to list them all the same."""
        namespace, name = wanted["metadata"]["namespace"], wanted["metadata"]["name"]
        path = _path(wanted["apiVersion"], wanted["kind"], namespace)
        found = await self._call("GET", path, [("fieldSelector", f"metadata.name={name}")])
        items: list[Object] = found["items"] if found else []
        return items[0] if items else None

    async def apply(self, wanted: Object, status: bool = False, manager: str = MANAGER) -> Object:
        """By server-side apply: what is wanted is ours, whoever has written it meanwhile."""
        return await self._apply(wanted, "/status" if status else "", manager, [])

    async def apply_all(self, wanted: Iterable[Object], applied: Applied) -> None:
        """In this order; what stands as it was applied is not sent again. Raises Rejected for one
        whose name an object of somebody else's has."""
        for each in wanted:
            if not applied.stands(each):
                if not applied.is_ours(each) and (why := applied.saw(each, await self.named(each))):
                    raise Rejected(why)
                applied.forget(each)
                applied.took(each, await self.apply(each))

    async def rehearse(self, wanted: Object, manager: str = MANAGER) -> Object:
        """What ``apply`` would return, or raise; nothing is written."""
        return await self._apply(wanted, "", manager, [("dryRun", "All")])

    async def _apply(
        self, wanted: Object, below: str, manager: str, more: Sequence[tuple[str, str]]
    ) -> Object:
        metadata = wanted["metadata"]
        path = _path(wanted["apiVersion"], wanted["kind"], metadata["namespace"], metadata["name"])
        query = [("fieldManager", manager), ("force", "true"), *more]
        path += below
        made = await self._call("PATCH", path, query, wanted, _APPLY, self._may_write_s())
        if made is None:
            raise Conflict(f"{path}: it is gone")
        return made

    async def write(self, body: Object, limit_s: float) -> Object:
        """Make it, or replace the version that stands in it. Raises Conflict. For the lease, by
        which it is known who may write, and for Events."""
        metadata = body["metadata"]
        path = _path(body["apiVersion"], body["kind"], metadata["namespace"])
        verb = "POST"
        if "resourceVersion" in metadata:
            verb, path = "PUT", f"{path}/{metadata['name']}"
        made = await self._call(verb, path, body=body, limit_s=limit_s)
        if made is None:
            raise Conflict(f"{path}: it is gone")
        return made

    async def finalizers(self, document: Object, names: Sequence[str]) -> None:
        """Ours of this object are these, and no others."""
        await self._mark(document, LOOKER, finalizers=list(names))

    async def annotate(self, document: Object, annotations: dict[str, str]) -> None:
        """Our annotations of this object are these, and no others. Raises Conflict when it is gone,
        or another has its name."""
        await self._mark(document, MANAGER, annotations=annotations)

    async def _mark(self, document: Object, manager: str, **marks: Any) -> None:
        metadata = {name: document["metadata"][name] for name in ("name", "namespace", "uid")}
        head = {name: document[name] for name in ("apiVersion", "kind")}
        await self.apply({**head, "metadata": {**metadata, **marks}}, manager=manager)

    async def create(self, body: Object) -> None:
        """Raises Conflict when there is one of this name."""
        await self.write(body, self._may_write_s())

    async def event(self, body: Object) -> None:
        await self.write(body, self._may_write_s())

    async def delete(
        self, api: str, kind: str, namespace: str, name: str, at_once: bool = False
    ) -> None:
        """``at_once``: a pod is not asked to end, nor waited for."""
        path = _path(api, kind, namespace, name)
        query = [("gracePeriodSeconds", "0")] if at_once else []
        await self._call("DELETE", path, query, limit_s=self._may_write_s())

    async def execute(self, namespace: str, pod: str, command: Sequence[str]) -> str:
        """What a command prints in the pod's only container; empty when there is no such pod."""
        path = _path("v1", "Pod", namespace, pod) + "/exec"
        query = [("stdout", "true"), ("stderr", "true"), *(("command", each) for each in command)]
        with self._counted("GET", path):
            return await self._executed(path, query, pod)

    async def _executed(self, path: str, query: Sequence[tuple[str, str]], pod: str) -> str:
        try:
            async with (
                asyncio.timeout(min(self._may_write_s(), CALL_S)),
                WsApiClient(self._api.configuration) as api,
            ):
                answer = await api.call_api(
                    path, "GET", {}, query, {"Accept": "*/*"}, auth_settings=["BearerToken"],
                    response_types_map={200: "str"}, _return_http_data_only=True,
                )  # fmt: skip
        except TimeoutError:
            raise Unavailable(f"the API server does not answer (exec in {pod})") from None
        except aiohttp.WSServerHandshakeError as error:
            if error.status == 404:
                return ""
            raise Rejected(f"exec in {pod}: {error.status}: {error.message}") from error
        except aiohttp.ClientError as error:
            raise Unavailable(f"the API server is not reached: {error}") from error
        return str(answer or "")

    async def log(self, namespace: str, pod: str) -> str:
        """Empty when there is none."""
        return await self._text("GET", _path("v1", "Pod", namespace, pod) + "/log") or ""

    async def _call(
        self,
        verb: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        body: Object | None = None,
        content: str = "application/json",
        limit_s: float = CALL_S,
    ) -> Object | None:
        """None for what is not there. Raises Unavailable, Conflict, Rejected."""
        text = await self._text(verb, path, query, body, content, limit_s)
        if text is None:
            return None
        found: Object = json.loads(text)
        return found

    async def _text(
        self,
        verb: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        body: Object | None = None,
        content: str = "application/json",
        limit_s: float = CALL_S,
    ) -> str | None:
        with self._counted(verb, path):
            return await self._answered(verb, path, query, body, content, limit_s)

    @contextlib.contextmanager
    def _counted(self, verb: str, path: str) -> Iterator[None]:
        began, reason = time.monotonic(), ""
        try:
            yield
        except Exception as error:
            reason = reason_of(error)
            raise
        finally:
            self.calls.done(verb, path, time.monotonic() - began, reason)

    async def _answered(
        self,
        verb: str,
        path: str,
        query: Sequence[tuple[str, str]],
        body: Object | None,
        content: str,
        limit_s: float,
    ) -> str | None:
        headers = {"Accept": "application/json, */*", "Content-Type": content}
        try:
            async with asyncio.timeout(min(limit_s, CALL_S)):
                answer = await self._api.call_api(
                    path, verb, {}, list(query), headers, body=body,
                    auth_settings=["BearerToken"], _preload_content=False,
                    _return_http_data_only=True, _request_timeout=CALL_S,
                )  # fmt: skip
                text: str = await answer.text()
        except TimeoutError:
            raise Unavailable(f"the API server does not answer ({verb} {path})") from None
        except aiohttp.ClientError as error:
            raise Unavailable(f"the API server is not reached: {error}") from error
        except ApiException as error:
            status, text = error.status, str(error.body or "")
        else:
            status = answer.status
        if status == 404:
            return None
        if status >= 300:
            raise _refusal(status, text, f"{verb} {path}")
        return text


def reason_of(error: Exception) -> str:
    """Why something failed, in a word."""
    reasons = {Conflict: "conflict", Rejected: "rejected", Unavailable: "unavailable"}
    found = [word for kind, word in reasons.items() if isinstance(error, kind)]
    return found[0] if found else ("other" if isinstance(error, ImError) else "unexpected")


def _refusal(status: int, text: str, call: str) -> ImError:
    try:
        message = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        message = text[:200] or f"status {status}"
    if status == 409:
        return Conflict(f"{call}: {message}")
    if status == 429 or status >= 500:
        return Unavailable(f"{call}: {message}")
    return Rejected(f"{call}: {message}")


def _root(api: str) -> str:
    return f"/apis/{api}" if "/" in api else f"/api/{api}"


def _path(api: str, kind: str, namespace: str, name: str = "") -> str:
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"{_root(api)}{where}/{_PLURALS[kind]}" + (f"/{name}" if name else "")
