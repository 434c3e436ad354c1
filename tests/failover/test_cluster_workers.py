"""Nodes of a cluster with several workers each: any worker of any node takes any client, and its visitors come by any node."""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import trio

from bench.program import free_port
from tests.e2e import services
from tests.e2e.running import ask, end_of, read_all, read_exactly
from tests.failover.test_cluster import Cluster, drain, starting, told, visit_all_the_time
from tests.failover.test_cluster_groups import join as join_group
from tests.failover.test_cluster_groups import visit as visit_group
from tests.failover.test_workers import status, worker_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.e2e.running import Client, Server
    from tests.e2e.services import Service
    from tests.mariadb import MariaDB

pytestmark = [
    pytest.mark.limit(120),
    pytest.mark.skipif(os.name != "posix", reason="several processes need Unix sockets"),
]

WORKERS = {"TRIONAT_SERVER_WORKERS": "2"}


@pytest.fixture
async def cluster(mariadb: MariaDB, tmp_path: Path) -> AsyncIterator[Cluster]:
    """Two nodes that are up, with two workers each."""
    async with starting(mariadb, tmp_path, WORKERS) as cluster:
        yield cluster


async def both(cluster: Cluster, service: Service) -> list[Client]:
    """Two clients at the first node, one at each worker."""
    clients = [await cluster.connect(f"client {number}", service) for number in range(2)]
    found = await status(cluster.nodes[1])
    assert [worker["sessions"] for worker in found["workers"]] == [1, 1]
    return clients


async def test_any_node_takes_any_visitor(cluster: Cluster, echo_server: Service) -> None:
    clients = await both(cluster, echo_server)
    for client in clients:
        for node in (1, 2):
            assert await cluster.visit_at(node, client, b"hello") == b"hello"
        record = await client.wait_record("visitor closed", count=2)
        assert str(record["address"]).startswith("127.0.0.1:")
    # It keeps a half-close, and many at once, in both directions, are no trouble.
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(_half_close, clients[number % 2], bytes([number]) * 300_000)
    for number in (1, 2):
        found = await cluster.status(number)
        assert found["away"] is None
        assert found["claims"] == 2
        nodes: Any = found["nodes"]
        with trio.fail_after(10):
            while [node["sessions"] for node in nodes] != [2, 0]:
                await trio.sleep(0.2)
                nodes = (await cluster.status(number))["nodes"]


async def _half_close(client: Client, data: bytes) -> None:
    async with await trio.open_tcp_stream("127.0.0.2", client.port()) as stream:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await read_all(stream) == data


async def test_a_reset_stays_a_reset(cluster: Cluster) -> None:
    """A service that resets in the middle must not look as if it had finished, however many processes are on the way."""
    async with services.resetter(after=1000) as service:
        client = await cluster.connect("client", service)
        async with await trio.open_tcp_stream("127.0.0.2", client.port()) as stream:
            await stream.send_all(bytes(1000))
            assert await end_of(stream) == "reset"


async def test_visitors_behind_a_proxy(cluster: Cluster, echo_server: Service) -> None:
    """At the client's node and at another one; both read headers in the parent."""
    ports = {number: free_port() for number in (1, 3)}
    for number, port in ports.items():
        if number in cluster.nodes:
            cluster.nodes[number].process.process.terminate()
            await cluster.nodes[number].wait()
        address = f"127.0.0.{number}:{port}"
        await cluster.start(number, **WORKERS, TRIONAT_SERVER_PROXY_VISIT_ADDR=address)
    client = await cluster.connect("client", echo_server)
    for number, port in ports.items():
        source = f"192.0.2.{number}"
        header = f"PROXY TCP4 {source} 127.0.0.1 4711 {client.port()}\r\n".encode()
        with trio.fail_after(10):
            async with await trio.open_tcp_stream(f"127.0.0.{number}", port) as visitor:
                await visitor.send_all(header + b"hello")
                assert await read_exactly(visitor, 5) == b"hello"
        await client.wait_record("visitor closed", address=f"{source}:4711")


