"""The console's pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
from starlette.datastructures import Headers
from starlette.routing import Route

from trionat.server.console.problem import Code, Problem
from trionat.transport.web_page import START, read_pages

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from trionat.transport.web_page import WebPage

FOLDER: Final = Path(__file__).parent / "pages"
"""Where they are."""


@attrs.frozen(eq=False)
class _PageRoute:
    """One file, as an ASGI application."""

    page: WebPage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._answer(scope)(scope, receive, send)

    def _answer(self, scope: Scope) -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            problem = Problem(
                Code.METHOD_NOT_ALLOWED,
                "this path knows GET, HEAD only",
                headers={"Allow": "GET, HEAD"},
            )
            return problem.response()
        return self.page.answer(Headers(scope=scope))


def page_routes() -> list[Route]:
    """Read all of them, and return their routes. Blocks."""
    return [
        Route("/" if name == START else f"/{name}", _PageRoute(page))
        for name, page in read_pages(FOLDER).items()
    ]
