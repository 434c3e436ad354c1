"""The routes of the inspector: those of its pages, and of what they ask for. All paths under `/api` are for these pages only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
from starlette.requests import Request
from starlette.routing import Route, Router

from trionat.client.inspector import site
from trionat.client.inspector.api import har, http, live, replay, search, visitors, websocket
from trionat.client.inspector.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Receive, Scope, Send

    from trionat.client.inspector.context import Context
    from trionat.client.inspector.operation import Operation

_OPERATIONS: Final[tuple[Operation, ...]] = (
    *site.OPERATIONS,
    *visitors.OPERATIONS,
    *http.OPERATIONS,
    *websocket.OPERATIONS,
    *replay.OPERATIONS,
    *search.OPERATIONS,
    *har.OPERATIONS,
    *live.OPERATIONS,
)


def make_application(context: Context) -> ASGIApp:
    """Return all routes."""
    paths: dict[str, dict[str, Operation]] = {}
    for operation in _OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = operation
    routes = [Route(path, Resource(context, found)) for path, found in paths.items()]
    return Router(routes, redirect_slashes=False, default=_not_found)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await Problem(404, "not_found", "there is nothing here").response()(scope, receive, send)


@attrs.frozen(eq=False)
class Resource:
    """What is at one path: an ASGI application that has an operation for each method."""

    context: Context
    operations: Mapping[str, Operation]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        request = Request(scope, receive)
        operation = self.operations.get("GET" if request.method == "HEAD" else request.method)
        try:
            if operation is None:
                allowed = ", ".join(self.operations)
                raise Problem(
                    405,
                    "method_not_allowed",
                    f"this path knows {allowed} only",
                    headers={"Allow": allowed},
                )
            response = await operation.handle(self.context, request)
        except Problem as problem:
            response = problem.response()
        await response(scope, receive, send)
