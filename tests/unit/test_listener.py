"""Accepting when descriptors are short, on real sockets and a clock that stands still."""

from __future__ import annotations

import errno
import socket
import threading
import time
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trionat.address import TCPAddress
from trionat.config.server import ServerConfig
from trionat.errors import StartupError
from trionat.server.listeners import open_listeners
from trionat.transport.descriptors import Descriptors
from trionat.transport.listener import Listener, look_up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio.testing import MockClock

resource = pytest.importorskip("resource")  # POSIX only


def lowest_free() -> int:
    with socket.socket() as probe:
        return probe.fileno()


@contextmanager
def no_more_than(number: int) -> Iterator[None]:
    """Let this process have that many descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def elapse(clock: MockClock, seconds: float) -> None:
    for _ in range(round(seconds * 10)):
        await trio.testing.wait_all_tasks_blocked(0.001)
        clock.jump(0.1)
    await trio.testing.wait_all_tasks_blocked(0.001)


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False


async def test_a_name_server_that_hangs_does_not_hold_up_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, answer = socket.getaddrinfo, threading.Event()

    def getaddrinfo(
        host: Any,
        port: Any,
        family: int = 0,
        type: int = 0,  # noqa: A002 - the name that it has
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        if host in ("slow.example", b"slow.example") and not flags & socket.AI_NUMERICHOST:
            answer.wait(5)
            raise socket.gaierror(socket.EAI_AGAIN, "hangs")
        return real(host, port, family, type, proto, flags)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    config = ServerConfig(controller_addr=TCPAddress("slow.example", 0))
    began = time.monotonic()
    async with AsyncExitStack() as resources:
        with trio.move_on_after(0.3) as scope:
            await open_listeners(config, resources)
    assert time.monotonic() - began < 2
    assert scope.cancelled_caught
    assert await look_up(TCPAddress("localhost", 1)) is None
    assert await look_up(TCPAddress("::1", 1)) is None
    answer.set()
    with pytest.raises(StartupError, match=r"cannot listen on slow\.example:0: hangs"):
        await look_up(TCPAddress("slow.example", 0))


@pytest.mark.parametrize("system", ["BSD", "macOS"])
async def test_a_connection_that_was_reset_in_the_queue_ends_nobody(
    system: str, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """There it takes no options any more, or has no address. The sockets stand for those of these systems."""

    class Reset(socket.socket):
        def setsockopt(self, *_: object) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    class Listening(socket.socket):
        def accept(self) -> tuple[socket.socket, Any]:
            connection, address = super().accept()
            connection = Reset(fileno=connection.detach())
            return connection, address if system == "BSD" else None

    monkeypatch.setattr("trionat.transport.listener.INHERITS_OPTIONS", False)
    accepted: list[socket.socket] = []
    with ExitStack() as opened:
        opened.callback((descriptors := Descriptors()).close)
        listener = Listener.open(TCPAddress("127.0.0.1", 0))
        listener.sock = Listening(fileno=listener.sock.detach())
        opened.callback(listener.close)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, lambda sock, _: accepted.append(sock), descriptors)
            for _ in range(2):
                caller = opened.enter_context(socket.socket())
                caller.connect(("127.0.0.1", listener.address.port))
                await trio.sleep(0.05)
                assert is_closed(caller) == (system == "macOS")
            nursery.cancel_scope.cancel()
        for sock in accepted:
            sock.close()
    assert len(accepted) == (2 if system == "BSD" else 0)


@pytest.mark.parametrize("kind", ["a limit for visitors", "none at all"])
async def test_who_has_no_room_waits_and_is_refused(
    kind: str, mock_clock: MockClock, nothing_left: None, caplog: pytest.LogCaptureFixture
) -> None:
    accepted: list[socket.socket] = []
    with ExitStack() as opened:
        listener = Listener.open(TCPAddress("127.0.0.1", 0))
        opened.callback(listener.close)
        descriptors = Descriptors()
        opened.callback(descriptors.close)
        callers = [opened.enter_context(socket.socket()) for _ in range(8)]
        room = lowest_free() + 3
        if kind == "none at all":
            opened.enter_context(no_more_than(room))
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                most = room if kind == "a limit for visitors" else None
                await listener.serve(lambda sock, _: accepted.append(sock), descriptors, most=most)

            nursery.start_soon(serve)
            for caller in callers:
                caller.connect(("127.0.0.1", listener.address.port))
            await elapse(mock_clock, 1)
            assert len(accepted) == 3
            assert not any(map(is_closed, callers))
            accepted.pop().close()
            await elapse(mock_clock, 0.2)
            assert len(accepted) == 3
            await elapse(mock_clock, 4)
            closed = [is_closed(caller) for caller in callers]
            assert closed == [False, False, True, False, True, True, True, True]
            while accepted:
                accepted.pop().close()
            await elapse(mock_clock, 0.2)
            callers[2].close()
            opened.enter_context(
                socket.create_connection(("127.0.0.1", listener.address.port), timeout=1)
            )
            await elapse(mock_clock, 0.2)
            assert len(accepted) == 1
            accepted.pop().close()
            nursery.cancel_scope.cancel()
    told = [record.getMessage() for record in caplog.records]
    assert [line.split(" address")[0] for line in told] == [
        "descriptors are short: connections wait in the kernel's queue, and are closed after a while",
        "there are enough descriptors again refused=4",
    ]
