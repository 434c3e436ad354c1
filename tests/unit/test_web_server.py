"""What the console and the inspector have in common; what each adds is tested with them."""

from __future__ import annotations

import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from trionat.address import TCPAddress
from trionat.transport.descriptors import Descriptors
from trionat.transport.listener import Listener
from trionat.transport.web_server import WebServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Say nothing, for ever."""
    await trio.sleep_forever()


@asynccontextmanager
async def serving(most: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[TCPAddress]:
    listener, descriptors = Listener.open(TCPAddress("127.0.0.1", 0)), Descriptors()
    server = WebServer(
        name="server",
        app=answer,
        listener=listener,
        descriptors=descriptors,
        most=most,
        tls=tls,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve)  # noqa: ASYNC113 - it listens already
        yield listener.address
        nursery.cancel_scope.cancel()
    listener.close()
    descriptors.close()


async def come(address: TCPAddress, stack: AsyncExitStack, said: bytes = b"") -> trio.SocketStream:
    stream = await trio.open_tcp_stream(address.host, address.port)
    await stack.enter_async_context(stream)
    await stream.send_all(said)
    return stream


@pytest.mark.parametrize("tls", [None, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)])
async def test_who_says_nothing_makes_room_at_once(
    nothing_left: None, tls: ssl.SSLContext | None
) -> None:
    """Before a handshake as well, and long before its deadline: else there would be more than may be."""
    async with serving(2, tls) as address, AsyncExitStack() as stack:
        streams = [await come(address, stack) for _ in range(5)]
        with trio.fail_after(0.5):
            for stream in streams[:3]:
                assert await stream.receive_some(1) == b""
        with trio.move_on_after(0.2) as still_there:
            await streams[4].receive_some(1)
        assert still_there.cancelled_caught


async def test_who_is_served_does_not_make_room(nothing_left: None) -> None:
    async with serving(2) as address, AsyncExitStack() as stack:
        request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        served = [await come(address, stack, request) for _ in range(2)]
        await trio.sleep(0.1)
        with trio.fail_after(2):
            assert await (await come(address, stack)).receive_some(1) == b""
        for stream in served:
            with trio.move_on_after(0.1) as still_there:
                await stream.receive_some(1)
            assert still_there.cancelled_caught
