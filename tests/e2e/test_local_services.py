"""A client says which of its services are down, once, and does not disturb those that are up."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask, read_all

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.limit(60)

VISITORS = 30
DOWN = "the local service is down; visitors are refused until it is back"
UP = "the local service is back"


async def test_down_at_the_start_and_up_later(tmp_path: Path) -> None:
    port = services.free_low_port()
    reason = f"the local service 127.0.0.1:{port} cannot be reached: Connection refused"
    async with (
        running.server(tmp_path / "s") as server,
        running.client(tmp_path / "c", server.ticket, port) as client,
    ):
        down = await client.process.next_event("service-down")
        assert down == {
            "event": "service-down",
            "name": f"127.0.0.1:{port}",
            "local": f"127.0.0.1:{port}",
            "reason": reason,
        }
        for _ in range(VISITORS):
            async with await client.visit() as visitor:
                assert await read_all(visitor) == b""
        async with services.echo(port=port):
            for _ in range(2):
                async with await client.visit() as visitor:
                    assert await ask(visitor, b"up") == b"up"
            await client.process.next_event("service-up")
        for _ in range(VISITORS):  # a moment later: it is not told each time
            async with await client.visit() as visitor:
                assert await read_all(visitor) == b""
        await client.wait_record(DOWN, reason=reason, level="warning")
        await client.wait_record(UP, refused=VISITORS - 1, level="info")
        events = [record["event"] for record in client.records]
        assert (events.count(DOWN), events.count(UP)) == (1, 1)
        assert events.count("visitor refused") == 2  # one in each outage
        assert f"warning {DOWN} service=127.0.0.1:{port}" in client.process.errors.decode()
        told = [event["event"] for event in client.process.events]
        assert told == ["connected", "service-down", "service-up"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_one_that_is_up_hears_of_visitors_only(host: str, tmp_path: Path) -> None:
    """As `nc -l`, which takes one connection and no more. What is found on ::1 is meant by a bare port as well."""
    async with AsyncExitStack() as stack:
        accepted = []
        [listener] = await trio.open_tcp_listeners(services.free_low_port(), host=host)
        port = listener.socket.getsockname()[1]
        await stack.enter_async_context(listener)
        server = await stack.enter_async_context(running.server(tmp_path / "s"))
        client = await stack.enter_async_context(
            running.client(tmp_path / "c", server.ticket, port)
        )
        with trio.move_on_after(0.5):
            accepted.append(await listener.accept())
        assert not accepted
        async with await client.visit() as visitor, await listener.accept() as local:
            await local.send_all(b"hello")
            assert await running.read_exactly(visitor, 5) == b"hello"
        assert [event["event"] for event in client.process.events] == ["connected"]