async def test_behind_a_proxy_that_knows_routes(cluster: Cluster, echo_server: Service) -> None:
    """Clients of both nodes find their workers again with each tunnel, whichever node the proxy takes for newcomers."""
    cluster.front.routes = True
    clients: list[Client] = []
    for number in (2, 1):
        cluster.front.order[:] = [f"127.0.0.{number}"]
        clients += [
            await cluster.connect(f"{number} {each}", echo_server) for each in range(number)
        ]
    found = await status(cluster.nodes[2])
    assert [worker["sessions"] for worker in found["workers"]] == [1, 1]
    assert [worker["name"] for worker in found["workers"]] == ["node2.w1", "node2.w2"]
    async with trio.open_nursery() as nursery:
        for client in clients:
            for _ in range(10):  # more than there are tunnels
                nursery.start_soon(_half_close, client, bytes(300_000))
    for client in clients:
        assert told(client) == ["connected"]


@pytest.mark.slow
async def test_a_worker_is_killed(cluster: Cluster, echo_server: Service) -> None:
    """Visitors of its client wait, at both nodes; those of the other worker go on."""
    victim, other = await both(cluster, echo_server)
    port, worker = victim.port(), await worker_of(cluster.nodes[1], victim)
    async with await trio.open_tcp_stream("127.0.0.2", other.port()) as steady:
        assert await ask(steady, b"before") == b"before"
        answers: list[bytes] = []

        async def visit(node: int) -> None:
            answers.append(await cluster.visit_at(node, victim, b"meanwhile", within=20))

        async with trio.open_nursery() as nursery:
            os.kill(worker["pid"], signal.SIGKILL)
            for _ in range(5):
                nursery.start_soon(visit, 1)
                nursery.start_soon(visit, 2)
            await victim.wait_connected(within=20)
        assert answers == [b"meanwhile"] * 10
        assert victim.port() == port
        assert await ask(steady, b"after") == b"after"
    assert (await cluster.status(2))["claims"] == 2


@pytest.mark.slow
async def test_a_node_is_killed(cluster: Cluster, echo_server: Service) -> None:
    """Its clients come to the workers of the other node, at their ports, and visitors that waited there find them."""
    clients = await both(cluster, echo_server)
    ports = [client.port() for client in clients]
    answers: list[bytes] = []

    async def visit(client: Client) -> None:
        answers.append(await cluster.visit_at(2, client, b"meanwhile", within=30))

    async with trio.open_nursery() as nursery:
        cluster.nodes[1].kill()
        await cluster.nodes[1].wait()
        for client in clients:
            nursery.start_soon(visit, client)
        for client in clients:
            await client.wait_connected(within=30)
    assert answers == [b"meanwhile"] * 2
    assert [client.port() for client in clients] == ports
    found = await status(cluster.nodes[2])
    assert [worker["sessions"] for worker in found["workers"]] == [1, 1]


@pytest.mark.slow
async def test_a_client_comes_to_another_node(cluster: Cluster, echo_server: Service) -> None:
    """While its own goes on: the worker there gives it up, and it gets its port here."""
    (client, _) = await both(cluster, echo_server)
    port = client.port()
    cluster.front.order[:] = ["127.0.0.2"]
    worker = await worker_of(cluster.nodes[1], client)
    os.kill(worker["pid"], signal.SIGKILL)
    await client.wait_connected(within=30)
    assert client.port() == port
    assert await cluster.visit_at(1, client, b"from the first") == b"from the first"
    assert await cluster.visit_at(2, client, b"at its own") == b"at its own"
    assert len((await status(cluster.nodes[2]))["sessions"]) == 1


@pytest.mark.slow
async def test_redis_is_away_and_a_worker_is_killed(cluster: Cluster, echo_server: Service) -> None:
    """What the parent knows is enough for the next one."""
    victim, other = await both(cluster, echo_server)
    port, worker = victim.port(), await worker_of(cluster.nodes[1], victim)
    await trio.to_thread.run_sync(cluster.redis.kill)
    await cluster.wait_away(1, away=True)
    os.kill(worker["pid"], signal.SIGKILL)
    await victim.wait_connected(within=20)
    assert victim.port() == port
    for client in (victim, other):
        assert await cluster.visit_at(1, client, b"here") == b"here"
        assert await cluster.visit_at(2, client, b"there") == b"there"
    await trio.to_thread.run_sync(cluster.redis.start)
    await cluster.wait_away(1, away=False)
    for client in (victim, other):
        assert await cluster.visit_at(2, client, b"and after") == b"and after"


