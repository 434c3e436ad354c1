"""The section of the server, `Server`; where its users may live is in `database`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, ClassVar, Final

import attrs

from trionat.address import TCPAddress, parse_public_address
from trionat.config.key import AT_ONCE, NEW_SESSIONS, key
from trionat.config.values import (
    AUTO,
    BOOLEAN,
    DOMAIN,
    ENCRYPTED,
    HOST,
    HOSTS,
    HTTP_PORT,
    HTTPS_PORT,
    LABEL,
    LEVEL,
    NETWORKS,
    PATH,
    PORTS,
    PUBLIC,
    SERVERS,
    STATE_DIR_UNSET,
    TCP,
    TCP_OR_PORT,
    TEXT,
    UNENCRYPTED,
    count_or_auto,
    one_of,
    seconds,
    user_state_dir,
    whole,
    wrong_with_servers,
)
from trionat.networks import Network, parse_network
from trionat.system import count_processors
from trionat.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trionat.config.key import Fault


class _Unnamed(tuple[Network, ...]):
    """Networks that nobody has named. The same ones that somebody has named are equal, and mean more."""

    __slots__ = ()


LOOPBACK: Final = _Unnamed((parse_network("127.0.0.0/8"), parse_network("::1")))
"""Of this machine alone."""


JSON_LINES: Final = "json"
COMBINED: Final = "combined"
"""What `AccessLogFormat` may be."""

SESSIONS_WITH_NAMES: Final = 1000
"""What `MaxTCPConnNum` is where services have names, and nobody has said it: they need no visit port."""

TOLERATE: Final = "tolerate"
REQUIRE: Final = "require"
"""What `VisitPortPolicy` may be."""


@attrs.frozen(kw_only=True)
class ServerConfig:
    """A server: the section `Server`.

    Durations are in seconds, sizes in bytes. What does not go together is told when it is used: by a ConfigError.
    """

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
            "visit ports, to which visitors come; 0: any free port",
            many=True,
            letter="p",
            aliases=("--expose-port",),
            effect=AT_ONCE,
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
    visit_port_policy: str = attrs.field(
        default=TOLERATE,
        metadata=key(
            "VisitPortPolicy",
            one_of(TOLERATE, REQUIRE),
            "what a visit port that cannot be opened at the start means: tolerate: the others are served; require: no start",
            effect=AT_ONCE,
        ),
    )
    proxy_visit_addr: TCPAddress | None = attrs.field(
        default=None,
        metadata=key(
            "ProxyVisitAddr",
            TCP,
            "where nginx or HAProxy hand over the visitors of all visit ports, each with a PROXY header; port 0: any free port",
        ),
    )
    proxy_control_addr: TCPAddress | None = attrs.field(
        default=None,
        metadata=key(
            "ProxyControlAddr",
            TCP,
            "where nginx or HAProxy hand over clients, control connections and tunnels, each with a PROXY header; port 0: any free port",
        ),
    )
    trusted_proxies: tuple[Network, ...] = attrs.field(
        default=LOOPBACK,
        metadata=key(
            "TrustedProxies",
            NETWORKS,
            "the only ones who may connect to ProxyVisitAddr and ProxyControlAddr: whoever may do that can claim any address",
            many=True,
            unset="nobody",
            effect=AT_ONCE,
        ),
    )
    task_queue_num: int = attrs.field(
        default=4,
        metadata=key(
            "TaskQueueNum",
            whole(1, 1024),
            "queue places, times TaskQueueBuff",
            letter="q",
            effect=AT_ONCE,
        ),
    )
    task_queue_buff: int = attrs.field(
        default=32,
        metadata=key(
            "TaskQueueBuff",
            whole(1, 65536),
            "queue places, times TaskQueueNum",
            letter="b",
            flag="--task-queue-buffer-size",
            effect=AT_ONCE,
        ),
    )
    max_tcp_conn_num: int | None = attrs.field(
        default=None,
        metadata=key(
            "MaxTCPConnNum",
            whole(1, 65536),
            "sessions at once; without a Domain, at most the number of visit ports",
            letter="m",
            derived="session_limit",
            unset="the number of visit ports; with a Domain 1000 at least",
            effect=AT_ONCE,
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
            effect=AT_ONCE,
        ),
    )
    log_filename: str | None = attrs.field(
        default=None,
        metadata=key(
            "LogFilename",
            TEXT,
            "the log file",
            letter="l",
            flag="--log-name",
            unset="server.log in StateDir",
            derived="effective_log_filename",
        ),
    )
    start_auth: bool = attrs.field(
        default=True,
        metadata=key("StartAuth", BOOLEAN, "whether clients have to log in", letter="a"),
    )
    start_log: bool = attrs.field(
        default=True,
        metadata=key("StartLog", BOOLEAN, "whether to log to LogFilename besides the terminal"),
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
    tunnel_encryption: str = attrs.field(
        default=ENCRYPTED,
        metadata=key(
            "TunnelEncryption",
            one_of(ENCRYPTED, UNENCRYPTED),
            "none: tunnels without TLS, for networks that you trust, where the client says the same; the control connection stays encrypted",
            effect=NEW_SESSIONS,
        ),
    )
    legacy_clients: bool = attrs.field(
        default=False,
        metadata=key(
            "LegacyClients",
            BOOLEAN,
            "let clients of NAT, the Go program, come in as well; what they send can be read on the way",
            effect=AT_ONCE,
        ),
    )
    state_dir: Path | None = attrs.field(
        default=None,
        metadata=key(
            "StateDir",
            PATH,
            "the folder of keys and users",
            unset=STATE_DIR_UNSET,
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
            unset="detected",
        ),
    )
    other_servers: tuple[TCPAddress, ...] = attrs.field(
        default=(),
        metadata=key(
            "OtherServers",
            SERVERS,
            "other servers that take the same clients: named in tickets, and to clients when this one stops",
            many=True,
            flag="--other-server",
            effect=AT_ONCE,
        ),
    )
    certificate: Path | None = attrs.field(
        default=None,
        metadata=key(
            "Certificate",
            PATH,
            "a certificate chain of your own, PEM; together with CertificateKey",
            unset="made at the first start",
            effect=AT_ONCE,
        ),
    )
    certificate_key: Path | None = attrs.field(
        default=None,
        metadata=key(
            "CertificateKey",
            PATH,
            "the private key of Certificate, PEM",
            unset="made at the first start",
            effect=AT_ONCE,
        ),
    )
    drain_grace: float = attrs.field(
        default=30.0,
        metadata=key(
            "DrainGrace",
            seconds(0, 86400),
            "how long visitors may finish at a planned stop",
            effect=AT_ONCE,
        ),
    )
    port_reservation: float = attrs.field(
        default=30.0,
        metadata=key(
            "PortReservation",
            seconds(0, 86400),
            "how long the ports of a lost session are kept for its client; 0: not at all",
            effect=AT_ONCE,
        ),
    )
    resume_wait: float = attrs.field(
        default=30.0,
        metadata=key(
            "ResumeWait",
            seconds(0, 86400),
            "how long a visitor whose tunnel or client is lost waits to go on, at most PortReservation; 0: not at all",
            derived="effective_resume_wait",
            effect=NEW_SESSIONS,
        ),
    )
    resume_buffer: int = attrs.field(
        default=2**20,
        metadata=key(
            "ResumeBuffer",
            whole(2**16, 2**26),
            "bytes of a visitor, in each direction, that may be under way and not yet acknowledged",
            effect=NEW_SESSIONS,
        ),
    )
    resume_memory: int = attrs.field(
        default=2**26,
        metadata=key(
            "ResumeMemory",
            whole(2**16, 2**40),
            "bytes that are held for the visitors of one session, in case they have to be sent again",
            effect=NEW_SESSIONS,
        ),
    )
    resume_memory_total: int = attrs.field(
        default=2**29,
        metadata=key(
            "ResumeMemoryTotal",
            whole(2**16, 2**40),
            "bytes that are held so for the visitors of all sessions together",
            effect=AT_ONCE,
        ),
    )
    visitor_wait: float = attrs.field(
        default=8.0,
        metadata=key(
            "VisitorWait",
            seconds(0.1, 300),
            "how long a visitor waits for its tunnel",
            effect=AT_ONCE,
        ),
    )
    max_visitors: int = attrs.field(
        default=1024,
        metadata=key(
            "MaxVisitors",
            whole(1, 65536),
            "visitors of one session at once, waiting or paired",
            effect=NEW_SESSIONS,
        ),
    )
    max_waiting_visitors: int = attrs.field(
        default=1024,
        metadata=key(
            "MaxWaitingVisitors",
            whole(1, 65536),
            "waiting visitors of one session",
            effect=NEW_SESSIONS,
        ),
    )
    max_visitors_per_address: int = attrs.field(
        default=0,
        metadata=key(
            "MaxVisitorsPerAddress",
            whole(0, 65536),
            "visitors from one address (IPv6: /64) at once, on all ports; 0: no limit",
            effect=AT_ONCE,
        ),
    )
    visitor_rate: int = attrs.field(
        default=0,
        metadata=key(
            "VisitorRate",
            whole(0, 65536),
            "visitors a second from one address (IPv6: /64), on all ports; as many may come in one moment; 0: no limit",
            effect=AT_ONCE,
        ),
    )
    allow_visitors: tuple[Network, ...] = attrs.field(
        default=(),
        metadata=key(
            "AllowVisitors",
            NETWORKS,
            "the only ones who may visit",
            many=True,
            unset="everybody",
            effect=AT_ONCE,
        ),
    )
    deny_visitors: tuple[Network, ...] = attrs.field(
        default=(),
        metadata=key(
            "DenyVisitors",
            NETWORKS,
            "who may not visit, even where AllowVisitors has them",
            many=True,
            unset="nobody",
            effect=AT_ONCE,
        ),
    )
    max_services: int = attrs.field(
        default=16,
        metadata=key("MaxServices", whole(1, 1024), "services of one session", effect=AT_ONCE),
    )
    max_group_clients: int = attrs.field(
        default=16,
        metadata=key(
            "MaxGroupClients",
            whole(1, 1024),
            "clients of one group, which share their visit ports and a session slot",
            effect=AT_ONCE,
        ),
    )
    handshake_timeout: float = attrs.field(
        default=10.0,
        metadata=key(
            "HandshakeTimeout",
            seconds(0.1, 300),
            "how long a new connection may take to say who it is",
            effect=AT_ONCE,
        ),
    )
    max_handshakes: int = attrs.field(
        default=1024,
        metadata=key(
            "MaxHandshakes",
            whole(1, 65536),
            "connections at once in their handshake",
            effect=AT_ONCE,
        ),
    )
    max_handshakes_per_address: int = attrs.field(
        default=512,
        metadata=key(
            "MaxHandshakesPerAddress",
            whole(1, 65536),
            "connections in their handshake from one address (IPv6: /64)",
            effect=AT_ONCE,
        ),
    )
    ban_after: int = attrs.field(
        default=10,
        metadata=key(
            "BanAfter",
            whole(0, 65536),
            "failed logins after which an address (IPv6: /64) is banned; 0: never",
            effect=AT_ONCE,
        ),
    )
    ban_time: float = attrs.field(
        default=300.0,
        metadata=key(
            "BanTime",
            seconds(0.1, 86400),
            "how long a ban lasts",
            effect=AT_ONCE,
        ),
    )
    ping_interval: float = attrs.field(
        default=2.5,
        metadata=key(
            "PingInterval",
            seconds(0.1, 60),
            "time between two pings to a client",
            effect=NEW_SESSIONS,
        ),
    )
    peer_timeout: float = attrs.field(
        default=8.0,
        metadata=key(
            "PeerTimeout",
            seconds(0.2, 300),
            "silence after which a client counts as gone, at least twice PingInterval",
            effect=NEW_SESSIONS,
        ),
    )

    workers: int = attrs.field(
        default=1,
        metadata=key(
            "Workers",
            count_or_auto(256),
            "processes that share the work; auto: one for each processor",
        ),
    )

    domain: str | None = attrs.field(
        default=None,
        metadata=key(
            "Domain",
            DOMAIN,
            "the domain below which services have names, such as tunnel.example.com; opens HttpAddr and HttpsAddr",
            unset="none: services have visit ports only",
        ),
    )
    http_addr: TCPAddress | None = attrs.field(
        default=None,
        metadata=key(
            "HttpAddr",
            TCP,
            "where requests without TLS are accepted; they are sent on to https",
            unset="port 80 on the interface of the visit ports, where there is a Domain",
            derived="effective_http_addr",
        ),
    )
    https_addr: TCPAddress | None = attrs.field(
        default=None,
        metadata=key(
            "HttpsAddr",
            TCP,
            "where visitors of names are accepted, with TLS",
            unset="port 443 on the interface of the visit ports, where there is a Domain",
            derived="effective_https_addr",
        ),
    )
    public_https_port: int | None = attrs.field(
        default=None,
        metadata=key(
            "PublicHttpsPort",
            whole(1, 65535),
            "the port of HttpsAddr as seen from outside, where something passes connections on: it stands in URLs",
            unset="the port of HttpsAddr",
            effect=NEW_SESSIONS,
        ),
    )
    plain_http: bool = attrs.field(
        default=False,
        metadata=key(
            "PlainHttp",
            BOOLEAN,
            "answer requests on HttpAddr as well, instead of sending them on to https",
            effect=AT_ONCE,
        ),
    )
    http_head_bytes: int = attrs.field(
        default=32 * 1024,
        metadata=key(
            "HttpHeadBytes",
            whole(1024, 2**20),
            "bytes of the head of a request, at most",
            effect=AT_ONCE,
        ),
    )
    http_head_fields: int = attrs.field(
        default=100,
        metadata=key(
            "HttpHeadFields", whole(8, 10_000), "headers of a request, at most", effect=AT_ONCE
        ),
    )
    http_head_timeout: float = attrs.field(
        default=10.0,
        metadata=key(
            "HttpHeadTimeout",
            seconds(0.1, 300),
            "how long the head of a request may take",
            effect=AT_ONCE,
        ),
    )
    http_idle_timeout: float = attrs.field(
        default=60.0,
        metadata=key(
            "HttpIdleTimeout",
            seconds(0.1, 3600),
            "how long a connection may be idle between two requests, or in the middle of a body",
            effect=AT_ONCE,
        ),
    )
    certificates_dir: Path | None = attrs.field(
        default=None,
        metadata=key(
            "CertificatesDir",
            PATH,
            "a folder with certificates of your own for names, watched for changes",
            unset="none: certificates for names come from Acme",
            effect=AT_ONCE,
        ),
    )

    pages_dir: Path | None = attrs.field(
        default=None,
        metadata=key(
            "PagesDir",
            PATH,
            "a folder with pages of your own for visitors that no service answers: 404.html, error.html for all others",
            unset="pages of trionat's",
            effect=AT_ONCE,
        ),
    )
    access_log: Path | None = attrs.field(
        default=None,
        metadata=key("AccessLog", PATH, "a file with a line for each request to a name"),
    )
    access_log_format: str = attrs.field(
        default=JSON_LINES,
        metadata=key(
            "AccessLogFormat",
            one_of(JSON_LINES, COMBINED),
            "what a line is: an object in JSON, or what web servers write (NCSA combined)",
        ),
    )
    console_addr: TCPAddress | None = attrs.field(
        default=None,
        metadata=key(
            "ConsoleAddr",
            TCP_OR_PORT,
            "where the console is: pages and an API to see and steer the server; port 0: any free port",
            unset="none: no console",
        ),
    )
    console_hosts: tuple[str, ...] = attrs.field(
        default=(),
        metadata=key(
            "ConsoleHosts",
            HOSTS,
            "names by which browsers reach the console, besides its address, PublicAddr and Domain",
            many=True,
            flag="--console-host",
            effect=AT_ONCE,
        ),
    )
    open_metrics: bool = attrs.field(
        default=False,
        metadata=key(
            "OpenMetrics",
            BOOLEAN,
            "open /metrics of the console to everybody who can reach it; else it takes a token with the scope metrics or read",
            effect=AT_ONCE,
        ),
    )

    @property
    def worker_count(self) -> int:
        """How many processes share the work."""
        return self.workers if self.workers != AUTO else count_processors()

    @property
    def effective_http_addr(self) -> TCPAddress | None:
        """Where requests without TLS are accepted, if anywhere."""
        return self._at_domain(self.http_addr, HTTP_PORT)

    @property
    def effective_https_addr(self) -> TCPAddress | None:
        """Where visitors of names are accepted with TLS, if anywhere."""
        return self._at_domain(self.https_addr, HTTPS_PORT)

    @property
    def url_port(self) -> str:
        """What stands behind a name in URLs: nothing, or a colon and a port."""
        address = self.effective_https_addr
        port = self.public_https_port or (HTTPS_PORT if address is None else address.port)
        return "" if port == HTTPS_PORT else f":{port}"

    def _at_domain(self, given: TCPAddress | None, usual: int) -> TCPAddress | None:
        if self.domain is None:
            return None
        return TCPAddress(self.effective_visit_host, usual) if given is None else given

    @property
    def session_limit(self) -> int:
        """Sessions that may run at once."""
        if self.max_tcp_conn_num is not None:
            return self.max_tcp_conn_num
        ports = len(self.visit_port)
        return ports if self.domain is None else max(ports, SESSIONS_WITH_NAMES)

    @property
    def queue_places(self) -> int:
        """Authenticated clients that may wait for a session."""
        if self.max_conn_num is None:
            return self.task_queue_num * self.task_queue_buff
        return self.max_conn_num

    @property
    def effective_resume_wait(self) -> float:
        """How long streams wait for another tunnel: no longer than the ports do."""
        return min(self.resume_wait, self.port_reservation)

    @property
    def effective_visit_host(self) -> str:
        """The interface that the visit ports listen on."""
        return self.controller_addr.host if self.visit_host is None else self.visit_host

    @property
    def named_proxies(self) -> tuple[Network, ...]:
        """Those of `TrustedProxies` that somebody has named, which are believed in what they say in headers."""
        return () if isinstance(self.trusted_proxies, _Unnamed) else self.trusted_proxies

    @property
    def effective_state_dir(self) -> Path:
        """The folder of keys and users; it may not exist yet."""
        return self.state_dir or user_state_dir()

    @property
    def effective_log_filename(self) -> str:
        """The log file; a name that is relative belongs to the working directory. `start_log` says whether it is written."""
        return self.log_filename or str(self.effective_state_dir / "server.log")

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
        if twice := [port for port, count in Counter(ports).items() if port and count > 1]:
            yield ("visit_port",), f"named more than once: {PORTS.write(sorted(twice))}"
        most = self.max_tcp_conn_num
        if ports and most is not None and most > len(ports) and self.domain is None:
            yield (
                ("max_tcp_conn_num", "visit_port"),
                f"{most} sessions at once, but only {counted(len(ports), 'visit port')}: lower it, or name more ports",
            )
        if (reason := wrong_with_servers(self.other_servers)) is not None:
            yield ("other_servers",), reason
        if self.domain is None:
            for field, name in (
                ("http_addr", "HttpAddr"),
                ("https_addr", "HttpsAddr"),
                ("public_https_port", "PublicHttpsPort"),
                ("certificates_dir", "CertificatesDir"),
                ("pages_dir", "PagesDir"),
                ("access_log", "AccessLog"),
            ):
                if getattr(self, field) is not None:
                    yield (field, "domain"), f"{name} is for names: set Domain as well"
            if self.plain_http:
                yield ("plain_http", "domain"), "PlainHttp is for names: set Domain as well"
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
        if self.console_addr is not None and not self.start_auth:
            yield (
                ("console_addr", "start_auth"),
                "a console is for who can log in, and with StartAuth: false there are no accounts: leave out one of the two",
            )
        if self.peer_timeout < 2 * self.ping_interval:
            yield (
                ("peer_timeout", "ping_interval"),
                f"PeerTimeout {self.peer_timeout:g} has to be at least twice PingInterval {self.ping_interval:g}",
            )

    def warnings(self) -> Iterator[Fault]:
        """What another key makes of no use; more that may not be meant is in the files that it names."""
        if self.console_addr is None and self.open_metrics:
            yield ("open_metrics", "console_addr"), "of no use without ConsoleAddr"
        wait, reservation = self.resume_wait, self.port_reservation
        if wait > reservation:
            yield (
                ("resume_wait",),
                f"ResumeWait {wait:g} s is above PortReservation {reservation:g} s, which counts: nobody waits for longer than the ports are kept",
            )
        buffer, memory, total = self.resume_buffer, self.resume_memory, self.resume_memory_total
        if self.effective_resume_wait and buffer >= memory:
            yield (
                ("resume_buffer", "resume_memory"),
                f"ResumeBuffer {buffer} is not below ResumeMemory {memory}, which counts: one visitor can use that up, and then cannot go on",
            )
        if self.effective_resume_wait and memory > total:
            yield (
                ("resume_memory", "resume_memory_total"),
                f"ResumeMemory {memory} is above ResumeMemoryTotal {total}, which counts: all sessions together hold no more",
            )
        if self.console_addr is None and self.console_hosts:
            yield ("console_hosts", "console_addr"), "of no use without ConsoleAddr"
        addresses = ("proxy_visit_addr", "proxy_control_addr")
        if self.proxy_visit_addr is None and self.proxy_control_addr is None:
            no_web = self.domain is None and self.console_addr is None
            if not isinstance(self.trusted_proxies, _Unnamed) and no_web:
                yield (
                    ("trusted_proxies", *addresses),
                    "of no use without ProxyVisitAddr and ProxyControlAddr",
                )
        elif not self.trusted_proxies:
            yield (
                ("trusted_proxies", *addresses),
                "nobody is trusted, so nobody can use ProxyVisitAddr and ProxyControlAddr",
            )
        elif any(network.prefixlen == 0 for network in self.trusted_proxies):
            yield (
                ("trusted_proxies",),
                "everybody is trusted, and can claim any address: name your proxies alone",
            )
        if self.proxy_control_addr is not None and self.public_addr is None:
            yield (
                ("public_addr", "proxy_control_addr"),
                "tickets lead past the proxy: set PublicAddr to the address at which clients reach it",
            )
