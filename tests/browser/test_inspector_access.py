"""Who gets into the client's inspector, seen from real windows: the URL that was printed, other windows, other ports of this machine, and a client that was started anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.neighbour import ATTACK, neighbour
from tests.browser.window import open_window
from tests.e2e import services
from tests.e2e.running import read_all
from tests.inspector.scene import inspected, scene, serving
from trionat.address import TCPAddress

if TYPE_CHECKING:
    from playwright.sync_api import Page, Response

    from tests.inspector.scene import Scene

pytestmark = [pytest.mark.slow, pytest.mark.limit(90)]

POST = b"POST /orders HTTP/1.1\r\nHost: shop.example\r\nAuthorization: Bearer hidden-word\r\nContent-Length: 5\r\n\r\nhello"


async def visit(here: Scene) -> None:
    """Come once, and be answered."""
    async with await here.visit() as visitor:
        await visitor.send_all(POST)
        await read_all(visitor)


def shows(page: Page, text: str) -> None:
    """Wait until a page shows it."""
    page.get_by_text(text).first.wait_for()


def is_in(page: Page) -> None:
    """Wait until the page lists the only visitor, and see that its address tells nothing."""
    page.locator("#rows tr.ended", has_text="POST /orders").wait_for()
    assert "token" not in page.url
    assert not page.locator("#locked").is_visible()


async def test_one_click_a_reload_and_another_window(tmp_path: Path) -> None:
    async with (
        neighbour() as shop,
        scene(tmp_path, shop.port) as here,
        open_window() as window,
    ):
        await visit(here)
        own = f"http://{here.address}/"

        def act(page: Page) -> None:
            asked: list[str] = []
            page.on(
                "request",
                lambda request: asked.append(
                    json.dumps([request.url, request.headers.get("referer")])
                ),
            )
            page.goto(own)
            shows(page, "Open the whole URL")
            assert not page.locator("main").is_visible()
            assert page.locator("#state").text_content() == "not connected"
            # In the window that is open already, which is not loaded anew by a browser when no more than the fragment changes.
            page.goto(here.url)
            is_in(page)
            page.reload()
            is_in(page)
            other = page.context.new_page()
            other.goto(own)
            is_in(other)
            # One that is wrong, as of a link that a page elsewhere has made, takes nothing away.
            other.goto(f"{own}#token=0123456789abcdef")
            is_in(other)
            page.reload()
            is_in(page)
            # Nothing of it is where browsers send or tell it by themselves.
            assert page.context.cookies() == []
            token = here.inspector.access.token
            assert not [each for each in asked if token in each]
            kept = page.evaluate("({...localStorage})")
            assert list(kept.values()) == [token]

        await window.do(act)


async def test_files_are_saved(tmp_path: Path) -> None:
    async with (
        neighbour() as shop,
        scene(tmp_path, shop.port) as here,
        open_window(accept_downloads=True) as window,
    ):
        await visit(here)

        def act(page: Page) -> dict[str, bytes]:
            page.goto(here.url)
            is_in(page)
            page.goto(f"http://{here.address}/#1")
            found: dict[str, bytes] = {}
            for place, text in (
                ("header", "HAR"),
                ("#visitor", "HAR with secrets"),
                ("#visitor", "Save received"),
                ("#visitor", "Save sent"),
                ("#visitor .body", "Save"),
            ):
                with page.expect_download() as download:
                    page.locator(place).get_by_role("button", name=text, exact=True).first.click()
                found[download.value.suggested_filename] = Path(download.value.path()).read_bytes()
            return found

        found = await window.do(act)
        assert list(found) == [
            "trionat.har",
            "trionat-1.har",
            "visitor-1-received.bin",
            "visitor-1-sent.bin",
            "visitor-1-request-1.bin",
        ]
        assert b"hidden-word" not in found["trionat.har"]
        assert b"hidden-word" in found["trionat-1.har"]
        assert found["visitor-1-received.bin"] == POST
        assert found["visitor-1-sent.bin"].startswith(b"HTTP/1.1 200 OK\r\n")
        assert found["visitor-1-request-1.bin"] == b"hello"
        # One that cannot be had any more says so.
        here.recorder.clear()
        await window.do(lambda page: page.get_by_role("button", name="Save sent").click())
        await window.do(lambda page: shows(page, "this visitor is not listed any more"))
        window.complaints.clear()  # Chromium tells of the 404


async def test_another_port_of_this_machine_gets_nothing(tmp_path: Path) -> None:
    """To a browser it is the same site, whose cookies are the same: SameSite and cookies do not tell ports apart."""
    async with (
        neighbour() as shop,
        neighbour() as other,
        scene(tmp_path, shop.port) as here,
        open_window() as window,
    ):
        await visit(here)
        own, elsewhere = f"http://{here.address}/", f"http://127.0.0.1:{other.port}/"

        def act(page: Page) -> list[str]:
            page.goto(here.url)
            is_in(page)
            stranger = page.context.new_page()
            stranger.goto(elsewhere)
            assert stranger.evaluate("document.cookie") == ""
            assert stranger.evaluate("Object.keys(localStorage).length") == 0
            found: list[str] = []
            for path in (
                "api/har?secrets=1",
                "api/live",
                "api/visitors",
                "api/visitors/1",
                "api/visitors/1/bytes/received",
                "api/visitors/1/replay",
                "pages/main.js",
            ):
                found += stranger.evaluate(ATTACK, [own, path])
            # A form, which takes the whole window there; and one may open the page, but not look at it.
            for method, path in (("post", "api/visitors/1/replay"), ("get", "api/har")):
                with stranger.expect_navigation() as went:
                    stranger.evaluate(
                        """([method, url]) => {
                            const form = document.createElement('form');
                            Object.assign(form, {method, action: url, enctype: 'text/plain'});
                            document.body.append(form);
                            form.submit();
                        }""",
                        [method, own + path],
                    )
                answer: Response | None = went.value
                assert answer is not None
                assert answer.status == 403
                stranger.goto(elsewhere)
            with stranger.expect_popup() as opened:
                stranger.evaluate("url => { window.opened = open(url); }", own)
            is_in(opened.value)
            assert stranger.evaluate("window.opened.closed"), "they hold each other"
            opened.value.close()
            page.reload()
            is_in(page)
            return found

        assert await window.do(act) == []
        token = here.inspector.access.token
        assert token.encode() not in other.heard
        assert b"cookie:" not in other.heard.lower()
        assert len(here.recorder.recordings) == 1, "it has replayed, or cleared"
        window.complaints.clear()  # of what was refused to the other page


async def test_a_client_that_was_started_anew(tmp_path: Path) -> None:
    """At the same port: a page of the one before says what to do, and goes on by itself when that is done."""
    async with (
        neighbour() as shop,
        serving(tmp_path / "server", 1) as ticket,
        open_window() as window,
    ):
        settings = {"inspect_addr": TCPAddress("127.0.0.1", services.free_low_port())}
        async with inspected(tmp_path / "client", ticket, shop.port, **settings) as here:
            await visit(here)
            before = here.url
            await window.do(lambda page: page.goto(before))
            await window.do(is_in)
        async with inspected(tmp_path / "client", ticket, shop.port, **settings) as here:
            assert here.url != before
            own = f"http://{here.address}/"

            def act(page: Page) -> None:
                shows(page, "The client that runs now has another URL")
                assert page.locator("#rows tr").count() == 1, "what was there can still be read"
                page.reload()
                shows(page, "Open the whole URL")
                page.goto(before)
                shows(page, "The client that runs now has another URL")
                assert not page.locator("main").is_visible()
                other = page.context.new_page()
                other.goto(here.url)
                for each in (other, page):  # the one that was there has heard of it
                    shows(each, "Nobody has come yet")
                    each.locator("#locked").wait_for(state="hidden")
                page.goto(own)
                shows(page, "Nobody has come yet")

            await window.do(act)
