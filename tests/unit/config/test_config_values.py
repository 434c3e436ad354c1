from __future__ import annotations

import base64
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trionat.address import TCPAddress, UnixAddress
from trionat.config.client import AuthConfig, ClientConfig
from trionat.config.database import DatabaseConfig
from trionat.config.sections import KEYS
from trionat.config.server import ServerConfig
from trionat.config.service import Service, parse_service
from trionat.config.values import (
    BOOLEAN,
    FINGERPRINT,
    NETWORKS,
    PATH,
    PORTS,
    TEXT,
    Kind,
    count_or_auto,
    seconds,
    whole,
)
from trionat.errors import ConfigError
from trionat.text import mask_secrets

DIGEST = bytes(range(32))
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)
LOCALS = st.builds(
    TCPAddress, NAMES | st.ip_addresses().map(str), st.integers(1, 65535)
) | st.builds(UnixAddress, st.text(alphabet="ab/:.0123456789 ü\n", min_size=1, max_size=30))


@settings(deadline=None)
@example(local=UnixAddress("/run/x:80"), visit=None)
@example(local=UnixAddress("80:90"), visit=None)
@example(local=UnixAddress("a]b"), visit=80)
@given(local=LOCALS, visit=st.none() | st.integers(1, 65535))
def test_a_service_reads_what_it_writes(local: TCPAddress | UnixAddress, visit: int | None) -> None:
    service = Service(local=local, visit_port=visit)
    assert parse_service(str(service)) == service


HOSTS = NAMES.filter(lambda name: name not in ("http", "https", "tls")) | st.ip_addresses().map(str)
PATHS = st.text(alphabet="ab/:@.019 ü\n", min_size=1, max_size=30) | st.sampled_from(
    ["//x", "http:/x", "https:8080", "tls:/a@b", "a@b", "/x@", "/run/a@b.sock", "/a@b:80"]
)
WAYS = st.one_of(
    st.builds(
        lambda name: {"http": name}, st.sampled_from(["", "shop", "shop.example.org", "true"])
    ),
    st.just({"tls": "db.example.org"}),
    st.builds(lambda port: {"https": True, "visit_port": port}, st.none() | st.integers(1, 65535)),
    st.just({}),
)


@settings(deadline=None, max_examples=500)
@example(local=UnixAddress("/run/a@b.sock"), way={"http": ""})
@example(local=UnixAddress("/run/a@b.sock"), way={"https": True, "visit_port": 60001})
@example(local=UnixAddress("/run/a@b.sock"), way={"https": True})
@example(local=UnixAddress("//x"), way={"http": ""})
@example(local=UnixAddress("http:/x"), way={})
@given(
    local=st.builds(TCPAddress, HOSTS, st.integers(1, 65535)) | st.builds(UnixAddress, PATHS),
    way=WAYS,
)
def test_a_service_with_a_name_reads_what_it_writes(
    local: TCPAddress | UnixAddress, way: dict[str, Any]
) -> None:
    service = Service(local=local, **way)
    assert parse_service(str(service)) == service


WEB = TCPAddress("127.0.0.1", 8080)


@pytest.mark.parametrize(
    ("text", "service"),
    [
        ("http:8080", Service(local=WEB, http="")),
        ("http:8080@shop", Service(local=WEB, http="shop")),
        ("http:8080@Shop.Example.org.", Service(local=WEB, http="shop.example.org")),
        ("http:127.0.0.1:8080@shop", Service(local=WEB, http="shop")),
        ("http:[::1]:80@shop", Service(local=TCPAddress("::1", 80), http="shop")),
        ("http:/run/app.sock@shop", Service(local=UnixAddress("/run/app.sock"), http="shop")),
        ("http:/run/a@b.sock@", Service(local=UnixAddress("/run/a@b.sock"), http="")),
        ("http:/run/x:60001", Service(local=UnixAddress("/run/x:60001"), http="")),
        ("http:unix:app.sock", Service(local=UnixAddress("app.sock"), http="")),
        ("tls:8443@db.example.org", Service(local=TCPAddress("127.0.0.1", 8443), tls="db.example.org")),
        ("https:8080", Service(local=WEB, https=True)),
        ("https:8080:60001", Service(local=WEB, https=True, visit_port=60001)),
        ("https:127.0.0.1:8080:60001", Service(local=WEB, https=True, visit_port=60001)),
        (
            "https:/run/a@b.sock:60001",
            Service(local=UnixAddress("/run/a@b.sock"), https=True, visit_port=60001),
        ),
    ],
)  # fmt: skip
def test_parse_a_service_with_a_name(text: str, service: Service) -> None:
    assert parse_service(text) == service


