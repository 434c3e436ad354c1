"""How people write where a server listens, and ports that are taken by the server itself."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.services import Service

pytestmark = pytest.mark.limit(60)


@pytest.mark.parametrize("host", ["localhost", "[::1]"])
async def test_where_a_server_listens(host: str, echo_server: Service, tmp_path: Path) -> None:
    """The ticket names it as it was written; `localhost` can be reached as 127.0.0.1 as well."""
    port = services.free_low_port()
    async with (
        running.server(tmp_path / "s", control=f"{host}:{port}") as server,
        running.client(tmp_path / "c", server.ticket, echo_server) as client,
    ):
        assert server.ready["control"] == server.ready["public"] == f"{host}:{port}"
        public = client.connected["services"][0]["public"]
        assert public == f"{host}:{client.port()}"
        dialled = {"localhost": ["127.0.0.1", "localhost"], "[::1]": ["::1"]}[host]
        for each in dialled:
            socket.create_connection((each, port), timeout=2).close()
            async with await trio.open_tcp_stream(each, client.port()) as visitor:
                assert await ask(visitor, b"hello") == b"hello"


async def test_without_a_port(tmp_path: Path) -> None:
    for host, example in (("[::1]", "[::1]:8080"), ("localhost", "127.0.0.1:8080")):
        done = await services.run_trionat("serve", "-c", host, "--state-dir", tmp_path / "state")
        assert done.returncode == 2
        assert done.stderr.decode() == (
            f"trionat: flag --controller-addr: Server.ControllerAddr: '{host}' has no port:"
            f" write HOST:PORT, such as {example}\n"
        )


@pytest.mark.parametrize(
    ("public", "expected"),
    [
        ("tunnel.example.com", "tunnel.example.com:{}"),
        ("[2001:db8::1]", "[2001:db8::1]:{}"),
        ("2001:db8::1", "[2001:db8::1]:{}"),
        ("[2001:db8::1]:443", "[2001:db8::1]:443"),
    ],
)
async def test_public_address(public: str, expected: str, tmp_path: Path) -> None:
    async with running.server(tmp_path / "s", "--public-addr", public) as server:
        assert server.ready["public"] == expected.format(server.control[1])


@pytest.mark.parametrize("kind", ["control", "tunnel"])
async def test_a_port_of_the_server_itself(kind: str, tmp_path: Path) -> None:
    """Left out with a warning beside others; alone it ends the start."""
    taken, free = services.free_low_port(), services.free_low_port()
    flag = {"control": "-c", "tunnel": "-t"}[kind]
    reason = (
        f"cannot listen on 127.0.0.1:{taken}: that is this server's own {kind} port:"
        " choose another visit port"
    )
    addresses = {"-c": "127.0.0.1:0", "-t": "127.0.0.1:0"} | {flag: f"127.0.0.1:{taken}"}
    flags = [part for pair in addresses.items() for part in pair]
    done = await services.run_trionat(
        "serve", *flags, "-p", str(taken), "--state-dir", tmp_path / "state", cwd=tmp_path
    )
    assert done.returncode == 3
    assert done.stderr.decode() == f"trionat: {reason}\n"
    async with running.server(tmp_path / "s", *flags, visit=f"{taken},{free}") as server:
        assert server.ready["visit_ports"] == [free]
        await server.wait_record("visit ports are left out (VisitPortPolicy)", reason=reason)
