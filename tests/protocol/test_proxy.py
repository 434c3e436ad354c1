"""The header that tells a service where a visitor comes from, against the bytes that HAProxy's specification prescribes."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionat.address import TCPAddress
from trionat.protocol.proxy import PROXY_V1, PROXY_V2, proxy_header

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
