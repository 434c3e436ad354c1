"""Listening sockets: opened once, accepting in batches, surviving a lack of descriptors."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.address import TCPAddress
from trionat.errors import StartupError
from trionat.networks import plain_host
from trionat.transport.descriptors import SHORTAGE
from trionat.transport.dial import ephemeral_ports, is_localhost, is_numeric
from trionat.transport.endpoint import set_stream_options
from trionat.transport.kernel import INHERITS_OPTIONS
from trionat.transport.readiness import open_readiness

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.transport.descriptors import Descriptors
    from trionat.transport.readiness import SocketReadiness

# Connections to accept before other tasks get their turn. Chosen, not measured.
BATCH: Final = 64

# The kernel cuts this down to its own limit (net.core.somaxconn, 4096 on Linux since 5.4). A longer queue costs nothing: a
# peer that the queue has no room for would only wait elsewhere, in its own SYN retries.
BACKLOG: Final = 4096

# Windows' SO_REUSEADDR would let another program take the port away; elsewhere it only lets us have our own port back at once.
_OWN_PORT: Final[int] = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)

_SHORTAGE_WAIT: Final = 0.1  # seconds between two tries, as trio.serve_listeners does
_PATIENCE: Final = 4.0  # seconds for which the kernel's queue waits for room: half of what a visitor waits for its tunnel


def _taken(port: int) -> str:
    """Say what to do about a port that is taken; who has it need not listen there."""
    advice = "; something else on this machine has that port: stop it, or choose another port"
    ports = ephemeral_ports()
    if ports is not None and port in ports:
        advice += (
            f" (perhaps an outgoing connection, which the kernel gives ports from {ports[0]} to {ports[-1]}:"
            " net.ipv4.ip_local_reserved_ports keeps it off yours)"
        )
    return advice


async def look_up(address: TCPAddress) -> str | None:
    """Return the number to listen on for an address whose host is a name; None where it is a number or `localhost`.

    Cancelling returns at once, even where the name server hangs.

    Raises:
        StartupError: names the address and the reason.
    """
    host = address.host
    if not host or is_localhost(host) or is_numeric(host):
        return None
    try:
        found = await trio.socket.getaddrinfo(
            host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StartupError(f"cannot listen on {address}: {reason}") from error
    return str(found[0][4][0])


@attrs.define(eq=False)
class Listener:
    """A bound and listening TCP socket. Owns it; `close` is idempotent."""

    sock: socket.socket
    address: TCPAddress
    _short_since: float | None = attrs.field(init=False, default=None)
    _readiness: SocketReadiness = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._readiness = open_readiness(self.sock)

    @classmethod
    def open(cls, address: TCPAddress, *, host: str | None = None) -> Listener:
        """Bind and listen; port 0 means any free one, and `address` of the result tells which.

        Numeric addresses and `localhost`, which is 127.0.0.1, are bound without asking a name server; others are looked up, which
        blocks: `host` is what `look_up` has found instead.

        Raises:
            StartupError: names the address and what to do.
        """
        # A name of two addresses, of which the resolver may put either first; people and programs dial both.
        host = host or ("127.0.0.1" if is_localhost(address.host) else address.host)
        try:
            family, kind, protocol, _, name = socket.getaddrinfo(
                host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            sock = socket.socket(family, kind, protocol)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StartupError(f"cannot listen on {address}: {reason}") from error
        try:
            sock.setsockopt(socket.SOL_SOCKET, _OWN_PORT, 1)
            set_stream_options(sock)
            sock.setblocking(False)
            sock.bind(name)
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            hint = {
                errno.EADDRINUSE: _taken(address.port),
                errno.EACCES: "; ports below 1024 need privileges: choose a higher one, or give the program the capability CAP_NET_BIND_SERVICE",
                errno.EADDRNOTAVAIL: "; this machine has no such address",
            }.get(error.errno or 0, "")
            raise StartupError(
                f"cannot listen on {address}: {error.strerror or error}{hint}"
            ) from error
        return cls(sock, TCPAddress(address.host, sock.getsockname()[1]))

    async def serve(
        self,
        handle: Callable[[socket.socket, TCPAddress], None],
        descriptors: Descriptors,
        *,
        most: int | None = None,
    ) -> None:
        """Accept until cancelled and give every connection, with the peer's address, to `handle`, which owns it then.

        `handle` must return at once and must not raise. When descriptors are short, or more than `most` are in use, connections
        wait in the kernel's queue; those for which there is no room within seconds are closed.
        """
        sock = self.sock
        await trio.lowlevel.checkpoint_if_cancelled()  # it may be closed by now
        while True:
            await self._readiness.readable.wait()
            for _ in range(BATCH):
                try:
                    connection, address = sock.accept()
                except BlockingIOError:
                    if self._short_since is not None:
                        self._short_since = None
                        descriptors.tell_rest(self.address)
                    break
                except OSError as error:
                    if error.errno not in SHORTAGE:
                        break  # it is of one connection that died before we took it (accept(2))
                    await self._wait_for_room(descriptors, most, error.strerror or str(error))
                    continue  # not behind the wait: whether the queue is empty by now is to be told
                if not address:  # macOS: it has been reset already
                    connection.close()
                    continue
                connection.setblocking(False)
                if not INHERITS_OPTIONS:
                    set_stream_options(connection)
                is_last = most is not None and connection.fileno() + 1 >= most
                handle(connection, TCPAddress(plain_host(address[0]), address[1]))
                if is_last:
                    await self._wait_for_room(descriptors, most, "few are left")

    async def _wait_for_room(self, descriptors: Descriptors, most: int | None, error: str) -> None:
        """Wait, and close those who have waited too long. The shortage is over when the queue has been empty."""
        if self._short_since is None:
            self._short_since = trio.current_time()
        while True:
            if trio.current_time() - self._short_since >= _PATIENCE:
                descriptors.refuse(self.sock)
            descriptors.tell(self.address, error)
            await trio.sleep(_SHORTAGE_WAIT)
            if descriptors.is_room(most):
                return

    def rest(self) -> None:
        """Let go of what `serve`, which has ended, has left with the kernel: somebody else accepts here meanwhile, in another process."""
        self._readiness.close()
        self._readiness = open_readiness(self.sock)

    def close(self) -> None:
        """Close, and wake whoever accepts."""
        if self.sock.fileno() >= 0:
            self._readiness.close()
            self.sock.close()
