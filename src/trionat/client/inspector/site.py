"""The inspector's pages: files that come with the package."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from trionat.client.inspector.operation import Operation
from trionat.client.inspector.problem import Problem

if TYPE_CHECKING:
    from starlette.requests import Request

    from trionat.client.inspector.context import Context

PAGES: Final = Path(__file__).parent / "pages"
_KINDS: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


async def _page(context: Context, request: Request) -> Response:
    return await _send_file(context, "index.html", request)


async def _file(context: Context, request: Request) -> Response:
    return await _send_file(context, request.path_params["name"], request)


async def _send_file(context: Context, name: str, request: Request) -> Response:
    known = await context.in_thread(lambda: {each.name for each in PAGES.iterdir()})
    suffix = Path(name).suffix
    if name not in known or suffix not in _KINDS:
        raise Problem(404, "not_found", "there is no such page")
    content = await context.in_thread((PAGES / name).read_bytes)
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers={**headers, "Content-Type": _KINDS[suffix]})


OPERATIONS: Final = (
    Operation("GET", "/", _page),
    Operation("GET", "/pages/{name}", _file),
)
