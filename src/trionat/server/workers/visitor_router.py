"""Which worker gets a visitor that comes to the parent: behind a proxy, by a name, or from another node. All others come to the listening socket that a worker has."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import ConnectionLostError
from trionat.relay.client_tunnel import LocalServiceError
from trionat.server.workers.purpose import HTTP, HTTPS, PASSED_ON, TAKEN, VISITOR
from trionat.transport.endpoint import SocketEndpoint
from trionat.transport.tcp_pair import open_tcp_pair

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from trionat.address import TCPAddress
    from trionat.server.names.listener import PassOn
    from trionat.server.registry.table import ClaimTable
    from trionat.server.visitors.acceptor import VisitorAcceptor
    from trionat.server.visitors.ports import PointId, PortPool
    from trionat.server.workers.process import WorkerProcess

_DELIVERY: Final = 10.0
"""Seconds for a worker to take a visitor of another node; one that is being started takes half a second."""


@attrs.define(eq=False)
class VisitorRouter:
    """See the module. Who has which port or name of the pool is in `table`; `acceptor` takes those whom no worker has."""

    table: ClaimTable
    workers: Sequence[WorkerProcess]
    pool: PortPool
    acceptor: VisitorAcceptor

    def take_behind_proxy(
        self, connection: socket.socket, source: TCPAddress, destination: TCPAddress
    ) -> None:
        """Give a visitor, whose header a proxy has sent, to the worker that holds its port."""
        worker = self._worker_at(destination.port)
        if worker is not None:
            worker.take(connection, source, destination, purpose=VISITOR)
        else:
            self.acceptor.accept_behind_proxy(self.pool.ports, connection, source, destination)

    def passes_on(self, name: str) -> PassOn | None:
        """Return what gives a connection to the worker that has a name, or brings it to the node; None: nobody has it."""
        worker = self._worker_at(name)
        if worker is None:
            if self.acceptor.is_elsewhere(name):
                return partial(self.acceptor.forward_named, name)
            return None

        def pass_on(
            connection: socket.socket, address: TCPAddress, visited: TCPAddress, *, is_tls: bool
        ) -> None:
            worker.take(connection, address, visited, purpose=HTTPS if is_tls else HTTP)

        return pass_on

    async def deliver(
        self, point: PointId, source: TCPAddress, visited: TCPAddress, *, with_tls: bool
    ) -> SocketEndpoint:
        """Bring a visitor that another node has passed on to the worker that has its port, or name; return the other end of its stream.

        Raises:
            LocalServiceError: no worker has it any more, or takes it.
        """
        worker = self._worker_at(point)
        if worker is None:
            raise LocalServiceError("moved: no process of this node holds the port any more")
        try:
            ours, theirs = open_tcp_pair()
        except OSError as error:
            raise LocalServiceError(f"the node cannot take it now: {error.strerror}") from error
        if isinstance(point, str):
            worker.take(theirs, source, visited, purpose=HTTPS if with_tls else HTTP)
            return SocketEndpoint(ours)
        worker.take(theirs, source, visited, purpose=PASSED_ON)
        try:
            with trio.move_on_after(_DELIVERY):
                await _wait_taken(ours)
                return SocketEndpoint(ours)
        except (OSError, ConnectionLostError):
            ours.close()
            raise LocalServiceError("moved: its process has just given up the port") from None
        except BaseException:
            ours.close()
            raise
        ours.close()
        raise LocalServiceError("the process that holds the port does not take it")

    def _worker_at(self, port: PointId) -> WorkerProcess | None:
        claim = self.table.claim_of(port)
        words = (worker for worker in self.workers if claim and worker.word == claim.holder)
        return next(words, None)


async def _wait_taken(sock: socket.socket) -> None:
    """Wait until a worker has said that it takes a visitor. Raises OSError or ConnectionLostError: it does not."""
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            said = sock.recv(len(TAKEN))
        except BlockingIOError:
            continue
        if said != TAKEN:
            raise ConnectionLostError("closed")
        return
