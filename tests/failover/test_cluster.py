"""Three nodes as processes, each at an address of its own, with real Redis and MariaDB: what clients and visitors notice when something is away."""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import pytest
import trio

from bench.program import free_port
from tests.e2e import running, services
from tests.e2e.running import ask, end_of, read_all
from tests.redis_server import running_redis
from trionat.protocol.client_hello import parse_client_hello

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.e2e.running import Client, Server
    from tests.e2e.services import Service
    from tests.mariadb import MariaDB
    from tests.redis_server import RedisServer
    from trionat.config.database import DatabaseConfig

T = TypeVar("T")

pytestmark = pytest.mark.limit(120)

PASSWORD = "plain as NAT has it"
LOGIN = {"TRIONAT_AUTH_USERNAME": "ann", "TRIONAT_AUTH_PASSWORD": PASSWORD}


@attrs.define(eq=False)
class Front:
    """What name service or a load balancer is to clients: one address, which leads to the first node that answers.

    `cut` nodes do not; `order` may change at any time. With `routes`, it is a proxy that leads who offers a node's route to that node.
    """

    port: int
    order: list[str]
    control: int
    routes: bool = False

    async def serve(self, nursery: trio.Nursery) -> None:
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, self._relay, listeners)

    async def _relay(self, stream: trio.SocketStream) -> None:
        hosts, first = list(self.order), b""
        if self.routes:
            hello = None
            while hello is None:
                first += await stream.receive_some(4096)
                hello = parse_client_hello(first)
            if (found := re.match(r"node(\d)", hello.route or "")) is not None:
                hosts = [f"127.0.0.{found[1]}"]
        for host in hosts:
            try:
                other = await trio.open_tcp_stream(host, self.control)
            except OSError:
                continue
            await other.send_all(first)
            async with stream, other, trio.open_nursery() as nursery:
                nursery.start_soon(_pump, stream, other, nursery)
                nursery.start_soon(_pump, other, stream, nursery)
            return
        await stream.aclose()


async def _pump(source: trio.SocketStream, sink: trio.SocketStream, nursery: trio.Nursery) -> None:
    try:
        async for data in source:
            await sink.send_all(data)
        await sink.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class Wire:
    """A network between somebody and `target`, both on the loopback: `cut` loses what is on it, and lets nobody through."""

    port: int
    target: int
    scopes: set[trio.CancelScope] = attrs.field(factory=set)
    is_cut: bool = False

    async def serve(self, nursery: trio.Nursery) -> None:
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, self._relay, listeners)

    async def _relay(self, stream: trio.SocketStream) -> None:
        with trio.CancelScope() as scope, suppress(OSError):
            self.scopes.add(scope)
            async with stream:
                if self.is_cut:
                    await trio.sleep_forever()  # accepted by the kernel, and never answered
                async with await trio.open_tcp_stream("127.0.0.1", self.target) as other:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_pump, stream, other, nursery)
                        nursery.start_soon(_pump, other, stream, nursery)

    def cut(self) -> None:
        self.is_cut = True
        for scope in self.scopes:
            scope.cancel()

    def mend(self) -> None:
        self.is_cut = False


