"""Whether it is a trionat that answers, and the right one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.client.native.dialer import ServerDialer
from trionat.client.native.known_servers import KnownServers
from trionat.doctor.finding import Finding, fine, warning, wrong
from trionat.errors import IdentityError, PeerError, StartupError
from trionat.fingerprint import format_fingerprint
from trionat.log import escape
from trionat.protocol.client_hello import alpn_names
from trionat.transport.deadline import deadline
from trionat.transport.dial import dial, reach
from trionat.transport.tls import client_context, connect_tls, peer_fingerprint

if TYPE_CHECKING:
    from trionat.doctor.peer import Peer

_PATIENCE: Final = 8.0
"""Seconds for TLS with a server that answers."""

_BANNER: Final = 2.0
"""Seconds for which another program may say what it is."""

_BANNER_BYTES: Final = 60

_ANOTHER_PROGRAM: Final = "name the control port of a trionat server (8007 unless it was changed), or stop that program there"


async def check_trionat(peer: Peer) -> list[Finding]:
    """Shake hands, whoever it is, and send nothing. Another program is asked what it is."""
    address, host = peer.control, peer.reachable[0]
    context = client_context(pinned=True)
    context.set_alpn_protocols(alpn_names(None))
    try:
        with deadline(_PATIENCE, f"{address} does not speak TLS within {_PATIENCE:g} s"):
            endpoint = await connect_tls(await reach(address, host), context, address.host)
    except PeerError as error:
        banner = await _banner(peer, host)
        said = f"; it says {banner!r}" if banner else ""
        reason = str(error).partition(": give the")[0]
        return [wrong(f"{peer.at(host)} is no trionat: {reason}{said}", _ANOTHER_PROGRAM)]
    peer.shown = peer_fingerprint(endpoint)
    tls = endpoint.tls.version() or "TLS"
    endpoint.close()
    return [
        fine(f"{address} speaks {tls.replace('v', ' ')} and shows {format_fingerprint(peer.shown)}")
    ]


async def _banner(peer: Peer, host: str) -> str:
    """Return how another program greets whoever connects, or answers what it takes for a request."""
    heard = b""
    with trio.move_on_after(_BANNER):  # noqa: ASYNC912 - what is on this machine may answer at once
        try:
            with trio.socket.from_stdlib_socket(await dial(peer.at(host))) as sock:
                with trio.move_on_after(_BANNER / 2):
                    heard = await sock.recv(_BANNER_BYTES)
                if not heard:
                    await sock.send(b"HEAD / HTTP/1.0\r\n\r\n")
                    heard = await sock.recv(_BANNER_BYTES)
        except OSError:
            pass
    first = heard.decode(errors="replace").splitlines()
    return escape(first[0]) if first else ""


async def check_identity(peer: Peer) -> list[Finding]:
    """Check what it shows, as the client does: by the pin, by what is known of it, or by authority and name."""
    config, shown = peer.config, peer.shown
    known = peer.server.pin
    where = "the ticket" if config.fingerprint is None else "Fingerprint"
    if known is None:
        try:
            servers = KnownServers.of(config.effective_state_dir)
        except StartupError:  # there is no folder
            servers = None
        if servers is not None:
            known = await trio.to_thread.run_sync(servers.lookup, peer.control)
            where = str(servers.path)
    if known is not None and shown is not None:
        peer.pin = known
        if known == shown:
            return [fine(f"the fingerprint is that of {where}: nobody is in between")]
        return [
            wrong(
                f"{peer.control} shows {format_fingerprint(shown)}, and {where} has {format_fingerprint(known)}",
                "it is another server, somebody is in between, or it has a new certificate: ask its operator for a new ticket or the fingerprint",
            )
        ]
    if config.trust_on_first_use and shown is not None:
        peer.pin = shown
        return [
            warning(
                f"{peer.control} is not known yet, and connect would trust what it shows now (TrustOnFirstUse)",
                f"compare it with what `trionat serve` there shows: {format_fingerprint(shown)}",
            )
        ]
    dialer = ServerDialer(
        attrs.evolve(peer.server, pin=None),
        config.connect_timeout,
        lambda: config.effective_state_dir,
        ca_file=config.ca_file,
    )
    try:
        endpoint = await dialer.connect(peer.control, peer.reachable[0])
    except IdentityError as error:
        return [wrong(str(error), "")]
    endpoint.close()
    return [fine(f"an authority vouches for {peer.control.host}")]
