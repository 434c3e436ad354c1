"""The PROXY protocol: what a local service is told first, so that it sees the visitor's address and not the client's.

As in HAProxy's specification (proxy-protocol.txt, https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt): version 1 is a line of
text (its section 2.1), version 2 is binary (section 2.2).
"""

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trionat.address import TCPAddress

PROXY_V1: Final = "v1"
PROXY_V2: Final = "v2"

_UNKNOWN_V1: Final = b"PROXY UNKNOWN\r\n"

_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_LOCAL: Final = 0x20  # version 2, and a command: the addresses are those of the connection itself, or somebody else's
_PROXY: Final = 0x21
_STREAM: Final = {4: 0x11, 6: 0x21}  # AF_INET and AF_INET6, over TCP
_HEAD: Final = struct.Struct("!BBH")
_PORTS: Final = struct.Struct("!HH")
_UNKNOWN_V2: Final = _SIGNATURE + _HEAD.pack(_LOCAL, 0, 0)


def proxy_header(version: str, visitor: TCPAddress, visited: TCPAddress) -> bytes:
    """Return what goes before the visitor's own bytes: where it comes from, and which address it dialled.

    If one of the two is of IPv6 and the other of IPv4, this one is written in the notation of that family. If either is no
    numeric address, the header says that nothing is known: the service then takes the connection as it is.
    """
    try:
        source, target = (ipaddress.ip_address(each.host) for each in (visitor, visited))
    except ValueError:
        return _UNKNOWN_V1 if version == PROXY_V1 else _UNKNOWN_V2
    if source.version != target.version:
        source, target = _as_v6(source), _as_v6(target)
    if version == PROXY_V1:
        words = f"PROXY TCP{source.version} {_text(source)} {_text(target)} {visitor.port} {visited.port}"
        return f"{words}\r\n".encode()
    addresses = source.packed + target.packed + _PORTS.pack(visitor.port, visited.port)
    return _SIGNATURE + _HEAD.pack(_PROXY, _STREAM[source.version], len(addresses)) + addresses


def _as_v6(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv6Address:
    if isinstance(address, ipaddress.IPv6Address):
        return address
    return ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed)


def _text(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Without a zone, which is a matter of the machine that told it."""
    return str(address).partition("%")[0]
