"""Endpoints in memory, so that sessions and relays run without sockets, on a clock of the test's.

They keep to what Linux does with TCP on the loopback; `tests/unit/test_endpoint.py` runs the same tests against both.
"""

# ruff: noqa: SLF001 - the two ends are of one class, and move each other

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.transport.endpoint import TLS_RECORD_BYTES, send_all
from trionat.transport.readiness import Readiness

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trionat.transport.endpoint import Endpoint

CAPACITY: Final = 64 * 1024
"""Bytes on their way in each direction, unless a test wants others."""


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@attrs.frozen(eq=False)
class MemoryReadiness(Readiness):
    """Waits in the task of whoever pumps, as sockets do where there is no epoll."""

    wait_for_it: Callable[[], Awaitable[None]]
    stop_waiting: Callable[[], None]

    async def wait(self) -> None:
        """See `Readiness`."""
        await self.wait_for_it()

    def nudge(self) -> None:
        """See `Readiness`."""
        self.stop_waiting()


@attrs.define(eq=False)
class MemoryEndpoint:
    """One end of a stream in memory, as `memory_pair` makes it; it is used in one Trio run, and whoever has it closes it.

    It does what a connected TCP socket on the loopback does, by the interface that trionat uses for its connections: `recv_into` and `send`
    never block but raise BlockingIOError, and then `readable.wait()` and `writable.wait()` wait until it is worth trying again. These are checkpoints, cancelling
    them leaves the stream as it was, and one task at a time may wait for each: others get trio.BusyResourceError. What the other end has done to the
    stream is told by OSError, with `errno` ECONNRESET or EPIPE.

    Attributes:
        capacity: Bytes that may be on their way to it.
        everyone: A list in which it notes itself, so that a test can see that all of them were closed.
        largest_read: Bytes of one read at most, as a kernel may cut it short.
        largest_write: The same for one write.
        most_held: Bytes that were on their way to it at once, at most, so far.
        closed: Whether it was closed here.
        peer: The other end.
    """

    capacity: int
    everyone: list[MemoryEndpoint] = attrs.field(repr=False)
    largest_read: int = 1 << 30
    largest_write: int = 1 << 30
    most_held: int = 0
    has_unsent: bool = False
    closed: bool = False
    silence: float = 0.0  # what `silent_for` tells; memory acknowledges nothing
    silence_limit: float | None = None
    peer: MemoryEndpoint = attrs.field(init=False, repr=False)
    _incoming: bytearray = attrs.field(init=False, factory=bytearray, repr=False)
    _ended: bool = attrs.field(
        init=False, default=False
    )  # the peer's direction, behind what is incoming
    number: int = attrs.field(init=False, default=-1)
    _eof_sent: bool = attrs.field(init=False, default=False)
    _dead: bool = attrs.field(init=False, default=False)  # reset by the peer
    _error: int = attrs.field(init=False, default=0)  # to be told once, as SO_ERROR
    _reader: trio.Event | None = attrs.field(init=False, default=None)
    _writer: trio.Event | None = attrs.field(init=False, default=None)
    readable: MemoryReadiness = attrs.field(init=False, repr=False)
    writable: MemoryReadiness = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.readable = MemoryReadiness(self._wait_readable, self._nudge_reader)
        self.writable = MemoryReadiness(self._wait_writable, self._nudge_writer)
        self.everyone.append(self)

    # -- what the relay calls ----------------------------------------------------------------------------------------

    def recv_into(self, buffer: memoryview) -> int:
        """Read into a buffer, which has room for a TLS record, 16 KiB; return how many bytes, 0 at the end of the stream.

        Raises:
            BlockingIOError: nothing is there yet.
            OSError: it is closed (EBADF), or was reset.
        """
        if len(buffer) < TLS_RECORD_BYTES:
            raise ValueError("endpoints are read with room for a TLS record")
        self._check_open()
        if self._incoming:
            count = min(len(buffer), len(self._incoming), self.largest_read)
            buffer[:count] = self._incoming[:count]
            del self._incoming[:count]
            self.peer._wake()
            return count
        if self._ended:
            return 0
        self._raise_pending()
        if self._dead:
            return 0
        raise BlockingIOError

    def send(self, data: bytes | memoryview) -> int:
        """Send some of the bytes; return how many.

        Raises:
            BlockingIOError: there is no room.
            OSError: it is closed (EBADF), or was reset, or has sent its end (EPIPE).
        """
        self._check_open()
        self._raise_pending()
        if self._dead or self._eof_sent:
            raise _error(errno.EPIPE)
        if self.peer.closed:  # leaves, and is answered with a reset
            self._fail()
            return len(data)
        room = self.peer.capacity - len(self.peer._incoming)
        if data and room <= 0:
            raise BlockingIOError
        count = min(room, len(data), self.largest_write)
        self.peer._incoming += data[:count]
        self.peer.most_held = max(self.peer.most_held, len(self.peer._incoming))
        self.peer._wake()
        return count

    async def _wait_readable(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError
        if self._reader is not None:
            raise trio.BusyResourceError
        self._reader = event = trio.Event()
        try:
            self._wake()
            await event.wait()
        finally:
            if self._reader is event:
                self._reader = None
        if self.closed:
            raise trio.ClosedResourceError

    async def _wait_writable(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError
        if self._writer is not None:
            raise trio.BusyResourceError
        self._writer = event = trio.Event()
        try:
            self._wake()
            await event.wait()
        finally:
            if self._writer is event:
                self._writer = None
        if self.closed:
            raise trio.ClosedResourceError

    def _nudge_reader(self) -> None:
        event, self._reader = self._reader, None
        if event is not None:
            event.set()

    def _nudge_writer(self) -> None:
        event, self._writer = self._writer, None
        if event is not None:
            event.set()

    def flush(self) -> None:
        """Do nothing: what was sent has left."""

    def send_eof(self) -> None:
        """Send the end of this direction; the other one goes on."""
        self._check_open()
        if self._dead:
            raise _error(errno.ENOTCONN)
        self._eof_sent = True
        self.peer._ended = True
        self._wake()
        self.peer._wake()

    def is_lost(self) -> bool:
        """Tell whether it is closed or was reset."""
        lost = self.closed or self._error != 0
        self._error = 0  # asking for SO_ERROR takes it away
        return lost

    def limit_silence(self, seconds: float) -> None:
        """Note the limit as `silence_limit`: memory loses nothing."""
        self.silence_limit = seconds

    def fileno(self) -> int:
        """Return `number`, -1: there is no descriptor."""
        return self.number

    def silent_for(self) -> float:
        """Return `silence`, seconds, which a test may set."""
        return self.silence

    def close(self) -> None:
        """Close it; the other end reads what has left, and then the end. With unread bytes it is a reset (RFC 1122 4.2.2.13), as of a socket. A second time does nothing."""
        if self.closed:
            return
        if self._incoming:
            self.reset()
            return
        self.closed = True
        self.peer._ended = True
        self._wake()
        self.peer._wake()

    def reset(self) -> None:
        """Close it, and have the other end see a reset."""
        if self.closed:
            return
        self.closed = True
        self._incoming.clear()
        self.peer._fail()
        self._wake()

    # -- what only tests call ----------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Lose the connection: both ends see a reset, and are still to be closed."""
        self._fail()
        self.peer._fail()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.closed:
            raise _error(errno.EBADF)

    def _raise_pending(self) -> None:
        if self._error:
            number, self._error = self._error, 0
            raise _error(number)

    def _fail(self) -> None:
        if not self._dead and not self.closed:
            self._dead = True
            self._error = errno.EPIPE if self._ended and self.peer.closed else errno.ECONNRESET
            self._wake()

    def _wake(self) -> None:
        over = self.closed or self._dead
        if self._reader is not None and (over or self._ended or self._incoming):
            self._reader.set()
        room = self.peer.capacity - len(self.peer._incoming)
        if self._writer is not None and (over or room > 0 or self._eof_sent or self.peer.closed):
            self._writer.set()


def memory_pair(
    everyone: list[MemoryEndpoint] | None = None, capacity: int = CAPACITY
) -> tuple[MemoryEndpoint, MemoryEndpoint]:
    """Return two ends of a stream, which the caller closes.

    Args:
        everyone: A list that gets both, for a test that sees whether all were closed.
        capacity: Bytes that may be on their way, in either direction.
    """
    everyone = [] if everyone is None else everyone
    one, two = MemoryEndpoint(capacity, everyone), MemoryEndpoint(capacity, everyone)
    one.peer, two.peer = two, one
    return one, two


# -- what tests do with endpoints of any kind ------------------------------------------------------------------------


async def receive_some(endpoint: Endpoint) -> bytes:
    """Return the next bytes, nothing at the end; waits until there are some. Of any endpoint, which stays open; cancelling it loses nothing.

    Raises:
        OSError: the stream was reset.
    """
    room = memoryview(bytearray(TLS_RECORD_BYTES))
    while True:  # noqa: ASYNC913 - what was there has come without waiting
        try:
            return bytes(room[: endpoint.recv_into(room)])
        except BlockingIOError:
            await endpoint.readable.wait()


async def receive_exactly(endpoint: Endpoint, count: int) -> bytes:
    """Return so many bytes, where no more are there; waits for them. Cancelling it loses what has come.

    Raises:
        EOFError: the stream ended before.
        ValueError: there were more.
        OSError: the stream was reset.
    """
    received = bytearray()
    while len(received) < count:
        piece = await receive_some(endpoint)
        if not piece:
            raise EOFError(f"the end came after {len(received)} of {count} bytes")
        received += piece
    if len(received) > count:
        raise ValueError(f"there are {len(received)} bytes, and not {count}")
    return bytes(received)


async def receive_all(endpoint: Endpoint) -> bytes:
    """Return everything up to the end of the stream, for which it waits. Cancelling it loses what has come.

    Raises:
        OSError: the stream was reset.
    """
    received = bytearray()
    while piece := await receive_some(endpoint):
        received += piece
    return bytes(received)


async def echo(endpoint: Endpoint) -> None:
    """Send back what comes, to the end, and close the endpoint, also when it is cancelled. A reset ends it as well."""
    try:
        while piece := await receive_some(endpoint):
            await send_all(endpoint, piece)
    except OSError:
        pass
    finally:
        endpoint.close()
