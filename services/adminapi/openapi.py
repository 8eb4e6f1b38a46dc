"""The OpenAPI document of the admin API, made of its table of routes and its forms. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from services.adminapi import documents as docs
from services.adminapi.routes import ROUTES, Route

_REF = "#/components/schemas/{model}"
_REFUSALS = (400, 401, 403, 404, 409, 413, 429, 500, 503, 504)


def text() -> str:
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def document() -> dict[str, Any]:
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    _, error = models_json_schema([(docs.Error, "serialization")], ref_template=_REF)
    schemas |= error["$defs"]
    answer = {"description": "Refused, or not possible now", **_json("Error")}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Admin API",
            "version": "1",
            "description": "What the operator's own servers do on behalf of the product, in any "
            "IDC (docs/admin-api.md).",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A service's token, `imctl service-token NAME UID`",
                }
            },
            "responses": {"Error": answer},
            "schemas": dict(sorted(schemas.items())),
        },
    }


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    answer = route.answer.model_json_schema(ref_template=_REF, mode="serialization")
    schemas |= answer.pop("$defs", {})
    schemas[route.answer.__name__] = answer
    operation: dict[str, Any] = {
        "operationId": route.verb,
        "summary": route.summary,
        "description": f"Needs the scope `{route.scope}`.",
        "parameters": _parameters(route),
        "responses": {
            "200": {"description": "Done", **_json(route.answer.__name__)},
            **{str(status): {"$ref": "#/components/responses/Error"} for status in _REFUSALS},
        },
    }
    if route.body is not None:
        asked = TypeAdapter[Any](route.body).json_schema(ref_template=_REF)
        schemas |= asked.pop("$defs", {})
        content = {"application/json": {"schema": asked}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _json(name: str) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=name)}
    return {"content": {"application/json": {"schema": schema}}}


def _parameters(route: Route) -> list[dict[str, Any]]:
    forms = {"conversation": docs.GROUP_ID, "uid": docs.UID}
    found = [
        {"name": name, "in": "path", "required": True, "schema": forms[name].json_schema()}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    if route.verb == "send":
        schema = docs.IDEMPOTENCY_KEY.json_schema()
        found.append(
            {"name": "Idempotency-Key", "in": "header", "required": True, "schema": schema}
        )
    if route.verb == "group":
        schema = docs.UID.json_schema()
        told = "Members behind this one"
        found.append({"name": "after", "in": "query", "schema": schema, "description": told})
    if route.verb == "users":
        schema = {
            "type": "array", "minItems": 1, "maxItems": docs.UIDS_MAX,
            "items": docs.UID.json_schema(),
        }  # fmt: skip
        found.append({"name": "uid", "in": "query", "required": True, "schema": schema})
    return found
