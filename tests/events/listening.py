"""A listener of a hub that keeps what it hears."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from trionat.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Generator

    from trionat.server.events.event import Event
    from trionat.server.events.hub import Hub


@attrs.define(eq=False)
class Reader:
    """What was published since it began, as far as it was not taken yet."""

    _events: deque[Event] = attrs.field(init=False, factory=lambda: deque())
    _added: Signal = attrs.field(init=False, factory=Signal)

    def put(self, event: Event) -> None:
        self._events.append(event)
        self._added.notify()

    async def take(self, most: int) -> list[Event]:
        """Wait until there is one, and return the oldest ones."""
        while not self._events:
            await self._added.wait()
        return [self._events.popleft() for _ in range(min(most, len(self._events)))]


@contextmanager
def reading(hub: Hub) -> Generator[Reader]:
    """Give what reads all that is published in the block."""
    reader = Reader()
    with hub.telling(reader):
        yield reader
