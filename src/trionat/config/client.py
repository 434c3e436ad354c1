"""The sections of the client: `Client`, and `Auth` for as whom it logs in."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, ClassVar, Final

import attrs

from trionat.config.key import AT_ONCE, key
from trionat.config.service import Service, parse_service
from trionat.config.values import (
    BASIC_AUTH,
    BOOLEAN,
    ENCRYPTED,
    FINGERPRINT,
    HOST,
    LABEL,
    LEVEL,
    LOCAL,
    LOOPBACK,
    NETWORKS,
    NO_PROXY,
    PATH,
    PROXY,
    RATE,
    SERVERS,
    STATE_DIR_UNSET,
    TCP,
    TEXT,
    UNENCRYPTED,
    Kind,
    one_of,
    seconds,
    user_state_dir,
    whole,
    wrong_with_logins,
    wrong_with_servers,
)
from trionat.errors import ConfigError, Problem
from trionat.text import invisible_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trionat.address import Address, TCPAddress
    from trionat.config.key import Fault
    from trionat.networks import Network

NATIVE: Final = "native"
"""trionat's own dialect, in TLS; the others are those of an original server."""

_SERVICES = Kind(
    "LOCAL or LOCAL:VISIT_PORT, such as 8080, 127.0.0.1:22:60001 or /run/app.sock; http:LOCAL or http:LOCAL@NAME; tls:LOCAL@NAME; https:LOCAL:VISIT_PORT",
    lambda text: (parse_service(text),),
)


_WHO_MAY_VISIT: Final = (
    ("basic_auth", "BasicAuth"),
    ("allow", "Allow"),
    ("deny", "Deny"),
    ("rate", "Rate"),
    ("approve", "Approve"),
)
"""Fields that say it, and their keys."""


def _counted(number: int) -> str:
    return "two" if number == 2 else str(number)


@attrs.frozen(kw_only=True)
class AuthConfig:
    """The section `Auth`: as whom a client logs in. A ticket holds the same."""

    section: ClassVar[str] = "Auth"

    username: str | None = attrs.field(
        default=None, metadata=key("Username", TEXT, "the user's name", letter="u", effect=AT_ONCE)
    )
    password: str | None = attrs.field(
        default=None,
        repr=False,
        metadata=key("Password", TEXT, "the user's password", letter="P", effect=AT_ONCE),
    )

    def faults(self) -> Iterator[Fault]:
        """Nothing can contradict: a password without a name may have its name from a flag of a later run."""
        yield from ()

    def warnings(self) -> Iterator[Fault]:
        """What is most likely not meant. A password that cannot be typed may still have been set by another program."""
        if self.password is not None and (found := invisible_in(self.password)) is not None:
            yield ("password",), f"the password has {found}: was it pasted with more than it is?"


