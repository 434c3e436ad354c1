"""A server and a client inside a test: the service under test gets a public address, and nothing is left behind.

Copy it into a project of your own and run `pytest pytest_fixture.py`; it needs pytest-trio. The fixture `public_address` may
stand in a conftest.py. Tests that are not written for Trio have ready-made fixtures: docs/library.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

import trionat

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LOOPBACK = "127.0.0.1"
ANY_PORT = trionat.TCPAddress(LOOPBACK, 0)


async def shout(stream: trio.SocketStream) -> None:
    """The service under test: send back what comes, in capitals."""
    async for data in stream:
        await stream.send_all(data.upper())


@pytest.fixture
async def service() -> AsyncIterator[trionat.TCPAddress]:
    """Run the service, and say where."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
        await nursery.start(trio.serve_listeners, shout, listeners)
        yield trionat.TCPAddress(LOOPBACK, listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


@pytest.fixture
async def public_address(service: trionat.TCPAddress) -> AsyncIterator[trionat.TCPAddress]:
    """Run a server and a client, and say where visitors reach the service."""
    server_config = trionat.ServerConfig(  # in memory, as it names no folder
        controller_addr=ANY_PORT,
        tunnel_addr=ANY_PORT,
        visit_port=(0,),  # any free one
        drain_grace=0,
    )
    async with trionat.open_server(server_config) as ready:
        client_config = trionat.ClientConfig(
            ticket=ready.ticket,
            services=(trionat.Service(local=service),),
            drain_grace=0,  # a visitor that a test forgot does not hold up its end
        )
        async with trionat.connect(client_config) as client:
            yield client.services[0].public


@pytest.mark.trio
async def test_a_visitor_is_served(public_address: trionat.TCPAddress) -> None:
    with trio.fail_after(5):
        async with await trio.open_tcp_stream(public_address.host, public_address.port) as visitor:
            await visitor.send_all(b"hello")
            assert await visitor.receive_some() == b"HELLO"


@pytest.mark.trio
async def test_what_a_visitor_ended_is_answered_to_its_end(
    public_address: trionat.TCPAddress,
) -> None:
    with trio.fail_after(5):
        async with await trio.open_tcp_stream(public_address.host, public_address.port) as visitor:
            await visitor.send_all(b"the last word")
            await visitor.send_eof()
            answer = b"".join([data async for data in visitor])
    assert answer == b"THE LAST WORD"
