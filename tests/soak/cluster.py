"""A cluster as docs/cluster.md has it: set up by the page, then used while nodes, Redis and networks are taken away, and taken down by the page.

Three nodes, nginx, Redis and MariaDB have a network each. Clients and visitors are on a machine of their own; they come through nginx, or to the nodes
themselves. One disturbance comes after another, and each says before it begins at which doors (nodes) which ports may suffer what. When it is over,
every port has to be served at every door.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Final

import attrs
import trio

from tests import mariadb
from tests.e2e import services
from tests.faults.machines import open_site
from tests.redis_server import running_redis
from tests.soak.book import Book
from tests.soak.page import ADDRESSES, EXAMPLES, INSIDE, NODES, REDIS_PASSWORD, Page
from tests.soak.post import Post
from tests.soak.public import Door, Public
from tests.soak.report import conversations, faults
from tests.soak.talk import ECHO, CutError, Host, Visitor
from tests.soak.watch import Ears

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

    from tests.faults.machines import Machine, Site
    from tests.redis_server import RedisServer
    from tests.soak.book import Cut, Place

START: Final = 40.0
"""Seconds for a process to be up, on a machine that is busy."""
SETTLES_WITHIN: Final = 60.0
ALL: Final = "all.example.com"
"""The name of all nodes."""
FIRST: Final = "tunnel.example.com"
GIVEN_UP_AFTER: Final = 6.5
"""Seconds after which the others have given up a node that does not beat."""
SERVED_WITHIN: Final = 8.0
"""Seconds for which a visitor waits for its client (VisitorWait)."""


@attrs.frozen(kw_only=True)
class ClusterPlan:
    """How long, how many visitors at a time, and what chance is made of.

    Without `seconds` each disturbance comes once, but for those that other tests have. What is frozen or cut off stays so for one of `holds` seconds. `clients` is how many there are, of which
    every third knows all nodes, and the others come through nginx.
    """

    visitors: int
    seed: int
    seconds: float | None = None
    clients: int = 6
    holds: tuple[float, ...] = (3.0, 7.0, 12.0, 20.0)
    pause: float = 3.0
    patience: float = 10.0


@attrs.define(eq=False)
class ClusterBook(Book):
    """Nobody may be refused in a cluster that has room for all: whoever is not served is in here by its own end."""

    times: dict[str, list[float]] = attrs.field(factory=lambda: {})
    """Seconds that were measured, by what they are."""
    killed: str = ""
    """The node that was killed last."""

    def may_end(self, cut: Cut) -> bool:
        """nginx makes an end of every reset, and so does the kernel for a process that is killed."""
        return cut.way == "proxy" or cut.door == self.killed

    def add_refusals(self, port: int, count: int) -> None:
        """A server has told of it."""
        self.refusals += count

    def add_not_served(self, port: int) -> None:
        """A server has told of it."""
        self.refusals += 1

    def add_time(self, what: str, seconds: float) -> None:
        """Note how long something has taken."""
        self.times.setdefault(what, []).append(seconds)


@attrs.define(eq=False)
class Node:
    """A server on its machine: one process, and the next one after it. `code` is the exit code that its end is to have."""

    name: str
    machine: Machine
    command: str
    book: Book
    process: services.TrionatProcess | None = None
    code: int = 0
    fingerprint: str = ""

    async def live(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run one process until it ends; started when it is ready."""
        self.code = 0
        command = [*self.machine.inside, *self.machine.words(self.command), "--json"]
        async with services.json_process(
            command, cwd=self.machine.folder, environ=self.machine.environ
        ) as process:
            self.process = process
            async with trio.open_nursery() as nursery:
                ears = Ears(self.name, process.errors, self.book)
                nursery.start_soon(ears.listen)
                ready = await process.next_event("ready", within=START)
                self.fingerprint = str(ready["fingerprint"])
                task_status.started()
                code = await process.wait(within=math.inf)
                ears.catch_up()
                nursery.cancel_scope.cancel("it has ended")
        self.process = None
        if code != self.code:
            self.book.fault("ended", f"{self.name} with {code} instead of {self.code}")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        if number is signal.SIGKILL:
            self.code = -signal.SIGKILL
        self.process.process.send_signal(number)

    async def wait_end(self) -> None:
        """Wait until its process has ended."""
        with trio.fail_after(SETTLES_WITHIN):
            while self.process is not None:  # noqa: ASYNC110 - polls
                await trio.sleep(0.02)


