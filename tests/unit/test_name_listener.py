"""Who comes by TLS, over real sockets: which certificate it is shown, at a visit port as well, and what may change while it shakes hands."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from tests.certificates.made import Maker
from tests.unit.test_endpoint import tcp_pair
from trionat.address import TCPAddress
from trionat.config.server import ServerConfig
from trionat.protocol.messages import Publish, PublishKind, ServiceRequest
from trionat.server.accounts.limits import UserLimits
from trionat.server.certificates.challenges import Challenges
from trionat.server.certificates.store import CertificateStore
from trionat.server.connection_log import ConnectionLog
from trionat.server.handshakes import PendingHandshakes
from trionat.server.names.dispatcher import Dispatcher
from trionat.server.names.listener import NameListener
from trionat.server.names.page import Pages
from trionat.server.visitors.acceptor import VisitorAcceptor
from trionat.server.visitors.ports import PortPool, VisitPort
from trionat.server.visitors.queue import VisitorQueue
from trionat.store.base import Limits
from trionat.store.passwords import hash_password

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trionat.server.certificates.store import Entry
    from trionat.server.visitors.ports import VisitPoint
    from trionat.transport.endpoint import Endpoint

DOMAIN = "tunnel.test"
SHOP = f"shop.{DOMAIN}"
PORT = 60001


@attrs.define(eq=False)
class Visitor:
    """A visitor whose TLS is in memory, so that it can stop half-way."""

    stream: trio.SocketStream
    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO

    async def begin(self) -> None:
        """Send a ClientHello, and read what comes to that, but do not finish."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        await self.stream.send_all(self.outgoing.read())
        self.incoming.write(await self.stream.receive_some())

    async def shake_hands(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.send()
                if not (piece := await self.stream.receive_some()):
                    self.incoming.write_eof()
                self.incoming.write(piece)
            else:
                await self.send()
                return

    async def send(self, data: bytes = b"") -> None:
        if data:
            self.tls.write(data)
        await self.stream.send_all(self.outgoing.read())

    async def receive(self) -> bytes:
        """Return what comes next; nothing at the end."""
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLWantReadError:
                if not (piece := await self.stream.receive_some()):
                    return b""
                self.incoming.write(piece)
            except ssl.SSLZeroReturnError:
                return b""


@attrs.define(eq=False)
class World:
    """A listener with names `shop` and the domain, each with a certificate for it alone, and a visit port; there is no client, but a queue."""

    listener: NameListener
    pool: PortPool
    queue: VisitorQueue
    authority: str

    def publish(self, publish: Publish) -> VisitPoint:
        [point] = self.pool.take([ServiceRequest(publish=publish)], ("alice", "home")) or ()
        point.queue = self.queue
        return point

    def visit(self, name: str | None, point: VisitPoint | None = None, *alpn: str) -> Visitor:
        near, far = tcp_pair()
        near.setblocking(False)
        visited = TCPAddress("127.0.0.1", PORT if point else 443)
        self.listener.accept_https(near, TCPAddress("192.0.2.7", 1), visited, point)
        context = ssl.create_default_context(cadata=self.authority)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.check_hostname = name is not None
        if alpn:
            context.set_alpn_protocols(list(alpn))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(far))
        return Visitor(stream, tls, incoming, outgoing)

    async def at_service(self) -> tuple[Endpoint, bytes]:
        """Return the next visitor that reaches the service, and what it says first."""
        visitor = await self.queue.next()
        assert visitor is not None
        return visitor.endpoint, await self.next_at(visitor.endpoint)

    async def next_at(self, endpoint: Endpoint) -> bytes:
        room = memoryview(bytearray(65536))
        while True:
            try:
                return bytes(room[: endpoint.recv_into(room)])
            except BlockingIOError:
                await endpoint.readable.wait()


@pytest.fixture
async def domain() -> str:
    return DOMAIN


