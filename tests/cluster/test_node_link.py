"""Visitors on their way from one node to another: real sockets and TLS, with tables that the tests fill."""

from __future__ import annotations

import logging
import os
import socket
import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from bench.program import free_port
from tests.registry.redis_world import SEAL, identity
from tests.unit.memory import receive_all, receive_exactly
from trionat.address import TCPAddress
from trionat.config.server import ServerConfig
from trionat.protocol.messages import Publish, PublishKind
from trionat.protocol.node_messages import NODE_ALPN
from trionat.relay.client_tunnel import LocalServiceError
from trionat.server.accounts.limits import UserLimits
from trionat.server.cluster.identity import Identity
from trionat.server.cluster.node_link import NodeLinks, node_context
from trionat.server.cluster.seal import Seal
from trionat.server.cluster.table import Entry, NodeEntry, RoutingTable
from trionat.server.refusals import Bound
from trionat.server.visitors.acceptor import VisitorAcceptor
from trionat.server.visitors.ports import PointId, PortPool, VisitPort
from trionat.server.visitors.queue import VisitorQueue
from trionat.server.visitors.visitor import Visitor
from trionat.store.base import Limits
from trionat.transport.certificate import make_certificate
from trionat.transport.descriptors import Descriptors
from trionat.transport.endpoint import SocketEndpoint, send_all
from trionat.transport.listener import Listener
from trionat.transport.tcp_pair import open_tcp_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.limit(20)

PORT = 60001
KEY = ("user", "client")


@attrs.define(eq=False)
class Node:
    """One node: `visit` is where visitors come to, `queue` gets those of the client that is here, if one is."""

    name: str
    links: NodeLinks
    table: RoutingTable
    port: VisitPort
    listener: Listener
    visits: Listener
    entry: NodeEntry

    async def visit(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.visits.address.port)

    def hold(self, fence: int, *others: Node) -> VisitorQueue:
        """Let a client be here; all nodes know it."""
        queue = VisitorQueue(10, 10, UserLimits("user", Limits()))
        self.port.queue = queue
        for node in (self, *others):
            node.table.put(Entry(KEY, self.name, self.entry.epoch, fence, (PORT,)))
        return queue


@asynccontextmanager
async def running(
    folder: Path, name: str, *, seal: Seal = SEAL, who: Identity | None = None, wait: float = 3.0
) -> AsyncIterator[Node]:
    who = who or identity()
    config = ServerConfig(visit_port=(PORT,), visitor_wait=wait)
    (folder / f"{name}.key").write_bytes(who.key)
    (folder / f"{name}.crt").write_bytes(who.certificate)
    listener = Listener.open(TCPAddress("127.0.0.1", 0))
    visits = Listener.open(TCPAddress("127.0.0.1", 0))
    port, table = VisitPort(PORT), RoutingTable()
    pool = PortPool([port])
    acceptor = VisitorAcceptor(config)
    links = NodeLinks(
        config=config,
        name=name,
        seal=seal,
        identity=who,
        table=table,
        pool=pool,
        acceptor=acceptor,
        refusals=acceptor.refusals,
    )
    acceptor.elsewhere = links
    descriptors = Descriptors()
    entry = NodeEntry(name, "1", listener.address)
    table.put_node(entry)

    def accept(connection: socket.socket, address: TCPAddress) -> None:
        # As if it had dialled the port that all nodes have.
        acceptor.take(port, SocketEndpoint(connection), address, TCPAddress("127.0.0.1", PORT))

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(links.run)
            tls = node_context(folder / f"{name}.crt", folder / f"{name}.key")
            nursery.start_soon(listener.serve, links.acceptor_of(nursery, tls), descriptors)  # noqa: ASYNC113 - waits below
            nursery.start_soon(visits.serve, accept, descriptors)  # noqa: ASYNC113 - the same
            await trio.testing.wait_all_tasks_blocked()
            yield Node(name, links, table, port, listener, visits, entry)
            nursery.cancel_scope.cancel()
    finally:
        listener.close()
        visits.close()
        descriptors.close()


@asynccontextmanager
async def nodes(folder: Path, *names: str) -> AsyncIterator[list[Node]]:
    """Run nodes that know each other."""
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(running(folder, name)) for name in names]
        for node in found:
            for other in found:
                node.table.put_node(other.entry)
        yield found


async def next_visitor(queue: VisitorQueue) -> Visitor:
    visitor = await queue.next()
    assert visitor is not None
    return visitor


async def read(stream: trio.SocketStream) -> bytes:
    return b"".join([data async for data in stream])


