"""How a visitor gets from the node that it came to, to the node that holds its port.

Between two nodes are tunnels, with the frames of a session's tunnels: the one that sends visitors is the server of such a tunnel, the one that holds
the ports its client. So a link to another node is what a session is to its client: a queue of visitors, and tunnels that serve them, with
the difference that the server dials. At the other end a visitor is put into the queue of the lease, with its true address, and with a stream in memory
for its connection.

Where the holder is the parent of several processes, it hands the visitor over to the one that has the port (`deliver`), and its bytes pass through the parent.

One hop at most: who gets a visitor for a port that it does not hold refuses it, and the sender looks once more.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

import attrs
import trio

from trionat.address import TCPAddress
from trionat.errors import (
    ConnectionLostError,
    IdentityError,
    PeerError,
    RemoteProtocolError,
)
from trionat.log import get_logger
from trionat.protocol.frames import Frame, FrameReader
from trionat.protocol.node_messages import NODE_ALPN, NodeHello, NodeWelcome
from trionat.protocol.tunnel_frames import AbortReason, Forward
from trionat.relay.client_tunnel import ClientTunnel, LocalServiceError
from trionat.relay.liveness import SWEEP_INTERVAL
from trionat.server.accounts.limits import UserLimits
from trionat.server.cluster.retained import Retained
from trionat.server.handshakes import PendingHandshakes
from trionat.server.refusals import Bound
from trionat.server.sessions.native_tunnels import NativeTunnels
from trionat.server.visitors.ports import VisitPort
from trionat.server.visitors.queue import VisitorQueue
from trionat.server.visitors.visitor import Visitor
from trionat.signals import Signal
from trionat.store.base import Limits
from trionat.transport.certificate import fingerprint, first_certificate
from trionat.transport.deadline import deadline
from trionat.transport.dial import reach
from trionat.transport.endpoint import TLS_RECORD_BYTES, SocketEndpoint, lost, send_all
from trionat.transport.isolation import isolated
from trionat.transport.pipe import open_pipe
from trionat.transport.scratch import scratch
from trionat.transport.tcp_pair import open_tcp_pair
from trionat.transport.tls import (
    accept_tls,
    client_context,
    connect_tls,
    peer_fingerprint,
    server_context,
)

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trionat.config.server import ServerConfig
    from trionat.protocol.tunnel_frames import Open
    from trionat.relay.stream import VisitorStream
    from trionat.server.cluster.identity import Identity
    from trionat.server.cluster.seal import Seal
    from trionat.server.cluster.table import Entry, NodeEntry, RoutingTable
    from trionat.server.refusals import RefusalCounters
    from trionat.server.visitors.acceptor import VisitorAcceptor
    from trionat.server.visitors.ports import PointId, PortPool, VisitPoint
    from trionat.transport.endpoint import Endpoint
    from trionat.transport.tls_endpoint import TLSEndpoint

log = get_logger(__name__)

_HANDSHAKE: Final = 4.0
"""Seconds to connect to another node; it is most often a few milliseconds away."""

_KEEP_IDLE: Final = 2
"""Tunnels to a node that are kept for the next visitors; those above are sent home when nobody has needed them for a while."""

_MOST_TUNNELS: Final = 4096
"""Between two nodes, in one direction."""

_MOST_DIALS: Final = 16
"""At once, to one node."""

_MOST_TRIES: Final = 6
"""Nodes that a visitor is passed to, one after another."""

_TAKEN_WITHIN: Final = 0.01
"""Seconds in which a new tunnel takes the first visitor that waits for it."""

_LOOK_AGAIN: Final = 0.25
"""Seconds between two looks at visitors for whose port nobody is known."""

_LONGEST_PAUSE: Final = 1.0
"""Seconds between two tries to reach a node, at most."""

_MOVED: Final = "moved: this node does not hold the port any more"


class Deliver(Protocol):
    """Brings a visitor to another process of this server."""

    def __call__(
        self, point: PointId, source: TCPAddress, visited: TCPAddress, *, with_tls: bool
    ) -> Awaitable[Endpoint]:
        """Bring a visitor of a port or a name, with its address and the one that it has dialled. Raises LocalServiceError."""
        ...


@attrs.define(eq=False, kw_only=True)
class ForwardedVisitor(Visitor):
    """A visitor for another node, with its connection (`retained`). `rounds` is how many nodes it was passed to; `moving` says that it is on its way to the next."""

    retained: Retained
    fence: int = 0
    rounds: int = 0
    moving: bool = False
    counted: Callable[[], None] = lambda: None

    @property
    def opening(self) -> Forward:
        """As `Visitor.opening`, with the fence, and the name."""
        return Forward(
            fence=self.fence,
            name=self.name or "",
            with_tls=self.with_tls,
            **attrs.asdict(super().opening),
        )


class _NodeTunnel(ClientTunnel):
    """The holder's end of a tunnel between nodes."""

    takes_forwards: ClassVar[bool] = True


