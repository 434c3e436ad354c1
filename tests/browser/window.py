"""A window of Chromium, driven by Playwright in a thread of its own. It notes all that a page must not do: ask another site, break the policy, complain."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import attrs
import pytest
import trio

from tests.browser.chromium import find_chromium

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request

T = TypeVar("T")

PATIENCE = 15_000
"""Milliseconds for what is to be seen."""

EXPECTED = (
    "status of 401",
    "net::ERR_CONNECTION_REFUSED",
    "net::ERR_CONNECTION_RESET",
    "net::ERR_EMPTY_RESPONSE",
    "net::ERR_INCOMPLETE_CHUNKED_ENCODING",
)
"""What Chromium itself says where nobody is logged in yet, or the server is away; no page can keep it from that."""


@attrs.define(eq=False)
class Window:
    """`complaints` has all that went wrong in the page, and `foreign` what it has asked of others."""

    context: BrowserContext
    page: Page
    complaints: list[str] = attrs.field(factory=list)
    foreign: list[str] = attrs.field(factory=list)
    _thread: ThreadPoolExecutor = attrs.field(kw_only=True)

    async def do(self, act: Callable[[Page], T]) -> T:
        """Do something with the page."""
        return await trio.to_thread.run_sync(self._thread.submit(act, self.page).result)

    def check(self) -> None:
        """Check that nothing went wrong."""
        assert not self.complaints, self.complaints
        assert not self.foreign, self.foreign


@asynccontextmanager
async def open_window(**options: Any) -> AsyncIterator[Window]:
    """Open one, with options of Playwright's `new_context`, and check at the end that nothing went wrong in it."""
    pytest.importorskip("playwright")
    chromium = find_chromium()
    with ThreadPoolExecutor(1, thread_name_prefix="playwright") as thread:
        started = thread.submit(_start, chromium, options, thread)
        window, stop = await trio.to_thread.run_sync(started.result)
        try:
            yield window
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(thread.submit(stop).result)
    window.check()


def _start(
    chromium: str, options: dict[str, Any], thread: ThreadPoolExecutor
) -> tuple[Window, Callable[[], None]]:
    from playwright.sync_api import expect, sync_playwright  # noqa: PLC0415 - may be missing

    playwright = sync_playwright().start()
    browser = playwright.chromium.launch(
        executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"]
    )
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page = context.new_page()
    window = Window(context, page, thread=thread)

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(
            word in message.text for word in EXPECTED
        ):
            window.complaints.append(message.text)

    def asked(request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.hostname not in ("127.0.0.1", "localhost") and parts.scheme != "data":
            window.foreign.append(request.url)

    page.on("console", heard)
    page.on("pageerror", lambda error: window.complaints.append(str(error)))
    page.on("request", asked)

    def stop() -> None:
        browser.close()
        playwright.stop()

    return window, stop