async def test_a_drained_node_costs_nobody_anything(
    mariadb: MariaDB, tmp_path: Path, echo_server: Service
) -> None:
    """Under a steady stream of visitors at both nodes, and with some that last; each client is up at the other node before its old session ends."""
    async with (
        starting(mariadb, tmp_path, WORKERS, own_names=True) as cluster,
        AsyncExitStack() as stack,
    ):
        clients = await both(cluster, echo_server)
        ports = [client.port() for client in clients]
        one, two = cluster.nodes[1], cluster.nodes[2]
        await cluster.wait_claims(2, 2)
        where = await services.run_trionat(
            *("cluster", "where", "ann", "--config", cluster.config(2)),
            TRIONAT_STATE_DIR=str(two.state),
        )
        assert set(where.stdout.decode().splitlines()) == {f"node-1  {port}" for port in ports}
        lasting = [
            await stack.enter_async_context(
                await trio.open_tcp_stream(f"127.0.0.{number}", client.port())
            )
            for client in clients
            for number in (1, 2)
        ]
        for visitor in lasting:
            assert await ask(visitor, b"before") == b"before"
        waits: list[float] = []
        async with trio.open_nursery() as visiting:
            for client in clients:
                for number in (1, 2):
                    visiting.start_soon(visit_all_the_time, cluster, number, client, waits)
            await trio.sleep(0.5)
            async with trio.open_nursery() as nursery:

                async def leave() -> None:
                    for client in clients:
                        await client.wait_connected(within=20)
                        assert client.connected["server"].startswith("127.0.0.2:")
                    assert [client.port() for client in clients] == ports
                    await trio.sleep(1)
                    for visitor in lasting:
                        assert await ask(visitor, b"still here") == b"still here"
                    assert not [r for r in one.records if r["event"] == "session closed"]
                    for visitor in lasting:
                        await visitor.aclose()

                nursery.start_soon(leave)
                progress = await drain(cluster, 1)
            await trio.sleep(0.5)
            visiting.cancel_scope.cancel()
        assert progress[0]["sessions"] == 2
        assert progress[-1]["others"] == [f"127.0.0.2:{cluster.control}"]
        assert progress[-1]["done"]
        assert max(waits) < 2, sorted(waits)[-5:]
        assert len(waits) > 50
        closed = [each for each in one.records if each["event"] == "session closed"]
        assert [each["reason"] for each in closed] == 2 * ["the client has moved to another server"]
        assert len([each for each in two.records if each["event"] == "session up"]) == 2
        for client in clients:
            assert told(client) == ["connected", "draining", "connected"]
            assert await cluster.visit_at(1, client, b"by one hop") == b"by one hop"
        nodes: Any = (await cluster.status(2))["nodes"]
        assert [node["drained"] for node in nodes] == [True, False]
        one.terminate()
        assert await one.wait(within=20) == 0
        assert await cluster.visit_at(2, clients[0], b"after") == b"after"


@pytest.mark.slow
async def test_a_planned_stop(mariadb: MariaDB, tmp_path: Path, echo_server: Service) -> None:
    """Each client is up at the other node before its old session ends, and who visits it there does not notice."""
    async with starting(mariadb, tmp_path, WORKERS, own_names=True) as cluster:
        clients = await both(cluster, echo_server)
        ports = [client.port() for client in clients]
        await cluster.wait_claims(2, 2)
        waits: list[float] = []
        async with await trio.open_tcp_stream("127.0.0.1", ports[0]) as lasting:
            assert await ask(lasting, b"before") == b"before"
            async with trio.open_nursery() as visiting:
                for client in clients:
                    visiting.start_soon(visit_all_the_time, cluster, 2, client, waits)
                await trio.sleep(0.5)
                cluster.nodes[1].terminate()
                for client in clients:
                    await client.wait_connected(within=20)
                await trio.sleep(1)
                assert await ask(lasting, b"still here") == b"still here"
                await lasting.aclose()
                assert await cluster.nodes[1].wait(within=20) == 0
                visiting.cancel_scope.cancel()
        assert max(waits) < 2, sorted(waits)[-5:]
        assert [client.port() for client in clients] == ports
        for client in clients:
            assert told(client) == ["connected", "draining", "connected"]
        names = [node["name"] for node in (await cluster.status(2))["nodes"]]  # type: ignore[attr-defined]
        assert names == ["node-2"]


