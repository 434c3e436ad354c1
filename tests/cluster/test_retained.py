"""A visitor's connection that can be read once more, as long as it has got no answer. (As an endpoint: `tests/unit/test_endpoint.py`.)"""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trionat.server.cluster.retained import Retained
from trionat.transport.endpoint import SocketEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def connection() -> Iterator[tuple[Retained, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        visitor = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    visitor.settimeout(5)
    retained = Retained(SocketEndpoint(accepted))
    with visitor:
        yield retained, visitor
        retained.let_go()
        retained.close()


async def read(retained: Retained, count: int) -> bytes:
    """Read so many bytes, in whatever pieces they come."""
    room, got = memoryview(bytearray(64 * 1024)), b""
    with trio.fail_after(5):
        while len(got) < count:
            try:
                got += bytes(room[: retained.recv_into(room)])
            except BlockingIOError:
                await retained.readable.wait()
    return got


@pytest.mark.parametrize("farewell", ["close", "reset"])
async def test_what_was_said_is_read_once_more(farewell: str) -> None:
    with connection() as (retained, visitor):
        visitor.sendall(b"question")
        assert await read(retained, 8) == b"question"
        getattr(retained, farewell)()
        assert retained.can_rewind
        retained.rewind()
        visitor.sendall(b", and more")
        assert await read(retained, 18) == b"question, and more"
        retained.rewind()
        assert await read(retained, 18) == b"question, and more"
        assert retained.send(b"answer") == 6
        assert visitor.recv(10) == b"answer"
        assert not retained.can_rewind


async def test_who_waits_is_woken_by_an_end_that_is_put_off() -> None:
    with connection() as (retained, visitor):

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await retained.readable.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            retained.close()
        visitor.sendall(b"still there")
        retained.rewind()
        assert await read(retained, 11) == b"still there"


@pytest.mark.parametrize(("farewell", "end"), [("close", b""), ("reset", None)])
async def test_the_end_that_was_put_off_comes(farewell: str, end: bytes | None) -> None:
    with connection() as (retained, visitor):
        getattr(retained, farewell)()
        retained.let_go()
        if end is None:
            with pytest.raises(ConnectionResetError):
                visitor.recv(1)
        else:
            assert visitor.recv(1) == end


async def test_who_has_said_too_much_cannot_be_read_once_more() -> None:
    with connection() as (retained, visitor):
        visitor.sendall(bytes(60_000))
        await read(retained, 60_000)
        assert retained.can_rewind
        visitor.sendall(bytes(10_000))
        await read(retained, 10_000)
        assert not retained.can_rewind
