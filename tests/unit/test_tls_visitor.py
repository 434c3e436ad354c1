"""A visitor whose TLS ends here: what its connection has taken and not sent leaves without anything more to send, and the end is told as TLS does."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.unit.memory import receive_all, receive_exactly
from tests.unit.test_tunnel import frame_for
from trionat.protocol.conversation import Side
from trionat.protocol.frames import encode_frame
from trionat.protocol.tunnel_frames import DATA_ID, END_FRAME
from trionat.relay.raw_tunnel import RawTunnel
from trionat.relay.server_tunnel import ServerTunnel
from trionat.relay.stream import VisitorStream
from trionat.server.state_folder import lock_state, prepare_state
from trionat.transport.endpoint import close_after_last_words, send_all
from trionat.transport.tls import client_context, server_context
from trionat.transport.tls_endpoint import TLSEndpoint

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.conftest import Tidy

ANSWER = bytes(range(256)) * 4096


async def tls_pair(folder: Path) -> tuple[TLSEndpoint, TLSEndpoint]:
    """The server's end, whose kernel takes little, and the visitor's."""
    with lock_state(folder):
        state = prepare_state(folder, names=("localhost",), self_signed=True)
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    server = TLSEndpoint(
        near,
        server_context(state.certificate_file, state.key_file),
        server_side=True,
        tells_end=True,
    )
    visitor = TLSEndpoint(
        far, client_context(pinned=True), server_hostname="localhost", tells_end=True
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        nursery.start_soon(visitor.do_handshake)
    return server, visitor


async def read_late(visitor: TLSEndpoint) -> bytes:
    """Read when the other side has come to rest."""
    await trio.testing.wait_all_tasks_blocked(0.02)
    got = b""
    room = memoryview(bytearray(20_000))
    while len(got) < len(ANSWER):
        try:
            got += room[: visitor.recv_into(room)]
        except BlockingIOError:
            await visitor.readable.wait()
    return got


@pytest.mark.parametrize("kind", ["framed", "raw"])
async def test_the_end_of_an_answer_leaves(tidy: Tidy, tmp_path: Path, kind: str) -> None:
    plain, visitor = await tls_pair(tmp_path)
    wire, client = tidy.pair()
    stream = VisitorStream(1, plain)
    async with trio.open_nursery() as nursery:
        if kind == "framed":
            tunnel = ServerTunnel(wire)
            nursery.start_soon(tunnel.receive)
            nursery.start_soon(tunnel.open, stream, frame_for(1))
            await receive_exactly(client, len(frame_for(1).encode()))
            answer = b"".join(
                encode_frame(DATA_ID, ANSWER[at : at + 10_000])
                for at in range(0, len(ANSWER), 10_000)
            )
        else:
            nursery.start_soon(RawTunnel(wire, stream, Side.SERVER).run)
            answer = ANSWER
        nursery.start_soon(send_all, client, answer)
        with trio.fail_after(5):
            assert await read_late(visitor) == ANSWER
        nursery.cancel_scope.cancel()
    for end in (plain, visitor, wire, client):
        end.close()


# --- the end of TLS ---


async def read_to_end(visitor: TLSEndpoint) -> bytes:
    """Read until close_notify. The end of TCP alone is none, and raises."""
    got = bytearray()
    with trio.fail_after(5):
        while True:
            try:
                while piece := visitor.tls.read(20_000):
                    got += piece
                return bytes(got)
            except ssl.SSLWantReadError:
                await visitor._feed_some()


@pytest.mark.parametrize("how", ["last words", "raw", "framed"])
@pytest.mark.parametrize("has_room", [True, False])
async def test_the_end_is_told(tidy: Tidy, tmp_path: Path, how: str, has_room: bool) -> None:
    """Also where there is no room for it at first, behind what the visitor reads late."""
    plain, visitor = await tls_pair(tmp_path)
    wire, client = tidy.pair()
    stream = VisitorStream(1, plain)
    count = plain.send(b"small") if has_room else fill(plain)
    async with trio.open_nursery() as nursery:
        if how == "last words":
            nursery.start_soon(close_after_last_words, plain)
        elif how == "raw":
            nursery.start_soon(RawTunnel(wire, stream, Side.SERVER).run)
            client.send_eof()
        else:
            tunnel = ServerTunnel(wire)
            nursery.start_soon(tunnel.receive)
            nursery.start_soon(tunnel.open, stream, frame_for(1))
            await receive_exactly(client, len(frame_for(1).encode()))
            await send_all(client, END_FRAME)
            nursery.start_soon(sweep, tunnel)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert plain.has_unsent is not has_room
        assert len(await read_to_end(visitor)) == count
        nursery.cancel_scope.cancel()
    for end in (plain, visitor, wire, client):
        end.close()


async def sweep(tunnel: ServerTunnel) -> None:
    while True:
        await trio.sleep(0.1)
        tunnel.sweep()


def fill(endpoint: TLSEndpoint) -> int:
    """Send until there is no room; return how many bytes that were."""
    count = 0
    while not endpoint.has_unsent:
        count += endpoint.send(bytes(100))
    return count


@pytest.mark.parametrize("room", [16_384, 25_000, 100_000])
async def test_what_the_other_side_still_says_behind_our_end(tmp_path: Path, room: int) -> None:
    """None of it is lost, wherever we have stopped reading, and its end is an end as ever."""
    ours, theirs = await tls_pair(tmp_path)
    said = bytes(range(250)) * 100
    for at in range(0, len(said), 10_000):
        await send_all(theirs, said[at : at + 10_000])
    buffer = memoryview(bytearray(room))
    got = bytes(buffer[: ours.recv_into(buffer)])
    ours.send_eof()
    got += await receive_exactly(ours, len(said) - len(got))
    assert got == said
    assert await read_to_end(theirs) == b""
    await send_all(theirs, b"more")
    assert await receive_exactly(ours, 4) == b"more"
    theirs.send_eof()
    assert await receive_all(ours) == b""
    for end in (ours, theirs):
        end.close()


async def test_an_end_of_tls_without_one_of_tcp(tmp_path: Path) -> None:
    """As programs in Go end their direction; it comes along with what they have said last."""
    ours, theirs = await tls_pair(tmp_path)
    theirs.tls.write(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        theirs.tls.unwrap()
    theirs.flush()
    assert await receive_exactly(ours, 4) == b"last"
    with trio.fail_after(5):
        await ours.readable.wait()  # as a tunnel does behind a short read
    assert await receive_all(ours) == b""
    await send_all(ours, b"answer")
    assert await receive_exactly(theirs, 6) == b"answer"
    for end in (ours, theirs):
        end.close()
