"""What an upgrade costs those who are there, and those who come: `python -m bench.upgrade`.

Visitors ask an echo a question, and the next one when they have the answer, all the while; others come, ask once, and go. For how long nobody was accepted is what `trionat upgrade` says.
A stream's stand-still is its longest round around an upgrade.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Final

import attrs
import trio

from tests.e2e import running, services
from tests.e2e.upgrading import upgradable

_QUESTION: Final = b"x" * 1000
_PAUSE: Final = 0.01
_BEFORE: Final = 2.0
"""Seconds before each upgrade: a client that was up for less than one waits before it comes back."""


@attrs.define(eq=False)
class _Longest:
    """The longest time since `begin`."""

    seconds: float = 0.0

    def note(self, seconds: float) -> None:
        self.seconds = max(self.seconds, seconds)


async def _talk(port: int, longest: _Longest) -> None:
    async with await trio.open_tcp_stream(services.HOST, port) as stream:
        while True:
            began = trio.current_time()
            await running.ask(stream, _QUESTION)
            longest.note(trio.current_time() - began)
            await trio.sleep(_PAUSE)


async def _come_and_go(port: int, longest: _Longest) -> None:
    while True:
        began = trio.current_time()
        async with await trio.open_tcp_stream(services.HOST, port) as stream:
            await running.ask(stream, _QUESTION)
        longest.note(trio.current_time() - began)
        await trio.sleep(_PAUSE)


async def measure(upgrades: int, visitors: int, workers: int) -> None:
    """Measure, and print."""
    deaf: list[float] = []
    stood: list[float] = []
    waited: list[float] = []
    with tempfile.TemporaryDirectory(prefix="trionat-bench-") as name:
        folder = Path(name)
        async with (
            services.echo() as echo,
            upgradable(folder / "s", "--workers", str(workers)) as it,
            running.client(folder / "c", it.server.ticket, echo) as client,
            trio.open_nursery() as nursery,
        ):
            talking = [_Longest() for _ in range(visitors)]
            coming = [_Longest() for _ in range(4)]
            for each in talking:
                nursery.start_soon(_talk, client.port(), each)
            for each in coming:
                nursery.start_soon(_come_and_go, client.port(), each)
            for _ in range(upgrades):
                await trio.sleep(_BEFORE)
                for each in (*talking, *coming):
                    each.seconds = 0.0
                deaf.append((await it.upgrade())["seconds"])
                await trio.sleep(1)
                stood += [each.seconds for each in talking]
                waited += [each.seconds for each in coming]
            nursery.cancel_scope.cancel()
    print(
        f"{upgrades} upgrades with {visitors} visitors that talk, and 4 that come and go; workers: {workers}"
    )
    for what, figures in (
        ("nobody was accepted", deaf),
        ("a stream stood still", stood),
        ("who came waited", waited),
    ):
        median, most = statistics.median(figures) * 1000, max(figures) * 1000
        print(f"  {what:22} median {median:.0f} ms, longest {most:.0f} ms")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrades", type=int, default=6)
    parser.add_argument("--visitors", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    trio.run(measure, arguments.upgrades, arguments.visitors, arguments.workers)


if __name__ == "__main__":
    main()
