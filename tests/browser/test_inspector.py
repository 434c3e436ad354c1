"""The client's inspector in a real browser: what it shows, what one can do there, and what gets in nowhere."""

from __future__ import annotations

import gzip
import json
import re
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.browser.chromium import browser
from tests.browser.window import open_window
from tests.e2e import services
from tests.e2e.running import ask, read_all
from tests.inspector.scene import scene

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.sync_api import Page as PlaywrightPage

    from tests.browser.chromium import Page
    from tests.inspector.scene import Scene

pytestmark = [pytest.mark.slow, pytest.mark.limit(90)]

OTHER_SITE = "other.example"
KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
    "/": ("Slash", 191, "/"),
}


async def answer(stream: trio.SocketStream) -> None:
    """A web service that tells in JSON, compressed, what it was asked, one request a connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        if not more:
            return
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    fields = [line.partition(b": ") for line in head.split(b"\r\n")[1:]]
    length = sum(int(value) for name, _, value in fields if name.lower() == b"content-length")
    while len(body) < length:
        body += await stream.receive_some()
    told = {
        "line": head.partition(b"\r\n")[0].decode("latin-1"),
        "body": body.decode("utf-8", "replace"),
        "number": 12345678901234567890123,
    }
    packed = gzip.compress(json.dumps(told).encode())
    await stream.send_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nConnection: close\r\n"
        b"Set-Cookie: sid=topsecret\r\nContent-Length: %d\r\n\r\n%b" % (len(packed), packed)
    )


class Inspected:
    """A scene and the browser that looks at it."""

    def __init__(self, scene: Scene, page: Page) -> None:
        self.scene, self.page = scene, page

    async def visit(self, data: bytes) -> bytes:
        async with await self.scene.visit() as visitor:
            await visitor.send_all(data)
            return await read_all(visitor)

    async def open(self) -> None:
        """Open the URL that was printed, and wait for the page behind it."""
        await self.page.open(self.scene.url)
        await self.until("document.getElementById('state')?.textContent.includes('visitor')")

    async def until(self, expression: str, within: float = 20) -> Any:
        """Wait until an expression is true, and return its value."""
        with trio.move_on_after(within):
            while True:
                if value := await self.page.evaluate(expression):
                    return value
                await trio.sleep(0.05)
        shown = await self.page.evaluate("document.body.innerText")
        raise AssertionError(f"never true: {expression}\n{shown}\n{self.page.console}")

    async def click(self, selector: str, text: str = "") -> None:
        """Click on the first such element that has this text."""
        wanted = f"[...document.querySelectorAll({json.dumps(selector)})].find(e => e.textContent.includes({json.dumps(text)}))"
        await self.until(f"Boolean({wanted})")
        await self.page.evaluate(f"{wanted}.click()")

    async def press(self, key: str) -> None:
        code, number, text = KEYS[key]
        for kind in ("keyDown", "keyUp"):
            await self.page.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=code,
                windowsVirtualKeyCode=number,
                **({"text": text} if text and kind == "keyDown" else {}),
            )

    async def type(self, selector: str, text: str) -> None:
        """Replace what stands in a field."""
        await self.page.evaluate(
            f"(() => {{const e = document.querySelector({json.dumps(selector)}); e.focus(); e.select?.();}})()"
        )
        await self.page.call("Input.insertText", text=text)

    async def text(self, selector: str = "body") -> str:
        found: str = await self.page.evaluate(
            f"document.querySelector({json.dumps(selector)})?.textContent ?? ''"
        )
        return found

    async def width(self, width: int) -> None:
        await self.page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=700,
            deviceScaleFactor=1,
            mobile=False,
        )


@asynccontextmanager
async def inspected(folder: Path, *ports: int) -> AsyncIterator[Inspected]:
    """A client for services on these ports, or for `answer`, and a browser that finds one more name for this machine."""
    async with services.serve(answer) as web:
        async with (
            scene(folder, *(ports or (web.port,))) as here,
            browser(folder, None, f"MAP {OTHER_SITE} 127.0.0.1") as page,
        ):
            yield Inspected(here, page)


POST = b"POST /orders?page=2 HTTP/1.1\r\nHost: shop.example\r\nAuthorization: Bearer hidden-word\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"


async def test_from_the_empty_page_to_an_edited_replay(tmp_path: Path) -> None:
    async with inspected(tmp_path) as here:
        await here.open()
        assert "token" not in await here.page.evaluate("location.href")
        await here.until("!document.getElementById('empty').hidden")
        assert "Visit the public address" in await here.text("#empty")
        # Somebody comes, and is there without a reload.
        await here.visit(POST)
        await here.until("document.querySelector('#rows tr')?.className === 'ended'")
        row = await here.text("#rows tr")
        for words in ("POST /orders?page=2", "200", "127.0.0.1:", "ended by both sides"):
            assert words in row
        await here.click("#rows a")
        await here.until("document.querySelectorAll('#visitor .body pre').length === 2")
        shown = await here.text("#visitor")
        assert '"number": 12345678901234567890123' in shown, "it was read as a number"
        assert '"body": "hello"' in shown
        # Secrets are not even in the document before somebody wants them.
        assert "hidden-word" not in await here.page.evaluate("document.documentElement.outerHTML")
        assert "topsecret" not in await here.page.evaluate("document.documentElement.outerHTML")
        await here.click("button.secret[aria-label='Show the value of Authorization']")
        assert "Bearer hidden-word" in await here.text("#visitor")
        await here.click("button.secret[aria-label='Show the value of Authorization']")
        assert "hidden-word" not in await here.text("#visitor")
        for tab in ("Text", "Hex"):
            await here.click("[role=tab]", tab)
            await here.until("document.querySelectorAll('#visitor .bytes pre').length === 2")
            assert "••" in await here.text("#visitor .bytes")
            assert "hidden-w" not in await here.text("#visitor .bytes")
            await here.click("button", "Show secrets")
            await here.until(
                "!document.querySelector('#visitor .bytes')?.textContent.includes('••') && document.querySelectorAll('#visitor .bytes pre').length === 2"
            )
            await here.click("button", "Show secrets")
        await here.click("[role=tab]", "HTTP")
        # Edited, it is a new visitor, which is opened at once.
        await here.click("button", "Edit and replay")
        await here.until("document.querySelector('dialog[open] textarea')?.value === 'hello'")
        await here.type("dialog [name=target]", "/edited now")
        await here.click("dialog button[type=submit]")
        await here.until(
            "document.querySelector('dialog .wrong').textContent.includes('without blanks')"
        )
        await here.until("!document.querySelector('dialog [type=submit]').disabled")
        await here.type("dialog [name=target]", "/edited")
        await here.type("dialog textarea", "hello 漢字")
        await here.click("dialog button[type=submit]")
        await here.until("location.hash === '#2' && !document.querySelector('dialog')")
        await here.until(
            "document.querySelector('#visitor')?.textContent.includes('POST /edited HTTP/1.1')"
        )
        await here.until("document.querySelector('#visitor')?.textContent.includes('hello 漢字')")
        assert "#2 ↻ replay of #1" in await here.text("#rows tr.replay td.what")
        assert "replay" not in await here.text("#rows tr:not(.replay)")
        assert "Replay of visitor #1" in await here.text("#visitor")
        assert await here.text("#visitor .again a[href='#1']") == "visitor #1"
        recording = here.scene.recorder.recordings[2]
        assert b"Authorization: Bearer hidden-word\r\n" in recording.received.data
        assert b"Content-Length: 12\r\n" in recording.received.data
        await here.page.call(
            "Browser.grantPermissions",
            permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
        )
        await here.click("button", "Copy as curl")
        await here.until("document.getElementById('toast').textContent === 'Copied'")
        copied = await here.page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("curl ")
        assert "/edited" in copied
        await here.click("#clear")
        await here.until("!document.getElementById('empty').hidden")
        assert not [line for line in here.page.console if "422" not in line], here.page.console


EVIL = "<img src=x onerror=\"window.pwned=1\"><script>window.pwned=1</script><svg onload='window.pwned=1'>"
TURNED = "\u202eevil"


async def test_nothing_that_a_visitor_says_becomes_part_of_the_page(tmp_path: Path) -> None:
    evil = EVIL.encode()
    path = b"/" + evil.replace(b" ", b"/")
    requests = [
        b"GET %b HTTP/1.1\r\nHost: %b\r\nX-Evil: %b\r\nX%%3Cimg: %b\r\n\r\n"
        % (path, evil, evil, evil),
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: text/html; charset=%b\r\nContent-Length: %d\r\n\r\n%b"
        % (evil, len(evil), evil),
        b"%b\r\n\r\n" % evil,
        b"POST /"
        + TURNED.encode()
        + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\n"
        + TURNED.encode()[:7],
    ]
    async with inspected(tmp_path) as here:
        for each in requests:
            await here.visit(each)
        # What the server tells of a visitor, and what a service is called, is foreign text as well.
        recording = here.scene.recorder.recordings[1]
        recording.name = EVIL
        recording.why = EVIL
        await here.open()
        await here.until(f"document.querySelectorAll('#rows tr').length === {len(requests)}")
        for number in range(1, len(requests) + 1):
            await here.page.evaluate(f"location.hash = '#{number}'")
            await here.until("!document.getElementById('visitor').hidden")
            for tab in ("HTTP", "Text", "Hex"):
                await here.click("[role=tab]", tab)
                await trio.sleep(0.3)
                for details in (
                    "document.querySelectorAll('details').forEach(d => d.open = true)",
                ):
                    await here.page.evaluate(details)
                await trio.sleep(0.3)
                assert await here.page.evaluate("window.pwned") is None
                counted = "[document.scripts.length, document.querySelectorAll('img, svg, iframe').length]"
                assert await here.page.evaluate(counted) == [1, 0]
            assert "\u202e" not in await here.text()
            await here.click("[role=tab]", "HTTP")
            await trio.sleep(0.3)
            if number < 3:
                await here.click("button", "Edit and replay")
                await here.until("Boolean(document.querySelector('dialog[open]'))")
                await here.press("Escape")
                await here.until("!document.querySelector('dialog')")
        assert EVIL in await here.text("#rows"), "it is shown as it was written"
        await here.type("#search", EVIL)
        await trio.sleep(0.6)
        assert await here.page.evaluate("window.pwned") is None
        assert not here.page.console, here.page.console


async def test_no_other_name_of_this_machine(tmp_path: Path) -> None:
    async with inspected(tmp_path) as here:
        await here.visit(POST)
        port = here.scene.address.port
        await here.page.open(
            f"http://{OTHER_SITE}:{port}/#token={here.scene.inspector.access.token}"
        )
        assert "misdirected" in await here.text()


async def test_five_thousand_visitors_and_the_keyboard(tmp_path: Path) -> None:
    async with inspected(tmp_path) as here:
        recorder = here.scene.recorder
        service = here.scene.client.config.services[0]
        for number in range(5000):
            recording = recorder.begin(0, service, None, None)
            request = f"GET /number/{number} HTTP/1.1\r\nHost: x\r\n\r\nbytes-{number}-end".encode()
            recorder.grow(recording, recording.add(recording.received, memoryview(request)))
            recorder.end(recording, "ended by both sides")
        since = time.monotonic()
        await here.open()
        await here.until("document.getElementById('list').dataset.count === '5000'", within=40)
        print(f"5,000 visitors are listed after {time.monotonic() - since:.1f} s")
        assert await here.text("#state") == "5000 visitors"
        first = await here.text("#rows tr")
        assert "/number/4999" in first
        # All of them can be scrolled to.
        await here.until(
            """(() => { const list = document.getElementById('list'); list.scrollTop = list.scrollHeight;
                return document.querySelectorAll('#rows tr').length === 5000; })()""",
            within=60,
        )
        # One that comes now is at the top, and found.
        await here.visit(POST)
        await here.until("document.querySelector('#rows tr').textContent.includes('/orders')")
        await here.press("/")
        assert await here.page.evaluate("document.activeElement.id") == "search"
        await here.page.call("Input.insertText", text="bytes-1234-end")
        await here.until("document.querySelectorAll('#rows tr').length === 1")
        assert "/number/1234" in await here.text("#rows")
        assert await here.text("#state") == "1 of 5001 visitors"
        await here.type("#search", "12345678901234567890123")  # in a compressed answer
        await here.until("document.querySelector('#rows tr')?.textContent.includes('/orders')")
        assert await here.text("#state") == "1 of 5001 visitors"
        await here.type("#search", "-end")
        await here.until("document.getElementById('state').textContent.includes('1000 of 5001')")
        assert await here.text("#state") == "1000 of 5001 visitors, and there may be more"
        await here.type("#search", "/number/12")
        await here.until("document.querySelectorAll('#rows tr').length === 111")
        # From the search, and from a page that was only opened, the first arrow leads into the list.
        focused = "document.activeElement.textContent"
        assert await here.page.evaluate("document.activeElement.id") == "search"
        await here.press("ArrowDown")
        assert await here.page.evaluate(focused) == "GET /number/1299"
        await here.page.evaluate("document.activeElement.blur()")
        await here.press("ArrowDown")
        assert await here.page.evaluate(focused) == "GET /number/1299"
        await here.press("ArrowDown")
        second = await here.page.evaluate("document.activeElement.textContent")
        assert second == "GET /number/1298"
        await here.press("Enter")
        await here.until(
            "document.querySelector('#visitor h2')?.textContent === 'GET /number/1298'"
        )
        await here.press("Escape")
        await here.until("document.getElementById('visitor').hidden")
        assert await here.page.evaluate("document.activeElement.textContent") == second


async def test_bytes_rise_and_the_client_goes(tmp_path: Path) -> None:
    async with services.echo() as echo, inspected(tmp_path, echo.port) as here:
        await here.open()
        async with await here.scene.visit() as visitor:
            await ask(visitor, b"x" * 3000)
            await here.until(
                "document.querySelector('#rows tr.open')?.textContent.includes('2.9 KiB')"
            )
            await here.click("#rows a")
            await here.until("document.querySelectorAll('#visitor .bytes pre').length === 2")
            await ask(visitor, b"needle in it")
            await here.until(
                "document.querySelector('#visitor .bytes')?.textContent.includes('needle in it')"
            )
            await here.type("#visitor .find input", "NEEDLE")
            await here.until(
                "document.querySelector('#visitor .find').textContent.includes('2 found')"
            )
            await here.press("Enter")
            await here.until(
                "document.querySelector('#visitor .find').textContent.includes('1 of 2')"
            )
        await here.until(
            "document.querySelector('#rows tr.ended')?.textContent.includes('ended by both sides')"
        )
        here.scene.client.stopping.set()
        await here.until("document.getElementById('state').textContent.includes('does not answer')")


async def test_it_fits_a_phone_in_dark_and_light(tmp_path: Path) -> None:
    async with inspected(tmp_path) as here:
        await here.visit(POST)
        await here.visit(
            b"GET /"
            + b"long" * 200
            + b" HTTP/1.1\r\nHost: x\r\nX-Long: "
            + b"y" * 900
            + b"\r\n\r\n"
        )
        await here.open()
        await here.until("document.querySelectorAll('#rows tr').length === 2")
        looked = 0
        for width in (320, 1280):
            for dark in (False, True):
                await here.page.evaluate("location.hash = ''")
                await here.until("document.getElementById('visitor').hidden")
                for step in ("list", "HTTP", "Text", "Hex", "edit"):
                    if step == "list":
                        pass
                    elif step == "edit":
                        await here.click("[role=tab]", "HTTP")
                        await here.click("button", "Edit and replay")
                        await here.until("Boolean(document.querySelector('dialog[open]'))")
                    else:
                        await here.page.evaluate("location.hash = '#2'")
                        await here.click("[role=tab]", step)
                        await here.until(
                            "Boolean(document.querySelector('#visitor pre, #visitor .fields'))"
                        )
                    picture = await here.page.screenshot(width, 700, dark=dark)
                    shade = "dark" if dark else "light"
                    await trio.Path(tmp_path / f"{step}-{width}-{shade}.png").write_bytes(picture)
                    wide = "Math.max(document.documentElement.scrollWidth, document.querySelector('#list').offsetParent ? document.querySelector('#list').scrollWidth : 0)"
                    assert await here.page.evaluate(wide) <= width, (step, width)
                    looked += 1
                await here.press("Escape")
                await here.until("!document.querySelector('dialog')")
        assert looked == 20


NAMES = {"HAR", "HTTP", "←"}
"""What is called so in Chinese as well."""


async def test_in_chinese(tmp_path: Path) -> None:
    async with (
        services.serve(answer) as web,
        scene(tmp_path, web.port) as here,
        open_window(locale="zh-CN") as window,
    ):
        async with await here.visit() as visitor:
            await visitor.send_all(POST)
            await read_all(visitor)

        def act(page: PlaywrightPage) -> list[str]:
            page.goto(f"http://{here.address}/")
            page.get_by_role("heading", name="请打开完整的网址").wait_for()
            page.locator("#locked code", has_text="#token=").wait_for()
            page.goto(here.url)
            page.get_by_text("1 个访问", exact=True).wait_for()
            page.locator("#rows tr", has_text="双方均已结束").wait_for()
            assert page.evaluate("document.documentElement.lang") == "zh-Hans"
            page.locator("#rows a").click()
            page.locator("#visitor .body pre").nth(1).wait_for()
            shown: list[str] = []
            for tab in ("HTTP", "文本", "十六进制"):
                page.get_by_role("tab", name=tab).click()
                page.locator("#visitor pre").first.wait_for()
                found = page.locator("button, th[scope=col], dt, h2 + p, h3").all_inner_texts()
                shown += [each for each in found if each and each not in NAMES]
            page.get_by_role("tab", name="HTTP").click()
            page.get_by_role("button", name="编辑后重放").click()
            page.get_by_role("button", name="发送", exact=True).click()
            page.locator("#rows tr.replay", has_text="重放自 #1").wait_for()
            page.locator("#visitor .again", has_text="并非来自访问者").wait_for()
            page.get_by_label("语言").select_option("en")
            page.locator("#rows tr.replay", has_text="replay of #1").wait_for()
            page.reload()
            page.get_by_text("2 visitors", exact=True).wait_for()
            return shown

        for text in await window.do(act):
            assert re.search("[\u4e00-\u9fff]", text) or "•" in text, text
