"""The routes of the console: those of the API are made of its operations."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import attrs
import trio
from starlette.requests import Request
from starlette.routing import Route, Router

from trionat.errors import StoreError, StoreUnavailableError
from trionat.log import get_logger
from trionat.server.console import openapi
from trionat.server.console.api import (
    bans,
    certificates,
    configuration,
    events,
    live,
    log,
    login,
    metrics,
    names,
    nodes,
    points,
    queue,
    server,
    sessions,
    status,
    tickets,
    tokens,
    traffic,
    users,
    visitors,
)
from trionat.server.console.authentication import identify
from trionat.server.console.context import Change
from trionat.server.console.operation import NOTHING, Call, Operation, Reply, respond
from trionat.server.console.principal import Permission
from trionat.server.console.problem import Code, Problem
from trionat.server.console.shape import read, without_secrets
from trionat.transport.web_connection import note_known

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.responses import Response
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Receive, Scope, Send

    from trionat.server.console.context import Context
    from trionat.server.console.principal import Principal

_log = get_logger(__name__)

OPERATIONS: Final[tuple[Operation, ...]] = (
    *login.OPERATIONS,
    *server.OPERATIONS,
    *live.OPERATIONS,
    *sessions.OPERATIONS,
    *visitors.OPERATIONS,
    *queue.OPERATIONS,
    *points.OPERATIONS,
    *status.OPERATIONS,
    *users.OPERATIONS,
    *tickets.OPERATIONS,
    *tokens.OPERATIONS,
    *traffic.OPERATIONS,
    *names.OPERATIONS,
    *bans.OPERATIONS,
    *certificates.OPERATIONS,
    *nodes.OPERATIONS,
    *configuration.OPERATIONS,
    *log.OPERATIONS,
    *events.OPERATIONS,
)
"""All of them, in the order of the document."""

_PATIENCE: Final = 30.0
"""Seconds for an operation: longer than all that it asks takes by itself."""


def make_application(context: Context, routes: Sequence[BaseRoute] = ()) -> ASGIApp:
    """Return all routes: those of the operations, the document's, and others'."""
    operations = openapi.with_document((*OPERATIONS, metrics.operation(context.config)))
    paths: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        paths.setdefault(operation.whole_path, {})[operation.method] = operation
    resources = [Route(path, Resource(context, found)) for path, found in paths.items()]
    return Router([*resources, *routes], redirect_slashes=False, default=_not_found)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    problem = Problem(Code.NOT_FOUND, "there is nothing at this path")
    await problem.response()(scope, receive, send)


@attrs.frozen(eq=False)
class Resource:
    """What is at one path: an ASGI application that has an operation for each method."""

    context: Context
    operations: Mapping[str, Operation]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        try:
            with trio.fail_after(_PATIENCE):
                response = await self._answer(Request(scope, receive))
        except Problem as problem:
            response = problem.response()
        except trio.TooSlowError:
            slow = Problem(Code.UNAVAILABLE, f"it has taken more than {_PATIENCE:g} s")
            response = slow.response()
        except StoreUnavailableError as error:
            _log.info("the console could not ask the store", error=str(error))
            away = Problem(Code.STORE_UNAVAILABLE, "the accounts cannot be asked for now")
            response = away.response()
        except StoreError as error:
            response = Problem(Code.CONFLICT, str(error)).response()
        await response(scope, receive, send)

    def _find(self, method: str) -> Operation | None:
        """Return what a method does. HEAD is for what load balancers and monitors look at; the body is left out of its answer on the way."""
        if method == "HEAD":
            operation = self.operations.get("GET")
            return operation if operation is not None and operation.is_outside else None
        return self.operations.get(method)

    async def _answer(self, request: Request) -> Response:
        context, operation = self.context, self._find(request.method)
        if operation is None:
            allowed = ", ".join(self.operations if self._find("HEAD") is None else ("GET", "HEAD"))
            raise Problem(
                Code.METHOD_NOT_ALLOWED,
                f"this path knows {allowed} only",
                headers={"Allow": allowed},
            )
        host = request.client.host if request.client is not None else ""
        call: Call[Any, Any] = Call(
            context=context,
            host=host,
            headers=request.headers,
            parameters=NOTHING,
            body=NOTHING,
            still_may=partial(_still_may, context, request, host, None),
        )
        if operation.needs_login:
            principal = await identify(context, request, host)
            note_known(request.scope)
            operation.check(principal)
            _check_rate(context, operation, principal)
            still_may = partial(_still_may, context, request, host, principal)
            call = attrs.evolve(call, principal=principal, still_may=still_may)
        given = _parameters(request)
        call = attrs.evolve(call, parameters=read(operation.parameters, given, texts=True))
        if operation.body is not None:
            sent = await _json_of(request)
            told = without_secrets(operation.body, sent)
            call = attrs.evolve(call, body=read(operation.body, sent), sent=told)
        if operation.permission is Permission.MANAGE:
            said = await _manage(call, operation, given)
        else:
            said = await operation.handle(call)
        return await respond(operation, said, context.scribe)


def _check_rate(context: Context, operation: Operation, principal: Principal) -> None:
    """Check that somebody may change something by now. Administrators may at any time: what they do is theirs to answer for.

    Raises:
        Problem: not yet.
    """
    if operation.permission is not Permission.MANAGE or principal.is_admin:
        return
    wait = context.changes.take(principal.account_id)
    if wait:
        raise Problem(
            Code.RATE_LIMITED,
            "this account has changed too much in a short time",
            headers={"Retry-After": str(math.ceil(wait))},
        )


async def _manage(call: Call[Any, Any], operation: Operation, given: Mapping[str, str]) -> Any:
    """Do what is told to the audit: also where it fails in the middle, and not where it is refused, or all was so before."""
    change = Change(
        principal=call.principal,
        host=call.host,
        operation=operation,
        parameters=given,
        sent=call.sent,
        also=call.also,
    )
    try:
        said = await operation.handle(call)
    except BaseException as error:
        is_refused = isinstance(error, (Problem, StoreError))
        if not is_refused or isinstance(error, StoreUnavailableError):
            _note(call.context, attrs.evolve(change, unfinished=True))
        raise
    if not isinstance(said, Reply) or said.changed:
        _note(call.context, change)
    return said


def _note(context: Context, change: Change) -> None:
    """Have what was changed seen at once, and written down."""
    context.sampler.forget()
    context.directory.forget()
    context.on_change(change)


async def _still_may(
    context: Context, request: Request, host: str, principal: Principal | None
) -> bool:
    """Tell whether who has asked is the same as then. One who has got other rights may ask anew; a store that is away ends nothing."""
    try:
        return principal == await identify(context, request, host, counts=False)
    except Problem:
        return False
    except StoreUnavailableError:
        return True


def _parameters(request: Request) -> dict[str, str]:
    found = dict(request.path_params)
    for name, value in request.query_params.multi_items():
        if name in found:
            raise Problem(Code.INVALID, f"{name} is there twice", field=name)
        found[name] = value
    return found


async def _json_of(request: Request) -> dict[str, Any]:
    """Return the JSON object that came in; its bytes are counted before they come here."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(
            Code.UNSUPPORTED_MEDIA_TYPE, "the body has to be JSON (Content-Type: application/json)"
        )
    try:
        values = json.loads(await request.body(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise Problem(Code.NO_JSON, "the body is not JSON") from None
    if not isinstance(values, dict):
        raise Problem(Code.INVALID, "the body is not a JSON object")
    return cast("dict[str, Any]", values)


def _refuse(word: str) -> Any:
    raise ValueError(word)
