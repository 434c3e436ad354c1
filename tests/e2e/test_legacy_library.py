"""The library at a server of the Go program, over sockets and in one process: `trionat.connect` with a legacy dialect."""

from __future__ import annotations

import hashlib
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

import trionat
from tests.e2e import services
from tests.e2e.legacy_peers import HOST, Dialect, LegacyDialer, running_server
from tests.e2e.running import ask, end_of, read_all
from trionat.address import TCPAddress
from trionat.config.client import AuthConfig, ClientConfig
from trionat.errors import RefusedError
from trionat.events import ClientEvent, Connected, Disconnected, Queued

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trionat.client.app import Client

both = pytest.mark.parametrize("dialect", list(Dialect), ids=lambda dialect: dialect.value)
BULK = os.urandom(8 * 2**20)


@asynccontextmanager
async def connected(
    server: LegacyDialer, local_port: int, events: list[ClientEvent], password: str = "geheim"
) -> AsyncIterator[Client]:
    config = ClientConfig(
        dialect=server.dialect.value,
        controller_addr=TCPAddress(HOST, server.control_port),
        tunnel_server_addr=TCPAddress(HOST, server.tunnel_port),
        local_server_addr=TCPAddress(HOST, local_port),
        drain_grace=5,
    )
    auth = AuthConfig(username="alice", password=password)
    with trio.fail_after(8):
        async with trionat.connect(config, auth, on_event=events.append) as client:
            yield client


async def visit(client: Client) -> trio.SocketStream:
    (service,) = client.services
    return await trio.open_tcp_stream(service.public.host, service.public.port)


@both
async def test_bytes_and_ends(nothing_left: None, dialect: Dialect) -> None:
    """Bulk both ways at once, and a half-close; when the block is left nothing of it is there any more."""
    server = LegacyDialer(dialect=dialect, users={"alice": "geheim"})
    events: list[ClientEvent] = []
    async with running_server(server), services.echo(farewell=b"bye") as echo:
        async with connected(server, echo.port, events) as client, await visit(client) as visitor:
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    await visitor.send_all(BULK)
                    await visitor.send_eof()

                nursery.start_soon(send)
                received = await read_all(visitor)
        assert hashlib.sha256(received).digest() == hashlib.sha256(BULK + b"bye").digest()
        assert [type(event) for event in events] == [Connected]
        with trio.fail_after(2):
            while server.sessions:  # noqa: ASYNC110 - there is no event for it
                await trio.sleep(0.01)
    assert not server.malformed


@both
async def test_one_refused_visitor_does_not_shift_the_others(dialect: Dialect) -> None:
    """A server gives a tunnel to the visitor that has waited longest, so the refused one must not be left waiting."""
    server = LegacyDialer(dialect=dialect)
    local_port = services.free_low_port()
    async with running_server(server), connected(server, local_port, []) as client:
        async with await visit(client) as refused:
            assert await end_of(refused) == "end"  # and not after the 8 s of the server's patience
        async with services.echo(port=local_port):
            for _ in range(3):
                async with await visit(client) as visitor:
                    assert await ask(visitor, b"mine") == b"mine"
    assert len(server.tunnels) == 4
    assert not server.malformed


async def test_wrong_password() -> None:
    server = LegacyDialer(dialect=Dialect.NAT_V1, users={"alice": "geheim"})
    events: list[ClientEvent] = []
    async with running_server(server):
        with pytest.RaisesGroup(RefusedError):
            async with connected(server, 1, events, password="falsch"):
                pytest.fail("let in")
    (event,) = events
    assert isinstance(event, Disconnected)
    assert event.retry_in is None


async def test_queue_and_full_queue() -> None:
    """One inside, one in the queue, one that is sent away; each moves up when the one before it leaves."""
    server = LegacyDialer(dialect=Dialect.NAT_DOC, queue_places=1)
    told: list[list[ClientEvent]] = [[], [], []]
    leave = [trio.Event() for _ in told]
    order: list[int] = []

    async def client(number: int) -> None:
        async with connected(server, 1, told[number]):
            order.append(number)
            await leave[number].wait()

    async def until(number: int, kind: type[ClientEvent]) -> None:
        while not any(isinstance(event, kind) for event in told[number]):  # noqa: ASYNC110 - as above
            await trio.sleep(0.01)

    async with running_server(server), trio.open_nursery() as nursery:
        for number, kind in enumerate((Connected, Queued, Disconnected)):
            nursery.start_soon(client, number)
            await until(number, kind)
        assert told[1] == [Queued(None)]
        full = told[2][0]
        assert isinstance(full, Disconnected)
        assert full.reason == "the server is full: the-connection-is-full."
        assert full.retry_in is not None
        for number in range(3):
            await until(number, Connected)
            leave[number].set()
    assert order == [0, 1, 2]
    assert not server.malformed
