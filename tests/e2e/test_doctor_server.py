"""A server's doctor, on its own machine: each fault is made for real, and found."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.certificates.made import DAY, Maker
from tests.e2e import running, services
from tests.e2e.doctor import examine
from tests.failover.test_servers import names
from tests.faults.test_full_disk import on_a_small_disk
from tests.redis_server import running_redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.running import Server
    from tests.mariadb import MariaDB

pytestmark = pytest.mark.limit(60)

SHELL = 'ip link set lo up; "$0" -qw "$1" >&2; shift; exec "$@"'


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running.server(tmp_path / "s") as server:
        yield server


@pytest.fixture
async def stopped(tmp_path: Path) -> Path:
    """The state folder of a server that has run."""
    async with running.server(tmp_path / "s") as server:
        return server.state


async def write(path: Path, text: str) -> Path:
    await trio.Path(path).write_text(text)
    return path


async def test_nothing_wrong(server: Server, tmp_path: Path) -> None:
    seen = await examine("--state-dir", server.state, cwd=tmp_path)
    assert seen.wrong == set()
    assert "is up since" in seen.of("server", "ok")
    assert "leads to this server" in seen.of("public address", "ok")
    assert "whole, 1 user" in seen.of("accounts", "ok")
    assert "for ever" in seen.of("certificates", "ok")


async def test_a_server_that_is_down(stopped: Path, tmp_path: Path) -> None:
    seen = await examine("--state-dir", stopped, cwd=tmp_path)
    assert seen.wrong == {"server"}
    assert "no server is up" in seen.of("server")


async def test_another_program_has_its_port(stopped: Path, tmp_path: Path) -> None:
    async with services.echo() as other:
        file = await write(
            tmp_path / "server.yml", f"Server:\n  ControllerAddr: 127.0.0.1:{other.port}\n"
        )
        seen = await examine("--state-dir", stopped, "--config", file, cwd=tmp_path)
    assert seen.wrong == {"server", "ports"}
    assert f"127.0.0.1:{other.port} is another program's" in seen.of("ports")


async def test_a_service_that_its_client_cannot_reach(server: Server, tmp_path: Path) -> None:
    """The client's own doctor would say more."""
    async with running.client(
        tmp_path / "c", server.ticket, services.free_low_port(), "--group", "g"
    ) as client:
        await client.wait_record("the local service is down; visitors are refused until it is back")
        seen = await examine("--state-dir", server.state, cwd=tmp_path)
    assert "cannot reach its service" in seen.of("server", "warning")


async def test_a_public_address_of_another_server(server: Server, tmp_path: Path) -> None:
    async with running.server(tmp_path / "other") as other:
        host, port = other.control
        file = await write(tmp_path / "server.yml", f"Server:\n  PublicAddr: {host}:{port}\n")
        seen = await examine("--state-dir", server.state, "--config", file, cwd=tmp_path)
    assert seen.wrong == {"public address"}
    assert "leads to another server" in seen.of("public address")


async def test_a_public_name_that_leads_nowhere(server: Server, tmp_path: Path) -> None:
    file = await write(tmp_path / "server.yml", "Server:\n  PublicAddr: nobody.invalid\n")
    seen = await examine("--state-dir", server.state, "--config", file, cwd=tmp_path)
    assert seen.wrong == {"public address"}
    assert "make its DNS record" in seen.of("public address")


async def test_secrets_that_others_can_read(stopped: Path, tmp_path: Path) -> None:
    await trio.Path(stopped / "ticket.key").chmod(0o644)
    seen = await examine("--state-dir", stopped, cwd=tmp_path)
    assert "files" in seen.wrong
    assert f"chmod go-rwx {stopped}/ticket.key" in seen.of("files")


async def test_somebody_elses_server(tmp_path: Path) -> None:
    """It says that it is the wrong user, whatever it is that is closed."""
    setpriv = services.find_program("setpriv", package="util-linux")
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        await trio.Path(folder).chmod(0o755)
        async with running.server(folder / "s") as server:
            nobody = (setpriv, "--reuid=65534", "--regid=65534", "--clear-groups")
            file = await write(folder / "server.yml", "Server: {Name: here}\n")
            seen = await examine(
                "--state-dir", server.state, "--config", file, cwd=folder, inside=nobody
            )
    assert {"files", "server", "accounts"} <= seen.wrong
    assert "Permission denied" in seen.of("server")
    assert "as the user that trionat runs as" in seen.of("files")


