"""Clients that share a visit port in a cluster: all of them come to one node, and visitors to any."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask
from tests.failover.test_cluster import LOGIN, Cluster, cluster, drain, starting, told

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.running import Client
    from tests.mariadb import MariaDB

__all__ = ["cluster"]

pytestmark = pytest.mark.limit(120)


async def join(cluster: Cluster, name: str, *nodes: int) -> Client:
    """Run a client of the group that knows these nodes, with a service that greets with its name."""
    service = await cluster.enter(services.echo(login=name.encode()))
    addresses = ",".join(f"127.0.0.{number}:{cluster.control}" for number in nodes)
    client = await cluster.enter(
        running.client_process(
            cluster.folder / name,
            *(str(service.port), "--server", addresses, "--group", "web"),
            *("--fingerprint", str(cluster.nodes[1].ready["fingerprint"])),
            environ=LOGIN,
        )
    )
    await client.wait_connected(within=20)
    return client


async def sessions(cluster: Cluster, number: int) -> list[dict[str, Any]]:
    done = await services.run_trionat(
        *("status", "--json", "--config", cluster.config(number)),
        TRIONAT_STATE_DIR=str(cluster.nodes[number].state),
    )
    return list(json.loads(done.stdout)["sessions"])


async def visit(
    number: int, port: int, stack: AsyncExitStack, *, within: float = 5
) -> tuple[str, trio.SocketStream]:
    """Be a visitor at a node to the end of the stack; return who serves."""
    stream = await stack.enter_async_context(await trio.open_tcp_stream(f"127.0.0.{number}", port))
    with trio.fail_after(within):
        return (await stream.receive_some(1)).decode(), stream


async def test_all_come_to_one_node_and_visitors_to_any(cluster: Cluster) -> None:
    clients = [await join(cluster, name, 1, 2) for name in "abcd"]
    [port] = {client.port() for client in clients}
    async with AsyncExitStack() as stack:
        served: Counter[str] = Counter()
        for number in (1, 2, 2, 1, 2, 1, 2, 2):
            name, stream = await visit(number, port, stack)
            await stream.send_all(b"hello")
            assert await running.read_exactly(stream, 5) == b"hello"
            served[name] += 1
        assert served == {"a": 2, "b": 2, "c": 2, "d": 2}
        found = [await sessions(cluster, number) for number in (1, 2)]
        assert sorted(map(len, found)) == [0, 4]
        assert {each["group"] for each in found[0] + found[1]} == {"web"}


async def test_one_that_knows_another_node_only_is_told_where_its_group_is(
    cluster: Cluster,
) -> None:
    await join(cluster, "a", 1)
    async with running.client_process(
        cluster.folder / "b",
        *("8080", "--server", f"127.0.0.2:{cluster.control}", "--group", "web"),
        *("--fingerprint", str(cluster.nodes[1].ready["fingerprint"])),
        environ=LOGIN,
    ) as other:
        problem = await other.process.next_event("disconnected", within=20)
        assert problem["reason"] == "the group web is at another node of this cluster (node-1)"
        assert problem["retry_in"] is not None
        other.terminate()


@pytest.mark.slow
async def test_a_node_that_is_killed(cluster: Cluster) -> None:
    """Whoever comes meanwhile waits, and all clients are at the other node within seconds, at the same port."""
    clients = [await join(cluster, name, 1, 2) for name in "abc"]
    [port] = {client.port() for client in clients}
    old = 1 if await sessions(cluster, 1) else 2
    new = 3 - old
    cluster.nodes[old].kill()
    await cluster.nodes[old].wait()
    killed = trio.current_time()
    async with AsyncExitStack() as stack:
        name, _ = await visit(new, port, stack, within=8)
        assert name in set("abc")
        for client in clients:
            await client.wait_connected(within=10)
        took = trio.current_time() - killed
        assert took < 6.5  # most often 2 to 4, on a machine that has nothing else to do
        assert {client.port() for client in clients} == {port}
        served = Counter({name: 1})
        for _ in range(5):
            served[(await visit(new, port, stack))[0]] += 1
        assert served == {"a": 2, "b": 2, "c": 2}
        assert len(await sessions(cluster, new)) == 3


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_drained_node_costs_a_group_nobody(
    mariadb: MariaDB, tmp_path: Path, workers: str
) -> None:
    """Under a steady stream of visitors at all nodes: all of its clients come to one of the others, and keep whom they have until then."""
    environ = {"TRIONAT_SERVER_WORKERS": workers}
    async with (
        starting(mariadb, tmp_path, environ, own_names=True) as cluster,
        AsyncExitStack() as stack,
    ):
        await cluster.start(3, **environ)
        clients = [await join(cluster, name, 1, 2, 3) for name in "abc"]
        [port] = {client.port() for client in clients}
        [old] = [number for number in (1, 2, 3) if await sessions(cluster, number)]
        for number in (1, 2, 3):
            await cluster.wait_claims(number, 3)
        lasting: list[trio.SocketStream] = []
        served: Counter[str] = Counter()
        for number in (1, 2, 3):
            for _ in range(2):
                name, stream = await visit(number, port, stack)
                served[name] += 1
                lasting.append(stream)
        assert served == {"a": 2, "b": 2, "c": 2}
        answers: Counter[str] = Counter()

        async def visit_all_the_time(number: int) -> None:
            while True:
                async with AsyncExitStack() as own:
                    name, stream = await visit(number, port, own)
                    assert await ask(stream, b"a question") == b"a question"
                    answers[name] += 1
                await trio.sleep(0.02)

        async with trio.open_nursery() as visiting:
            for number in (1, 2, 3):
                visiting.start_soon(visit_all_the_time, number)
            await trio.sleep(0.5)
            async with trio.open_nursery() as nursery:

                async def leave() -> None:
                    for client in clients:
                        await client.wait_connected(within=20)
                    await trio.sleep(1)
                    for stream in lasting:
                        assert await ask(stream, b"still here") == b"still here"
                        await stream.aclose()

                nursery.start_soon(leave)
                progress = await drain(cluster, old)
            before = answers.total()
            await trio.sleep(0.5)
            visiting.cancel_scope.cancel()
        assert answers.total() > before > 30
        assert progress[0]["sessions"] == 3
        assert progress[-1]["sessions"] == 0
        found = {number: len(await sessions(cluster, number)) for number in (1, 2, 3)}
        assert sorted(found.values()) == [0, 0, 3]
        assert found[old] == 0
        for client in clients:
            assert client.port() == port
            # Before that, it may have come to a node first that does not have the group.
            assert told(client)[-3:] == ["connected", "draining", "connected"]
        served.clear()
        for number in (1, 2, 3) * 2:
            served[(await visit(number, port, stack))[0]] += 1
        assert served == {"a": 2, "b": 2, "c": 2}