@attrs.define(eq=False)
class _Link:
    """To one life of one other node: a queue of visitors, and the tunnels that serve them. `dial` makes one more."""

    node: NodeEntry
    queue: VisitorQueue
    tunnels: NativeTunnels
    dial: Callable[[NodeEntry], Awaitable[Endpoint]]
    reason: str = attrs.field(init=False, default="")
    _dialling: int = attrs.field(init=False, default=0)
    _changed: Signal = attrs.field(init=False, factory=Signal)

    async def run(self) -> None:
        """Serve visitors until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.tunnels.run, name="tunnels")
            while True:
                wanted = self.queue.waiting - self._dialling
                for _ in range(min(wanted, _MOST_DIALS - self._dialling)):
                    self._dialling += 1
                    nursery.start_soon(self._open, name="dial")
                await self.queue.arrived.wait()

    async def _open(self) -> None:
        """Open a tunnel; a node that cannot be reached is tried again while somebody waits."""
        pause = 0.1
        try:
            while self.queue.waiting:
                try:
                    wire = await self.dial(self.node)
                except PeerError as error:
                    if self.reason != (reason := str(error)):
                        self.reason = reason
                        log.warning(
                            "cannot reach a node of the cluster",
                            node=self.node.name,
                            address=str(self.node.address),
                            reason=reason,
                        )
                    await trio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                    continue
                self.reason = ""
                if not self.tunnels.attach(wire):
                    wire.close()
                await trio.sleep(_TAKEN_WITHIN)  # else one more would be dialled for that visitor
                return
        finally:
            self._dialling -= 1
            self.queue.arrived.notify()


@attrs.define(eq=False, kw_only=True)
class NodeLinks:
    """Passes visitors on, and takes those that other nodes pass. `run` has to run; `serve` takes connections of other nodes.

    With `deliver`, the ports of this node are at other processes.
    """

    config: ServerConfig
    name: str
    seal: Seal
    identity: Identity
    table: RoutingTable
    pool: PortPool
    acceptor: VisitorAcceptor
    refusals: RefusalCounters
    deliver: Deliver | None = None
    _fingerprint: bytes = attrs.field(init=False)
    _client_tls: ssl.SSLContext = attrs.field(init=False)
    _links: dict[NodeEntry, tuple[_Link, trio.CancelScope]] = attrs.field(
        init=False, factory=lambda: {}
    )
    _lobby: dict[ForwardedVisitor, None] = attrs.field(init=False, factory=lambda: {})
    _nursery: trio.Nursery | None = attrs.field(init=False, default=None)
    _handshakes: PendingHandshakes = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._handshakes = PendingHandshakes(
            self.config.max_handshakes,
            self.config.max_handshakes_per_address,
            self.refusals,
            self._is_of_a_node,
        )
        self._fingerprint = fingerprint(first_certificate(self.identity.certificate.decode()))
        self._client_tls = client_context(pinned=True)
        self._client_tls.set_alpn_protocols([NODE_ALPN])

    @property
    def _proof(self) -> str:
        return hmac.digest(self.seal.key, b"trionat node link 1", hashlib.sha256).hex()

    # -- to other nodes ----------------------------------------------------------------------------------------------

    def takes(self, point: int | str) -> bool:
        """Tell whether visitors of this port go to another node, or wait for one: theirs is gone, and its clients are coming."""
        return self._nursery is not None and (
            self._holder(point) is not None or self.table.is_orphaned(point)
        )

    def forward(self, visitor: Visitor) -> None:
        """Take over a visitor that has come here, whose port is held elsewhere."""
        assert isinstance(visitor.endpoint, SocketEndpoint), "it has just been accepted"  # noqa: S101 - for type checkers
        retained = Retained(visitor.endpoint)
        forwarded = ForwardedVisitor(
            number=visitor.number,
            endpoint=retained,
            retained=retained,
            address=visitor.address,
            service=0,
            visited=visitor.visited,
            name=visitor.name,
            with_tls=visitor.with_tls,
            counted=visitor.gone,
        )
        self._dispatch(forwarded)

    def _holder(self, point: PointId) -> Entry | None:
        entry = self.table.by_point.get(point)
        if entry is None or entry.node not in self.table.nodes:
            return None
        if entry.node == self.name and self.deliver is None:
            return None
        return entry  # perhaps this node: a visitor who has waited here comes to its other process by a link to itself

    def _dispatch(self, visitor: ForwardedVisitor) -> None:
        """Pass a visitor to whoever holds its port; into the lobby where nobody does, as far as is known."""
        point, entry = self.pool.find(visitor.point), self._holder(visitor.point)
        if point is not None and point.queue is not None:
            self._take_here(visitor, point)
        elif entry is not None and self._nursery is not None:
            visitor.fence = entry.fence
            visitor.rounds += 1
            visitor.gone = partial(self._done, visitor)
            self._link(self.table.nodes[entry.node]).queue.put(visitor)
        elif len(self._lobby) < self.config.max_waiting_visitors:
            self._lobby[visitor] = None
        else:
            self.refusals.counts[Bound.WAITING_VISITORS] += 1
            self._dismiss(visitor, "too many visitors wait for a node (MaxWaitingVisitors)")

    def _take_here(self, visitor: ForwardedVisitor, point: VisitPoint) -> None:
        """The port or name that a visitor wants has come here meanwhile: it is as one that has just come."""
        if visitor.name is not None or point.publish is not None:
            self._take_published(visitor, point)
        elif (refusal := self.acceptor.list_refusal(point, visitor.address)) is not None:
            visitor.endpoint.close()
            visitor.retained.let_go()
            visitor.counted()
            self.acceptor.tell_refused(point, visitor.address, refusal)
        else:
            visitor.retained.let_go()
            queue = point.queue
            assert queue is not None, "asked before"  # noqa: S101 - for type checkers
            queue.put(
                Visitor(
                    number=visitor.number,
                    endpoint=visitor.endpoint,
                    address=visitor.address,
                    service=point.service,
                    visited=visitor.visited,
                    arrived=visitor.arrived,
                    since=visitor.since,
                    gone=visitor.counted,
                    tally=self.acceptor.tally,
                ),
            )

    def _take_published(self, visitor: ForwardedVisitor, point: VisitPoint) -> None:
        """The same, of a service whose visitors are looked at first: that begins with their first byte."""
        visitor.counted()
        inner, named = visitor.retained.inner, self.acceptor.named
        if named is None or not isinstance(inner, SocketEndpoint) or not visitor.retained.is_fresh:
            visitor.endpoint.reset()  # it was read from
            visitor.retained.let_go()
        elif visitor.name is None:
            named.accept_https(inner.detach(), visitor.address, visitor.visited, point)
        elif visitor.with_tls:
            named.accept_https(inner.detach(), visitor.address, visitor.visited)
        else:
            named.accept_http(inner.detach(), visitor.address, visitor.visited)

    def _done(self, visitor: ForwardedVisitor) -> None:
        """A link is done with a visitor: it was served, or is to go to the next node."""
        if visitor.moving:
            return
        stream = visitor.stream
        # A link that is lost may have given the service what was taken: nothing is said to it twice.
        refused = stream is not None and (
            (stream.failure is None and not stream.over and not stream.taken)
            or (stream.failure is not None and stream.failure.reason is AbortReason.REFUSED)
        )
        if refused and visitor.retained.can_rewind and visitor.rounds < _MOST_TRIES:
            self._lobby[self._anew(visitor)] = None
        else:
            visitor.retained.let_go()
            visitor.counted()

    def _anew(self, visitor: ForwardedVisitor) -> ForwardedVisitor:
        visitor.retained.rewind()
        return ForwardedVisitor(
            number=visitor.number,
            endpoint=visitor.retained,
            retained=visitor.retained,
            address=visitor.address,
            service=0,
            visited=visitor.visited,
            name=visitor.name,
            with_tls=visitor.with_tls,
            arrived=visitor.arrived,
            since=visitor.since,
            rounds=visitor.rounds,
            counted=visitor.counted,
        )

    def _link(self, node: NodeEntry) -> _Link:
        assert self._nursery is not None, "asked before"  # noqa: S101 - for type checkers
        if (found := self._links.get(node)) is not None:
            return found[0]
        queue = VisitorQueue(
            self.config.max_waiting_visitors,
            _MOST_TUNNELS,
            UserLimits(f"node {node.name}", Limits()),
            self.refusals,
        )
        # A visitor that has said something is not passed on again, so no idle tunnel gets one that is dead already.
        tunnels = NativeTunnels(
            queue=queue, limit=_MOST_TUNNELS, keep_idle=_KEEP_IDLE, confirms=True
        )
        link, scope = _Link(node, queue, tunnels, self._dial), trio.CancelScope()
        self._links[node] = link, scope
        self._nursery.start_soon(self._run_link, link, scope, name=f"link to node {node.name}")
        return link

    async def _run_link(self, link: _Link, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await link.run()
        finally:
            for visitor in self._take_waiting(link.queue):
                self._lobby[visitor] = None

    def _take_waiting(self, queue: VisitorQueue) -> list[ForwardedVisitor]:
        """Take all who wait for a link, and return them as if they had just come."""
        taken: list[ForwardedVisitor] = []
        while (visitor := queue.take()) is not None:
            assert isinstance(visitor, ForwardedVisitor), "only such are put in"  # noqa: S101 - for type checkers
            visitor.moving = True
            queue.leave(visitor)
            taken.append(self._anew(visitor))
        return taken

    async def wait_none(self) -> None:
        """Wait until no visitor is on its way to another node."""
        while self._lobby or any(  # noqa: ASYNC110 - links come and go, and this is for a stop
            link.queue.present for link, _ in self._links.values()
        ):
            await trio.sleep(_LOOK_AGAIN)

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    while True:
                        await trio.sleep(_LOOK_AGAIN)
                        self._look_again()
                finally:
                    self._nursery = None
        finally:  # also those that a link has given back as it ended
            for visitor in list(self._lobby):
                self._dismiss(visitor, "the server stops")

    def _look_again(self) -> None:
        wait = self.config.visitor_wait
        for link, scope in list(self._links.values()):
            if self.table.nodes.get(link.node.name) != link.node:
                # Gone, as far as Redis knows: those that it serves go on, as long as it does.
                for visitor in self._take_waiting(link.queue):
                    self._lobby[visitor] = None
                if not link.queue.present:
                    scope.cancel("the node is gone")
                    del self._links[link.node]
            else:
                link.queue.expire(wait=wait, resume_wait=wait)
                if link.reason:
                    self._move_others(link)
        waiting, self._lobby = list(self._lobby), {}
        for visitor in waiting:
            if visitor.endpoint.is_lost():
                self._dismiss(visitor, "the visitor reset its connection while it waited")
            elif trio.current_time() - visitor.since > wait:
                self._dismiss(visitor, "no node that holds its port in time")
            else:
                self._dispatch(visitor)

    def _move_others(self, link: _Link) -> None:
        """Of a node that cannot be reached, let those go elsewhere whose port is held elsewhere by now."""
        waiting = link.queue.waiting_visitors
        if any(self._is_elsewhere(visitor, link) for visitor in waiting):
            for visitor in self._take_waiting(link.queue):
                self._lobby[visitor] = None

    def _is_elsewhere(self, visitor: Visitor, link: _Link) -> bool:
        entry = self.table.by_point.get(visitor.point)
        return entry is None or entry.node != link.node.name

    def _dismiss(self, visitor: ForwardedVisitor, reason: str) -> None:
        visitor.endpoint.close()
        visitor.retained.let_go()
        visitor.counted()
        log.info(
            "visitor closed",
            visitor=visitor.number,
            address=str(visitor.address),
            port=visitor.visited.port,
            reason=reason,
        )

    async def _dial(self, node: NodeEntry) -> TLSEndpoint:
        """Return a tunnel to another node, which has shown that it is of this cluster.

        Raises:
            PeerError: it cannot be had.
        """
        with deadline(_HANDSHAKE, f"it did not answer within {_HANDSHAKE:g} s"):
            sock = await reach(node.address)
            wire = await connect_tls(sock, self._client_tls, node.address.host)
            try:
                if peer_fingerprint(wire) != self._fingerprint:
                    raise IdentityError(
                        f"whatever answers at {node.address} has not the cluster's certificate"
                    )
                if wire.tls.selected_alpn_protocol() != NODE_ALPN:
                    raise RemoteProtocolError(
                        f"{node.address} is no node of this version: NodeAddr has to be its own port"
                    )
                await _send(wire, NodeHello(node=self.name, proof=self._proof).encode())
                welcome = NodeWelcome.decode(await _receive(wire))
                if welcome.node != node.name:
                    raise IdentityError(
                        f"{node.address} is node {welcome.node}, and not {node.name}"
                    )
            except BaseException:
                wire.close()
                raise
        return wire

    # -- from other nodes --------------------------------------------------------------------------------------------

    def acceptor_of(
        self, nursery: trio.Nursery, tls: ssl.SSLContext
    ) -> Callable[[socket.socket, TCPAddress], None]:
        """Return what the listener of `NodeAddr` calls; connections are served in `nursery`."""

        def accept(connection: socket.socket, address: TCPAddress) -> None:
            nursery.start_soon(
                self._serve, connection, address, tls, name=f"node link from {address}"
            )

        return accept

    async def _serve(
        self, connection: socket.socket, address: TCPAddress, tls: ssl.SSLContext
    ) -> None:
        with isolated(log, "node link closed", address=str(address)):
            with trio.CancelScope() as scope:
                self._handshakes.add(scope, address.host)
                try:
                    wire = await self._welcome(connection, tls)
                finally:
                    self._handshakes.remove(scope)
                try:
                    await self._serve_tunnel(wire)
                finally:
                    wire.close()

    async def _welcome(self, connection: socket.socket, tls: ssl.SSLContext) -> TLSEndpoint:
        """Return a tunnel of another node, which has shown that it is of this cluster. Raises PeerError."""
        with deadline(_HANDSHAKE, f"it did not say who it is within {_HANDSHAKE:g} s"):
            wire = await accept_tls(connection, tls)
            try:
                await self._meet(wire)
            except BaseException:
                wire.close()
                raise
        return wire

    def _is_of_a_node(self, host: str) -> bool:
        return any(node.address.host == host for node in self.table.nodes.values())

    async def _meet(self, wire: TLSEndpoint) -> None:
        if wire.tls.selected_alpn_protocol() != NODE_ALPN:
            raise RemoteProtocolError("only nodes of this version come to this port (NodeAddr)")
        hello = NodeHello.decode(await _receive(wire))
        if not hmac.compare_digest(hello.proof.encode(), self._proof.encode()):
            raise RemoteProtocolError(
                "it has not the key of this cluster (KeyFile): a foreign node, or an old key"
            )
        await _send(wire, NodeWelcome(node=self.name).encode())
        log.debug("a node has opened a tunnel", node=hello.node)

    async def _serve_tunnel(self, wire: Endpoint) -> None:
        opened: list[VisitorStream] = []
        changed = Signal()

        def take_over(_: Open, stream: VisitorStream) -> None:
            opened.append(stream)
            changed.notify()

        async def carry() -> None:
            while True:
                while not opened:
                    await changed.wait()
                await tunnel.serve(opened.pop())

        async def sweep() -> None:
            while True:
                await trio.sleep(SWEEP_INTERVAL)
                tunnel.sweep()

        tunnel = _NodeTunnel(wire, self._connect, take_over)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(carry, name="carry")
                nursery.start_soon(sweep, name="sweep")
                await tunnel.receive()
                nursery.cancel_scope.cancel("the other node closed the tunnel")
        finally:
            tunnel.abandon()

    async def _connect(self, frame: Open) -> Endpoint:
        """Put a visitor into the queue of the lease that holds its port, and return the other end of its stream.

        Raises:
            LocalServiceError: no lease here does, or not with that fence.
            RemoteProtocolError: its addresses are none.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if not isinstance(frame, Forward):
            raise LocalServiceError(_MOVED)
        point = self.pool.find(frame.name or frame.visit_port)
        entry = None if point is None else self.table.by_point.get(point.id)
        if point is None or entry is None or entry.node != self.name or entry.fence != frame.fence:
            raise LocalServiceError(_MOVED)
        source = _numeric(frame.host, frame.port)
        visited = _numeric(frame.visit_host, frame.visit_port)
        if self.deliver is not None:
            return await self.deliver(point.id, source, visited, with_tls=frame.with_tls)
        if point.queue is None:
            raise LocalServiceError(_MOVED)
        if frame.name or point.publish is not None:
            return self._let_in_named(point, source, visited, with_tls=frame.with_tls)
        ours, theirs = open_pipe()
        self.acceptor.take(point, theirs, source, visited)
        return ours

    def _let_in_named(
        self, point: VisitPoint, source: TCPAddress, visited: TCPAddress, *, with_tls: bool
    ) -> Endpoint:
        """Let in a visitor whose first bytes are to be looked at, over a connection of this machine; return the other end of it.

        Raises:
            LocalServiceError: there are no descriptors for it, or no names here.
        """
        named = self.acceptor.named
        if named is None:
            raise LocalServiceError("this node has no names (Domain)")
        try:
            ours, theirs = open_tcp_pair()
        except OSError as error:
            raise LocalServiceError(f"the node cannot take it now: {error.strerror}") from error
        if isinstance(point, VisitPort):
            named.accept_https(theirs, source, visited, point)
        elif with_tls:
            named.accept_https(theirs, source, visited)
        else:
            named.accept_http(theirs, source, visited)
        return SocketEndpoint(ours)


def _numeric(host: str, port: int) -> TCPAddress:
    """Return an address that another node has told, which access lists and other processes of this server are to read."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise RemoteProtocolError("FORWARD: whose visitor it is, is no address") from None
    return TCPAddress(host, port)


def node_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return the TLS context of the listener at `NodeAddr`. Raises OSError."""
    context = server_context(certificate, key)
    context.set_alpn_protocols([NODE_ALPN])
    return context


async def _send(wire: Endpoint, frame: bytes) -> None:
    try:
        await send_all(wire, frame)
    except OSError as error:
        raise lost(error) from error


async def _receive(wire: Endpoint) -> Frame:
    reader, room = FrameReader(), scratch().incoming[:TLS_RECORD_BYTES]
    while (frame := reader.next_frame()) is None:
        try:
            count = wire.recv_into(room)
        except BlockingIOError:
            await wire.readable.wait()
        except OSError as error:
            raise lost(error) from error
        else:
            if not count:
                raise ConnectionLostError("the other node closed the connection")
            reader.feed(room[:count])
    if reader.trailing:
        raise RemoteProtocolError("more than one frame, before the answer")
    return frame
