from __future__ import annotations

import time
from pathlib import Path
from typing import get_args

import pytest
import typer
from typer.testing import CliRunner

from trionat.address import TCPAddress, UnixAddress
from trionat.cli.flags import Flags, with_flags
from trionat.config.acme import AcmeConfig
from trionat.config.client import AuthConfig, ClientConfig
from trionat.config.database import DatabaseConfig
from trionat.config.events import EventsConfig
from trionat.config.load import Configuration, Role, load, load_needed
from trionat.config.sections import KEYS
from trionat.config.server import ServerConfig
from trionat.config.service import Service
from trionat.errors import ConfigError

# Both as users of the Go program have them.
GO_SERVER = """\
Server:                                  # default
  Name: "Server-NAT"                     # Server-NAT
  ControllerAddr: "0.0.0.0:8080"         # 0.0.0.0:8007
  TunnelAddr: "0.0.0.0:8008"             # 0.0.0.0:8008
  VisitPort: [60000, 60001, 60002, 60003]
  TaskQueueNum: 4                        # dispatcher tasks; 4
  TaskQueueBuff: 32                      # queue places per dispatcher; 32
  MaxTCPConnNum: 4                       # sessions at once; 4
  MaxConnNum: 256                        # queue places in all; TaskQueueNum x TaskQueueBuff = 128
  LogFilename: "server.log"              # server.log
  StartAuth: true                        # true
  StartLog: true                         # true: log to LogFilename as well; false: terminal only
Database:
  Username: "root"
  Password: "123456"
  Host: "0.0.0.0:3309"
  DBName: "nat"
"""
GO_CLIENT = """\
Auth:
  Username: "3210561027"
  Password: "00000000"
Client:
  Name: Client-NAT
  PublicServerAddr: example.com          # shown to the user in the visit address
  TunnelServerAddr: example.com:8008
  ControllerAddr: example.com:8080
  LocalServerAddr: 127.0.0.1:8080
"""
LEGACY = """\
Client:
  Dialect: nat-doc
  ControllerAddr: h:1
  TunnelServerAddr: h:2
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some" / "where"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)


def from_text(text: str, **rest: object) -> Configuration:
    Path("f.yml").write_text(text, encoding="utf-8")
    return load("server", file=Path("f.yml"), environ={}, **rest)  # type: ignore[arg-type]


def problems_of(text: str, **rest: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        from_text(text, **rest)
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return [str(problem) for problem in caught.value.problems]


CLUSTER = {
    "TRIONAT_CLUSTER_REDIS": "rediss://h",
    "TRIONAT_CLUSTER_NODE": "n",
    "TRIONAT_CLUSTER_NODE_ADDR": "h:8009",
    "TRIONAT_CLUSTER_KEY_FILE": "k",
}


def test_nothing_given_is_all_defaults() -> None:
    loaded = load("server", environ={"HOME": "/", "TRIONAT": "1", "TRIONAT_DEBUG": "1"})
    assert loaded == Configuration(
        server=ServerConfig(),
        acme=AcmeConfig(),
        events=EventsConfig(),
        database=None,
        cluster=None,
        auth=AuthConfig(),
        client=ClientConfig(),
        origins=dict.fromkeys(KEYS, "default"),
        file=None,
    )


def test_the_server_file_of_the_go_program_loads_unchanged() -> None:
    Path("server.yml").write_text(GO_SERVER, encoding="utf-8")
    loaded = load("server", environ={})
    assert loaded.file == Path("server.yml")
    assert loaded.server == ServerConfig(
        name="Server-NAT",
        controller_addr=TCPAddress("0.0.0.0", 8080),
        tunnel_addr=TCPAddress("0.0.0.0", 8008),
        visit_port=(60000, 60001, 60002, 60003),
        task_queue_num=4,
        task_queue_buff=32,
        max_tcp_conn_num=4,
        max_conn_num=256,
        log_filename="server.log",
        start_auth=True,
        start_log=True,
    )
    assert loaded.database == DatabaseConfig(
        username="root", password="123456", host="0.0.0.0:3309", db_name="nat"
    )
    assert loaded.database.address == TCPAddress("0.0.0.0", 3309)
    assert not loaded.database.encrypted
    assert not loaded.database.upgrade_passwords
    assert loaded.origins["Server.VisitPort"] == "server.yml:5"
    assert loaded.origins["Database.DBName"] == "server.yml:17"


@pytest.mark.parametrize("quote", ['"', ""])
def test_the_client_file_of_the_go_program_loads_unchanged(quote: str) -> None:
    Path("client.yml").write_text(GO_CLIENT.replace('"', quote), encoding="utf-8")
    loaded = load("client", environ={})
    assert loaded.auth == AuthConfig(username="3210561027", password="00000000")
    assert loaded.client == ClientConfig(
        name="Client-NAT",
        public_server_addr="example.com",
        tunnel_server_addr=TCPAddress("example.com", 8008),
        controller_addr=TCPAddress("example.com", 8080),
        local_server_addr=TCPAddress("127.0.0.1", 8080),
    )


def test_a_database_server_has_a_port_of_its_own_and_tls_where_it_is_asked_for() -> None:
    section = "Database: {Username: u, Host: '%s', DBName: d%s}"

    def database(host: str, more: str = "") -> DatabaseConfig:
        loaded = from_text(section % (host, more)).database
        assert loaded is not None
        return loaded

    assert database("db.example").address == TCPAddress("db.example", 3306)
    assert database("::1").address == TCPAddress("::1", 3306)
    assert database("[::1]:3307").address == TCPAddress("::1", 3307)
    assert not database("h").encrypted
    assert database("h", ", TLS: true").encrypted
    assert database("h", ", CAFile: ca.pem").encrypted


def test_the_dialect_of_a_client_file_of_the_go_program_is_all_that_is_missing() -> None:
    Path("client.yml").write_text(GO_CLIENT, encoding="utf-8")
    loaded = load("client", flags={"Client.Dialect": "nat-v1"}, environ={})
    assert (loaded.client.dialect, loaded.origins["Client.Dialect"]) == ("nat-v1", "flag --dialect")


@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("first", range(4))
def test_the_first_of_the_searched_folders_wins(role: Role, first: int) -> None:
    folders = ["./", "config/", "../config/", "../../config/"]
    for folder in folders[first:]:
        Path(folder).mkdir(exist_ok=True)
        for name in ("server", "client"):
            text = f"Server: {{Name: '{folder}{name}'}}"
            Path(folder, f"{name}.yml").write_text(text, encoding="utf-8")
    assert load(role, environ={}).server.name == f"{folders[first]}{role}"


def test_flag_before_environment_before_file_before_default() -> None:
    Path("server.yml").write_text("Server:\n  Name: file\n  TaskQueueNum: 7\n  TaskQueueBuff: 8\n")
    loaded = load(
        "server",
        flags={"Server.Name": "flag", "Server.TaskQueueNum": None, "Server.VisitPort": []},
        environ={
            "TRIONAT_SERVER_NAME": "environment",
            "TRIONAT_SERVER_TASK_QUEUE_NUM": "9",
            "TRIONAT_SERVER_TASK_QUEUE_BUFF": "",
        },
    )
    server, origins = loaded.server, loaded.origins
    assert (server.name, origins["Server.Name"]) == ("flag", "flag --name")
    assert server.task_queue_num == 9
    assert origins["Server.TaskQueueNum"] == "environment TRIONAT_SERVER_TASK_QUEUE_NUM"
    assert (server.task_queue_buff, origins["Server.TaskQueueBuff"]) == (8, "server.yml:4")
    assert (server.max_visitors, origins["Server.MaxVisitors"]) == (1024, "default")
    assert origins["Server.VisitPort"] == "default"


def test_flags_may_be_lists_and_booleans() -> None:
    loaded = load(
        "client",
        flags={
            "Server.VisitPort": ["60000,60001", "60010-60012"],
            "Server.StartAuth": False,
            "Client.Services": ["80", "/run/x:81"],
        },
        environ={},
    )
    assert loaded.server.visit_port == (60000, 60001, 60010, 60011, 60012)
    assert loaded.server.start_auth is False
    assert loaded.client.services == (
        Service(local=TCPAddress("127.0.0.1", 80)),
        Service(local=UnixAddress("/run/x"), visit_port=81),
    )
    assert loaded.origins["Server.VisitPort"] == "flag --visit-port"
    assert loaded.origins["Client.Services"] == "argument SERVICE"


def test_the_short_variables_yield_to_the_long_ones() -> None:
    environ = {
        "TRIONAT_TICKET": "short",
        "TRIONAT_STATE_DIR": "short",
        "TRIONAT_CLIENT_STATE_DIR": "long",
    }
    loaded = load("client", environ=environ)
    assert loaded.client.ticket == "short"
    assert loaded.server.state_dir == Path("short")
    assert loaded.client.state_dir == Path("long")
    assert loaded.origins["Client.Ticket"] == "environment TRIONAT_TICKET"
    assert loaded.origins["Server.StateDir"] == "environment TRIONAT_STATE_DIR"


@pytest.mark.parametrize("path", KEYS)
def test_every_key_can_come_from_the_environment(path: str) -> None:
    texts = {
        "a host": "h",
        "HOST or HOST:PORT": "h",
        "HOST:PORT": "h:1",
        "true or false": "true",
        KEYS["Cluster.Redis"].kind.words: "rediss://h",
        KEYS["Cluster.Node"].kind.words: "n",
        "native, nat-v1 or nat-doc": "native",
        "tls or none": "none",
        "json or combined": "combined",
        KEYS["Server.Domain"].kind.words: "tunnel.example.com",
        KEYS["Acme.Directory"].kind.words: "https://h/dir",
        KEYS["Events"].kind.words: "https://h/hook",
        KEYS["Client.BasicAuth"].kind.words: "ann:secret",
        "none, v1 or v2": "v2",
        "tolerate or require": "require",
        KEYS["Server.LogLevel"].kind.words: "DEBUG",
        KEYS["Server.DenyVisitors"].kind.words: "192.0.2.0/24",
        "SHA256: and 32 bytes in base64 or hex": "00" * 32,
    }
    key = KEYS[path]
    text = texts.get(key.kind.words) or (
        key.kind.write(key.default) if isinstance(key.default, int | float) else "4"
    )
    environ = {key.environment[0]: text}
    if key.section == "Server" and key.field != "domain":
        environ["TRIONAT_SERVER_DOMAIN"] = "tunnel.example.com"  # some are for names alone
    if key.field in ("basic_auth", "allow", "deny", "rate", "approve"):
        environ["TRIONAT_CLIENT_SERVICES"] = "http:8080"
    if key.section in ("Database", "Cluster"):
        environ |= {f"TRIONAT_DATABASE_{name}": "x" for name in ("USERNAME", "HOST", "DB_NAME")}
    if key.section == "Cluster":
        environ = dict(CLUSTER) | environ
    if path.startswith("Server.Certificate"):
        environ |= {"TRIONAT_SERVER_CERTIFICATE": "c", "TRIONAT_SERVER_CERTIFICATE_KEY": "k"}
    assert load("server", environ=environ).origins[path] == f"environment {key.environment[0]}"


def test_values_are_their_text_whatever_yaml_would_make_of_them() -> None:
    loaded = from_text(
        """\
