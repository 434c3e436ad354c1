"""Connecting to addresses."""

from __future__ import annotations

import errno
import ipaddress
import os
import random
import socket
import sys
from contextlib import suppress
from functools import lru_cache
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import trio

from trionat.address import TCPAddress, UnixAddress
from trionat.errors import ConnectionLostError
from trionat.system import has_unix_sockets, open_unix_socket
from trionat.text import quoted
from trionat.transport.endpoint import set_no_delay, set_stream_options
from trionat.transport.isolation import leaves

if TYPE_CHECKING:
    from trionat.address import Address

# A Unix socket whose queue is full answers EAGAIN at once instead of waiting (connect(2)); so we wait ourselves.
_FULL_QUEUE_WAIT: Final = 0.01

# Seconds after which a connection that is on its way is begun anew. It goes out from the address that this machine had when it began: where that has
# changed meanwhile, no answer can come. Chosen: TCP has asked three times by then (after 0, 1 and 3 s; RFC 6298 2).
_ATTEMPT: Final = 3.2

# Addresses of one name that are tried.
_MOST_HOSTS: Final = 16

_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_DYNAMIC_PORTS: Final = range(49152, 65536)  # RFC 6335 6, which macOS, Windows and the BSDs keep to

# What connect(2) says of a connection that is on its way (EWOULDBLOCK: Windows), and of one that is there.
_UNDER_WAY: Final = (errno.EINPROGRESS, errno.EALREADY, errno.EWOULDBLOCK)
_CONNECTED: Final = (0, errno.EISCONN)


async def dial(address: Address) -> socket.socket:
    """Return a connected, non-blocking socket, which the caller owns. The caller sets the deadline.

    Names are looked up anew each time, in a thread; all their addresses are tried (RFC 8305). Numeric addresses cost neither.

    Raises:
        OSError: nothing answers there; says so in one line.
    """
    if isinstance(address, UnixAddress):
        return await _connect_unix(address)
    if is_numeric(address.host):
        return await _connect_numeric(address)
    if is_localhost(address.host):
        return await _connect_loopback(address.port)
    try:
        stream = await trio.open_tcp_stream(address.host, address.port)
    except UnicodeError as error:  # from the codec for international names
        raise OSError(f"{quoted(address.host)} is not a name that can be looked up") from error
    except OSError as error:
        raise _first_reason(error) from error
    # Out of Trio's wrapper: the relay calls the socket itself.
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    set_stream_options(sock)
    return sock


def is_localhost(host: str) -> bool:
    """Tell whether that name is this machine, whatever a name server says (RFC 6761 6.3)."""
    return host.lower().rstrip(".") == "localhost"


async def dial_service(address: Address) -> socket.socket:
    """Dial a local service. One that does not listen on 127.0.0.1 may do so on ::1: some servers listen on what `localhost` is.

    Raises:
        OSError: as `dial`.
    """
    if isinstance(address, TCPAddress) and address.host == "127.0.0.1":
        return await _connect_loopback(address.port)
    return await dial(address)


def is_taken(address: Address) -> bool:
    """Tell whether somebody has that port of this machine for sure, without connecting: it cannot be bound. False proves nothing.

    Privileged ports, other machines', Unix sockets and ports of outgoing connections cannot be asked for in this way.
    """
    if isinstance(address, UnixAddress):
        return False
    loopback = address.host == "127.0.0.1" or is_localhost(address.host)
    hosts = ("127.0.0.1", "::1") if loopback else (address.dialled_host,)
    if address.port in (ephemeral_ports() or _DYNAMIC_PORTS):
        return False  # an outgoing connection may have it
    return any(_cannot_be_bound(host, address.port) for host in hosts if is_numeric(host))


def ephemeral_ports() -> range | None:
    """Return the ports that the kernel gives to outgoing connections; None where it does not tell."""
    try:
        low, high = map(int, _EPHEMERAL.read_text().split())
    except (OSError, ValueError):
        return None
    return range(low, high + 1)


def _cannot_be_bound(host: str, port: int) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            if sys.platform == "linux":  # else what a connection has left behind has it as well
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


async def _connect_loopback(port: int) -> socket.socket:
    try:
        return await _connect_numeric(TCPAddress("127.0.0.1", port))
    except ConnectionRefusedError as error:
        refused = error
    try:
        return await _connect_numeric(TCPAddress("::1", port))
    except OSError:  # or there is no IPv6 here
        raise refused from None