async def test_damaged_accounts(stopped: Path, tmp_path: Path) -> None:
    for leftover in ("trionat.db-wal", "trionat.db-shm"):
        await trio.Path(stopped / leftover).unlink(missing_ok=True)
    await trio.Path(stopped / "trionat.db").write_bytes(b"no database" * 1000)
    seen = await examine("--state-dir", stopped, cwd=tmp_path)
    assert "accounts" in seen.wrong


async def test_certificates_that_end(stopped: Path, tmp_path: Path) -> None:
    """One that has long to go is not in the way."""
    maker, now = Maker(), time.time()
    folder = tmp_path / "own"
    await trio.Path(folder).mkdir()
    ends = {"good": 80 * DAY, "soon": 10 * DAY + 60, "over": -DAY}
    for name, seconds in ends.items():
        key, chain = maker.chain(f"{name}.test", begins=now - 80 * DAY, ends=now + seconds)
        await trio.Path(folder / f"{name}.key").write_bytes(key)
        await trio.Path(folder / f"{name}.crt").write_bytes(chain)
    file = await write(
        tmp_path / "server.yml", f"Server: {{CertificatesDir: {folder}, Domain: tunnel.test}}\n"
    )
    seen = await examine("--state-dir", stopped, "--config", file, cwd=tmp_path)
    found = seen.of("certificates")
    assert "soon.crt ends in 10 days" in found
    assert "over.crt has run out" in found
    assert "good" not in found


async def test_a_database_that_is_away(stopped: Path, tmp_path: Path) -> None:
    file = await write(
        tmp_path / "server.yml",
        "Database: {Username: a, Password: hidden-password, Host: '127.0.0.1:1', DBName: c}\n",
    )
    await trio.Path(file).chmod(0o600)
    seen = await examine("--state-dir", stopped, "--config", file, cwd=tmp_path)
    assert seen.wrong == {"server", "database"}
    assert "is it running, and is Database.Host right?" in seen.of("database")


@pytest.mark.slow
async def test_a_database_that_lacks_its_tables(
    mariadb: MariaDB, stopped: Path, tmp_path: Path
) -> None:
    database = mariadb.new_database()
    file = await write(
        tmp_path / "server.yml",
        f"Database: {{Username: {database.username}, Password: {database.password}, Host: '{database.host}',"
        f" DBName: {database.db_name}}}\n",
    )
    await trio.Path(file).chmod(0o600)
    seen = await examine("--state-dir", stopped, "--config", file, cwd=tmp_path)
    assert "database" in seen.wrong
    assert "run trionat db init" in seen.of("database")
    assert f"from that of the database {database.host}" in seen.of("database", "ok")


def cluster(folder: Path, redis: str) -> str:
    return (
        "Database: {Username: a, Password: b, Host: '127.0.0.1:1', DBName: c}\n"
        f"Cluster: {{Redis: '{redis}', Node: n1, NodeAddr: '127.0.0.1:9', KeyFile: {folder}/cluster.key}}\n"
        "Server: {VisitPort: [20001]}\n"
    )


async def test_a_redis_that_is_away(stopped: Path, tmp_path: Path) -> None:
    pytest.importorskip("coredis")
    file = await write(tmp_path / "server.yml", cluster(tmp_path, "redis://:hidden@127.0.0.1:1"))
    await trio.Path(file).chmod(0o600)
    seen = await examine("--state-dir", stopped, "--config", file, cwd=tmp_path)
    assert seen.wrong == {"server", "database", "redis"}
    assert "Connection refused" in seen.of("redis")
    assert "hidden" not in str(seen.findings)


async def test_a_redis_that_throws_keys_away(stopped: Path, tmp_path: Path) -> None:
    pytest.importorskip("coredis")
    with running_redis() as redis:
        file = await write(tmp_path / "server.yml", cluster(tmp_path, redis.url))
        await trio.Path(file).chmod(0o600)
        seen = await examine("--state-dir", stopped, "--config", file, cwd=tmp_path)
        assert "has the cluster's keys" in seen.of("redis", "ok")
        assert "from that of Redis" in seen.of("redis", "ok")
        redis.ask("config", "set", "maxmemory-policy", "allkeys-lru")
        seen = await examine("--state-dir", stopped, "--config", file, cwd=tmp_path)
    assert "allkeys-lru" in seen.of("redis", "warning")


