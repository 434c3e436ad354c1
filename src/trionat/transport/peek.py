"""A look at a new connection's first bytes, which tell what the peer speaks, and where it wants to go."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from trionat.errors import ConnectionLostError
from trionat.protocol.dialect import detect_dialect
from trionat.protocol.frames import HEADER_BYTES
from trionat.transport.endpoint import lost
from trionat.transport.kernel import is_half_closed

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.protocol.dialect import Dialect

T = TypeVar("T")

# How long to look away when a connection's first bytes came in too small a piece to tell what they are. Rare for the dialect: every
# client that we know sends that in one segment. A ClientHello may come in two, the second one right behind the first.
_PEEK_INTERVAL: Final = 0.002
_LONGEST_PEEK_INTERVAL: Final = 1.0


async def peek_dialect(sock: socket.socket) -> Dialect:
    """Look at a connection's first bytes until they tell what the peer speaks; see `peek`."""
    return await peek(sock, HEADER_BYTES, detect_dialect)


async def peek(sock: socket.socket, size: int, tell: Callable[[bytes], T | None]) -> T:
    """Look at a connection's first bytes, at most `size` and without taking them, until `tell` makes something of them.

    It has to, or to raise, when it has got so many. The caller sets the deadline and closes the socket.

    Raises:
        ConnectionLostError: the peer went away before it had said enough.
    """
    seen = -1
    interval = _PEEK_INTERVAL
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            first = sock.recv(size, socket.MSG_PEEK)
        except BlockingIOError:
            continue
        except OSError as error:
            raise lost(error) from error
        if (told := tell(first)) is not None:
            return told
        # Peeking cannot see an end behind bytes; the kernel can. Where it does not tell, the caller's deadline ends it.
        if not first or (len(first) == seen and is_half_closed(sock)):
            raise ConnectionLostError(
                f"the peer closed the connection after {max(len(first), 0)} bytes"
            )
        seen = len(first)
        await trio.sleep(interval)
        interval = min(2 * interval, _LONGEST_PEEK_INTERVAL)
