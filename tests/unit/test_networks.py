"""Networks, and who belongs to them."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trionat.networks import (
    Admittance,
    Networks,
    is_public,
    network_of,
    parse_network,
    plain_host,
    write_network,
)

MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
ANY = st.ip_addresses().flatmap(
    lambda address: st.integers(0, address.max_prefixlen).map(
        lambda length: ipaddress.ip_network((address, length), strict=False)
    )
)


def networks(*texts: str) -> Networks:
    return Networks(map(parse_network, texts))


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_the_network_of_an_address(host: str, network: str) -> None:
    assert network_of(host) == network


def test_plain_hosts() -> None:
    assert plain_host("::ffff:192.0.2.7") == "192.0.2.7"
    for host in ("192.0.2.7", "::1", "::ffff:0:1"):
        assert plain_host(host) == host


@pytest.mark.parametrize(
    ("host", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::8.8.8.8", True),
        ("::ffff:0:8.8.8.8", True),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:0:10.0.0.1", False),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b:1::10.0.0.1", False),
        ("64:ff9b:1:ffff:ffff::8.8.8.8", False),
        ("192.0.0.8", False),
        ("192.88.99.1", False),
        ("::ffff:192.0.0.8", False),
        ("100:0:0:1::1", False),
        ("3fff::1", False),
        ("3fff:fff::1", False),
        ("5f00::1", False),
        ("224.0.0.1", False),
        ("ff02::1", False),
        ("fec0::1", False),
        ("2606:4700::1111%eth0", False),
    ],
)
def test_what_is_public(host: str, *, public: bool) -> None:
    """On every Python: older ones know fewer networks that are for something else."""
    assert is_public(host) == public


@given(ANY)
def test_a_network_reads_what_it_writes(
    network: ipaddress.IPv4Network | ipaddress.IPv6Network,
) -> None:
    if network.version == 6 and network.subnet_of(MAPPED):
        return
    assert parse_network(write_network(network)) == network
    assert parse_network(str(network)) == network


@pytest.mark.parametrize("text", ["", "x", "192.0.2.0/33", "192.0.2/24", "::/129", "192.0.2.0/24/8", "1"])  # fmt: skip
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"is not a valid network: write it like 192\.0\.2\.0/24, "
    ):
        parse_network(text)


def belongs(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    network: ipaddress.IPv4Network | ipaddress.IPv6Network,
) -> bool:
    """Tell what a user expects: an IPv4 address is one in either notation, and so is a network of nothing else."""
    address = getattr(address, "ipv4_mapped", None) or address
    if network.version == 6 and network.subnet_of(MAPPED) and address.version == 4:
        return ipaddress.IPv6Address(int(MAPPED[0]) + int(address)) in network
    return address in network


@given(st.lists(ANY, max_size=5), st.ip_addresses())
@example([MAPPED], ipaddress.ip_address("192.0.2.7"))
@example([ipaddress.ip_network("::ffff:192.0.2.0/120")], ipaddress.ip_address("::ffff:192.0.2.7"))
@example([ipaddress.ip_network("::/0")], ipaddress.ip_address("192.0.2.7"))
def test_a_set_has_what_one_of_its_networks_has(
    members: list[ipaddress.IPv4Network | ipaddress.IPv6Network],
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    assert (str(address) in Networks(members)) == any(belongs(address, each) for each in members)
    # A network with all of IPv4 in it, and more, is one of IPv6 all the same.
    inside = [str(each[0]) for each in members if each.version == 4 or not each.overlaps(MAPPED)]
    assert all(host in Networks(members) for host in inside)


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_a_network_of_ipv4_in_the_notation_of_ipv6_is_that_of_ipv4(
    address: ipaddress.IPv4Address, length: int
) -> None:
    network = ipaddress.IPv4Network((address, length), strict=False)
    mapped = ipaddress.IPv6Network((f"::ffff:{network.network_address}", 96 + length))
    assert parse_network(str(mapped)) == network
    assert str(address) in Networks([mapped])  # as a program that embeds a server may bring it
    assert f"::ffff:{address}" in Networks([mapped])


def test_the_network_that_matched_nobody() -> None:
    assert "127.0.0.1" in networks("::ffff:127.0.0.0/104")
    assert "127.0.0.1" in networks("::ffff:127.0.0.1")
    assert write_network(parse_network("::ffff:127.0.0.0/104")) == "127.0.0.0/8"
    assert "127.0.0.1" not in networks("::/0")
    with pytest.raises(ValueError, match=r"did you mean 127\.0\.0\.0/8\?"):
        parse_network("::ffff:127.0.0.1/104")


def test_who_is_welcome() -> None:
    some, one = networks("192.0.2.0/24", "2001:db8::/32"), networks("192.0.2.7", "fe80::/10")
    everybody = Admittance(Networks(), Networks())
    assert everybody.includes("203.0.113.1")
    assert everybody.includes("fe80::1%lo")
    only = Admittance(some, Networks())
    assert [only.includes(host) for host in ("192.0.2.7", "::ffff:192.0.2.7", "2001:db8::1")] == [
        True
    ] * 3
    assert not only.includes("192.0.3.7")
    assert not only.includes("2001:db9::1")
    but = Admittance(Networks(), one)
    assert but.includes("192.0.2.8")
    assert not but.includes("192.0.2.7")
    assert not but.includes("fe80::1%lo")
    both = Admittance(some, one)  # who is denied is denied
    assert both.includes("192.0.2.8")
    assert not both.includes("192.0.2.7")
    assert not both.includes("203.0.113.1")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("::ffff:127.0.0.0/104", "127.0.0.0/8"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ],
)
def test_ipv4_in_ipv6_notation_is_ipv4(text: str, plain: str) -> None:
    assert write_network(parse_network(text)) == plain
