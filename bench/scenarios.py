"""What is measured on a chain, and how."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Final

import attrs
import trio

from bench import visitors
from bench.load import move_bulk, send_requests
from bench.outage import Outage
from bench.results import Measure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from bench.chain import Ends

ROUND_TRIP: Final = 0.05
_SETTLE: Final = 1.0
"""Seconds for a chain to come to rest: tunnels are opened ahead, memory is given back."""
_VISIT_PAUSE: Final = 0.1
_TYPING_PAUSE: Final = 0.002
_MIB: Final = 2**20
_GIB: Final = 2**30


@attrs.frozen(kw_only=True)
class Effort:
    """How much is done: the numbers of a run that is to be believed, or (`QUICK`) of one that shows that all of it works."""

    rounds: int = 3
    bulk_seconds: int = 4
    requests_alone: int = 10_000
    requests_at_once: int = 60_000
    connections: int = 6_000
    visits: int = 20
    burst: int = 50
    idle: int = 1_000
    talk_seconds: float = 4.0
    cut_seconds: float = 10.0
    cut_patience: float = 30.0


QUICK: Final = Effort(
    rounds=1,
    bulk_seconds=1,
    requests_alone=500,
    requests_at_once=3_000,
    connections=300,
    visits=3,
    idle=50,
    talk_seconds=1.0,
    cut_seconds=2.0,
    cut_patience=6.0,
)


@attrs.frozen(kw_only=True)
class Scenario:
    """One thing that is done with a chain, and the measures that come of it.

    `text` may name the numbers of the effort, as in `{idle:,}`. `round_trip` is the length of the path between the two ends, in
    seconds; `cuttable` tells that they are linked by what can be cut. `of_ends` tells that it says something about the two ends
    only, so that a chain without any is left out.
    """

    name: str
    title: str
    text: str
    measures: tuple[Measure, ...]
    run: Callable[[Ends, Effort], Awaitable[Mapping[Measure, float]]]
    round_trip: float = 0
    cuttable: bool = False
    of_ends: bool = False


# --- bulk ---

BULK: Final = {
    (streams, outward): Measure(
        key=f"bulk_{'out' if outward else 'in'}_{streams}",
        title=f"{'from' if outward else 'to'} the service, {streams} stream{'s' * (streams > 1)}",
        unit="Gbit/s",
        digits=2,
        more_is_better=True,
    )
    for outward in (False, True)
    for streams in (1, 8)
}
PROCESSOR: Final = Measure(
    key="processor", title="processor time, both ends", unit="s/GiB", digits=2
)


async def _bulk(ends: Ends, effort: Effort) -> dict[Measure, float]:
    figures: dict[Measure, float] = {}
    for (streams, outward), measure in BULK.items():
        before = ends.processor_seconds
        moved = await move_bulk(
            ends.visit.bulk, streams=streams, seconds=effort.bulk_seconds, outward=outward
        )
        figures[measure] = moved.bits_per_second / 1e9
        if (streams, outward) == (1, False) and ends.public:
            figures[PROCESSOR] = (ends.processor_seconds - before) / (moved.bytes / _GIB)
    return figures


# --- requests ---

ALONE: Final = Measure(
    key="requests_1", title="1 connection", unit="requests/s", more_is_better=True
)
AT_ONCE: Final = Measure(
    key="requests_50", title="50 connections", unit="requests/s", more_is_better=True
)
ALONE_P50: Final = Measure(key="p50_1", title="1 connection, p50", unit="ms", digits=3)
ALONE_P99: Final = Measure(key="p99_1", title="1 connection, p99", unit="ms", digits=3)
AT_ONCE_P50: Final = Measure(key="p50_50", title="50 connections, p50", unit="ms", digits=3)
AT_ONCE_P99: Final = Measure(key="p99_50", title="50 connections, p99", unit="ms", digits=3)


async def _requests(ends: Ends, effort: Effort) -> dict[Measure, float]:
    port = ends.visit.requests
    alone = await send_requests(port, connections=1, requests=effort.requests_alone)
    at_once = await send_requests(port, connections=50, requests=effort.requests_at_once)
    return {
        ALONE: alone.per_second,
        AT_ONCE: at_once.per_second,
        ALONE_P50: alone.p50,
        ALONE_P99: alone.p99,
        AT_ONCE_P50: at_once.p50,
        AT_ONCE_P99: at_once.p99,
    }


# --- new connections ---

CONNECTIONS: Final = Measure(
    key="connections", title="20 at once", unit="connections/s", more_is_better=True
)


async def _connections(ends: Ends, effort: Effort) -> dict[Measure, float]:
    done = await send_requests(
        ends.visit.requests, connections=20, requests=effort.connections, keep=False
    )
    return {CONNECTIONS: done.per_second}


# --- the first byte ---

WARM: Final = Measure(
    key="first_byte_warm", title="one visitor after another, median", unit="round trips", digits=2
)
BURST: Final = Measure(
    key="first_byte_burst", title="burst of 50, median", unit="round trips", digits=2
)
BURST_SLOWEST: Final = Measure(
    key="first_byte_burst_slowest", title="burst of 50, slowest", unit="round trips", digits=2
)


async def _first_byte(ends: Ends, effort: Effort) -> dict[Measure, float]:
    port = ends.visit.requests
    await trio.sleep(_SETTLE)
    warm = await trio.to_thread.run_sync(visitors.visit_in_turn, port, effort.visits, _VISIT_PAUSE)
    await trio.sleep(_SETTLE)
    burst = await trio.to_thread.run_sync(visitors.visit_at_once, port, effort.burst)
    return {
        WARM: statistics.median(warm) / ROUND_TRIP,
        BURST: statistics.median(burst) / ROUND_TRIP,
        BURST_SLOWEST: max(burst) / ROUND_TRIP,
    }


# --- memory ---

PUBLIC_REST: Final = Measure(key="memory_public", title="public end, at rest", unit="MiB", digits=1)
PRIVATE_REST: Final = Measure(
    key="memory_private", title="private end, at rest", unit="MiB", digits=1
)
PUBLIC_VISITOR: Final = Measure(
    key="visitor_public", title="public end, per visitor", unit="KiB", digits=1
)
PRIVATE_VISITOR: Final = Measure(
    key="visitor_private", title="private end, per visitor", unit="KiB", digits=1
)


async def _memory(ends: Ends, effort: Effort) -> dict[Measure, float]:
    await trio.sleep(_SETTLE)
    rest = _resident(ends)
    with await trio.to_thread.run_sync(visitors.come_and_stay, ends.visit.requests, effort.idle):
        await trio.sleep(_SETTLE)
        busy = _resident(ends)
    return {
        PUBLIC_REST: rest[0] / _MIB,
        PRIVATE_REST: rest[1] / _MIB,
        PUBLIC_VISITOR: (busy[0] - rest[0]) / effort.idle / 1024,
        PRIVATE_VISITOR: (busy[1] - rest[1]) / effort.idle / 1024,
    }


def _resident(ends: Ends) -> tuple[int, int]:
    return (
        sum(program.resident_bytes for program in ends.public),
        sum(program.resident_bytes for program in ends.private),
    )


# --- somebody who types, beside a bulk transfer ---

TALK_ALONE: Final = Measure(key="talk_alone", title="alone, p99", unit="ms", digits=3)
TALK_BESIDE: Final = Measure(key="talk_beside", title="beside the bulk, p99", unit="ms", digits=3)
TALK_RATIO: Final = Measure(key="talk_ratio", title="beside / alone", digits=1)


async def _talk(ends: Ends, effort: Effort) -> dict[Measure, float]:
    async def ask() -> float:
        return _p99(
            await trio.to_thread.run_sync(
                visitors.ask_for, ends.visit.requests, effort.talk_seconds, _TYPING_PAUSE
            )
        )

    async def disturb() -> None:
        await move_bulk(ends.visit.bulk, streams=1, seconds=3600)

    alone = await ask()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disturb)
        await trio.sleep(_SETTLE)  # it is at full speed now
        beside = await ask()
        nursery.cancel_scope.cancel("heard enough")
    return {TALK_ALONE: alone * 1e3, TALK_BESIDE: beside * 1e3, TALK_RATIO: beside / alone}


# --- a cut ---


@attrs.frozen(kw_only=True)
class Cut:
    """What becomes of those who are there when the two ends are cut off from each other, and of who comes afterwards."""

    reset: bool
    download: Measure
    typing: Measure
    newcomer: Measure

    @classmethod
    def of(cls, name: str, *, reset: bool) -> Cut:
        """Return the measures of one way to be cut off."""

        def time(key: str, title: str, never: str) -> Measure:
            return Measure(key=f"{name}_{key}", title=title, unit="s", digits=1, never=never)

        return cls(
            reset=reset,
            download=time("download", "a download goes on after", "lost"),
            typing=time("typing", "an answer comes after", "lost"),
            newcomer=time("newcomer", "a newcomer is served after", "not served"),
        )

    @property
    def measures(self) -> tuple[Measure, ...]:
        """All of it."""
        return self.download, self.typing, self.newcomer

    async def run(self, ends: Ends, effort: Effort) -> dict[Measure, float]:
        """Cut a chain."""
        outage = Outage(seconds=effort.cut_seconds, patience=effort.cut_patience, reset=self.reset)
        await outage.happen(ends)
        return {
            self.download: outage.download,
            self.typing: outage.typing,
            self.newcomer: outage.newcomer,
        }


CUT: Final = Cut.of("cut", reset=True)
SILENCE: Final = Cut.of("silence", reset=False)
_CUT_TEXT: Final = (
    " A download is under way then, and somebody sends a word to an echo ten times a second and waits for each answer. Times are"
    " counted from the beginning of the cut, so {cut_seconds:g} s is the least. A stream is lost that is cut off, or does not go on"
    " within {cut_patience:g} s after the cut; one that goes on does so byte for byte, or the measurement fails. Newcomers come every"
    " 0.2 s from the end of the cut on. A program that ends by itself is not started again."
)


def _p99(times: Sequence[float]) -> float:
    return sorted(times)[math.ceil(0.99 * len(times)) - 1]


SCENARIOS: Final = (
    Scenario(
        name="bulk",
        title="Bulk",
        text="iperf3, one way, with one stream and with eight. Processor time is of the first: user's and kernel's, of both"
        " ends together, for each GiB that arrived.",
        measures=(*BULK.values(), PROCESSOR),
        run=_bulk,
    ),
    Scenario(
        name="requests",
        title="Requests",
        text="redis-benchmark, GET, over one connection and over fifty that stay. It counts time in steps of 0.008 ms.",
        measures=(ALONE, AT_ONCE, ALONE_P50, ALONE_P99, AT_ONCE_P50, AT_ONCE_P99),
        run=_requests,
    ),
    Scenario(
        name="connections",
        title="New connections",
        text="redis-benchmark, a connection of its own for every PING, twenty at once.",
        measures=(CONNECTIONS,),
        run=_connections,
    ),
    Scenario(
        name="first-byte",
        title="Time to the first byte",
        text=f"Between the two ends is a path of {ROUND_TRIP * 1e3:.0f} ms there and back."
        " A visitor connects, asks, and the time"
        " to the first byte of the answer is taken, in round trips: 1.0 is the least. First visitors come one after another,"
        " then {burst} at the same moment.",
        measures=(WARM, BURST, BURST_SLOWEST),
        run=_first_byte,
        round_trip=ROUND_TRIP,
        of_ends=True,
    ),
    Scenario(
        name="memory",
        title="Memory",
        text="Resident memory of each end, a second after its start, and what it holds more with {idle:,} visitors who were answered"
        " once and stay, for each of them. An end of several processes counts what these share several times.",
        measures=(PUBLIC_REST, PRIVATE_REST, PUBLIC_VISITOR, PRIVATE_VISITOR),
        run=_memory,
        of_ends=True,
    ),
    Scenario(
        name="beside-bulk",
        title="Beside a bulk transfer",
        text="One visitor asks every 2 ms, first alone, then beside another one who sends as fast as it goes (to the other"
        " service of the same chain).",
        measures=(TALK_ALONE, TALK_BESIDE, TALK_RATIO),
        run=_talk,
    ),
    Scenario(
        name="cut",
        title="What a cut costs",
        text="All connections between the two ends are reset, and for {cut_seconds:g} s none can be made, as when a router between them"
        " starts anew." + _CUT_TEXT,
        measures=CUT.measures,
        run=CUT.run,
        cuttable=True,
        of_ends=True,
    ),
    Scenario(
        name="silence",
        title="What a silent cut costs",
        text="Nothing crosses the connections between the two ends any more and nobody is told, and for {cut_seconds:g} s no new one"
        " can be made, as when the address of one end changes." + _CUT_TEXT,
        measures=SILENCE.measures,
        run=SILENCE.run,
        cuttable=True,
        of_ends=True,
    ),
)
