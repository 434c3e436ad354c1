"""What is on the way to the server: proxies, and who changes addresses."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from trionat.config.values import UNENCRYPTED
from trionat.doctor.finding import Finding, fine, unknown, warning
from trionat.doctor.port import proxies_set

if TYPE_CHECKING:
    from trionat.address import TCPAddress
    from trionat.doctor.peer import Peer


def check_proxies(peer: Peer) -> list[Finding]:
    """Tell what is on the way: who changes addresses, and whether somebody could read along."""
    found: list[Finding] = []
    if (names := proxies_set()) and peer.reachable:
        found.append(fine(f"{names[0]} is set, and not needed: the server is reached without it"))
    if peer.examined is not None and peer.reachable:
        seen = peer.examined.client
        here = _own_host(peer.at(peer.reachable[0]))
        if here is not None and seen.rpartition(":")[0].strip("[]") != here:
            found.append(
                fine(
                    f"the server sees {seen}, and this machine is {here}: NAT or a proxy is on the way"
                )
            )
        else:
            found.append(fine(f"the server sees this machine as it is, {seen}"))
    if peer.config.tunnel_encryption == UNENCRYPTED:
        found.append(
            warning(
                "tunnels are not encrypted (TunnelEncryption): whoever is on the way can read what visitors send",
                "leave TunnelEncryption at tls, unless you trust that network",
            )
        )
    return found or [unknown(f"what the server sees is not known: {peer.why_not_examined}")]


def _own_host(address: TCPAddress) -> str | None:
    """Return the address from which this machine reaches another one; asks the kernel for the route, and sends nothing."""
    try:
        with socket.socket(
            socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_DGRAM
        ) as probe:
            probe.connect((address.host, address.port))
            return str(probe.getsockname()[0])
    except OSError:
        return None
