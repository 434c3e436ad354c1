"""Real programs that talk to real services through a tunnel, as if it were not there."""

from __future__ import annotations

import hashlib
import json
import os
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio_websocket

from tests.e2e import running, services
from tests.e2e.running import ask, read_all, read_exactly

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.services import Service, SSHServer

pytestmark = pytest.mark.limit(60)

GIBIBYTE = 2**30


async def test_redis_by_redis_cli(redis_server: Service, tmp_path: Path) -> None:
    program = services.find_program("redis-cli", package="redis-tools")
    async with (
        running.server(tmp_path / "s") as server,
        running.client(tmp_path / "c", server.ticket, redis_server) as client,
    ):

        async def redis_cli(*words: str) -> bytes:
            command = [program, "-h", services.HOST, "-p", str(client.port()), *words]
            return (await trio.run_process(command, capture_stdout=True)).stdout

        assert await redis_cli("SET", "colour", "blue") == b"OK\n"
        assert await redis_cli("GET", "colour") == b"blue\n"
        assert await redis_cli("-r", "500", "INCR", "n") == b"".join(
            b"%d\n" % number for number in range(1, 501)
        )


async def test_http_and_websocket_and_ssh_in_one_session(
    http_server: Service, websocket_server: Service, ssh_server: SSHServer, tmp_path: Path
) -> None:
    """Three services of one client, each at a port of its own: the second one at the port that it asks for."""
    wanted = services.free_low_port()
    async with (
        running.server(tmp_path / "s", visit=f"0,{wanted},0,0") as server,
        running.client(
            tmp_path / "c",
            server.ticket,
            http_server.port,
            f"{websocket_server}:{wanted}",
            ssh_server,
        ) as client,
    ):
        assert client.port(1) == wanted
        assert len({client.port(0), client.port(1), client.port(2)}) == 3
        locals_shown = [service["local"] for service in client.connected["services"]]
        assert locals_shown == [str(http_server), str(websocket_server), str(ssh_server)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_browse, client.port(0), tmp_path)
            nursery.start_soon(_chat, client.port(1))
            nursery.start_soon(_log_in, ssh_server, client.port(2))


async def _browse(port: int, folder: Path) -> None:
    """Several requests on one connection, which curl keeps."""
    curl = services.find_program("curl", package="curl")
    upload = folder / "upload"
    await trio.Path(upload).write_bytes(body := os.urandom(3_000_000))
    site = f"http://{services.HOST}:{port}"
    command = [curl, "-sS", "-w", " %{http_code} %{num_connects}\n"]
    command += [f"{site}/", f"{site}/", f"{site}/none"]
    output = (await trio.run_process(command, capture_stdout=True)).stdout
    assert output == b"hello 200 1\nhello 200 0\nhello 404 0\n"
    command = [curl, "-sS", "-T", str(upload), f"{site}/digest"]
    output = (await trio.run_process(command, capture_stdout=True)).stdout
    assert output.decode() == hashlib.sha256(body).hexdigest()


async def _chat(port: int) -> None:
    limit = services.WEBSOCKET_MESSAGE_BYTES
    url = f"ws://{services.HOST}:{port}/"
    async with trio_websocket.open_websocket_url(url, max_message_size=limit) as connection:
        for message in ("text", os.urandom(2_000_000), ""):
            await connection.send_message(message)
            assert await connection.get_message() == message


async def _log_in(server: SSHServer, port: int) -> None:
    command = server.ssh("cat; exit 7", port=port)
    result = await trio.run_process(command, stdin=b"typed", capture_stdout=True, check=False)
    assert (result.returncode, result.stdout) == (7, b"typed")


@pytest.mark.slow
async def test_scp_both_ways(ssh_server: SSHServer, tmp_path: Path) -> None:
    original, there, back = (tmp_path / name for name in ("original", "there", "back"))
    await trio.Path(original).write_bytes(data := os.urandom(64 * 2**20))
    async with (
        running.server(tmp_path / "s") as server,
        running.client(tmp_path / "c", server.ticket, ssh_server) as client,
    ):
        scp = partial(ssh_server.scp, port=client.port())
        await trio.run_process(scp(str(original), f"remote:{there}"))
        await trio.run_process(scp(f"remote:{there}", str(back)))
        assert await trio.Path(back).read_bytes() == data
        assert await trio.Path(there).read_bytes() == data


@pytest.mark.slow
async def test_a_gibibyte_each_way(http_server: Service, tmp_path: Path) -> None:
    """Compared by SHA-256; both directions at once, on two connections."""
    async with (
        running.server(tmp_path / "s") as server,
        running.client(tmp_path / "c", server.ticket, http_server) as client,
        await client.visit() as download,
        await client.visit() as upload,
        trio.open_nursery() as nursery,
    ):

        async def fetch() -> None:
            await download.send_all(f"GET /bytes?n={GIBIBYTE} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                head += await download.receive_some()
            digest = hashlib.sha256(head.partition(b"\r\n\r\n")[2])
            left = GIBIBYTE - len(head.partition(b"\r\n\r\n")[2])
            while left:
                data = await download.receive_some(262_144)
                assert data
                digest.update(data)
                left -= len(data)
            assert digest.hexdigest() == services.pattern_digest(GIBIBYTE)

        async def send() -> None:
            await upload.send_all(
                f"POST /digest HTTP/1.1\r\nHost: x\r\nContent-Length: {GIBIBYTE}\r\n\r\n".encode()
            )
            for piece in services.pattern(GIBIBYTE):
                await upload.send_all(piece)
            await upload.send_eof()
            assert (await read_all(upload)).endswith(services.pattern_digest(GIBIBYTE).encode())

        nursery.start_soon(fetch)
        nursery.start_soon(send)


@pytest.mark.slow
async def test_five_hundred_visitors_at_once(echo_server: Service, tmp_path: Path) -> None:
    """All are held open together and talk at the same time; each gets its own bytes back and nobody else's."""
    count = 500
    async with (
        running.server(tmp_path / "s") as server,
        running.client(tmp_path / "c", server.ticket, echo_server) as client,
    ):
        visitors: list[trio.SocketStream] = []

        async def come(number: int) -> None:
            visitor = await client.visit()
            visitors.append(visitor)
            question = json.dumps({"visitor": number}).encode() * 50
            assert await ask(visitor, question) == question

        async def talk(visitor: trio.SocketStream, data: bytes) -> None:
            async with visitor, trio.open_nursery() as nursery:
                nursery.start_soon(visitor.send_all, data)
                assert await read_exactly(visitor, len(data)) == data
                await visitor.send_eof()
                assert await read_all(visitor) == b""

        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(come, number)
        assert len(visitors) == count
        async with trio.open_nursery() as nursery:
            for visitor in visitors:
                nursery.start_soon(talk, visitor, os.urandom(40_000))
        await server.wait_record("visitor closed", reason="ended by both sides", count=count)
        assert len(client.process.events) == 1  # it was connected all the time