@attrs.define(eq=False)
class Cluster:
    """`nodes` are the servers that run, by number from 1; node N is at 127.0.0.N. All have the same ports. The first one reaches Redis by `wire`.

    Clients are told the address of `front`, or with `own_names` each node's own.
    """

    folder: Path
    redis: RedisServer
    database: DatabaseConfig
    front: Front
    wire: Wire
    nursery: trio.Nursery
    own_names: bool = False
    extra: Callable[[int], str] = lambda _: ""
    ending: trio.Event = attrs.field(factory=trio.Event)
    control: int = attrs.field(factory=free_port)
    link: int = attrs.field(factory=free_port)
    visit: Sequence[int] = attrs.field(factory=lambda: [free_port() for _ in range(3)])
    nodes: dict[int, Server] = attrs.field(factory=dict)

    def config(self, number: int) -> Path:
        """Return the `server.yml` of a node."""
        folder = self.folder / f"node{number}"
        folder.mkdir(exist_ok=True)
        file = folder / "server.yml"
        database = self.database
        redis = self.wire.port if number == 1 else self.redis.port
        file.write_text(
            f'Database:\n  Username: "{database.username}"\n  Password: "{database.password}"\n'
            f'  Host: "{database.host}"\n  DBName: "{database.db_name}"\n'
            f"Cluster:\n  Redis: redis://127.0.0.1:{redis}\n  Node: node-{number}\n"
            f"  NodeAddr: 127.0.0.{number}:{self.link}\n  KeyFile: {self.folder / 'cluster.key'}\n"
            + self.extra(number)
        )
        return file

    async def enter(self, context: AbstractAsyncContextManager[T]) -> T:
        """Enter it in a task of its own, until the cluster ends: tests enter and the fixture leaves."""
        found: T = await self.nursery.start(self._hold, context)
        return found

    async def _hold(
        self, context: AbstractAsyncContextManager[T], task_status: trio.TaskStatus[T]
    ) -> None:
        async with context as value:
            task_status.started(value)
            await self.ending.wait()

    async def init(self) -> None:
        config = self.config(1)
        state = str(config.parent / "state")
        done = await services.run_trionat(
            "cluster", "init", "--config", config, TRIONAT_STATE_DIR=state
        )
        assert done.returncode == 0, done.stderr

    async def start(self, number: int, **environ: str) -> Server:
        config = self.config(number)
        own = f"127.0.0.{number}:{self.control}"
        server = await self.enter(
            running.server(
                *(
                    config.parent,
                    "--config",
                    config,
                    "--public-addr",
                    own if self.own_names else f"127.0.0.1:{self.front.port}",
                ),
                control=own,
                visit=",".join(map(str, self.visit)),
                environ=environ,
            )
        )
        self.nodes[number] = server
        return server

    async def connect(self, name: str, service: Service | str, *flags: str) -> Client:
        client = await self.enter(
            running.client_process(
                self.folder / name,
                service if isinstance(service, str) else str(service.port),
                *("--controller-addr", f"127.0.0.1:{self.front.port}"),
                *("--fingerprint", str(self.nodes[1].ready["fingerprint"])),
                *flags,
                environ=LOGIN,
            )
        )
        await client.wait_connected()
        return client

    async def visit_at(
        self, number: int, client: Client, question: bytes, *, within: float = 15
    ) -> bytes:
        """Be a visitor at a node, and return the service's answer."""
        with trio.fail_after(within):
            async with await trio.open_tcp_stream(f"127.0.0.{number}", client.port()) as stream:
                return await ask(stream, question)

    async def status(self, number: int) -> dict[str, object]:
        done = await services.run_trionat(
            *("status", "--json", "--config", self.config(number)),
            TRIONAT_STATE_DIR=str(self.nodes[number].state),
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)["cluster"]
        return found

    async def wait_claims(self, number: int, claims: int) -> None:
        """Wait until a node has heard of so many claims."""
        with trio.fail_after(15):
            while (await self.status(number))["claims"] != claims:  # noqa: ASYNC110
                await trio.sleep(0.1)

    async def wait_away(self, number: int, *, away: bool) -> None:
        """Wait until `status` of a node says that Redis is away, or there."""
        with trio.fail_after(15):
            while ((await self.status(number))["away"] is not None) != away:  # noqa: ASYNC110
                await trio.sleep(0.1)


@pytest.fixture
async def cluster(mariadb: MariaDB, tmp_path: Path) -> AsyncIterator[Cluster]:
    """Two nodes that are up; a test may start the third."""
    async with starting(mariadb, tmp_path) as cluster:
        yield cluster


