"""The PROXY protocol: what goes before a connection's own bytes, so that its receiver learns who is behind a proxy.

A local service is told its visitor's address so (`proxy_header`), and a server behind nginx or HAProxy reads it (`read_proxy_header`).
As in HAProxy's specification (proxy-protocol.txt, https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt): version 1 is a line of
text (its section 2.1), version 2 is binary (section 2.2).
"""

from __future__ import annotations

import ipaddress
import re
import struct
from typing import Final

import attrs

from trionat.address import TCPAddress, parse_port
from trionat.errors import RemoteProtocolError

PROXY_V1: Final = "v1"
PROXY_V2: Final = "v2"

MOST_PROXY_BYTES: Final = 536
"""Of a header that is read: addresses of any family, and some 300 bytes of additions (TLVs). Every network takes so many in one
segment (RFC 9293 3.7.1), so senders keep to it."""

_MOST_V1: Final = 107  # section 2.1, with the end of the line
_BEGIN_V1: Final = b"PROXY "
_UNKNOWN_V1: Final = b"PROXY UNKNOWN\r\n"
_UNKNOWN_LINE: Final = re.compile(rb"PROXY UNKNOWN(?: .*)?", re.DOTALL)
_LINE: Final = re.compile(
    rb"PROXY TCP([46]) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})"
)

_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_LOCAL: Final = 0x20  # version 2, and a command: the addresses are those of the connection itself, or somebody else's
_PROXY: Final = 0x21
_STREAM: Final = {4: 0x11, 6: 0x21}  # AF_INET and AF_INET6, over TCP
_FAMILIES: Final = {0x11: struct.Struct("!4s4sHH"), 0x21: struct.Struct("!16s16sHH")}
_HIGHEST_FAMILY: Final = 3  # AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX
_HIGHEST_TRANSPORT: Final = 2  # UNSPEC, STREAM, DGRAM
_HEAD: Final = struct.Struct("!BBH")
_PORTS: Final = struct.Struct("!HH")
_UNKNOWN_V2: Final = _SIGNATURE + _HEAD.pack(_LOCAL, 0, 0)


@attrs.frozen
class ProxyHeader:
    """A header that was read: how many bytes it has, and the ends of the connection that the proxy passes on.

    Both ends are None where the proxy speaks for itself, as in a health check, or tells of something else than TCP over IPv4 or IPv6.
    """

    size: int
    source: TCPAddress | None = None
    destination: TCPAddress | None = None


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


def is_proxy_header(first: bytes) -> bool:
    """Tell whether a connection that begins with these bytes, eight at least, begins with a header of either version."""
    return first.startswith((_BEGIN_V1, _SIGNATURE[:8]))


def read_proxy_header(data: bytes) -> ProxyHeader | None:
    """Read the header at the beginning of `data`; None: more of it has to come, and all of `data` belongs to it.

    What is told once stays true, whatever comes behind. Additions (TLVs) are skipped, a checksum among them as well: TCP has its own.

    Raises:
        RemoteProtocolError: There is no header, or it is a broken one, or one of more than `MOST_PROXY_BYTES`.
    """
    if data.startswith(_SIGNATURE):
        return _read_v2(data)
    if data.startswith(_BEGIN_V1):
        return _read_v1(data)
    if _SIGNATURE.startswith(data) or _BEGIN_V1.startswith(data):
        return None
    raise RemoteProtocolError(
        "the connection does not begin with a PROXY header: turn on proxy_protocol (nginx) or send-proxy-v2 (HAProxy)"
    )


def _read_v1(data: bytes) -> ProxyHeader | None:
    line, end, _ = data[:_MOST_V1].partition(b"\r\n")
    if not end:
        if len(data) < _MOST_V1:
            return None
        raise RemoteProtocolError(f"the PROXY header has no end within {_MOST_V1} bytes")
    size = len(line) + len(end)
    if _UNKNOWN_LINE.fullmatch(line):
        return ProxyHeader(size)
    if (found := _LINE.fullmatch(line)) is None:
        raise RemoteProtocolError("the PROXY header is not one of version 1")
    family, source, target, source_port, target_port = (part.decode() for part in found.groups())
    read_host = ipaddress.IPv4Address if family == "4" else ipaddress.IPv6Address
    try:
        return ProxyHeader(
            size,
            _address(read_host(source), parse_port(source_port)),
            _address(read_host(target), parse_port(target_port)),
        )
    except ValueError:
        raise RemoteProtocolError("the PROXY header has no valid addresses and ports") from None


def _read_v2(data: bytes) -> ProxyHeader | None:
    start = len(_SIGNATURE) + _HEAD.size
    if len(data) < start:
        return None
    command, family, length = _HEAD.unpack_from(data, len(_SIGNATURE))
    size = start + length
    if command not in (_LOCAL, _PROXY):
        raise RemoteProtocolError(
            f"the PROXY header has the unknown version and command 0x{command:02x}"
        )
    if size > MOST_PROXY_BYTES:
        raise RemoteProtocolError(
            f"the PROXY header has {size} bytes, and at most {MOST_PROXY_BYTES} are taken: have the proxy add less to it"
        )
    if command == _PROXY and (family >> 4 > _HIGHEST_FAMILY or family & 15 > _HIGHEST_TRANSPORT):
        raise RemoteProtocolError(f"the PROXY header has the unknown family 0x{family:02x}")
    block = _FAMILIES.get(family) if command == _PROXY else None
    if block is not None and length < block.size:
        raise RemoteProtocolError("the PROXY header is too short for its addresses")
    if len(data) < size:
        return None
    if block is None:
        return ProxyHeader(size)
    source, target, source_port, target_port = block.unpack_from(data, start)
    return ProxyHeader(
        size,
        _address(ipaddress.ip_address(source), source_port),
        _address(ipaddress.ip_address(target), target_port),
    )


def _address(host: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> TCPAddress:
    """IPv4 in the notation of IPv6 is told as IPv4, as listeners tell it."""
    mapped = host.ipv4_mapped if isinstance(host, ipaddress.IPv6Address) else None
    return TCPAddress(str(mapped or host), port)
