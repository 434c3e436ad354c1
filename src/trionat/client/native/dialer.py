"""The server as a client sees it: where it is, how it is known, as whom to log in, and how to connect to it."""

from __future__ import annotations

import ssl
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.client.native.known_servers import KnownServers, check_fingerprint
from trionat.errors import (
    ConfigError,
    ConnectionLostError,
    IdentityError,
    Problem,
    StartupError,
)
from trionat.fingerprint import format_fingerprint, parse_fingerprint
from trionat.log import get_logger
from trionat.protocol.client_hello import alpn_names
from trionat.protocol.ticket import Ticket
from trionat.text import NotTextError, decode_text, strip_around
from trionat.transport.deadline import deadline
from trionat.transport.dial import look_up, reach
from trionat.transport.endpoint import SocketEndpoint
from trionat.transport.tls import (
    client_context,
    connect_tls,
    lacks_authority,
    peer_fingerprint,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from trionat.address import TCPAddress
    from trionat.config.client import AuthConfig, ClientConfig
    from trionat.transport.tls_endpoint import TLSEndpoint

log = get_logger(__name__)

# Seconds for a second look at a server whose certificate does not check out; it comes on top of the timeout. Chosen.
_LOOK: Final = 2.0

# Addresses of a name that are remembered: as many as are tried. What else a name server tells in time is forgotten.
_MOST_UNWILLING: Final = 16


@attrs.frozen(kw_only=True)
class Server:
    """What a client was told of its server. `pin` is the fingerprint that it must show; without one, see `ServerDialer`."""

    control: TCPAddress
    tunnel: TCPAddress
    username: str
    password: str | None = attrs.field(default=None, repr=False)
    token: bytes | None = attrs.field(default=None, repr=False)
    caveats: tuple[str, ...] = ()
    pin: bytes | None = None


def find_ticket(config: ClientConfig) -> Ticket | None:
    """Return the ticket that a configuration holds or names the file of; None where it does neither.

    Reads the ticket file, so it blocks.

    Raises:
        ConfigError: the file cannot be read, or what is there is no ticket.
    """
    text, where = config.ticket, "ticket"
    if text is None and config.ticket_file is not None:
        where = str(config.ticket_file)
        try:
            text = decode_text(config.ticket_file.read_bytes())
        except NotTextError as error:
            reason = f"cannot read the ticket: {error}"
            raise ConfigError(Problem(where=where, reason=reason, line=error.line)) from None
        except OSError as error:
            raise ConfigError(
                Problem(where=where, reason=f"cannot read the ticket: {error.strerror or error}")
            ) from error
        if not strip_around(text):
            raise ConfigError(Problem(where=where, reason="the file is empty: a ticket goes there"))
    if text is None:
        return None
    try:
        return Ticket.decode(text)
    except ValueError as error:
        raise ConfigError(Problem(where=where, reason=str(error))) from error


def find_servers(config: ClientConfig, auth: AuthConfig) -> tuple[Server, ...]:
    """Return the servers that a configuration names, which all know the same user.

    A ticket says everything but for `servers`, which replace its addresses; what else is configured is for use without a ticket.

    Reads the ticket file, so it blocks.

    Raises:
        ConfigError: no server, or a ticket that is none.
    """
    pin = None if config.fingerprint is None else parse_fingerprint(config.fingerprint)
    ticket = find_ticket(config)
    if ticket is not None:
        return tuple(
            Server(
                control=address,
                tunnel=address,
                username=ticket.username,
                token=ticket.token,
                caveats=ticket.caveats,
                pin=pin or ticket.fingerprint,
            )
            for address in config.servers or ticket.addresses
        )
    addresses = config.servers or (config.controller_addr,)
    if None in addresses:
        reason = "no server: give the ticket that `trionat serve` printed, or set ControllerAddr (--controller-addr HOST:PORT)"
        raise ConfigError(
            Problem(where="configuration", key="Client.ControllerAddr", reason=reason)
        )
    return tuple(
        Server(
            control=address,
            tunnel=(config.tunnel_server_addr if len(addresses) == 1 else None) or address,
            username=auth.username or "",
            password=auth.password,
            pin=pin,
        )
        for address in addresses
        if address is not None
    )


@attrs.define(eq=False)
class ServerDialer:
    """Connects to the server, and lets nobody else pass for it.

    In this order: the pin; what `known_servers` has for the address; with TrustOnFirstUse, whatever it shows, which is then
    remembered; else a check by certificate authority and name. TLS sessions are resumed, which saves the server a signature
    for every tunnel. `route` is what the server has told of the way to the process that knows us, to which the next session has to come. `state_dir` is asked only where `known_servers` matters; without one no server is known from before, and one that is trusted is remembered as long as this lives.
    """

    server: Server
    timeout: float
    state_dir: Callable[[], Path] | None
    trust_on_first_use: bool = False
    ca_file: Path | None = None
    route: str | None = attrs.field(init=False, default=None)
    _pin: bytes | None = attrs.field(init=False)
    _context: ssl.SSLContext | None = attrs.field(init=False, default=None)
    _resumable: ssl.SSLSession | None = attrs.field(init=False, default=None)
    _unwilling: dict[str, None] = attrs.field(init=False, factory=lambda: {})

    def __attrs_post_init__(self) -> None:
        self._pin = self.server.pin

    async def look_up(self) -> list[str]:
        """Return the hosts of the server's control address; see `trionat.transport.dial.look_up`.

        Raises:
            ConnectionLostError: its name cannot be looked up.
            PeerTimeoutError: that took longer than `timeout` seconds.
        """
        address = self.server.control
        with deadline(self.timeout, f"no name server told of {address} within {self.timeout:g} s"):
            return await look_up(address)

    def put_last(self, host: str) -> None:
        """Of the hosts of its name, the server at this one does not want us."""
        self._unwilling.pop(host, None)
        self._unwilling[host] = None
        if len(self._unwilling) > _MOST_UNWILLING:
            del self._unwilling[next(iter(self._unwilling))]

    def in_order(self, hosts: Sequence[str]) -> list[str]:
        """Return hosts as they are to be tried: those that do not want us last, whichever said so last at the end."""
        last = list(self._unwilling)
        return sorted(hosts, key=lambda host: last.index(host) if host in last else -1)

    async def connect(
        self,
        address: TCPAddress,
        host: str | None = None,
        route: str | None = None,
        on_reached: Callable[[], None] = lambda: None,
    ) -> TLSEndpoint:
        """Return a connection to the server, at its control or its tunnel address; the caller owns it.

        `host` is one of `look_up`'s; without it the address is dialled by its name. `route` is what is asked for. `on_reached` is called when somebody has answered there,
        before it is known who.

        Raises:
            ConnectionLostError: it cannot be reached, or its TLS and ours do not agree.
            PeerTimeoutError: it did not answer within `timeout` seconds.
            IdentityError: whoever answered is not the server.
            StartupError: the file of known servers cannot be read or written.
        """
        try:
            with deadline(self.timeout, f"{address} did not answer within {self.timeout:g} s"):
                return await self._connect(address, host, route, on_reached)
        except ssl.SSLCertVerificationError as error:
            shown = await self._fingerprint_at(address, host)  # noqa: ASYNC120 - who cancels does not want to know
            told = error.verify_message.rstrip(".")
            say_who = (
                "Give --fingerprint with what `trionat serve` there shows"
                if shown is None
                else f"If `trionat serve` there shows {shown}, give --fingerprint {shown}"
            )
            by_authority = ", or --ca-file FILE with its authority" * lacks_authority(error)
            raise IdentityError(
                f"the server at {address} shows a certificate that does not check out: {told}. {say_who}{by_authority};"
                " --trust-on-first-use takes it unseen and remembers it"
            ) from error

    async def connect_plain(self, address: TCPAddress, host: str | None = None) -> SocketEndpoint:
        """Return a connection without TLS, for a tunnel; the caller owns it. Nothing secret may be sent on it. `host` is as in `connect`.

        Raises:
            ConnectionLostError: it cannot be reached.
            PeerTimeoutError: it did not answer within `timeout` seconds.
        """
        with deadline(self.timeout, f"{address} did not answer within {self.timeout:g} s"):
            return SocketEndpoint(await reach(address, host))

    async def _connect(
        self,
        address: TCPAddress,
        host: str | None,
        route: str | None,
        on_reached: Callable[[], None],
    ) -> TLSEndpoint:
        if self._context is None:
            if self._pin is None and self.state_dir is not None:
                known = KnownServers.of(self.state_dir())
                self._pin = await trio.to_thread.run_sync(known.lookup, self.server.control)
            pinned = self._pin is not None or self.trust_on_first_use
            try:
                self._context = await trio.to_thread.run_sync(
                    partial(client_context, pinned=pinned, ca_file=self.ca_file)
                )
            except OSError as error:
                raise StartupError(
                    f"{self.ca_file}: cannot use it as certificate authorities: {error.strerror or error}"
                ) from error
        sock = await reach(address, host)
        on_reached()
        self._context.set_alpn_protocols(alpn_names(route))
        try:
            endpoint = await connect_tls(sock, self._context, address.host, session=self._resumable)
        except ConnectionLostError as error:
            raise ConnectionLostError(f"{address}: {error}") from error
        try:
            await self._check(endpoint, address)
        except BaseException:
            endpoint.close()
            raise
        return endpoint

    async def _check(self, endpoint: TLSEndpoint, address: TCPAddress) -> None:
        if self._pin is not None:
            check_fingerprint(self._pin, peer_fingerprint(endpoint), address)
        elif self.trust_on_first_use:
            self._pin = peer_fingerprint(endpoint)
            file = None
            if self.state_dir is not None:
                known = KnownServers.of(self.state_dir())
                await trio.to_thread.run_sync(known.remember, self.server.control, self._pin)
                file = str(known.path)
            log.warning(
                "trusting this server from now on, unseen (TrustOnFirstUse)",
                address=str(address),
                fingerprint=format_fingerprint(self._pin),
                file=file,
            )

    async def _fingerprint_at(self, address: TCPAddress, host: str | None) -> str | None:
        """Look at what a server shows, and send nothing. None where that fails or takes long: it must not hide what was wrong before."""
        with trio.move_on_after(_LOOK):  # noqa: ASYNC912 - reach waits for what is not here
            try:
                endpoint = await connect_tls(
                    await reach(address, host), client_context(pinned=True), address.host
                )
            except (OSError, ConnectionLostError):
                return None
            shown = format_fingerprint(peer_fingerprint(endpoint))
            endpoint.close()
            return shown
        return None

    def remember_session(self, endpoint: TLSEndpoint) -> None:
        """Resume this connection's TLS session from now on; to be called when something was received on it.

        In TLS 1.3 the server sends what that takes after the handshake (RFC 8446 4.6.1).
        """
        self._resumable = endpoint.tls.session or self._resumable
