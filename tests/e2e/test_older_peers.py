"""Peers of version 0.1, which know nothing of streams that are resumed: they work as before, and get no frame that they do not know.

Both are written from docs/protocol.md without the capability `resume`, and share no code with trionat.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import ssl
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs
import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import end_of, read_all, read_exactly
from trionat.protocol.ticket import Ticket
from trionat.transport.certificate import make_certificate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.limit(60)

HELLO, EXPOSE, WELCOME, REFUSED, PING, PONG, CLOSE, DEMAND = (
    *(40001, 40002, 40004, 40005, 40006, 40007, 40009, 40010),
)
ATTACH, OPEN, DATA, END, ABORT, PROBE, PROBED = range(40100, 40107)

KNOWN: Final = {*range(40001, 40011), *range(40100, 40107), 40110}
"""All that 0.1 has. Any other frame would cost it the connection."""

MUCH: Final = 8 * 2**20
"""Bytes; a peer that resumes would have acknowledged several times."""

SECRET: Final = bytes(range(32))


@attrs.define(eq=False)
class Connection:
    """One connection of an old peer; `receive` fails the test at a frame that 0.1 does not have."""

    stream: trio.SSLStream[trio.SocketStream]
    _received: bytearray = attrs.field(factory=bytearray)
    _sending: trio.Lock = attrs.field(factory=trio.Lock)

    async def send(self, number: int, payload: bytes = b"") -> None:
        async with self._sending:
            await self.stream.send_all(struct.pack(">II", len(payload), number) + payload)

    async def say(self, number: int, **values: object) -> None:
        await self.send(number, json.dumps(values).encode())

    async def receive(self) -> tuple[int, bytes]:
        size, number = struct.unpack(">II", await self._exactly(8))
        assert number in KNOWN, f"a frame {number} for a peer that does not know it"
        return number, await self._exactly(size)

    async def receive_only(self, wanted: int) -> bytes:
        """Return the payload of the next frame, which has to be that one; PROBE is answered on the way."""
        while True:
            number, payload = await self.receive()
            if number == PROBE:
                await self.send(PROBED)
                continue
            assert number == wanted, (number, payload)
            return payload

    async def receive_data(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += await self.receive_only(DATA)
        return data

    async def keep_up(self) -> None:
        """Answer on a control connection for as long as it lives."""
        while True:
            number, payload = await self.receive()
            if number == PING:
                await self.send(PONG, payload)

    def reset(self) -> None:
        running.reset(self.stream.transport_stream)

    async def _exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            data = await self.stream.receive_some(65536)
            if not data:
                raise trio.EndOfChannel
            self._received += data
        data = bytes(self._received[:size])
        del self._received[:size]
        return data


# --- a client of 0.1 ---


async def connect(server: running.Server) -> Connection:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    stream = trio.SSLStream(
        await trio.open_tcp_stream(*server.control), context, https_compatible=True
    )
    await stream.do_handshake()
    return Connection(stream)


def read_ticket(ticket: str) -> tuple[bytes, str]:
    """Return token and user name."""
    text = ticket.removeprefix("tn1_")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    token, rest = data[3:19], data[19 + 32 * (data[0] & 1) : -4]
    return token, rest[1 + rest[0] :].decode()


async def log_in(server: running.Server) -> tuple[Connection, dict[str, Any]]:
    """Return the control connection, and what WELCOME says."""
    token, username = read_ticket(server.ticket)
    control = await say_hello(server, token, username)
    return control, json.loads(await control.receive_only(WELCOME))


async def say_hello(server: running.Server, token: bytes, username: str) -> Connection:
    control = await connect(server)
    await control.say(
        HELLO,
        version=1,
        capabilities=["recycled-tunnels"],
        software="trionat 0.1.0",
        name="old",
        identity="old",
        username=username,
        password=None,
        token=token.hex(),
    )
    service = {"name": "", "local": "", "visit_port": None, "preferred_port": None}
    await control.say(EXPOSE, services=[service], idle_tunnels=0)
    return control


async def attach(server: running.Server, welcome: dict[str, Any]) -> Connection:
    tunnel = await connect(server)
    secret = bytes.fromhex(welcome["secret"])
    await tunnel.send(ATTACH, struct.pack(">Q", welcome["uid"]) + secret)
    return tunnel


async def test_client(tmp_path: Path) -> None:
    """Its visitors are served; those that lose their tunnel or its session are reset."""
    async with running.server(tmp_path / "s") as server, trio.open_nursery() as nursery:
        control, welcome = await log_in(server)
        assert "resumption" not in welcome
        assert "resume" not in welcome["capabilities"]
        [port] = welcome["ports"]
        nursery.start_soon(_until_it_ends, control)

        tunnel = await attach(server, welcome)
        visitor = await trio.open_tcp_stream(services.HOST, port)
        await visitor.send_all(b"question")
        await tunnel.receive_only(OPEN)
        assert await tunnel.receive_data(8) == b"question"
        much = bytes(MUCH)
        async with trio.open_nursery() as moving:
            moving.start_soon(visitor.send_all, much)
            assert await tunnel.receive_data(MUCH) == much
        async with trio.open_nursery() as moving:
            for _ in range(MUCH // 65536):
                moving.start_soon(tunnel.send, DATA, much[:65536])
            assert await read_exactly(visitor, MUCH) == much
        await trio.sleep(2.5)  # longer than it takes to tell what was received, on any connection
        await tunnel.send(END)
        assert await read_all(visitor) == b""
        await visitor.aclose()
        await tunnel.receive_only(END)

        # The same tunnel has the next one, and is lost.
        for answered in (True, False):
            async with await trio.open_tcp_stream(services.HOST, port) as visitor:
                await visitor.send_all(b"question")
                await tunnel.receive_only(OPEN)
                assert await tunnel.receive_data(8) == b"question"
                if answered:
                    await tunnel.send(DATA, b"half an ")
                    assert await read_exactly(visitor, 8) == b"half an "
                tunnel.reset()
                with trio.fail_after(2):
                    assert await end_of(visitor) == "reset"
            tunnel = await attach(server, welcome)

        # And the session is lost.
        async with await trio.open_tcp_stream(services.HOST, port) as visitor:
            await visitor.send_all(b"question")
            await tunnel.receive_only(OPEN)
            control.reset()
            with trio.fail_after(2):
                assert await end_of(visitor) == "reset"
        tunnel.reset()
        control, again = await log_in(server)
        assert again["ports"] == [port]
        assert "resumption" not in again
        control.reset()
        nursery.cancel_scope.cancel()


async def _until_it_ends(control: Connection) -> None:
    try:
        await control.keep_up()
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel):
        return


# --- a server of 0.1 ---


@attrs.define(eq=False)
class OldServer:
    """Takes everybody, unless a token is `wanted`; `hellos` are what it was told, `controls` and `tunnels` the connections in the order in which they came."""

    ticket: str
    wanted: bytes | None = None
    hellos: list[dict[str, Any]] = attrs.field(factory=lambda: [])
    controls: list[Connection] = attrs.field(factory=lambda: [])
    tunnels: dict[int, list[Connection]] = attrs.field(factory=lambda: {})
    """The idle ones, by the number of their session."""

    async def take(self, connection: Connection) -> None:
        number, payload = await connection.receive()
        if number == ATTACH:
            [uid] = struct.unpack(">Q", payload[:8])
            assert payload[8:] == SECRET
            self.tunnels.setdefault(uid, []).append(connection)
            await trio.sleep_forever()
        assert number == HELLO
        self.hellos.append(json.loads(payload))
        await connection.receive_only(EXPOSE)
        if self.wanted is not None and self.hellos[-1]["token"] != self.wanted.hex():
            text = "authentication failed: wrong ticket"
            await connection.say(REFUSED, code="auth-failed", text=text)
            await connection.stream.aclose()
            return
        self.controls.append(connection)
        await connection.say(
            WELCOME,
            uid=len(self.hellos),
            secret=SECRET.hex(),
            ports=[60000],
            host="",
            ping_interval=2.5,
            peer_timeout=8.0,
            max_tunnels=100,
            version=1,
            capabilities=["recycled-tunnels"],
        )
        await _until_it_ends(connection)

    async def open(self, visitor: int, early: bytes) -> Connection:
        """Send a visitor into an idle tunnel of the latest session."""
        idle = self.tunnels.setdefault(len(self.hellos), [])
        await running.wait_until(lambda: bool(idle))
        tunnel = idle.pop()
        host = b"192.0.2.1"
        head = struct.pack(">QHHHBB", visitor, 0, 40000, 60000, len(host), len(host))
        await tunnel.send(OPEN, head + host + host)
        await tunnel.send(DATA, early)
        return tunnel


@asynccontextmanager
async def old_server(
    folder: Path, *, token: bytes = bytes(16), wanted: bytes | None = None
) -> AsyncIterator[OldServer]:
    """Run one whose ticket has that token; `wanted` is the only token that it takes, if it does not take everybody's."""
    key, certificate = make_certificate()
    await trio.Path(folder / "pem").write_bytes(key + certificate)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "pem")
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    [listener] = await trio.open_tcp_listeners(0, host=services.HOST)
    port = listener.socket.getsockname()[1]
    fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.decode())).digest()
    host = services.HOST.encode()
    fields = struct.pack(">BH16s32sB", 1, port, token, fingerprint, len(host)) + host + b"me"
    text = "tn1_"
    check = hashlib.sha256(text.encode() + fields).digest()[:4]
    text += base64.urlsafe_b64encode(fields + check).decode().rstrip("=")
    server = OldServer(text, wanted)

    async def handler(stream: trio.SocketStream) -> None:
        secure = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            await server.take(Connection(secure))
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel):
            return

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, handler, [listener])
        yield server
        nursery.cancel_scope.cancel()


