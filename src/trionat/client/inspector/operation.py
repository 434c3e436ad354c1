"""What one request to the inspector is: a method and a path, and what they mean."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

import attrs
import trio

from trionat.client.inspector.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive

    from trionat.client.inspector.context import Context

_T = TypeVar("_T")


@attrs.frozen
class Operation:
    """`handle` may raise a `Problem`."""

    method: str
    path: str
    handle: Callable[[Context, Request], Awaitable[Response]]


def read_number(request: Request, name: str, default: int) -> int:
    """Return a parameter of the query.

    Raises:
        Problem: it is no number.
    """
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise Problem(422, "invalid", "a whole number", name)
    return int(text)


async def read_json(request: Request) -> dict[str, Any]:
    """Return the object that a request brings; its bytes are counted before they come here.

    Raises:
        Problem: it is none.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "unsupported_media_type", "Content-Type has to be application/json")
    try:
        found = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise Problem(400, "invalid", "this is no JSON") from error
    if not isinstance(found, dict):
        raise Problem(422, "invalid", "an object is wanted")
    return cast("dict[str, Any]", found)


async def do_while_wanted(
    request: Request, work: Callable[[], _T], *, limiter: trio.CapacityLimiter
) -> _T | None:
    """Do in a thread what takes long; None: whoever asked has gone. The thread goes on then, until it is told to stop."""
    found: _T | None = None
    async with trio.open_nursery() as nursery:

        async def stop_when_gone() -> None:
            await wait_gone(request.receive)
            nursery.cancel_scope.cancel("nobody waits for it")

        nursery.start_soon(stop_when_gone, name="stop when gone")
        found = await trio.to_thread.run_sync(work, limiter=limiter, abandon_on_cancel=True)
        nursery.cancel_scope.cancel("it is done")
    return found


async def wait_gone(receive: Receive) -> None:
    """Wait until whoever asked has gone, or sends a body that nobody wants and that is too long, or does not end."""
    with suppress(Problem):
        while (await receive())["type"] != "http.disconnect":
            pass
