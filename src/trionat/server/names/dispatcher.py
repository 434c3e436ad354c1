"""Brings each request of a visitor's connection to the service that has the name of its Host, one after another."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING
from weakref import WeakSet

import attrs
import trio

from trionat.address import TCPAddress
from trionat.log import get_logger
from trionat.networks import Networks
from trionat.protocol.http.answer import NO_ANSWER, NOT_HTTP
from trionat.protocol.http.head import Origin, RequestHead
from trionat.protocol.messages import PublishKind
from trionat.server.names.access_log import Access
from trionat.server.names.http_connection import HttpConnection, HttpLimits, Refusal
from trionat.server.names.http_endpoint import HttpEndpoint
from trionat.server.refusals import Bound
from trionat.server.tally import OTHERS
from trionat.server.visitors.restrictions import Denial

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trionat.config.server import ServerConfig
    from trionat.server.names.access_log import AccessLog
    from trionat.server.names.http_connection import Said
    from trionat.server.names.page import Pages
    from trionat.server.visitors.acceptor import VisitorAcceptor
    from trionat.server.visitors.group import Group
    from trionat.server.visitors.ports import VirtualHost, VisitPoint
    from trionat.server.visitors.queue import VisitorQueue
    from trionat.transport.endpoint import Endpoint

log = get_logger(__name__)

_STATUS_OF_BOUND = {
    Bound.NO_CLIENT: 404,
    Bound.LISTS: 403,
    Bound.ACCOUNT_LISTS: 403,
    Bound.RATE: 429,
    Bound.VISITORS_OF_ADDRESS: 429,
}
"""What a visitor is told that may not come in."""

_OURS = (b"authorization",)
"""What a visitor has logged in with here is not for the service."""

_MAY_SPEAK_TLS = {
    NOT_HTTP: "The tunnel is there, and the service behind it answers, but with something that is not HTTP.",
    NO_ANSWER: "The tunnel is there, but the service behind it has closed the connection without an answer.",
}
"""What the page says where a service has not understood a request."""

_OWNER_OF_TLS = "If it is yours: does it speak TLS, so that its own address begins with https? Then publish it with tls:LOCAL@NAME. Else look at its log."

_RETRY_AFTER = {429: 1, 503: 5}
"""Seconds after which it is worth trying again."""


@attrs.frozen(kw_only=True)
class Arrival:
    """Where a visitor's connection has come in: from `address`, to `visited`, by `https` or `http`.

    `name` is the one for which it was made, if that is known; `covers` tells whether it may ask for a name. `point` is there where it has come to a visit port: all its requests are
    for the service of that.
    """

    address: TCPAddress
    visited: TCPAddress
    scheme: str
    name: str = ""
    covers: Callable[[str], bool] = lambda _: True
    point: VisitPoint | None = None


@attrs.define(eq=False, kw_only=True)
class Dispatcher:
    """See the module. `names` are those that somebody has here now.

    `challenge` has the answers that an authority looks for, by path. `leaving` says that the server stops: each answer is the last one on its connection then.
    `shares_names` says that other processes of this server have names as well.
    """

    config: ServerConfig
    names: Mapping[str, VirtualHost]
    acceptor: VisitorAcceptor
    pages: Pages
    challenge: Callable[[str], bytes | None] = lambda _: None
    leaving: Callable[[], bool] = lambda: False
    shares_names: bool = False
    access_log: AccessLog | None = None
    _limits: HttpLimits = attrs.field(init=False)
    _proxies: Networks = attrs.field(init=False)
    _told: WeakSet[VisitorQueue | Group] = attrs.field(init=False, factory=lambda: WeakSet())

    def __attrs_post_init__(self) -> None:
        self.take_config(self.config)

    def take_config(self, config: ServerConfig) -> None:
        """This one counts from now on, for connections that come."""
        self.config = config
        # Not by default: what passes TCP on from this machine without a PROXY header, as containers do, would lend its trust to everybody.
        self._proxies = Networks(config.named_proxies)
        self._limits = HttpLimits(
            head_bytes=config.http_head_bytes,
            fields=config.http_head_fields,
            head_timeout=config.http_head_timeout,
            idle_timeout=config.http_idle_timeout,
        )

    async def serve(
        self, endpoint: Endpoint, arrival: Arrival, identified: Callable[[], None]
    ) -> None:
        """Serve a connection to its end, and close it. `identified` is called when it has brought a request."""
        host = arrival.address.host
        origin = Origin(host, arrival.scheme, trusted=host in self._proxies)
        connection = HttpConnection(endpoint, origin, self._limits)
        try:
            said: Said | bytes = await connection.next_request()
            identified()
            while isinstance(said, RequestHead):
                said = await self._serve_request(connection, said, arrival)
            await connection.finish(said if isinstance(said, bytes) else self._page(said, arrival))
        finally:
            endpoint.close()

    async def _serve_request(
        self, connection: HttpConnection, request: RequestHead, arrival: Arrival
    ) -> Said | bytes:
        """Have a request served, and those behind it as long as they are for the same service; return what comes next, or the last words."""
        if not await self.acceptor.may_admit():
            return None  # without an answer: a browser asks once more, on a connection of its own
        name, own = request.host, arrival
        arrival, is_secure = _seen(connection, request, own)
        if not is_secure and arrival.point is None:
            if (answer := self.challenge(request.target.decode("ascii"))) is not None:
                return _challenge_answer(answer)
            # A name that nobody has is told at once: for https there is no certificate, and a browser would speak of that.
            known = name in self.names or self._may_be_elsewhere(name, arrival)
            if known and not self.config.plain_http:
                self._note(None, arrival, request, HTTPStatus.PERMANENT_REDIRECT, 0, 0.0)
                return self.pages.redirect(request, self._https_of(request))
        if not arrival.covers(name):
            text = "a name that this connection is not for"
            return self._deny(request, arrival, None, Denial(status=421, text=text))
        point = arrival.point or self.names.get(name)
        if (
            point is None
            or (point.queue is None and arrival.point is None)
            or (
                point is not arrival.point
                and (point.publish is None or point.publish.kind is not PublishKind.HTTP)
            )
        ):
            if self._may_be_elsewhere(name, arrival):
                text = "a name that another process may have: a connection of its own leads there"
                return self._deny(request, arrival, None, Denial(status=421, text=text))
            return self._deny(
                request, arrival, None, Denial(status=404, text="nobody has this name")
            )
        if (refusal := self.acceptor.refusal(point, arrival.address)) is not None:
            self.acceptor.tell_refused(point, arrival.address, refusal)
            status = _STATUS_OF_BOUND.get(refusal[0], 503)
            return self._deny(request, arrival, point, Denial(status=status, text=refusal[1]))
        queue, restrictions = point.queue, point.restrictions
        denial = await self._denial(request, arrival, point)
        if point.queue is not queue or point.restrictions is not restrictions:
            return request  # its client has gone, or says something else by now: all over again
        if denial is not None:
            return self._deny(request, arrival, point, denial)
        return await self._visit(connection, request, own, point)

    def _may_be_elsewhere(self, name: str, arrival: Arrival) -> bool:
        return (self.shares_names and name != arrival.name) or self.acceptor.is_elsewhere(name)

    async def _denial(
        self, request: RequestHead, arrival: Arrival, point: VisitPoint
    ) -> Denial | None:
        """Return why whoever owns the service does not want the visitor; None: he does."""
        restrictions, host = point.restrictions, arrival.address.host
        if restrictions is None:
            return None
        denial = restrictions.denial(host)
        if denial is None and restrictions.needs_password:
            denial = await restrictions.log_in(request.authorization, host)
        return denial or restrictions.ask(host, _described(request))

    def _lets_in(self, request: RequestHead, arrival: Arrival, point: VisitPoint) -> bool:
        """Tell, without a wait, whether another request may go to the service that has had one."""
        restrictions, host = point.restrictions, arrival.address.host
        return restrictions is None or (
            restrictions.knows(request.authorization, host)
            and (not restrictions.publish.approve or restrictions.approvals.is_approved(host))
            and restrictions.denial(host) is None
        )

    def _deny(
        self, request: RequestHead, arrival: Arrival, point: VisitPoint | None, denial: Denial
    ) -> bytes:
        """Return the page that says why a request is not served."""
        name, status = request.host, denial.status
        log.debug("request refused", name=name, status=status, reason=denial.text)
        self._note(point, arrival, request, status, 0, 0.0)
        fields: tuple[tuple[str, str], ...] = ()
        title, text = "", denial.told
        if status == HTTPStatus.UNAUTHORIZED:
            fields = (("WWW-Authenticate", f'Basic realm="{name}", charset="UTF-8"'),)
        elif denial.is_asked:
            fields = (("Refresh", "3"),)
            title = "Please wait a moment"
            # Whether somebody sits there to be asked, the client does not tell.
            text = "Whoever runs this service has to let you in first, and your request was passed on. This page looks again by itself."
        retry_after = denial.retry_after or _RETRY_AFTER.get(status)
        return self.pages.answer(
            status,
            request,
            name=name,
            retry_after=retry_after,
            fields=fields,
            title=title,
            text=text,
        )

    async def _visit(
        self,
        connection: HttpConnection,
        request: RequestHead,
        own: Arrival,
        point: VisitPoint,
    ) -> Said:
        """Be a visitor of one service, until the connection says something that is for somebody else. `own` is where it has come in itself."""
        arrival, is_secure = _seen(connection, request, own)
        over = trio.Event()
        said: list[Said] = []

        def is_over(next_: Said) -> None:
            if isinstance(next_, Refusal) and next_.request is not None:
                # Here and now: of a client that leaves, nobody knows a moment later whose it was.
                self._note(point, arrival, next_.request, next_.status, 0, next_.seconds)
            said.append(next_)
            over.set()

        queue, restrictions = point.queue, point.restrictions

        def same_service(next_: RequestHead) -> bool:
            return (
                not self.leaving()
                and next_.host == request.host
                and point.queue is queue
                and queue is not None
                and point.restrictions is restrictions
                and (
                    not connection.origin.trusted
                    or _seen(connection, next_, own) == (arrival, is_secure)
                )
                and self._lets_in(next_, arrival, point)
            )

        endpoint = HttpEndpoint(
            connection,
            request,
            same_service,
            is_over,
            on_answered=partial(self._note, point, arrival),
            leaving=self._leaving(connection, own),
            drops=_OURS if restrictions is not None and restrictions.needs_password else (),
        )
        self.acceptor.admit(point, endpoint, arrival.address, arrival.visited)
        try:
            await over.wait()
        finally:
            if not said:
                endpoint.reset()
        if isinstance(said[0], Refusal) and said[0].text in _MAY_SPEAK_TLS:
            self._tell_no_http(request.host, said[0].text, queue)
        return said[0]

    def _leaving(self, connection: HttpConnection, own: Arrival) -> Callable[[], bool]:
        """Return what says that an answer is the last one on its connection."""
        shared = self.shares_names or self.acceptor.elsewhere is not None
        if shared and own.point is None and connection.origin.trusted:
            # A browser that is told of another process makes a connection to it. A proxy passes that on to a visitor who has asked for this name alone.
            return lambda: True
        return self.leaving

    def _tell_no_http(self, name: str, reason: str, queue: VisitorQueue | Group | None) -> None:
        """Log that a service has not understood a request, once for each client."""
        if queue is not None and queue not in self._told:
            self._told.add(queue)
            log.warning(
                "a service does not understand requests: if it speaks TLS itself, it needs tls:, and not http:",
                reason=reason,
                name=name,
                user=queue.user_limits.user,
            )

    def _note(
        self,
        point: VisitPoint | None,
        arrival: Arrival,
        request: RequestHead,
        status: int,
        sent: int,
        seconds: float,
    ) -> None:
        """A request was answered, by its service or by us."""
        user = ""
        if point is not None:
            if point.requests is not None:
                point.requests.count(status, seconds)
            if point.queue is not None:
                user = point.queue.user_limits.user
        if (tally := self.acceptor.tally) is not None:
            # By what is published here: whatever a visitor calls the host, it makes no new name.
            tally.note_request(OTHERS if point is None else str(point.id), status, seconds)
        if self.access_log is not None:
            self.access_log.note(
                Access(
                    host=arrival.address.host,
                    name=request.host,
                    request=request,
                    status=status,
                    sent=sent,
                    seconds=seconds,
                    user=user,
                )
            )

    def _https_of(self, request: RequestHead) -> str:
        host = f"[{request.host}]" if ":" in request.host else request.host
        target = "/" if request.target == b"*" else request.target.decode("ascii")
        return f"https://{host}{self.config.url_port}{target}"

    def _page(self, said: Refusal | None, arrival: Arrival) -> bytes:
        """Return the last words of a connection on which a request was refused, or got no answer; the latter was noted by `_visit`."""
        if said is None:
            return b""
        log.debug(
            "request refused", address=str(arrival.address), status=said.status, reason=said.text
        )
        return self.pages.answer(
            said.status,
            said.request,
            name="" if said.request is None else said.request.host,
            retry_after=_RETRY_AFTER.get(said.status),
            text=_MAY_SPEAK_TLS.get(said.text, ""),
            owner=_OWNER_OF_TLS if said.text in _MAY_SPEAK_TLS else "",
        )


def _seen(connection: HttpConnection, request: RequestHead, own: Arrival) -> tuple[Arrival, bool]:
    """Return where a request comes from, and whether its visitor has come by https: on a connection of the operator's proxy as that says, if it does."""
    is_secure = own.scheme == "https"
    if not connection.origin.trusted:
        return own, is_secure
    is_secure = is_secure or request.proxied_scheme == "https"
    if (host := request.proxied_host) is None:
        return own, is_secure
    return attrs.evolve(own, address=TCPAddress(host, own.address.port)), is_secure


def _described(request: RequestHead) -> str:
    """Return what a visitor asks for, as its owner is told; whoever shows it escapes what cannot be shown."""
    agent = b" ".join(request.values(b"user-agent"))[:120].decode("latin-1")
    target = request.target[:80].decode("latin-1")
    return (
        f"{request.method.decode()} {target}, {agent}"
        if agent
        else f"{request.method.decode()} {target}"
    )


def _challenge_answer(body: bytes) -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        % len(body)
    ) + body
