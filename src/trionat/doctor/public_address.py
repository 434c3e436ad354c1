"""Whether the address that stands in tickets leads to this server."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

import trio

from trionat.doctor.finding import Finding, fine, unknown, warning, wrong
from trionat.errors import PeerError
from trionat.server.state_folder import is_self_signed
from trionat.transport.certificate import fingerprint, first_certificate
from trionat.transport.deadline import deadline
from trionat.transport.dial import is_localhost, is_numeric, look_up, reach
from trionat.transport.tls import client_context, connect_tls, peer_fingerprint

if TYPE_CHECKING:
    from trionat.address import TCPAddress
    from trionat.doctor.host import Host

_PATIENCE: Final = 5.0
"""Seconds for one address."""

_FROM_OUTSIDE: Final = "run trionat doctor TICKET on another machine: only from outside can be seen whether the firewall is open"


async def check_public_address(host: Host) -> list[Finding]:
    """Look it up, and look at what each address shows, while the server is up."""
    public = await trio.to_thread.run_sync(host.public)
    if public is None:
        return [unknown("it is found at the first start, or named by PublicAddr (--public-addr)")]
    found: list[Finding] = []
    if _is_private(public.host):
        found.append(
            warning(
                f"{public.host} cannot be reached from outside, and stands in tickets",
                "set PublicAddr (--public-addr), unless all clients and visitors are in this network",
            )
        )
    with deadline(_PATIENCE, f"no name server told of {public} within {_PATIENCE:g} s"):
        try:
            hosts = await look_up(public)
        except PeerError as error:
            return [
                wrong(
                    f"{public.host} leads nowhere: {str(error).rpartition(': ')[2]}",
                    "make its DNS record (A or AAAA), or correct PublicAddr: it stands in every ticket",
                )
            ]
    if not host.is_up:
        return [*found, unknown(f"{public}: the server is not up, so nobody answers there")]
    try:
        shown = await trio.to_thread.run_sync(_own_fingerprint, host)
    except (OSError, ValueError) as error:
        return [*found, unknown(f"{public}: the server's own certificate cannot be read: {error}")]
    return found + [await _look(public, each, shown) for each in hosts]


async def _look(public: TCPAddress, host: str, own: bytes) -> Finding:
    try:
        with deadline(_PATIENCE, f"no answer within {_PATIENCE:g} s"):
            endpoint = await connect_tls(
                await reach(public, host), client_context(pinned=True), public.host
            )
    except PeerError as error:
        return unknown(
            f"{public} ({host}) cannot be reached from the server itself: {str(error).rpartition(': ')[2]}",
            f"with some routers that has to be so: {_FROM_OUTSIDE}",
        )
    shown = peer_fingerprint(endpoint)
    endpoint.close()
    if shown == own:
        return fine(f"{public} ({host}) leads to this server")
    return wrong(
        f"{public} ({host}) leads to another server, which shows another certificate",
        "correct PublicAddr, its DNS record, or what passes connections on: tickets lead there",
    )


def _own_fingerprint(host: Host) -> bytes:
    configured = None if is_self_signed(host.folder) else host.config.certificate
    file = configured or host.folder / "server.crt"
    return fingerprint(first_certificate(file.read_text()))


def _is_private(host: str) -> bool:
    if is_localhost(host):
        return True
    return is_numeric(host) and not ipaddress.ip_address(host).is_global
