"""The list as it changes: server-sent events, until the browser goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio
from starlette.responses import Response

from trionat.client.inspector.operation import Operation, wait_gone
from trionat.client.inspector.problem import Problem

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from trionat.client.inspector.context import Context
    from trionat.client.inspector.live import LiveList


@attrs.define(eq=False)
class EventStream(Response):
    """An answer that goes on until its reader leaves."""

    live: LiveList

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def tell(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.live.tell, tell, name="tell a browser")
            await wait_gone(receive)
            nursery.cancel_scope.cancel("the browser has gone")


async def _live(context: Context, _: Request) -> Response:
    await trio.lowlevel.checkpoint()
    if context.live.is_full:
        raise Problem(503, "too_many", "too many pages of the inspector are open")
    return EventStream(context.live)


OPERATIONS: Final = (Operation("GET", "/api/live", _live),)
