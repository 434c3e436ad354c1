"""Planned stops: the first signal lets visitors finish, the second one does not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask, end_of, read_all, read_exactly

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.services import Service

pytestmark = pytest.mark.limit(60)

MEGABYTE = os.urandom(1_000_000)


async def test_server_lets_visitors_finish(tmp_path: Path) -> None:
    """The one in the middle of a transfer gets all of it; new ones are refused; the ports can be had again at once."""
    control, visit = (f"{services.HOST}:{services.free_low_port()}" for _ in range(2))
    visit_port = visit.partition(":")[2]
    async with services.handed_over() as (service, accepted):
        async with (
            running.server(tmp_path / "s", control=control, visit=visit_port) as server,
            running.client(tmp_path / "c", server.ticket, service) as client,
            await client.visit() as visitor,
        ):
            await visitor.send_all(b"get")
            peer = await accepted.receive()
            assert await read_exactly(peer, 3) == b"get"
            await peer.send_all(MEGABYTE)
            server.terminate()
            assert (await client.process.next_event("draining"))["seconds"] == 30
            await server.wait_record("visit ports closed")
            with pytest.raises(OSError, match="connect"):
                await client.visit()
            await peer.send_all(b"the rest")
            await peer.send_eof()
            assert await read_all(visitor) == MEGABYTE + b"the rest"
            assert server.process.process.poll() is None  # the visitor's direction is still open
            await visitor.send_all(b"thanks")
            await visitor.send_eof()
            assert await read_all(peer) == b"thanks"
            assert await server.wait(within=5) == 0
            gone = await client.process.next_event("disconnected")
            assert gone["reason"] == "the server stops"
            assert gone["retry_in"] is not None
            async with running.server(tmp_path / "s", control=control, visit=visit_port):
                await client.wait_connected()
                client.terminate()
                assert await client.wait() == 0


async def test_server_stops_now_at_the_second_signal(echo_server: Service, tmp_path: Path) -> None:
    async with (
        running.server(tmp_path / "s") as server,
        running.client(tmp_path / "c", server.ticket, echo_server) as client,
        await client.visit() as visitor,
    ):
        assert await ask(visitor, b"hello") == b"hello"
        server.terminate()
        await client.process.next_event("draining")
        assert await ask(visitor, b"still here") == b"still here"
        server.terminate()
        assert await server.wait(within=3) == 130
        assert await end_of(visitor) == "reset"
        client.kill()


async def test_server_stops_visitors_after_the_grace(echo_server: Service, tmp_path: Path) -> None:
    async with (
        running.server(tmp_path / "s", "--drain-grace", "1") as server,
        running.client(tmp_path / "c", server.ticket, echo_server) as client,
        await client.visit() as visitor,
    ):
        assert await ask(visitor, b"hello") == b"hello"
        server.terminate()
        assert (await client.process.next_event("draining"))["seconds"] == 1
        assert await end_of(visitor) == "reset"
        assert await server.wait(within=3) == 0
        client.kill()


async def test_client_lets_visitors_finish(tmp_path: Path) -> None:
    async with (
        services.handed_over() as (service, accepted),
        running.server(tmp_path / "s") as server,
        running.client(tmp_path / "c", server.ticket, service) as client,
        await client.visit() as visitor,
    ):
        await visitor.send_all(b"get")
        peer = await accepted.receive()
        assert await read_exactly(peer, 3) == b"get"
        client.terminate()
        await server.wait_record("the client is leaving")
        async with await client.visit() as late:
            with trio.fail_after(2):
                assert await read_all(late) == b""
        await peer.send_all(MEGABYTE)
        await peer.send_eof()
        assert await read_all(visitor) == MEGABYTE
        await visitor.send_eof()
        assert await client.wait(within=5) == 0
        await server.wait_record("ports are free again")  # at once, without the reservation
        async with running.client(tmp_path / "other", server.ticket, service) as other:
            assert other.port() == client.port()


async def test_client_stops_now_at_the_second_signal(echo_server: Service, tmp_path: Path) -> None:
    async with (
        running.server(tmp_path / "s") as server,
        running.client(tmp_path / "c", server.ticket, echo_server) as client,
        await client.visit() as visitor,
    ):
        assert await ask(visitor, b"hello") == b"hello"
        client.terminate()
        await server.wait_record("the client is leaving")
        assert await ask(visitor, b"still here") == b"still here"
        client.terminate()
        assert await client.wait(within=3) == 130
        assert await end_of(visitor) == "reset"


async def test_stop_at_the_moment_of_the_start(tmp_path: Path) -> None:
    """As soon as it says that it is ready; nothing of it is left, and it starts again with the same ports."""
    control = f"{services.HOST}:{services.free_low_port()}"
    for _ in range(2):
        async with running.server(tmp_path / "s", control=control) as server:
            server.terminate()
            assert await server.wait(within=3) == 0


async def test_port_that_is_taken(tmp_path: Path) -> None:
    async with services.echo() as taken:
        result = await services.run_trionat(
            *("serve", "--controller-addr", str(taken), "--state-dir", tmp_path / "state"),
            cwd=tmp_path,
        )
    assert result.returncode == 3
    message = f"trionat: cannot listen on {taken}: Address already in use; "
    assert result.stderr.decode().startswith(message)
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == b""
