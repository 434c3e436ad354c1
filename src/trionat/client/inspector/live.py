"""The list of visitors as it changes, for browsers: server-sent events.

What a browser has not been told yet is kept as numbers of recordings, each once. So a browser that does not read costs no more than a number for each visitor, and gets the newest state
when it reads again.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.client.inspector.row import as_row
from trionat.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from trionat.client.inspector.recorder import Recorder

INTERVAL: Final = 1.0
"""Seconds between two looks at how much visitors have moved."""

PAUSE: Final = 0.2
"""Seconds between two events for one browser: what changes meanwhile comes together."""

ALIVE_AFTER: Final = 15.0
"""Seconds of silence after which a browser is told that the connection lives."""

MOST_ROWS: Final = 250
"""Of one event, so that no event takes more than a few milliseconds to write."""

MOST_BROWSERS: Final = 64


@attrs.define(eq=False)
class Browser:
    """What one of them does not know yet."""

    changed: dict[int, None] = attrs.field(factory=lambda: {})
    signal: Signal = attrs.field(init=False, factory=Signal)

    def note(self, number: int) -> None:
        """See `Watcher`."""
        self.changed[number] = None
        self.signal.notify()

    async def wait(self) -> None:
        """Wait until there is something."""
        while not self.changed:
            await self.signal.wait()

    def take(self, most: int) -> list[int]:
        """Return the numbers of the next event."""
        numbers = list(self.changed)[:most]
        for number in numbers:
            del self.changed[number]
        return numbers


@attrs.define(eq=False)
class LiveList:
    """Tells browsers what changes. `run` has to run while there are any."""

    recorder: Recorder
    browsers: int = attrs.field(init=False, default=0)
    _arrived: Signal = attrs.field(init=False, factory=Signal)

    @property
    def is_full(self) -> bool:
        """Whether there are as many browsers as may be."""
        return self.browsers >= MOST_BROWSERS

    async def run(self) -> None:
        """While there are browsers, note once a second which visitors have moved bytes, and how fast."""
        while True:
            while not self.browsers:
                await self._arrived.wait()
            before = {number: each.count for number, each in self.recorder.live.items()}
            then = trio.current_time()
            await trio.sleep(INTERVAL)
            passed = trio.current_time() - then
            for number, recording in list(self.recorder.live.items()):
                rate = (recording.count - before.get(number, 0)) / passed
                if rate or recording.rate:
                    recording.rate = rate
                    for watcher in self.recorder.watchers:
                        watcher.note(number)

    @contextmanager
    def _watching(self) -> Generator[Browser]:
        browser = Browser(dict.fromkeys(sorted(self.recorder.recordings, reverse=True)))
        self.recorder.watchers.add(browser)
        self.browsers += 1
        self._arrived.notify()
        try:
            yield browser
        finally:
            self.browsers -= 1
            self.recorder.watchers.discard(browser)

    async def tell(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send events to one browser, from all that there is to the newest, for ever."""
        with self._watching() as browser:
            await send(_event("begin", {"visitors": len(browser.changed)}))
            while True:
                while numbers := browser.take(MOST_ROWS):
                    known = self.recorder.recordings
                    rows = [as_row(known[number]) for number in numbers if number in known]
                    gone = [number for number in numbers if number not in known]
                    await send(_event("visitors", {"rows": rows, "gone": gone}))
                    await trio.sleep(PAUSE if len(numbers) < MOST_ROWS else 0)
                with trio.move_on_after(ALIVE_AFTER):
                    await browser.wait()
                if not browser.changed:
                    await send(b": alive\n\n")


def _event(name: str, content: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n".encode()
