"""The shape that everything is measured in: visitor -> public end -> private end -> service, over the loopback."""

from __future__ import annotations

import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

from bench import path
from bench.link import Link
from bench.outage import serve_download
from bench.program import (
    HOST,
    START_TIMEOUT,
    FailedError,
    Program,
    find,
    free_port,
    running,
    wait_listening,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable


@attrs.frozen
class Ports:
    """Where the two services of every chain are reached: at home, or in public."""

    bulk: int
    """iperf3, or the download of `outage`"""
    requests: int
    """Redis"""


@attrs.frozen(kw_only=True)
class Ends:
    """A chain that was built: its programs on either end, and where visitors connect."""

    public: tuple[Program, ...]
    private: tuple[Program, ...]
    visit: Ports
    link: Link | None = None
    """What is between them, where it can be cut."""

    @property
    def processor_seconds(self) -> float:
        """Processor time of both ends so far."""
        return sum(program.processor_seconds for program in (*self.public, *self.private))


@attrs.frozen(kw_only=True)
class Chain:
    """A way to get from visitor to service. `build` raises `MissingError` if something for it is not here."""

    name: str
    encrypted: bool
    build: Callable[[Site, Ports], Awaitable[Ends]]


@attrs.frozen
class Site:
    """Where a chain is built: a folder of its own, and programs that are stopped, the last one first, when it is left.

    `round_trip` is the length, in seconds, of the path between the two ends; 0 for none. With a `link`, they are reached over
    that one, and programs may end by themselves.
    """

    folder: Path
    round_trip: float
    link: Link | None
    nursery: trio.Nursery
    _stack: AsyncExitStack

    async def run(self, name: str, *command: object, **environ: str) -> Program:
        """Start a program."""
        program = running(name, command, self.folder, may_end=self.link is not None, **environ)
        return await self._stack.enter_async_context(program)

    async def cross(self, port: int, entrance: tuple[str, int] | None = None) -> tuple[str, int]:
        """Return the address by which the other end reaches `port`: over the path or the link, where there is one.

        `entrance` is where that has to begin; left out, anywhere.
        """
        if self.link is None and not self.round_trip:
            return HOST, port
        host, number = entrance or (HOST, free_port())
        if self.link is not None:
            self.link.open((host, number), port)
            return host, number
        program = [sys.executable, path.__file__, host, number, port, self.round_trip]
        await self.run("path", *program)
        await wait_listening(number, host=host)
        return host, number


@asynccontextmanager
async def open_site(round_trip: float = 0, *, cuttable: bool = False) -> AsyncGenerator[Site]:
    """Yield a place to build on, `cuttable` with a link; nothing of it is left in the end."""
    with tempfile.TemporaryDirectory(prefix="trionat-bench-") as folder:
        async with trio.open_nursery() as nursery:
            link = Link(nursery) if cuttable else None
            async with AsyncExitStack() as stack:
                yield Site(Path(folder), round_trip, link, nursery, stack)
            nursery.cancel_scope.cancel("it is not needed any more")


@asynccontextmanager
async def standing(
    chain: Chain, round_trip: float = 0, *, cuttable: bool = False
) -> AsyncGenerator[Ends]:
    """Build a chain with its services, and yield it when a request has gone through."""
    async with open_site(round_trip, cuttable=cuttable) as site:
        home = await start_services(site)
        ends = await chain.build(site, home)
        await wait_listening(ends.visit.bulk, ends.visit.requests)
        await _wait_answered(ends.visit.requests)
        yield attrs.evolve(ends, link=site.link)


async def start_services(site: Site) -> Ports:
    """Start what visitors want: iperf3, or a download where it can be cut, and a Redis that writes nothing to disk."""
    home = Ports(free_port(), free_port())
    if site.link is None:
        iperf3 = find("iperf3", package="iperf3")
        await site.run("iperf3", iperf3, "-s", "-B", HOST, "-p", home.bulk)
    else:
        serve = partial(trio.serve_tcp, serve_download, home.bulk, host=HOST)
        await site.nursery.start(serve)
    redis = find("redis-server", package="redis-server")
    options = ["--bind", HOST, "--port", home.requests, "--save", "", "--appendonly", "no"]
    await site.run("redis", redis, *options)
    await wait_listening(home.bulk, home.requests)
    return home


async def _wait_answered(port: int) -> None:
    """Ask until the service answers: the public end may listen before the private one is there."""
    with trio.move_on_after(START_TIMEOUT):
        while True:
            try:
                async with await trio.open_tcp_stream(HOST, port) as visitor:
                    await visitor.send_all(b"PING\r\n")
                    if await visitor.receive_some():
                        return
            except (OSError, trio.BrokenResourceError):
                pass
            await trio.sleep(0.05)
    raise FailedError("no answer came through")