Server:
  VisitPort: 60000-60001, 60005
  StartLog: no
Auth: {Username: 0777, Password: 1_000}
Client:
  Services:
    - 6379:60001
    - 8080
    - 22:22
    - {Local: 127.0.0.1:22, VisitPort: 60009, Name: 0x10}
    - Local: /run/a,b.sock
  LocalServerAddr: 3000
  Identity: 2026-01-01
  Ticket: ~
"""
    )
    assert loaded.server.visit_port == (60000, 60001, 60005)
    assert loaded.server.start_log is False
    assert loaded.auth == AuthConfig(username="0777", password="1_000")
    assert loaded.client.services == (
        Service(local=TCPAddress("127.0.0.1", 6379), visit_port=60001),
        Service(local=TCPAddress("127.0.0.1", 8080)),
        Service(local=TCPAddress("127.0.0.1", 22), visit_port=22),
        Service(local=TCPAddress("127.0.0.1", 22), visit_port=60009, name="0x10"),
        Service(local=UnixAddress("/run/a,b.sock")),
    )
    assert loaded.client.local_server_addr == TCPAddress("127.0.0.1", 3000)
    assert loaded.client.identity == "2026-01-01"
    assert (loaded.client.ticket, loaded.origins["Client.Ticket"]) == (None, "default")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Server:\n  Nam: x\n", "f.yml:2: Server.Nam: unknown key: did you mean Name?"),
        ("Server:\n  controllerAddr: a:1\n", "f.yml:2: Server.controllerAddr: unknown key: did you mean ControllerAddr?"),
        ("Server:\n  controller_addr: a:1\n", "f.yml:2: Server.controller_addr: unknown key: did you mean ControllerAddr?"),
        ("Server:\n  Zzz: 1\n", "f.yml:2: Server.Zzz: unknown key: docs/configuration.md lists all that there are"),
        ("Auth:\n  Zzz: 1\n", "f.yml:2: Auth.Zzz: unknown key: known here are Username, Password"),
        ("server:\n  Name: x\n", "f.yml:1: server: unknown section: did you mean Server?"),
        ("<<: {}\n", "f.yml:1: <<: keys are not merged here: write each of them out"),
        ("Server:\n  <<: {Name: x}\n", "f.yml:2: Server.<<: keys are not merged here: write each of them out"),
        ("Server: x\n", "f.yml:1: Server: is a section: its keys go below it, indented"),
        ("Server:\n- x\n", "f.yml:1: Server: is a section: its keys go below it, indented"),
        ("x\n", "f.yml:1: has to hold sections: Server, Acme, Events, Database, Cluster, Auth, Client"),
        ("Server:\n  Name: [a]\n", "f.yml:2: Server.Name: has to be a single value: text of 1 to 128 printable characters"),
        ("Server:\n  Name: ''\n", "f.yml:2: Server.Name: '' is not text of 1 to 128 printable characters"),
        ("Server:\n  VisitPort: [1, 2, x]\n", "f.yml:2: Server.VisitPort[2]: 'x' is not a valid port: write a number from 0 to 65535"),
        ("Server:\n  VisitPort:\n  - 1\n  - {}\n", "f.yml:4: Server.VisitPort[1]: has to be ports and ranges such as 60000-60099"),
        ("Server:\n  VisitPort: []\n", "f.yml:2: Server.VisitPort: there is no visit port: name at least one, or 0 for any free one"),
        ("Server:\n  VisitPort: [0, 0, 5-7, 6, 5]\n", "f.yml:2: Server.VisitPort: named more than once: 5-6"),
        (
            "Server:\n  VisitPort: [1, 2]\n  MaxTCPConnNum: 3\n",
            "f.yml:3: Server.MaxTCPConnNum: 3 sessions at once, but only 2 visit ports: lower it, or name more ports",
        ),
        (
            "Server:\n  Certificate: c\n",
            "f.yml:2: Server.Certificate: a certificate needs its private key: set CertificateKey as well",
        ),
        (
            "Server:\n  CertificateKey: k\n",
            "f.yml:2: Server.CertificateKey: a private key needs its certificate: set Certificate as well",
        ),
        (
            "Server:\n  PingInterval: 1\n  PeerTimeout: 1.9\n",
            "f.yml:3: Server.PeerTimeout: PeerTimeout 1.9 has to be at least twice PingInterval 1",
        ),
        (
            "Server:\n  PingInterval: 5\n",
            "f.yml:2: Server.PingInterval: PeerTimeout 8 has to be at least twice PingInterval 5",
        ),
        ("Database:\n  Host: h\n  Username: u\n", "f.yml:2: Database.DBName: is missing: the database"),
        ("Client:\n  Services:\n  - VisitPort: 1\n", "f.yml:3: Client.Services[0]: lacks Local: where the service listens"),
        ("Client:\n  Services: [{Local: 1, Visit: 1}]\n", "f.yml:2: Client.Services[0].Visit: unknown key: did you mean VisitPort?"),
        (
            "Client:\n  Services: [1, {Local: 0}]\n",
            "f.yml:2: Client.Services[1].Local: '0' has port 0: write the port that the service listens on",
        ),
        (
            "Client:\n  Services:\n  - 1:60000\n  - 2:60000\n",
            "f.yml:2: Client.Services: two services ask for visit port 60000",
        ),
        ("Client:\n  PublicServerAddr: a:1\n", "f.yml:2: Client.PublicServerAddr: 'a:1' is more than a host: leave out the port"),
        ("Client:\n  MaxTunnels: 3\n", "f.yml:2: Client.MaxTunnels: MinIdleTunnels 4 is above MaxTunnels 3"),
        ("Client:\n  Dialect: NAT\n", "f.yml:2: Client.Dialect: 'NAT' is not native, nat-v1 or nat-doc"),
        (
            "Client:\n  Dialect: nat-v1\n  ControllerAddr: h:1\n",
            "f.yml:2: Client.Dialect: nat-v1 needs TunnelServerAddr: set it as well",
        ),
        (
            "Client:\n  TrustOnFirstUse: true\n  CAFile: x\n",
            "f.yml:3: Client.CAFile: with TrustOnFirstUse any unknown server is trusted, so CAFile checks nothing: remove one of the two",
        ),
        (f"{LEGACY}  Ticket: tn1_x\n", "f.yml:5: Client.Ticket: tickets are for the native dialect: remove it, as Dialect is nat-doc"),
        (f"{LEGACY}  TicketFile: x\n", "f.yml:5: Client.TicketFile: tickets are for the native dialect: remove it, as Dialect is nat-doc"),
        (
            f"{LEGACY}  Fingerprint: {'00' * 32}\n",
            "f.yml:5: Client.Fingerprint: a server is checked in the native dialect only: remove it, as Dialect is nat-doc",
        ),
        (
            f"{LEGACY}  TrustOnFirstUse: true\n",
            "f.yml:5: Client.TrustOnFirstUse: a server is checked in the native dialect only: remove it, as Dialect is nat-doc",
        ),
        (f"{LEGACY}  CAFile: x\n", "f.yml:5: Client.CAFile: a server is checked in the native dialect only: remove it, as Dialect is nat-doc"),
        (
            f"{LEGACY}  Services: [1, 2]\n",
            "f.yml:5: Client.Services: nat-doc carries one service for each client, not 2: start one client for each",
        ),
        (f"{LEGACY}  Services: [1:2]\n", "f.yml:5: Client.Services: in nat-doc the server chooses the visit port: leave it out"),
        ("Client:\n  Fingerprint: MD5:00\n", "f.yml:2: Client.Fingerprint: 'MD5:00' is not a valid fingerprint: write SHA256: and 32 bytes in base64 or hex"),
    ],
    ids=lambda value: repr(value)[:50],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place(text: str, expected: str) -> None:
    assert problems_of(text) == [expected]


def test_all_mistakes_of_all_sources_are_told_at_once_even_overridden_ones() -> None:
    Path("f.yml").write_text("Server:\n  StartAuth: 2\n  Nmae: x\nClient:\n  Once: x\nServer: {}\n")
    with pytest.raises(ConfigError) as caught:
        load(
            "server",
            file=Path("f.yml"),
            flags={"Server.StartAuth": "maybe", "Client.Once": True, "Client.Services": ["1", "x"]},
            environ={"TRIONAT_SERVER_START_AUTH": "3", "TRIONAT_SERVER_NAM": "x"},
        )
    assert str(caught.value).splitlines() == [
        "flag --start-auth: Server.StartAuth: 'maybe' is neither true nor false",
        "argument SERVICE: Client.Services[1]: 'x' is not a valid address: write HOST:PORT, a port, or the path of a socket",
        "environment TRIONAT_SERVER_START_AUTH: Server.StartAuth: '3' is neither true nor false",
        "environment TRIONAT_SERVER_NAM: unknown variable: did you mean TRIONAT_SERVER_NAME?",
        "f.yml:6: Server: given twice: line 1 has it already",
        "f.yml:2: Server.StartAuth: '2' is neither true nor false",
        "f.yml:3: Server.Nmae: unknown key: did you mean Name?",
        "f.yml:5: Client.Once: 'x' is neither true nor false",
    ]


def test_a_wrong_value_is_not_blamed_a_second_time_for_what_its_default_would_be() -> None:
    assert len(problems_of("Server:\n  VisitPort: [x]\n  MaxTCPConnNum: 9\n")) == 1
    assert len(problems_of("Database:\n  Host: '@'\n  Username: u\n  DBName: d\n")) == 1


def test_a_fault_between_sources_points_to_the_key_at_fault() -> None:
    (problem,) = problems_of("Server:\n  VisitPort: [1]\n", flags={"Server.MaxTCPConnNum": "2"})
    assert problem == (
        "flag --max-tcp-conn-num: Server.MaxTCPConnNum: 2 sessions at once, but only 1 visit port:"
        " lower it, or name more ports"
    )


@pytest.mark.parametrize(
    ("flags", "environ", "services", "ticket", "ticket_file"),
    [
        ({}, {}, 1, "t", None),
        ({"Client.LocalServerAddr": "2"}, {}, 2, "t", None),
        ({}, {"TRIONAT_CLIENT_LOCAL_SERVER_ADDR": "2"}, 2, "t", None),
        ({"Client.TicketFile": "x"}, {"TRIONAT_TICKET": "e"}, 1, None, Path("x")),
        ({"Client.Ticket": "x"}, {"TRIONAT_CLIENT_TICKET_FILE": "e"}, 1, "x", None),
    ],
)
def test_of_two_alternatives_the_stronger_source_counts(
    flags: dict[str, str], environ: dict[str, str], services: int, ticket: str, ticket_file: Path
) -> None:
    text = "Client: {Services: [1], LocalServerAddr: 5, Ticket: t}"
    Path("f.yml").write_text(text)
    client = load("client", file=Path("f.yml"), flags=flags, environ=environ).client
    assert client.effective_services() == (Service(local=TCPAddress("127.0.0.1", services)),)
    assert (client.ticket, client.ticket_file) == (ticket, ticket_file)


def test_what_kubernetes_sets_beside_a_service_of_our_name_is_not_ours() -> None:
    environ = {
        "TRIONAT_SERVER_SERVICE_HOST": "10.0.0.1",
        "TRIONAT_SERVER_SERVICE_PORT_CONTROL": "8007",
        "TRIONAT_SERVER_PORT": "tcp://10.0.0.1:8007",
        "TRIONAT_SERVER_PORT_8007_TCP_ADDR": "10.0.0.1",
    }
    assert load("server", environ=environ).server == ServerConfig()
    with pytest.raises(ConfigError, match="TRIONAT_SERVER_PORTS: unknown variable"):
        load("server", environ={"TRIONAT_SERVER_PORTS": "1"})


@pytest.mark.parametrize(
    ("name", "role", "other"),
    [
        ("TRIONAT_SERVER_VISITPORTS", "server", "client"),
        ("TRIONAT_CLIENT_SERVICEZ", "client", "server"),
        ("TRIONAT_AUTH_WHO", "client", "server"),
        ("TRIONAT_CLUSTER_WHO", "server", "client"),
    ],
)
def test_an_unknown_variable_stops_whom_it_is_for(name: str, role: Role, other: Role) -> None:
    """One environment may be for both. Others are told, since it may be meant for them as well."""
    with pytest.raises(ConfigError, match=f"{name}: unknown variable: "):
        load(role, environ={name: "x"})
    [warning] = load(other, environ={name: "x"}).warnings
    assert str(warning).startswith(f"environment {name}: unknown variable: ")


def test_an_unknown_variable_that_may_be_for_either_stops_both() -> None:
    for role in get_args(Role):
        with pytest.raises(ConfigError, match="did you mean TRIONAT_CLIENT_TICKET_FILE"):
            load(role, environ={"TRIONAT_SERVER_TICKET_FILE": "x"})


def test_a_command_is_stopped_by_what_it_needs_alone() -> None:
    """Whoever mends a file bit by bit, and an environment with a word too many, can still find the server."""
    Path("f.yml").write_text("Server: {VisitPort: [x], StateDir: here}\nEvents: [x]\n")
    environ = {"TRIONAT_SERVER_VISITPORTS": "x", "TRIONAT_SERVER_WHO": "x"}
    server, _ = load_needed(["Server.StateDir", "Database"], file=Path("f.yml"), environ=environ)
    assert server.state_dir == Path("here")
    needs = ("Server.StateDir", "Cluster")
    found = load("server", file=Path("f.yml"), environ=environ, needs=needs)
    assert found.server.state_dir == Path("here")
    for needed, told in (
        ("Events", "f.yml:2: Events"),
        ("Server", "f.yml:1: Server.VisitPort"),
        ("Server.VisitPort", "TRIONAT_SERVER_VISITPORTS"),
    ):
        with pytest.raises(ConfigError, match=told):
            load("server", file=Path("f.yml"), environ=environ, needs=(needed,))
    with pytest.raises(ConfigError, match="TRIONAT_DATABASE_HOTS"):
        load_needed(["Database"], environ={"TRIONAT_DATABASE_HOTS": "x"})


@pytest.mark.parametrize(
    ("name", "reason"), [("nope.yml", "there is no such file"), (".", "cannot be read: ")]
)
def test_a_named_file_has_to_exist_and_be_a_file(name: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("server", file=Path(name), environ={"TRIONAT_SERVER_NAM": "x"})
    (_, problem) = caught.value.problems
    assert str(problem).startswith(f"{name}: {reason}")


def test_secrets_are_in_no_message() -> None:
    text = (
        "Auth: {Password: [hunter2]}\nDatabase: {Password: hunter2}\nClient: {Ticket: {a: hunter2}}"
    )
    assert "hunter2" not in " ".join(problems_of(text))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Auth: {Username: bob, Password:hunter2}", "f.yml:1: Auth.Password: the value has to be apart from the name: write Password: VALUE"),
        ("Auth: {Username: bob, Password = hunter2}", "f.yml:1: Auth.Password: the value has to be apart from the name: write Password: VALUE"),
        ("Auth: {Username: bob, Password hunter2}", "f.yml:1: Auth.Password: the value has to be apart from the name: write Password: VALUE"),
        ("Auth: {Username: bob, Passwort:hunter2}", "f.yml:1: Auth.Passwort: the value has to be apart from the name: write Passwort: VALUE"),
        ("Auth:\n  Password:\n    hunter2: x\n    hunter2: y\n", "f.yml:4: Auth.Password: given twice: line 3 has it already"),
        ("Auth: {Password: &hunter2 }", "f.yml:1: a text that begins with & is the name of an anchor, and there is no value behind it: put it in quotes"),
        ("Auth:\n  Username: bob\n  Password: &hunter2\n", "f.yml:3: a text that begins with & is the name of an anchor, and there is no value behind it: put it in quotes"),
        ("Auth: {Password: *hunter2 }", "f.yml:1: this is not YAML: found undefined alias …: put a text that begins with * in quotes"),
        ("Auth: {Password: !hunter2 }", "f.yml:1: Auth.Password: a tag, which begins with !, means nothing here: remove it, or put the value in quotes"),
        ("Auth:\n  Password:hunter2\n", "f.yml:1: Auth: is a section: its keys go below it, indented"),
    ],
)  # fmt: skip
def test_a_password_that_is_no_value_is_told_and_not_shown(text: str, told: str) -> None:
    problems = problems_of(text)
    assert problems[0] == told
    assert "hunter2" not in " ".join(problems)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Client: {Once: true}\nAuth: {Password: a b}\n", []),
        (
            f"Client:\n  Fingerprint: {'00' * 32}\n  CAFile: x\n",
            ["f.yml:3: Client.CAFile: of no use beside Fingerprint, which decides alone"],
        ),
        (
            f"Client:\n  Fingerprint: {'00' * 32}\n  TrustOnFirstUse: true\n",
            ["f.yml:3: Client.TrustOnFirstUse: of no use beside Fingerprint, which decides alone"],
        ),
        (
            "Auth:\n  Password: a\u200bb\n",
            ["f.yml:2: Auth.Password: the password has an invisible character U+200B at position 2: was it pasted with more than it is?"],
        ),
        (
            'Database: {Username: u, Host: h, DBName: d, Password: "a\\tb"}\n',
            ["f.yml:1: Database.Password: the password has an invisible character U+0009 at position 2: was it pasted with more than it is?"],
        ),
        ("Server: {ResumeWait: 60, PortReservation: 60, ResumeBuffer: 65536, ResumeMemory: 65537}\n", []),
        ("Server: {PortReservation: 10}\n", []),  # the default of ResumeWait is nobody's mistake
        (
            "Server:\n  PortReservation: 10\n  ResumeWait: 60\n",
            ["f.yml:3: Server.ResumeWait: ResumeWait 60 s is above PortReservation 10 s, which counts: nobody waits for longer than the ports are kept"],
        ),
        (
            "Server:\n  ResumeMemory: 1048576\n",
            ["f.yml:2: Server.ResumeMemory: ResumeBuffer 1048576 is not below ResumeMemory 1048576, which counts: one visitor can use that up, and then cannot go on"],
        ),
        (
            "Server:\n  ResumeMemory: 1073741824\n",
            ["f.yml:2: Server.ResumeMemory: ResumeMemory 1073741824 is above ResumeMemoryTotal 536870912, which counts: all sessions together hold no more"],
        ),
        (
            "Server:\n  TrustedProxies: 192.0.2.1\n",
            ["f.yml:2: Server.TrustedProxies: of no use without ProxyVisitAddr and ProxyControlAddr"],
        ),
        ("Server: {ProxyVisitAddr: ':7000', TrustedProxies: 192.0.2.1}\n", []),
        (
            "Server: {ProxyControlAddr: ':7007', PublicAddr: a.example, TrustedProxies: []}\n",
            ["f.yml:1: Server.TrustedProxies: nobody is trusted, so nobody can use ProxyVisitAddr and ProxyControlAddr"],
        ),
        (
            "Server: {ProxyControlAddr: ':7007'}\n",
            ["f.yml:1: Server.ProxyControlAddr: tickets lead past the proxy: set PublicAddr to the address at which clients reach it"],
        ),
        (
            "Server: {ProxyVisitAddr: ':7000', TrustedProxies: [127.0.0.1, '::/0']}\n",
            ["f.yml:1: Server.TrustedProxies: everybody is trusted, and can claim any address: name your proxies alone"],
        ),
    ],
)  # fmt: skip
def test_what_is_most_likely_not_meant_is_a_warning(text: str, told: list[str]) -> None:
    Path("f.yml").write_text(text)
    loaded = load("server", file=Path("f.yml"), environ={})
    assert [str(warning) for warning in loaded.warnings] == told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Server:\n  Name: a\u200bb\n", "f.yml:2: Server.Name: has an invisible character U+200B at position 2: type it again"),
        ("Server:\n  VisitPort: [80, 8\u00ad1]\n", "f.yml:2: Server.VisitPort[1]: has an invisible character U+00AD at position 2: type it again"),
        ("Client:\n  Services: ['80\u00a080']\n", "f.yml:2: Client.Services[0]: has an invisible character U+00A0 at position 3: type it again"),
        ("Client:\n  Services: [{Local: '8\u200b0'}]\n", "f.yml:2: Client.Services[0].Local: has an invisible character U+200B at position 2: type it again"),
        ("Cli\u200bent:\n  Name: x\n", "f.yml:1: Cli\u200bent: this name has an invisible character U+200B at position 4: type it again"),
        ("Server:\n  \u200bName: x\n", "f.yml:2: Server.\u200bName: this name has an invisible character U+200B at position 1: type it again"),
    ],
)  # fmt: skip
def test_what_cannot_be_seen_is_refused_by_name(text: str, told: str) -> None:
    assert problems_of(text) == [told]


def test_what_sticks_to_a_value_is_taken_off() -> None:
    environ = {
        "TRIONAT_SERVER_NAME": " name\r",
        "TRIONAT_SERVER_STATE_DIR": "/state\r\n",
        "TRIONAT_SERVER_VISIT_PORT": "\ufeff80, 81\r",
        "TRIONAT_SERVER_MAX_VISITORS": "5\u00a0",
        "TRIONAT_CLIENT_NAME": "\r",
        "TRIONAT_AUTH_PASSWORD": "\ufeff blanks stay \r\n",
        "TRIONAT_AUTH_USERNAME": "bob\r",
    }
    loaded = load("server", environ=environ)
    server = loaded.server
    assert (server.name, server.state_dir) == ("name", Path("/state"))
    assert (server.visit_port, server.max_visitors) == ((80, 81), 5)
    assert loaded.origins["Client.Name"] == "default"  # as good as empty
    assert loaded.auth == AuthConfig(username="bob", password=" blanks stay ")
    flags = {"Server.Name": "name\r\n", "Server.StartAuth": "false\r"}
    assert load("server", flags=flags, environ={}).server == ServerConfig(
        name="name", start_auth=False
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_file_of_powershell_is_read(encoding: str) -> None:
    Path("f.yml").write_bytes("Server:\r\n  Name: größe\r\n".encode(encoding))
    assert load("server", file=Path("f.yml"), environ={}).server.name == "größe"


@pytest.mark.parametrize("text", ["1024-65535", ",".join(map(str, range(1, 65536)))])
def test_all_ports_there_are_take_no_time(text: str) -> None:
    """Some 50 ms here; counting each port among all took minutes."""
    services = [f"{port}:{port}" for port in range(1, 5000)]
    started = time.process_time()
    flags = {"Server.VisitPort": text, "Client.Services": services}
    assert len(load("server", flags=flags, environ={}).server.visit_port) > 60000
    with pytest.raises(ConfigError) as caught:
        load("server", flags={"Server.VisitPort": f"1024-65535,{text},0,0"}, environ={})
    assert time.process_time() - started < 2
    assert str(caught.value) == (
        "flag --visit-port: Server.VisitPort: named more than once: 1024-65535"
    )


def test_the_flag_of_visit_ports_and_its_old_name_are_one() -> None:
    def visit_ports(*arguments: str) -> str:
        shown: list[object] = []

        def command(flags: Flags, config: Path | None = None) -> None:
            assert config is None
            shown.append(flags["Server.VisitPort"])

        app = typer.Typer()
        app.command()(with_flags(ServerConfig)(command))
        assert CliRunner().invoke(app, list(arguments)).exit_code == 0
        return repr(shown)

    for flag in ("-p", "--visit-port", "--expose-port"):
        assert visit_ports(flag, "60000") == "[['60000']]"
    assert visit_ports("--expose-port", "1", "--visit-port", "2") == "[['1', '2']]"


def test_an_unknown_flag_is_a_bug_of_the_caller() -> None:
    with pytest.raises(KeyError):
        load("server", flags={"Server.Nope": "x"}, environ={})


def service_with(keys: str) -> str:
    return f"Client:\n  Services:\n    - 8080\n    - {{Local: 9000, {keys}}}\n"


def test_services_with_names_in_a_file() -> None:
    loaded = from_text(
        """\
