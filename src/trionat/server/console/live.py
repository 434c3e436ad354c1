"""What changes at the server, told as it does: server-sent events.

Each second that somebody watches, what has changed is put together once, and put into words once for all administrators, and once for each other account.
A reader has nothing waiting for it but the number of the last change that it was told: one that is slow gets what it has missed while
that is still there, and is told to fetch all anew (`reset`) where it is not.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import attrs
import trio

from trionat.protocol.fields import to_json
from trionat.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from trionat.server.console.principal import Principal
    from trionat.server.console.rows import SessionRow, VisitorRow
    from trionat.server.console.sampler import Sample, Sampler

Topic = Literal["server", "sessions", "visitors"]

_KEPT: Final = 8
"""Changes that a slow reader may be behind."""

_ROWS_A_SECOND: Final = 1000
"""Visitors that are told of: where more change at once, the next change is told so much later."""

R = TypeVar("R", "SessionRow", "VisitorRow")


@attrs.frozen(kw_only=True)
class _Changes:
    """Rows of one kind that were added, have changed, or are gone, each with the account whose it is."""

    added: tuple[Any, ...]
    changed: tuple[Any, ...]
    removed: tuple[tuple[int, str], ...]

    @classmethod
    def between(cls, before: Mapping[int, R], after: Mapping[int, R]) -> _Changes:
        """Compare two looks; that time has passed is no change."""
        return cls(
            added=tuple(row for number, row in after.items() if number not in before),
            changed=tuple(
                row
                for number, row in after.items()
                if (older := before.get(number)) is not None
                and row != attrs.evolve(older, seconds=row.seconds)
            ),
            removed=tuple(
                (number, row.user) for number, row in before.items() if number not in after
            ),
        )

    def __len__(self) -> int:
        return len(self.added) + len(self.changed) + len(self.removed)

    def told_to(self, may_see: Callable[[str], bool]) -> bytes | None:
        """Return those that somebody may see, as JSON; None: there are none."""
        added = _rows(row for row in self.added if may_see(row.user))
        changed = _rows(row for row in self.changed if may_see(row.user))
        removed = to_json([number for number, user in self.removed if may_see(user)])
        if not added and not changed and removed == b"[]":
            return None
        return b'{"added":[%b],"changed":[%b],"removed":%b}' % (added, changed, removed)


@attrs.define(eq=False, kw_only=True)
class Tick:
    """What has changed from one look to the next, in the words in which it is told."""

    number: int
    sample: Sample
    changes: Mapping[Topic, _Changes]
    _words: dict[tuple[Topic, str], bytes] = attrs.field(init=False, factory=lambda: {})
    _writing: trio.Lock = attrs.field(init=False, factory=trio.Lock)

    async def words(
        self, topic: Topic, principal: Principal, tell_server: Callable[[Sample, Principal], Any]
    ) -> bytes:
        """Return the events of a topic, for all who may see the same."""
        key = topic, "" if principal.is_admin else principal.username
        async with self._writing:
            if key not in self._words:
                make = partial(self._write, topic, principal, tell_server)
                self._words[key] = await trio.to_thread.run_sync(make)
            return self._words[key]

    def _write(
        self,
        topic: Topic,
        principal: Principal,
        tell_server: Callable[[Sample, Principal], Any],
    ) -> bytes:
        if topic == "server":
            return event("server", attrs.asdict(tell_server(self.sample, principal)))
        changes = self.changes.get(topic)
        told = None if changes is None else changes.told_to(principal.may_see)
        return b"" if told is None else _frame(topic, told)


def _rows(rows: Iterable[Any]) -> bytes:
    """Put each into words of its own: the encoder holds the interpreter until it is ready, and with thousands at once the loop would wait for it."""
    return b",".join(to_json(attrs.asdict(row)) for row in rows)


def event(name: str, values: Any) -> bytes:
    """Return an event as it is sent."""
    return _frame(name, to_json(values))


def _frame(name: str, text: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), text)


@attrs.define(eq=False)
class Live:
    """See the module. `run` has to run; `changed` is notified after each change."""

    sampler: Sampler
    changed: Signal = attrs.field(init=False, factory=Signal)
    _ticks: deque[Tick] = attrs.field(init=False, factory=lambda: deque(maxlen=_KEPT))
    _visitors: Mapping[int, VisitorRow] = attrs.field(init=False, factory=lambda: {})
    _visitors_due: float = attrs.field(init=False, default=0.0)

    @property
    def number(self) -> int:
        """That of the last change."""
        return self._ticks[-1].number if self._ticks else 0

    def since(self, number: int) -> list[Tick] | None:
        """Return the changes after that one; None: some of them are forgotten."""
        if self._ticks and number < self._ticks[0].number - 1:
            return None
        return [tick for tick in self._ticks if tick.number > number]

    async def run(self) -> None:
        """Put changes together, for ever. Where nobody looks at the server there are none."""
        before = await self.sampler.look()
        self._visitors = before.visitors
        while True:
            await self.sampler.changed.wait()
            after = await self.sampler.look(age=float("inf"))
            if after is not before:
                tick = await trio.to_thread.run_sync(self._compare, before, after)
                if (told := tick.changes.get("visitors")) is not None:
                    self._visitors = after.visitors
                    self._visitors_due = after.at + len(told) / _ROWS_A_SECOND
                self._ticks.append(tick)
                before = after
                self.changed.notify()

    def _compare(self, before: Sample, after: Sample) -> Tick:
        changes: dict[Topic, _Changes] = {
            "sessions": _Changes.between(before.sessions, after.sessions)
        }
        if after.at >= self._visitors_due:
            changes["visitors"] = _Changes.between(self._visitors, after.visitors)
        return Tick(number=self.number + 1, sample=after, changes=changes)
