"""What a process counts for `/metrics`, and only while that is on: plain additions, to numbers of which there is a fixed count, or a bounded one.

Nothing here ever goes down. A worker gives away what it has counted, once a second (`Tally.take`), and its parent adds that up (`Tally.add`): so what a
worker has counted outlives it.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_SHOWN: Final = 50
"""Users, or names, that have figures of their own; the others have theirs together."""

MOST_KEPT: Final = 4096
"""Users, or names, whose sums are kept: far more than are shown, so that one of them that comes again begins where it was. Some 200 bytes each."""

OTHERS: Final = "all others"
"""What those are called who have no figures of their own. No user and no name has a blank in it."""

FIRST_BYTE: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
DURATION: Final = (0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 7200.0, 43200.0)
LOOP_LAG: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""The bounds of buckets, in seconds."""

DONE: Final = "done"
FAILED: Final = "failed"
"""How a handshake has ended."""

_LAG_INTERVAL: Final = 0.5
"""Seconds between two looks at how late the loop is."""

_CLASSES: Final = 5
"""Of statuses: 1xx to 5xx."""


@attrs.frozen
class HistogramFigures:
    """A histogram at one moment: how many were up to each bound and above the one before, the last one is for those above all; and the sum of all."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    seconds: float


@attrs.define(eq=False)
class Histogram:
    """How long something has taken, in buckets: `bounds` are the highest seconds of each."""

    bounds: tuple[float, ...]
    _counts: list[int] = attrs.field(init=False)
    _seconds: float = attrs.field(init=False, default=0.0)

    def __attrs_post_init__(self) -> None:
        self._counts = [0] * (len(self.bounds) + 1)

    def note(self, seconds: float) -> None:
        """One has taken so long."""
        self._counts[bisect_left(self.bounds, seconds)] += 1
        self._seconds += seconds

    @property
    def figures(self) -> HistogramFigures:
        """As of now."""
        return HistogramFigures(self.bounds, tuple(self._counts), self._seconds)

    def take(self) -> list[Any]:
        """Give away what was counted, as values."""
        taken = [self._counts, self._seconds]
        self._counts, self._seconds = [0] * len(self._counts), 0.0
        return taken

    def add(self, taken: Sequence[Any]) -> None:
        """Add what another process has counted."""
        counts, seconds = taken
        self._counts = [mine + its for mine, its in zip(self._counts, counts, strict=True)]
        self._seconds += seconds


@attrs.frozen
class SumFigures:
    """Sums at one moment: of those who have figures of their own by name, of `others` together, and of all (`total`)."""

    shown: Mapping[str, tuple[int, ...]]
    others: tuple[int, ...]
    total: tuple[int, ...]


@attrs.define(eq=False)
class Sums:
    """Sums of `width` amounts each, by the name of a user or of a service, however many there are.

    Those with the largest have figures of their own: all that was counted for them. What is counted for anybody else goes to `others` as well, and stays
    there also when he gets figures of his own. So none of the figures ever goes down, whoever comes and goes, and all that is counted is in `total` once.
    """

    width: int
    _kept: dict[str, list[int]] = attrs.field(init=False, factory=lambda: {})
    _new: dict[str, list[int]] = attrs.field(init=False, factory=lambda: {})
    _others: list[int] = attrs.field(init=False)
    _total: list[int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._others, self._total = [0] * self.width, [0] * self.width

    def add(self, name: str, amounts: Sequence[int]) -> None:
        """Count amounts for a name."""
        new = self._of(name)
        for each, amount in enumerate(amounts):
            new[each] += amount

    def add_one(self, name: str, which: int) -> None:
        """Count one for a name, at the place `which`."""
        self._of(name)[which] += 1

    def _of(self, name: str) -> list[int]:
        if (new := self._new.get(name)) is None:
            if len(self._new) >= MOST_KEPT:  # nobody has looked for a while
                self._settle()
            new = self._new[name] = [0] * self.width
        return new

    def _settle(self) -> list[str]:
        """Bring what is new to the sums, and return the names that have the largest."""
        for name, amounts in self._new.items():
            _add(self._total, amounts)
            if name != OTHERS:
                _add(self._kept.setdefault(name, [0] * self.width), amounts)
        largest = heapq.nlargest(MOST_SHOWN, self._kept, key=lambda name: sum(self._kept[name]))
        shown = set(largest)
        for name, amounts in self._new.items():
            if name not in shown:
                _add(self._others, amounts)
        self._new.clear()
        if len(self._kept) > MOST_KEPT:
            # The smallest are forgotten, which nobody sees: what they had is with the others.
            keep = heapq.nlargest(
                MOST_KEPT // 2, self._kept, key=lambda name: sum(self._kept[name])
            )
            self._kept = {name: self._kept[name] for name in keep}
        return largest

    @property
    def figures(self) -> SumFigures:
        """As of now."""
        shown = self._settle()
        return SumFigures(
            {name: tuple(self._kept[name]) for name in shown},
            tuple(self._others),
            tuple(self._total),
        )

    def take(self) -> dict[str, list[int]]:
        """Give away what was counted since the last time."""
        taken, self._new = self._new, {}
        return taken


def _add(sums: list[int], amounts: Sequence[int]) -> None:
    for each, amount in enumerate(amounts):
        sums[each] += amount


@attrs.define(eq=False)
class Tally:
    """See the module. `handshakes` are those that have ended, `pending_handshakes` those that have not; that is no count, and stays in its process.

    `traffic` has the bytes that users' visitors have sent and got, `requests` the requests to names by class of status.
    """

    sessions: int = 0
    handshakes: Counter[str] = attrs.field(init=False, factory=lambda: Counter())
    pending_handshakes: int = 0
    first_byte: Histogram = attrs.field(init=False, factory=lambda: Histogram(FIRST_BYTE))
    visitor_duration: Histogram = attrs.field(init=False, factory=lambda: Histogram(DURATION))
    request_duration: Histogram = attrs.field(init=False, factory=lambda: Histogram(FIRST_BYTE))
    loop_lag: Histogram = attrs.field(init=False, factory=lambda: Histogram(LOOP_LAG))
    traffic: Sums = attrs.field(init=False, factory=lambda: Sums(2))
    requests: Sums = attrs.field(init=False, factory=lambda: Sums(_CLASSES))
    _metered: dict[int, tuple[int, int]] = attrs.field(init=False, factory=lambda: {})

    def begin_session(self, uid: int) -> None:
        """A session is up."""
        self.sessions += 1
        self._metered[uid] = 0, 0

    def meter_session(self, uid: int, user: str, received: int, sent: int) -> None:
        """A session has relayed so much so far, which may only grow."""
        received_before, sent_before = self._metered[uid]
        if (received, sent) != (received_before, sent_before):
            self._metered[uid] = received, sent
            self.traffic.add(user, (received - received_before, sent - sent_before))

    def end_session(self, uid: int, user: str, received: int, sent: int) -> None:
        """The same, and it has ended."""
        self.meter_session(uid, user, received, sent)
        del self._metered[uid]

    def note_request(self, name: str, status: int, seconds: float) -> None:
        """A request to a name was answered; one that we have answered ourselves has taken no time."""
        if 100 <= status < 600:
            self.requests.add_one(name, status // 100 - 1)
        if seconds:
            self.request_duration.note(seconds)

    async def measure_lag(self) -> None:
        """Note by how much a sleep is longer than it should be, for ever: for so long whoever may run has to wait. That is one step of Trio twice a second."""
        while True:
            due = trio.current_time() + _LAG_INTERVAL
            await trio.sleep_until(due)
            self.loop_lag.note(trio.current_time() - due)

    @property
    def _histograms(self) -> tuple[Histogram, ...]:
        return self.first_byte, self.visitor_duration, self.request_duration, self.loop_lag

    def take(self) -> dict[str, Any]:
        """Give away what was counted, as values for `add`."""
        sessions, self.sessions = self.sessions, 0
        handshakes, self.handshakes = self.handshakes, Counter()
        return {
            "sessions": sessions,
            "handshakes": handshakes,
            "histograms": [histogram.take() for histogram in self._histograms],
            "traffic": self.traffic.take(),
            "requests": self.requests.take(),
        }

    def add(self, taken: Mapping[str, Any]) -> None:
        """Add what another process has given away."""
        self.sessions += taken["sessions"]
        self.handshakes.update(taken["handshakes"])
        for histogram, values in zip(self._histograms, taken["histograms"], strict=True):
            histogram.add(values)
        for sums, values in (
            (self.traffic, taken["traffic"]),
            (self.requests, taken["requests"]),
        ):
            for name, amounts in values.items():
                sums.add(name, amounts)