async def test_both_ways_with_the_true_address_and_half_close(tmp_path: Path) -> None:
    async with nodes(tmp_path, "one", "two") as (one, two):
        queue = two.hold(1, one)
        async with await one.visit() as visitor:
            await visitor.send_all(b"question")
            there = await next_visitor(queue)
            assert there.address == TCPAddress(*visitor.socket.getsockname()[:2])
            assert there.visited.port == PORT
            assert await receive_exactly(there.endpoint, 8) == b"question"
            await visitor.send_eof()
            assert await receive_all(there.endpoint) == b""

            async def answer() -> None:
                await send_all(there.endpoint, bytes(1_000_000))
                there.endpoint.send_eof()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                assert len(await read(visitor)) == 1_000_000
        queue.leave(there)


async def test_one_tunnel_after_another_is_used_again(tmp_path: Path) -> None:
    async with nodes(tmp_path, "one", "two") as (one, two):
        queue = two.hold(1, one)
        for number in range(5):
            async with await one.visit() as visitor:
                there = await next_visitor(queue)
                await send_all(there.endpoint, b"%d" % number)
                there.endpoint.send_eof()
                assert await read(visitor) == b"%d" % number
            assert await receive_all(there.endpoint) == b""
            there.endpoint.close()
            queue.leave(there)
            await trio.sleep(0.05)
        (link, _) = one.links._links[two.entry]
        assert 1 <= link.tunnels.count <= 2


async def test_a_reset_is_a_reset(tmp_path: Path) -> None:
    async with nodes(tmp_path, "one", "two") as (one, two):
        queue = two.hold(1, one)
        visitor = await one.visit()
        await visitor.send_all(b"x")
        there = await next_visitor(queue)
        assert await receive_exactly(there.endpoint, 1) == b"x"
        await send_all(there.endpoint, b"y")
        assert await visitor.receive_some(1) == b"y"
        there.endpoint.reset()
        queue.leave(there)
        with pytest.raises(trio.BrokenResourceError):
            await visitor.receive_some(1)
        await visitor.aclose()


async def test_moved(tmp_path: Path) -> None:
    """The node that a visitor is passed to does not hold the port any more: it goes to the one that does, with all it has said."""
    async with nodes(tmp_path, "one", "two", "three") as (one, two, three):
        two.hold(1, one)
        two.port.queue = None
        two.table.by_point.clear()
        async with await one.visit() as visitor:
            await visitor.send_all(b"what I have to say")
            await trio.sleep(0.5)
            queue = three.hold(2, one, two)
            there = await next_visitor(queue)
            assert await receive_exactly(there.endpoint, 18) == b"what I have to say"
            await send_all(there.endpoint, b"answer")
            assert await visitor.receive_some(10) == b"answer"
            there.endpoint.close()
        queue.leave(there)


async def test_moved_here(tmp_path: Path) -> None:
    """The client comes to the very node that has the visitor."""
    async with nodes(tmp_path, "one", "two") as (one, two):
        two.hold(1, one)
        two.port.queue = None
        async with await one.visit() as visitor:
            await visitor.send_all(b"early")
            await trio.sleep(0.5)
            queue = one.hold(2, two)
            there = await next_visitor(queue)
            assert await receive_exactly(there.endpoint, 5) == b"early"
            there.endpoint.close()
            assert await read(visitor) == b""
        queue.leave(there)


async def test_who_has_waited_is_looked_at_when_the_client_comes_here(tmp_path: Path) -> None:
    """By the lists of the client's account, which nobody could know before."""
    async with nodes(tmp_path, "one", "two") as (one, two):
        one.table.put(Entry(KEY, "two", two.entry.epoch, 1, (PORT,)))
        one.table.remove_node("two", two.entry.epoch)  # its clients are on their way
        async with await one.visit() as visitor:
            await visitor.send_all(b"hello")
            await wait_all_in_lobby(one, 1)
            queue = VisitorQueue(10, 10, UserLimits("user", Limits(deny_visitors=("127.0.0.0/8",))))
            one.port.queue = queue
            assert await read_end(visitor) in {"end", "reset"}
        assert not queue.present
        assert one.links.refusals.counts[Bound.ACCOUNT_LISTS] == 1


