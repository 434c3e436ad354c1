"""What changes at the server, told as it does: server-sent events.

Each second that somebody watches, what has changed is put together once, and put into words once for all administrators, and once for each other account.
A reader has nothing waiting for it but the number of the last change that it was told: one that is slow gets what it has missed while
that is still there, and is told to fetch all anew (`reset`) where it is not.
"""

from __future__ import annotations

import operator
from collections import Counter, deque
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

import attrs
import trio

from trionat.protocol.fields import to_json
from trionat.server.console.problem import Code, Problem
from trionat.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from trionat.server.console.principal import Principal
    from trionat.server.console.rows import SessionRow, VisitorRow
    from trionat.server.console.sampler import Sample, Sampler

Topic = Literal["server", "sessions", "visitors", "users", "tokens"]

_KEPT: Final = 8
"""Changes that a slow reader may be behind."""

_MOST_STREAMS: Final = 400
_MOST_ORDINARY: Final = 300
_MOST_OF_ONE: Final = 20
"""Streams at once: of all, of accounts that are no administrators, and of one of these. A page has one."""

_ROWS_A_SECOND: Final = 1000
"""Visitors that are told of: where more change at once, the next change is told so much later."""

K = TypeVar("K", int, str)


class Row(Protocol):
    """What all rows have."""

    @property
    def user(self) -> str:
        """Whose it is."""
        ...


R = TypeVar("R", bound=Row)
S = TypeVar("S", "SessionRow", "VisitorRow")


def _is_same(older: S, newer: S) -> bool:
    """Tell whether nothing has changed; that time has passed is no change."""
    return newer == attrs.evolve(older, seconds=newer.seconds)


@attrs.frozen(kw_only=True)
class Changes:
    """Rows of one kind that were added, have changed, or are gone, each with the account whose it is."""

    added: tuple[Any, ...]
    changed: tuple[Any, ...]
    removed: tuple[tuple[int | str, str], ...]

    @classmethod
    def between(
        cls,
        before: Mapping[K, R],
        after: Mapping[K, R],
        is_same: Callable[[R, R], bool] = operator.eq,
    ) -> Changes:
        """Compare two looks."""
        return cls(
            added=tuple(row for key, row in after.items() if key not in before),
            changed=tuple(
                row
                for key, row in after.items()
                if (older := before.get(key)) is not None and not is_same(older, row)
            ),
            removed=tuple((key, row.user) for key, row in before.items() if key not in after),
        )

    def __len__(self) -> int:
        return len(self.added) + len(self.changed) + len(self.removed)

    def told_to(self, may_see: Callable[[str], bool]) -> bytes | None:
        """Return those that somebody may see, as JSON; None: there are none."""
        added = _rows(row for row in self.added if may_see(row.user))
        changed = _rows(row for row in self.changed if may_see(row.user))
        removed = to_json([key for key, user in self.removed if may_see(user)])
        if not added and not changed and removed == b"[]":
            return None
        return b'{"added":[%b],"changed":[%b],"removed":%b}' % (added, changed, removed)


