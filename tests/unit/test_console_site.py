"""How the console's pages are served."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pytest
import trio
from starlette.routing import Router

from trionat.server.console.site import FOLDER, page_routes


async def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    said: list[Any] = []

    async def receive() -> Any:
        await trio.sleep_forever()

    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()
        said.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": given, "root_path": ""}
    await Router(page_routes(), redirect_slashes=False)(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in said[0]["headers"]}
    return said[0]["status"], found, b"".join(each.get("body", b"") for each in said[1:])


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/main.js", "text/javascript; charset=utf-8"),
        ("/screens/overview.js", "text/javascript; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
        ("/vendor/preact.LICENSE", "text/plain; charset=utf-8"),
    ],
)
async def test_a_file_is_served_with_its_type(path: str, media_type: str) -> None:
    status, headers, body = await ask(path)
    assert status == 200
    assert headers["content-type"] == media_type
    assert headers["cache-control"] == "no-cache"
    file = FOLDER / (PurePosixPath(path).relative_to("/") if path != "/" else "index.html")
    assert body == await trio.Path(file).read_bytes()


async def test_what_a_browser_has_is_not_sent_again() -> None:
    _, headers, _ = await ask("/main.js")
    status, again, body = await ask("/main.js", if_none_match=f'"other", W/{headers["etag"]}')
    assert (status, body) == (304, b"")
    assert again["etag"] == headers["etag"]
    status, _, _ = await ask("/main.js", if_none_match='"other"')
    assert status == 200


async def test_each_file_has_an_etag_of_its_own() -> None:
    assert (await ask("/main.js"))[1]["etag"] != (await ask("/api.js"))[1]["etag"]


@pytest.mark.parametrize(
    "path",
    [
        "/index.html/",
        "/vendor/hashes",
        "/vendor",
        "/../console.py",
        "/%2e%2e/console.py",
        "//main.js",
    ],
)
async def test_nothing_else_is_served(path: str) -> None:
    assert (await ask(path))[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_a_page_is_only_read(method: str) -> None:
    status, headers, _ = await ask("/main.js", method)
    assert status == 405
    assert headers["allow"] == "GET, HEAD"
