"""Addresses as people write them: `HOST:PORT`, `[V6]:PORT`, the path of a Unix socket.

Values only: nothing here resolves a name or opens a socket. `str()` of an address is what its parser takes.
"""

from __future__ import annotations

import ipaddress
import re

import attrs

from trionat.text import quoted

_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_HOST_NAME = re.compile(r"[\w-]+(\.[\w-]+)*\.?")
_DOTTED_DIGITS = re.compile(r"[0-9.]+", re.ASCII)


@attrs.frozen
class TCPAddress:
    """A host and a port.

    `host` is a name, an IPv4 address or an IPv6 address without brackets; `port` is 0..65535, where 0 asks for any free
    port when it is listened on.
    """

    host: str
    port: int

    @property
    def dialled_host(self) -> str:
        """Where to connect to: this machine where the host means all of its addresses, as Go has it; Windows would refuse."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared with, not bound to

    @property
    def is_any_host(self) -> bool:
        """Whether the host means all addresses of this machine."""
        return self.host in ("0.0.0.0", "::", "")  # noqa: S104 - compared with, not bound to

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@attrs.frozen
class UnixAddress:
    """The path of a Unix socket, relative to the working directory unless it begins with a slash."""

    path: str

    def __str__(self) -> str:
        plain = "/" in self.path and "://" not in self.path and not self.path.startswith("unix:")
        return self.path if plain else f"unix:{self.path}"


Address = TCPAddress | UnixAddress
"""Where a local service listens."""


def parse_port(text: str) -> int:
    """Read a port number.

    Raises:
        ValueError: It is no whole number, or above 65535.
    """
    if not _PORT.fullmatch(text) or (port := int(text)) > 65535:
        raise ValueError(f"{quoted(text)} is not a valid port: write a number from 0 to 65535")
    return port


def parse_host(text: str) -> str:
    """Read a host: a name, an IPv4 address, or an IPv6 address with or without its brackets, which are taken off.

    Raises:
        ValueError: It can be none of these.
    """
    if text.count(":") == 1:
        raise ValueError(f"{quoted(text)} is more than a host: leave out the port")
    bracketed = text.startswith("[") and text.endswith("]")
    host = text[1:-1] if bracketed else text
    if bracketed or ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(
                f"{quoted(host)} is not a valid IPv6 address: write it like ::1"
            ) from None
    elif _DOTTED_DIGITS.fullmatch(host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise ValueError(
                f"{quoted(host)} is not a valid IPv4 address: write four numbers like 127.0.0.1"
            ) from None
    elif not _HOST_NAME.fullmatch(host) or not _can_be_looked_up(host):
        raise ValueError(
            f"{quoted(host)} is not a valid host: write a name like example.com or an address like 127.0.0.1"
        )
    return host


def _can_be_looked_up(host: str) -> bool:
    """Labels of at most 63 bytes and 253 in all, as DNS has it (RFC 1035 2.3.4), in their ASCII form."""
    try:
        return len(host.encode("idna")) <= 254  # 253, and a dot at the end
    except UnicodeError:
        return False


def parse_tcp_address(text: str) -> TCPAddress:
    """Read `HOST:PORT` or `[V6]:PORT`; an empty host, as in `:8007`, means 0.0.0.0.

    Raises:
        ValueError: It is neither; the message says what would be right.
    """
    if "://" in text:
        raise ValueError(f"{quoted(text)} is a URL: write HOST:PORT only, such as 127.0.0.1:8080")
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        example = "[::1]:8080" if colon else "127.0.0.1:8080"
        raise ValueError(f"{quoted(text)} has no port: write HOST:PORT, such as {example}")
    if ":" in host and not host.startswith("["):
        raise ValueError(
            f"{quoted(text)} has several colons: write HOST:PORT, and an IPv6 host in brackets as in [::1]:8080"
        )
    return TCPAddress(parse_host(host) if host else "0.0.0.0", parse_port(port))  # noqa: S104 - what the reader wrote


def parse_address(text: str) -> Address:
    """Read the address of a local service.

    Takes what `parse_tcp_address` takes, the path of a Unix socket (with a slash in it, or as `unix:PATH`), and a bare
    port number. A port without a host, `8080` or `:8080`, is one of 127.0.0.1: this address is connected to.

    Raises:
        ValueError: It is none of these; the message says what would be right.
    """
    if text.startswith("unix:") or ("/" in text and "://" not in text):
        path = text.removeprefix("unix:")
        if not path or "\0" in path:
            raise ValueError(
                f"{quoted(text)} is not a valid path of a socket: write it like /run/app.sock or unix:app.sock"
            )
        return UnixAddress(path)
    if _PORT.fullmatch(port := text.removeprefix(":")):
        return TCPAddress("127.0.0.1", parse_port(port))
    if ":" not in text:
        raise ValueError(
            f"{quoted(text)} is not a valid address: write HOST:PORT, a port, or the path of a socket"
        )
    return parse_tcp_address(text)


def parse_public_address(text: str) -> tuple[str, int | None]:
    """Read under which name a server is seen from outside: a host alone (port None), or what `parse_tcp_address` takes.

    Raises:
        ValueError: It is neither; the message says what would be right.
    """
    bare_v6 = text.count(":") > 1 and not text.startswith("[")
    if bare_v6 or ":" not in text or text.endswith("]"):
        return parse_host(text), None
    address = parse_tcp_address(text)
    if text.startswith(":"):
        raise ValueError(
            f"{quoted(text)} has no host: write HOST or HOST:PORT, such as example.com"
        )
    return address.host, address.port
