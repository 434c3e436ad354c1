"""Where whatever happens at a server is told, and from where it goes to whoever listens.

`publish` is a plain function that never waits, nor may a listener: the journal has a queue, of which the oldest go when it is full. Numbers have no gap,
so whoever reads them sees how many it has missed.

What others bring about as often as they like, clients that come and go and bans, has a bound for each account, so that nobody pushes out what has happened to others: what is more is counted, and told as one event.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from trionat.server.events.event import Event, left_out

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from trionat.server.events.allowance import Allowance
    from trionat.server.events.event import Data, Happening

_LONGEST_TEXT: Final = 512
"""Characters of a field."""

_MOST_REMEMBERED: Final = 10_000
"""Events that are told once and were: accounts with a quota, most likely."""


AT_ONCE: Final = 1000
INTERVAL: Final = 60.0
"""How many events of the clients of one account there may be at once, and seconds until there may be one more; for bans there are as many. Chosen: a tenth of what is kept, so that hundreds of clients may be lost and come back together."""


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

    `clock` is that of bounds, which only goes forward. `tell_left_out` has to be called now and then.

    Where there are several processes, `forward` of a worker's hub takes what is published there to the hub of the parent. While `is_elsewhere` is set, another process tells what happens.
    """

    server: str = ""
    number: int = 0
    now: Callable[[], float] = time.time
    clock: Callable[[], float] = attrs.field(default=time.monotonic, kw_only=True)
    forward: Callable[[Happening], None] | None = None
    is_elsewhere: bool = attrs.field(init=False, default=False)
    _listeners: list[Listener] = attrs.field(init=False, factory=lambda: [])
    _allowances: dict[str | None, Allowance] = attrs.field(init=False, factory=lambda: {})
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
        if self._may_be_told(type_, data):
            self._tell(type_, data)

    def _tell(self, type_: str, data: Data) -> None:
        event = Event(self.number + 1, self.now(), type_, self.server, data)
        if (identity := event.identity) is not None and not self.remember(identity):
            return
        self.number += 1
        for listener in self._listeners:
            listener.put(event)

    def _may_be_told(self, type_: str, data: Data) -> bool:
        """Tell whether there is room for one; what was left out before is told first, which takes room as well."""
        kind = type_.partition(".")[0]
        if kind not in ("session", "ban"):
            return True
        whose, now = data.get("user") if kind == "session" else None, self.clock()
        if (allowance := self._allowances.get(whose)) is None:
            from trionat.server.events.allowance import Allowance  # noqa: PLC0415 - where anybody listens

            allowance = Allowance(at_once=AT_ONCE, interval=INTERVAL, since=now)
            self._allowances[whose] = allowance
        if not allowance.take(now, 2 if allowance.left_out else 1):
            allowance.leave_out(type_, now)
            return False
        self._tell_left_out(whose, allowance)
        return True

    def tell_left_out(self, *, at_once: bool = False) -> None:
        """Tell how much was left out, where there is room for that, or `at_once`, since this process ends."""
        if not self._listeners or self.is_elsewhere:
            return
        now = self.clock()
        for whose, allowance in list(self._allowances.items()):
            if allowance.left_out and (at_once or allowance.take(now)):
                self._tell_left_out(whose, allowance)
            elif allowance.is_whole(now):
                del self._allowances[whose]

    def _tell_left_out(self, whose: str | None, allowance: Allowance) -> None:
        if not allowance.left_out:
            return
        types, seconds = dict(allowance.left_out), round(self.clock() - allowance.began, 1)
        allowance.left_out.clear()
        self._tell(*left_out(user=whose, count=sum(types.values()), types=types, seconds=seconds))

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
