"""What a server speaks with which the client library does not come to terms: with TLS or without, or one that lets nobody in from outside.

The library says of all of them that the connection was lost, or that nothing was answered. So the server is asked once more, in plain words.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from trionat.transport.tls import client_context, speaks_no_tls

if TYPE_CHECKING:
    from trionat.address import TCPAddress

_PATIENCE: Final = 0.5
"""Seconds for all of it. It comes on top of a deadline that has passed, and nodes have to be back soon where Redis is only slow."""

_LONGEST: Final = 512

_NO_TLS_HERE: Final = "it does not speak TLS at this port: write redis:// instead of rediss://, or name its port for TLS (tls-port)"
_TLS_HERE: Final = "it speaks TLS at this port: write rediss:// instead of redis://"


NOBODY_FROM_OUTSIDE: Final = (
    "it is in protected mode, in which nobody gets in from another machine: give it a password (requirepass), and name that in"
    " Cluster.RedisPasswordFile"
)
NO_CERTIFICATE: Final = "it wants a certificate of its clients, and nodes have none: set tls-auth-clients no in redis.conf"


def wants_certificate(error: ssl.SSLError) -> bool:
    """Tell whether a server has refused us since we have shown no certificate of ours."""
    return error.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED"


async def find_dialect_fault(address: TCPAddress, *, encrypted: bool) -> str | None:
    """Say what about the way in which a server was spoken to is wrong, and what to do; None where nothing is, or nobody knows."""
    with trio.move_on_after(_PATIENCE):
        answer = await _ask_plainly(address)
        if answer.startswith(b"-DENIED"):
            return NOBODY_FROM_OUTSIDE
        if answer:
            return _NO_TLS_HERE if encrypted and answer.startswith((b"+", b"-")) else None
        if not encrypted:
            return _TLS_HERE if await _speaks_tls(address) else None
        if await _refuses_anonymous(address):
            return NO_CERTIFICATE
    return None


async def _ask_plainly(address: TCPAddress) -> bytes:
    """Return how the answer to a PING without TLS begins; empty where the connection ends instead."""
    try:
        async with await trio.open_tcp_stream(address.host, address.port) as stream:
            with suppress(trio.BrokenResourceError):  # who lets nobody in has said so before
                await stream.send_all(b"PING\r\n")
            return await stream.receive_some(_LONGEST)
    except (OSError, trio.BrokenResourceError):
        return b""


async def _speaks_tls(address: TCPAddress) -> bool:
    try:
        async with await _open_tls(address) as stream:
            await stream.do_handshake()
    except OSError:
        return False
    except trio.BrokenResourceError as error:
        # Whatever else it does not like about our TLS, it knows what that is.
        cause = error.__cause__
        return isinstance(cause, ssl.SSLError) and not speaks_no_tls(cause)
    return True


async def _refuses_anonymous(address: TCPAddress) -> bool:
    """Be a client without a certificate, and wait for what the server says to that. If we said something, its word could be lost."""
    try:
        async with await _open_tls(address) as stream:
            await stream.receive_some(1)
    except OSError:
        return False
    except trio.BrokenResourceError as error:
        return isinstance(error.__cause__, ssl.SSLError) and wants_certificate(error.__cause__)
    return False


async def _open_tls(address: TCPAddress) -> trio.SSLStream[trio.SocketStream]:
    """Connect, to say nothing: so nobody's certificate is checked."""
    stream = await trio.open_tcp_stream(address.host, address.port)
    return trio.SSLStream(stream, client_context(pinned=True), https_compatible=True)
