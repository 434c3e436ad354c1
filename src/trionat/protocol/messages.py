"""The messages of a native control connection, and the one that opens a tunnel.

One frozen class per message, each with its id, its way into a payload and back. Control payloads are JSON objects, in which
keys that we do not know are ignored (a newer peer may send them) and keys that we need are checked for type and range. What
is sent often (PING, PONG, DEMAND) or secret (ATTACH) is binary.

A control connection runs like this (`docs/protocol.md` has the whole)::

    client                                server
    HELLO, EXPOSE             ->
                              <-          QUEUED(position) ...     while all slots are taken
                              <-          WELCOME(uid, ports, secret) | REFUSED(code, text)
    PING, PONG               <->          PING, PONG
                              <-          DEMAND(visitors that wait for a tunnel)
    ACKS(visitors, positions) <->         ACKS(visitors, positions)
    LOST(visitors, attempts)  ->
                              <-          BEGIN(visitor ...)             a visitor for whom there is no tunnel yet
    EARLY(visitor, bytes)    <->          EARLY(visitor, bytes)
    DOWN(services)            ->
                              <-          ASK(service, address, what)    may this address visit?
    APPROVE(service, address) ->
    EXAMINE(service, token)   ->                                         `trionat doctor`: can visitors get in?
                              <-          EXAMINED(what came of it, its clock, its software)
    DRAIN, CLOSE             <->          DRAIN, CLOSE
    MOVED                     ->                                         the client is up at another server, after DRAIN
"""

from __future__ import annotations

import enum
import hmac
import ipaddress
import re
import struct
from typing import TYPE_CHECKING, ClassVar, Final, Self, TypeAlias
from urllib.parse import urlsplit

import attrs

from trionat.errors import RemoteProtocolError
from trionat.hostnames import parse_name
from trionat.protocol.client_hello import ROUTE
from trionat.protocol.fields import TEXT_CHARACTERS, Fields, to_json
from trionat.protocol.frames import encode_frame
from trionat.protocol.ticket import check_caveats

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trionat.address import TCPAddress
    from trionat.protocol.frames import Frame

PROTOCOL_VERSION: Final = 1
CAPABILITIES: Final = ("recycled-tunnels",)

# In HELLO: the client is ready to use tunnels without TLS. In WELCOME: it is to do so, since the server is ready as well.
PLAIN_TUNNELS: Final = "plain-tunnels"

# Streams outlive their tunnels, and the session, where both sides name it: see `Resume`.
RESUME: Final = "resume"

# In HELLO: the client offers the route that it was told, as a name for ALPN (`client_hello.py`). In WELCOME: there is a route.
ROUTES: Final = "routes"
# In HELLO: EXPOSE may name a group. In both: the client tells which of its services are down.
GROUPS: Final = "groups"

# In HELLO: DRAIN may name other servers, and the client goes to one of them, or another that it knows, before its session has ended. In WELCOME: the
# server hears MOVED.
MOVE: Final = "move"

# In HELLO: the client asks its owner about visitors. In WELCOME: the server sends ASK where a service wants that.
APPROVALS: Final = "approvals"

# In HELLO: EXPOSE may name services that are published by name. In WELCOME: the server knows such services.
NAMES: Final = "names"

# In WELCOME: the server answers EXAMINE.
EXAMINE: Final = "examine"

# In HELLO: the client changes its services within a session. In WELCOME: the server lets this one do so.
SERVICE_CHANGES: Final = "service-changes"

# In HELLO: the token is of a ticket that was narrowed, and `caveats` come with it. In WELCOME: the server keeps to them.
NARROWED_TICKETS: Final = "narrowed-tickets"

# As short as names are; it is shown on terminals.
_URL: Final = re.compile(r"(https?|tls)://[a-z0-9.:\[\]-]{1,300}", re.ASCII)

# A session is found by its uid and opened by its secret; 256 random bits, where the specification asks for 128 at least.
SECRET_BYTES: Final = 32

MAX_SERVICES: Final = 1024

# Before WELCOME tells the client the server's own figures these bind both sides, in seconds: how often a queued client and its
# server let themselves be heard, and how long either waits for the other.
QUEUE_INTERVAL: Final = 2.5
QUEUE_TIMEOUT: Final = 10.0


