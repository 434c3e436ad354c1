"""The ports of names, 80 and 443: what a connection wants to see there, before it is a visitor of anybody.

Nothing of the ClientHello is taken before it is known who ends TLS: a service that does so itself gets all of it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import trio

from trionat.errors import ConnectionLostError, PeerError, RemoteProtocolError
from trionat.log import get_logger
from trionat.protocol.client_hello import CLIENT_HELLO_BYTES, parse_client_hello
from trionat.protocol.http.fields import HeadReader, HttpError
from trionat.protocol.http.head import RequestHead, parse_request
from trionat.protocol.messages import PublishKind
from trionat.server.certificates.challenges import ACME_PROTOCOL
from trionat.server.certificates.order import OrderError
from trionat.server.names.dispatcher import Arrival
from trionat.server.refusals import Bound
from trionat.transport.deadline import deadline
from trionat.transport.endpoint import SocketEndpoint
from trionat.transport.isolation import isolated, leaves
from trionat.transport.peek import peek
from trionat.transport.tls import accept_tls
from trionat.transport.tls_endpoint import TLSEndpoint

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from trionat.address import TCPAddress
    from trionat.config.server import ServerConfig
    from trionat.protocol.client_hello import ClientHello
    from trionat.protocol.messages import Publish
    from trionat.server.certificates.challenges import Challenges
    from trionat.server.certificates.store import CertificateStore, Entry
    from trionat.server.connection_log import ConnectionLog
    from trionat.server.handshakes import PendingHandshakes
    from trionat.server.names.dispatcher import Dispatcher
    from trionat.server.refusals import RefusalCounters
    from trionat.server.visitors.ports import VisitPoint
    from trionat.transport.endpoint import Endpoint

log = get_logger(__name__)

HTTP2: Final = "h2"
"""By ALPN."""

_MOST_TOLD: Final = 1000
"""Names of which it is told that they get no HTTP/2."""

_UNRECOGNIZED_NAME: Final = 112
_INTERNAL_ERROR: Final = 80
"""Alerts of TLS (RFC 8446 6)."""


class PassOn(Protocol):
    """Takes over a connection, of which nothing was taken."""

    def __call__(
        self, connection: socket.socket, address: TCPAddress, visited: TCPAddress, *, is_tls: bool
    ) -> None:
        """It has come from `address`, and has dialled `visited`."""
        ...


_TO_NAME: Final = 0.3
"""Seconds for visitors to say what they want before another process takes over. Chosen: some round trips."""


@attrs.define(eq=False, kw_only=True)
class NameListener:
    """See the module. Each connection is served in a task of its own, those of banned addresses are closed unheard.

    `wait_for_certificate` is asked for a name that has none yet. Whoever names no server is shown the certificate of the domain. Connections are served in `nursery`. `passes_on` returns who takes connections for a name
    that another process of this server serves.
    """

    config: ServerConfig
    dispatcher: Dispatcher
    certificates: CertificateStore
    challenges: Challenges
    wait_for_certificate: Callable[[str], Awaitable[Entry]]
    handshakes: PendingHandshakes
    shuts_out: Callable[[str], bool]
    refusals: RefusalCounters
    connection_log: ConnectionLog
    nursery: trio.Nursery
    passes_on: Callable[[str], PassOn | None] | None = None
    _told: set[str] = attrs.field(init=False, factory=lambda: set())

    def take_config(self, config: ServerConfig) -> None:
        """This one counts from now on, for connections that come."""
        self.config = config
        self.handshakes.take_limits(config.max_handshakes, config.max_handshakes_per_address)
        self.dispatcher.take_config(config)

    async def wait_known(self) -> None:
        """Let visitors get through whose handshake has begun, for a moment: what they want is known then. Nobody is accepted meanwhile."""
        with trio.move_on_after(_TO_NAME):  # noqa: ASYNC912 - where some are left
            while len(self.handshakes):  # noqa: ASYNC110 - for a moment, at an upgrade
                await trio.sleep(0.01)

    def accept_https(
        self,
        connection: socket.socket,
        address: TCPAddress,
        visited: TCPAddress,
        point: VisitPoint | None = None,
    ) -> None:
        """Take over a connection from `address` that has dialled `visited`; with `point`, a visit port at which we end TLS."""
        self._accept(connection, address, partial(self._meet_tls, visited=visited, point=point))

    def accept_http(
        self, connection: socket.socket, address: TCPAddress, visited: TCPAddress
    ) -> None:
        """Take over a connection without TLS."""
        self._accept(connection, address, partial(self._meet_plain, visited=visited))

    def _accept(
        self,
        connection: socket.socket,
        address: TCPAddress,
        meet: Callable[..., Awaitable[None]],
    ) -> None:
        if self.shuts_out(address.host):
            self.refusals.counts[Bound.BAN] += 1
            connection.close()
            return
        scope = trio.CancelScope()
        self.handshakes.add(scope, address.host)
        self.nursery.start_soon(
            self._serve, connection, address, scope, meet, name=f"visitor of names from {address}"
        )

    async def _serve(
        self,
        connection: socket.socket,
        address: TCPAddress,
        scope: trio.CancelScope,
        meet: Callable[..., Awaitable[None]],
    ) -> None:
        identified = partial(self.handshakes.remove, scope)
        with isolated(log, "connection closed", address=str(address)), scope:
            try:
                await meet(connection, address, identified)
            except* PeerError as group:
                for error in leaves(group):
                    self.connection_log.closed(address, str(error))
            finally:
                identified()

    async def _meet_plain(
        self,
        connection: socket.socket,
        address: TCPAddress,
        identified: Callable[[], None],
        *,
        visited: TCPAddress,
    ) -> None:
        name = ""
        # Also where it will be sent on to https: it may ask for the answer to a challenge that another server has.
        if self.passes_on or self.dispatcher.shares_names:
            try:
                seconds = self.config.http_head_timeout
                with deadline(seconds, f"no request within {seconds:g} s"):
                    first = await peek(connection, self.config.http_head_bytes, self._first_of)
            except BaseException:
                connection.close()
                raise
            if isinstance(first, RequestHead):
                name = first.host
            if (
                isinstance(first, RequestHead)
                and self.passes_on
                and self.dispatcher.challenge(first.target.decode("ascii")) is None
                and (pass_on := self.passes_on(name)) is not None
            ):
                pass_on(connection, address, visited, is_tls=False)
                return
        arrival = Arrival(address=address, visited=visited, scheme="http", name=name)
        await self.dispatcher.serve(SocketEndpoint(connection), arrival, identified)

    def _first_of(self, first: bytes) -> RequestHead | HttpError | None:
        """Return the first request on a connection, or what is wrong with it; None: there has to be more of it."""
        try:
            head, _ = HeadReader(self.config.http_head_bytes).feed(first)
            if head is None:
                if len(first) < self.config.http_head_bytes:
                    return None
                return HttpError(431, "the head is too long")
            return parse_request(head, most_fields=self.config.http_head_fields)
        except HttpError as error:
            return error

    async def _meet_tls(
        self,
        connection: socket.socket,
        address: TCPAddress,
        identified: Callable[[], None],
        *,
        visited: TCPAddress,
        point: VisitPoint | None,
    ) -> None:
        seconds = self.config.handshake_timeout
        with deadline(
            seconds, f"the visitor did not finish the TLS handshake within {seconds:g} s"
        ):
            met = await self._shake_hands(connection, address, visited, point)
        if met is None:
            return
        endpoint, entry, host, publish, name = met
        is_raw = entry is None or (host is not None and _speaks_http2(endpoint))
        # A handshake takes as long as the visitor likes. Behind this nobody asks for a password that the owner wants meanwhile, nor whose the point is by now.
        if (
            host is not None
            and (is_raw or point is not None)
            and (host.publish is None or host.publish is not publish)
        ):
            endpoint.close()
            raise RemoteProtocolError(
                f"the service at {host.id} went, or was published otherwise, during the TLS handshake"
            )
        if entry is None or is_raw:
            identified()
            if not await self.dispatcher.acceptor.may_admit():
                endpoint.close()
                return
            assert host is not None  # noqa: S101 - for type checkers
            self._take(host, endpoint, address, visited)
            return
        arrival = Arrival(
            address=address,
            visited=visited,
            scheme="https",
            name=name,
            covers=entry.certificate.is_for if point is None else lambda asked: asked == name,
            point=point,
        )
        await self.dispatcher.serve(endpoint, arrival, identified)

    def _take(
        self, host: VisitPoint, endpoint: Endpoint, address: TCPAddress, visited: TCPAddress
    ) -> None:
        """Let a visitor in of whom nobody here sees requests, if its service's owner wants it."""
        restrictions, denial = host.restrictions, None
        if restrictions is not None:
            denial = restrictions.denial(address.host) or restrictions.ask(address.host, "connects")
        if denial is None:
            self.dispatcher.acceptor.take(host, endpoint, address, visited)
        else:
            endpoint.close()
            self.connection_log.closed(address, denial.text)

    async def _shake_hands(
        self,
        connection: socket.socket,
        address: TCPAddress,
        visited: TCPAddress,
        point: VisitPoint | None,
    ) -> tuple[Endpoint, Entry | None, VisitPoint | None, Publish | None, str] | None:
        """Return the connection without its TLS, the certificate that was shown, what it visits, as far as that is known, how that was published at the time, and the name that it wants; None where it has been answered, or passed on.

        At a visit port that is the domain, and nothing else: whoever has the port could be any other name there, and get its cookies. One that is passed through is returned as it is, without a certificate. Closes the connection where it fails.

        Raises:
            PeerError: the visitor is gone, or wants what is not here.
        """
        try:
            hello: ClientHello | RequestHead = await peek(
                connection, CLIENT_HELLO_BYTES, self._hello_of
            )
            if isinstance(hello, RequestHead):
                _say(
                    connection,
                    self.dispatcher.pages.answer(
                        400,
                        hello,
                        name=hello.host,
                        title="This port is for https",
                        text="Put https:// in front of the address.",
                    ),
                )
                raise RemoteProtocolError("it speaks HTTP without TLS at a port for https")
            domain = self.config.domain or ""
            name = hello.server_name or domain
            if point is not None and name != domain:
                _alert(connection, _UNRECOGNIZED_NAME)
                raise RemoteProtocolError(
                    f"asks for {name} at a visit port, where only {domain} is"
                )
            is_proof = hello.alpn == (ACME_PROTOCOL,)
            if is_proof and (proof := self.challenges.alpn01_context(name)) is not None:
                (await accept_tls(connection, proof)).close()
                return None
            if point is None and self.passes_on and (pass_on := self.passes_on(name)) is not None:
                pass_on(connection, address, visited, is_tls=True)
                return None
            if is_proof:
                _alert(connection, _UNRECOGNIZED_NAME)
                raise RemoteProtocolError(
                    "asks for the proof of a name for which nothing was ordered"
                )
            host = point or self.dispatcher.names.get(name)
            publish = None if host is None else host.publish
            if publish is not None and publish.kind is PublishKind.TLS:
                return SocketEndpoint(connection), None, host, publish, name
            entry = await self._certificate(connection, name)
            context = entry.context
            if publish is not None and publish.http2 and HTTP2 in hello.alpn:
                alone = self.certificates.find_alone(name)
                # Nobody looks at requests in HTTP/2 here: passwords are for those who speak HTTP/1 to us, and so are names that share a certificate.
                if alone is not None and not publish.basic_auth:
                    entry, context = alone, await self.certificates.http2_context(alone)
                elif alone is None:
                    self._tell_shared(name)
        except OSError as error:  # the certificate's file is not there any more, or not right
            connection.close()
            raise ConnectionLostError(f"no certificate for HTTP/2: {error}") from error
        except BaseException:
            connection.close()
            raise
        endpoint = await accept_tls(connection, context, tells_end=True)
        return endpoint, entry, host, publish, name

    def _hello_of(self, first: bytes) -> ClientHello | RequestHead | None:
        """Return the ClientHello on a connection, or the request of whoever has left TLS out; None: there has to be more of it.

        Raises:
            RemoteProtocolError: it is neither.
        """
        if first[:1].isalpha():  # a record of TLS begins with 22 (RFC 8446 5.1)
            found = self._first_of(first)
            if isinstance(found, RequestHead) or (
                found is None and len(first) < CLIENT_HELLO_BYTES
            ):
                return found
        return parse_client_hello(first)

    def _tell_shared(self, name: str) -> None:
        """Tell, once for each name, why visitors do not get HTTP/2."""
        if name not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(name)
            log.warning(
                "visitors get HTTP/1.1: with a certificate for other names as well, browsers would take one connection in HTTP/2 for all of them; put one"
                " for this name alone into CertificatesDir",
                name=name,
            )

    async def _certificate(self, connection: socket.socket, name: str) -> Entry:
        """Return the certificate to show for a name; where there is none, the visitor gets an alert.

        Raises:
            RemoteProtocolError: there is none.
        """
        if (entry := self.certificates.find(name)) is not None:
            return entry
        try:
            return await self.wait_for_certificate(name)
        except OrderError as error:
            _alert(connection, _UNRECOGNIZED_NAME if error.code == "name" else _INTERNAL_ERROR)
            raise RemoteProtocolError(f"no certificate for {name or 'no name'}: {error}") from error


def _speaks_http2(endpoint: Endpoint) -> bool:
    return isinstance(endpoint, TLSEndpoint) and endpoint.tls.selected_alpn_protocol() == HTTP2


def _alert(connection: socket.socket, number: int) -> None:
    """Say why the handshake fails."""
    _say(connection, bytes([21, 3, 3, 0, 2, 2, number]))


def _say(connection: socket.socket, last_words: bytes) -> None:
    """Send a few bytes, the only ones on their connection, so that they find room."""
    try:
        connection.send(last_words)
        # What was only peeked at is taken, or closing would reset the connection, and the alert be lost.
        connection.recv(CLIENT_HELLO_BYTES)
    except OSError:
        pass