@asynccontextmanager
async def starting(
    mariadb: MariaDB,
    folder: Path,
    environ: Mapping[str, str] = MappingProxyType({}),
    *,
    own_names: bool = False,
    extra: Callable[[int], str] = lambda _: "",
) -> AsyncIterator[Cluster]:
    database = await trio.to_thread.run_sync(mariadb.new_database)
    add_ann = f"insert into userInfo_userinfo (username, password) values ('ann', '{PASSWORD}')"
    await trio.to_thread.run_sync(mariadb.sql, add_ann, database.db_name)
    redis = running_redis()
    server = await trio.to_thread.run_sync(redis.__enter__)
    try:
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as processes:
                front = Front(free_port(), ["127.0.0.1", "127.0.0.2", "127.0.0.3"], 0)
                wire = Wire(free_port(), server.port)
                cluster = Cluster(
                    folder, server, database, front, wire, processes, own_names, extra
                )
                front.control = cluster.control
                await front.serve(nursery)
                await wire.serve(nursery)
                await cluster.init()
                await cluster.start(1, **environ)
                await cluster.start(2, **environ)
                yield cluster
                cluster.ending.set()
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(redis.__exit__, None, None, None)


async def test_any_node_takes_any_visitor(cluster: Cluster, echo_server: Service) -> None:
    one, two = cluster.nodes[1], cluster.nodes[2]
    assert one.ready["fingerprint"] == two.ready["fingerprint"]
    known = [(each.ready["node"], each.ready["other_nodes"]) for each in (one, two)]
    assert known == [("node-1", 0), ("node-2", 1)]
    assert two.ready["node_addr"] == f"127.0.0.2:{cluster.link}"
    client = await cluster.connect("client", echo_server)
    assert await cluster.visit_at(1, client, b"at its own node") == b"at its own node"
    assert await cluster.visit_at(2, client, b"at the other one") == b"at the other one"
    record = await client.wait_record("visitor closed", count=2)
    theirs = await one.wait_record("visitor closed", count=2)
    assert record["address"] == theirs["address"]
    # It keeps a half-close, and many at once are no trouble.
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(_half_close, cluster, client, bytes([number]) * 300_000)
    found = await cluster.status(2)
    assert found["away"] is None
    assert found["claims"] == 1


async def _half_close(cluster: Cluster, client: Client, data: bytes) -> None:
    async with await trio.open_tcp_stream("127.0.0.2", client.port()) as stream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send_and_end, stream, data)
            assert await read_all(stream) == data