@pytest.mark.slow
async def test_who_waits_in_a_worker_goes_along(
    mariadb: MariaDB, tmp_path: Path, echo_server: Service
) -> None:
    """A client is lost while its node is drained, and comes back to another one: visitors that wait for it go there, whichever node they came to."""
    async with starting(mariadb, tmp_path, WORKERS, own_names=True) as cluster:
        lost = await cluster.connect("lost", echo_server, "--identity", "the same")
        port, answers = lost.port(), list[bytes]()
        await cluster.wait_claims(2, 1)
        lost.kill()
        await cluster.nodes[1].wait_record("session closed")
        cluster.front.order[:] = ["127.0.0.2"]

        async def visit(number: int) -> None:
            answers.append(await cluster.visit_at(number, lost, b"waited", within=20))

        async with trio.open_nursery() as visiting:
            for number in (1, 2):
                visiting.start_soon(visit, number)
                visiting.start_soon(visit, number)
            await trio.sleep(1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(drain, cluster, 1)
                await trio.sleep(1)
                again = await cluster.connect("again", echo_server, "--identity", "the same")
        assert again.port() == port
        assert answers == [b"waited"] * 4


@pytest.mark.slow
async def test_a_worker_is_killed_while_its_node_is_drained(
    mariadb: MariaDB, tmp_path: Path, echo_server: Service
) -> None:
    """The next one drains as well, and its clients get elsewhere with their ports."""
    async with starting(mariadb, tmp_path, WORKERS, own_names=True) as cluster:
        clients = await both(cluster, echo_server)
        ports = [client.port() for client in clients]
        await trio.to_thread.run_sync(cluster.redis.kill)  # so that nobody moves yet
        await cluster.wait_away(1, away=True)
        done = await services.run_trionat(
            *("drain", "--timeout", "1", "--config", cluster.config(1)),
            TRIONAT_STATE_DIR=str(cluster.nodes[1].state),
        )
        assert done.returncode == 6
        assert b"waiting for Redis, which has to tell the other nodes" in done.stdout
        os.kill((await worker_of(cluster.nodes[1], clients[0]))["pid"], signal.SIGKILL)
        await clients[0].wait_connected(within=20)  # it comes back for what it has here
        assert clients[0].connected["server"].startswith("127.0.0.1:")
        await trio.to_thread.run_sync(cluster.redis.start)
        for client in clients:
            await client.wait_connected(within=30)
            assert client.connected["server"].startswith("127.0.0.2:")
        assert [client.port() for client in clients] == ports
        assert (await drain(cluster, 1))[-1]["done"]
        assert (await status(cluster.nodes[1]))["server"]["drained"]
        for client in clients:
            assert await cluster.visit_at(1, client, b"by one hop") == b"by one hop"


async def test_kick_reaches_all_processes(cluster: Cluster, echo_server: Service) -> None:
    clients = await both(cluster, echo_server)
    done = await services.run_trionat(
        *("kick", "ann", "--config", cluster.config(2)),
        TRIONAT_STATE_DIR=str(cluster.nodes[2].state),
    )
    assert done.returncode == 0, done.stderr
    for client in clients:
        assert await client.wait() == 4
    found = await status(cluster.nodes[1])
    assert found["sessions"] == []
    assert (await cluster.status(1))["claims"] == 0


async def test_a_group_is_at_one_worker(cluster: Cluster) -> None:
    """Its clients come to the worker that has it, visitors by any node, and when that worker is killed they are back at their port."""
    clients = [await join_group(cluster, name, 1, 2) for name in "abcd"]
    [port] = {client.port() for client in clients}
    counts = {number: await worker_sessions(cluster.nodes[number]) for number in (1, 2)}
    assert sorted(counts[1] + counts[2]) == [0, 0, 0, 4]
    home = 1 if sum(counts[1]) else 2
    assert (await cluster.status(3 - home))["claims"] == 4
    async with AsyncExitStack() as stack:
        served = [
            (await visit_group(number, port, stack))[0] for number in (1, 2, 2, 1, 2, 1, 2, 2)
        ]
        assert Counter(served) == {"a": 2, "b": 2, "c": 2, "d": 2}
    worker = await worker_of(cluster.nodes[home], clients[0])
    os.kill(worker["pid"], signal.SIGKILL)
    async with AsyncExitStack() as stack:
        for number in (1, 2):  # they wait
            await visit_group(number, port, stack, within=15)
        for client in clients:
            await client.wait_connected(within=20)
        assert {client.port() for client in clients} == {port}
        served = [(await visit_group(number, port, stack))[0] for number in (1, 2) * 4]
        assert set(served) == set("abcd")
    counts = {number: await worker_sessions(cluster.nodes[number]) for number in (1, 2)}
    assert sorted(counts[home]) == [0, 4]


async def worker_sessions(server: Server) -> list[int]:
    return [worker["sessions"] for worker in (await status(server))["workers"]]