@attrs.frozen(kw_only=True)
class ClientConfig:
    """A client: the section `Client`.

    Durations are in seconds, sizes in bytes. What does not go together is told when it is used: by a ConfigError.
    """

    section: ClassVar[str] = "Client"

    name: str = attrs.field(
        default="Client-NAT",
        metadata=key("Name", LABEL, "what the client calls itself", letter="n", effect=AT_ONCE),
    )
    public_server_addr: str | None = attrs.field(
        default=None,
        metadata=key(
            "PublicServerAddr",
            HOST,
            "the server's host as shown in the visit address",
            letter="s",
            unset="the host of ControllerAddr",
            effect=AT_ONCE,
        ),
    )
    tunnel_server_addr: TCPAddress | None = attrs.field(
        default=None,
        metadata=key(
            "TunnelServerAddr",
            TCP,
            "where tunnels go",
            letter="t",
            unset="ControllerAddr",
            effect=AT_ONCE,
        ),
    )
    dialect: str = attrs.field(
        default=NATIVE,
        metadata=key(
            "Dialect",
            one_of(NATIVE, "nat-v1", "nat-doc"),
            "what the server speaks; nat-v1 and nat-doc are those of NAT, the Go program: not encrypted",
        ),
    )
    controller_addr: TCPAddress | None = attrs.field(
        default=None,
        metadata=key(
            "ControllerAddr",
            TCP,
            "the server's control address",
            letter="c",
            unset="from the ticket",
            effect=AT_ONCE,
        ),
    )
    servers: tuple[TCPAddress, ...] = attrs.field(
        default=(),
        metadata=key(
            "Servers",
            SERVERS,
            "several servers, of which the client uses one, and another one when that fails; in place of ControllerAddr and of the ticket's addresses",
            many=True,
            flag="--server",
            unset="ControllerAddr",
            effect=AT_ONCE,
        ),
    )
    tunnel_encryption: str = attrs.field(
        default=ENCRYPTED,
        metadata=key(
            "TunnelEncryption",
            one_of(ENCRYPTED, UNENCRYPTED),
            "none: tunnels without TLS, for networks that you trust, where the server says the same; the control connection stays encrypted",
            effect=AT_ONCE,
        ),
    )
    local_server_addr: Address | None = attrs.field(
        default=None,
        metadata=key(
            "LocalServerAddr",
            LOCAL,
            "the service, where Services is empty",
            letter="l",
            effect=AT_ONCE,
        ),
    )
    services: tuple[Service, ...] = attrs.field(
        default=(),
        metadata=key(
            "Services",
            _SERVICES,
            "the services; an entry may also be a mapping of Local, VisitPort, Name, ProxyProtocol, Http, Tls, Https, Http2, BasicAuth, Allow, Deny, Rate and Approve",
            many=True,
            item=Service,
            flag="SERVICE",
            unset="LocalServerAddr",
            effect=AT_ONCE,
        ),
    )
    proxy_protocol: str = attrs.field(
        default=NO_PROXY,
        metadata=key(
            "ProxyProtocol",
            PROXY,
            "how services are told a visitor's address, before its own bytes; only for services that expect it",
            effect=AT_ONCE,
        ),
    )
    basic_auth: tuple[str, ...] = attrs.field(
        default=(),
        repr=False,
        metadata=key(
            "BasicAuth",
            BASIC_AUTH,
            "users and passwords, of which visitors of services with names need one; only hashes are sent to the server",
            many=True,
            unset="nobody needs one",
            effect=AT_ONCE,
        ),
    )
    allow: tuple[Network, ...] = attrs.field(
        default=(),
        metadata=key(
            "Allow",
            NETWORKS,
            "who alone may visit services with names",
            many=True,
            unset="everybody",
            effect=AT_ONCE,
        ),
    )
    deny: tuple[Network, ...] = attrs.field(
        default=(),
        metadata=key(
            "Deny",
            NETWORKS,
            "who may not visit services with names",
            many=True,
            unset="nobody",
            effect=AT_ONCE,
        ),
    )
    rate: float | None = attrs.field(
        default=None,
        metadata=key(
            "Rate",
            RATE,
            "requests a second that one visitor of a service with a name may make",
            unset="any number",
            effect=AT_ONCE,
        ),
    )
    approve: bool = attrs.field(
        default=False,
        metadata=key(
            "Approve",
            BOOLEAN,
            "ask here for each address that visits a service with a name, before it sees anything",
            effect=AT_ONCE,
        ),
    )
    ticket: str | None = attrs.field(
        default=None,
        repr=False,
        metadata=key(
            "Ticket",
            TEXT,
            "address, fingerprint and credential of the server in one",
            flag="TICKET",
            short="TRIONAT_TICKET",
            effect=AT_ONCE,
        ),
    )
    ticket_file: Path | None = attrs.field(
        default=None,
        metadata=key("TicketFile", PATH, "a file that holds the ticket", effect=AT_ONCE),
    )
    fingerprint: str | None = attrs.field(
        default=None,
        metadata=key(
            "Fingerprint",
            FINGERPRINT,
            "the fingerprint that the server's certificate must have",
            unset="from the ticket",
            effect=AT_ONCE,
        ),
    )
    trust_on_first_use: bool = attrs.field(
        default=False,
        metadata=key(
            "TrustOnFirstUse",
            BOOLEAN,
            "trust an unknown server at the first connection and remember it",
            effect=AT_ONCE,
        ),
    )
    ca_file: Path | None = attrs.field(
        default=None,
        metadata=key(
            "CAFile", PATH, "certificate authorities to check the server by, PEM", effect=AT_ONCE
        ),
    )
    state_dir: Path | None = attrs.field(
        default=None,
        metadata=key(
            "StateDir",
            PATH,
            "the folder of known servers and of the client's identity",
            unset=STATE_DIR_UNSET,
            derived="effective_state_dir",
            short="TRIONAT_STATE_DIR",
        ),
    )
    identity: str | None = attrs.field(
        default=None,
        metadata=key(
            "Identity",
            LABEL,
            "as whom the client keeps its ports over a reconnect",
            unset="made once and kept in StateDir",
        ),
    )
    group: str | None = attrs.field(
        default=None,
        metadata=key(
            "Group",
            LABEL,
            "the name of a group: clients of the same user that share visit ports, and visitors go to the one that has the fewest",
            effect=AT_ONCE,
        ),
    )
    log_filename: str | None = attrs.field(
        default=None,
        metadata=key("LogFilename", TEXT, "a log file besides the terminal", flag="--log-name"),
    )
    log_level: str | None = attrs.field(
        default=None,
        metadata=key(
            "LogLevel",
            LEVEL,
            "how much the log tells; TRIONAT_LOG_LEVEL comes before a file",
            unset="INFO",
            effect=AT_ONCE,
        ),
    )
    reload_on_change: bool = attrs.field(
        default=False,
        metadata=key(
            "ReloadOnChange",
            BOOLEAN,
            "read the configuration again whenever the file, or a file that it names, changes",
        ),
    )
    drain_grace: float = attrs.field(
        default=10.0,
        metadata=key(
            "DrainGrace",
            seconds(0, 86400),
            "how long visitors may finish at a planned stop",
            effect=AT_ONCE,
        ),
    )
    once: bool = attrs.field(
        default=False,
        metadata=key("Once", BOOLEAN, "end when the connection is lost, instead of trying again"),
    )
    min_idle_tunnels: int = attrs.field(
        default=4,
        metadata=key("MinIdleTunnels", whole(1, 1024), "idle tunnels kept ready", effect=AT_ONCE),
    )
    max_tunnels: int = attrs.field(
        default=1024,
        metadata=key(
            "MaxTunnels", whole(1, 65536), "tunnels at once, idle or in use", effect=AT_ONCE
        ),
    )
    connect_timeout: float = attrs.field(
        default=10.0,
        metadata=key(
            "ConnectTimeout",
            seconds(0.1, 300),
            "how long connecting to the server may take",
            effect=AT_ONCE,
        ),
    )
    local_timeout: float = attrs.field(
        default=5.0,
        metadata=key(
            "LocalTimeout",
            seconds(0.1, 300),
            "how long connecting to the service may take; keep it below the server's VisitorWait",
            effect=AT_ONCE,
        ),
    )

    inspect: bool = attrs.field(
        default=False,
        metadata=key(
            "Inspect",
            BOOLEAN,
            "show in a browser on this machine what visitors and services say to each other; needs pip install '.[console]'",
        ),
    )
    inspect_addr: TCPAddress | None = attrs.field(
        default=None,
        metadata=key(
            "InspectAddr",
            LOOPBACK,
            "where a browser finds what Inspect shows; switches Inspect on",
            unset="127.0.0.1:4040, or the next free port",
        ),
    )
    inspect_bytes: int = attrs.field(
        default=1024 * 1024,
        metadata=key(
            "InspectBytes",
            whole(1024, 64 * 1024 * 1024),
            "bytes of a visitor, in each direction, that Inspect keeps; of all visitors together it keeps 64 MiB",
        ),
    )

    @property
    def inspects(self) -> bool:
        """Whether visitors are recorded and shown."""
        return self.inspect or self.inspect_addr is not None

    @property
    def effective_state_dir(self) -> Path:
        """The folder of known servers and of the identity; it may not exist yet."""
        return self.state_dir or user_state_dir()

    def effective_services(self) -> tuple[Service, ...]:
        """The services to expose: `services`, else `local_server_addr`; each with its `proxy_protocol`.

        Raises:
            ConfigError: There is neither; the message tells how to name one.
        """
        services = self.services
        if not services and self.local_server_addr is not None:
            services = (Service(local=self.local_server_addr),)
        if services:
            return tuple(map(self._completed, services))
        reason = (
            "no local service is named: give one on the command line, such as 8080 or 127.0.0.1:22,"
            " or set Client.Services or Client.LocalServerAddr"
        )
        raise ConfigError(Problem("configuration", reason))

    def named_services(self) -> tuple[Service, ...]:
        """The services that are published by name, with what they leave to the client."""
        return tuple(self._completed(service) for service in self.services if service.by_name)

    def _completed(self, service: Service) -> Service:
        """Return a service with what it leaves to the client."""
        if self.proxy_protocol != NO_PROXY and service.proxy_protocol is None:
            service = attrs.evolve(service, proxy_protocol=self.proxy_protocol)
        if not service.by_name:
            return service
        sees_requests = service.tls is None and not service.http2
        basic_auth = self.basic_auth if sees_requests else ()
        return attrs.evolve(
            service,
            basic_auth=basic_auth if service.basic_auth is None else service.basic_auth,
            allow=self.allow if service.allow is None else service.allow,
            deny=self.deny if service.deny is None else service.deny,
            rate=service.rate or self.rate,
            approve=self.approve if service.approve is None else service.approve,
        )

    def _faults_of_names(self) -> Iterator[Fault]:
        for service in self.services:
            if (reason := service.wrong()) is not None:
                yield ("services",), f"{service.local}: {reason}"
        names = Counter(service.hostname for service in self.services if service.hostname)
        for name, services in names.items():
            if services > 1:
                yield ("services",), f"{_counted(services)} services ask for the name {name}"
        if (reason := wrong_with_logins(self.basic_auth)) is not None:
            yield ("basic_auth",), reason
        if self.basic_auth:
            for service in self.services:
                if service.tls is not None or service.http2:
                    yield (
                        ("basic_auth", "services"),
                        f"{service.local}: BasicAuth cannot protect it, since nobody sees its requests (Tls, Http2): start another client for it",
                    )
        if any(service.by_name for service in self.services):
            return
        for field, name in _WHO_MAY_VISIT:
            if getattr(self, field):
                yield (
                    (field, "services"),
                    f"{name} is for services with names, such as http:8080: there is none",
                )

    def faults(self) -> Iterator[Fault]:
        """What does not go together."""
        yield from self._faults_of_names()
        wanted = Counter(service.visit_port for service in self.services)
        for port, services in wanted.items():
            if port is not None and services > 1:
                yield ("services",), f"{_counted(services)} services ask for visit port {port}"
        if (reason := wrong_with_servers(self.servers)) is not None:
            yield ("servers",), reason
        if self.min_idle_tunnels > self.max_tunnels:
            yield (
                ("min_idle_tunnels", "max_tunnels"),
                f"MinIdleTunnels {self.min_idle_tunnels} is above MaxTunnels {self.max_tunnels}",
            )
        if self.dialect != NATIVE:
            yield from self._faults_of_legacy()
        elif self.ca_file is not None and self.trust_on_first_use:
            yield (
                ("ca_file", "trust_on_first_use"),
                "with TrustOnFirstUse any unknown server is trusted, so CAFile checks nothing: remove one of the two",
            )

    def warnings(self) -> Iterator[Fault]:
        """What is of no use. A fingerprint decides alone, whatever else could check a server; each of several servers takes its own tunnels."""
        if len(self.servers) > 1 and self.tunnel_server_addr is not None:
            yield (
                ("tunnel_server_addr", "servers"),
                "of no use beside several Servers, of which each takes its own tunnels",
            )
        bare = [str(service.local) for service in self.services if not service.by_name]
        given = [(field, name) for field, name in _WHO_MAY_VISIT if getattr(self, field)]
        if bare and given and len(bare) < len(self.services):
            yield (
                (given[0][0], "services"),
                f"{' and '.join(name for _, name in given)} {'hold' if len(given) > 1 else 'holds'} for services with names, and not at the visit port of {', '.join(bare)}: everybody may visit that",
            )
        if self.fingerprint is None or self.dialect != NATIVE:
            return
        for field in ("ca_file", "trust_on_first_use"):
            if getattr(self, field):
                yield (field, "fingerprint"), "of no use beside Fingerprint, which decides alone"

    def _faults_of_legacy(self) -> Iterator[Fault]:
        """A legacy server has two ports, no identity that could be checked, and one visit port for a client, of its own choice."""
        for field, name in (
            ("controller_addr", "ControllerAddr"),
            ("tunnel_server_addr", "TunnelServerAddr"),
        ):
            if getattr(self, field) is None:
                yield ("dialect",), f"{self.dialect} needs {name}: set it as well"
        without = f"remove it, as Dialect is {self.dialect}"
        if self.servers:
            yield (
                ("servers", "dialect"),
                f"several servers are for the native dialect: {without}",
            )
        if self.group is not None:
            yield ("group", "dialect"), f"groups are for the native dialect: {without}"
        if self.ticket is not None:
            yield ("ticket", "dialect"), f"tickets are for the native dialect: {without}"
        if self.ticket_file is not None:
            yield ("ticket_file", "dialect"), f"tickets are for the native dialect: {without}"
        for field in ("fingerprint", "trust_on_first_use", "ca_file"):
            if getattr(self, field):
                yield (
                    (field, "dialect"),
                    f"a server is checked in the native dialect only: {without}",
                )
        if len(self.services) > 1:
            yield (
                ("services", "dialect"),
                f"{self.dialect} carries one service for each client, not {len(self.services)}: start one client for each",
            )
        said = [service.proxy_protocol or self.proxy_protocol for service in self.services]
        if any(each != NO_PROXY for each in (*said, self.proxy_protocol)):
            yield (
                ("proxy_protocol", "services", "dialect"),
                f"{self.dialect} does not tell where visitors come from: {without}",
            )
        if any(service.by_name for service in self.services):
            yield ("services", "dialect"), f"names are for the native dialect: {without}"
        if any(service.visit_port is not None for service in self.services):
            yield (
                ("services", "dialect"),
                f"in {self.dialect} the server chooses the visit port: leave it out",
            )
