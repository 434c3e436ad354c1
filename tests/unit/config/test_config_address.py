from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trionat.address import (
    TCPAddress,
    UnixAddress,
    parse_address,
    parse_public_address,
    parse_tcp_address,
)

PORTS = st.integers(0, 65535)
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z][a-z0-9-]{0,20}){0,3}", fullmatch=True)
HOSTS = NAMES | st.ip_addresses().map(str)
PATHS = st.text(min_size=1, max_size=60).filter(lambda path: "\0" not in path)


@settings(deadline=None)
@given(host=HOSTS, port=PORTS)
def test_a_tcp_address_reads_what_it_writes(host: str, port: int) -> None:
    address = TCPAddress(host, port)
    assert parse_tcp_address(str(address)) == address
    assert parse_address(str(address)) == address


@settings(deadline=None)
@given(path=PATHS)
def test_a_unix_address_reads_what_it_writes(path: str) -> None:
    assert parse_address(str(UnixAddress(path))) == UnixAddress(path)


@settings(deadline=None)
@given(text=st.text(alphabet="0123456789abf.:[]/%-_ x", max_size=30) | st.text())
def test_any_text_is_an_address_or_a_value_error_of_one_line(text: str) -> None:
    for parse in (parse_address, parse_tcp_address, parse_public_address):
        message = ""
        try:
            parse(text)
        except ValueError as exc:
            message = str(exc)
        assert message.isprintable()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":8007", TCPAddress("0.0.0.0", 8007)),
        ("[::1]:22", TCPAddress("::1", 22)),
        ("example.com:0", TCPAddress("example.com", 0)),
    ],
)
def test_parse_tcp_address(text: str, address: TCPAddress) -> None:
    assert parse_tcp_address(text) == address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8080", TCPAddress("127.0.0.1", 8080)),
        (":8080", TCPAddress("127.0.0.1", 8080)),
        ("localhost:3000", TCPAddress("localhost", 3000)),
        ("/run/app.sock", UnixAddress("/run/app.sock")),
        ("./app.sock", UnixAddress("./app.sock")),
        ("unix:app.sock", UnixAddress("app.sock")),
        ("unix:8080", UnixAddress("8080")),
    ],
)
def test_parse_address(text: str, address: object) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("example.com", "'example.com' has no port: write HOST:PORT, such as 127.0.0.1:8080"),
        ("a:65536", "'65536' is not a valid port: write a number from 0 to 65535"),
        ("a:-1", "'-1' is not a valid port: write a number from 0 to 65535"),
        ("a:٢٢", "'٢٢' is not a valid port: write a number from 0 to 65535"),
        (
            "::1:22",
            "'::1:22' has several colons: write HOST:PORT, and an IPv6 host in brackets as in [::1]:8080",
        ),
        ("[::g]:22", "'::g' is not a valid IPv6 address: write it like ::1"),
        (
            "127.0.0.300:22",
            "'127.0.0.300' is not a valid IPv4 address: write four numbers like 127.0.0.1",
        ),
        (
            "a b:22",
            "'a b' is not a valid host: write a name like example.com or an address like 127.0.0.1",
        ),
        ("http://a:80", "'http://a:80' is a URL: write HOST:PORT only, such as 127.0.0.1:8080"),
    ],
)
def test_parse_tcp_address_says_what_would_be_right(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        parse_tcp_address(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("example.com", ("example.com", None)),
        ("example.com:443", ("example.com", 443)),
        ("::1", ("::1", None)),
        ("[::1]", ("::1", None)),
        ("[::1]:443", ("::1", 443)),
    ],
)
def test_parse_public_address(text: str, expected: tuple[str, int | None]) -> None:
    assert parse_public_address(text) == expected


@pytest.mark.parametrize("text", ["", ":443", "a/b", "http://a", "[]", "[x]:1"])
def test_parse_public_address_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="write"):
        parse_public_address(text)


def test_a_written_ipv6_address_keeps_its_meaning() -> None:
    address = parse_tcp_address("[2001:DB8::1]:1")
    assert ipaddress.ip_address(address.host) == ipaddress.ip_address("2001:db8::1")


@pytest.mark.parametrize(
    ("host", "dialled"),
    [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("192.0.2.1", "192.0.2.1"), ("db", "db")],
)
def test_an_address_for_all_of_this_machine_is_dialled_as_one_of_it(
    host: str, dialled: str
) -> None:
    """NAT's own example has its database at 0.0.0.0, which Windows does not let anybody connect to."""
    assert TCPAddress(host, 3309).dialled_host == dialled
