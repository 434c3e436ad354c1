"""A real browser visits a site by its name: events, a web socket, a large upload, a video in parts, and our own pages."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.browser.chromium import browser
from tests.browser.website import website
from tests.certificates.pebble import running_pebble
from tests.e2e import running, services
from tests.e2e.named import DOMAIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.browser.chromium import Page
    from tests.browser.website import Site

pytestmark = [pytest.mark.slow, pytest.mark.limit(90)]

UPLOAD = 100 * 2**20


class Scene:
    """A server whose certificates are pebble's, a client with a site behind it, and a browser that trusts pebble."""

    def __init__(self, server: running.Server, site: Site, page: Page) -> None:
        self.server, self.site, self.page = server, site, page


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    with running_pebble() as pebble, website() as site:
        root = folder / "pebble-root.pem"
        await trio.Path(root).write_text(await trio.to_thread.run_sync(pebble.root))
        file = folder / "server.yml"
        await trio.Path(file).write_text(
            f"Acme:\n  Directory: {pebble.directory}\n  CAFile: {pebble.authority}\n"
        )
        async with (
            running.server(
                folder,
                *("--config", file, "--domain", DOMAIN),
                *("--http-addr", f"127.0.0.1:{pebble.http_port}"),
                *("--https-addr", f"127.0.0.1:{pebble.tls_port}"),
                *("--public-https-port", "443"),
            ) as server,
            services.websocket_echo() as socket,
            running.client(
                folder / "client",
                server.ticket,
                f"http:{site.server_port}@shop",
                f"http:{socket.port}@socket",
            ),
            browser(
                folder,
                root,
                f"MAP *:80 127.0.0.1:{pebble.http_port}",
                f"MAP *:443 127.0.0.1:{pebble.tls_port}",
            ) as page,
        ):
            yield Scene(server, site, page)


async def test_a_site_works_in_a_browser(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        page, site = here.page, here.site
        # From http to https, with a certificate that the authority gives while the visitor waits.
        await page.open(f"http://shop.{DOMAIN}/")
        assert await page.evaluate("location.href") == f"https://shop.{DOMAIN}/"
        assert await page.evaluate("document.getElementById('title').textContent")
        assert await page.evaluate("isSecureContext")
        assert site.seen[-1]["X-Forwarded-Proto"] == "https"
        # Events come one by one, not when there are enough of them.
        got = await page.evaluate("events(5)")
        assert [text for text, _ in got] == ["0", "1", "2", "3", "4"]
        assert got[-1][1] - got[0][1] > 500, "they were kept back"
        # A web socket, with the other name of the same client.
        words = await page.evaluate(
            f"socket('wss://socket.{DOMAIN}/', ['one', 'two', 'x'.repeat(100000)])"
        )
        assert words == ["one", "two", "x" * 100_000]
        # An upload.
        sent, received = await page.evaluate(f"upload({UPLOAD})")
        assert sent == received
        # A video, made here, that the browser fetches in parts.
        size = await page.evaluate("film()")
        assert size == len(site.video) > 100_000
        width, height, at = await page.evaluate("play()")
        assert (width, height) == (320, 240)
        assert at > 2
        assert site.ranges, "it was not asked for in parts"
        assert not page.console, page.console


LOOK = """({
    title: document.title,
    words: document.querySelector("main").innerText,
    wide: document.documentElement.scrollWidth,
    back: getComputedStyle(document.body).backgroundColor,
})"""


async def test_our_pages_in_a_browser(tmp_path: Path) -> None:
    nothing = services.free_low_port()
    async with scene(tmp_path) as here:
        visit = here.page.open
        async with (
            running.client(tmp_path / "down", here.server.ticket, f"http:{nothing}@down"),
            running.client(
                tmp_path / "shut",
                *(here.server.ticket, f"http:{nothing}@shut", "--deny", "127.0.0.0/8"),
            ),
        ):
            # Who mistypes a name reads that, and no word of certificates.
            for url, status, words in (
                (f"http://nobody.{DOMAIN}/", 404, "Nobody has this name at the moment."),
                (f"https://down.{DOMAIN}/", 502, "the service behind it is down"),
                (f"https://shut.{DOMAIN}/", 403, "You may not see this"),
            ):
                await visit(url)
                backs = []
                for width, dark in ((1200, False), (320, False), (320, True)):
                    picture = await here.page.screenshot(width, 700, dark=dark)
                    assert picture.startswith(b"\x89PNG")
                    await trio.Path(tmp_path / f"{status}-{width}-{dark}.png").write_bytes(picture)
                    seen = await here.page.evaluate(LOOK)
                    assert seen["title"].startswith(f"{status} ")
                    assert words in seen["words"]
                    assert seen["wide"] <= width, "it has to be pushed sideways"
                    backs.append(seen["back"])
                assert backs[0] == backs[1] == "rgb(246, 247, 249)"
                assert backs[2] == "rgb(20, 24, 31)"
        # The browser says of each that it is no answer of 200; of our style and our drawing it has nothing to say.
        assert all(said.startswith("Failed to load resource") for said in here.page.console)
