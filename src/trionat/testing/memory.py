"""Endpoints in memory, so that sessions and relays run without sockets, on a clock of the test's.

They are ends of a pipe (`transport/pipe.py`), as visitors from other nodes have it, of which a test may choose how much moves at once, and see how much did.
"""

# ruff: noqa: SLF001 - the two ends are of one class

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from trionat.transport.endpoint import TLS_RECORD_BYTES, send_all
from trionat.transport.pipe import PipeEnd, join_ends

if TYPE_CHECKING:
    from trionat.transport.endpoint import Endpoint

CAPACITY: Final = 64 * 1024
"""Bytes on their way in each direction, unless a test wants others."""


@attrs.define(eq=False)
class MemoryEndpoint(PipeEnd):
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

    everyone: list[MemoryEndpoint] = attrs.field(repr=False)
    largest_read: int = 1 << 30
    largest_write: int = 1 << 30
    most_held: int = 0
    silence: float = 0.0  # what `silent_for` tells; memory acknowledges nothing
    silence_limit: float | None = None
    number: int = attrs.field(init=False, default=-1)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.everyone.append(self)

    def recv_into(self, buffer: memoryview) -> int:
        """Read into a buffer, which has room for a TLS record, 16 KiB; return how many bytes, 0 at the end of the stream.

        Raises:
            BlockingIOError: nothing is there yet.
            OSError: it is closed (EBADF), or was reset.
        """
        if len(buffer) < TLS_RECORD_BYTES:
            raise ValueError("endpoints are read with room for a TLS record")
        return super().recv_into(buffer[: self.largest_read])

    def send(self, data: bytes | memoryview) -> int:
        """Send some of the bytes; return how many.

        Raises:
            BlockingIOError: there is no room.
            OSError: it is closed (EBADF), or was reset, or has sent its end (EPIPE).
        """
        count = super().send(memoryview(data)[: self.largest_write])
        self.peer.most_held = max(self.peer.most_held, len(self.peer._incoming))
        return count

    def limit_silence(self, seconds: float) -> None:
        """Note the limit as `silence_limit`: memory loses nothing."""
        self.silence_limit = seconds

    def silent_for(self) -> float:
        """Return `silence`, seconds, which a test may set."""
        return self.silence

    def fileno(self) -> int:
        """Return `number`, -1: there is no descriptor."""
        return self.number

    def cut(self) -> None:
        """Lose the connection: both ends see a reset, and are still to be closed. Only tests call it."""
        self._fail()
        self.peer._fail()


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
    join_ends(one, two)
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