async def test_who_has_waited_for_a_port_whose_visitors_are_looked_at_is_looked_at(
    tmp_path: Path,
) -> None:
    taken: list[tuple[TCPAddress, object]] = []

    class Named:
        def accept_https(
            self, connection: socket.socket, _: TCPAddress, visited: TCPAddress, point: object
        ) -> None:
            taken.append((visited, point))
            connection.close()

    async with nodes(tmp_path, "one", "two") as (one, two):
        one.links.acceptor.named = Named()  # type: ignore[assignment]
        one.table.put(Entry(KEY, "two", two.entry.epoch, 1, (PORT,)))
        one.table.remove_node("two", two.entry.epoch)
        async with await one.visit() as visitor:
            await visitor.send_all(b"GET /secret HTTP/1.1\r\nHost: x\r\n\r\n")
            await wait_all_in_lobby(one, 1)
            one.port.take_publish(Publish(kind=PublishKind.HTTPS, approve=True))
            queue = one.hold(2, two)
            assert await read_end(visitor) in {"end", "reset"}
        assert taken == [(TCPAddress("127.0.0.1", PORT), one.port)]
        assert not queue.present


async def wait_all_in_lobby(node: Node, count: int) -> None:
    with trio.fail_after(5):
        while len(node.links._lobby) != count:  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.01)


async def read_end(stream: trio.SocketStream) -> str:
    try:
        assert await read(stream) == b""
    except trio.BrokenResourceError:
        return "reset"
    return "end"


async def test_to_another_process_of_the_node(tmp_path: Path) -> None:
    """Who comes by another node, and who has waited here until the client came to one; the first process has given up the port."""
    delivered: list[tuple[PointId, TCPAddress, TCPAddress]] = []
    ends: list[trio.SocketStream] = []

    async def deliver(
        point: PointId, source: TCPAddress, visited: TCPAddress, *, with_tls: bool
    ) -> SocketEndpoint:
        assert not with_tls
        await trio.lowlevel.checkpoint()
        delivered.append((point, source, visited))
        if len(delivered) == 1:
            raise LocalServiceError("moved")
        ours, theirs = open_tcp_pair()
        ends.append(trio.SocketStream(trio.socket.from_stdlib_socket(theirs)))
        return SocketEndpoint(ours)

    async with nodes(tmp_path, "one", "two", "three") as (one, two, three):
        for node in (one, two):
            node.links.deliver = deliver
            node.hold(1, *{one, two, three} - {node})
            node.port.queue = None
        three.table.put(Entry(KEY, "two", two.entry.epoch, 2, (PORT,)))
        two.table.put(Entry(KEY, "two", two.entry.epoch, 2, (PORT,)))
        for node in (three, one):
            async with await node.visit() as visitor:
                await visitor.send_all(b"question")
                with trio.fail_after(5):
                    while not ends:  # noqa: ASYNC110 - nothing tells
                        await trio.sleep(0.01)
                (there,) = ends
                assert await there.receive_some(100) == b"question"
                await there.send_all(b"answer")
                await there.aclose()
                assert await read(visitor) == b"answer"
                name = TCPAddress(*visitor.socket.getsockname()[:2])
                assert delivered[-1] == (PORT, name, TCPAddress("127.0.0.1", PORT))
            ends.clear()
            # The second visitor comes while nobody has its port, as far as is known.
            one.table.remove(KEY, 1)
            one.table.put(Entry(KEY, "one", one.entry.epoch, 3, (PORT,)))
        assert len(delivered) == 3


