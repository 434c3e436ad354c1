"""What every request has to pass, before anybody looks what it wants: an ASGI application around another one. And what every answer has, and what becomes of a bug."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
from starlette.requests import Request

from trionat.client.inspector.problem import Problem
from trionat.log import get_logger
from trionat.transport.web_answer import GuardedAnswer
from trionat.transport.web_body import MOST_PIECES, BoundedBody
from trionat.transport.web_connection import note_known

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

    from trionat.client.inspector.access import Access

log = get_logger(__name__)

BODY_BYTES: Final = 4 * 1024 * 1024
"""Of a request that was edited."""

_BODY_PATIENCE: Final = 20.0
"""Seconds for the whole body of a request."""

_POLICY: Final = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


@attrs.frozen(eq=False)
class Guard:
    """See the module."""

    app: ASGIApp
    access: Access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        sent = GuardedAnswer(send, _POLICY)
        body = BoundedBody(
            source=receive,
            most=BODY_BYTES,
            seconds=_BODY_PATIENCE,
            too_large=_too_large,
            too_slow=_too_slow,
        )
        try:
            answer = self._answer(Request(scope)) or self.app
            await answer(scope, body.receive, sent.send)
        except Exception:
            log.exception("internal error", path=scope["path"])
            if not sent.has_begun:
                problem = Problem(500, "internal", "a bug of trionat's: the client's log has it")
                await problem.response()(scope, receive, sent.send)

    def _answer(self, request: Request) -> Response | None:
        """Return the answer to who is not to see anything; None: let it pass."""
        if (refusal := self.access.refuse(request)) is not None:
            headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else None
            problem = Problem(refusal.status, refusal.code, refusal.text, headers=headers)
            return problem.response()
        if self.access.knows(request):
            note_known(request.scope)
        return None


def _too_large() -> Problem:
    return Problem(
        413, "too_large", f"a body has at most {BODY_BYTES} bytes, in {MOST_PIECES} pieces"
    )


def _too_slow() -> Problem:
    return Problem(408, "timeout", f"the body was not there within {_BODY_PATIENCE:g} s")
