"""What an operator reads whose Redis cannot be used: one line, which says what to do. On real Redis servers, set up as people have them."""

from __future__ import annotations

import re
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from bench.program import free_port
from tests.cluster.test_failover import world_at
from tests.cluster.test_node import claim
from tests.mariadb import HOST
from tests.redis_server import running_redis
from tests.registry.redis_world import SEAL
from trionat.address import TCPAddress
from trionat.config.cluster import ClusterConfig
from trionat.errors import RegistryAwayError
from trionat.server.cluster.membership import look_at_nodes
from trionat.server.cluster.redis_link import require_library

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.redis_server import RedisServer

pytestmark = pytest.mark.limit(30)


@pytest.fixture(autouse=True)
def _library() -> None:
    require_library()


@pytest.fixture(scope="module")
def plain() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture(scope="module")
def guarded() -> Iterator[RedisServer]:
    with running_redis("of Redis") as server:
        yield server


@pytest.fixture
def encrypted() -> Iterator[RedisServer]:
    """Its tests change how it is set up."""
    with running_redis(encrypted=True) as server:
        yield server


def told(url: str, *, password: str = "", ca_file: Path | None = None) -> str:
    """Ask for the nodes, and return why nobody answers; that is one line."""
    config = ClusterConfig(
        redis=url,
        node="x",
        node_addr=TCPAddress(HOST, 1),
        key_file=Path("cluster.key"),
        redis_password=password,
        ca_file=ca_file,
    )
    with pytest.raises(RegistryAwayError) as caught:
        trio.run(look_at_nodes, config, SEAL)
    text = str(caught.value)
    assert text.isprintable()
    return text


def test_tls_where_there_is_none(plain: RedisServer) -> None:
    text = told(plain.url.replace("redis:", "rediss:"))
    assert "it does not speak TLS at this port: write redis:// instead of rediss://" in text


def test_no_tls_where_there_is_some(encrypted: RedisServer) -> None:
    text = told(encrypted.url.replace("rediss:", "redis:"))
    assert "it speaks TLS at this port: write rediss:// instead of redis://" in text


def test_an_authority_that_is_not_known_here(encrypted: RedisServer) -> None:
    text = told(encrypted.url)
    assert "no authority that is known here vouches for its certificate (" in text
    assert "name the one that does in Cluster.CAFile" in text


def test_a_certificate_for_another_host(encrypted: RedisServer) -> None:
    url = encrypted.url.replace(HOST, "localhost")
    text = told(url, ca_file=encrypted.authority)
    assert "its certificate is refused (" in text
    assert "for the host in Cluster.Redis" in text


def test_a_redis_that_wants_certificates_of_clients(encrypted: RedisServer) -> None:
    """As it does unless it is told not to."""
    encrypted.ask("config", "set", "tls-auth-clients", "yes")
    for _ in range(5):  # sometimes its word is lost at first
        text = told(encrypted.url, ca_file=encrypted.authority)
        assert "nodes have none: set tls-auth-clients no in redis.conf" in text


def test_an_older_tls(encrypted: RedisServer) -> None:
    encrypted.ask("config", "set", "tls-protocols", "TLSv1.2")
    text = told(encrypted.url, ca_file=encrypted.authority)
    assert "it does not speak TLS 1.3, which nodes want" in text


def test_no_password(guarded: RedisServer) -> None:
    text = told(guarded.url)
    assert "it wants a password: name it in Cluster.RedisPasswordFile" in text


def test_a_wrong_password(guarded: RedisServer) -> None:
    text = told(guarded.url, password="wrong one")
    assert "it does not take this user and password: check Cluster.RedisPasswordFile" in text
    assert "wrong one" not in text


def test_a_user_that_may_not_do_enough(guarded: RedisServer) -> None:
    guarded.ask("acl", "setuser", "bob", "on", ">his own", "~*", "+ping", "+info")
    text = told(guarded.url.replace("://", "://bob:his%20own@"))
    assert "its ACL has to let trionat run scripts, publish and subscribe" in text


async def test_a_user_that_may_do_what_the_page_says(guarded: RedisServer) -> None:
    page = (Path(__file__).parents[2] / "docs/cluster.md").read_text("utf-8")
    found = re.search(r"`ACL SETUSER NAME on >PASSWORD (.+?)`", page)
    assert found is not None
    await trio.to_thread.run_sync(
        partial(guarded.ask, "acl", "setuser", "nat", "on", ">its own", *found[1].split())
    )
    url = guarded.url.replace("://", "://nat:its%20own@")
    async with world_at(url, guarded.folder) as world:
        node = await world.start("one")
        assert node.away is None
        assert (await claim(node, "a", 60001)).ports == (60001,)
        await trio.sleep(3)  # it beats, and hears itself
        assert node.away is None


def test_protected_mode(plain: RedisServer) -> None:
    """It lets in whoever comes from the same machine, by an address of the loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            pytest.skip("this machine has no address but that of the loopback")
        address = sock.getsockname()[0]
    plain.ask("config", "set", "bind", f"{HOST} {address}")
    for scheme in ("redis", "rediss"):
        for _ in range(3):  # what it says to that comes to us, or is lost
            text = told(f"{scheme}://{address}:{plain.port}")
            assert "it is in protected mode, in which nobody gets in from another machine" in text
            assert "requirepass" in text


def test_nobody_listens() -> None:
    text = told(f"redis://{HOST}:{free_port()}")
    assert "Connection refused: is it running there, and does it listen at that address" in text


def test_no_such_host() -> None:
    text = told("redis://nowhere.invalid:6379")
    assert ": is the host in Cluster.Redis right?" in text


def test_a_number_that_no_database_has(plain: RedisServer) -> None:
    assert "write a lower number behind Cluster.Redis" in told(f"{plain.url}/99")


def test_it_hangs(guarded: RedisServer) -> None:
    guarded.pause()
    try:
        text = told(guarded.url)
    finally:
        guarded.resume()
    assert "it did not answer within 2 s: does it hang, or is a firewall in the way?" in text