@attrs.define(eq=False, kw_only=True)
class Tick:
    """What has changed from one look to the next, in the words in which it is told."""

    number: int
    sample: Sample | None
    """None where there is a newer one, which alone is told of the server."""

    scribe: trio.CapacityLimiter
    changes: Mapping[Topic, Changes]
    _words: dict[tuple[Topic, str], bytes] = attrs.field(init=False, factory=lambda: {})
    _writing: trio.Lock = attrs.field(init=False, factory=trio.Lock)

    @property
    def size(self) -> int:
        """How many rows have changed."""
        return sum(map(len, self.changes.values()))

    async def words(
        self, topic: Topic, principal: Principal, tell_server: Callable[[Sample, Principal], Any]
    ) -> bytes:
        """Return the events of a topic, for all who may see the same."""
        key = topic, "" if principal.is_admin else principal.username
        async with self._writing:
            if key not in self._words:
                make = partial(self._write, topic, principal, tell_server)
                self._words[key] = await trio.to_thread.run_sync(make, limiter=self.scribe)
            return self._words[key]

    def _write(
        self,
        topic: Topic,
        principal: Principal,
        tell_server: Callable[[Sample, Principal], Any],
    ) -> bytes:
        if topic == "server":
            sample = self.sample
            if sample is None:
                return b""
            return event("server", attrs.asdict(tell_server(sample, principal)))
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
class Ticks:
    """The last changes; `number` is that of the last one."""

    number: int = attrs.field(init=False, default=0)
    _ticks: deque[Tick] = attrs.field(init=False, factory=lambda: deque(maxlen=_KEPT))

    def since(self, number: int) -> list[Tick] | None:
        """Return the changes after that one; None: some of them are forgotten."""
        oldest = self._ticks[0].number if self._ticks else self.number + 1
        if number < oldest - 1:
            return None
        return [tick for tick in self._ticks if tick.number > number]

    def begin_anew(self) -> None:
        """Forget all: whoever reads fetches all anew."""
        self._ticks.clear()
        self.number += 1

    def add(self, tick: Tick) -> None:
        """Tell one more, which has the next number."""
        if self._ticks:
            self._ticks[-1].sample = None  # thousands of visitors, eight times
        self._ticks.append(tick)
        self.number = tick.number


@attrs.define(eq=False)
class Live(Ticks):
    """See the module. `run` has to run; `changed` is notified after each change."""

    sampler: Sampler
    changed: Signal = attrs.field(init=False, factory=Signal)
    _visitors: Mapping[int, VisitorRow] = attrs.field(init=False, factory=lambda: {})
    _visitors_due: float = attrs.field(init=False, default=0.0)
    _scribe: trio.CapacityLimiter = attrs.field(
        init=False, factory=partial(trio.CapacityLimiter, 1)
    )

    async def run(self) -> None:
        """Put changes together, for ever. Where nobody watches, nothing is kept but the last look."""
        before: Sample | None = None
        while True:
            await self.sampler.changed.wait()
            after = self.sampler.latest
            if after is None or after is before:
                continue
            if before is None or not self.sampler.is_watched:
                self.begin_anew()
                self._visitors, self._visitors_due = after.visitors, 0.0
            else:
                await self._add(before, after)
            before = after
            self.changed.notify()

    async def _add(self, before: Sample, after: Sample) -> None:
        tick = await trio.to_thread.run_sync(self._compare, before, after, limiter=self._scribe)
        if (told := tick.changes.get("visitors")) is not None:
            self._visitors = after.visitors
            self._visitors_due = after.at + len(told) / _ROWS_A_SECOND
        self.add(tick)

    def _compare(self, before: Sample, after: Sample) -> Tick:
        changes: dict[Topic, Changes] = {
            "sessions": Changes.between(before.sessions, after.sessions, _is_same)
        }
        if after.at >= self._visitors_due:
            changes["visitors"] = Changes.between(self._visitors, after.visitors, _is_same)
        return Tick(number=self.number + 1, sample=after, scribe=self._scribe, changes=changes)


@attrs.define(eq=False)
class Readers:
    """Who has how many streams open, so that no account takes all places, and all ordinary ones together leave some to administrators."""

    _of: Counter[int] = attrs.field(init=False, factory=lambda: Counter[int]())
    _ordinary: int = attrs.field(init=False, default=0)

    @contextmanager
    def counting(self, principal: Principal) -> Generator[None]:
        """Count a stream while the block runs.

        Raises:
            Problem: there are too many.
        """
        account, is_ordinary = principal.account_id, not principal.is_admin
        if is_ordinary and self._of[account] >= _MOST_OF_ONE:
            text = f"this account has {_MOST_OF_ONE} streams open, which is all that it may have"
            raise Problem(Code.UNAVAILABLE, text)
        if self._of.total() >= _MOST_STREAMS or (is_ordinary and self._ordinary >= _MOST_ORDINARY):
            raise Problem(Code.UNAVAILABLE, "too many streams are open")
        self._of[account] += 1
        self._ordinary += is_ordinary
        try:
            yield
        finally:
            self._ordinary -= is_ordinary
            self._of[account] -= 1
            if not self._of[account]:
                del self._of[account]
