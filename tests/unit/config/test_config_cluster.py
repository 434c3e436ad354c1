"""The section Cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trionat.address import TCPAddress
from trionat.config.cluster import ClusterConfig, parse_redis
from trionat.config.load import load
from trionat.errors import ConfigError

if TYPE_CHECKING:
    from trionat.config.load import Configuration

DATABASE = "Database: {Username: u, Host: h, DBName: d}\n"
CLUSTER = "Cluster: {Redis: 'redis://h', Node: one, NodeAddr: 'h:8009', KeyFile: k%s}\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def from_text(text: str) -> Configuration:
    Path("f.yml").write_text(text, encoding="utf-8")
    return load("server", file=Path("f.yml"), environ={})


def problem_of(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        from_text(text)
    (problem,) = caught.value.problems
    return str(problem)


def test_a_server_is_alone_without_it() -> None:
    assert from_text("").cluster is None


def test_it_is_read() -> None:
    assert from_text(DATABASE + CLUSTER % "").cluster == ClusterConfig(
        redis="redis://h", node="one", node_addr=TCPAddress("h", 8009), key_file=Path("k")
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            CLUSTER % "",
            (
                "f.yml:1: Cluster.Redis: every node has to know the same accounts, and a file in StateDir is one machine's: name a"
                " database (section Database, MySQL or MariaDB)"
            ),
        ),
        (
            DATABASE + "Server: {StartAuth: false}\n" + CLUSTER % "",
            "f.yml:2: Server.StartAuth: nodes of a cluster know their clients by accounts: StartAuth has to be true",
        ),
        (
            DATABASE + "Server: {VisitPort: [60000, 0]}\n" + CLUSTER % "",
            "f.yml:2: Server.VisitPort: all nodes of a cluster have the same visit ports, and 0 stands for any: name them",
        ),
        (
            DATABASE
            + "Server: {TunnelEncryption: none, ProxyControlAddr: 'h:7007', VisitPort: 60000}\n"
            + CLUSTER % "",
            (
                "f.yml:2: Server.TunnelEncryption: a proxy before several nodes knows by TLS to which one a tunnel belongs: leave it at"
                " tls, or do without ProxyControlAddr"
            ),
        ),
        (
            DATABASE + CLUSTER % ", CAFile: ca.pem",
            "f.yml:2: Cluster.CAFile: redis:// is not encrypted, so nobody is checked: use rediss://",
        ),
        (
            DATABASE + (CLUSTER % "").replace("8009", "0"),
            "f.yml:2: Cluster.NodeAddr: the other nodes have to know the port: name one",
        ),
        (
            DATABASE + (CLUSTER % "").replace("h:8009", "0.0.0.0:8009"),
            (
                "f.yml:2: Cluster.NodeAddr: the other nodes dial it, and 0.0.0.0 is no address of one machine: name this node's own, as"
                " the others reach it"
            ),
        ),
        (
            DATABASE + (CLUSTER % "").replace("h:8009", "[::]:8009"),
            (
                "f.yml:2: Cluster.NodeAddr: the other nodes dial it, and :: is no address of one machine: name this node's own, as the"
                " others reach it"
            ),
        ),
        (
            DATABASE + (CLUSTER % "").replace("one", "'a b'"),
            (
                "f.yml:2: Cluster.Node: 'a b' is not a name of 1 to 64 letters, digits, dots, dashes and underscores, the first one a"
                " letter or digit"
            ),
        ),
        (
            DATABASE + (CLUSTER % "").replace("redis://h", "http://u:hunter2@h"),
            "f.yml:2: Cluster.Redis: 'http://u:********@h' is not a URL such as redis://HOST:PORT or rediss://HOST:PORT/0",
        ),
        (
            DATABASE + "Cluster: {Node: one, NodeAddr: 'h:1', KeyFile: k}\n",
            "f.yml:2: Cluster.Redis: is missing: the Redis that all nodes share",
        ),
    ],
    ids=[
        "no database",
        "nobody logs in",
        "port 0",
        "no TLS",
        "CAFile",
        "NodeAddr",
        "NodeAddr is all addresses",
        "NodeAddr is all of IPv6",
        "Node",
        "URL",
        "missing",
    ],
)
def test_what_does_not_go(text: str, problem: str) -> None:
    assert problem_of(text) == problem


@pytest.mark.parametrize(
    ("text", "host", "port", "database", "username", "password", "encrypted"),
    [
        ("redis://h", "h", 6379, 0, None, None, False),
        ("rediss://h:1/2", "h", 1, 2, None, None, True),
        ("redis://:p%40ss@[::1]:7", "::1", 7, 0, None, "p@ss", False),
        ("redis://u:p@192.0.2.1/", "192.0.2.1", 6379, 0, "u", "p", False),
    ],
)
def test_urls(
    text: str,
    host: str,
    port: int,
    database: int,
    username: str | None,
    password: str | None,
    encrypted: bool,
) -> None:
    found = parse_redis(text)
    assert found.addresses == (TCPAddress(host, port),)
    assert (found.database, found.master) == (database, "")
    assert (found.username, found.password, found.encrypted) == (username, password, encrypted)
    assert "p" not in str(found)
    assert "pass" not in repr(found).replace("password", "")


@pytest.mark.parametrize(
    ("text", "addresses", "master", "database", "encrypted"),
    [
        ("redis://a,b:1,[::1]:2", "a:6379 b:1 [::1]:2", "", 0, False),
        ("redis+sentinel://a,b:1/mymaster", "a:26379 b:1", "mymaster", 0, False),
        ("rediss+sentinel://:p@a/mymaster/3", "a:26379", "mymaster", 3, True),
    ],
)
def test_urls_with_several_addresses(
    text: str, addresses: str, master: str, database: int, encrypted: bool
) -> None:
    found = parse_redis(text)
    assert str(found) == addresses.replace(" ", ", ")
    assert (found.master, found.database, found.encrypted) == (master, database, encrypted)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h:6379",
        "redis+sentinel://h",
        "redis+sentinel://h/",
        "redis+sentinel://h/a b",
        "redis+sentinel://h/m/x",
        "redis+other://h/m",
        "redis+://h/m",
        "redis://h,",
        "redis://" + ",".join("h" * 17),
        "redis://",
        "redis://h:0",
        "redis://h:x",
        "redis://h/x",
        "redis://h/-1",
        "redis://h?a=b",
        "redis://[h",
    ],
)
def test_what_is_no_url(text: str) -> None:
    with pytest.raises(ValueError, match="is not a URL such as"):
        parse_redis(text)


def test_a_password_in_the_url_is_not_shown() -> None:
    loaded = from_text(DATABASE + (CLUSTER % "").replace("redis://h", "redis://u:hunter2@h"))
    assert "hunter2" not in repr(loaded)


@pytest.mark.parametrize(
    ("host", "warned"),
    [
        ("127.0.0.2", True),
        ("localhost", True),
        ("[::1]", True),
        ("10.0.0.11", False),
        ("n1.example.com", False),
    ],
)
def test_an_address_that_only_this_machine_reaches(host: str, warned: bool) -> None:
    warnings = from_text(DATABASE + (CLUSTER % "").replace("h:8009", f"{host}:8009")).warnings
    assert [each.key for each in warnings] == ["Cluster.NodeAddr"] * warned
    for each in warnings:
        assert f"only this machine reaches {host.strip('[]')}: nodes on other machines" in str(each)