NAME_ALONE = "is for a name, which has no visit port: for a visit port write"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http:", "'' is not a valid port"),
        ("http:@shop", "'' is not a valid address"),
        ("http:0", "has port 0"),
        ("http:8080@", "'http:8080@' has no name behind the @: write http:8080@shop, or http:8080 for a name that the server makes"),
        ("http:/run/app.sock@", "has no name behind the @"),
        ("http:8080@a@b", "is not a valid address"),
        ("http:8080@192.0.2.1", "is an IP address"),
        ("http:8080@shop:443", "leave out the port"),
        ("http:8080@https://shop", "is a URL"),
        ("http://example.org", "is a URL"),
        ("https://example.org", "is a URL: write the service alone, as in https:8080"),
        ("http:8080:60001", f"'http:8080:60001': http {NAME_ALONE} https:8080:60001"),
        ("http:127.0.0.1:8080:60001", f"http {NAME_ALONE} https:8080:60001"),
        ("http:8080:60001@shop", f"http {NAME_ALONE} https:8080:60001"),
        ("http:::1:80", "in brackets"),
        ("tls:8443:60001@db.example.org", f"tls {NAME_ALONE} 8443:60001"),
        ("tls:8443:60001", f"tls {NAME_ALONE} 8443:60001"),
        ("tls:8443", "write tls:8443@db.example.org"),
        ("tls:8443@", "write tls:8443@db.example.org"),
        ("https:8080@shop", "a name has http, as in http:8080@shop"),
        ("https:8080@shop:60001", "a name has http, as in http:8080@shop"),
        ("https:/run/app.sock@shop", "a name has http, as in http:8080@shop"),
        ("https:8080:70000", "'70000' is not a valid port"),
    ],
)  # fmt: skip
def test_parse_a_service_with_a_name_refuses(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_service(text)


def _short(value: object) -> str:
    """Name a parameter the same in every process, and briefly."""
    return str(value.words if isinstance(value, Kind) else value)[:40]


@pytest.mark.parametrize(
    ("text", "local", "visit"),
    [
        ("8080", TCPAddress("127.0.0.1", 8080), None),
        ("127.0.0.1:22", TCPAddress("127.0.0.1", 22), None),
        ("6379:60001", TCPAddress("127.0.0.1", 6379), 60001),
        ("6379:0", TCPAddress("127.0.0.1", 6379), None),
        (":6379:60001", TCPAddress("127.0.0.1", 6379), 60001),
        ("127.0.0.1:22:60001", TCPAddress("127.0.0.1", 22), 60001),
        ("[::1]:22", TCPAddress("::1", 22), None),
        ("[::1]:22:60001", TCPAddress("::1", 22), 60001),
        ("/run/app.sock", UnixAddress("/run/app.sock"), None),
        ("/run/app.sock:60001", UnixAddress("/run/app.sock"), 60001),
        ("unix:app.sock", UnixAddress("app.sock"), None),
        ("unix:app.sock:60001", UnixAddress("app.sock"), 60001),
        ("localhost:3000", TCPAddress("localhost", 3000), None),
    ],
)
def test_parse_service(text: str, local: TCPAddress | UnixAddress, visit: int | None) -> None:
    service = parse_service(text)
    assert (service.local, service.visit_port, service.name) == (local, visit, str(local))


@pytest.mark.parametrize(
    "text", ["", "x", "0", "a:0", "80:65536", "::1:22", "unix:", "http://a:80", "70000", "80:"]
)
def test_parse_service_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="write"):
        parse_service(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("8080@shop", "did you mean http:8080@shop?"),
        ("8080@shop.example.org", "did you mean http:8080@shop.example.org?"),
        ("htp:8080@shop", "'htp' is no kind of service: did you mean http:8080@shop?"),
        ("HTTP:8080@shop", "'HTTP' is no kind of service: did you mean http:8080@shop?"),
        ("tsl:8443@db", "'tsl' is no kind of service: did you mean tls:8443@db?"),
        ("192.168.1.9:80@shop", "begins with its kind, as in http:8080@shop"),
    ],
)
def test_a_service_that_is_mistyped_tells_what_was_meant(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        parse_service(text)
    assert told in mask_secrets(str(caught.value))


def test_a_password_in_the_place_of_a_service_is_not_repeated() -> None:
    for text in ("ann:1234@shop", "ann:se:1234@shop"):
        with pytest.raises(ValueError, match="kind") as caught:
            parse_service(text)
        assert "1234" not in str(caught.value)


def test_a_service_that_speaks_tls_may_have_a_label() -> None:
    assert parse_service("tls:8443@db") == Service(local=TCPAddress("127.0.0.1", 8443), tls="db")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (whole(1, 4), "4", 4),
        (count_or_auto(4), "4", 4),
        (count_or_auto(4), "Auto", 0),
        (seconds(0, 10), "2.5", 2.5),
        (seconds(0, 10), "0", 0.0),
        (BOOLEAN, "Yes", True),
        (BOOLEAN, "off", False),
        (PORTS, "0", (0,)),
        (PORTS, "60000-60002", (60000, 60001, 60002)),
        (PORTS, "60000 - 60000", (60000,)),
        (NETWORKS, "192.0.2.0/24", (ip_network("192.0.2.0/24"),)),
        (NETWORKS, " 2001:db8::1", (ip_network("2001:db8::1/128"),)),
        (PATH, "~", Path.home()),
        *(
            (FINGERPRINT, text, "SHA256:" + base64.b64encode(DIGEST).decode().rstrip("="))
            for text in (
                "SHA256:" + DIGEST.hex(),
                "sha256:" + DIGEST.hex(":").upper(),
                DIGEST.hex(),
                "SHA256:" + base64.b64encode(DIGEST).decode(),
                "SHA256:" + base64.b64encode(DIGEST).decode().rstrip("="),
            )
        ),
    ],
)
def test_reading(kind: Kind[Any], text: str, value: object) -> None:
    assert kind.read(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (whole(1, 4), "5", "'5' is not a whole number from 1 to 4"),
        (count_or_auto(4), "5", "'5' is not a whole number from 1 to 4, or auto"),
        (count_or_auto(4), "0", "'0' is not a whole number from 1 to 4, or auto"),
        (count_or_auto(4), "all", "'all' is not a whole number from 1 to 4, or auto"),
        (whole(1, 4), "1.0", "'1.0' is not a whole number from 1 to 4"),
        (whole(1, 4), "9" * 5000, "a value of 5000 characters is not a whole number from 1 to 4"),
        (seconds(0.1, 10), "nan", "'nan' is not a number of seconds from 0.1 to 10"),
        (seconds(0.1, 10), "0", "'0' is not a number of seconds from 0.1 to 10"),
        (BOOLEAN, "maybe", "'maybe' is neither true nor false"),
        (
            PORTS,
            "5-4",
            "'5-4' is not a valid range of ports: write the lower one first, as in 60000-60099",
        ),
        (
            PORTS,
            "0-4",
            "'0-4' is not a valid range of ports: 0 stands for any free port: begin with 1, as in 60000-60099",
        ),
        *(
            (
                PORTS,
                text,
                f"{text!r} is not a valid range of ports: write two ports from 1 to 65535, as in 60000-60099",
            )
            for text in ("1-99999", "21300-", "-21300", "-", "1-2-3", "a-4")
        ),
        (
            NETWORKS,
            "example.com",
            "'example.com' is not a valid network: write it like 192.0.2.0/24, 2001:db8::/32 or 192.0.2.7",
        ),
        (
            NETWORKS,
            "192.0.2.7/24",
            "'192.0.2.7/24' is not a valid network: did you mean 192.0.2.0/24?",
        ),
        (PATH, "", "'' is not a valid path"),
        (TEXT, "a\udcff", "'a\\udcff' is not valid UTF-8"),
        (
            FINGERPRINT,
            "SHA256:ü",
            "'SHA256:ü' is not a valid fingerprint: write SHA256: and 32 bytes in base64 or hex",
        ),
        (
            FINGERPRINT,
            "SHA256:00",
            "'SHA256:00' is not a valid fingerprint: write SHA256: and 32 bytes in base64 or hex",
        ),
    ],
    ids=_short,
)
def test_reading_refuses(kind: Kind[Any], text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        kind.read(text)
    assert str(caught.value) == message


@settings(deadline=None)
@given(ports=st.lists(st.integers(0, 65535) | st.integers(0, 5), min_size=1).map(tuple))
def test_ports_read_what_they_write(ports: tuple[int, ...]) -> None:
    texts = PORTS.write(ports).split(", ")
    assert tuple(port for text in texts for port in PORTS.read(text)) == ports


@pytest.mark.parametrize("path", KEYS)
def test_the_default_of_every_key_is_in_its_own_range(path: str) -> None:
    key = KEYS[path]
    if not key.many and key.default not in (None, ""):
        assert key.kind.read(key.kind.write(key.default)) == key.default


def test_secrets_are_not_in_reprs() -> None:
    secrets = {path for path, key in KEYS.items() if key.secret}
    assert secrets == {
        "Database.Password",
        "Cluster.RedisPassword",
        "Auth.Password",
        "Client.Ticket",
        "Client.BasicAuth",
    }
    holders = (
        ClientConfig(basic_auth=("ann:hunter2",)),
        Service(local=TCPAddress("h", 80), basic_auth=("ann:hunter2",)),
        AuthConfig(password="hunter2"),
        ClientConfig(ticket="hunter2"),
        DatabaseConfig(username="u", password="hunter2", host="h", db_name="d"),
    )
    assert "hunter2" not in repr(holders)


def test_what_unset_values_stand_for() -> None:
    server = ServerConfig()
    assert (server.session_limit, server.queue_places, server.effective_visit_host) == (
        4,
        128,
        "0.0.0.0",
    )
    assert (server.public_host, server.public_port) == (None, None)
    assert server.effective_state_dir.name == "trionat"
    assert server.effective_state_dir == ClientConfig().effective_state_dir
    server = attrs.evolve(
        server,
        max_tcp_conn_num=2,
        max_conn_num=7,
        visit_host="::1",
        public_addr="[::1]:443",
        state_dir=Path("x"),
    )
    assert (server.session_limit, server.queue_places, server.effective_visit_host) == (2, 7, "::1")
    assert (server.public_host, server.public_port) == ("::1", 443)
    assert server.effective_state_dir == Path("x")


def test_effective_services() -> None:
    first, second = TCPAddress("127.0.0.1", 1), TCPAddress("127.0.0.1", 2)
    assert ClientConfig(local_server_addr=first).effective_services() == (Service(local=first),)
    both = ClientConfig(local_server_addr=first, services=(Service(local=second),))
    assert both.effective_services() == (Service(local=second),)
    with pytest.raises(
        ConfigError, match="no local service is named: give one on the command line, such as 8080"
    ):
        ClientConfig().effective_services()


def test_services_and_their_proxy_protocol() -> None:
    """What an entry says counts; all others, and a `LocalServerAddr`, follow the client."""
    one, two = TCPAddress("127.0.0.1", 1), TCPAddress("127.0.0.1", 2)
    client = ClientConfig(
        services=(Service(local=one, name="x"), Service(local=two, proxy_protocol="none")),
        proxy_protocol="v2",
    )
    first, second = client.effective_services()
    assert first == Service(local=one, name="x", proxy_protocol="v2")
    assert second.proxy_protocol == "none"
    client = ClientConfig(local_server_addr=one, proxy_protocol="v1")
    assert client.effective_services() == (Service(local=one, proxy_protocol="v1"),)


@pytest.mark.parametrize(("of_all", "of_one"), [("v1", None), ("none", "v2")])
def test_a_dialect_that_tells_no_addresses(of_all: str, of_one: str | None) -> None:
    one = TCPAddress("127.0.0.1", 1)
    service = Service(local=one, proxy_protocol=of_one)
    client = ClientConfig(
        dialect="nat-v1",
        controller_addr=one,
        tunnel_server_addr=one,
        services=(service,),
        proxy_protocol=of_all,
    )
    [(fields, reason)] = client.faults()
    assert "proxy_protocol" in fields
    assert reason.startswith("nat-v1 does not tell where visitors come from: remove it")


def test_kinds_of_letters_do_not_clash() -> None:
    for section in ("Server", "Client"):
        keys = [key for key in KEYS.values() if key.section in {section, "Auth"}]
        letters = [key.letter for key in keys if key.letter]
        flags = [key.flag for key in keys]
        assert len(set(letters)) == len(letters)
        assert len(set(flags)) == len(flags)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "0.0.0.0:8007", "::", "[::0]:8007", "[::ffff:0.0.0.0]"]
)
def test_a_public_address_that_nobody_can_dial_is_refused(host: str) -> None:
    """A ticket that holds it would lead each client to its own machine."""
    with pytest.raises(ValueError, match=r"^'.*' stands for every address of this machine"):
        KEYS["Server.PublicAddr"].kind.read(host)
    assert KEYS["Database.Host"].kind.read(host) == host  # which is this machine's


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]:8007", "0.example", "tunnel.example.com:1"])
def test_a_public_address_is_kept_as_it_is_written(host: str) -> None:
    assert KEYS["Server.PublicAddr"].kind.read(host) == host
