"""The first message of TLS, as far as it tells where a connection wants to go: the names of ALPN, and the server's name.

A look at bytes that stay where they are, for whoever passes a connection on: TLS itself reads them again (RFC 8446 4.1.2, RFC 7301,
RFC 6066 3). So nothing is decided by it but the way, and what does not fit is an error, not a guess.
"""

from __future__ import annotations

import re
from typing import Final

import attrs

from trionat.errors import RemoteProtocolError

CLIENT_HELLO_BYTES: Final = 16 * 1024
"""Of a stream's first bytes, within which a ClientHello has to end. The largest of browsers, with keys against quantum computers, have 2 KiB."""

ALPN: Final = "trionat"
"""What our clients offer; followed by `-` and a route where they were told one."""

ROUTE_LENGTH: Final = 63
ROUTE: Final = re.compile(r"[a-z0-9][a-z0-9.]{0,62}", re.ASCII)
"""A route has 1 to 63 small letters, digits and dots, so that it stands out of a list of names wherever that is matched."""

_RECORD_HEADER: Final = 5
_RECORD_BYTES: Final = 2**14
_HANDSHAKE: Final = 0x16
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_ALPN: Final = 16


@attrs.frozen
class ClientHello:
    """What a client offers: its names for ALPN in their order, and the name by which it calls the server, in small letters."""

    alpn: tuple[str, ...] = ()
    server_name: str | None = None

    @property
    def route(self) -> str | None:
        """The route that it was told, if it offers one."""
        prefix = f"{ALPN}-"
        for name in self.alpn:
            if name.startswith(prefix) and ROUTE.fullmatch(name, len(prefix)):
                return name.removeprefix(prefix)
        return None


def alpn_names(route: str | None) -> list[str]:
    """Return what a client offers; the bare name as well, for a server that knows no routes."""
    return [ALPN] if route is None else [f"{ALPN}-{route}", ALPN]


def parse_client_hello(first: bytes) -> ClientHello | None:
    """Read a stream's first bytes, in one record or several; None: there have to be more.

    Raises:
        RemoteProtocolError: they are no ClientHello, or one that is too long.
    """
    message = _first_message(first)
    if message is None:
        if len(first) >= CLIENT_HELLO_BYTES:
            raise RemoteProtocolError(
                f"the ClientHello does not end within {CLIENT_HELLO_BYTES} bytes"
            )
        return None
    body = _Reader(message)
    body.take(2 + 32)  # version, random
    body.vector(1)  # session id
    body.vector(2)  # cipher suites
    body.vector(1)  # compression methods
    if not body.left:
        return ClientHello()
    extensions = _Reader(body.vector(2))
    found: dict[int, bytes] = {}
    while extensions.left:
        kind = extensions.number(2)
        content = extensions.vector(2)
        if kind in found:
            raise RemoteProtocolError(f"the ClientHello has extension {kind} twice")
        found[kind] = content
    return ClientHello(
        alpn=_alpn(found[_ALPN]) if _ALPN in found else (),
        server_name=_server_name(found[_SERVER_NAME]) if _SERVER_NAME in found else None,
    )


def _first_message(first: bytes) -> bytes | None:
    """Return the content of the handshake's first message, without its header; None where it does not end here."""
    message = bytearray()
    at = 0
    while at < len(first):
        header = first[at : at + _RECORD_HEADER]
        if header[0] != _HANDSHAKE or (len(header) > 1 and header[1] != 3):
            raise RemoteProtocolError("no TLS handshake where there has to be one")
        if len(header) < _RECORD_HEADER:
            return None
        length = int.from_bytes(header[3:])
        if not 0 < length <= _RECORD_BYTES:
            raise RemoteProtocolError(f"a TLS record of {length} bytes")
        message += first[at + _RECORD_HEADER : at + _RECORD_HEADER + length]
        at += _RECORD_HEADER + length
        if message and message[0] != _CLIENT_HELLO:
            raise RemoteProtocolError("the first message of TLS is no ClientHello")
        if len(message) < 4:
            continue
        end = 4 + int.from_bytes(message[1:4])
        if end > CLIENT_HELLO_BYTES:
            raise RemoteProtocolError(f"a ClientHello of {end} bytes")
        if len(message) >= end:
            return bytes(message[4:end])
    return None


class _Reader:
    """Takes one field after another; each that ends too early is the peer's error."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise RemoteProtocolError("the ClientHello ends in the middle of a field")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count))

    def vector(self, count: int) -> bytes:
        """Take what stands behind its own length, which has so many bytes."""
        return self.take(self.number(count))


def _alpn(extension: bytes) -> tuple[str, ...]:
    names = _Reader(_Reader(extension).vector(2))
    found: list[str] = []
    while names.left:
        name = names.vector(1)
        if name.isascii():  # any bytes may be a name; those of others are nothing to us
            found.append(name.decode("ascii"))
    return tuple(found)


def _server_name(extension: bytes) -> str | None:
    names = _Reader(_Reader(extension).vector(2))
    while names.left:
        kind, name = names.number(1), names.vector(2)
        if kind == 0 and name.isascii():
            return name.decode("ascii").lower()
    return None