async def _send_and_end(stream: trio.SocketStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


@pytest.mark.slow
async def test_a_narrowed_ticket_is_the_same_at_every_node(
    cluster: Cluster, echo_server: Service
) -> None:
    """Made at one node it gets its port at the other one, and again when its client comes back at the first."""
    port = cluster.visit[1]
    made = await services.run_trionat(
        *("user", "ticket", "ann", "--config", cluster.config(1), "--only-port", str(port)),
        *("--public-addr", f"127.0.0.1:{cluster.front.port}"),
        TRIONAT_STATE_DIR=str(cluster.nodes[1].state),
    )
    assert made.returncode == 0, made.stderr
    ticket = made.stdout.decode().strip()
    for node in (2, 1):
        cluster.front.order = [f"127.0.0.{node}"]
        async with running.client(cluster.folder / "client", ticket, echo_server) as client:
            assert client.port() == port
            up = await cluster.nodes[node].wait_record("session up", ports=[port])
            assert up["restrictions"] == [f"only ports={port}"]
            assert await cluster.visit_at(3 - node, client, b"hello") == b"hello"


async def test_redis_away_and_back_empty(cluster: Cluster, echo_server: Service) -> None:
    client = await cluster.connect("client", echo_server)
    async with await trio.open_tcp_stream("127.0.0.2", client.port()) as lasting:
        assert await ask(lasting, b"before") == b"before"
        await trio.to_thread.run_sync(cluster.redis.kill)
        await cluster.wait_away(1, away=True)
        await cluster.wait_away(2, away=True)
        told = await services.run_trionat(
            *("status", "--config", cluster.config(2)),
            TRIONAT_STATE_DIR=str(cluster.nodes[2].state),
        )
        assert b"; Redis is away: " in told.stdout
        assert await ask(lasting, b"meanwhile") == b"meanwhile"
        assert await cluster.visit_at(1, client, b"new, here") == b"new, here"
        assert await cluster.visit_at(2, client, b"new, there") == b"new, there"
        async with running.client_process(
            cluster.folder / "second",
            *(str(echo_server.port), "--controller-addr", f"127.0.0.1:{cluster.front.port}"),
            *("--fingerprint", str(cluster.nodes[1].ready["fingerprint"])),
            environ=LOGIN,
        ) as second:
            gone = await second.process.next_event("disconnected", within=20)
            assert "cannot agree with the others of its cluster" in str(gone["reason"])
            await trio.to_thread.run_sync(cluster.redis.start)
            await second.wait_connected(within=30)
            assert second.port() != client.port()
            assert await cluster.visit_at(2, second, b"at last") == b"at last"
        await cluster.wait_away(1, away=False)
        assert await ask(lasting, b"still there") == b"still there"
        assert await cluster.visit_at(2, client, b"after") == b"after"


@pytest.mark.slow
async def test_a_client_comes_back_to_its_node_while_redis_is_away(
    cluster: Cluster, echo_server: Service
) -> None:
    client = await cluster.connect("client", echo_server)
    await trio.to_thread.run_sync(cluster.redis.kill)
    await cluster.wait_away(1, away=True)
    client.kill()
    await client.wait()
    again = await cluster.connect("client", echo_server)
    assert again.port() == client.port()
    assert await cluster.visit_at(2, again, b"as before") == b"as before"
    await trio.to_thread.run_sync(cluster.redis.start)
    await cluster.wait_away(1, away=False)
    assert await cluster.visit_at(2, again, b"and after") == b"and after"


@pytest.mark.slow
async def test_redis_frozen(cluster: Cluster, echo_server: Service) -> None:
    client = await cluster.connect("client", echo_server)
    await trio.to_thread.run_sync(cluster.redis.pause)
    try:
        began = trio.current_time()
        await cluster.wait_away(1, away=True)
        assert trio.current_time() - began < 8
        assert await cluster.visit_at(2, client, b"meanwhile") == b"meanwhile"
        await trio.sleep(5)
    finally:
        cluster.redis.resume()
    await cluster.wait_away(1, away=False)
    assert await cluster.visit_at(2, client, b"after") == b"after"
    assert len([r for r in client.records if r["event"] == "connected"]) <= 1


@pytest.mark.slow
async def test_a_node_that_is_killed(cluster: Cluster, echo_server: Service) -> None:
    """Its client comes back at another node, to the same port, and visitors that come meanwhile are served."""
    client = await cluster.connect("client", echo_server)
    port = client.port()
    assert await cluster.visit_at(2, client, b"before") == b"before"
    answers: list[bytes] = []

    async def visit() -> None:
        answers.append(await cluster.visit_at(2, client, b"meanwhile", within=30))

    async with trio.open_nursery() as nursery:
        cluster.nodes[1].kill()
        await cluster.nodes[1].wait()  # who says something before that is seen may be cut off
        began = trio.current_time()
        nursery.start_soon(visit)
        await client.wait_connected(within=30)
        took = trio.current_time() - began
    assert client.port() == port
    assert answers == [b"meanwhile"]
    assert took < 6  # most often less than 5, on a machine that has nothing else to do
    assert await cluster.visit_at(2, client, b"after") == b"after"


@pytest.mark.slow
async def test_a_node_that_is_frozen_and_comes_back(cluster: Cluster, echo_server: Service) -> None:
    """Its client goes to another node meanwhile; what it believes to hold then is not its own any more."""
    client = await cluster.connect("client", echo_server)
    port = client.port()
    one = cluster.nodes[1]
    one.process.process.send_signal(signal.SIGSTOP)
    try:
        cluster.front.order[:] = ["127.0.0.2"]
        await client.wait_connected(within=60)
        assert client.port() == port
        assert await cluster.visit_at(2, client, b"meanwhile") == b"meanwhile"
    finally:
        one.process.process.send_signal(signal.SIGCONT)
    await one.wait_record("another node has what was held here", within=15)
    await cluster.wait_away(1, away=False)
    assert await cluster.visit_at(1, client, b"by one hop") == b"by one hop"


@pytest.mark.slow
async def test_a_node_that_is_cut_off_from_redis_only(
    cluster: Cluster, echo_server: Service
) -> None:
    """Its sessions and visitors go on; for the others it is gone until it is back."""
    client = await cluster.connect("client", echo_server)
    async with (
        await trio.open_tcp_stream("127.0.0.1", client.port()) as lasting,
        await trio.open_tcp_stream("127.0.0.2", client.port()) as passed_on,
    ):
        assert await ask(lasting, b"before") == b"before"
        assert await ask(passed_on, b"before") == b"before"
        cluster.wire.cut()
        await cluster.wait_away(1, away=True)
        await cluster.nodes[2].wait_record("a node of the cluster is gone", within=15)
        assert await cluster.visit_at(1, client, b"here") == b"here"
        assert await ask(lasting, b"meanwhile") == b"meanwhile"
        assert await ask(passed_on, b"meanwhile") == b"meanwhile"
        cluster.wire.mend()
        await cluster.wait_away(1, away=False)
        assert await cluster.visit_at(2, client, b"there") == b"there"
        assert await ask(lasting, b"after") == b"after"
        assert await ask(passed_on, b"after") == b"after"
    assert "another node has what was held here" not in cluster.nodes[1].log_text()


@pytest.mark.slow
async def test_a_planned_stop(cluster: Cluster, echo_server: Service) -> None:
    client = await cluster.connect("client", echo_server)
    port = client.port()
    cluster.nodes[1].terminate()
    await client.wait_connected(within=20)
    assert client.port() == port
    assert await cluster.visit_at(2, client, b"after") == b"after"
    assert await cluster.nodes[1].wait() == 0
    names = [node["name"] for node in (await cluster.status(2))["nodes"]]  # type: ignore[attr-defined]
    assert names == ["node-2"]


async def drain(cluster: Cluster, number: int) -> list[dict[str, Any]]:
    """Run `trionat drain` at a node to its end; return what it has told."""
    done = await services.run_trionat(
        *("drain", "--json", "--config", cluster.config(number)),
        TRIONAT_STATE_DIR=str(cluster.nodes[number].state),
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def told(client: Client) -> list[str]:
    """Return what it has told, but for where it stood in the queue for a moment."""
    events = [str(event["event"]) for event in client.process.events]
    return [event for event in events if event != "queued"]


async def visit_all_the_time(
    cluster: Cluster, number: int, client: Client, waits: list[float]
) -> None:
    """Be one visitor after another at a node, for ever; note how long each waits for its answer."""
    while True:
        began = trio.current_time()
        assert await cluster.visit_at(number, client, b"a question") == b"a question"
        waits.append(trio.current_time() - began)
        await trio.sleep(0.02)


async def test_a_drained_node_costs_nobody_anything(
    mariadb: MariaDB, tmp_path: Path, echo_server: Service
) -> None:
    """Under a steady stream of visitors at all nodes; each client is up elsewhere before its old session ends."""
    async with starting(mariadb, tmp_path, own_names=True) as cluster, AsyncExitStack() as stack:
        await cluster.start(3)
        clients = [await cluster.connect(f"client{each}", echo_server) for each in range(3)]
        ports = [client.port() for client in clients]
        one = cluster.nodes[1]
        await one.wait_record("session up", count=3)
        for number in (2, 3):
            await cluster.wait_claims(number, 3)
        lasting = [
            await stack.enter_async_context(
                await trio.open_tcp_stream(f"127.0.0.{number}", client.port())
            )
            for client in clients
            for number in (1, 2, 3)
        ]
        for visitor in lasting:
            assert await ask(visitor, b"before") == b"before"
        waits: list[float] = []
        async with trio.open_nursery() as visiting:
            for client in clients:
                for number in (1, 2, 3):
                    visiting.start_soon(visit_all_the_time, cluster, number, client, waits)
            await trio.sleep(0.5)
            async with trio.open_nursery() as nursery:

                async def leave() -> None:
                    for client in clients:
                        await client.wait_connected(within=20)
                        assert not client.connected["server"].startswith("127.0.0.1:")
                    assert [client.port() for client in clients] == ports
                    await trio.sleep(1)
                    for visitor in lasting:
                        assert await ask(visitor, b"still here") == b"still here"
                        await visitor.aclose()

                nursery.start_soon(leave)
                progress = await drain(cluster, 1)
            await trio.sleep(0.5)
            visiting.cancel_scope.cancel()
        assert progress[0]["sessions"] == 3
        assert sorted(progress[-1]["others"]) == [f"127.0.0.{n}:{cluster.control}" for n in (2, 3)]
        assert max(waits) < 2, sorted(waits)[-5:]
        assert len(waits) > 100
        closed = [each for each in one.records if each["event"] == "session closed"]
        assert {each["reason"] for each in closed} == {"the client has moved to another server"}
        up = [
            each
            for number in (2, 3)
            for each in cluster.nodes[number].records
            if each["event"] == "session up"
        ]
        assert len(closed) == len(up) == 3
        for client in clients:
            assert told(client) == ["connected", "draining", "connected"]
        print(f"{len(waits)} visitors, longest wait {max(waits):.3f} s")
        # Whoever has its visitors come to the drained node still gets them, until it is stopped.
        for client in clients:
            assert await cluster.visit_at(1, client, b"by one hop") == b"by one hop"
        one.terminate()
        assert await one.wait(within=20) == 0
        assert await cluster.visit_at(2, clients[0], b"after") == b"after"


@pytest.mark.slow
async def test_a_drained_node_behind_one_name(cluster: Cluster, echo_server: Service) -> None:
    """Clients dial the name of all nodes again, and come to another one sooner or later."""
    client = await cluster.connect("client", echo_server)
    port = client.port()
    async with trio.open_nursery() as nursery:

        async def turn() -> None:
            refused = "connection closed"
            await cluster.nodes[1].wait_record(
                refused, reason="the server is drained: go to another one"
            )
            cluster.front.order[:] = ["127.0.0.2", "127.0.0.1"]

        nursery.start_soon(turn)
        progress = await drain(cluster, 1)
    assert progress[-1]["others"] == [f"127.0.0.1:{cluster.front.port}"]
    await client.wait_connected(within=10)
    assert client.port() == port
    assert told(client) == ["connected", "draining", "connected"]
    assert await cluster.visit_at(1, client, b"by one hop") == b"by one hop"


@pytest.mark.slow
async def test_a_node_that_is_killed_while_it_is_drained(
    mariadb: MariaDB, tmp_path: Path, echo_server: Service
) -> None:
    """A client that is elsewhere does not notice; only the visitors that had stayed at the old node are lost."""
    async with starting(mariadb, tmp_path, own_names=True) as cluster:
        client = await cluster.connect("client", echo_server)
        async with await trio.open_tcp_stream("127.0.0.1", client.port()) as lasting:
            assert await ask(lasting, b"before") == b"before"
            done = await services.run_trionat(
                *("drain", "--timeout", "4", "--config", cluster.config(1)),
                TRIONAT_STATE_DIR=str(cluster.nodes[1].state),
            )
            assert done.returncode == 6
            line = b"1 client left, 1 of them elsewhere by now, with visitors that finish here, 1 visitor"
            assert line in done.stdout.splitlines()
            cluster.nodes[1].kill()
            assert await end_of(lasting) in ("end", "reset")
        await client.wait_connected(within=5)
        for _ in range(20):
            assert await cluster.visit_at(2, client, b"as before") == b"as before"
            await trio.sleep(0.1)
        assert told(client) == ["connected", "draining", "connected"]


@pytest.mark.slow
async def test_a_drain_while_redis_is_away(
    mariadb: MariaDB, tmp_path: Path, echo_server: Service
) -> None:
    """Nobody moves, and everything goes on; when Redis is back, even empty, they move."""
    async with starting(mariadb, tmp_path, own_names=True) as cluster:
        client = await cluster.connect("client", echo_server)
        await cluster.wait_claims(2, 1)
        async with await trio.open_tcp_stream("127.0.0.2", client.port()) as lasting:
            assert await ask(lasting, b"before") == b"before"
            await trio.to_thread.run_sync(cluster.redis.kill)
            await cluster.wait_away(1, away=True)
            done = await services.run_trionat(
                *("drain", "--timeout", "2", "--config", cluster.config(1)),
                TRIONAT_STATE_DIR=str(cluster.nodes[1].state),
            )
            assert done.returncode == 6
            assert b"waiting for Redis, which has to tell the other nodes" in done.stdout
            assert await ask(lasting, b"meanwhile") == b"meanwhile"
            assert await cluster.visit_at(2, client, b"new") == b"new"
            await trio.to_thread.run_sync(cluster.redis.start)
            await client.wait_connected(within=30)
            assert client.connected["server"].startswith("127.0.0.2:")
            assert await ask(lasting, b"after") == b"after"
            assert await cluster.visit_at(1, client, b"by one hop") == b"by one hop"
        assert (await drain(cluster, 1))[-1]["done"]
        assert told(client) == ["connected", "draining", "connected"]


@pytest.mark.slow
async def test_a_client_that_comes_to_another_node(cluster: Cluster, echo_server: Service) -> None:
    """It takes its port along, though the node that has it does not know yet that it has left."""
    client = await cluster.connect("client", echo_server, "--identity", "the same")
    port = client.port()
    cluster.front.order[:] = ["127.0.0.2"]
    client.process.process.send_signal(signal.SIGSTOP)
    try:
        async with running.client_process(
            cluster.folder / "client2",
            *(str(echo_server.port), "--controller-addr", f"127.0.0.1:{cluster.front.port}"),
            *("--fingerprint", str(cluster.nodes[1].ready["fingerprint"])),
            *("--identity", "the same"),
            environ=LOGIN,
        ) as again:
            await again.wait_connected(within=10)
            assert again.port() == port
            assert await cluster.visit_at(1, again, b"by one hop") == b"by one hop"
    finally:
        client.process.process.send_signal(signal.SIGCONT)
        client.kill()


@pytest.mark.slow
async def test_kicks_and_status_from_every_node(cluster: Cluster, echo_server: Service) -> None:
    client = await cluster.connect("client", echo_server)
    ask_status = partial(
        services.run_trionat,
        *("status", "--cluster", "--config", cluster.config(2)),
        TRIONAT_STATE_DIR=str(cluster.nodes[2].state),
    )
    with trio.fail_after(10):  # figures are as old as a beat
        while True:
            text = (await ask_status()).stdout.decode()
            if "sessions: 1, visitors: 0" in text:
                break
            await trio.sleep(0.1)
    assert "cluster    node node-2, 2 nodes, sessions and reserved: 1\n" in text
    assert "\nNodes of the cluster:\n  node-1  127.0.0.1" in text
    where = partial(
        services.run_trionat,
        *("cluster", "where", "--config", cluster.config(2)),
        TRIONAT_STATE_DIR=str(cluster.nodes[2].state),
    )
    done = await where("ann")
    assert (done.returncode, done.stdout.decode()) == (0, f"node-1  {client.port()}\n")
    found = json.loads((await where("ann", "--json")).stdout)
    assert found["holdings"] == [{"node": "node-1", "points": [client.port()], "is_group": False}]
    done = await where("anne")
    assert done.returncode == 2
    assert "no client of a user 'anne' is known at any node" in done.stderr.decode()
    said = {}
    for who in ("anne", "ann"):
        done = await services.run_trionat(
            *("kick", who, "--config", cluster.config(2)),
            TRIONAT_STATE_DIR=str(cluster.nodes[2].state),
        )
        assert done.returncode == 0, done.stderr
        said[who] = done.stdout.decode()
    assert "told to do the same: no session of that user is known there" in said["anne"]
    assert "1 other node told to do the same: 1 session of that user is known" in said["ann"]
    assert await client.wait() == 4
    done = await services.run_trionat("cluster", "status", "--config", cluster.config(2))
    assert done.returncode == 0, done.stderr
    assert "node-1  127.0.0.1" in done.stdout.decode()
    assert "node-2  127.0.0.2" in done.stdout.decode()


@pytest.mark.slow
async def test_where_clients_are_is_told_from_afar(
    mariadb: MariaDB, echo_server: Service, tmp_path: Path
) -> None:
    consoles = {number: free_port() for number in (1, 2)}

    def extra(number: int) -> str:
        return f"Server:\n  ConsoleAddr: 127.0.0.1:{consoles[number]}\n"

    async with starting(mariadb, tmp_path, extra=extra) as cluster:
        config = ("--config", cluster.config(2))
        done = await services.run_trionat("user", "admin", "ann", "on", *config)
        assert done.returncode == 0, done.stderr
        made = await services.run_trionat("token", "add", "laptop", *config)
        file = tmp_path / "token"
        file.write_bytes(made.stdout)
        file.chmod(0o600)
        client = await cluster.connect("client", echo_server)
        afar = ("--server", f"http://127.0.0.1:{consoles[2]}", "--token-file", file)
        with trio.fail_after(10):
            while True:
                done = await services.run_trionat(*afar, "cluster", "where", "ann")
                if done.returncode == 0:
                    break
                await trio.sleep(0.1)
        assert done.stdout.decode() == f"node-1  {client.port()}\n"
        told, here = [
            (
                await services.run_trionat(
                    *before,
                    "cluster",
                    "where",
                    "ann",
                    "--json",
                    *behind,
                    TRIONAT_STATE_DIR=str(state),
                )
            ).stdout
            for before, behind, state in (
                (afar, (), tmp_path),
                ((), config, cluster.nodes[2].state),
            )
        ]
        assert told == here
        assert json.loads(told)["node"] == "node-2"


@pytest.mark.slow
async def test_a_node_is_not_upgraded_in_its_place(cluster: Cluster, echo_server: Service) -> None:
    """It says what to do instead, to a command and to a signal, and goes on."""
    client, node = await cluster.connect("client", echo_server), cluster.nodes[1]
    done = await services.run_trionat("upgrade", "--state-dir", node.state)
    assert done.returncode == 3
    advice = "trionat drain sends its clients to the other nodes; then stop it, and start it anew"
    assert advice in done.stderr.decode()
    os.kill(node.process.process.pid, signal.SIGUSR2)
    assert advice in (await node.wait_record("no upgrade"))["reason"]
    assert await cluster.visit_at(1, client, b"hello") == b"hello"


async def test_what_a_node_is_refused_for(cluster: Cluster) -> None:
    config = cluster.config(3)
    serve = partial(
        services.run_trionat,
        "serve",
        "--controller-addr",
        "127.0.0.3:0",
        "--tunnel-addr",
        "127.0.0.3:0",
    )
    state = str(config.parent / "state")
    config.write_text(config.read_text().replace("node-3", "node-1"))
    done = await serve("--config", config, TRIONAT_STATE_DIR=state)
    assert done.returncode == 3
    assert "another node is called node-1" in done.stderr.decode()
    (config.parent / "state" / "server.key").unlink(missing_ok=True)
    text = cluster.config(3).read_text()
    config.write_text(text.replace("cluster.key", "other.key"))
    done = await serve("--config", config, TRIONAT_STATE_DIR=state)
    assert done.returncode == 3
    assert "other.key: there is no key of the cluster" in done.stderr.decode()
    (cluster.folder / "other.key").write_text("A" * 43 + "=\n")
    (cluster.folder / "other.key").chmod(0o600)
    config.chmod(0o600)  # it has a password
    done = await serve("--config", config, TRIONAT_STATE_DIR=state)
    assert done.returncode == 3
    warning, line = done.stderr.decode().strip().splitlines()
    assert "only this machine reaches 127.0.0.3" in warning
    assert "it has another cluster's data" in line
