"""Tunnels without TLS: only where both sides say so, and even then nobody can take a session over who has seen one."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask
from trionat.protocol.frames import BIG_ENDIAN, HEADER_BYTES
from trionat.protocol.messages import JOIN_BYTES, Join, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.e2e.services import Service

pytestmark = pytest.mark.limit(60)

PLAIN = ("--tunnel-encryption", "none")
SAID = b"words of a visitor"
TLS_RECORD = b"\x16\x03"
FIRST_FRAME = HEADER_BYTES + JOIN_BYTES


@attrs.define(eq=False)
class Wiretap:
    """Somebody on the way from the client to the server, who reads along; what clients send, by connection."""

    port: int
    server: tuple[str, int] | None = None
    heard: list[bytearray] = attrs.field(factory=lambda: [])

    async def pass_on(self, client: trio.SocketStream) -> None:
        """Serve one connection."""
        assert self.server is not None
        heard = bytearray()
        self.heard.append(heard)
        async with client, await trio.open_tcp_stream(*self.server) as server:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.copy, server, client, bytearray())
                await self.copy(client, server, heard)
                nursery.cancel_scope.cancel()

    async def copy(
        self, source: trio.SocketStream, target: trio.SocketStream, heard: bytearray
    ) -> None:
        """Pass one direction on until either end is gone."""
        try:
            async for piece in source:
                heard += piece
                await target.send_all(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    @property
    def plain(self) -> list[bytearray]:
        """The connections that were no TLS."""
        return [heard for heard in self.heard if heard and not heard.startswith(TLS_RECORD)]


@asynccontextmanager
async def tapped(folder: Path, *flags: str) -> AsyncIterator[tuple[running.Server, Wiretap]]:
    """Run a server to which clients come by way of a wiretap."""
    [listener] = await trio.open_tcp_listeners(0, host=services.HOST)
    tap = Wiretap(listener.socket.getsockname()[1])
    public = f"{services.HOST}:{tap.port}"
    async with running.server(folder, "--public-addr", public, *flags) as server:
        tap.server = server.control
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, tap.pass_on, [listener])
            yield server, tap
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("server_flags", "client_flags"), [(PLAIN, PLAIN), (PLAIN, ()), ((), PLAIN)]
)
async def test_both_must_say_so(
    echo_server: Service,
    tmp_path: Path,
    server_flags: tuple[str, ...],
    client_flags: tuple[str, ...],
) -> None:
    """The control connection is encrypted always; the secret of the session is never to be seen."""
    plain = bool(server_flags and client_flags)
    async with (
        tapped(tmp_path / "s", *server_flags) as (server, tap),
        running.client(tmp_path / "c", server.ticket, echo_server, *client_flags) as client,
    ):
        with trio.fail_after(
            5
        ):  # a visitor that comes before the first tunnel begins on the control connection
            while len(tap.heard) < 2 or not all(tap.heard):  # noqa: ASYNC110 - the same as below
                await trio.sleep(0.01)
        await trio.sleep(0.2)  # until the server has it
        async with await client.visit() as visitor:
            assert await ask(visitor, SAID) == SAID
        with trio.fail_after(5):
            while not all(tap.heard):  # noqa: ASYNC110 - a tunnel that is just being opened, of which nothing was heard yet
                await trio.sleep(0.01)
        assert any(SAID in heard for heard in tap.heard) is plain
        assert bool(tap.plain) is plain
        assert tap.heard[0].startswith(TLS_RECORD)
        assert len(tap.plain) == (len(tap.heard) - 1 if plain else 0)
        up = await server.wait_record("session up")
        assert ("not encrypted" in up["dialect"]) is plain
    warned = "tunnels are encrypted: the server's TunnelEncryption is not none"
    assert (warned in client.log_text()) is (client_flags == PLAIN and not plain)


async def test_what_a_wiretap_can_do(echo_server: Service, tmp_path: Path) -> None:
    """It says again what a client has said, or a little else: the server takes no tunnel from it, and serves on."""
    async with (
        tapped(tmp_path / "s", *PLAIN) as (server, tap),
        running.client(tmp_path / "c", server.ticket, echo_server, *PLAIN) as client,
    ):
        async with await client.visit() as visitor:
            assert await ask(visitor, SAID) == SAID
        said = bytes(tap.plain[0][:FIRST_FRAME])
        seen = Join.from_payload(said[HEADER_BYTES:])
        next_one = attrs.evolve(seen, number=seen.number + 1000)
        other = attrs.evolve(seen, number=seen.number + 1000, proof=bytes(32))
        for attach in (seen, next_one, other):
            assert await answer(server, attach) == Refused.id
        async with await client.visit() as visitor:
            assert await ask(visitor, SAID) == SAID


async def test_a_server_that_wants_tls(echo_server: Service, tmp_path: Path) -> None:
    """It closes what comes without, whatever proof it brings."""
    async with (
        running.server(tmp_path / "s") as server,
        running.client(tmp_path / "c", server.ticket, echo_server),
    ):
        assert await answer(server, Join.prove(1, 1, bytes(32))) is None
        reason = "this port speaks TLS, and the peer spoke a tunnel without TLS"
        await server.wait_record("connection closed", reason=reason)


async def answer(server: running.Server, attach: Join) -> int | None:
    """Return the id of the frame that the server answers with before it closes; None if it only closes."""
    async with await trio.open_tcp_stream(*server.control) as stream:
        await stream.send_all(BIG_ENDIAN.pack(JOIN_BYTES, Join.id) + attach.payload())
        try:
            answer = await running.read_all(stream)
        except trio.BrokenResourceError:
            return None
        return BIG_ENDIAN.unpack_from(answer)[1] if answer else None
