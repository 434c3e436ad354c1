"""A Chromium without a window, steered by its own protocol (https://chromedevtools.github.io/devtools-protocol)."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import urllib.request
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio_websocket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

START_TIMEOUT = 60.0
CALL_TIMEOUT = 60.0


def find_chromium() -> str:
    """Return its path, or skip the test."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if (found := shutil.which(name)) is not None:
            return found
    pytest.skip("chromium is missing: apt-get install chromium libnss3-tools")


@attrs.define(eq=False)
class Page:
    """A page of a browser. `console` has what it has printed, and what it could not load."""

    connection: trio_websocket.WebSocketConnection
    console: list[str] = attrs.field(factory=list)
    _numbers: itertools.count[int] = attrs.field(init=False, factory=itertools.count)
    _answers: dict[int, trio.MemorySendChannel[dict[str, Any]]] = attrs.field(
        init=False, factory=dict
    )
    _loaded: trio.Event = attrs.field(init=False, factory=trio.Event)

    async def run(self) -> None:
        """Hear what it says, for ever."""
        while True:
            try:
                message = json.loads(await self.connection.get_message())
            except trio_websocket.ConnectionClosed:
                return
            if "id" in message:
                self._answers[message["id"]].send_nowait(message)
                continue
            match message["method"], message["params"]:
                case "Page.loadEventFired", _:
                    self._loaded.set()
                case "Runtime.consoleAPICalled", params:
                    self.console.append(" ".join(str(each.get("value")) for each in params["args"]))
                case "Log.entryAdded", params:
                    self.console.append(params["entry"]["text"])
                case _:
                    pass

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Have it do something; fail where it cannot."""
        number = next(self._numbers)
        send, receive = trio.open_memory_channel[dict[str, Any]](1)
        self._answers[number] = send
        await self.connection.send_message(
            json.dumps({"id": number, "method": method, "params": params})
        )
        with trio.fail_after(CALL_TIMEOUT):
            answer = await receive.receive()
        assert "error" not in answer, (method, answer)
        result: dict[str, Any] = answer["result"]
        return result

    async def open(self, url: str) -> None:
        """Open a URL, and wait until all of it is loaded."""
        self._loaded = trio.Event()
        result = await self.call("Page.navigate", url=url)
        assert not result.get("errorText"), (url, result["errorText"])
        with trio.fail_after(CALL_TIMEOUT):
            await self._loaded.wait()

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript, which may be a promise."""
        result = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def screenshot(self, width: int, height: int, *, dark: bool = False) -> bytes:
        """Return a PNG of what a window of that size shows."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = "dark" if dark else "light"
        await self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        return base64.b64decode((await self.call("Page.captureScreenshot"))["data"])


@asynccontextmanager
async def browser(folder: Path, authority: Path | None, *rules: str) -> AsyncIterator[Page]:
    """Run one that trusts an authority, if there is one, and finds hosts by these rules, such as `MAP * 127.0.0.1:8443`; yields its page."""
    home = folder / "browser"
    database = home / ".pki" / "nssdb"
    await trio.Path(database).mkdir(parents=True)
    for arguments in (
        ("-N", "--empty-password"),
        *([] if authority is None else [("-A", "-t", "C,,", "-n", "tests", "-i", str(authority))]),
    ):
        await trio.run_process(["certutil", "-d", f"sql:{database}", *arguments])
    command = [
        *(find_chromium(), "--headless=new", "--no-sandbox", "--disable-gpu"),
        *("--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"),
        *("--autoplay-policy=no-user-gesture-required", "--remote-debugging-port=0"),
        *(f"--user-data-dir={home / 'profile'}", "--remote-allow-origins=*"),
        f"--host-resolver-rules={', '.join(rules)}",
        "about:blank",
    ]
    environ = {**os.environ, "HOME": str(home)}
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            url = await _page_of(home / "profile" / "DevToolsActivePort")
            async with trio_websocket.open_websocket_url(
                url, max_message_size=64 * 2**20
            ) as connection:
                page = Page(connection)
                nursery.start_soon(page.run)
                for domain in ("Page", "Runtime", "Log"):
                    await page.call(f"{domain}.enable")
                yield page
        finally:
            process.terminate()
            with trio.CancelScope(shield=True):
                with trio.move_on_after(10):
                    await process.wait()
                process.kill()
                await process.wait()
        nursery.cancel_scope.cancel()


async def _page_of(file: Path) -> str:
    """Return where the protocol of the only page is spoken."""
    with trio.fail_after(START_TIMEOUT):
        while True:
            with_port = trio.Path(file)
            if await with_port.exists() and len(lines := (await with_port.read_text()).split()) > 1:
                break
            await trio.sleep(0.05)
        port = int(lines[0])
        while True:
            pages = await trio.to_thread.run_sync(_pages, port)
            for page in pages:
                if page["type"] == "page":
                    url: str = page["webSocketDebuggerUrl"]
                    return url
            await trio.sleep(0.05)


def _pages(port: int) -> list[dict[str, str]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
        found: list[dict[str, str]] = json.load(answer)
    return found
