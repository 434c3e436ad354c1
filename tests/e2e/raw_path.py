"""What holds of bytes that cross trionat unframed, whoever is at the two ends; and what real services get across."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest
import trio

from tests.e2e import services
from tests.e2e.running import ask, end_of, read_all, read_exactly, reset

Ends: TypeAlias = tuple[trio.SocketStream, trio.SocketStream]
Join: TypeAlias = Callable[[], Awaitable[Ends]]
"""Makes a new path and returns its two ends; whoever gives the function closes them."""
Visit: TypeAlias = Callable[[], Awaitable[trio.SocketStream]]
"""Connects as a visitor; the caller closes."""

MEGABYTE = os.urandom(1_000_000)
BULK_BYTES = 32 * 2**20


# --- the two ends ---


async def check_half_close(join: Join) -> None:
    """Let either end finish first: it still gets all that the other one has to say, however long that takes."""
    for first in (0, 1):
        ends = await join()
        ended, open_end = ends[first], ends[1 - first]
        await ended.send_all(b"question")
        await ended.send_eof()
        assert await read_all(open_end) == b"question"
        async with trio.open_nursery() as nursery:
            received: list[bytes] = []

            async def read(stream: trio.SocketStream, received: list[bytes]) -> None:
                received.append(await read_all(stream))

            nursery.start_soon(read, ended, received)
            await open_end.send_all(MEGABYTE)
            await trio.sleep(0.1)
            await open_end.send_all(b"the end")
            await open_end.send_eof()
        assert received == [MEGABYTE + b"the end"]


async def check_resets(join: Join) -> None:
    """Reset either end, also when one of the directions is over: the other end is reset, and not ended as if all was said."""
    for first in (0, 1):
        for half_closed in (None, 0, 1):
            ends = await join()
            if half_closed is not None:
                await ends[half_closed].send_eof()
                assert await read_all(ends[1 - half_closed]) == b""
            reset(ends[first])
            other = ends[1 - first]
            if half_closed == first:  # it has read the end already, so it shows on writing
                await write_until_broken(other)
            else:
                assert await end_of(other) == "reset", (first, half_closed)


async def write_until_broken(stream: trio.SocketStream) -> None:
    """Write a little now and then until it fails."""
    with pytest.raises(trio.BrokenResourceError):
        while True:
            await stream.send_all(b"x")
            await trio.sleep(0.02)


async def check_blocked_reader(join: Join) -> None:
    """Who sends to somebody that does not read comes to a stop, by the window of TCP, and nobody else does."""
    sender, blocked = await join()
    sent = 0
    with trio.move_on_after(0.5):
        while True:
            await sender.send_all(MEGABYTE)
            sent += 1
    assert sent < 60
    one, other = await join()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.send_all, other_megabyte := MEGABYTE[::-1])
        assert await read_exactly(other, len(other_megabyte)) == other_megabyte
    # What was held up arrives as it was, although others' bytes went through the same buffers meanwhile.
    for _ in range(sent):
        assert await read_exactly(blocked, len(MEGABYTE)) == MEGABYTE
    await sender.aclose()
    assert MEGABYTE.startswith(await read_all(blocked))


# --- services ---


async def check_http(visit: Visit) -> None:
    """Browse, and move 64 MiB each way, compared by SHA-256: twice 32 at once, so that one might get into the other's way."""
    async with await visit() as visitor:
        for _ in range(2):  # on one connection
            await visitor.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            head, body = await _response(visitor)
            assert head.startswith(b"HTTP/1.1 200")
            assert body + await read_exactly(visitor, 5 - len(body)) == b"hello"
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(_download, visit)
            nursery.start_soon(_upload, visit)


async def _response(visitor: trio.SocketStream) -> tuple[bytes, bytes]:
    """Return the head of a response and what of the body came with it."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = await visitor.receive_some()
        assert data, f"the stream ended after {head!r}"
        head += data
    head, _, body = head.partition(b"\r\n\r\n")
    return head, body


async def _download(visit: Visit) -> None:
    async with await visit() as visitor:
        await visitor.send_all(f"GET /bytes?n={BULK_BYTES} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        _, body = await _response(visitor)
        digest, left = hashlib.sha256(body), BULK_BYTES - len(body)
        while left:
            data = await visitor.receive_some(262_144)
            assert data, f"{left} bytes are missing"
            digest.update(data)
            left -= len(data)
        assert digest.hexdigest() == services.pattern_digest(BULK_BYTES)


async def _upload(visit: Visit) -> None:
    async with await visit() as visitor:
        length = f"Content-Length: {BULK_BYTES}"
        await visitor.send_all(f"POST /digest HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode())
        for piece in services.pattern(BULK_BYTES):
            await visitor.send_all(piece)
        await visitor.send_eof()
        assert (await read_all(visitor)).endswith(services.pattern_digest(BULK_BYTES).encode())


async def check_redis(visit: Visit) -> None:
    """Set and get, one after another and many in one breath."""
    async with await visit() as visitor:
        for command, answer in (
            (b"PING", b"+PONG"),
            (b"SET colour blue", b"+OK"),
            (b"GET colour", b"$4\r\nblue"),
        ):
            await visitor.send_all(command + b"\r\n")
            assert await read_exactly(visitor, len(answer) + 2) == answer + b"\r\n"
        await visitor.send_all(b"DEL n\r\n" + b"INCR n\r\n" * 500)
        answers = b":0\r\n" + b"".join(b":%d\r\n" % number for number in range(1, 501))
        assert await read_exactly(visitor, len(answers)) == answers


async def check_many(visit: Visit, *, count: int = 50) -> None:
    """Hold so many visitors of an echo open at once; each gets its own bytes and nobody else's."""
    present, all_present = 0, trio.Event()

    async def come(number: int) -> None:
        nonlocal present
        async with await visit() as visitor:
            question = b"visitor %d " % number * 1000
            assert await ask(visitor, question) == question
            present += 1
            if present == count:
                all_present.set()
            await all_present.wait()
            assert await ask(visitor, question) == question
            await visitor.send_eof()
            assert await read_all(visitor) == b""

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(come, number)
