"""The whole of it: a server, its clients, the public, and what is done to them.

Ports and clients: two that nobody touches (one of them with a port of its choice, one without TLS in its tunnels), one whose user may
have few visitors, two whose connections are cut, one that is killed or stopped, a pair that evicts each other, and three for two
slots, which queue and are kicked.
"""

from __future__ import annotations

import os
import platform
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from random import Random
from typing import TYPE_CHECKING, Final

import attrs
import trio

from tests.e2e import running, services
from tests.faults.proxy import Proxy, proxied
from tests.soak.book import Book
from tests.soak.gauges import Gauges
from tests.soak.post import Post
from tests.soak.public import Public
from tests.soak.talk import Host
from tests.soak.trouble import Operator, Trouble
from tests.soak.watch import Ears
from trionat.protocol.ticket import Ticket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

PORTS: Final = 9
PLAIN: Final = ("--tunnel-encryption", "none")
GUEST: Final = "guest"
"""The user who may have few visitors: less than half of its share of them."""

SPARE: Final = "pair-2"
"""The client that does not run at first: it is to evict the other one."""


@attrs.frozen(kw_only=True)
class Plan:
    """How long, in seconds, how many visitors at a time, and what chance is made of.

    `pause` is as in `Trouble`, `flags` is what every client is told besides. Everything has to be at rest `rest_within` seconds after
    the last visitor: idle tunnels that are not needed any more go home within a minute, and a busy machine takes its time.
    """

    seconds: float
    visitors: int
    seed: int
    pause: float = 12.0
    flags: tuple[str, ...] = ()
    rest_within: float = 120.0

    @property
    def guests(self) -> int:
        """How many visitors the guest may have at once."""
        return max(1, self.visitors // PORTS // 3)

    @property
    def sample_interval(self) -> float:
        """Seconds; at least forty samples."""
        return min(5.0, self.seconds / 40)


@attrs.frozen(kw_only=True)
class Outcome:
    """What there is to report."""

    plan: Plan
    seconds: float
    machine: str
    book: Book
    gauges: Gauges


async def soak(plan: Plan, folder: Path) -> Outcome:
    """Run it, with all files in an empty folder. Faults of trionat are in the outcome's book, and are not raised."""
    book = Book()
    async with (
        services.serve(Host(book.fault).serve) as service,
        _server(folder / "server", book) as server,
        AsyncExitStack() as proxies,
    ):
        posts = await _clients(plan, folder, server, service, book, proxies)
        async with trio.open_nursery() as nursery:
            for post in posts:
                if post.name != SPARE:
                    nursery.start_soon(post.live)
                    await post.wait_settled()
            outcome = await _visit(plan, server, posts, book, nursery)
            for post in posts:
                post.stop()
                await post.wait_end()
    return outcome


@asynccontextmanager
async def _server(folder: Path, book: Book) -> AsyncIterator[running.Server]:
    """Run a server and listen to it; what is wrong with its end or its log is a fault."""
    try:
        async with running.server(folder, *PLAIN, visit=",".join("0" * PORTS)) as server:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Ears("server", server.process.errors, book).listen)
                yield server
                nursery.cancel_scope.cancel("it is to end")
    except AssertionError as error:
        book.fault("in a log", f"server: {error}")


async def _clients(
    plan: Plan,
    folder: Path,
    server: running.Server,
    service: services.Service,
    book: Book,
    stack: AsyncExitStack,
) -> list[Post]:
    """Make the clients, none of which runs yet, and the proxies before two of them."""
    ticket, chosen_port = server.ticket, server.ready["visit_ports"][-1]
    guest_ticket = await _add_guest(server, plan.guests)
    new = partial(Post, folder=folder, book=book)

    def lasting(name: str, *words: str, proxy: Proxy | None = None) -> Post:
        return new(
            name=name,
            identity=name,
            group=name,
            words=(*words, *plan.flags),
            lasting=True,
            proxy=proxy,
        )

    posts = [
        lasting("steady", ticket, f"{service}:{chosen_port}"),
        lasting("plain", ticket, str(service), *PLAIN),
        lasting(GUEST, guest_ticket, str(service)),
    ]
    for name in ("cut-1", "cut-2"):
        proxy = Proxy(server.control, services.free_low_port())
        await stack.enter_async_context(proxied(proxy))
        detour = attrs.evolve(Ticket.decode(ticket), port=proxy.port).encode()
        posts.append(lasting(name, detour, str(service), proxy=proxy))
    words = (ticket, str(service), *plan.flags)
    posts += [new(name="mortal", identity="mortal", group="mortal", words=words, mortal=True)]
    pair = ("pair-1", SPARE)
    posts += [new(name=name, identity="pair", group="pair", words=words) for name in pair]
    queue = ("queue-1", "queue-2", "queue-3")
    posts += [new(name=name, identity=name, group="queue", words=words) for name in queue]
    return posts


async def _add_guest(server: running.Server, visitors: int) -> str:
    """Make an account with a limit; return its ticket."""
    state = ("--state-dir", server.state)
    ticket = ""
    for command in (
        ("user", "add", GUEST),
        ("user", "limit", GUEST, "--visitors", str(visitors)),
        ("user", "ticket", GUEST),
    ):
        result = await services.run_trionat(*command, *state, stdin=b"soaked\n", cwd=server.state)
        assert result.returncode == 0, result.stderr.decode()
        ticket = result.stdout.decode().strip()
    return ticket


async def _visit(
    plan: Plan,
    server: running.Server,
    posts: list[Post],
    book: Book,
    nursery: trio.Nursery,
) -> Outcome:
    """Let the public in, disturb it, and see that everything is as before when it has left."""
    rng = Random(plan.seed)
    operator = Operator(server.state, book)
    gauges = Gauges(server.process.process.pid, posts, operator, book, plan.rest_within)
    public = Public(posts, book, Random(rng.random()))
    trouble = Trouble(
        operator=operator, book=book, rng=Random(rng.random()), nursery=nursery, pause=plan.pause
    )
    by_name = {post.name: post for post in posts}
    one, other = by_name["pair-1"], by_name[SPARE]
    mortal = by_name["mortal"]
    troubles: list[Sequence[Callable[[], Awaitable[None]]]] = [
        *(trouble.cuts(post) for post in posts if post.proxy is not None),
        [partial(trouble.kill, mortal), partial(trouble.sleep, mortal)],
        [partial(trouble.evict, one, other)],
        [partial(trouble.kick, [post for post in posts if post.group == "queue"])],
        [trouble.kick_visitor],
    ]
    await gauges.rest_before()
    began = trio.current_time()
    async with trio.open_nursery() as visiting:
        visiting.start_soon(gauges.sample, plan.sample_interval)
        async with trio.open_nursery() as present:
            present.start_soon(public.run, plan.visitors)
            async with trio.open_nursery() as disturbed:
                for actions in troubles:
                    disturbed.start_soon(trouble.make, actions)
                await trio.sleep(plan.seconds)
                trouble.calm.set()
            public.leaving.set()
        visiting.cancel_scope.cancel("everybody has left")
    seconds = trio.current_time() - began
    await gauges.rest_after()
    book.settle()
    gauges.check_memory(plan.seconds)
    machine = f"{os.cpu_count()} CPUs, {platform.system()}, CPython {platform.python_version()}, trionat {version('trionat')}"
    return Outcome(plan=plan, seconds=seconds, machine=machine, book=book, gauges=gauges)