@pytest.mark.parametrize("leads_to", [None, "127.0.0.9"])
async def test_names_whose_dns_is_wrong(
    stopped: Path, tmp_path: Path, leads_to: str | None
) -> None:
    pytest.importorskip("httptools")
    file = await write(
        tmp_path / "server.yml",
        "Server: {Domain: tunnel.test, PublicAddr: host.test, HttpAddr: '127.0.0.1:20080', HttpsAddr: '127.0.0.1:20443'}\n",
    )
    hosts = tmp_path / "hosts"
    inside = names(hosts, "host.test", "127.0.0.1")
    if leads_to is not None:
        await write(hosts, f"127.0.0.1 host.test\n{leads_to} tunnel.test\n")
    seen = await examine("--state-dir", stopped, "--config", file, cwd=tmp_path, inside=inside)
    assert seen.wrong == {"server", "names"}
    assert "*.tunnel.test. CNAME host.test." in seen.of("names")
    assert ("leads elsewhere" in seen.of("names")) is (leads_to is not None)


async def test_a_full_disk(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    inside = on_a_small_disk(folder)
    file = await write(tmp_path / "server.yml", "Server: {Name: here}\n")
    seen = await examine(
        "--state-dir", folder / "state", "--config", file, cwd=tmp_path, inside=inside
    )
    assert "disk" in seen.wrong
    assert "2 MiB free" in seen.of("disk")


@pytest.mark.parametrize(
    ("setting", "check", "told"),
    [
        ("net.core.somaxconn=16", "kernel", "only 16 connections may wait"),
        ("net.ipv4.ip_local_port_range=40000 40100", "ephemeral", "only 101 ports"),
    ],
)
async def test_limits_of_the_kernel(
    stopped: Path, tmp_path: Path, setting: str, check: str, told: str
) -> None:
    sysctl = services.find_program("sysctl", package="procps")
    if shutil.which("unshare") is None:
        pytest.skip("no network namespaces without unshare")
    inside = ("unshare", "--map-root-user", "--net", "sh", "-c", SHELL, sysctl, setting)
    seen = await examine("--state-dir", stopped, cwd=tmp_path, inside=inside)
    assert seen.wrong == {"server", check}
    assert told in seen.of(check)


async def test_a_visit_port_that_the_kernel_may_give_away(stopped: Path, tmp_path: Path) -> None:
    file = await write(tmp_path / "server.yml", "Server: {VisitPort: [60000-60003]}\n")
    seen = await examine("--state-dir", stopped, "--config", file, cwd=tmp_path)
    assert "ip_local_reserved_ports=60000-60003" in seen.of("ephemeral", "warning")


async def test_both_sides_on_one_machine(server: Server, tmp_path: Path) -> None:
    """What each is configured for is looked at."""
    await write(tmp_path / "client.yml", f"Client: {{Ticket: {server.ticket}}}\n")
    await trio.Path(tmp_path / "client.yml").chmod(0o600)
    seen = await examine("--state-dir", server.state, cwd=tmp_path)
    assert seen.wrong == set()
    assert seen.of("ticket", "ok")
    assert seen.of("server", "ok")
    for once in ("descriptors", "kernel", "ephemeral"):
        assert len([each for each in seen.findings if each["check"] == once]) == 1
    await trio.Path(tmp_path / "client.yml").chmod(0o644)
    seen = await examine("--state-dir", server.state, cwd=tmp_path)
    assert len([each for each in seen.findings if each["verdict"] == "wrong"]) == 1
    # The folder is that of a server, and the file a client's alone.
    named = ("--state-dir", server.state, "--config", "client.yml")
    seen = await examine(*named, cwd=tmp_path)
    assert seen.of("ticket", "ok")
    assert not seen.of("server", "ok")


async def test_a_server_that_was_started_with_flags(server: Server, tmp_path: Path) -> None:
    """Its own figures are shown, and not those that it would have without flags."""
    seen = await examine("--state-dir", server.state, cwd=tmp_path)
    free = re.search(r"(\d+ visit ports?) free", seen.of("server", "ok"))
    assert free
    assert f"({free[1]}, MaxTCPConnNum {free[1].split()[0]}," in seen.of("descriptors", "ok")
    assert "60000" not in seen.of("ephemeral", "warning")