Client:
  Services:
    - http:8080
    - http:8080@shop
    - {Local: 8081, Http: true}
    - {Local: 8082, Http: False, VisitPort: 60002}
    - {Local: 8083, Http: Shop.Example.org, Http2: yes}
    - {Local: 8443, Tls: db.example.org, Rate: 2.5}
    - {Local: /run/a@b.sock, Https: true, VisitPort: 60001, BasicAuth: "ann:se:cret"}
    - {Local: 8084, Http: api, Allow: [192.0.2.0/24, "::1"], Deny: 192.0.2.7, Approve: true}
"""
    )
    services = loaded.client.services
    assert [(service.http, service.tls, service.https) for service in services] == [
        ("", None, False),
        ("shop", None, False),
        ("", None, False),
        (None, None, False),
        ("shop.example.org", None, False),
        (None, "db.example.org", False),
        (None, None, True),
        ("api", None, False),
    ]
    assert [service.visit_port for service in services[3::3]] == [60002, 60001]
    assert (services[4].http2, services[5].rate, services[6].basic_auth) == (
        True,
        2.5,
        ("ann:se:cret",),
    )
    assert services[7].allow is not None
    assert services[7].deny is not None
    assert list(map(str, (*services[7].allow, *services[7].deny))) == [
        "192.0.2.0/24",
        "::1/128",
        "192.0.2.7/32",
    ]
    assert services[7].approve


PROTECTS_NOTHING = "is for services with names, and would protect nothing here"


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ("Http: a, Tls: b.example.org", "Http and Tls are different ways to publish it: choose one"),
        ("Http: a, Https: true", "Http and Https are different ways"),
        ("Tls: b.example.org, Https: true, Http: a", "Http and Tls and Https are different ways"),
        ("Http: a, VisitPort: 60001", "Http is for a name, and VisitPort for a port"),
        ("Tls: b.example.org, VisitPort: 60001", "Tls is for a name, and VisitPort for a port"),
        ("Http2: true", "Http2 is for a service with Http"),
        ("Https: true, Http2: true", "Http2 is for a service with Http"),
        ("Http: a, Http2: true, BasicAuth: 'a:hunter2'", "BasicAuth is for requests, which nobody sees in HTTP/2"),
        ("Tls: b.example.org, BasicAuth: 'a:hunter2'", "BasicAuth is for requests, which nobody sees behind Tls"),
        ("BasicAuth: 'a:hunter2'", f"BasicAuth {PROTECTS_NOTHING}"),
        ("VisitPort: 60001, Allow: 192.0.2.1", f"Allow {PROTECTS_NOTHING}"),
        ("Deny: 192.0.2.1", f"Deny {PROTECTS_NOTHING}"),
        ("Rate: 1", f"Rate {PROTECTS_NOTHING}"),
        ("Http: false, Approve: true", f"Approve {PROTECTS_NOTHING}"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_in_a_service(keys: str, reason: str) -> None:
    [problem] = problems_of(service_with(keys))
    assert problem.startswith(f"f.yml:2: Client.Services: 127.0.0.1:9000: {reason}")
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ("Tls: true", "Client.Services[1].Tls: 'true' is not the name in its certificate"),
        ("Https: shop", "Client.Services[1].Https: 'shop' is neither true nor false"),
        ("Http: a b", "Client.Services[1].Http: 'a b' is not a valid name"),
        ("BasicAuth: hunter2", "Client.Services[1].BasicAuth: is no USER:PASSWORD"),
        ("Http: a, Rate: 0", "Client.Services[1].Rate: '0' is not a number above 0"),
    ],
)
def test_what_is_wrong_in_a_service_with_a_name(keys: str, reason: str) -> None:
    [problem] = problems_of(service_with(keys))
    assert problem.startswith(f"f.yml:4: {reason}")
    assert "hunter2" not in problem


def test_one_name_or_port_for_two_services() -> None:
    [problem] = problems_of("Client:\n  Services: [http:8080@shop, http:8081@SHOP]\n")
    assert problem == "f.yml:2: Client.Services: two services ask for the name shop"
    [problem] = problems_of("Client:\n  Services: [https:8080:60001, 8081:60001]\n")
    assert problem == "f.yml:2: Client.Services: two services ask for visit port 60001"


def test_several_users_of_a_service_add_up() -> None:
    flags = ["http:8080@shop"]
    loaded = load(
        "client",
        flags={"Client.Services": flags, "Client.BasicAuth": ["ann:a,b", "bob:c"]},
        environ={"TRIONAT_CLIENT_BASIC_AUTH": "eve:d"},
    )
    [service] = loaded.client.effective_services()
    assert service.basic_auth == ("ann:a,b", "bob:c"), "a password may have a comma in it"
    loaded = load(
        "client",
        flags={"Client.Services": flags},
        environ={"TRIONAT_CLIENT_BASIC_AUTH": "ann:a,b\nbob:c\n"},
    )
    assert loaded.client.basic_auth == ("ann:a,b", "bob:c")
    loaded = from_text(
        """\