class RefusalCode(enum.StrEnum):
    """Why a server refused. From `full` on trying again later can help, and a client does so by itself."""

    AUTH_FAILED = "auth-failed"  # no
    ACCOUNT_EXPIRED = "account-expired"  # no
    PORT_NOT_OFFERED = "port-not-offered"  # no
    NAME_NOT_OFFERED = "name-not-offered"  # no
    TOO_MANY_SERVICES = "too-many-services"  # no
    UNSUPPORTED_VERSION = "unsupported-version"  # no
    EVICTED = "evicted"  # no: another connection of this client took its place in the queue
    KICKED = "kicked"  # no: the operator sent it away from the queue
    FULL = "full"  # yes
    TOO_MANY_SESSIONS = "too-many-sessions"  # yes
    QUOTA_EXCEEDED = "quota-exceeded"  # yes, at the latest in the next month
    PORT_TAKEN = "port-taken"  # yes
    NAME_TAKEN = "name-taken"  # yes
    STORE_UNAVAILABLE = "store-unavailable"  # yes
    DRAINING = "draining"  # yes
    BANNED = "banned"  # yes
    MOVED = "moved"  # yes, at once, by way of the route that comes with it
    UNKNOWN_SESSION = "unknown-session"  # of a tunnel: its session is over


class CloseCode(enum.StrEnum):
    """Why a session that was up has ended."""

    EVICTED = "evicted"
    KICKED = "kicked"
    ACCOUNT_EXPIRED = "account-expired"
    ACCOUNT_REMOVED = "account-removed"
    QUOTA_EXCEEDED = "quota-exceeded"
    STOPPED = "stopped"
    PROTOCOL = "protocol"
    TIMEOUT = "timeout"


@attrs.frozen(kw_only=True)
class Hello:
    """A client's first frame: who it is. Exactly one of `password` and `token` (a ticket's) is given, or neither.

    `identity` is the client's own name for itself, up to 255 characters: a session of the same user and identity that is
    still up is evicted by this one, which gets its ports. `resume` is the `lease` of the WELCOME whose streams this client still has, if any.
    `caveats` are those of the ticket, of which the token is. A server that does not know them has another token in mind, and refuses.
    """

    id: ClassVar[int] = 40001
    username: str
    identity: str
    password: str | None = attrs.field(default=None, repr=False)
    token: bytes | None = attrs.field(default=None, repr=False)
    name: str = ""
    version: int = PROTOCOL_VERSION
    capabilities: tuple[str, ...] = CAPABILITIES
    software: str = ""
    resume: str | None = None
    caveats: tuple[str, ...] = ()

    def payload(self) -> bytes:
        """Return the JSON payload."""
        return to_json(
            {
                "version": self.version,
                "capabilities": self.capabilities,
                "software": self.software,
                "name": self.name,
                "identity": self.identity,
                "username": self.username,
                "password": self.password,
                "token": None if self.token is None else self.token.hex(),
                **({} if self.resume is None else {"resume": self.resume}),
                **({"caveats": self.caveats} if self.caveats else {}),
            }
        )

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        fields = Fields.parse("HELLO", payload)
        return cls(
            version=fields.integer("version", 1, 2**31),
            capabilities=fields.texts("capabilities"),
            software=fields.text("software"),
            name=fields.text("name"),
            identity=fields.text("identity"),
            username=fields.text("username"),
            password=None
            if fields.values.get("password") is None
            else fields.text("password", longest=TEXT_CHARACTERS),
            token=None if fields.values.get("token") is None else fields.secret("token"),
            resume=None if fields.values.get("resume") is None else fields.text("resume"),
            caveats=_caveats(fields),
        )


def _caveats(fields: Fields) -> tuple[str, ...]:
    """Take the caveats of a ticket, which need not be there."""
    if fields.values.get("caveats") is None:
        return ()
    caveats = fields.texts("caveats")
    try:
        check_caveats(caveats)
    except ValueError as error:
        raise RemoteProtocolError(f"{fields.message}: {error}") from None
    return caveats


class PublishKind(enum.StrEnum):
    """By what visitors find a service that has no port of its own, or what speaks for it there."""

    HTTP = "http"  # by the Host of each request; the server ends TLS
    TLS = "tls"  # by the name in the ClientHello; the service ends TLS
    HTTPS = "https"  # by a visit port, at which the server ends TLS


HIGHEST_RATE: Final = 1e6
"""Requests a second, of one visitor."""


