"""Networks: as people write them, sets of them, and the one that stands for whoever is behind an address.

Addresses are numeric texts as the system tells them: IPv4 in IPv6 notation and the zone of a link-local address are understood.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

import attrs

from trionat.text import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
"""Addresses that have a beginning in common; `parse_network` reads one."""

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
"""IPv4 in the notation of IPv6 (RFC 4291 2.5.5.2)."""


def parse_network(text: str) -> Network:
    """Read a network such as `192.0.2.0/24` or `2001:db8::/32`; an address alone stands for itself.

    One of IPv4 in the notation of IPv6, such as `::ffff:192.0.2.0/120`, is that of IPv4.

    Raises:
        ValueError: It is neither, or has bits set behind its prefix; the message says what would be right.
    """
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{quoted(text)} is not a valid network: write it like 192.0.2.0/24, 2001:db8::/32 or 192.0.2.7"
        ) from None
    if ipaddress.ip_address(text.partition("/")[0]) != network.network_address:
        # Pythons differ in how they write ::ffff:7f00:0, and nobody means it so.
        meant = write_network(_plain_network(network))
        raise ValueError(f"{quoted(text)} is not a valid network: did you mean {meant}?")
    return _plain_network(network)


def _plain_network(network: Network) -> Network:
    """Addresses of IPv4 are told as such (`_parse_host`), so a network of them in the notation of IPv6 would match nothing."""
    if not isinstance(network, ipaddress.IPv6Network) or not network.subnet_of(_MAPPED):
        return network
    address = int(network.network_address) & 0xFFFF_FFFF
    return ipaddress.IPv4Network((address, network.prefixlen - _MAPPED.prefixlen))


_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
"""Behind a gateway, the address of IPv4 that is in the last bits (RFC 6052 2.1)."""

_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")
"""The same without a gateway, of long ago (RFC 4291 2.5.5.1)."""

_TRANSLATED: Final = ipaddress.IPv6Network("::ffff:0:0:0/96")
"""The same as a translator writes it (RFC 2765 2.1)."""

_SPECIAL: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            "192.0.0.0/24",  # of protocols: RFC 6890 2.1
            "192.88.99.0/24",  # a relay to IPv6, of long ago: RFC 7526
            "64:ff9b:1::/48",  # behind a gateway of one's own: RFC 8215
            "100:0:0:1::/64",  # nobody's: RFC 9780
            "3fff::/20",  # of documents: RFC 9637
            "5f00::/16",  # instructions to routers: RFC 9602
        ),
    )
)
"""What Python takes for public, or some versions that we run on do."""


def is_public(host: str) -> bool:
    """Tell whether an address is one of the Internet, and of one machine there: not private, of this machine or link, shared, or for something else.

    An address of IPv6 that stands for one of IPv4 is what that is.
    """
    address = _parse_host(host)
    if isinstance(address, ipaddress.IPv6Address):
        if "%" in host or address.is_site_local:
            return False
        inner = address.sixtofour or (address.teredo[1] if address.teredo else None)
        if any(address in network for network in (_NAT64, _COMPATIBLE, _TRANSLATED)):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(str(inner))
    if any(address in network for network in _SPECIAL):  # of the other version, it is in none
        return False
    return address.is_global and not address.is_multicast


def write_network(network: Network) -> str:
    """Return what `parse_network` takes; of a single address that alone."""
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def _parse_host(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped


def plain_host(host: str) -> str:
    """Return an IPv4 address as such where a socket for IPv6 tells it in IPv6's form (RFC 4291 2.5.5.2)."""
    return host.removeprefix("::ffff:") if "." in host else host


def network_of(host: str) -> str:
    """Return what stands for all addresses of one party: an IPv4 address itself, of an IPv6 address its /64.

    A single home has a /64 at least (RFC 6177), and takes a new address in it whenever it likes.
    """
    if ":" not in host:
        return host
    address = _parse_host(host)
    if address.version == 4:
        return str(address)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


@attrs.define(eq=False, init=False)
class Networks:
    """A set of networks; `in` tells whether an address belongs to one of them, however many there are."""

    _prefixes: dict[tuple[int, int], set[int]]
    """Network addresses without their last bits, by version and number of these."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._prefixes = {}
        for network in map(_plain_network, networks):
            rest = network.max_prefixlen - network.prefixlen
            prefixes = self._prefixes.setdefault((network.version, rest), set())
            prefixes.add(int(network.network_address) >> rest)

    def __bool__(self) -> bool:
        return bool(self._prefixes)

    def __contains__(self, host: str) -> bool:
        address = _parse_host(host)
        number = int(address)
        return any(
            version == address.version and number >> rest in prefixes
            for (version, rest), prefixes in self._prefixes.items()
        )


@attrs.frozen
class Admittance:
    """Who may come in: whom `deny` does not have, and of these, where `allow` names anybody, only who is in it."""

    allow: Networks
    deny: Networks

    def includes(self, host: str) -> bool:
        """Tell whether an address may come in."""
        if not self.allow and not self.deny:  # most often; saves reading the address
            return True
        return host not in self.deny and (not self.allow or host in self.allow)
