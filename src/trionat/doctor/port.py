"""Whether the server's control port can be reached, at each of its addresses."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

import trio

from trionat.doctor.finding import Finding, fine, unknown, wrong
from trionat.transport.dial import dial

if TYPE_CHECKING:
    from trionat.doctor.peer import Peer

PATIENCE: Final = 5.0
"""Seconds for one connection: TCP has asked three times by then."""

_NO_WAY: Final = {errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
"""That this machine does not have that kind of address."""

PROXIES: Final = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")


async def check_port(peer: Peer) -> list[Finding]:
    """Connect to each address, all at once."""
    found: dict[str, Finding] = {}

    async def ask(host: str) -> None:
        found[host] = await _connect(peer, host)

    async with trio.open_nursery() as nursery:
        for host in peer.hosts:
            nursery.start_soon(ask, host, name=f"connect to {host}")
    return [found[host] for host in peer.hosts]


async def _connect(peer: Peer, host: str) -> Finding:
    address, began = peer.at(host), trio.current_time()
    try:
        with trio.fail_after(PATIENCE):
            (await dial(address)).close()
    except trio.TooSlowError:
        return wrong(
            f"{address}: no answer within {PATIENCE:g} s",
            f"a firewall, there or here, lets nothing through to port {address.port}: open it{_beside_a_proxy()}",
        )
    except ConnectionRefusedError:
        return wrong(
            f"{address}: Connection refused",
            f"is `trionat serve` up there, and is {address.port} its control port? A firewall may refuse as well{_beside_a_proxy()}",
        )
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _NO_WAY and len(peer.hosts) > 1:
            return unknown(f"{address}: {reason}: this machine has no such way out")
        return wrong(f"{address}: {reason}", "look at this machine's network and its routes")
    peer.reachable.append(host)
    return fine(f"{address} answers after {1000 * (trio.current_time() - began):.0f} ms")


def proxies_set() -> list[str]:
    """Return the variables of this environment that name a proxy."""
    return [name for each in PROXIES for name in (each, each.lower()) if os.environ.get(name, "")]


def _beside_a_proxy() -> str:
    names = proxies_set()
    return f"; {names[0]} is set here, and trionat does not go through it" if names else ""