@pytest.mark.parametrize("host", ["", "a b", "example.com", "x" * 255])
async def test_a_node_that_tells_no_address(
    tmp_path: Path, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionat")
    async with nodes(tmp_path, "one", "two") as (one, two):
        queue = two.hold(1, one)
        ours, theirs = open_tcp_pair()
        one.links.forward(
            Visitor(
                number=1,
                endpoint=SocketEndpoint(ours),
                address=TCPAddress(host, 1),
                service=0,
                visited=TCPAddress("127.0.0.1", PORT),
            )
        )
        with trio.fail_after(5):
            while "is no address" not in caplog.text:  # noqa: ASYNC110 - nothing tells
                await trio.sleep(0.05)
        assert not queue.present
        assert "Traceback" not in caplog.text
        theirs.close()


async def test_an_old_fence_is_refused(tmp_path: Path) -> None:
    async with nodes(tmp_path, "one", "two") as (one, two):
        queue = two.hold(5)
        one.table.put(Entry(KEY, "two", two.entry.epoch, 4, (PORT,)))
        async with await one.visit():
            await trio.sleep(0.5)
            assert not queue.waiting
            one.table.put(Entry(KEY, "two", two.entry.epoch, 5, (PORT,)))
            there = await next_visitor(queue)
            there.endpoint.close()
        queue.leave(there)


async def test_one_hop_at_most(tmp_path: Path) -> None:
    """Two nodes that each believe the other to hold the port do not pass a visitor back and forth."""
    async with nodes(tmp_path, "one", "two") as (one, two):
        one.table.put(Entry(KEY, "two", two.entry.epoch, 1, (PORT,)))
        two.table.put(Entry(KEY, "one", one.entry.epoch, 1, (PORT,)))
        async with await one.visit() as visitor:
            assert await read(visitor) == b""  # after VisitorWait
        assert not two.links._links


async def test_a_node_that_cannot_be_reached(tmp_path: Path) -> None:
    async with nodes(tmp_path, "one", "two") as (one, two):
        gone = attrs.evolve(two.entry, address=TCPAddress("127.0.0.1", free_port()))
        one.table.put_node(gone)
        two.hold(1, one)
        began = trio.current_time()
        async with await one.visit() as visitor:
            assert await read(visitor) == b""
        assert 2.5 < trio.current_time() - began < 6
        one.table.nodes["two"] = two.entry  # it can be reached again
        queue = two.port.queue
        assert isinstance(queue, VisitorQueue)
        async with await one.visit():
            there = await next_visitor(queue)
            there.endpoint.close()
            queue.leave(there)


async def test_visitors_wait_for_the_clients_of_a_node_that_is_gone(tmp_path: Path) -> None:
    async with nodes(tmp_path, "one", "two") as (one, two):
        two.hold(1, one)
        two.port.queue = None
        one.table.remove_node("two", two.entry.epoch)
        async with await one.visit() as visitor:
            await visitor.send_all(b"hello")
            await trio.sleep(0.3)
            queue = one.hold(2)
            there = await next_visitor(queue)
            assert await receive_exactly(there.endpoint, 5) == b"hello"
            there.endpoint.close()
        queue.leave(there)


async def test_who_is_served_by_a_node_that_redis_does_not_know_any_more_goes_on(
    tmp_path: Path,
) -> None:
    async with nodes(tmp_path, "one", "two") as (one, two):
        queue = two.hold(1, one)
        async with await one.visit() as visitor:
            await visitor.send_all(b"before")
            there = await next_visitor(queue)
            assert await receive_exactly(there.endpoint, 6) == b"before"
            one.table.remove_node("two", two.entry.epoch)
            await trio.sleep(1)
            await visitor.send_all(b"after")
            assert await receive_exactly(there.endpoint, 5) == b"after"
            await send_all(there.endpoint, b"answer")
            assert await visitor.receive_some(10) == b"answer"
            there.endpoint.close()
            queue.leave(there)
            assert await read(visitor) == b""
        with trio.fail_after(5):
            while one.links._links:  # noqa: ASYNC110 - nothing tells
                await trio.sleep(0.05)


@pytest.mark.parametrize("said", [b"", b"POST / HTTP/1.0\r\n\r\n"])
async def test_a_link_that_is_lost_before_the_answer(tmp_path: Path, said: bytes) -> None:
    """Who has said nothing is passed on once more. What a visitor has said may have been done already: it is not said again."""
    async with nodes(tmp_path, "one", "two", "three") as (one, two, three):
        queue = two.hold(1, one, three)
        async with await one.visit() as visitor:
            await visitor.send_all(said)
            there = await next_visitor(queue)
            if said:
                assert await receive_exactly(there.endpoint, len(said)) == said
            later = three.hold(2, one, two)
            (link, _) = one.links._links[two.entry]
            for tunnel in list(link.tunnels._tunnels):
                with socket.socket(fileno=os.dup(tunnel.wire.fileno())) as wire:
                    wire.shutdown(socket.SHUT_RDWR)
            if said:
                with pytest.raises(trio.BrokenResourceError):
                    await visitor.receive_some(10)
                await trio.sleep(0.5)
                assert not later.waiting
            else:
                again = await next_visitor(later)
                await send_all(again.endpoint, b"welcome")
                assert await visitor.receive_some(10) == b"welcome"
                again.endpoint.close()
                later.leave(again)
        there.endpoint.close()
        queue.leave(there)


async def test_an_idle_tunnel_that_is_dead_gets_no_visitor(tmp_path: Path) -> None:
    """What a visitor says is not said again, so it must not be said to nobody."""
    async with nodes(tmp_path, "one", "two") as (one, two):
        queue = two.hold(1, one)
        async with await one.visit() as visitor:
            there = await next_visitor(queue)
            there.endpoint.close()
            assert await read(visitor) == b""
        queue.leave(there)
        (link, _) = one.links._links[two.entry]
        while not link.queue.idle:  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.01)
        # A visitor and the end of the tunnel come at once, in whatever order they are seen.
        visitor = await one.visit()
        await visitor.send_all(b"question")
        for tunnel in list(link.tunnels._tunnels):
            with socket.socket(fileno=os.dup(tunnel.wire.fileno())) as wire:
                wire.shutdown(socket.SHUT_RDWR)
        there = await next_visitor(queue)
        assert await receive_exactly(there.endpoint, 8) == b"question"
        there.endpoint.close()
        queue.leave(there)
        await visitor.aclose()