@attrs.frozen(kw_only=True)
class Publish:
    """How a service is published by name.

    `name` is a label below the server's domain, or a whole name; None: the server makes one that stays with the client's identity. It is None for `https`.
    `http2` says that the service speaks HTTP/2 itself, and gets what visitors say to it as it is, without TLS.

    Who may visit: `basic_auth` are `USER:HASH`, with hashes by Argon2id; `allow` and `deny` are networks; `rate` is how many requests (`tls`: connections) a second one
    visitor may make, by its address. With `approve`, the owner is asked for each address.
    """

    kind: PublishKind
    name: str | None = None
    http2: bool = False
    basic_auth: tuple[str, ...] = attrs.field(default=(), repr=False)
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    rate: float | None = None
    approve: bool = False

    def value(self) -> dict[str, object]:
        """Return what stands in an EXPOSE: what is not as usual."""
        values = attrs.asdict(self, filter=lambda field, value: value != field.default)
        return {**values, "kind": str(self.kind)}

    @classmethod
    def from_value(cls, value: object) -> Self:
        """Check what stands in an EXPOSE."""
        fields = Fields("EXPOSE", value)
        try:
            kind = PublishKind(fields.text("kind"))
            name = None if fields.values.get("name") is None else parse_name(fields.text("name"))
            publish = cls(
                kind=kind,
                name=name,
                http2=fields.boolean("http2", default=False),
                basic_auth=_entries(fields, "basic_auth"),
                allow=_entries(fields, "allow"),
                deny=_entries(fields, "deny"),
                rate=None
                if fields.values.get("rate") is None
                else fields.number("rate", HIGHEST_RATE),
                approve=fields.boolean("approve", default=False),
            )
        except ValueError as error:
            raise RemoteProtocolError(f"EXPOSE: {error}") from None
        if name is not None and kind is PublishKind.HTTPS:
            raise RemoteProtocolError("EXPOSE: a service at a visit port has no name of its own")
        return publish


def _entries(fields: Fields, name: str) -> tuple[str, ...]:
    """Take a list of texts that need not be there."""
    return () if fields.values.get(name) is None else fields.texts(name)


@attrs.frozen(kw_only=True)
class ServiceRequest:
    """One service that a client wants to expose.

    `visit_port` is the port that it must have (or the request is refused), `preferred_port` one that it had before and would
    like again; `local` is only shown to the server's operator. `publish` is there where it is to be published by name.
    """

    name: str = ""
    local: str = ""
    visit_port: int | None = None
    preferred_port: int | None = None
    publish: Publish | None = None

    @property
    def has_port(self) -> bool:
        """Whether it is at a visit port, and not at a name."""
        return self.publish is None or self.publish.kind is PublishKind.HTTPS

    def fits(self, point: int | str) -> bool:
        """Tell whether it can be at a visit port, or at a name."""
        if isinstance(point, str):
            return not self.has_port and self.hostname in (None, point)
        return self.has_port and self.visit_port in (None, point)

    def at(self, point: int | str) -> ServiceRequest:
        """Return it as one that must have this visit port, or this name."""
        if isinstance(point, int):
            return attrs.evolve(self, visit_port=point)
        assert self.publish is not None, "it has a name"  # noqa: S101 - for type checkers
        return attrs.evolve(self, publish=attrs.evolve(self.publish, name=point))

    @property
    def hostname(self) -> str | None:
        """The name at which it is, or is to be; None for one at a visit port."""
        return None if self.publish is None else self.publish.name

    def value(self) -> dict[str, object]:
        """Return what stands in an EXPOSE."""
        values = attrs.asdict(self, filter=lambda field, _: field.name != "publish")
        return values if self.publish is None else {**values, "publish": self.publish.value()}


@attrs.frozen(kw_only=True)
class Expose:
    """The services, in the order in which WELCOME's ports and OPEN's service numbers count them.

    `idle_tunnels` is how many idle tunnels the client wants to have at least; the server closes none of those. `group` names the clients of
    the same user with which this one shares its visit ports.
    """

    id: ClassVar[int] = 40002
    services: tuple[ServiceRequest, ...]
    idle_tunnels: int = 0
    group: str | None = None

    def payload(self) -> bytes:
        """Return the JSON payload."""
        return to_json(
            {
                "services": [service.value() for service in self.services],
                "idle_tunnels": self.idle_tunnels,
                **({} if self.group is None else {"group": self.group}),
            }
        )

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        expose = Fields.parse("EXPOSE", payload)
        services = _services(expose, "services")
        if not services:
            raise RemoteProtocolError("EXPOSE: no service")
        group = None if expose.values.get("group") is None else expose.text("group")
        if group == "":
            raise RemoteProtocolError("EXPOSE: the group has no name")
        return cls(
            services=services,
            idle_tunnels=expose.integer("idle_tunnels", 0, 2**31),
            group=group,
        )


