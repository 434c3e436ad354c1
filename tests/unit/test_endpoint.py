"""The same tests for endpoints on sockets and in memory: so the memory may stand for sockets in all other tests."""

from __future__ import annotations

import ctypes
import errno
import gc
import socket
import struct
import sys
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeAlias

import pytest
import trio
import trio.testing

from tests.unit.memory import receive_all, receive_exactly, receive_some
from trionat.server.cluster.retained import Retained
from trionat.transport.endpoint import (
    TLS_RECORD_BYTES,
    Endpoint,
    SocketEndpoint,
    close_after_last_words,
    send_all,
    set_stream_options,
)
from trionat.transport.pipe import open_pipe
from trionat.transport.tls import client_context
from trionat.transport.tls_endpoint import TLSEndpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.unit.conftest import Tidy

Pair: TypeAlias = tuple[Endpoint, Endpoint]


def room() -> memoryview:
    return memoryview(bytearray(TLS_RECORD_BYTES))


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        two, _ = listener.accept()
    return one, two


def mute(sock: socket.socket) -> None:
    """Let the kernel drop whatever comes in for this socket, so that its machine seems gone. Linux only."""
    drop = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0 bytes
    attach_filter = 26  # SO_ATTACH_FILTER, socket(7)
    program = struct.pack("HP", 1, ctypes.addressof(drop))
    sock.setsockopt(socket.SOL_SOCKET, attach_filter, program)


@asynccontextmanager
async def open_pair(kind: str, tidy: Tidy) -> AsyncIterator[Pair]:
    ends: Pair
    if kind == "memory":
        ends = tidy.pair()
    elif kind == "pipe":
        ends = open_pipe()
    elif kind == "retained":
        one, two = tcp_pair()
        ends = Retained(SocketEndpoint(one)), SocketEndpoint(two)
        ends[0].send(b"")  # answered: from here on it is the connection itself
    else:
        one, two = tcp_pair() if kind == "tcp" else socket.socketpair()
        ends = SocketEndpoint(one), SocketEndpoint(two)
    try:
        yield ends
    finally:
        for end in ends:
            end.close()


@pytest.fixture(params=["memory", "unix", "tcp", "pipe", "retained"])
async def pair(request: pytest.FixtureRequest, tidy: Tidy) -> AsyncIterator[Pair]:
    async with open_pair(request.param, tidy) as ends:
        yield ends


@pytest.fixture(params=["memory", "tcp", "pipe", "retained"])  # a Unix socket knows no reset
async def resettable(request: pytest.FixtureRequest, tidy: Tidy) -> AsyncIterator[Pair]:
    async with open_pair(request.param, tidy) as ends:
        yield ends


def fill(endpoint: Endpoint) -> int:
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += endpoint.send(bytes(10_000))
    return sent


async def test_bytes_both_ways(pair: Pair) -> None:
    one, two = pair
    assert one.send(b"there") == 5
    assert two.send(memoryview(b"back")) == 4
    assert await receive_exactly(two, 5) == b"there"
    assert await receive_exactly(one, 4) == b"back"


async def test_nothing_there(pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        pair[0].recv_into(room())


async def test_wait_readable_wakes_for_bytes(pair: Pair) -> None:
    one, two = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two.readable.wait)
        await trio.testing.wait_all_tasks_blocked()
        one.send(b"x")
    await two.readable.wait()  # they are still there
    assert await receive_some(two) == b"x"


async def test_room_is_bounded_and_comes_back(pair: Pair) -> None:
    one, two = pair
    sent = fill(one)
    received = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.writable.wait)
        await trio.testing.wait_all_tasks_blocked()
        while received < sent:
            received += len(await receive_some(two))
    assert received == sent
    assert one.send(b"more") == 4


async def test_send_all_is_longer_than_the_room(pair: Pair) -> None:
    one, two = pair
    data = bytes(range(256)) * 20_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all, one, data)
        assert await receive_exactly(two, len(data)) == data