async def test_no_more_wait_for_a_node_than_may(tmp_path: Path) -> None:
    async with nodes(tmp_path, "one", "two") as (one, two):
        one.links.config = attrs.evolve(one.links.config, max_waiting_visitors=3)
        two.hold(1, one)
        two.port.queue = None
        one.table.remove_node("two", two.entry.epoch)
        async with AsyncExitStack() as stack:
            visitors = [await stack.enter_async_context(await one.visit()) for _ in range(5)]
            await trio.sleep(0.5)
            assert len(one.links._lobby) == 3
            for visitor in visitors[3:]:
                assert await read(visitor) == b""


async def test_a_port_that_nobody_holds(tmp_path: Path) -> None:
    async with nodes(tmp_path, "one", "two") as (one, _):
        async with await one.visit() as visitor:
            assert await read(visitor) == b""


async def test_a_crowd_that_says_nothing_does_not_keep_nodes_apart(tmp_path: Path) -> None:
    async with nodes(tmp_path, "one", "two") as (one, two), AsyncExitStack() as crowd:
        for _ in range(2 * two.links.config.max_handshakes):
            await crowd.enter_async_context(
                await trio.open_tcp_stream(
                    *attrs.astuple(two.entry.address), local_address="127.0.0.2"
                )
            )
        queue = two.hold(1, one)
        async with await one.visit() as visitor:
            with trio.fail_after(1):
                there = await next_visitor(queue)
            there.endpoint.close()
            assert await read(visitor) == b""
        queue.leave(there)


async def test_a_node_without_the_key_is_sent_away(tmp_path: Path) -> None:
    async with (
        running(tmp_path, "one", seal=Seal(bytes(32))) as one,
        running(tmp_path, "two") as two,
    ):
        one.table.put_node(two.entry)
        queue = two.hold(1, one)
        async with await one.visit() as visitor:
            assert await read(visitor) == b""
        assert not queue.waiting
        assert "closed" in one.links._links[two.entry][0].reason


async def test_whatever_answers_with_another_certificate_gets_no_visitor(tmp_path: Path) -> None:
    key, certificate = make_certificate()
    other = Identity(key, certificate, bytes(32))
    async with running(tmp_path, "one") as one, running(tmp_path, "two", who=other) as two:
        one.table.put_node(two.entry)
        queue = two.hold(1, one)
        async with await one.visit() as visitor:
            assert await read(visitor) == b""
        assert not queue.waiting
        assert "has not the cluster's certificate" in one.links._links[two.entry][0].reason


@pytest.mark.parametrize("words", [b"", b"GET / HTTP/1.1\r\n\r\n", bytes(100)])
async def test_strangers_at_the_port_between_nodes(tmp_path: Path, words: bytes) -> None:
    async with running(tmp_path, "one") as one:
        async with await trio.open_tcp_stream("127.0.0.1", one.listener.address.port) as stream:
            await stream.send_all(words)
            await stream.send_eof()
            with trio.fail_after(6):
                await read(stream)
        await trio.sleep(0.1)
        assert not one.links._handshakes._networks


@pytest.mark.parametrize(
    "words", [b"\0\0\0\2\0\0\x9c\xb8{}", b"\0\0\0\1\0\0\x9c\xb8x", bytes(8), b"\xff" * 8]
)
async def test_nonsense_instead_of_a_nodes_first_frame(tmp_path: Path, words: bytes) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([NODE_ALPN])
    async with running(tmp_path, "one") as one:
        raw = await trio.open_tcp_stream("127.0.0.1", one.listener.address.port)
        stream = trio.SSLStream(raw, context, https_compatible=True)
        await stream.send_all(words)
        with trio.fail_after(6):
            with pytest.raises(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass
                raise trio.BrokenResourceError
        await raw.aclose()
        assert not one.links._handshakes._networks