def _services(message: Fields, key: str) -> tuple[ServiceRequest, ...]:
    """Take services."""
    services: list[ServiceRequest] = []
    for item in message.items(key, longest=MAX_SERVICES):
        fields = Fields(message.message, item)
        services.append(
            ServiceRequest(
                name=fields.text("name"),
                local=fields.text("local"),
                visit_port=fields.integer_or_none("visit_port", 1, 65535),
                preferred_port=fields.integer_or_none("preferred_port", 1, 65535),
                publish=None
                if fields.values.get("publish") is None
                else Publish.from_value(fields.values["publish"]),
            )
        )
    return tuple(services)


@attrs.frozen(kw_only=True)
class Change:
    """Client to server: services, by their numbers, go, and others come, all or nothing. Those that come get the numbers that follow the highest one that there was in this session; CHANGED answers."""

    id: ClassVar[int] = 40021
    removed: tuple[int, ...]
    added: tuple[ServiceRequest, ...]

    def payload(self) -> bytes:
        """Return the JSON payload."""
        added = [service.value() for service in self.added]
        return to_json({"removed": self.removed, "added": added})

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        fields = Fields.parse("CHANGE", payload)
        return cls(removed=_numbers(fields, "removed"), added=_services(fields, "added"))


@attrs.frozen(kw_only=True)
class Changed:
    """Server to client: `ports` and `urls` are those of the services that have come, as in WELCOME; or with a `code`, a `RefusalCode`, and a `text`, why nothing has changed."""

    id: ClassVar[int] = 40022
    ports: tuple[int, ...] = ()
    urls: tuple[str | None, ...] | None = None
    code: str | None = None
    text: str = ""

    def payload(self) -> bytes:
        """Return the JSON payload."""
        values = {**attrs.asdict(self), "text": self.text[:TEXT_CHARACTERS]}
        return to_json({key: value for key, value in values.items() if value is not None})

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        fields = Fields.parse("CHANGED", payload)
        ports, urls = _ports_and_urls(fields)
        return cls(
            ports=ports,
            urls=urls,
            code=None if fields.values.get("code") is None else fields.text("code"),
            text=fields.text("text", longest=TEXT_CHARACTERS),
        )


def _numbers(message: Fields, key: str) -> tuple[int, ...]:
    """Take the numbers of services, each once, in their order."""
    numbers = message.items(key, longest=MAX_SERVICES)
    if not all(type(number) is int and 0 <= number < MAX_SERVICES for number in numbers):
        raise RemoteProtocolError(f"{message.message}: expected a list of services as {key}")
    if numbers != sorted(set(numbers)):
        raise RemoteProtocolError(f"{message.message}: the services are not in their order")
    return tuple(numbers)


def _ports_and_urls(fields: Fields) -> tuple[tuple[int, ...], tuple[str | None, ...] | None]:
    """Take a port for each service, and a URL, or none, for each, where there are any; the port of one with a URL may be 0."""
    ports = fields.items("ports", longest=MAX_SERVICES)
    urls = None if fields.values.get("urls") is None else _urls(fields, len(ports))
    lowest = [1 if urls is None or url is None else 0 for url in urls or ports]
    if not all(
        type(port) is int and least <= port <= 65535
        for port, least in zip(ports, lowest, strict=True)
    ):
        raise RemoteProtocolError(f"{fields.message}: expected a list of ports as ports")
    return tuple(ports), urls


@attrs.frozen(kw_only=True)
class Queued:
    """All slots are taken; the client is number `position` (from 1) of those that wait."""

    id: ClassVar[int] = 40003
    position: int

    def payload(self) -> bytes:
        """Return the JSON payload."""
        return to_json({"position": self.position})

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        return cls(position=Fields.parse("QUEUED", payload).integer("position", 1, 2**31))


@attrs.frozen(kw_only=True)
class Resumption:
    """How streams of this session are resumed. `lease` names who has them at the server: as long as it is the same, they may go on.

    They wait for another tunnel for `wait` seconds. Either side keeps at most `buffer` bytes of a stream that the other one has not acknowledged.
    """

    lease: str
    wait: float
    buffer: int

    @classmethod
    def from_value(cls, value: object) -> Self:
        """Check what stands in a WELCOME."""
        fields = Fields("WELCOME", value)
        return cls(
            lease=fields.text("lease"),
            wait=fields.seconds("wait"),
            buffer=fields.integer("buffer", 1, 2**31),
        )