Client:
  Services:
    - {Local: 8080, Http: shop}
    - {Local: 8081, Http: api, BasicAuth: [eve:d, "fay:e"]}
    - {Local: 8082, Http: open, BasicAuth: []}
  BasicAuth: ["ann:a,b", bob:c]
"""
    )
    assert [service.basic_auth for service in loaded.client.effective_services()] == [
        ("ann:a,b", "bob:c"),
        ("eve:d", "fay:e"),
        (),
    ]


@pytest.mark.parametrize(
    ("logins", "reason"),
    [
        (["ann:sesame", "ann:sesame-2"], "the user 'ann' is named more than once"),
        ([f"user-{number}:sesame" for number in range(65)], "65 users are more than 64"),
    ],
)
def test_users_of_a_service_that_do_not_go_together(logins: list[str], reason: str) -> None:
    flags = {"Client.Services": ["http:8080"], "Client.BasicAuth": logins}
    with pytest.raises(ConfigError, match=reason) as caught:
        load("client", flags=flags, environ={})
    assert "sesame" not in str(caught.value)


def test_who_is_kept_from_a_name_may_still_come_to_a_visit_port() -> None:
    flags = {"Client.Services": ["8080", "http:8080@shop"], "Client.BasicAuth": ["ann:sesame"]}
    [warning] = load("client", flags=flags, environ={}).warnings
    assert (
        str(warning)
        == "flag --basic-auth: Client.BasicAuth: BasicAuth holds for services with names, and not at the visit port of 127.0.0.1:8080: everybody may visit that"
    )
    flags["Client.Services"] = ["http:8080@shop"]
    assert load("client", flags=flags, environ={}).warnings == ()
