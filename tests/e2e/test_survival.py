"""Clients outlive whatever happens to their server, and to their service."""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask, end_of, read_exactly

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.services import Service

pytestmark = pytest.mark.limit(60)

SLACK = 2.0
"""Seconds that a busy machine may add to what the product promises."""


async def test_server_that_is_killed_twice(tmp_path: Path) -> None:
    """Each time with a visitor, whose service hears of it when the client is back: within seconds, at the same port of three."""
    control = f"{services.HOST}:{services.free_low_port()}"
    ports = [str(services.free_low_port()) for _ in range(3)]
    # A server lends its first port first. The next one has others first, so that the same one is no accident.
    orders = [",".join(ports[number:] + ports[:number]) for number in range(3)]
    start = partial(running.server, tmp_path / "s", control=control)
    async with (
        services.handed_over() as (service, accepted),
        start(visit=orders[0]) as server,
        running.client(tmp_path / "c", server.ticket, service) as client,
        AsyncExitStack() as later,
    ):
        assert client.port() == int(ports[0])
        current = server
        for order in orders[1:]:
            async with await client.visit() as visitor:
                await visitor.send_all(b"before")
                peer = await accepted.receive()
                assert await read_exactly(peer, 6) == b"before"
                current.kill()
                await end_of(
                    visitor
                )  # by the kernel's hand, which says FIN where nothing is unread
            gone = await client.process.next_event("disconnected")
            assert gone["reason"].startswith(("connection lost", "the peer closed"))
            assert 0 <= gone["retry_in"] <= 5
            current = await later.enter_async_context(start(visit=order))
            assert current.ready["ticket"] == server.ticket
            assert current.ready["fingerprint"] == server.ready["fingerprint"]
            await client.wait_connected(within=10)
            with trio.fail_after(2):
                assert await end_of(peer) == "reset"  # the new server has nothing of it
            assert client.port() == int(ports[0])
            async with await client.visit() as visitor:
                await visitor.send_all(b"after")
                peer = await accepted.receive()
                assert await read_exactly(peer, 5) == b"after"
        client.terminate()
        assert await client.wait() == 0


async def test_server_that_is_not_there_yet(echo_server: Service, tmp_path: Path) -> None:
    control = f"{services.HOST}:{services.free_low_port()}"
    start = partial(running.server, tmp_path / "s", control=control)
    async with start() as server:
        ticket = server.ticket
    once = await services.run_trionat(
        *("connect", ticket, str(echo_server), "--once", "--state-dir", tmp_path / "once"),
        cwd=tmp_path,
    )
    assert once.returncode == 3
    message = f"trionat: cannot reach {control}: Connection refused\n"
    assert once.stderr.decode() == message
    async with running.client_process(tmp_path / "c", ticket, str(echo_server)) as client:
        tries = [await client.process.next_event("disconnected") for _ in range(2)]
        assert {event["reason"] for event in tries} == {
            f"cannot reach {control}: Connection refused"
        }
        assert all(0 < event["retry_in"] <= 5 for event in tries)
        async with start():
            await client.wait_connected(within=10)
            async with await client.visit() as visitor:
                assert await ask(visitor, b"at last") == b"at last"
            client.terminate()
            assert await client.wait() == 0


async def test_once_ends_with_the_connection(echo_server: Service, tmp_path: Path) -> None:
    async with (
        running.server(tmp_path / "s") as server,
        running.client(tmp_path / "c", server.ticket, echo_server, "--once") as client,
    ):
        server.kill()
        assert await client.wait() == 3
        assert (await client.process.next_event())["retry_in"] is None


async def test_client_that_is_stopped_while_it_tries(echo_server: Service, tmp_path: Path) -> None:
    """Neither a server that is away nor one that takes the connection and says nothing keeps it from stopping at once."""
    async with running.server(tmp_path / "s") as server:
        ticket, (host, port) = server.ticket, server.control
    async with running.client_process(tmp_path / "a", ticket, str(echo_server)) as client:
        await client.process.next_event("disconnected")
        await client.process.next_event("disconnected")
        client.terminate()
        assert await client.wait(within=2) == 0
    with trio.socket.socket() as silent:
        silent.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
        await silent.bind((host, port))
        silent.listen()
        async with running.client_process(tmp_path / "b", ticket, str(echo_server)) as client:
            connection, _ = await silent.accept()
            with connection:
                assert await connection.recv(1) == b"\x16"
                client.terminate()
                assert await client.wait(within=2) == 0


@pytest.mark.slow
async def test_peers_that_fall_silent(echo_server: Service, tmp_path: Path) -> None:
    """Stopped, not ended: no FIN and no RST ever comes. Either side notices within 10 seconds, says so, and recovers."""
    async with (
        running.server(tmp_path / "s1") as server,
        running.client(tmp_path / "c1", server.ticket, echo_server) as silent_client,
        running.server(tmp_path / "s2") as silent_server,
        running.client(tmp_path / "c2", silent_server.ticket, echo_server) as client,
    ):
        for silent in (silent_client, silent_server):
            silent.process.process.send_signal(signal.SIGSTOP)
        since = trio.current_time()
        reason = "nothing heard from the client for 8 s"
        await server.wait_record("session closed", within=10 + SLACK, reason=reason, code="timeout")
        stopped_for = trio.current_time() - since
        gone = await client.process.next_event("disconnected", within=10 - stopped_for + SLACK)
        assert gone["reason"] == "nothing heard from the server for 8 s"
        for silent in (silent_client, silent_server):
            silent.process.process.send_signal(signal.SIGCONT)
        for back in (silent_client, client):
            await back.wait_connected()
            async with await back.visit() as visitor:
                assert await ask(visitor, b"hello") == b"hello"


async def test_second_server_on_the_same_folder(tmp_path: Path) -> None:
    """It is refused in one line, and the first one goes on; a folder whose server was killed is free."""
    async with running.server(tmp_path / "s") as server:
        second = await services.run_trionat(
            *("serve", "--json", "--controller-addr", "127.0.0.1:0", "--tunnel-addr"),
            *("127.0.0.1:0", "--expose-port", "0", "--state-dir", server.state),
            cwd=tmp_path,
        )
        assert (second.returncode, second.stdout) == (3, b"")
        assert second.stderr.decode() == (
            f"trionat: {server.state}: another trionat serve runs on this state folder: "
            "stop it, or give this one a folder of its own (--state-dir)\n"
        )
        assert not (server.state / "server.log").exists()  # which would be that of the first one
        server.kill()
        await server.wait()
    async with running.server(tmp_path / "s"):
        pass
