"""A real nginx learns from a PROXY header where visitors come from, and which address they dialled."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import read_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [
    pytest.mark.limit(60),
    pytest.mark.skipif(
        not hasattr(socket, "TCP_INFO"), reason="only Linux has all of 127.0.0.0/8 for its own"
    ),
]

ANSWER = "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port"


@asynccontextmanager
async def nginx(folder: Path) -> AsyncIterator[services.Service]:
    """Run an nginx that answers with what it was told, and takes nobody who tells nothing."""
    program = services.find_program("nginx", package="nginx-light")
    paths = "".join(
        f"{kind}_temp_path {folder};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )

    def command(port: int) -> list[str]:
        file = folder / f"nginx-{port}.conf"
        file.write_text(
            f"daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;\n"
            "events { worker_connections 64; }\n"
            f"http {{ access_log off; {paths}\n"
            f"server {{ listen {services.HOST}:{port} proxy_protocol;\n"
            f'location / {{ default_type text/plain; return 200 "{ANSWER}"; }} }} }}\n'
        )
        return [program, "-e", "stderr", "-p", str(folder), "-c", str(file)]

    async def answers(port: int, _pid: int) -> bool:
        async with await trio.open_tcp_stream(services.HOST, port) as stream:
            await stream.send_all(b"PROXY UNKNOWN\r\nGET / HTTP/1.0\r\n\r\n")
            return b"200 OK" in await read_all(stream)

    async with services.started(command, answers) as port:
        yield services.Service(port)


def has_ipv6() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_nginx_sees_the_visitor(version: str, tmp_path: Path) -> None:
    visits = [("127.0.0.2", "127.0.0.3")]  # one port for both families, where there is IPv6
    if has_ipv6():
        visits.append(("::1", "::1"))
    host = "::" if has_ipv6() else "0.0.0.0"
    async with (
        nginx(tmp_path) as service,
        running.server(tmp_path / "s", "--visit-host", host) as server,
        running.client(
            tmp_path / "c", server.ticket, service, "--proxy-protocol", version
        ) as client,
    ):
        for source, visited in visits:
            family = socket.AF_INET6 if ":" in source else socket.AF_INET
            with trio.socket.socket(family) as sock:
                await sock.bind((source, 0))
                await sock.connect((visited, client.port()))
                port = sock.getsockname()[1]
                stream = trio.SocketStream(sock)
                await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
                head, _, told = (await read_all(stream)).partition(b"\r\n\r\n")
            assert b"200 OK" in head
            assert told.decode() == f"{source} {port} {visited} {client.port()}"
