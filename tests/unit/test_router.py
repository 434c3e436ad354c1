"""Which worker gets a connection: by its first bytes, over real connections."""

from __future__ import annotations

import socket
import ssl
from collections import Counter
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from trionat.address import TCPAddress
from trionat.config.server import ServerConfig
from trionat.protocol.client_hello import alpn_names
from trionat.protocol.messages import Join, encode_message
from trionat.server.admission.bans import Bans
from trionat.server.refusals import Bound, RefusalCounters
from trionat.server.workers.router import Router

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@attrs.define(eq=False)
class Worker:
    """What the router sees of one."""

    word: str
    is_there: bool = True
    expected: int = 0
    taken: list[socket.socket] = attrs.field(factory=list)
    sources: list[TCPAddress] = attrs.field(factory=list)

    @property
    def load(self) -> int:
        return self.expected

    def expect_session(self) -> None:
        self.expected += 1

    def take(self, connection: socket.socket, source: TCPAddress) -> None:
        self.taken.append(connection)
        self.sources.append(source)


def client_hello(*alpn: str) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


@attrs.define(eq=False)
class Scene:
    workers: list[Worker]
    listening: trio.SocketListener
    nursery: trio.Nursery
    router: Router

    async def connect(self, *pieces: bytes, pause: float = 0.01) -> trio.SocketStream:
        """Connect, and say something in pieces."""
        address = self.listening.socket.getsockname()
        stream = await trio.open_tcp_stream(*address)
        accepted, peer = await self.listening.socket.accept()
        connection = socket.socket(fileno=accepted.detach())
        connection.setblocking(False)
        self.router.acceptor(self.nursery)(connection, TCPAddress(*peer))
        for piece in pieces:
            await stream.send_all(piece)
            await trio.sleep(pause)
        return stream

    async def taken_by(self, *pieces: bytes, pause: float = 0.01) -> str:
        """Return the word of who gets such a connection; all that it said is still there."""
        before = Counter({worker.word: len(worker.taken) for worker in self.workers})
        async with await self.connect(*pieces, pause=pause):
            with trio.fail_after(5):
                while True:
                    for worker in self.workers:
                        if len(worker.taken) > before[worker.word]:
                            connection = worker.taken[-1]
                            assert connection.recv(65536) == b"".join(pieces)
                            assert worker.sources[-1] == TCPAddress(*connection.getpeername())
                            return worker.word
                    await trio.sleep(0.005)


@asynccontextmanager
async def scene(**settings: object) -> AsyncIterator[Scene]:
    config = ServerConfig(**settings)  # type: ignore[arg-type]
    workers = [Worker("w1"), Worker("w2"), Worker("w3")]
    (listening,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    bans = Bans(config.ban_after, config.ban_time)
    router = Router(config, bans, RefusalCounters(), workers)  # type: ignore[arg-type]
    async with listening, trio.open_nursery() as nursery:
        yield Scene(workers, listening, nursery, router)
        nursery.cancel_scope.cancel()
    for worker in workers:
        for connection in worker.taken:
            connection.close()


async def test_by_its_route(nothing_left: None) -> None:
    async with scene() as server:
        for word in ("w2", "w3", "w1", "w2"):
            assert await server.taken_by(client_hello(*alpn_names(word))) == word
        assert [worker.expected for worker in server.workers] == [0, 0, 0]


async def test_in_pieces(nothing_left: None) -> None:
    async with scene() as server:
        hello = client_hello(*alpn_names("w3"))
        assert await server.taken_by(hello[:3], hello[3:9], hello[9:100], hello[100:]) == "w3"
        cut = [hello[at : at + 60] for at in range(0, len(hello), 60)]
        assert await server.taken_by(*cut, pause=0.001) == "w3"


async def test_without_a_route_to_who_has_least_to_do(nothing_left: None) -> None:
    async with scene() as server:
        words = [await server.taken_by(client_hello("trionat")) for _ in range(6)]
        assert Counter(words) == {"w1": 2, "w2": 2, "w3": 2}
        assert await server.taken_by(client_hello("trionat-w7", "trionat")) == "w1"
        server.workers[1].is_there = False
        assert await server.taken_by(client_hello(*alpn_names("w2"))) == "w3"


async def test_strangers_and_old_clients_go_to_the_first(nothing_left: None) -> None:
    async with scene() as server:
        for first in (
            client_hello(),
            client_hello("h2", "http/1.1"),
            b"GET / HTTP/1.1\r\n",
            b"\x00\x00\x00\x29\x00\x00\xea\x61 as NAT does",
        ):
            assert await server.taken_by(first) == "w1"
        server.workers[0].is_there = False  # their tunnels could not follow them to another one
        async with await server.connect(client_hello()) as stream:
            assert await _end(stream)


@pytest.mark.parametrize(("uid", "word"), [(1, "w1"), (2, "w2"), (6, "w3"), (7, "w1")])
async def test_a_tunnel_without_tls_by_its_session(uid: int, word: str, nothing_left: None) -> None:
    async with scene() as server:
        join = encode_message(Join.prove(uid, 1, bytes(32)))
        assert await server.taken_by(join[:8], join[8:12], join[12:]) == word


@pytest.mark.parametrize(
    "said", [b"", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"]
)
async def test_a_peer_that_says_too_little(said: bytes, nothing_left: None) -> None:
    async with scene(handshake_timeout=0.3) as server:
        async with await server.connect(said) as stream:
            with trio.fail_after(2):
                assert await _end(stream)
        assert not any(worker.taken for worker in server.workers)


async def test_a_peer_that_ends_too_early(nothing_left: None) -> None:
    async with scene() as server:
        async with await server.connect(b"\x16\x03\x01") as stream:
            await stream.send_eof()
            with trio.fail_after(3):
                assert await _end(stream)


async def test_what_is_no_client_hello(nothing_left: None) -> None:
    async with scene() as server:
        async with await server.connect(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00") as stream:
            with trio.fail_after(2):
                assert await _end(stream)
        for worker in server.workers:
            worker.is_there = False
        async with await server.connect(client_hello("trionat")) as stream:
            with trio.fail_after(2):
                assert await _end(stream)


async def test_a_banned_address_is_not_heard(nothing_left: None) -> None:
    async with scene(ban_after=1) as server:
        server.router.bans.fail("127.0.0.1")
        async with await server.connect() as stream:
            with trio.fail_after(2):
                assert await _end(stream)
        assert server.router.refusals.counts[Bound.BAN] == 1


async def test_no_more_than_may_be_silent(nothing_left: None) -> None:
    async with scene(max_handshakes=2) as server:
        streams = [await server.connect() for _ in range(3)]
        with trio.fail_after(2):
            assert await _end(streams[0])
        for stream in streams:
            await stream.aclose()


async def _end(stream: trio.SocketStream) -> bool:
    try:
        return await stream.receive_some() == b""
    except trio.BrokenResourceError:
        return True
