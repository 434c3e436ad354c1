# ruff: noqa: SLF001 - the two ends are one thing
"""A stream in memory: two endpoints, where what is written to one is read from the other.

It ends and resets as a connection of TCP does on the loopback of Linux; `tests/unit/test_endpoint.py` runs the same tests against both. Streams of
Trio are something else: they have no resets, and writing to one waits in the task.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final, Self

import attrs
import trio

from trionat.transport.readiness import Readiness

if TYPE_CHECKING:
    from collections.abc import Callable

_CAPACITY: Final = 256 * 1024
"""Bytes on their way to one end; the relay moves up to as many at once."""


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@attrs.define(eq=False)
class _Wait(Readiness):
    """Waits in the task of whoever pumps, as sockets do where there is no epoll. `is_ready` says that a try may succeed, or fail for good."""

    end: PipeEnd
    is_ready: Callable[[], bool]
    event: trio.Event | None = attrs.field(init=False, default=None)

    async def wait(self) -> None:
        """See `Readiness`."""
        if self.end.closed:
            raise trio.ClosedResourceError
        if self.event is not None:
            raise trio.BusyResourceError
        self.event = event = trio.Event()
        try:
            self.wake()
            await event.wait()
        finally:
            if self.event is event:  # else it was nudged, and somebody else may wait
                self.event = None
        if self.end.closed:
            raise trio.ClosedResourceError

    def nudge(self) -> None:
        """See `Readiness`."""
        event, self.event = self.event, None
        if event is not None:
            event.set()

    def wake(self) -> None:
        """Look whether it is time."""
        if self.event is not None and (self.end.closed or self.is_ready()):
            self.event.set()


@attrs.define(eq=False)
class PipeEnd:
    """See `Endpoint`, and `open_pipe`. `capacity` are the bytes that may be on their way to it, and `peer` is the other end."""

    capacity: int
    readable: _Wait = attrs.field(init=False, repr=False)
    writable: _Wait = attrs.field(init=False, repr=False)
    peer: Self = attrs.field(init=False, repr=False)
    _incoming: bytearray = attrs.field(init=False, repr=False, factory=bytearray)
    _ended: bool = attrs.field(init=False, default=False)  # behind what is incoming
    _sent_end: bool = attrs.field(init=False, default=False)
    closed: bool = attrs.field(init=False, default=False)
    _lost: bool = attrs.field(init=False, default=False)  # reset by the peer
    _error: int = attrs.field(init=False, default=0)  # to be told once, as SO_ERROR

    def __attrs_post_init__(self) -> None:
        self.readable = _Wait(self, self._is_readable)
        self.writable = _Wait(self, self._is_writable)

    @property
    def has_unsent(self) -> bool:
        """See `Endpoint`."""
        return False

    def flush(self) -> None:
        """See `Endpoint`."""

    def recv_into(self, buffer: memoryview) -> int:
        """See `Endpoint`."""
        self._check_open()
        if count := min(len(buffer), len(self._incoming)):
            with memoryview(self._incoming) as view:
                buffer[:count] = view[:count]
            del self._incoming[:count]
            self.peer._wake()
            return count
        if self._ended:
            return 0
        self._raise_pending()
        if self._lost:
            return 0
        raise BlockingIOError

    def send(self, data: bytes | memoryview) -> int:
        """See `Endpoint`."""
        self._check_open()
        self._raise_pending()
        if self._lost or self._sent_end:
            raise _error(errno.EPIPE)
        if self.peer.closed:  # leaves, and is answered with a reset
            self._fail()
            return len(data)
        room = self.peer.capacity - len(self.peer._incoming)
        if data and room <= 0:
            raise BlockingIOError
        piece = memoryview(data)[:room]
        self.peer._incoming += piece
        self.peer._wake()
        return len(piece)

    def send_eof(self) -> None:
        """Send the end of this direction; the other one goes on."""
        self._check_open()
        if self._lost:
            raise _error(errno.ENOTCONN)
        self._sent_end = self.peer._ended = True
        self._wake()
        self.peer._wake()

    def is_lost(self) -> bool:
        """Tell whether it is closed or was reset."""
        lost, self._error = self.closed or self._error != 0, 0  # asking for SO_ERROR takes it away
        return lost

    def limit_silence(self, seconds: float) -> None:
        """See `Endpoint`: memory is never silent."""

    def silent_for(self) -> float:
        """See `Endpoint`."""
        return 0.0

    def fileno(self) -> int:
        """See `Endpoint`."""
        return -1

    def close(self) -> None:
        """Close it; the other end reads what has left, and then the end. With unread bytes it is a reset (RFC 1122 4.2.2.13), as of a socket. A second time does nothing."""
        if self._incoming:
            self.reset()
        elif not self.closed:
            self.closed = self.peer._ended = True
            self._wake()
            self.peer._wake()

    def reset(self) -> None:
        """Close it, and have the other end see a reset."""
        if not self.closed:
            self.closed = True
            self._incoming.clear()
            self.peer._fail()
            self._wake()

    def _check_open(self) -> None:
        if self.closed:
            raise _error(errno.EBADF)

    def _raise_pending(self) -> None:
        if self._error:
            number, self._error = self._error, 0
            raise _error(number)

    def _fail(self) -> None:
        if not self._lost and not self.closed:
            self._lost = True
            self._error = errno.EPIPE if self._ended and self.peer.closed else errno.ECONNRESET
            self._wake()

    def _is_readable(self) -> bool:
        return self._lost or self._ended or bool(self._incoming)

    def _is_writable(self) -> bool:
        room = self.peer.capacity - len(self.peer._incoming)
        return self._lost or self._sent_end or self.peer.closed or room > 0

    def _wake(self) -> None:
        self.readable.wake()
        self.writable.wake()


def open_pipe() -> tuple[PipeEnd, PipeEnd]:
    """Return the two ends; each is closed by whoever holds it."""
    one, other = PipeEnd(_CAPACITY), PipeEnd(_CAPACITY)
    join_ends(one, other)
    return one, other


def join_ends(one: PipeEnd, other: PipeEnd) -> None:
    """Make two ends one stream."""
    one.peer, other.peer = other, one
