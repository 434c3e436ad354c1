"""Whatever comes to the control port: it costs that connection and one line, and who is being served notices nothing."""

from __future__ import annotations

import json
import random
import socket
import ssl
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.e2e import running
from tests.e2e.running import ask, name_of
from trionat.protocol.frames import encode_frame
from trionat.protocol.messages import Attach, Expose, Hello, Ping, encode_message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.running import Server
    from tests.e2e.services import Service

pytestmark = pytest.mark.limit(60)

HANDSHAKE_TIMEOUT = 1.0
LAST_WORDS = 1.0  # how long the server waits for a peer to take leave
SLACK = 3.0  # for a busy machine

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "protocol" / "vectors.json").read_text()
)["bad"]

HELLO = encode_message(Hello(username="trionat", identity="x", password="wrong"))


@asynccontextmanager
async def served(tmp_path: Path, echo: Service, *flags: str) -> AsyncIterator[Server]:
    """Run a server with one client, and a visitor that is served all the time, every 10 ms."""
    timeout = ("--handshake-timeout", str(HANDSHAKE_TIMEOUT))
    async with (
        running.server(tmp_path / "s", *timeout, *flags, visit="0,0") as server,
        running.client(tmp_path / "c", server.ticket, echo) as client,
        await client.visit() as visitor,
    ):
        over = trio.Event()

        async def keep_talking() -> None:
            while not over.is_set():
                with trio.fail_after(2):
                    assert await ask(visitor, b"still here?") == b"still here?"
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_talking)
            yield server
            over.set()
        assert len(client.process.events) == 1  # it was connected all the time


async def is_closed(stream: trio.SocketStream, *, within: float) -> None:
    """Wait for the end of a connection, whatever the server says before; fail if it does not come in time."""
    with trio.fail_after(within):
        await running.end_of(stream)


async def why(server: Server, stream: trio.SocketStream) -> str:
    """Return the one line of the log about a connection; it must be a quiet one, and have a reason."""
    name = name_of(stream)
    record = await server.wait_record("connection closed", address=name)
    about = [line for line in server.records if line.get("address") == name]
    if about[0]["event"].startswith("a client of NAT was sent away"):  # told once, besides
        del about[0]
    assert about == [record]
    assert record["level"] == "info"
    reason: str = record["reason"]
    assert reason
    assert "\n" not in reason
    return reason


async def test_plain_bytes(echo_server: Service, tmp_path: Path) -> None:
    """The malformed input of the specification, and whatever a scanner of ports may send."""
    rng = random.Random(11)
    inputs = {vector["why"]: bytes.fromhex(vector["bytes_hex"]) for vector in VECTORS}
    inputs |= {f"random {size}": rng.randbytes(size) for size in (1, 7, 8, 9, 100, 5000, 100_000)}
    inputs |= {
        "TLS of no version": b"\x16\x03\x09" + bytes(100),
        "a record that is no handshake": b"\x16\x03\x01\x00\x10" + bytes(16),
        "a record too long": b"\x16\x03\x01\xff\xff" + bytes(70_000),
        "zeroes": bytes(100_000),
        "all ones": b"\xff" * 5000,
        "HTTP POST": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
        "PROXY": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    }
    async with served(tmp_path, echo_server) as server:
        for address in ("control", "tunnel"):
            host, _, port = server.ready[address].rpartition(":")

            async def send(data: bytes, host: str = host, port: str = port) -> None:
                async with await trio.open_tcp_stream(host, int(port)) as stream:
                    with suppress(trio.BrokenResourceError):  # it need not hear the rest
                        await stream.send_all(data)
                    await is_closed(stream, within=HANDSHAKE_TIMEOUT + SLACK)
                    reason = await why(server, stream)
                    if b"HTTP" in data:
                        assert "plain HTTP" in reason
                    if data.startswith(b"SSH"):
                        assert "SSH" in reason

            async with trio.open_nursery() as nursery:
                for data in inputs.values():
                    nursery.start_soon(send, data)