async def reach(address: TCPAddress, host: str | None = None) -> socket.socket:
    """Dial a server of ours; `host` is which of the address's hosts, as `look_up` returns them, where that is known already.

    Goes on until it is cancelled, where nobody answers.

    Raises:
        ConnectionLostError: it cannot be reached; says where and why.
    """
    there = address if host is None else TCPAddress(host, address.port)
    try:
        while is_numeric(there.host):
            with trio.move_on_after(_ATTEMPT):
                return await dial(there)
        return await dial(there)
    except OSError as error:
        raise ConnectionLostError(f"cannot reach {address}: {error.strerror or error}") from error


async def look_up(address: TCPAddress) -> list[str]:
    """Return what a server of ours can be dialled as: one host, or the addresses of a name, IPv6 and IPv4 by turns (RFC 8305 4).

    Those of one family come in any order, so that many clients spread over them. The family that the system puts first stays first.

    Raises:
        ConnectionLostError: the name cannot be looked up; says which and why.
    """
    if is_numeric(address.host) or is_localhost(address.host):
        return [address.host]
    try:
        found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # from the codec for international names
        raise ConnectionLostError(
            f"cannot reach {address}: {quoted(address.host)} is not a name that can be looked up"
        ) from error
    except OSError as error:
        raise ConnectionLostError(f"cannot reach {address}: {error.strerror or error}") from error
    families: dict[int, dict[str, None]] = {}
    for family, _, _, _, name in found:
        families.setdefault(family, {})[_numeric_host(name)] = None
    shuffled = (random.sample(list(hosts), len(hosts)) for hosts in families.values())
    by_turns = (host for each in zip_longest(*shuffled) for host in each if host is not None)
    return list(islice(by_turns, _MOST_HOSTS))


def _numeric_host(name: tuple[Any, ...]) -> str:
    """Return the host of a socket's address; a link-local one of IPv6 with its scope (RFC 4007 11)."""
    host, scope = str(name[0]), name[3] if len(name) > 3 else 0
    return f"{host}%{scope}" if scope and "%" not in host else host


def _first_reason(error: OSError) -> OSError:
    """Return why the first of several addresses did not answer; Trio puts all of them into the cause, in words of its own."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = next(leaves(cast("BaseExceptionGroup[BaseException]", cause)))
    if isinstance(cause, OSError) and cause.errno:
        return OSError(cause.errno, os.strerror(cause.errno))
    return error


@lru_cache(maxsize=256)
def is_numeric(host: str) -> bool:
    """Tell whether that is an address, which nobody has to look up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def dial_at_once(address: Address) -> socket.socket | None:
    """Return a connection to a service at a port of this machine, as `dial_service` does; None where that takes a wait, or fails.

    Spares what has to be set up for a wait, which each visitor would pay for. The kernel's check for dead peers is left out: this machine is
    its own peer. Linux only: elsewhere such a connection takes a wait, most often.

    Raises:
        OSError: there is no descriptor left.
    """
    if sys.platform != "linux" or not isinstance(address, TCPAddress):
        return None
    if address.host != "127.0.0.1" and not is_localhost(address.host):
        return None
    sock = socket.socket(socket.AF_INET)
    sock.setblocking(False)
    name = ("127.0.0.1", address.port)
    code = sock.connect_ex(name)
    if code == errno.EINPROGRESS:
        code = sock.connect_ex(name)  # what is on this machine has answered already
    if code in _CONNECTED:
        set_no_delay(sock)
        return sock
    sock.close()
    return None


async def _connect_numeric(address: TCPAddress) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    try:
        sock.setblocking(False)
        set_stream_options(sock)
        name = (address.dialled_host, address.port)
        code = sock.connect_ex(name)
        if code == errno.EINPROGRESS and sys.platform == "linux":
            code = sock.connect_ex(name)  # what is on this machine has answered already
        if code in _UNDER_WAY:
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code not in _CONNECTED:
            raise OSError(code, os.strerror(code))
        return sock
    except BaseException:
        sock.close()
        raise


async def _connect_unix(address: UnixAddress) -> socket.socket:
    if not has_unix_sockets():
        raise OSError(f"this platform has no Unix sockets: {address}")
    sock = open_unix_socket()
    try:
        sock.setblocking(False)
        while True:
            with suppress(BlockingIOError):
                sock.connect(address.path)
                return sock
            await trio.sleep(_FULL_QUEUE_WAIT)
    except BaseException:
        sock.close()
        raise
