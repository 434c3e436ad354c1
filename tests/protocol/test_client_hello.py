"""What a ClientHello tells, of real clients and of any bytes."""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trionat.errors import RemoteProtocolError
from trionat.protocol.client_hello import (
    CLIENT_HELLO_BYTES,
    ClientHello,
    alpn_names,
    parse_client_hello,
)


def openssl(alpn: list[str], server_name: str | None = None) -> bytes:
    """What the TLS of this machine says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=server_name)
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def in_records(first: bytes, size: int) -> bytes:
    """The same message in records of at most `size` bytes each."""
    message = first[5:]
    cut = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2) + piece for piece in cut)


REAL: Final = openssl(alpn_names("w2"), "Tunnel.Example.com")
TOLD: Final = ClientHello(("trionat-w2", "trionat"), "tunnel.example.com")


def test_what_openssl_says() -> None:
    assert parse_client_hello(REAL) == TOLD
    assert TOLD.route == "w2"
    assert parse_client_hello(openssl([])) == ClientHello()
    assert parse_client_hello(openssl(["h2", "http/1.1"], "192.0.2.1")) == ClientHello(
        ("h2", "http/1.1")
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100])
def test_in_several_records(size: int) -> None:
    assert parse_client_hello(in_records(REAL, size)) == TOLD


def test_every_piece_of_it_needs_more() -> None:
    assert [parse_client_hello(REAL[:length]) for length in range(len(REAL))] == [None] * len(REAL)
    assert parse_client_hello(REAL + b"what comes behind it") == TOLD


@pytest.mark.parametrize(
    ("alpn", "route"),
    [
        ((), None),
        (("trionat",), None),
        (("h2", "trionat-w1"), "w1"),
        (("trionat-n1.w2", "trionat"), "n1.w2"),
        (("trionat-",), None),
        (("trionat-W1",), None),
        (("trionat-w1-x", "trionat-w3"), "w3"),
        (("trionat-" + "x" * 63,), "x" * 63),
        (("trionat-" + "x" * 64,), None),
        (("trionat-w1\n",), None),
        (("xtrionat-w1",), None),
    ],
)
def test_route(alpn: tuple[str, ...], route: str | None) -> None:
    assert ClientHello(alpn).route == route


def extensions(*pairs: tuple[int, bytes]) -> bytes:
    """A ClientHello with these extensions and nothing else."""
    block = b"".join(kind.to_bytes(2) + len(data).to_bytes(2) + data for kind, data in pairs)
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    body += len(block).to_bytes(2) + block
    message = b"\x01" + len(body).to_bytes(3) + body
    return b"\x16\x03\x01" + len(message).to_bytes(2) + message


ALPN_OF_H2: Final = (16, b"\x00\x03\x02h2")


def test_names_that_are_no_text() -> None:
    hello = parse_client_hello(
        extensions((16, b"\x00\x06\x02\xff\xfe\x02h2"), (0, b"\x00\x06\x00\x00\x03\xff\x00\x01"))
    )
    assert hello == ClientHello(("h2",), None)


@pytest.mark.parametrize(
    "first",
    [
        b"\x17",
        b"\x16\x02",
        b"\x16\x03\x01\x00\x00",  # an empty record: there could be any number of them
        b"\x16\x03\x01\x40\x01",
        b"\x16\x03\x01\x00\x01\x02",  # ServerHello
        b"\x16\x03\x01\x00\x04\x01\x00\x40\x00",  # too long
        # Its bytes are others in each process of pytest-xdist.
        pytest.param(
            REAL[:5] + b"\x01" + (len(REAL) - 10).to_bytes(3) + REAL[9:], id="one byte is missing"
        ),
        extensions(ALPN_OF_H2, ALPN_OF_H2),
        extensions((16, b"\x00\x04\x02h2")),
        extensions((16, b"\x00\x03\x03h2")),
        extensions((16, b"\x00")),
        extensions((0, b"\x00\x04\x00\x00\x03x")),
    ],
)
def test_no_client_hello(first: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_client_hello(first)


def test_it_has_to_end() -> None:
    endless = in_records(b"12345\x01\x00\x3f\xfc" + bytes(CLIENT_HELLO_BYTES), 1)
    assert parse_client_hello(endless[: CLIENT_HELLO_BYTES - 1]) is None
    with pytest.raises(RemoteProtocolError, match="does not end"):
        parse_client_hello(endless[:CLIENT_HELLO_BYTES])


@example(b"\x16\x03\x01\x00\x01")
@given(st.binary(max_size=200))
def test_any_bytes(first: bytes) -> None:
    with suppress(RemoteProtocolError):
        parse_client_hello(first)


@given(st.integers(0, len(REAL) - 1), st.binary(max_size=3))
def test_nearly_right(at: int, other: bytes) -> None:
    with suppress(RemoteProtocolError):
        parse_client_hello(REAL[:at] + other + REAL[at + len(other) :])


@given(st.lists(st.from_regex(r"[ -~]{1,40}", fullmatch=True), min_size=1, max_size=8))
def test_whatever_is_offered(names: list[str]) -> None:
    hello = parse_client_hello(openssl(names))
    assert hello is not None
    assert hello.alpn == tuple(names)