@pytest.mark.parametrize("end", ["silent", "closed", "reset"])
async def test_handshake_that_stops_half_way(
    end: str, echo_server: Service, tmp_path: Path
) -> None:
    """After every tenth byte or so of a real ClientHello."""
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="x").do_handshake()
    hello = outgoing.read()
    sizes = [0, 1, 2, 3, 4, 5, 8, *range(9, len(hello), len(hello) // 10), len(hello)]
    async with served(tmp_path, echo_server) as server:

        async def begin(size: int) -> None:
            async with await trio.open_tcp_stream(*server.control) as stream:
                name = name_of(stream)
                await stream.send_all(hello[:size])
                if end == "silent":
                    await is_closed(stream, within=HANDSHAKE_TIMEOUT + SLACK)
                elif end == "closed":
                    await stream.send_eof()
                    await is_closed(stream, within=HANDSHAKE_TIMEOUT + SLACK)
                else:
                    running.reset(stream)
                await server.wait_record("connection closed", address=name, level="info")

        async with trio.open_nursery() as nursery:
            for size in sizes:
                nursery.start_soon(begin, size)


def _inside_tls() -> dict[str, tuple[bytes, str]]:
    """What is sent inside TLS, and what the log says of it."""
    rng = random.Random(12)
    good_hello = encode_message(Hello(username="trionat", identity="x"))
    return {
        "garbage": (b"\xff" * 100, "is larger than the 4096 allowed"),
        "random": (rng.randbytes(5000), ""),
        "oversize first frame": (
            encode_frame(Hello.id, bytes(4097)),
            "is larger than the 4096 allowed",
        ),
        "4 GiB announced": (b"\xff\xff\xff\xff" + (40001).to_bytes(4, "big"), "is larger than"),
        "HTTP": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "is larger than"),
        "unknown id": (encode_frame(12345, b""), "unknown message id 12345"),
        "no JSON": (encode_frame(Hello.id, b"{"), "HELLO: the payload is not JSON"),
        "deep JSON": (encode_frame(Hello.id, b"[" * 4000), "HELLO: the payload is not JSON"),
        "not UTF-8": (
            encode_frame(Hello.id, b'{"name": "\xff"}'),
            "HELLO: the payload is not JSON",
        ),
        "JSON of another kind": (encode_frame(Hello.id, b"[]"), "HELLO: expected a JSON object"),
        "an empty object": (encode_frame(Hello.id, b"{}"), "HELLO: "),
        "a surrogate": (good_hello.replace(b'"x"', b'"\\ud800"', 1), ""),
        "PING first": (encode_message(Ping(1)), "PING as the first message"),
        "a short ATTACH": (encode_frame(Attach.id, bytes(5)), "ATTACH: "),
        "no such session": (encode_message(Attach(99, bytes(32))), "no such session"),
        "a wrong secret": (encode_message(Attach(1, bytes(32))), "no such session"),
        "a wrong password": (HELLO, "authentication failed"),
        "a wrong password and a flood": (
            HELLO + encode_frame(40002, bytes(4000)) * 100,
            "authentication failed",
        ),
        "EXPOSE first": (encode_message(Expose(services=(), idle_tunnels=1)), ""),
        "nothing, then the end": (b"", ""),
    }


async def test_inside_tls(echo_server: Service, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with served(tmp_path, echo_server) as server:

        async def send(data: bytes, expected: str, *, half_closed: bool) -> None:
            async with await trio.open_tcp_stream(*server.control) as plain:
                stream = trio.SSLStream(plain, context, server_hostname="x")
                await stream.do_handshake()
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(data)
                    if half_closed:
                        await plain.send_eof()
                within = HANDSHAKE_TIMEOUT + LAST_WORDS + SLACK
                await is_closed(plain, within=within)
                assert expected in await why(server, plain)

        async with trio.open_nursery() as nursery:
            for data, expected in _inside_tls().values():
                for half_closed in (False, True):
                    nursery.start_soon(partial(send, data, expected, half_closed=half_closed))


async def descriptors(server: Server) -> int:
    """Return how many descriptors the server has open, or 0 where the system cannot tell."""
    folder = trio.Path(f"/proc/{server.process.process.pid}/fd")
    return len(list(await folder.iterdir())) if await folder.exists() else 0


async def test_silent_sockets(echo_server: Service, tmp_path: Path) -> None:
    """Two hundred that only take up room; each is gone within the handshake timeout, and new clients get in meanwhile."""
    count = 200
    async with served(tmp_path, echo_server) as server:
        before, now = -1, 0
        while before != now:  # the client may still be opening its idle tunnels
            before = now
            await trio.sleep(0.3)
            now = await descriptors(server)
        with ExitStack() as sockets:
            for _ in range(count):
                sockets.enter_context(socket.create_connection(server.control))
            async with running.client(tmp_path / "late", server.ticket, echo_server) as late:
                assert late.connected["uid"] == 2
            message = "the peer did not finish the TLS handshake within 1 s"
            await server.wait_record("connection closed", reason=message, count=50)
            await server.wait_record("connections closed", reason=message)  # the others, counted
        for _ in range(100):
            if await descriptors(server) <= before:
                break
            await trio.sleep(0.05)
        assert await descriptors(server) <= before


async def test_too_many_strangers(echo_server: Service, tmp_path: Path) -> None:
    """Above the bound, the oldest silent connection is closed for each newcomer, who may still say who it is."""
    async with served(tmp_path, echo_server, "--max-handshakes", "10") as server:
        with ExitStack() as sockets:
            silent = [
                sockets.enter_context(socket.create_connection(server.control)) for _ in range(10)
            ]
            async with await trio.open_tcp_stream(*server.control) as one_more:
                silent[0].settimeout(0.9)
                assert await trio.to_thread.run_sync(silent[0].recv, 1) == b""
                with trio.move_on_after(0.1) as alone:
                    await one_more.receive_some()
                assert alone.cancelled_caught
        await server.wait_record(
            "too many connections that have not said who they are: closing the oldest",
            key="MaxHandshakes",
            limit=10,
        )
