"""Where whatever happens at a server is told, and from where it goes to whoever listens.

`publish` is a plain function that never waits, nor may a listener: the journal has a queue, of which the oldest go when it is full. Numbers have no gap,
so whoever reads them sees how many it has missed.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from trionat.server.events.event import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from trionat.server.events.event import Happening

_LONGEST_TEXT: Final = 512
"""Characters of a field."""

_MOST_REMEMBERED: Final = 10_000
"""Events that are told once and were: accounts with a quota, most likely."""


class Listener(Protocol):
    """Who is told of everything."""

    def put(self, event: Event) -> None:
        """Take one; may not wait."""
        ...


def _cut(value: object) -> object:
    """What peers say has bounds of its own, and an event is to be short."""
    return value[:_LONGEST_TEXT] if isinstance(value, str) else value


@attrs.define(eq=False)
class Hub:
    """See the module. `server` is what events call this server; `number` is that of the last event; `now` tells the time of day.

    Where there are several processes, `forward` of a worker's hub takes what is published there to the hub of the parent. While `is_elsewhere` is set, another process tells what happens.
    """

    server: str = ""
    number: int = 0
    now: Callable[[], float] = time.time
    forward: Callable[[Happening], None] | None = None
    is_elsewhere: bool = attrs.field(init=False, default=False)
    _listeners: list[Listener] = attrs.field(init=False, factory=lambda: [])
    _told: OrderedDict[tuple[str, ...], None] = attrs.field(
        init=False, factory=lambda: OrderedDict()
    )

    @property
    def is_on(self) -> bool:
        """Whether anybody listens: where nobody does, events need not be made."""
        return bool(self._listeners) or self.forward is not None

    def publish(self, happening: Happening) -> None:
        """Tell of something that has happened just now."""
        if not self.is_on or self.is_elsewhere:
            return
        type_, fields = happening
        data = {name: _cut(value) for name, value in fields.items()}
        if self.forward is not None:
            self.forward((type_, data))
            return
        event = Event(self.number + 1, self.now(), type_, self.server, data)
        if (identity := event.identity) is not None and not self.remember(identity):
            return
        self.number += 1
        for listener in self._listeners:
            listener.put(event)

    def remember(self, identity: tuple[str, ...]) -> bool:
        """Note that something was told which is told once; False where it was before."""
        if identity in self._told:
            return False
        if len(self._told) >= _MOST_REMEMBERED:
            self._told.popitem(last=False)
        self._told[identity] = None
        return True

    @contextmanager
    def telling(self, listener: Listener) -> Generator[None]:
        """Tell somebody of all that is published in the block."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)
