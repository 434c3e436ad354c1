"""What the console and the inspector have in common; what each adds is tested with them."""

from __future__ import annotations

import logging
import ssl
import sys
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from tests.e2e.running import wait_until
from trionat.address import TCPAddress
from trionat.transport import web_server
from trionat.transport.descriptors import Descriptors
from trionat.transport.listener import Listener
from trionat.transport.web_connection import note_known
from trionat.transport.web_server import WebServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Say nothing, for ever. Whoever asks for `/known` has said who he is; all others' bodies are waited for."""
    if scope["path"] == "/known":
        note_known(scope)
    while True:
        await receive()


@attrs.define
class Server:
    address: TCPAddress
    descriptors: Descriptors
    closed: list[str] = attrs.field(factory=lambda: [])


@asynccontextmanager
async def serving(most: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    listener, descriptors = Listener.open(TCPAddress("127.0.0.1", 0)), Descriptors()
    here = Server(listener.address, descriptors)
    server = WebServer(
        name="server",
        app=answer,
        listener=listener,
        descriptors=descriptors,
        most=most,
        closed=lambda _, reason: here.closed.append(reason),
        tls=tls,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve)  # noqa: ASYNC113 - it listens already
        yield here
        nursery.cancel_scope.cancel()
    listener.close()
    descriptors.close()


async def come(
    server: Server, stack: AsyncExitStack, said: bytes = b"", *, source: str | None = None
) -> trio.SocketStream:
    address = server.address
    stream = await trio.open_tcp_stream(address.host, address.port, local_address=source)
    await stack.enter_async_context(stream)
    await stream.send_all(said)
    return stream


@pytest.mark.parametrize("tls", [None, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)])
async def test_who_says_nothing_makes_room_at_once(
    nothing_left: None, tls: ssl.SSLContext | None
) -> None:
    """Before a handshake as well, and long before its deadline: else there would be more than may be."""
    async with serving(2, tls) as server, AsyncExitStack() as stack:
        streams = [await come(server, stack) for _ in range(5)]
        with trio.fail_after(0.5):
            for stream in streams[:3]:
                assert await stream.receive_some(1) == b""
        with trio.move_on_after(0.2) as still_there:
            await streams[4].receive_some(1)
        assert still_there.cancelled_caught


async def is_there(stream: trio.SocketStream) -> bool:
    with trio.move_on_after(0.1) as waiting:
        assert await stream.receive_some(1) == b""
    return waiting.cancelled_caught


KNOWN = b"GET /known HTTP/1.1\r\nHost: x\r\n\r\n"
SLOW = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"


async def test_who_is_known_and_served_does_not_make_room(nothing_left: None) -> None:
    async with serving(2) as server, AsyncExitStack() as stack:
        served = [await come(server, stack, KNOWN) for _ in range(2)]
        await trio.sleep(0.1)
        assert not await is_there(await come(server, stack))
        assert [await is_there(stream) for stream in served] == [True, True]
    assert server.closed == ["there are too many connections to the server"]


async def test_bodies_that_do_not_come_shut_out_nobody(nothing_left: None) -> None:
    """Also where they are from as many addresses as they like."""
    async with serving(4) as server, AsyncExitStack() as stack:
        known = await come(server, stack, KNOWN)
        await trio.sleep(0.1)
        slow = [await come(server, stack, SLOW, source=f"127.0.0.{n}") for n in range(2, 8)]
        await trio.sleep(0.1)
        assert await is_there(known)
        assert [await is_there(stream) for stream in slow] == [False] * 3 + [True] * 3
        another = await come(server, stack, KNOWN)
        assert await is_there(another)
        assert not await is_there(slow[3])


async def test_one_address_takes_room_from_itself(
    nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_server, "MOST_UNKNOWN", 2)
    async with serving(100) as server, AsyncExitStack() as stack:
        other = await come(server, stack, SLOW, source="127.0.0.2")
        known = [await come(server, stack, KNOWN) for _ in range(3)]
        await trio.sleep(0.1)
        slow = [await come(server, stack, SLOW) for _ in range(4)]
        await trio.sleep(0.1)
        assert [await is_there(stream) for stream in slow] == [False, False, True, True]
        assert [await is_there(stream) for stream in (other, *known)] == [True] * 4


async def test_whose_fault_it_is_is_told_without_a_line(
    nothing_left: None, caplog: pytest.LogCaptureFixture
) -> None:
    """How many lines there may be knows who is told."""
    caplog.set_level(logging.INFO)
    async with serving(9, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) as server:
        for _ in range(3):
            async with AsyncExitStack() as stack:
                stream = await come(server, stack, b"GET / HTTP/1.1\r\n\r\n")
                with suppress(trio.BrokenResourceError):
                    while await stream.receive_some():
                        pass
        await wait_until(lambda: len(server.closed) == 3)
    assert [reason.partition(": ")[0] for reason in server.closed] == ["server"] * 3
    assert not caplog.records


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such thing there")
async def test_visitors_lose_no_descriptor(nothing_left: None) -> None:
    async with serving(100) as server, AsyncExitStack() as stack:
        most = server.descriptors.for_visitors
        assert most is not None
        # Ends of connections, which are in this process, and nothing else.
        before = descriptors_below(most)
        for _ in range(20):
            await come(server, stack, KNOWN)
        await trio.sleep(0.1)
        assert descriptors_below(most) - before == 20


def descriptors_below(most: int) -> int:
    return sum(int(each.name) < most for each in Path("/dev/fd").iterdir())