@attrs.frozen(kw_only=True)
class Welcome:
    """The session is up.

    `ports` has one visit port per service asked for. `host` is what the server thinks visitors should dial, or empty where it
    does not know. `ping_interval` and `peer_timeout` are seconds and bind both sides; `max_tunnels` is the number of tunnels
    that the server accepts of this session. `resumption` is there where both sides can resume streams, `route` where the server has several
    processes: what leads to this one. `urls` is there where a service is published by name: one for each service, or None for one that is only at its visit port;
    the port of a service that has none is 0.
    """

    id: ClassVar[int] = 40004
    uid: int
    secret: bytes = attrs.field(repr=False)
    ports: tuple[int, ...]
    host: str
    ping_interval: float
    peer_timeout: float
    max_tunnels: int
    version: int = PROTOCOL_VERSION
    capabilities: tuple[str, ...] = CAPABILITIES
    resumption: Resumption | None = None
    route: str | None = None
    urls: tuple[str | None, ...] | None = None

    def payload(self) -> bytes:
        """Return the JSON payload."""
        values = {**attrs.asdict(self), "secret": self.secret.hex()}
        for optional in ("resumption", "route", "urls"):
            if values[optional] is None:
                del values[optional]
        return to_json(values)

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        fields = Fields.parse("WELCOME", payload)
        ports, urls = _ports_and_urls(fields)
        secret = fields.secret("secret")
        if len(secret) != SECRET_BYTES:
            raise RemoteProtocolError(f"WELCOME: the secret is not {SECRET_BYTES} bytes long")
        return cls(
            uid=fields.integer("uid", 1, 2**63 - 1),
            secret=secret,
            ports=ports,
            host=fields.host("host"),
            ping_interval=fields.seconds("ping_interval"),
            peer_timeout=fields.seconds("peer_timeout"),
            max_tunnels=fields.integer("max_tunnels", 1, 2**31),
            version=fields.integer("version", 1, 2**31),
            capabilities=fields.texts("capabilities"),
            resumption=None
            if fields.values.get("resumption") is None
            else Resumption.from_value(fields.values["resumption"]),
            route=_route(fields),
            urls=urls,
        )


def _is_url(text: str) -> bool:
    try:
        return bool(_URL.fullmatch(text) and urlsplit(text).hostname) and urlsplit(text).port != 0
    except ValueError:  # of the port, or brackets
        return False


def _urls(fields: Fields, count: int) -> tuple[str | None, ...]:
    """Take one URL, or none, for each of so many services."""
    urls = fields.items("urls", longest=MAX_SERVICES)
    if len(urls) != count or not all(
        url is None or (isinstance(url, str) and _is_url(url)) for url in urls
    ):
        raise RemoteProtocolError(
            f"{fields.message}: expected a URL, or null, for each service as urls"
        )
    return tuple(urls)


def _route(fields: Fields) -> str | None:
    """Take a route that need not be there."""
    if fields.values.get("route") is None:
        return None
    route = fields.text("route")
    if not ROUTE.fullmatch(route):
        raise RemoteProtocolError(
            f"{fields.message}: a route has 1 to 63 small letters, digits and dots"
        )
    return route


@attrs.frozen(kw_only=True)
class _CodeAndText:
    code: str
    text: str

    def payload(self) -> bytes:
        """Return the JSON payload; a text that is too long, such as one with hundreds of ports in it, is cut."""
        return to_json({"code": self.code, "text": self.text[:TEXT_CHARACTERS]})

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        fields = Fields.parse(cls.__name__.upper(), payload)
        return cls(code=fields.text("code"), text=fields.text("text", longest=TEXT_CHARACTERS))


@attrs.frozen(kw_only=True)
class Refused(_CodeAndText):
    """No session (or, as the answer to ATTACH, no tunnel): `code` is a `RefusalCode`, `text` is for people; `route` comes with `moved`, other `servers` with `draining`."""

    id: ClassVar[int] = 40005
    route: str | None = None
    servers: tuple[TCPAddress, ...] = ()

    def payload(self) -> bytes:
        """Return the JSON payload."""
        route = {} if self.route is None else {"route": self.route}
        values = {"code": self.code, "text": self.text[:TEXT_CHARACTERS], **route}
        return to_json({**values, **_named(self.servers)})

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        refused, fields = super().from_payload(payload), Fields.parse("REFUSED", payload)
        return attrs.evolve(refused, route=_route(fields), servers=_servers(fields))


