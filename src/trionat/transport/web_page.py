"""Pages for browsers: files that come with the package. They are read once, so no path of a request ever becomes one of a file."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final

import attrs
from starlette.responses import Response

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.datastructures import Headers

START: Final = "index.html"
"""What a browser gets that asks for no file."""

_MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".LICENSE": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""What else lies there is not for browsers."""


@attrs.frozen(eq=False)
class WebPage:
    """One file. A browser asks each time whether it has changed, so a new version of the program never meets old pages."""

    content: bytes
    media_type: str
    etag: str

    def answer(self, headers: Headers) -> Response:
        """Return what a request with these headers gets: the file, or that the browser has it already."""
        ours = {"Cache-Control": "no-cache", "ETag": self.etag}
        known = headers.get("if-none-match", "")
        if self.etag in (each.strip().removeprefix("W/") for each in known.split(",")):
            return Response(status_code=304, headers=ours)
        return Response(self.content, media_type=self.media_type, headers=ours)


def read_pages(folder: Path) -> dict[str, WebPage]:
    """Read all that is in a folder; return it by the paths below it, with `/` between their parts. Blocks."""
    pages: dict[str, WebPage] = {}
    for file in sorted(folder.rglob("*")):
        if (media_type := _MEDIA_TYPES.get(file.suffix)) is not None:
            content = file.read_bytes()
            etag = f'"{sha256(content).hexdigest()[:32]}"'
            pages[file.relative_to(folder).as_posix()] = WebPage(content, media_type, etag)
    return pages