async def test_server(tmp_path: Path) -> None:
    """A client serves its visitors; the service's connection is reset when its tunnel or the session is lost."""
    async with (
        services.handed_over() as (service, accepted),
        old_server(tmp_path) as server,
        running.client(tmp_path / "c", server.ticket, service) as client,
    ):
        assert "resume" not in server.hellos[0]
        tunnel = await server.open(1, b"question")
        local = await accepted.receive()
        assert await read_exactly(local, 8) == b"question"
        await local.send_all(b"answer")
        assert await tunnel.receive_data(6) == b"answer"
        much = bytes(MUCH)
        async with trio.open_nursery() as moving:
            for _ in range(MUCH // 65536):
                moving.start_soon(tunnel.send, DATA, much[:65536])
            assert await read_exactly(local, MUCH) == much
        async with trio.open_nursery() as moving:
            moving.start_soon(local.send_all, much)
            assert await tunnel.receive_data(MUCH) == much
        await trio.sleep(2.5)
        tunnel.reset()
        with trio.fail_after(2):
            assert await end_of(local) == "reset"
        assert len(server.hellos) == 1

        tunnel = await server.open(2, b"question")
        local = await accepted.receive()
        assert await read_exactly(local, 8) == b"question"
        server.controls[0].reset()
        with trio.fail_after(2):
            assert await end_of(local) == "reset"
        await client.wait_connected()
        assert len(server.hellos) == 2
        assert "resume" not in server.hellos[1]
        tunnel = await server.open(3, b"again")
        local = await accepted.receive()
        assert await read_exactly(local, 5) == b"again"
        await local.send_all(b"answer")
        assert await tunnel.receive_data(6) == b"answer"
        await local.send_eof()
        await tunnel.receive_only(END)
        await tunnel.send(END)
        assert await read_all(local) == b""


# --- a narrowed ticket, of which 0.1 knows nothing ---


def narrowed(ticket: str) -> str:
    """Return a ticket with a caveat."""
    return Ticket.decode(ticket).narrow("only ports=60000").encode()


async def test_no_older_client_gets_more_with_a_narrowed_ticket(tmp_path: Path) -> None:
    """As one that would send the token of it alone, and no caveats."""
    async with running.server(tmp_path / "s") as server:
        ticket = Ticket.decode(narrowed(server.ticket))
        control = await say_hello(server, ticket.token, ticket.username)
        refusal = json.loads(await control.receive_only(REFUSED))
        assert refusal["code"] == "auth-failed"
        assert refusal["text"] == "authentication failed: wrong ticket"
        control.reset()


async def test_an_older_server_that_checks_tickets_refuses_a_narrowed_one(tmp_path: Path) -> None:
    """It computes the token of the whole ticket, as docs/protocol.md has had it since 0.1, and compares."""
    key, salt = bytes(32), bytes(16)
    parts = (b"trionat ticket 1", b"me", salt)
    message = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    token = hmac.digest(key, message, "sha256")[:16]
    async with old_server(tmp_path, token=token, wanted=token) as server:
        assert Ticket.decode(server.ticket).token == token
        result = await services.run_trionat(
            "connect", narrowed(server.ticket), "8080", "--state-dir", tmp_path / "c", cwd=tmp_path
        )
        assert result.returncode == 4
        assert result.stderr.decode().endswith("trionat: authentication failed: wrong ticket\n")
        assert server.hellos[0]["token"] != token.hex()
        assert server.controls == []


async def test_an_older_server_that_checks_nothing_is_left(tmp_path: Path) -> None:
    """It lets everybody in (`StartAuth: false`), and would give any port."""
    async with old_server(tmp_path) as server:
        result = await services.run_trionat(
            "connect", narrowed(server.ticket), "8080", "--state-dir", tmp_path / "c", cwd=tmp_path
        )
        assert result.returncode == 3
        assert (
            "this server would not keep to the restrictions of the ticket"
            in (result.stderr.decode().splitlines()[-1])
        )
        assert server.hellos[0]["caveats"] == ["only ports=60000"]
        assert "narrowed-tickets" in server.hellos[0]["capabilities"]


# --- services with names, of which 0.1 knows nothing ---


async def test_an_older_server_that_knows_no_names_is_left(tmp_path: Path) -> None:
    """It has opened a visit port instead, which nobody has asked for."""
    async with old_server(tmp_path) as server:
        result = await services.run_trionat(
            "connect", server.ticket, "http:8080", "--state-dir", tmp_path / "c", cwd=tmp_path
        )
        assert result.returncode == 2
        assert result.stderr.decode().splitlines()[-1] == (
            "trionat: the server does not know names: update it, or ask for visit ports"
        )
        assert b"https:" not in result.stdout
        assert len(server.hellos) == 1, "it does not try again"
