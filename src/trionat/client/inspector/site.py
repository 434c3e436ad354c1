"""The inspector's pages: files that come with the package. They are read once, so no path of a request ever becomes one of a file."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio
from starlette.responses import Response

from trionat.client.inspector.operation import Operation
from trionat.client.inspector.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from trionat.client.inspector.context import Context

PAGES: Final = Path(__file__).parent / "pages"
_START: Final = "index.html"
_KINDS: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""What else lies there is not for browsers."""


@attrs.frozen(eq=False)
class PageFile:
    """One file. A browser asks each time whether it has changed, so a new version of the client never meets old pages."""

    content: bytes
    media_type: str
    etag: str


def read_pages() -> Mapping[str, PageFile]:
    """Read all of them; return them by their paths below `pages`. Blocks."""
    found: dict[str, PageFile] = {}
    for file in sorted(PAGES.rglob("*")):
        if (media_type := _KINDS.get(file.suffix)) is not None:
            content = file.read_bytes()
            etag = f'"{sha256(content).hexdigest()[:32]}"'
            found[file.relative_to(PAGES).as_posix()] = PageFile(content, media_type, etag)
    return found


async def _page(context: Context, request: Request) -> Response:
    await trio.lowlevel.checkpoint()
    page = context.pages.get(request.path_params.get("name", _START))
    if page is None:
        raise Problem(404, "not_found", "there is no such page")
    headers = {"ETag": page.etag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == page.etag:
        return Response(status_code=304, headers=headers)
    return Response(page.content, headers={**headers, "Content-Type": page.media_type})


OPERATIONS: Final = (
    Operation("GET", "/", _page),
    Operation("GET", "/pages/{name:path}", _page),
)