class TakesNoOptions(socket.socket):
    """As a connection that its peer has reset, on macOS and BSD."""

    def setsockopt(self, *_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")


async def test_what_takes_no_options_is_closed_all_the_same() -> None:
    sock = TakesNoOptions()
    set_stream_options(sock)
    endpoint = SocketEndpoint(sock)
    endpoint.limit_silence(5)
    endpoint.reset()
    assert sock.fileno() == -1


async def test_half_close(pair: Pair) -> None:
    one, two = pair
    one.send(b"last")
    one.send_eof()
    assert await receive_all(two) == b"last"
    assert await receive_all(two) == b""
    two.send(b"answer")
    two.send_eof()
    assert await receive_all(one) == b"answer"
    with pytest.raises(BrokenPipeError):
        one.send(b"x")


async def test_close_is_an_end(pair: Pair) -> None:
    one, two = pair
    one.send(b"last")
    one.close()
    one.close()
    assert await receive_all(two) == b"last"
    assert not two.is_lost()


async def test_a_closed_end_is_of_no_use(pair: Pair) -> None:
    one, _ = pair
    one.close()
    assert one.is_lost()
    with pytest.raises(OSError, match="descriptor") as caught:
        one.recv_into(room())
    assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError, match="descriptor"):
        one.send(b"x")
    with pytest.raises(OSError, match="descriptor"):
        one.send_eof()
    with pytest.raises(trio.ClosedResourceError):
        await one.readable.wait()
    with pytest.raises(trio.ClosedResourceError):
        await one.writable.wait()
    one.reset()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_closing_wakes_whoever_waits(pair: Pair, how: str) -> None:
    one, _ = pair
    fill(one)
    woken: list[str] = []

    async def wait_readable() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await one.readable.wait()
        woken.append("reader")

    async def wait_writable() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await one.writable.wait()
        woken.append("writer")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_readable)
        nursery.start_soon(wait_writable)
        await trio.testing.wait_all_tasks_blocked()
        one.close() if how == "close" else one.reset()
    assert sorted(woken) == ["reader", "writer"]


async def test_one_waiter_for_each_direction(pair: Pair) -> None:
    one, _ = pair
    fill(one)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.readable.wait)
        nursery.start_soon(one.writable.wait)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await one.readable.wait()
        with pytest.raises(trio.BusyResourceError):
            await one.writable.wait()
        nursery.cancel_scope.cancel()
    with trio.move_on_after(0.01):  # a cancelled wait leaves nothing behind
        await one.readable.wait()


async def test_reset_is_told_once(resettable: Pair) -> None:
    one, two = resettable
    one.reset()
    await two.readable.wait()
    with pytest.raises(ConnectionResetError):
        two.recv_into(room())
    assert two.recv_into(room()) == 0
    with pytest.raises(BrokenPipeError):
        two.send(b"x")
    with pytest.raises(OSError, match="not connected"):
        two.send_eof()


async def test_reset_is_told_to_the_sender_too(resettable: Pair) -> None:
    one, two = resettable
    fill(two)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two.writable.wait)
        await trio.testing.wait_all_tasks_blocked()
        one.reset()
    with pytest.raises(ConnectionResetError):
        two.send(b"x")


async def test_what_was_sent_before_a_reset_arrives(resettable: Pair) -> None:
    one, two = resettable
    one.send(b"before")
    one.reset()
    await two.readable.wait()
    assert await receive_some(two) == b"before"
    with pytest.raises(ConnectionResetError):
        two.recv_into(room())


async def test_reset_is_seen_without_reading(resettable: Pair) -> None:
    one, two = resettable
    assert not two.is_lost()
    one.send(b"unread")
    one.reset()
    await two.readable.wait()
    assert two.is_lost()


async def test_reset_after_the_end_leaves_the_end(resettable: Pair) -> None:
    one, two = resettable
    one.send_eof()
    assert await receive_all(two) == b""
    one.reset()
    await two.writable.wait()
    assert two.recv_into(room()) == 0
    with pytest.raises(BrokenPipeError):
        two.send(b"x")


