"""What can be configured: one frozen class for each section, one described field for each key.

The classes hold checked values and know what an unset value stands for. They do not know where a value came from:
`trionat.config.load` does, and asks `faults` for what is wrong between keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import attrs
import platformdirs

from trionat.address import Address, TCPAddress, parse_public_address
from trionat.config.key import Key, key, keys_of
from trionat.config.service import Service, parse_service
from trionat.config.values import (
    BOOLEAN,
    FINGERPRINT,
    HOST,
    LABEL,
    LOCAL,
    PATH,
    PORTS,
    PUBLIC,
    TCP,
    TEXT,
    Kind,
    seconds,
    whole,
)
from trionat.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "KEYS",
    "SECTIONS",
    "AuthConfig",
    "ClientConfig",
    "DatabaseConfig",
    "Fault",
    "Key",
    "ServerConfig",
    "Service",
    "keys_of",
    "parse_service",
]

Fault: TypeAlias = tuple[tuple[str, ...], str]
"""The fields that do not go together, the one most likely at fault first, and why."""

_SERVICES = Kind(
    "LOCAL or LOCAL:VISIT_PORT, such as 8080, 127.0.0.1:22:60001 or /run/app.sock",
    lambda text: (parse_service(text),),
)
_STATE_UNSET = "the platform's state folder of the user"


def _state_dir(configured: Path | None) -> Path:
    return platformdirs.user_state_path("trionat") if configured is None else configured


@attrs.frozen(kw_only=True)
class ServerConfig:
    """The section `Server`."""

    section: ClassVar[str] = "Server"

    name: str = attrs.field(
        default="Server-NAT",
        metadata=key("Name", LABEL, "what the server calls itself", letter="n"),
    )
    controller_addr: TCPAddress = attrs.field(
        default=TCPAddress("0.0.0.0", 8007),  # noqa: S104 - a server is there to be reached
        metadata=key(
            "ControllerAddr",
            TCP,
            "where control connections are accepted; port 0: any free port",
            letter="c",
        ),
    )
    tunnel_addr: TCPAddress = attrs.field(
        default=TCPAddress("0.0.0.0", 8008),  # noqa: S104 - the same
        metadata=key(
            "TunnelAddr",
            TCP,
            "where tunnels are accepted besides; port 0: any free port",
            letter="t",
        ),
    )
    visit_port: tuple[int, ...] = attrs.field(
        default=(60000, 60001, 60002, 60003),
        metadata=key(
            "VisitPort",
            PORTS,
            "public ports for visitors; 0: any free port",
            many=True,
            letter="p",
            flag="--expose-port",
        ),
    )
    visit_host: str | None = attrs.field(
        default=None,
        metadata=key(
            "VisitHost",
            HOST,
            "the interface of the visit ports",
            derived="effective_visit_host",
            unset="the host of ControllerAddr",
        ),
    )
    task_queue_num: int = attrs.field(
        default=4, metadata=key("TaskQueueNum", whole(1, 1024), "dispatcher tasks", letter="q")
    )
    task_queue_buff: int = attrs.field(
        default=32,
        metadata=key(
            "TaskQueueBuff",
            whole(1, 65536),
            "queue places for each dispatcher",
            letter="b",
            flag="--task-queue-buffer-size",
        ),
    )
    max_tcp_conn_num: int | None = attrs.field(
        default=None,
        metadata=key(
            "MaxTCPConnNum",
            whole(1, 65536),
            "sessions at once, at most the number of visit ports",
            letter="m",
            derived="session_limit",
            unset="the number of visit ports",
        ),
    )
    max_conn_num: int | None = attrs.field(
        default=None,
        metadata=key(
            "MaxConnNum",
            whole(1, 1_000_000),
            "queue places in all",
            letter="x",
            derived="queue_places",
            unset="TaskQueueNum x TaskQueueBuff",
        ),
    )
    log_filename: str = attrs.field(
        default="server.log",
        metadata=key("LogFilename", TEXT, "the log file", letter="l", flag="--log-name"),
    )
    start_auth: bool = attrs.field(
        default=True,
        metadata=key("StartAuth", BOOLEAN, "whether clients have to log in", letter="a"),
    )
    start_log: bool = attrs.field(
        default=True,
        metadata=key("StartLog", BOOLEAN, "whether to log to LogFilename besides the terminal"),
    )
    state_dir: Path | None = attrs.field(
        default=None,
        metadata=key(
            "StateDir",
            PATH,
            "the folder of keys, users and traffic",
            unset=_STATE_UNSET,
            derived="effective_state_dir",
            short="TRIONAT_STATE_DIR",
        ),
    )
    public_addr: str | None = attrs.field(
        default=None,
        metadata=key(
            "PublicAddr",
            PUBLIC,
            "how the server is reached from outside, for tickets and visit addresses; a port is the control port",
        ),
    )
    certificate: Path | None = attrs.field(
        default=None,
        metadata=key(
            "Certificate",
            PATH,
            "a certificate chain of your own, PEM; together with CertificateKey",
            unset="made at the first start",
        ),
    )
    certificate_key: Path | None = attrs.field(
        default=None,
        metadata=key(
            "CertificateKey",
            PATH,
            "the private key of Certificate, PEM",
            unset="made at the first start",
        ),
    )
    drain_grace: float = attrs.field(
        default=30.0,
        metadata=key(
            "DrainGrace", seconds(0, 86400), "how long visitors may finish at a planned stop"
        ),
    )
    port_reservation: float = attrs.field(
        default=30.0,
        metadata=key(
            "PortReservation",
            seconds(0, 86400),
            "how long the ports of a lost session are kept for its client; 0: not at all",
        ),
    )
    visitor_wait: float = attrs.field(
        default=8.0,
        metadata=key("VisitorWait", seconds(0.1, 300), "how long a visitor waits for its tunnel"),
    )
    max_visitors: int = attrs.field(
        default=1024,
        metadata=key(
            "MaxVisitors", whole(1, 65536), "visitors of one session at once, waiting or paired"
        ),
    )
    max_waiting_visitors: int = attrs.field(
        default=256,
        metadata=key("MaxWaitingVisitors", whole(1, 65536), "waiting visitors of one session"),
    )
    max_services: int = attrs.field(
        default=16, metadata=key("MaxServices", whole(1, 1024), "services of one session")
    )
    handshake_timeout: float = attrs.field(
        default=10.0,
        metadata=key(
            "HandshakeTimeout",
            seconds(0.1, 300),
            "how long a new connection may take to say who it is",
        ),
    )
    max_handshakes: int = attrs.field(
        default=1024,
        metadata=key("MaxHandshakes", whole(1, 65536), "connections at once in their handshake"),
    )
    ping_interval: float = attrs.field(
        default=2.5,
        metadata=key("PingInterval", seconds(0.1, 60), "time between two pings to a client"),
    )
    peer_timeout: float = attrs.field(
        default=8.0,
        metadata=key(
            "PeerTimeout",
            seconds(0.2, 300),
            "silence after which a client counts as gone, at least twice PingInterval",
        ),
    )

    @property
    def session_limit(self) -> int:
        """Sessions that may run at once."""
        return len(self.visit_port) if self.max_tcp_conn_num is None else self.max_tcp_conn_num

    @property
    def queue_places(self) -> int:
        """Authenticated clients that may wait for a session."""
        if self.max_conn_num is None:
            return self.task_queue_num * self.task_queue_buff
        return self.max_conn_num

    @property
    def effective_visit_host(self) -> str:
        """The interface that the visit ports listen on."""
        return self.controller_addr.host if self.visit_host is None else self.visit_host

    @property
    def effective_state_dir(self) -> Path:
        """The folder of keys, users and traffic; it may not exist yet."""
        return _state_dir(self.state_dir)

    @property
    def public_host(self) -> str | None:
        """The host of `public_addr`."""
        return None if self.public_addr is None else parse_public_address(self.public_addr)[0]

    @property
    def public_port(self) -> int | None:
        """The control port as seen from outside, where `public_addr` names one."""
        return None if self.public_addr is None else parse_public_address(self.public_addr)[1]

    def faults(self) -> Iterator[Fault]:
        """What does not go together."""
        ports = self.visit_port
        if not ports:
            yield (
                ("visit_port",),
                "there is no visit port: name at least one, or 0 for any free one",
            )
        if twice := sorted({port for port in ports if port and ports.count(port) > 1}):
            yield ("visit_port",), f"named more than once: {', '.join(map(str, twice))}"
        if ports and self.max_tcp_conn_num is not None and self.max_tcp_conn_num > len(ports):
            yield (
                ("max_tcp_conn_num", "visit_port"),
                f"{self.max_tcp_conn_num} sessions at once, but only {len(ports)} visit ports: lower it, or name more ports",
            )
        if self.certificate is not None and self.certificate_key is None:
            yield (
                ("certificate",),
                "a certificate needs its private key: set CertificateKey as well",
            )
        if self.certificate is None and self.certificate_key is not None:
            yield (
                ("certificate_key",),
                "a private key needs its certificate: set Certificate as well",
            )
        if self.peer_timeout < 2 * self.ping_interval:
            yield (
                ("peer_timeout", "ping_interval"),
                f"PeerTimeout {self.peer_timeout:g} has to be at least twice PingInterval {self.ping_interval:g}",
            )


@attrs.frozen(kw_only=True)
class DatabaseConfig:
    """The section `Database`: where users live in MySQL or MariaDB. Without it they live in an SQLite file."""

    section: ClassVar[str] = "Database"

    username: str = attrs.field(metadata=key("Username", TEXT, "who logs in there", flag=None))
    password: str = attrs.field(
        default="", repr=False, metadata=key("Password", TEXT, "its password", flag=None)
    )
    host: str = attrs.field(metadata=key("Host", PUBLIC, "the database server", flag=None))
    db_name: str = attrs.field(metadata=key("DBName", TEXT, "the database", flag=None))

    def faults(self) -> Iterator[Fault]:
        """Nothing can contradict."""
        yield from ()


@attrs.frozen(kw_only=True)
class AuthConfig:
    """The section `Auth`: as whom a client logs in. A ticket holds the same."""

    section: ClassVar[str] = "Auth"

    username: str | None = attrs.field(
        default=None, metadata=key("Username", TEXT, "the user's name", letter="u")
    )
    password: str | None = attrs.field(
        default=None, repr=False, metadata=key("Password", TEXT, "the user's password", letter="P")
    )

    def faults(self) -> Iterator[Fault]:
        """Nothing can contradict: a password without a name may have its name from a flag of a later run."""
        yield from ()


@attrs.frozen(kw_only=True)
class ClientConfig:
    """The section `Client`."""

    section: ClassVar[str] = "Client"

    name: str = attrs.field(
        default="Client-NAT",
        metadata=key("Name", LABEL, "what the client calls itself", letter="n"),
    )
    public_server_addr: str | None = attrs.field(
        default=None,
        metadata=key(
            "PublicServerAddr",
            PUBLIC,
            "the server's host as shown in the visit address",
            letter="s",
            unset="the host of ControllerAddr",
        ),
    )
    tunnel_server_addr: TCPAddress | None = attrs.field(
        default=None,
        metadata=key(
            "TunnelServerAddr", TCP, "where tunnels go", letter="t", unset="ControllerAddr"
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
        ),
    )
    local_server_addr: Address | None = attrs.field(
        default=None,
        metadata=key("LocalServerAddr", LOCAL, "the service, where Services is empty", letter="l"),
    )
    services: tuple[Service, ...] = attrs.field(
        default=(),
        metadata=key(
            "Services",
            _SERVICES,
            "the services; an entry may also be a mapping of Local, VisitPort and Name",
            many=True,
            item=Service,
            flag="SERVICE",
            unset="LocalServerAddr",
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
        ),
    )
    ticket_file: Path | None = attrs.field(
        default=None, metadata=key("TicketFile", PATH, "a file that holds the ticket")
    )
    fingerprint: str | None = attrs.field(
        default=None,
        metadata=key(
            "Fingerprint",
            FINGERPRINT,
            "the fingerprint that the server's certificate must have",
            unset="from the ticket",
        ),
    )
    trust_on_first_use: bool = attrs.field(
        default=False,
        metadata=key(
            "TrustOnFirstUse",
            BOOLEAN,
            "whether to trust an unknown server at the first connection and to remember it",
        ),
    )
    ca_file: Path | None = attrs.field(
        default=None,
        metadata=key("CAFile", PATH, "certificate authorities to check the server by, PEM"),
    )
    state_dir: Path | None = attrs.field(
        default=None,
        metadata=key(
            "StateDir",
            PATH,
            "the folder of known servers and of the client's identity",
            unset=_STATE_UNSET,
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
    log_filename: str | None = attrs.field(
        default=None,
        metadata=key("LogFilename", TEXT, "a log file besides the terminal", flag="--log-name"),
    )
    drain_grace: float = attrs.field(
        default=10.0,
        metadata=key(
            "DrainGrace", seconds(0, 86400), "how long visitors may finish at a planned stop"
        ),
    )
    once: bool = attrs.field(
        default=False, metadata=key("Once", BOOLEAN, "whether to end when the connection is lost")
    )
    min_idle_tunnels: int = attrs.field(
        default=4, metadata=key("MinIdleTunnels", whole(1, 1024), "idle tunnels kept ready")
    )
    max_tunnels: int = attrs.field(
        default=1024, metadata=key("MaxTunnels", whole(1, 65536), "tunnels at once, idle or in use")
    )
    connect_timeout: float = attrs.field(
        default=10.0,
        metadata=key(
            "ConnectTimeout", seconds(0.1, 300), "how long connecting to the server may take"
        ),
    )
    local_timeout: float = attrs.field(
        default=5.0,
        metadata=key(
            "LocalTimeout",
            seconds(0.1, 300),
            "how long connecting to the service may take; keep it below the server's VisitorWait",
        ),
    )

    @property
    def effective_state_dir(self) -> Path:
        """The folder of known servers and of the identity; it may not exist yet."""
        return _state_dir(self.state_dir)

    def effective_services(self) -> tuple[Service, ...]:
        """The services to expose: `services`, else `local_server_addr`.

        Raises:
            ConfigError: There is neither; the message tells how to name one.
        """
        if self.services:
            return self.services
        if self.local_server_addr is not None:
            return (Service(local=self.local_server_addr),)
        reason = (
            "no local service is named: give one on the command line, such as 8080 or 127.0.0.1:22,"
            " or set Client.Services or Client.LocalServerAddr"
        )
        raise ConfigError(Problem("configuration", reason))

    def faults(self) -> Iterator[Fault]:
        """What does not go together."""
        wished = [service.visit_port for service in self.services if service.visit_port is not None]
        if twice := sorted({port for port in wished if wished.count(port) > 1}):
            yield (
                ("services",),
                f"visit port wished for more than once: {', '.join(map(str, twice))}",
            )
        if self.min_idle_tunnels > self.max_tunnels:
            yield (
                ("min_idle_tunnels", "max_tunnels"),
                f"MinIdleTunnels {self.min_idle_tunnels} is above MaxTunnels {self.max_tunnels}",
            )


SECTIONS: dict[str, type[Any]] = {
    owner.section: owner for owner in (ServerConfig, DatabaseConfig, AuthConfig, ClientConfig)
}
"""The class of every section, by the section's name."""

KEYS: dict[str, Key] = {
    entry.path: entry for owner in SECTIONS.values() for entry in keys_of(owner)
}
"""Every key, by its path such as `Server.VisitPort`."""