@attrs.frozen(kw_only=True)
class Close(_CodeAndText):
    """The last message of a session that was up, from either side: `code` is a `CloseCode`, `text` is for people."""

    id: ClassVar[int] = 40009


@attrs.frozen(kw_only=True)
class Drain:
    """The sender stops soon: no new visitors, and those that are there have `seconds` to finish.

    A server names other `servers`, by their control addresses, to which the client may go.
    """

    id: ClassVar[int] = 40008
    seconds: float
    servers: tuple[TCPAddress, ...] = ()

    def payload(self) -> bytes:
        """Return the JSON payload."""
        return to_json({"seconds": self.seconds, **_named(self.servers)})

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        fields = Fields.parse("DRAIN", payload)
        return cls(seconds=fields.seconds("seconds"), servers=_servers(fields))


@attrs.frozen
class Moved:
    """A client's answer to DRAIN: it is up at another server, and the sender of DRAIN ends this session when its visitors have gone."""

    id: ClassVar[int] = 40016

    def payload(self) -> bytes:
        """Return the empty payload."""
        return b""

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Check that the payload is empty."""
        if payload:
            raise RemoteProtocolError("MOVED: the payload is not empty")
        return cls()


def _named(servers: tuple[TCPAddress, ...]) -> dict[str, list[str]]:
    return {"servers": [str(address) for address in servers]} if servers else {}


def _servers(fields: Fields) -> tuple[TCPAddress, ...]:
    return () if fields.values.get("servers") is None else fields.addresses("servers")


_NUMBER: Final = struct.Struct(">Q")


@attrs.frozen
class _Number:
    number: int

    def payload(self) -> bytes:
        """Return the 8-byte payload."""
        return _NUMBER.pack(self.number)

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        if len(payload) != _NUMBER.size:
            raise RemoteProtocolError(
                f"{cls.__name__.upper()}: the payload is not {_NUMBER.size} bytes long"
            )
        return cls(_NUMBER.unpack(payload)[0])


@attrs.frozen
class Ping(_Number):
    """Are you there? `number` comes back in a PONG."""

    id: ClassVar[int] = 40006


@attrs.frozen
class Pong(_Number):
    """The answer to the PING of that `number`."""

    id: ClassVar[int] = 40007


@attrs.frozen
class Demand(_Number):
    """`number` visitors wait for a tunnel now: the client should open that many at once."""

    id: ClassVar[int] = 40010


MOST_DESCRIPTION: Final = 256
"""Characters of what a visitor wants."""

ASKED_FOR: Final = 300.0
"""Seconds after which a question that nobody has answered is forgotten, at both ends; whoever comes again asks anew."""


@attrs.frozen(kw_only=True)
class Ask:
    """Server to client: an address wants to visit a service whose owner decides about each. `what` is in the visitor's words: whoever shows it escapes it."""

    id: ClassVar[int] = 40017
    service: int
    host: str
    what: str

    def payload(self) -> bytes:
        """Return the JSON payload."""
        return to_json({"service": self.service, "host": self.host, "what": self.what})

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        fields = Fields.parse("ASK", payload)
        return cls(
            service=fields.integer("service", 0, MAX_SERVICES - 1),
            host=_number_of_host(fields),
            what=fields.text("what", longest=MOST_DESCRIPTION),
        )


@attrs.frozen(kw_only=True)
class Approve:
    """Client to server: what its owner has said of an address, after ASK or beforehand."""

    id: ClassVar[int] = 40018
    service: int
    host: str
    approved: bool

    def payload(self) -> bytes:
        """Return the JSON payload."""
        return to_json({"service": self.service, "host": self.host, "approved": self.approved})

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        fields = Fields.parse("APPROVE", payload)
        return cls(
            service=fields.integer("service", 0, MAX_SERVICES - 1),
            host=_number_of_host(fields),
            approved=fields.boolean("approved", default=False),
        )


def _number_of_host(fields: Fields) -> str:
    """Take a numeric address."""
    text = fields.text("host")
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise RemoteProtocolError(f"{fields.message}: expected a numeric address as host") from None


_EXAMINE_TOKEN: Final = re.compile(r"[!-~]{1,64}", re.ASCII)

_LATEST: Final = 2.0**40
"""Seconds since 1970, some 30 000 years from now: a clock may be very wrong."""