async def test_close_with_unread_input_is_a_reset(resettable: Pair) -> None:
    one, two = resettable
    two.send(b"unread")
    await one.readable.wait()
    one.close()
    await two.readable.wait()
    with pytest.raises(ConnectionResetError):
        two.recv_into(room())


async def test_bytes_for_a_closed_end_are_answered_with_a_reset(resettable: Pair) -> None:
    one, two = resettable
    one.close()
    await two.readable.wait()
    assert two.send(b"too late") == 8
    await two.readable.wait()
    assert two.is_lost()
    with pytest.raises(BrokenPipeError):
        two.send(b"x")


async def test_last_words_arrive_although_the_peer_still_sends(resettable: Pair) -> None:
    one, two = resettable
    two.send(b"unread")
    one.send(b"last words")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(close_after_last_words, one)
        assert await receive_all(two) == b"last words"
        two.close()
    assert one.is_lost()  # closed


async def test_last_words_do_not_wait_longer_than_their_grace(pair: Pair) -> None:
    one, two = pair
    started = trio.current_time()
    with trio.move_on_after(0.05):
        await close_after_last_words(one)
    assert 0.04 < trio.current_time() - started < 2
    assert one.is_lost()
    assert await receive_all(two) == b""


async def test_last_words_under_cancellation_close_without_waiting(pair: Pair) -> None:
    one, two = pair
    with trio.CancelScope() as scope:
        scope.cancel()
        with trio.move_on_after(5):
            await close_after_last_words(one)
    assert one.is_lost()
    assert await receive_all(two) == b""


async def test_last_words_to_one_that_has_gone(resettable: Pair) -> None:
    one, two = resettable
    two.reset()
    with trio.move_on_after(5):
        await close_after_last_words(one)
    assert one.is_lost()


# -- the other end's kernel -------------------------------------------------------------------------------------------


async def test_nothing_is_owed(pair: Pair) -> None:
    one, two = pair
    assert one.silent_for() == 0
    one.send(b"x")
    assert await receive_exactly(two, 1) == b"x"
    await trio.sleep(0.05)
    assert one.silent_for() == 0
    one.close()
    assert one.silent_for() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the others cannot tell")
async def test_silence_is_measured_and_limited() -> None:
    one, two = tcp_pair()
    near, far = SocketEndpoint(one), SocketEndpoint(two)
    near.limit_silence(1.0)
    mute(two)
    near.send(b"x")
    await trio.sleep(0.6)  # the kernel has repeated it by now
    assert 0.5 < near.silent_for() < 0.9
    started = trio.current_time()
    await near.readable.wait()
    with pytest.raises(OSError, match="timed out"):
        near.recv_into(room())
    assert trio.current_time() - started < 1.5
    near.close()
    far.close()


async def test_silence_of_what_is_no_tcp(tidy: Tidy) -> None:
    one, two = socket.socketpair()
    near = SocketEndpoint(one)
    near.limit_silence(1)
    assert near.silent_for() == 0
    near.close()
    two.close()


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encrypted", [False, True])
async def test_what_is_closed_is_free_at_once(encrypted: bool) -> None:
    """A tunnel's buffers are large; many of them die together, and the garbage collector comes rarely."""
    near, far = socket.socketpair()
    endpoint = (
        TLSEndpoint(near, client_context(pinned=True), server_hostname="localhost")
        if encrypted
        else SocketEndpoint(near)
    )
    parts: list[weakref.ref[object]] = [weakref.ref(endpoint), weakref.ref(near)]
    with trio.move_on_after(0.01):
        await endpoint.readable.wait()
    del near
    gc.disable()
    try:
        endpoint.close()
        del endpoint
        await trio.lowlevel.checkpoint()
        assert [part() for part in parts] == [None, None]
    finally:
        gc.enable()
    far.close()