@attrs.frozen
class ProxyDoor(Door):
    """nginx, of which its log tells which node it has chosen for whom."""

    log: Path | None = None

    async def find(self, address: str) -> str:
        """Return the node that the visitor was passed to."""
        assert self.log is not None
        by_address = {f"{address}:7000": name for name, address in ADDRESSES.items()}
        since = time.time() - 2  # the visitor has just ended; its address had others before
        with trio.move_on_after(2):
            while True:
                for line in reversed(self.log.read_text().splitlines()):
                    ended, visitor, *chosen = line.split()
                    if float(ended) < since:
                        break
                    if visitor == address and chosen and chosen[-1] in by_address:
                        return by_address[chosen[-1]]
                await trio.sleep(0.05)
        return self.name


@attrs.define(eq=False, kw_only=True)
class Cluster:
    """See the module. `enter` makes all machines, and sets one server up; `grow` makes three of it, `shrink` one again."""

    plan: ClusterPlan
    site: Site
    page: Page
    book: ClusterBook
    redis: RedisServer
    nursery: trio.Nursery
    folder: Path
    service: services.Service
    nodes: dict[str, Node]
    proxy: trio.Process | None = None
    ticket: str = ""
    posts: list[Post] = attrs.field(factory=lambda: [])
    rng: Random = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.rng = Random(self.plan.seed)

    # -- the page ----------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Step 1: one server, and one client of it."""
        one = self.site["n1"]
        self.page.begin(one)
        await self._run(one, self.page.make_account)
        await self.start("n1")
        self.ticket = (await self._run(one, self.page.make_ticket)).strip()
        self._names(FIRST, "n1")
        await self.connect("first")
        await self.see_served("n1")

    async def join(self, *others: str) -> None:
        """Steps 2 to 7: the server becomes a node, beside others; the public name leads to all of them."""
        one, all_nodes = self.site["n1"], ("n1", *others)
        self.page.add_cluster(one)
        text = await self._run(one, self.page.init)
        assert (
            f"{one.folder / 'state/trionat'} has the server's key, which was there before" in text
        )
        assert self.nodes["n1"].fingerprint in text
        async with trio.open_nursery() as nursery:
            for name in others:
                await trio.to_thread.run_sync(self.page.copy_to, self.site, name)
                nursery.start_soon(self.start, name)
        await self._restart_alone("to become a node")
        text = await self._run(self.site["n2"], self.page.look)
        for name in all_nodes:
            assert text.count(f"{name}  {ADDRESSES[name]}") == 2, text
        self._names(FIRST, *all_nodes)
        await self.see_served(*all_nodes)

    async def grow(self) -> None:
        """From one server to three, and nginx before them."""
        await self.join(*NODES[1:])
        for name in NODES:
            self.page.add_proxies(name, self.site[name])
            await self.stop(name, again=True)
        await self.start_nginx()
        self._names(FIRST, "proxy")
        await self.see_served(*NODES, "proxy")

    async def shrink(self) -> None:
        """Back to one server, with the same tickets and ports."""
        await self.stop("n3")
        await self.stop("n2")
        await self.settle()
        await self.see_served("n1", "proxy")
        await self._run(self.site["n1"], self.page.alone)
        await self._restart_alone("to be alone again")
        await self._wait_served("proxy")
        await self.see_served("n1", "proxy")

    async def _restart_alone(self, why: str) -> None:
        """Restart n1 while nobody else has its clients, and measure for how long visitors are refused. Ports and tickets stay."""
        before = {post.name: (post.connections, post.port) for post in self.posts}
        everything = self._places(NODES, self._ports()) | self._ports()
        with self.book.spell(f"restart {why}", *everything):
            began = trio.current_time()
            self.nodes["n1"].signal(signal.SIGTERM)
            await self.nodes["n1"].wait_end()
            await self.start("n1")
            for post in self.posts:
                count, port_before = before[post.name]
                await post.wait_connected(count)
                if post.port != port_before:
                    self.book.fault("port", f"{post.name}: {post.port} after {port_before}")
            await self._wait_served("n1")
            self.book.add_time(f"one server was restarted {why}", trio.current_time() - began)

    async def _run(self, machine: Machine, block: str) -> str:
        return await trio.to_thread.run_sync(partial(machine.run, block, timeout=120))

    def _names(self, name: str, *machines: str) -> None:
        """Let the public name lead to these."""
        addresses = tuple(ADDRESSES[each] for each in machines)
        everybody = tuple(ADDRESSES[each] for each in NODES)
        self.site["public"].name_hosts({name: addresses, ALL: everybody})

    # -- processes ---------------------------------------------------------------------------------------------------

    async def start(self, name: str) -> None:
        """Start a node; it is up when this returns."""
        await self.nursery.start(self.nodes[name].live)

    async def stop(self, name: str, *, again: bool = False) -> None:
        """Stop a node as planned, and start it `again`. Nobody who is served is cut off; those who come then may have come too late."""
        with self.book.spell("node stopped", *self._touched(name), most=0, newcomers=True):
            began = trio.current_time()
            before = self._connections(name)
            self.nodes[name].signal(signal.SIGTERM)
            for post, count in before:
                await post.wait_connected(count)
                self.book.add_time(
                    "a client was up elsewhere after a planned stop", trio.current_time() - began
                )
            await self.nodes[name].wait_end()
            if again:
                await self.start(name)
                await self.settle()

    async def connect(self, name: str, *words: str) -> Post:
        """Start a client; it has a session when this returns."""
        post = Post(
            name=name,
            identity=name,
            group=name,
            words=(self.ticket, str(self.service), *words),
            folder=self.folder,
            book=self.book,
            lasting=True,
            inside=self.site["public"].inside,
        )
        self.posts.append(post)
        self.nursery.start_soon(post.live)
        await post.wait_settled()
        return post

    async def start_nginx(self) -> None:
        """Put the example's file in place, as it is but for a log of who was passed where, and start nginx."""
        text = (EXAMPLES / "nginx.conf").read_text()
        log = self.folder / "ways"
        log.touch(mode=0o666)
        told = f"log_format way '$msec $remote_addr:$remote_port $upstream_addr'; access_log {log} way;"
        (self.folder / "nginx.conf").write_text(text.replace("stream {\n", f"stream {{ {told}\n"))
        nginx = services.find_program("nginx", package="nginx-light libnginx-mod-stream")
        own = f"mount -t tmpfs tmpfs /run && mount --bind {self.folder / 'nginx.conf'} /etc/nginx/nginx.conf"
        await self._start_proxy(
            "sh", "-c", f"{own} && {nginx} -t && exec {nginx} -e stderr -g 'daemon off;'"
        )

    async def start_haproxy(self) -> None:
        """Run HAProxy with the example's file as it is."""
        haproxy = services.find_program("haproxy", package="haproxy")
        everything = self._places(NODES, self._ports()) | self._ports()
        with self.book.spell("HAProxy in the place of nginx", *everything):
            await self._start_proxy(haproxy, "-db", "-f", str(EXAMPLES / "haproxy.cfg"))
            await self.settle()
            await self._wait_served("proxy")

    async def _start_proxy(self, *command: str) -> None:
        await self.stop_proxy()
        with (self.folder / "proxy.log").open("ab") as log:
            self.proxy = await trio.lowlevel.open_process(
                [*self.site["proxy"].inside, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        with trio.fail_after(START):
            while True:
                assert self.proxy.poll() is None, (self.folder / "proxy.log").read_text()
                with suppress(OSError):
                    await (await self.door("proxy").connect(8007)).aclose()
                    return
                await trio.sleep(0.02)

    async def stop_proxy(self) -> None:
        """End nginx or HAProxy, if one runs."""
        if self.proxy is not None:
            await services.stop_process(self.proxy)
            self.proxy = None

    # -- visitors ----------------------------------------------------------------------------------------------------

    def door(self, name: str) -> Door:
        """Return how visitors come to a node, or through nginx."""
        public = self.site["public"].network
        connect = partial(public.connect, ADDRESSES[name])
        if name == "proxy":
            return ProxyDoor(name, connect, ends_resets=True, log=self.folder / "ways")
        return Door(name, connect)

    async def is_served(self, door: str, port: int) -> bool:
        """Be a visitor with a short question."""
        try:
            async with await self.door(door).connect(port) as stream:
                visitor = Visitor(stream, self.rng.randrange(2**31))
                await visitor.wish(ECHO, 1000)
                await visitor.exchange(1000)
                await visitor.end()
                await visitor.finish()
        except (OSError, CutError):
            return False
        return True

    async def see_served(self, *doors: str) -> None:
        """Every port has to be served at every door, at the first try."""
        for door in doors:
            for post in self.posts:
                assert post.port is not None
                with trio.move_on_after(SERVED_WITHIN + 2) as scope:
                    if await self.is_served(door, post.port):
                        continue
                why = "no answer" if scope.cancelled_caught else "closed"
                self.book.fault("not well again", f"port {post.port} at {door}: {why}")

    async def _wait_served(self, door: str) -> None:
        """Wait until somebody is served there; HAProxy looks for two seconds at a node that comes."""
        port = self.posts[0].port
        assert port is not None
        with trio.move_on_after(SERVED_WITHIN):
            while not await self.is_served(door, port):  # noqa: ASYNC110 - polls
                await trio.sleep(0.05)

    # -- who is where ------------------------------------------------------------------------------------------------

    def _ports(self) -> set[int]:
        return {post.port for post in self.posts if post.port is not None}

    def _holders(self) -> dict[int, str]:
        """Return which node has which port, as Redis says."""
        found: dict[int, str] = {}
        for line in self.redis.ask("hvals", "{trionat}:claims").splitlines():
            node, _, _, _, ports = line.split(" ")
            found.update((int(port), node) for port in ports.split(","))
        return found

    def held_by(self, node: str) -> set[int]:
        """Return the ports of the clients that a node has."""
        return {port for port, holder in self._holders().items() if holder == node} & self._ports()

    def _connections(self, node: str) -> list[tuple[Post, int]]:
        """Return the clients of a node, and how many sessions each has had."""
        held = self.held_by(node)
        return [(post, post.connections) for post in self.posts if post.port in held]

    @staticmethod
    def _places(doors: Sequence[str], ports: set[int]) -> set[Place]:
        """Return these ports at these doors."""
        return {(door, port) for door in doors for port in ports}

    def _touched(self, node: str) -> set[Place]:
        """Return what is lost with a node: its ports at all doors, all ports at its own, and its clients' sessions."""
        own = self.held_by(node)
        return self._places(NODES, own) | self._places([node], self._ports()) | own

    async def settle(self) -> None:
        """Wait until all clients are up, at nodes that are there, and Redis knows that."""
        began = trio.current_time()
        with trio.move_on_after(SETTLES_WITHIN):
            calm = 0
            while calm < 5:
                await trio.sleep(0.1)
                calm = calm + 1 if await trio.to_thread.run_sync(self._is_settled) else 0
            return
        self.book.fault("not well again", f"clients after {trio.current_time() - began:.0f} s")

    def _is_settled(self) -> bool:
        with suppress(subprocess.CalledProcessError):
            there = set(self.redis.ask("hkeys", "{trionat}:nodes").splitlines())
            holders = self._holders()
            lives = {name for name, node in self.nodes.items() if node.process is not None}
            return there == lives and all(
                post.up and holders.get(post.port or 0) in there for post in self.posts
            )
        return False

    def _strays(self) -> int:
        """Return how many tunnels have come to a node that does not have their session."""
        logs = [self.site[name].folder / "state/trionat/server.log" for name in NODES]
        return sum(log.read_text().count("no such session") for log in logs)

    # -- disturbances ------------------------------------------------------------------------------------------------

    def disturbances(self) -> list[Callable[[], Awaitable[None]]]:
        """Return all that is done."""
        found: list[Callable[[], Awaitable[None]]] = [
            self._kill,
            self._stop_planned,
            self._cut_from_redis,
            self._cut_from_others,
            self._kill_redis,
            self._drain,
        ]
        return found if self.plan.seconds is None else [*found, self._freeze, self._reload_nginx]

    def _choose(self) -> str:
        """Return a node that has clients."""
        return self.rng.choice(sorted(set(self._holders().values())))

    async def _kill(self) -> None:
        """A node dies. Its clients are up elsewhere within seconds, and visitors who come to the other nodes meanwhile wait, and are served."""
        name = self._choose()
        others = [each for each in NODES if each != name]
        held, before = self.held_by(name), self._connections(name)
        with self.book.spell("node killed", *self._touched(name)):
            began = trio.current_time()
            self.book.killed = name
            self.nodes[name].signal(signal.SIGKILL)
            async with trio.open_nursery() as nursery:
                for port in held:
                    nursery.start_soon(self._come_meanwhile, self.rng.choice(others), port)
                for post, count in before:
                    await post.wait_connected(count)
                    self.book.add_time(
                        "a client served again after its node was killed",
                        trio.current_time() - began,
                    )
            await self.nodes[name].wait_end()
            await self.start(name)
            await self.settle()

    async def _come_meanwhile(self, door: str, port: int) -> None:
        """Be a visitor who comes when the client's node has just died."""
        began = trio.current_time()
        if not await self.is_served(door, port):
            self.book.fault("not served meanwhile", f"port {port} at {door}")
        self.book.add_time(
            "a visitor who came meanwhile had its answer", trio.current_time() - began
        )

    async def _stop_planned(self) -> None:
        await self.stop(self._choose(), again=True)

    async def _drain(self) -> None:
        """A node is emptied, and nobody notices. When it is stopped then, only those are refused who come to its own door."""
        name = self._choose()
        own_door = self._places([name], self._ports())
        with self.book.spell("node drained", *self.held_by(name), most=0):
            began = trio.current_time()
            await self._run(self.site[name], self.page.drain)
            self.book.add_time("a node was drained", trio.current_time() - began)
        with self.book.spell("drained node stopped", *own_door, most=0, newcomers=True):
            self.nodes[name].signal(signal.SIGTERM)
            await self.nodes[name].wait_end()
            await self.start(name)
            await self.settle()

    async def _freeze(self) -> None:
        """A node hangs, and goes on later."""
        name = self._choose()
        with self.book.spell("node frozen", *self._touched(name)):
            self.nodes[name].signal(signal.SIGSTOP)
            await trio.sleep(self._hold())
            self.nodes[name].signal(signal.SIGCONT)
            await self.settle()

    async def _cut_from_redis(self) -> None:
        """Who is served goes on, everywhere. Whoever comes to another node for its clients waits, and may have to leave."""
        name = self._choose()
        others = [each for each in NODES if each != name]
        places = self._places(others, self.held_by(name))
        with self.book.spell("node cut off from Redis", *places, most=0, unserved=True):
            with self.cut(name, "redis"):
                await trio.sleep(max(self._hold(), GIVEN_UP_AFTER))
            await self.settle()

    async def _cut_from_others(self) -> None:
        """What goes from this node to the others or back is lost; all that stays at one node goes on."""
        name = self._choose()
        others = [each for each in NODES if each != name]
        own = self.held_by(name)
        places = self._places(others, own) | self._places([name], self._ports() - own)
        with self.book.spell("node cut off from the others", *places):
            with self.cut(name, *others):
                await trio.sleep(self._hold())
            await self.settle()

    async def _kill_redis(self) -> None:
        """Nobody notices."""
        with self.book.spell("Redis killed", most=0):
            await trio.to_thread.run_sync(self.redis.kill)
            await trio.sleep(self._hold())
            await trio.to_thread.run_sync(self.redis.start)
            await self.settle()

    async def _reload_nginx(self) -> None:
        """Nobody notices."""
        assert self.proxy is not None
        with self.book.spell("nginx reloaded", most=0):
            self.proxy.send_signal(signal.SIGHUP)
            await self.settle()

    def _hold(self) -> float:
        return self.rng.choice(self.plan.holds)

    @contextmanager
    def cut(self, name: str, *others: str) -> Iterator[None]:
        """Cut a machine off from others for the block."""
        for other in others:
            self.site.cut(name, other)
        try:
            yield
        finally:
            for other in others:
                self.site.mend(name, other)

    # -- the soak ----------------------------------------------------------------------------------------------------

    async def soak(self) -> None:
        """Let visitors come and go while one thing after another is taken away."""
        before = self._strays()
        for number in range(1, self.plan.clients):
            words = () if number % 3 else ("--server", f"{ALL}:8007")
            await self.connect(f"client-{number}", *words)
        await self.settle()
        await self.see_served(*NODES, "proxy")
        if strays := self._strays() - before:
            self.book.fault(
                "wrong way", f"{strays} tunnels came to another node than their session's"
            )
        doors = tuple(self.door(name) for name in (*NODES, "proxy"))
        public = Public(self.posts, self.book, Random(self.rng.random()), doors, self.plan.patience)
        ends_at = trio.current_time() + (self.plan.seconds or 0)
        async with trio.open_nursery() as present:
            present.start_soon(public.run, self.plan.visitors)
            while True:
                actions = self.disturbances()
                self.rng.shuffle(actions)
                for action in actions:
                    await trio.sleep(self.plan.pause)
                    await action()
                    await self.see_served(*NODES, "proxy")
                    if self.plan.seconds is not None and trio.current_time() > ends_at:
                        break
                if trio.current_time() > ends_at:
                    break
            public.leaving.set()


@asynccontextmanager
async def open_cluster(plan: ClusterPlan, folder: Path) -> AsyncIterator[Cluster]:
    """Make all machines, with Redis and MariaDB running; at the end all processes are ended, as planned."""
    book, page = ClusterBook(), Page.read()
    with ExitStack() as sites:

        def enter() -> tuple[Site, RedisServer]:
            site = sites.enter_context(open_site(folder, ADDRESSES))
            for name in NODES:
                site[name].name_hosts(INSIDE)
            redis, db = site["redis"], site["db"]
            kept = sites.enter_context(
                running_redis(
                    REDIS_PASSWORD,
                    encrypted=True,
                    host=redis.address,
                    port=6379,
                    name="redis.example.com",
                    inside=redis.network.inside,
                )
            )
            for name in NODES:  # as if Redis's authority were one of the system's
                site[name].added["SSL_CERT_FILE"] = str(kept.authority)
            base = sites.enter_context(mariadb.running(db.address, 3306, db.network.inside))
            base.sql(page.database)
            return site, kept

        site, redis = await trio.to_thread.run_sync(enter)
        async with trio.open_nursery() as nursery:
            service = await site["public"].network.serve(_guarded(Host(book.fault)), nursery)
            nodes = {name: Node(name, site[name], page.serve.strip(), book) for name in NODES}
            async with trio.open_nursery() as processes:
                cluster = Cluster(
                    plan=plan,
                    site=site,
                    page=page,
                    book=book,
                    redis=redis,
                    nursery=processes,
                    folder=folder,
                    service=service,
                    nodes=nodes,
                )
                try:
                    yield cluster
                    for post in cluster.posts:
                        post.stop()
                        await post.wait_end()
                    for node in nodes.values():
                        if node.process is not None:
                            node.signal(signal.SIGTERM)
                            await node.wait_end()
                finally:
                    with trio.CancelScope(shield=True):
                        await cluster.stop_proxy()
            book.settle()
            nursery.cancel_scope.cancel("all have ended")


def _guarded(host: Host) -> Callable[[trio.SocketStream], Awaitable[None]]:
    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await host.serve(stream)

    return serve


@attrs.frozen(kw_only=True)
class ClusterOutcome:
    """What there is to report; `seconds` is how long things were taken away."""

    plan: ClusterPlan
    seconds: float
    book: ClusterBook


async def cluster_soak(plan: ClusterPlan, folder: Path) -> ClusterOutcome:
    """Do all of it, with all files in an empty folder. Faults are in the book, and are not raised."""
    async with open_cluster(plan, folder) as cluster:
        await cluster.begin()
        await cluster.grow()
        began = trio.current_time()
        await cluster.soak()
        seconds = trio.current_time() - began
        await cluster.start_haproxy()
        await cluster.see_served(*NODES, "proxy")
        await cluster.shrink()
    return ClusterOutcome(plan=plan, seconds=seconds, book=cluster.book)


def cluster_report(outcome: ClusterOutcome) -> str:
    """Return all of it, in Markdown."""
    plan, book = outcome.plan, outcome.book
    lines = [
        f"{outcome.seconds / 60:.1f} min, 3 nodes, {plan.clients} clients, {plan.visitors} visitors at a time, seed {plan.seed}; {os.cpu_count()} CPUs:",
        "",
        *conversations(book, outcome.seconds),
        "",
        "| seconds | measured | median | most |",
        "| --- | --- | --- | --- |",
        *(
            f"| {what} | {len(found)} | {median(found):.1f} | {max(found):.1f} |"
            for what, found in book.times.items()
        ),
        "",
        *faults(book),
    ]
    return "\n".join(lines) + "\n"
