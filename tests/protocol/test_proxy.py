"""The header that tells where a visitor comes from, written and read, against the bytes that HAProxy's specification prescribes."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionat.address import TCPAddress
from trionat.errors import RemoteProtocolError
from trionat.protocol.proxy import (
    MOST_PROXY_BYTES,
    PROXY_V1,
    PROXY_V2,
    ProxyHeader,
    proxy_header,
    read_proxy_header,
)

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
V4 = TCPAddress("192.0.2.7", 56324), TCPAddress("198.51.100.1", 443)
V6 = TCPAddress("2001:db8::7", 56324), TCPAddress("2001:db8::1", 443)
ADDRESSES = st.builds(TCPAddress, st.ip_addresses().map(str), st.integers(0, 65535))


@pytest.mark.parametrize(
    ("version", "visitor", "visited", "header"),
    [
        (PROXY_V1, *V4, b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"),
        (PROXY_V1, *V6, b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n"),
        (
            PROXY_V2,
            *V4,
            SIGNATURE + bytes.fromhex("21 11 000c c0000207 c6336401 dc04 01bb"),
        ),
        (
            PROXY_V2,
            *V6,
            SIGNATURE
            + bytes.fromhex("21 21 0024 20010db8000000000000000000000007")
            + bytes.fromhex("20010db8000000000000000000000001 dc04 01bb"),
        ),
        (
            PROXY_V2,
            V4[0],
            V6[1],
            SIGNATURE
            + bytes.fromhex("21 21 0024 00000000000000000000ffffc0000207")
            + bytes.fromhex("20010db8000000000000000000000001 dc04 01bb"),
        ),
        (PROXY_V1, TCPAddress("a name", 1), V4[1], b"PROXY UNKNOWN\r\n"),
        (PROXY_V2, V4[0], TCPAddress("public.example", 1), SIGNATURE + bytes.fromhex("20 00 0000")),
        (
            PROXY_V1,
            TCPAddress("fe80::1%eth0", 1),
            TCPAddress("fe80::2%eth0", 2),
            b"PROXY TCP6 fe80::1 fe80::2 1 2\r\n",
        ),
    ],
)
def test_headers(version: str, visitor: TCPAddress, visited: TCPAddress, header: bytes) -> None:
    assert proxy_header(version, visitor, visited) == header


@given(ADDRESSES, ADDRESSES)
def test_a_line_says_what_went_in(visitor: TCPAddress, visited: TCPAddress) -> None:
    """Both addresses of one family, and the line within the 107 bytes that receivers make room for."""
    line = proxy_header(PROXY_V1, visitor, visited)
    assert len(line) <= 107
    match = re.fullmatch(rb"PROXY TCP([46]) (\S+) (\S+) (\d+) (\d+)\r\n", line)
    assert match is not None
    family, *hosts, source_port, target_port = (part.decode() for part in match.groups())
    assert (int(source_port), int(target_port)) == (visitor.port, visited.port)
    for host, told in zip((visitor.host, visited.host), hosts, strict=True):
        address = ipaddress.ip_address(told)
        assert address.version == int(family)
        assert ipaddress.ip_address(host) in (address, getattr(address, "ipv4_mapped", None))


# --- reading ---

IN_V4 = bytes.fromhex("c0000207 c6336401 dc04 01bb")
IN_V6 = bytes.fromhex("20010db8000000000000000000000007 20010db8000000000000000000000001 dc04 01bb")
CRC32C = bytes.fromhex("03 0004 00000000")
"""As an addition, with a wrong sum."""
LONGEST_V6 = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"


def v2(head: str, block: bytes) -> bytes:
    """Return a header of version 2; `head` is its 13th and 14th byte."""
    return SIGNATURE + bytes.fromhex(head) + len(block).to_bytes(2, "big") + block


GOOD: dict[str, tuple[bytes, tuple[TCPAddress, TCPAddress] | None]] = {
    "the example of section 2.1": (
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        (TCPAddress("192.168.0.1", 56324), TCPAddress("192.168.0.11", 443)),
    ),
    "the longest line of IPv4": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        (TCPAddress("255.255.255.255", 65535), TCPAddress("255.255.255.255", 65535)),
    ),
    "the longest line of IPv6": (
        f"PROXY TCP6 {LONGEST_V6} {LONGEST_V6} 65535 65535\r\n".encode(),
        (TCPAddress(LONGEST_V6, 65535), TCPAddress(LONGEST_V6, 65535)),
    ),
    "capitals, and port 0": (
        b"PROXY TCP6 2001:DB8::7 2001:0db8:0:0::1 0 443\r\n",
        (TCPAddress("2001:db8::7", 0), V6[1]),
    ),
    "IPv4 in IPv6": (
        b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:c633:6401 56324 443\r\n",
        V4,
    ),
    "UNKNOWN": (b"PROXY UNKNOWN\r\n", None),
    "UNKNOWN with whatever": (b"PROXY UNKNOWN \xff\n \r 1\r\n", None),
    "the longest line of all": (
        f"PROXY UNKNOWN {LONGEST_V6} {LONGEST_V6} 65535 65535\r\n".encode(),
        None,
    ),
    "TCP over IPv4": (v2("21 11", IN_V4), V4),
    "TCP over IPv6": (v2("21 21", IN_V6), V6),
    "IPv4 in IPv6, binary": (
        v2("21 21", bytes(10) + b"\xff\xff" + IN_V4[:4] + IN_V6[16:]),
        (V4[0], V6[1]),
    ),
    "additions, a wrong checksum among them": (v2("21 11", IN_V4 + CRC32C + b"\xee\0\1x"), V4),
    "as many additions as there may be": (
        v2("21 21", IN_V6 + bytes(MOST_PROXY_BYTES - 16 - len(IN_V6))),
        V6,
    ),
    "LOCAL": (v2("20 00", b""), None),
    "LOCAL with addresses": (v2("20 11", IN_V4), None),
    "LOCAL of a family that there is not": (v2("20 ff", b"?"), None),
    "UNSPEC": (v2("21 00", b""), None),
    "UDP over IPv4": (v2("21 12", IN_V4), None),
    "a Unix socket": (v2("21 31", bytes(216)), None),
}
"""Headers, and what they tell."""

BAD = {
    "TLS": bytes.fromhex("160301020001000001fc0303"),
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "small letters": b"proxy TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
    "no space": b"PROXYTCP4",
    "two spaces": b"PROXY  TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
    "a space at the end": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2 \r\n",
    "a line that ends with LF only": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\nGET / HTTP/1.1\r\n",
    "an end after 107 bytes": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    "no end": b"PROXY TCP4 " + b"1" * 200,
    "another word": b"PROXY UNKNOWNS\r\n",
    "UDP": b"PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n",
    "IPv6 as IPv4": b"PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n",
    "IPv4 as IPv6": b"PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n",
    "a name": b"PROXY TCP4 example.com 198.51.100.1 1 2\r\n",
    "a zone": b"PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n",
    "zeros before a number": b"PROXY TCP4 192.0.2.07 198.51.100.1 1 2\r\n",
    "zeros before a port": b"PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n",
    "a port of 65536": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 65536\r\n",
    "a sign": b"PROXY TCP4 192.0.2.7 198.51.100.1 -1 2\r\n",
    "digits of another script": "PROXY TCP4 192.0.2.7 198.51.100.1 1 \u0662\r\n".encode(),
    "a port too few": b"PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n",
    "version 1 in binary": v2("11 11", IN_V4),
    "version 3": v2("31 11", IN_V4),
    "an unknown command": v2("22 11", IN_V4),
    "an unknown family": v2("21 41", bytes(216)),
    "an unknown transport": v2("21 13", IN_V4),
    "too short for IPv4": v2("21 11", IN_V4[:-1]),
    "too short for IPv6": v2("21 21", IN_V4),
    "more additions than there may be": v2(
        "21 11", IN_V4 + bytes(MOST_PROXY_BYTES - 16 - len(IN_V4) + 1)
    ),
    "65535 bytes": v2("20 00", bytes(65535)),
}
"""What is no header."""


@pytest.mark.parametrize("name", GOOD)
def test_headers_are_read_in_any_pieces(name: str) -> None:
    """Until it is whole, all that is there belongs to it; what follows is somebody else's, however it looks."""
    wire, ends = GOOD[name]
    header = ProxyHeader(len(wire), *(ends or ()))
    assert [read_proxy_header(wire[:length]) for length in range(len(wire))] == [None] * len(wire)
    for behind in (b"", b"x", b"\r\n", wire, bytes(1000)):
        assert read_proxy_header(wire + behind) == header


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_header(name: str) -> None:
    with pytest.raises(RemoteProtocolError, match=r"PROXY header"):
        read_proxy_header(BAD[name])


@given(st.sampled_from([PROXY_V1, PROXY_V2]), ADDRESSES, ADDRESSES, st.binary(max_size=20))
def test_what_is_written_can_be_read(
    version: str, visitor: TCPAddress, visited: TCPAddress, behind: bytes
) -> None:
    wire = proxy_header(version, visitor, visited)
    header = read_proxy_header(wire + behind)
    assert header is not None
    assert header.size == len(wire)
    assert (header.source, header.destination) == (plain(visitor), plain(visited))


def plain(address: TCPAddress) -> TCPAddress:
    """Return the address as listeners tell it."""
    mapped = getattr(ipaddress.ip_address(address.host), "ipv4_mapped", None)
    return TCPAddress(str(mapped or address.host), address.port)
