"""Looks at the server: once a second while somebody watches, and else now and then, for the plots of the last hour.

Whoever asks for a list gets the last look, which is a second old at most. So the server is looked at once a second, however many consoles are open.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.log import get_logger
from trionat.server.console.rows import SessionRow, VisitorRow
from trionat.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from trionat.server.admin.commands import Commands
    from trionat.server.admin.snapshot import Snapshot

log = get_logger(__name__)

WATCH_INTERVAL: Final = 1.0
HISTORY_INTERVAL: Final = 10.0
_HISTORY_POINTS: Final = 360
"""An hour."""

_PATIENCE: Final = 20.0
"""Seconds for a look at the server; workers that do not answer cost 5 s."""

_NO_VISITORS: Final[Mapping[int, int]] = {}


@attrs.frozen(kw_only=True)
class HistoryPoint:
    """The server at a moment: rates in bytes per second since the point before, how many sessions and visitors there are, and how many were refused since the point before."""

    time: str
    received: float
    sent: float
    sessions: int
    visitors: int
    refused: int


@attrs.frozen(eq=False, kw_only=True)
class Sample:
    """One look. `number` counts them, `at` is the moment by Trio's clock. The rows are made off the loop, and `numbers` are those of the visitors, in their order; `rates` are those of the sessions since the look before, by uid: received and sent."""

    number: int
    at: float
    snapshot: Snapshot
    sessions: Mapping[int, SessionRow]
    visitors: Mapping[int, VisitorRow]
    numbers: tuple[int, ...]
    rates: Mapping[int, tuple[float, float]]

    @classmethod
    def of(cls, snapshot: Snapshot, before: Sample | None, at: float) -> Sample:
        """Make the rows, with rates since the look before. Takes a while where there are many visitors."""
        seconds = 0.0 if before is None else at - before.at
        older = _NO_VISITORS if before is None else _moved_by_visitor(before)
        visitors: dict[int, VisitorRow] = {}
        for session in snapshot.sessions:
            for visitor in session.visitors:
                moved = visitor.received + visitor.sent - older.get(visitor.number, 0)
                rate = round(moved / seconds, 1) if seconds and older else 0.0
                visitors[visitor.number] = VisitorRow.of(visitor, session, rate)
        for reserved in snapshot.reserved:
            for visitor in reserved.visitors:
                visitors[visitor.number] = VisitorRow.of_waiting(visitor, reserved)
        return cls(
            number=1 if before is None else before.number + 1,
            at=at,
            snapshot=snapshot,
            sessions={each.uid: SessionRow.of(each) for each in snapshot.sessions},
            visitors=visitors,
            numbers=tuple(sorted(visitors)),
            rates={} if before is None or not seconds else _rates(snapshot, before, seconds),
        )

    def visitors_after(self, number: int | None) -> Iterator[VisitorRow]:
        """Go through visitors in their order, those with higher numbers: nobody has to look at thousands of them for a page."""
        start = 0 if number is None else bisect_right(self.numbers, number)
        return (self.visitors[each] for each in islice(self.numbers, start, None))

    def rates_of(self, may_see: Callable[[str], bool]) -> tuple[float, float]:
        """Return what somebody's sessions have received and sent since the look before, in bytes per second."""
        seen = [each for uid, each in self.rates.items() if may_see(self.sessions[uid].user)]
        return round(sum(each[0] for each in seen), 1), round(sum(each[1] for each in seen), 1)

    @property
    def refused(self) -> int:
        """How many were refused since the start."""
        return sum(self.snapshot.refused.values())


def _moved_by_visitor(sample: Sample) -> Mapping[int, int]:
    return {number: row.received + row.sent for number, row in sample.visitors.items()}


def _rates(snapshot: Snapshot, before: Sample, seconds: float) -> dict[int, tuple[float, float]]:
    rates: dict[int, tuple[float, float]] = {}
    for session in snapshot.sessions:
        older = before.sessions.get(session.uid)
        received = session.received - (0 if older is None else older.received)
        sent = session.sent - (0 if older is None else older.sent)
        rates[session.uid] = max(0, received) / seconds, max(0, sent) / seconds
    return rates


def _moved(snapshot: Snapshot, before: Sample) -> tuple[int, int]:
    """Return the bytes of all sessions since the look before; those of one that has ended meanwhile are left out."""
    received = sent = 0
    for session in snapshot.sessions:
        older = before.sessions.get(session.uid)
        received += session.received - (0 if older is None else older.received)
        sent += session.sent - (0 if older is None else older.sent)
    return max(0, received), max(0, sent)


@attrs.define(eq=False)
class Sampler:
    """See the module. `run` has to run; `changed` is notified after each look."""

    commands: Commands
    changed: Signal = attrs.field(init=False, factory=Signal)
    history: deque[HistoryPoint] = attrs.field(
        init=False, factory=lambda: deque(maxlen=_HISTORY_POINTS)
    )
    latest: Sample | None = attrs.field(init=False, default=None)
    """The last look, however old it is."""

    _scribe: trio.CapacityLimiter = attrs.field(
        init=False, factory=partial(trio.CapacityLimiter, 1)
    )
    _is_stale: bool = attrs.field(init=False, default=True)
    _watchers: int = attrs.field(init=False, default=0)
    _came: Signal = attrs.field(init=False, factory=Signal)
    _looking: trio.Lock = attrs.field(init=False, factory=trio.Lock)

    async def look(self, *, age: float = WATCH_INTERVAL) -> Sample:
        """Return a look at the server that is not older than so many seconds, and not from before `forget`."""
        async with self._looking:
            latest = self.latest
            if latest is not None and not self._is_stale and trio.current_time() - latest.at < age:
                return latest
            self._is_stale = False
            try:
                with trio.fail_after(_PATIENCE):
                    snapshot = await self.commands.snapshot()
                    at = trio.current_time()
                    sample = await trio.to_thread.run_sync(
                        Sample.of, snapshot, latest, at, limiter=self._scribe
                    )
            except BaseException:  # whoever asked may have gone: what is there is as old as before
                self._is_stale = True
                raise
            self.latest = sample
        self.changed.notify()
        return sample

    @property
    def is_watched(self) -> bool:
        """Whether somebody watches."""
        return self._watchers > 0

    def forget(self) -> None:
        """Something was changed: the next look is a new one."""
        self._is_stale = True

    async def run(self) -> None:
        """Look, for ever."""
        point: Sample | None = None
        while True:
            try:
                sample = await self.look(age=WATCH_INTERVAL / 2)
            except trio.TooSlowError:
                log.warning("the console could not look at the server in time")
            else:
                if point is None or sample.at - point.at >= HISTORY_INTERVAL - 0.5:
                    self._note(sample, point)
                    point = sample
            with trio.move_on_after(WATCH_INTERVAL if self._watchers else HISTORY_INTERVAL):
                await self._came.wait()

    @contextmanager
    def watching(self) -> Generator[None]:
        """Somebody watches while the block runs."""
        self._watchers += 1
        self._came.notify()
        try:
            yield
        finally:
            self._watchers -= 1

    def _note(self, sample: Sample, before: Sample | None) -> None:
        """Put a point into the history."""
        if before is None:
            return
        seconds = sample.at - before.at
        received, sent = _moved(sample.snapshot, before)
        self.history.append(
            HistoryPoint(
                time=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
                received=round(received / seconds, 1),
                sent=round(sent / seconds, 1),
                sessions=len(sample.sessions),
                visitors=len(sample.visitors),
                refused=max(0, sample.refused - before.refused),
            )
        )
