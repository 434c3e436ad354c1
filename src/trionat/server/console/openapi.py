"""The document of the API (OpenAPI 3.1), made of its operations."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import trio
from starlette.responses import Response

from trionat.protocol.fields import to_json
from trionat.server.console.authentication import COOKIE, CSRF_HEADER
from trionat.server.console.operation import Call, Nothing, Operation
from trionat.server.console.principal import Permission
from trionat.server.console.problem import MEDIA_TYPE, SCHEMA
from trionat.server.console.shape import object_schema, parameters_of, schema_of
from trionat.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

_IN_PATH: Final = re.compile(r"\{(\w+)(:\w+)?\}")
_INTRODUCTION: Final = (
    "Times are ISO 8601 in UTC, amounts are in bytes, rates in bytes per second. A list has `items`, and in `next` what to say as `after` for the rest."
    " What goes wrong is told as problem+json, with a stable word in `code`."
)


def with_document(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """Return the operations, and one that tells of all of them."""

    @cache
    def text() -> bytes:
        return to_json(document(everything))

    async def tell(_: Call[Nothing, Nothing]) -> Response:
        await trio.lowlevel.checkpoint()
        return Response(text(), media_type="application/json")

    own = Operation(
        method="GET",
        path="/openapi.json",
        name="get_document",
        summary="This document",
        permission=Permission.OPEN,
        answer=Any,
        handle=tell,
    )
    everything = (*operations, own)
    return everything


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """Return the document."""
    schemas: dict[str, Any] = {"Problem": dict(SCHEMA)}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = _IN_PATH.sub(r"{\1}", operation.whole_path)
        paths.setdefault(path, {})[operation.method.lower()] = _describe(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "trionat",
            "version": VERSION,
            "description": _INTRODUCTION,
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE},
                "csrf": {
                    "type": "apiKey",
                    "in": "header",
                    "name": CSRF_HEADER,
                    "description": "goes with the cookie, also to read: what the answer to the login says as csrf",
                },
            },
        },
    }


def _describe(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    in_path = {name for name, _ in _IN_PATH.findall(operation.path)}
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "security": [{"token": []}, {"cookie": [], "csrf": []}] if operation.needs_login else [],
        "parameters": [
            {
                "name": each["name"],
                "in": "path" if each["name"] in in_path else "query",
                "required": each["required"] or each["name"] in in_path,
                "schema": each["schema"],
                **({"description": each["about"]} if each["about"] else {}),
            }
            for each in parameters_of(operation.parameters, schemas)
        ],
        "responses": {
            **{
                str(status): _success(operation, schemas)
                for status in (operation.status, *operation.other_statuses)
            },
            "default": {
                "description": "It is not done, and why",
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            },
        },
    }
    if operation.is_for_admins:
        described["description"] = "For administrators."
    if operation.body is not None:
        schema = object_schema(operation.body, schemas)
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return described


def _success(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    if operation.answer is None:
        return {"description": "Done"}
    schema = schema_of(operation.answer, schemas)
    return {"description": "Done", "content": {operation.media_type: {"schema": schema}}}
