"""The DNS records without which no visitor finds a name: which they are, and whether they are there."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.hostnames import label_below
from trionat.log import get_logger

if TYPE_CHECKING:
    from trionat.address import TCPAddress

log = get_logger(__name__)

_WAIT: Final = 10.0
"""Seconds for one answer."""

LOOK_INTERVAL: Final = 60.0
"""Seconds until the next look, as long as something is wrong: whoever corrects it wants to know whether it is right now."""


def needed(domain: str, public: TCPAddress) -> tuple[str, ...]:
    """Return the records that lead here, as a zone file has them: that of all labels below the domain, and that of the domain itself, which no wildcard covers. None where the domain is an address."""
    if _is_address(domain):
        return ()
    if _is_address(public.host):
        kind = _kind(public.host)
        return f"*.{domain}. {kind} {public.host}", f"{domain}. {kind} {public.host}"
    if public.host == domain:
        return f"*.{domain}. CNAME {domain}.", f"{domain}. A (the address of this server)"
    # Not CNAME for the domain itself: it may have other records, and none may stand beside a CNAME.
    return f"*.{domain}. CNAME {public.host}.", f"{domain}. A (the address of {public.host})"


def record_of(name: str, domain: str, public: TCPAddress) -> str | None:
    """Return the record that leads a name here, below the domain or elsewhere; None where it is an address."""
    if _is_address(name):
        return None
    records = needed(domain, public)
    if records and label_below(name, domain) is not None:
        return records[0]
    if records and name == domain:
        return records[1]
    if _is_address(public.host):
        return f"{name}. {_kind(public.host)} {public.host}"
    return f"{name}. CNAME {public.host}."


def _kind(address: str) -> str:
    return "A" if ipaddress.ip_address(address).version == 4 else "AAAA"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def watch(domain: str, public: TCPAddress) -> None:
    """Look whether visitors find the names, and log what is wrong; again until all is right, which is logged as well."""
    if _is_address(domain) or _is_loopback(public.host):
        return
    told: list[WrongRecord] = []
    while wrong := await find_wrong(domain, public):
        for one in wrong:
            if one not in told:
                log.warning(one.what, domain=domain, leads_to=one.leads_to, record=one.record)
        told = wrong
        await trio.sleep(LOOK_INTERVAL)
    log.info("names below the domain lead here", domain=domain)


def _is_loopback(host: str) -> bool:
    """Tell whether an address is for this machine alone: nobody looks for it in the domain name system."""
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


@attrs.frozen
class WrongRecord:
    """What is wrong with a record, which it should be, and where it leads."""

    what: str
    record: str
    leads_to: str | None = None


async def find_wrong(domain: str, public: TCPAddress) -> list[WrongRecord]:
    """Look at all records. Ends within a while, whatever the name server does."""
    below, bare = needed(domain, public)
    if not (own := await _look_up(public.host)):
        what = "the server's own name (PublicAddr) leads nowhere, so neither clients nor visitors find it: make this DNS record"
        record = bare if public.host == domain else f"{public.host}. A (the address of this server)"
        return [WrongRecord(what, record)]
    wrong: list[WrongRecord] = []
    label = f"check-{secrets.token_hex(4)}"  # nobody has it, so it is the wildcard that answers
    found = await _look_up(f"{label}.{domain}")
    if not found:
        wrong.append(
            WrongRecord("names below the domain lead nowhere: make this DNS record", record=below)
        )
    elif not found & own:
        what = "names below the domain lead elsewhere: no visitor comes here by them, and no authority gives a certificate"
        wrong.append(WrongRecord(what, below, ", ".join(sorted(found))))
    found = await _look_up(domain)
    if not found:
        what = "the domain itself leads nowhere, so services with https: at a visit port have no certificate: make this DNS record"
        wrong.append(WrongRecord(what, bare))
    elif not found & own:
        what = "the domain itself leads elsewhere, so services with https: at a visit port have no certificate"
        wrong.append(WrongRecord(what, bare, ", ".join(sorted(found))))
    return wrong


async def _look_up(host: str) -> set[str]:
    with trio.move_on_after(_WAIT):  # noqa: ASYNC912 - a lookup is one
        try:
            found = await trio.socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return set()
        return {str(entry[4][0]) for entry in found}
    return set()
