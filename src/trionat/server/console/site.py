"""The console's pages: files that come with the package. They are read once, so no path of a request ever becomes one of a file."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import Route

from trionat.server.console.problem import Code, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Receive, Scope, Send

FOLDER: Final = Path(__file__).parent / "pages"
"""Where they are."""

_START: Final = "index.html"

_MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".LICENSE": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""What else lies there is not for browsers."""


@attrs.frozen(eq=False)
class PageFile:
    """One file: an ASGI application. A browser asks each time whether it has changed, so a new version of the server never meets old pages."""

    content: bytes
    media_type: str
    etag: str

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
        headers = {"Cache-Control": "no-cache", "ETag": self.etag}
        known = Headers(scope=scope).get("if-none-match", "")
        if self.etag in (each.strip().removeprefix("W/") for each in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def page_routes() -> list[Route]:
    """Read all of them, and return their routes. Blocks."""
    return [Route(path, page) for path, page in _read()]


def _read() -> Iterator[tuple[str, PageFile]]:
    for file in sorted(FOLDER.rglob("*")):
        media_type = _MEDIA_TYPES.get(file.suffix)
        if media_type is None:
            continue
        content = file.read_bytes()
        page = PageFile(content, media_type, f'"{sha256(content).hexdigest()[:32]}"')
        name = file.relative_to(FOLDER).as_posix()
        yield ("/" if name == _START else f"/{name}"), page
