"""The inspector's pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from trionat.client.inspector.operation import Operation
from trionat.client.inspector.problem import Problem
from trionat.transport.web_page import START

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from trionat.client.inspector.context import Context

FOLDER: Final = Path(__file__).parent / "pages"
"""Where they are."""


async def _page(context: Context, request: Request) -> Response:
    await trio.lowlevel.checkpoint()
    page = context.pages.get(request.path_params.get("name", START))
    if page is None:
        raise Problem(404, "not_found", "there is no such page")
    return page.answer(request.headers)


OPERATIONS: Final = (
    Operation("GET", "/", _page),
    Operation("GET", "/pages/{name:path}", _page),
)
