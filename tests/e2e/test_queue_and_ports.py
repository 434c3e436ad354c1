"""Who gets a session and which ports: the queue, ports kept for a client that comes back, eviction."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask, read_all

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.services import Service

pytestmark = pytest.mark.limit(60)


async def test_queue_moves_up_and_on(echo_server: Service, tmp_path: Path) -> None:
    """One session, two places: who comes third is told so, who is killed leaves at once, who waits gets the port."""
    async with (
        running.server(
            *(tmp_path / "s", "--max-tcp-conn-num", "1", "--max-conn-num", "2"), visit="0,0"
        ) as server,
        running.client(tmp_path / "first", server.ticket, echo_server) as first,
        AsyncExitStack() as later,
    ):

        async def start(name: str, *flags: str) -> running.Client:
            return await later.enter_async_context(
                running.client_process(tmp_path / name, server.ticket, str(echo_server), *flags)
            )

        second = await start("second")
        assert (await second.process.next_event("queued"))["position"] == 1
        third = await start("third", "--once")  # which waits as well, and tries no second time
        assert (await third.process.next_event("queued"))["position"] == 2

        fourth = await start("fourth")
        full = await fourth.process.next_event("disconnected")
        reason = "all 1 sessions are taken and 2 clients wait already"
        assert full["reason"] == reason
        assert 0 < full["retry_in"] <= 5  # it says so and stays
        fourth.terminate()
        assert await fourth.wait() == 0
        fifth = await start("fifth", "--once")
        assert await fifth.wait() == 3
        assert f"trionat: {reason}" in fifth.process.errors.decode()

        second.kill()
        assert (await third.process.next_event("queued", within=2))["position"] == 1
        first.terminate()
        await third.wait_connected(within=5)
        assert await first.wait() == 0
        async with await third.visit() as visitor:
            assert await ask(visitor, b"my turn") == b"my turn"


async def test_ports_wait_for_a_client_that_was_killed(
    echo_server: Service, tmp_path: Path
) -> None:
    """Four ports are free besides, so that getting the same one is no accident; visitors in between are served after all."""
    async with running.server(tmp_path / "s", visit="0,0,0,0,0") as server:
        for count in (1, 2):
            async with running.client(tmp_path / "c", server.ticket, echo_server) as client:
                port = client.port()
                client.kill()
            await server.wait_record("session closed", code="lost", count=count)
            waiting = [await client.visit() for _ in range(3)]
            async with AsyncExitStack() as closing:
                for visitor in waiting:
                    await closing.enter_async_context(visitor)
                    await visitor.send_all(b"anybody?")
                async with running.client(tmp_path / "c", server.ticket, echo_server) as again:
                    assert again.port() == port
                    for visitor in waiting:
                        await visitor.send_eof()
                        assert await read_all(visitor) == b"anybody?"


async def test_ports_go_back_when_nobody_comes(echo_server: Service, tmp_path: Path) -> None:
    """After the reservation the next in the queue has them, and visitors that waited for the first are closed."""
    async with (
        running.server(tmp_path / "s", "--port-reservation", "1") as server,
        running.client(tmp_path / "first", server.ticket, echo_server) as first,
        running.client_process(tmp_path / "second", server.ticket, str(echo_server)) as second,
    ):
        await second.process.next_event("queued")
        first.kill()
        await server.wait_record("session closed", code="lost")
        async with await first.visit() as visitor:
            assert await read_all(visitor) == b""
        await second.wait_connected(within=5)
        assert second.port() == first.port()


async def test_second_start_of_a_client_evicts_the_first(
    echo_server: Service, tmp_path: Path
) -> None:
    async with (
        running.server(tmp_path / "s", visit="0,0") as server,
        running.client(tmp_path / "c", server.ticket, echo_server) as first,
    ):
        async with running.client(tmp_path / "c", server.ticket, echo_server) as second:
            assert second.port() == first.port()
            gone = await first.process.next_event("disconnected")
            assert gone["retry_in"] is None
            assert gone["reason"] == "a new connection of the same client (Client-NAT)"
            assert await first.wait() == 5
            assert "stop one, or give each its own --identity" in first.log_text()
            async with await second.visit() as visitor:
                assert await ask(visitor, b"hello") == b"hello"
            # One for another service is another client, even with the same state folder.
            async with (
                services.echo(login=b"other") as other,
                running.client(tmp_path / "c", server.ticket, other) as third,
            ):
                assert third.port() != second.port()
                assert len(second.process.events) == 1


async def test_ports_that_cannot_be_had(echo_server: Service, tmp_path: Path) -> None:
    async with running.server(tmp_path / "s") as server:
        await trio.Path(tmp_path / "c").mkdir()
        for services_asked, message in (
            ([f"{echo_server}:1"], "visit port 1 is not one that this server offers ("),
            ([str(echo_server), "22"], "2 services asked for, and this server has 1 visit port"),
        ):
            result = await services.run_trionat(
                *("connect", server.ticket, *services_asked),
                *("--state-dir", tmp_path / "c"),
                cwd=tmp_path / "c",
            )
            assert result.returncode == 2
            assert f"trionat: {message}" in result.stderr.decode()
