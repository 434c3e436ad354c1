"""Non-blocking ends of byte streams: what the relay moves bytes between.

The relay tries the call first and waits only when the kernel has nothing to give or no room (`docs/architecture.md`, the data
path). So an endpoint has the socket's own `recv_into` and `send`, which raise BlockingIOError, and two waits. It is also the
seam at which tests put memory in place of sockets.
"""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

import trio

from trionat.errors import ConnectionLostError
from trionat.transport import kernel
from trionat.transport.readiness import open_readiness

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.transport.readiness import Readiness

# A TLS record holds at most this much (RFC 8446 5.1); reading with less room would leave a part of it inside OpenSSL, where
# no wait for the socket would see it.
TLS_RECORD_BYTES: Final = 16 * 1024

# A read that brings less than this, with room for more, has taken all that was there: wait before trying again.
MORE_LIKELY_BYTES: Final = 16 * 1024

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Endpoint(Protocol):
    """One end of a byte stream, owned by whoever holds it; `close` or `reset` must be called in the end.

    At most one task may wait for each direction. All calls but the waits return at once. `OSError` from any of them means
    that the stream is lost; the waits raise `trio.ClosedResourceError` when the endpoint is closed, before or meanwhile.
    """

    @property
    def recv_into(self) -> Callable[[memoryview], int]:
        """Read into the buffer, of at least `TLS_RECORD_BYTES`; 0 means the end; BlockingIOError: nothing there."""
        ...

    @property
    def send(self) -> Callable[[bytes | memoryview], int]:
        """Write as much as there is room for and return how much that was; BlockingIOError: no room at all.

        What was taken has left, but for what `has_unsent` tells.
        """
        ...

    @property
    def readable(self) -> Readiness:
        """What to wait for when `recv_into` has nothing."""
        ...

    @property
    def writable(self) -> Readiness:
        """What to wait for when `send` has no room."""
        ...

    @property
    def has_unsent(self) -> bool:
        """Whether `send` has taken something that has not left, for want of room; `flush` goes on with it."""
        ...

    def flush(self) -> None:
        """Send what has not left; BlockingIOError: there is no room for all of it."""
        ...

    def send_eof(self) -> None:
        """End the outgoing direction, behind what `send` has taken; the other one goes on. Where there is no room, some of that is unsent."""
        ...

    def is_lost(self) -> bool:
        """Tell whether the stream has failed (a reset) without anyone having read or written since."""
        ...

    def limit_silence(self, seconds: float) -> None:
        """Let the stream fail when the other end's kernel acknowledges nothing of what was sent for so long; Linux only."""
        ...

    def silent_for(self) -> float:
        """Tell for how many seconds the other end's kernel has owed us an acknowledgement; 0 where it owes none.

        Also 0 where the system cannot tell (all but Linux).
        """
        ...

    def fileno(self) -> int:
        """Return the descriptor's number, or -1 where there is none (any more)."""
        ...

    def close(self) -> None:
        """Close in the ordinary way. Idempotent, and wakes whoever waits."""
        ...

    def reset(self) -> None:
        """Close so that the other end sees a reset (RFC 9293 3.10.5, ABORT). Idempotent, and wakes whoever waits."""
        ...


class SocketBase:
    """What plain and TLS endpoints share. Takes ownership of the socket, and makes it non-blocking."""

    def __init__(self, sock: socket.socket) -> None:
        if sock.gettimeout() != 0:  # else it is so already, and the kernel need not be asked
            sock.setblocking(False)
        self.sock = sock
        self._readiness = open_readiness(sock)
        self.readable = self._readiness.readable
        self.writable = self._readiness.writable

    @property
    def has_unsent(self) -> bool:
        """See `Endpoint`."""
        return False

    def flush(self) -> None:
        """See `Endpoint`."""

    def send_eof(self) -> None:
        """See `Endpoint`."""
        self.sock.shutdown(socket.SHUT_WR)

    def is_lost(self) -> bool:
        """See `Endpoint`."""
        return (
            self.sock.fileno() < 0 or self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        )

    def limit_silence(self, seconds: float) -> None:
        """See `Endpoint`."""
        kernel.limit_silence(self.sock, seconds)

    def silent_for(self) -> float:
        """See `Endpoint`."""
        return kernel.silent_for(self.sock)

    def fileno(self) -> int:
        """See `Endpoint`."""
        return self.sock.fileno()

    def close(self) -> None:
        """See `Endpoint`."""
        if self.sock.fileno() >= 0:
            self._readiness.close()
            self.sock.close()

    def reset(self) -> None:
        """See `Endpoint`."""
        if self.sock.fileno() >= 0:
            if kernel.is_tcp(self.sock):
                with suppress(OSError):  # EINVAL on macOS and BSD: the peer has reset it already
                    self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.close()


class SocketEndpoint(SocketBase):
    """A plain stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        # Bound methods of the socket itself: no layer of ours on the way of the bytes.
        self.recv_into: Callable[[memoryview], int] = sock.recv_into
        self.send: Callable[[bytes | memoryview], int] = sock.send

    def detach(self) -> socket.socket:
        """Give the socket away, with all that was not read; this endpoint counts as closed then. For one that nobody has closed yet."""
        self._readiness.close()
        return socket.socket(fileno=self.sock.detach())


def set_no_delay(sock: socket.socket) -> None:
    """Have small TCP writes leave at once. Never fails, as `set_stream_options`."""
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def set_stream_options(sock: socket.socket) -> None:
    """Set what every TCP stream of ours wants: no delay for small writes, and the kernel's own check for dead peers.

    The kernel's check (first probe after 60 s, then four 15 s apart: gone within two minutes) is for visitors and local
    services, whose protocol we do not know; our own connections have PING and PROBE. Set on a listening socket, its
    connections inherit all of it on Linux. Never fails: a connection that the peer has reset takes no options on macOS and BSD,
    and is told as lost by the first read.
    """
    if not kernel.is_tcp(sock):
        return
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


async def send_all(endpoint: Endpoint, data: bytes | memoryview) -> None:
    """Send everything. Cancelled half-way, the stream is of no more use."""
    view = memoryview(data)
    while view or endpoint.has_unsent:
        try:
            if view:
                view = view[endpoint.send(view) :]
            else:
                endpoint.flush()
        except BlockingIOError:
            await endpoint.writable.wait()


async def close_after_last_words(endpoint: Endpoint) -> None:
    """Close so that what was sent last arrives: end our direction, read away the rest, close.

    The caller sets the deadline, since the peer may never stop.

    Closing with unread input would reset the connection, and a reset makes the peer's kernel throw away what it has not read
    (RFC 1122 4.2.2.13). Closes under cancellation as well, then without waiting.
    """
    rest = memoryview(bytearray(TLS_RECORD_BYTES))
    try:
        endpoint.send_eof()
        await send_all(endpoint, b"")
        while True:
            try:
                if not endpoint.recv_into(rest):
                    return
            except BlockingIOError:
                await endpoint.readable.wait()
            else:
                await trio.lowlevel.checkpoint()
    except (OSError, trio.ClosedResourceError):
        pass  # gone already: nothing left to say
    finally:
        endpoint.close()


def lost(error: OSError) -> ConnectionLostError:
    """Return the error of the kernel or of OpenSSL as one of ours, in a few words."""
    if isinstance(error, ssl.SSLEOFError):
        return ConnectionLostError("connection lost: the peer cut it off")
    if isinstance(error, ssl.SSLError):
        return ConnectionLostError(f"TLS failed: {error.reason or error}".replace("_", " "))
    return ConnectionLostError(f"connection lost: {error.strerror or error}")
