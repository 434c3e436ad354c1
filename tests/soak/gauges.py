"""What all processes hold: at rest before, while visitors are there, and at rest afterwards."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

import attrs
import trio

from tests.soak.watch import Cost
from trionat.errors import StartupError

if TYPE_CHECKING:
    from tests.soak.book import Book
    from tests.soak.post import Post
    from tests.soak.trouble import Operator

GROWTH: Final = 0.05
"""By which share of the plateau memory may still grow."""
SHORT: Final = 240.0
SHORT_GROWTH: Final = 0.15
"""The same in a run of fewer than `SHORT` seconds: it takes two minutes or so to come to a plateau, and that is measured from the first quarter on."""
REST_INTERVAL: Final = 1.0
STEADY: Final = 3
"""Looks in a row that have to agree."""

SERVER: Final = "server"
TASKS: Final = "tasks and nurseries of the server"


@attrs.define(eq=False)
class Gauges:
    """Looks at the server and at all clients. Descriptors of clients that replace each other are added up, by group.

    `memory` are the samples, in bytes, of processes that are there from beginning to end; `rest` and `back` are counts at rest,
    before and after, by what was counted, `peak` the most there was between. `unanswered` is how often the server did not
    tell its own in time. Seconds until all is at rest are `rest_within` at most.
    """

    server: int
    posts: list[Post]
    operator: Operator
    book: Book
    rest_within: float
    memory: dict[str, list[int]] = attrs.field(factory=lambda: {})
    memory_at_rest: dict[str, int] = attrs.field(factory=lambda: {})
    memory_at_end: dict[str, int] = attrs.field(factory=lambda: {})
    rest: dict[str, int] = attrs.field(factory=lambda: {})
    peak: dict[str, int] = attrs.field(factory=lambda: {})
    back: dict[str, int] = attrs.field(factory=lambda: {})
    unanswered: int = 0

    async def rest_before(self) -> None:
        """Wait until all is at rest, and keep the figures."""
        last: dict[str, int] = {}
        steady = 0
        with trio.move_on_after(self.rest_within):
            while steady < STEADY:
                await trio.sleep(REST_INTERVAL)
                counts = await self._count()
                steady = steady + 1 if counts == last else 0
                last = counts
        self.rest = last
        self.memory_at_rest = self._memory()

    async def rest_after(self) -> None:
        """Wait until all is as it was at rest before; what is not in time is a fault."""
        with trio.move_on_after(self.rest_within):
            while True:
                self.back = await self._count()
                if self.back == self.rest:
                    break
                await trio.sleep(REST_INTERVAL)
        for name, count in self.rest.items():
            if (left := self.back.get(name, 0)) != count:
                self.book.fault("left behind", f"{name}: {left} at rest, {count} before")
        self.memory_at_end = self._memory()

    async def sample(self, interval: float) -> None:
        """Sample every so many seconds until cancelled."""
        while True:
            for name, size in self._memory().items():
                self.memory.setdefault(name, []).append(size)
            try:
                counts = await self._count()
            except StartupError:  # a server that is kept from running gives a command up after 5 s
                self.unanswered += 1
            else:
                for name, count in counts.items():
                    self.peak[name] = max(count, self.peak.get(name, 0))
            await trio.sleep(interval)

    def plateau(self, name: str) -> tuple[float, float]:
        """Return the median of the second quarter of the samples of a process, and that of the last quarter."""
        samples = self.memory[name]
        quarter = max(1, len(samples) // 4)
        return median(samples[quarter : 2 * quarter] or samples), median(samples[-quarter:])

    def check_memory(self, seconds: float) -> None:
        """Compare the last quarter, and the end, of a run of so many seconds with the plateau."""
        growth = GROWTH if seconds >= SHORT else SHORT_GROWTH
        for name in self.memory_at_rest:
            plateau, late = self.plateau(name)
            for when, size in (("last quarter", late), ("end", self.memory_at_end[name])):
                if size > plateau * (1 + growth):
                    text = f"{name}: {size / 2**20:.1f} MiB in the {when}, {plateau / 2**20:.1f} in the second quarter"
                    self.book.fault("memory grows", text)

    async def _count(self) -> dict[str, int]:
        counts = {TASKS: await self.operator.count_tasks()}
        for name, pid in self._processes():
            if (cost := Cost.of(pid)) is not None:
                counts[name] = counts.get(name, 0) + cost.descriptors
        return counts

    def _processes(self) -> list[tuple[str, int]]:
        clients = [(post.group, post.process.pid) for post in self.posts if post.process]
        return [(SERVER, self.server), *clients]

    def _memory(self) -> dict[str, int]:
        lasting = {SERVER: self.server} | {
            post.name: post.process.pid for post in self.posts if post.lasting and post.process
        }
        costs = {name: Cost.of(pid) for name, pid in lasting.items()}
        return {name: cost.memory for name, cost in costs.items() if cost is not None}