@pytest.fixture
async def world(tmp_path: Path, domain: str) -> AsyncIterator[World]:
    maker = Maker()
    own = trio.Path(tmp_path / "own")
    await own.mkdir()
    for name in (domain, SHOP):
        key, chain = maker.chain(name)
        await (own / f"{name}.key").write_bytes(key)
        await (own / f"{name}.crt").write_bytes(chain)
    store = CertificateStore(tmp_path / "certificates", own_folder=tmp_path / "own")
    await store.load()
    config = ServerConfig(domain=domain, http_idle_timeout=5)
    pool = PortPool([VisitPort(PORT)])
    acceptor = VisitorAcceptor(config)
    refusals = acceptor.refusals

    async def none_to_come(name: str) -> Entry:
        raise AssertionError(name)

    async with trio.open_nursery() as nursery:
        listener = NameListener(
            config=config,
            dispatcher=Dispatcher(
                config=config, names=pool.names, acceptor=acceptor, pages=Pages()
            ),
            certificates=store,
            challenges=Challenges(),
            wait_for_certificate=none_to_come,
            handshakes=PendingHandshakes(100, 100, refusals),
            shuts_out=lambda _: False,
            refusals=refusals,
            connection_log=ConnectionLog(refusals),
            nursery=nursery,
        )
        queue = VisitorQueue(100, 100, UserLimits("alice", Limits()))
        with trio.fail_after(20):
            yield World(listener, pool, queue, maker.pem.decode())
        nursery.cancel_scope.cancel()


def get(host: str, path: str = "/") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


# --- at a visit port there is the domain, and no other name ---


async def test_no_other_name_at_a_visit_port(world: World) -> None:
    """Whoever has the port would be shown as the owner of that name, and get its cookies."""
    port = world.publish(Publish(kind=PublishKind.HTTPS))
    visitor = world.visit(SHOP, port)
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        await visitor.shake_hands()
    await visitor.stream.aclose()


async def test_no_request_for_another_name_at_a_visit_port(world: World) -> None:
    port = world.publish(Publish(kind=PublishKind.HTTPS))
    visitor = world.visit(DOMAIN, port)
    await visitor.shake_hands()
    await visitor.send(get(f"{DOMAIN}:{PORT}"))
    endpoint, got = await world.at_service()
    assert got.startswith(b"GET / ")
    endpoint.send(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert b" 204 " in await visitor.receive()
    await visitor.send(get(f"{SHOP}:{PORT}", "/second"))
    assert await world.next_at(endpoint) == b""
    assert b" 421 " in await visitor.receive()
    await visitor.stream.aclose()


@pytest.mark.parametrize(("domain", "host"), [("127.0.0.1", "127.0.0.1"), ("::1", "[0::1]")])
async def test_an_address_as_domain_at_a_visit_port(world: World, domain: str, host: str) -> None:
    """Nobody asks for an address by SNI."""
    port = world.publish(Publish(kind=PublishKind.HTTPS))
    visitor = world.visit(None, port)
    await visitor.shake_hands()
    await visitor.send(get(f"{host}:{PORT}"))
    _, got = await world.at_service()
    assert got.startswith(b"GET / ")
    await visitor.stream.aclose()


# --- what changes during a handshake ---


async def test_http2_that_was_to_have_a_password_when_the_handshake_was_over(world: World) -> None:
    """Nobody looks at its requests, so it could not be asked any more."""
    point = world.publish(Publish(kind=PublishKind.HTTP, name=SHOP, http2=True))
    visitor = world.visit(SHOP, None, "h2")
    await visitor.begin()
    point.take_publish(
        Publish(
            kind=PublishKind.HTTP, name=SHOP, basic_auth=("ann:" + await hash_password("secret"),)
        )
    )
    await visitor.shake_hands()
    await visitor.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert await ends(visitor)
    assert not world.queue.take_new()


@pytest.mark.parametrize("alpn", [(), ("h2",)])
async def test_a_visit_port_that_was_given_back_during_the_handshake(
    world: World, alpn: tuple[str, ...]
) -> None:
    """Somebody else may have it, and wants no HTTP there."""
    port = world.publish(Publish(kind=PublishKind.HTTPS, http2=True))
    visitor = world.visit(DOMAIN, port, *alpn)
    await visitor.begin()
    world.pool.give_back([port])
    port.queue = world.queue
    await visitor.shake_hands()
    await visitor.send(get(DOMAIN))
    assert await ends(visitor)
    assert not world.queue.take_new()


async def test_a_handshake_during_which_nothing_changes(world: World) -> None:
    publish = Publish(kind=PublishKind.HTTP, name=SHOP, http2=True)
    point = world.publish(publish)
    visitor = world.visit(SHOP, None, "h2")
    await visitor.begin()
    point.take_publish(attrs.evolve(publish))  # its client came again
    await visitor.shake_hands()
    await visitor.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    endpoint, got = await world.at_service()
    assert got.startswith(b"PRI")
    endpoint.close()
    await visitor.stream.aclose()


async def ends(visitor: Visitor) -> bool:
    """Tell whether a visitor's connection is ended with nothing said; close it."""
    try:
        return not await visitor.receive()
    except trio.BrokenResourceError:  # what it has said was not read
        return True
    finally:
        await visitor.stream.aclose()
