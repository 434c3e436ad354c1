"""Whether the server's name leads somewhere, and where."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import trio

from trionat.doctor.finding import Finding, fine, wrong
from trionat.transport.dial import is_localhost, is_numeric

if TYPE_CHECKING:
    from trionat.doctor.peer import Peer

_WAIT: Final = 10.0
"""Seconds for all answers of name servers."""

_RECORDS: Final = ((socket.AF_INET, "A"), (socket.AF_INET6, "AAAA"))


async def check_dns(peer: Peer) -> list[Finding]:
    """Look up A and AAAA of the server's host."""
    host = peer.control.host
    if is_numeric(host):
        peer.hosts = [host]
        return [fine(f"{host} is an address, which nobody has to look up")]
    if is_localhost(host):
        peer.hosts = ["127.0.0.1"]
        return [fine(f"{host} is this machine")]
    found: dict[str, list[str]] = {}
    failures: list[OSError | UnicodeError] = []

    async def ask(family: socket.AddressFamily, record: str) -> None:
        try:
            entries = await trio.socket.getaddrinfo(
                host, peer.control.port, family=family, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError) as error:
            failures.append(error)
        else:
            found[record] = list(dict.fromkeys(str(entry[4][0]) for entry in entries))

    with trio.move_on_after(_WAIT) as scope:
        async with trio.open_nursery() as nursery:
            for family, record in _RECORDS:
                nursery.start_soon(ask, family, record, name=f"look up {record}")
    peer.hosts = [each for record in found.values() for each in record]
    if peer.hosts:
        told = "; ".join(
            f"{record} {', '.join(found.get(record, ['none']))}" for _, record in _RECORDS
        )
        return [fine(f"{host}: {told}")]
    if scope.cancelled_caught:
        return [
            wrong(
                f"{host}: no name server answered within {_WAIT:g} s",
                "look at this machine's name servers (/etc/resolv.conf) and its network",
            )
        ]
    if any(getattr(error, "errno", None) == socket.EAI_AGAIN for error in failures):
        advice = (
            "no name server could be asked: look at /etc/resolv.conf, and at this machine's network"
        )
    else:
        advice = "is it spelled right? Else its DNS record (A or AAAA) is missing: make it, or use the server's address"
    reason = getattr(failures[0], "strerror", None) or str(failures[0])
    return [wrong(f"{host} leads nowhere: {reason}", advice)]