@attrs.frozen(kw_only=True)
class Examine:
    """Client to server: visit this service of mine as somebody from outside would, and tell what came of it.

    The service says `token` first of all, so that both know whether it was this one that answered: 1 to 64 visible characters.
    The server says as well whether it would let services in that ask for what `wanted` does, if there are any; nobody gets them.
    """

    id: ClassVar[int] = 40019
    service: int
    token: str
    wanted: tuple[ServiceRequest, ...] = ()

    def payload(self) -> bytes:
        """Return the JSON payload."""
        wanted = {"wanted": [service.value() for service in self.wanted]} if self.wanted else {}
        return to_json({"service": self.service, "token": self.token, **wanted})

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        fields = Fields.parse("EXAMINE", payload)
        token = fields.text("token")
        if not _EXAMINE_TOKEN.fullmatch(token):
            raise RemoteProtocolError("EXAMINE: a token has 1 to 64 visible characters")
        return cls(
            service=fields.integer("service", 0, MAX_SERVICES - 1),
            token=token,
            wanted=() if fields.values.get("wanted") is None else _services(fields, "wanted"),
        )


@attrs.frozen(kw_only=True)
class Examined:
    """The answer to EXAMINE.

    The server has dialled `dialled`, its public address at the visit port. `answered` says that the service's token came from there; else `failure` says what
    was in the way. `time` is the server's clock when this was sent, in seconds since 1970, `client` the address at which it sees the client. `expires` is when the login
    is void, the account or the ticket, in the same seconds; None: never. `refusal` is why services like those that were `wanted` would be refused,
    whoever has their ports and names now; empty where they would not; None where there were none, or the server is older.
    """

    id: ClassVar[int] = 40020
    service: int
    dialled: str
    answered: bool
    failure: str
    time: float
    client: str
    software: str
    expires: float | None = None
    refusal: str | None = None

    def payload(self) -> bytes:
        """Return the JSON payload."""
        values = attrs.asdict(self)
        if self.refusal is not None:
            values["refusal"] = self.refusal[:TEXT_CHARACTERS]
        return to_json(values)

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        fields = Fields.parse("EXAMINED", payload)
        return cls(
            service=fields.integer("service", 0, MAX_SERVICES - 1),
            dialled=fields.text("dialled"),
            answered=fields.boolean("answered", default=False),
            failure=fields.text("failure"),
            time=fields.number("time", _LATEST),
            client=fields.text("client"),
            software=fields.text("software"),
            expires=None
            if fields.values.get("expires") is None
            else fields.number("expires", _LATEST),
            refusal=None
            if fields.values.get("refusal") is None
            else fields.text("refusal", longest=TEXT_CHARACTERS),
        )


MAX_STREAMS: Final = 2048
"""How many streams one ACKS or LOST has at most; of more, the rest is told with the next one."""

_STREAM: Final = struct.Struct(">QQ")


@attrs.frozen
class _Streams:
    """Pairs of a visitor's number and another one."""

    streams: tuple[tuple[int, int], ...]

    def payload(self) -> bytes:
        """Return the payload, 16 bytes for each stream."""
        return b"".join(_STREAM.pack(*stream) for stream in self.streams)

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        if not payload or len(payload) % _STREAM.size or len(payload) > MAX_STREAMS * _STREAM.size:
            raise RemoteProtocolError(
                f"{cls.__name__.upper()}: the payload is not {_STREAM.size} bytes for each of 1 to {MAX_STREAMS} streams"
            )
        return cls(tuple((visitor, number) for visitor, number in _STREAM.iter_unpack(payload)))


@attrs.frozen
class Acks(_Streams):
    """Of each visitor's stream, how far it has been received: as ACK on a tunnel, which may wait behind what nobody reads."""

    id: ClassVar[int] = 40011


@attrs.frozen
class Lost(_Streams):
    """Client to server: the tunnels of these visitors are lost, of which the server may not know yet.

    The second number is the `attempt` of the RESUME that began it, or 0: a tunnel that the stream has got since is not meant.
    """

    id: ClassVar[int] = 40012


@attrs.frozen
class Down:
    """Client to server: these services, by their numbers, cannot be reached now; all others can, as far as the client knows."""

    id: ClassVar[int] = 40015
    services: tuple[int, ...]

    def payload(self) -> bytes:
        """Return the JSON payload."""
        return to_json({"services": self.services})

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        return cls(_numbers(Fields.parse("DOWN", payload), "services"))


