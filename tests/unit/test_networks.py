"""Networks, and who belongs to them."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionat.networks import (
    Admittance,
    Networks,
    network_of,
    parse_network,
    plain_host,
    write_network,
)

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


@given(ANY)
def test_a_network_reads_what_it_writes(
    network: ipaddress.IPv4Network | ipaddress.IPv6Network,
) -> None:
    assert parse_network(write_network(network)) == network
    assert parse_network(str(network)) == network


@pytest.mark.parametrize("text", ["", "x", "192.0.2.0/33", "192.0.2/24", "::/129", "192.0.2.0/24/8", "1"])  # fmt: skip
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no network: write it like 192\.0\.2\.0/24, "):
        parse_network(text)


@given(st.lists(ANY, max_size=5), st.ip_addresses())
def test_a_set_has_what_one_of_its_networks_has(
    members: list[ipaddress.IPv4Network | ipaddress.IPv6Network],
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    mapped = getattr(address, "ipv4_mapped", None) or address
    assert (str(address) in Networks(members)) == any(mapped in each for each in members)
    inside = [str(each.network_address) for each in members if not _is_mapped(each)]
    assert all(host in Networks(members) for host in inside)


def _is_mapped(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    return getattr(network.network_address, "ipv4_mapped", None) is not None


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