@attrs.frozen
class Begin:
    """Server to client: a visitor for whom no tunnel is idle begins here. `open` is the payload of the OPEN that a tunnel would carry."""

    id: ClassVar[int] = 40013
    open: bytes

    def payload(self) -> bytes:
        """Return the payload."""
        return self.open

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Take the payload, which `Open.decode` checks."""
        return cls(payload)


EARLY_BYTES: Final = 16 * 1024
"""How much of a stream may travel on the control connection, in each direction."""

_EARLY: Final = struct.Struct(">QQ")


@attrs.frozen
class Early:
    """Bytes of a stream that has begun on the control connection, from `position` on. Without bytes: it is here."""

    id: ClassVar[int] = 40014
    visitor: int
    position: int
    data: bytes = attrs.field(repr=False)

    def payload(self) -> bytes:
        """Return the payload."""
        return _EARLY.pack(self.visitor, self.position) + self.data

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        if not 0 <= len(payload) - _EARLY.size <= EARLY_BYTES:
            raise RemoteProtocolError(
                f"EARLY: the payload is not {_EARLY.size} to {_EARLY.size + EARLY_BYTES} bytes long"
            )
        visitor, position = _EARLY.unpack_from(payload)
        return cls(visitor, position, payload[_EARLY.size :])


_ATTACH: Final = struct.Struct(f">Q{SECRET_BYTES}s")


@attrs.frozen
class Attach:
    """The first and only frame of this kind on a new tunnel: the session that it belongs to, and that session's secret."""

    id: ClassVar[int] = 40100
    uid: int
    secret: bytes = attrs.field(repr=False)

    def payload(self) -> bytes:
        """Return the 40-byte payload."""
        return _ATTACH.pack(self.uid, self.secret)

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        if len(payload) != _ATTACH.size:
            raise RemoteProtocolError(f"ATTACH: the payload is not {_ATTACH.size} bytes long")
        return cls(*_ATTACH.unpack(payload))


_JOIN: Final = struct.Struct(">QQ32s")
JOIN_BYTES: Final = _JOIN.size


@attrs.frozen
class Join:
    """What ATTACH is, on a tunnel without TLS, where the secret must not be seen: `proof` shows that its sender knows it.

    `number` is another one for each tunnel of a session, so that nobody who has seen a proof can use it again.
    """

    id: ClassVar[int] = 40110
    uid: int
    number: int
    proof: bytes = attrs.field(repr=False)

    @classmethod
    def prove(cls, uid: int, number: int, secret: bytes) -> Self:
        """Make the message for the session's tunnel of that number."""
        return cls(uid, number, _proof(uid, number, secret))

    def is_proven(self, secret: bytes) -> bool:
        """Tell, in constant time, whether the sender knows the session's secret."""
        return hmac.compare_digest(self.proof, _proof(self.uid, self.number, secret))

    def payload(self) -> bytes:
        """Return the 48-byte payload."""
        return _JOIN.pack(self.uid, self.number, self.proof)

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        if len(payload) != JOIN_BYTES:
            raise RemoteProtocolError(f"JOIN: the payload is not {JOIN_BYTES} bytes long")
        return cls(*_JOIN.unpack(payload))


def _proof(uid: int, number: int, secret: bytes) -> bytes:
    return hmac.digest(secret, b"trionat plain tunnel" + struct.pack(">QQ", uid, number), "sha256")


Message: TypeAlias = (
    Hello
    | Expose
    | Queued
    | Welcome
    | Refused
    | Ping
    | Pong
    | Drain
    | Moved
    | Close
    | Demand
    | Acks
    | Lost
    | Begin
    | Early
    | Down
    | Ask
    | Approve
    | Examine
    | Examined
    | Change
    | Changed
    | Attach
    | Join
)

_DECODERS: Final[Mapping[int, Callable[[bytes], Message]]] = {
    kind.id: kind.from_payload
    for kind in (
        Hello,
        Expose,
        Queued,
        Welcome,
        Refused,
        Ping,
        Pong,
        Drain,
        Moved,
        Close,
        Demand,
        Acks,
        Lost,
        Begin,
        Early,
        Down,
        Ask,
        Approve,
        Examine,
        Examined,
        Change,
        Changed,
        Attach,
        Join,
    )
}


def encode_message(message: Message) -> bytes:
    """Return the whole frame of a message."""
    return encode_frame(message.id, message.payload())


def decode_message(frame: Frame) -> Message:
    """Return the message in a frame.

    Raises:
        RemoteProtocolError: the id is not one of a native control connection, or the payload is not as it must be.
    """
    decoder = _DECODERS.get(frame.id)
    if decoder is None:
        raise RemoteProtocolError(f"unknown message id {frame.id}")
    return decoder(frame.payload)
