"""Which worker gets a new connection to the control or tunnel port: a look at its first bytes, and it is passed on as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from trionat.errors import ConnectionLostError, PeerError
from trionat.log import get_logger
from trionat.protocol.client_hello import ALPN, CLIENT_HELLO_BYTES, parse_client_hello
from trionat.protocol.dialect import Dialect, detect_dialect
from trionat.protocol.frames import HEADER_BYTES
from trionat.server.connection_log import ConnectionLog
from trionat.server.control.acceptance import Acceptance
from trionat.transport.deadline import deadline
from trionat.transport.isolation import isolated, leaves
from trionat.transport.peek import peek

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    import trio

    from trionat.address import TCPAddress
    from trionat.config.server import ServerConfig
    from trionat.server.admission.bans import Bans
    from trionat.server.refusals import RefusalCounters
    from trionat.server.tally import Tally
    from trionat.server.workers.process import WorkerProcess

log = get_logger(__name__)

_UID_BYTES: Final = 8
"""In a JOIN, behind its header."""


@attrs.define(eq=False)
class Router:
    """Passes connections on; those of banned addresses are closed unheard. `workers` are in the order of their numbers.

    - One with a route goes to that worker. So does a tunnel without TLS, by the number of its session.
    - A client of ours without a route goes to the worker that has least to do.
    - All others go to the first worker: clients of version 0.1 and of NAT, whose tunnels cannot be told apart from here.
    """

    config: ServerConfig
    bans: Bans
    refusals: RefusalCounters
    workers: Sequence[WorkerProcess]
    tally: Tally | None = None
    _acceptance: Acceptance = attrs.field(init=False)
    _log: ConnectionLog = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._log = ConnectionLog(self.refusals)
        self._acceptance = Acceptance(self.config, self.bans, self.refusals, self.tally)

    def take_config(self, config: ServerConfig) -> None:
        """This one counts from now on, for connections that come."""
        self.config = config
        self._acceptance.take_config(config)

    def acceptor(self, nursery: trio.Nursery) -> Callable[[socket.socket, TCPAddress], None]:
        """Return what a listener calls for each connection; it is looked at in `nursery`."""
        return self._acceptance.acceptor(nursery, self._pass_on)

    async def _pass_on(
        self, connection: socket.socket, address: TCPAddress, scope: trio.CancelScope
    ) -> None:
        """See where a connection belongs. Whatever the peer does, only this connection suffers."""
        worker: WorkerProcess | None = None
        seconds = self.config.handshake_timeout
        with isolated(log, "connection closed", address=str(address)), scope:
            try:
                with deadline(
                    seconds, f"the peer did not finish the TLS handshake within {seconds:g} s"
                ):
                    worker = await peek(connection, CLIENT_HELLO_BYTES, self._find)
            except* PeerError as group:
                for error in leaves(group):
                    self._log.closed(address, str(error))
            finally:
                if worker is None:
                    self._acceptance.handshakes.fail(scope)
                    connection.close()
                else:
                    self._acceptance.handshakes.remove(scope)  # the worker's from here on
                    worker.take(connection, address)

    def _find(self, first: bytes) -> WorkerProcess | None:
        """Return the worker that those first bytes lead to; None: there have to be more.

        Raises:
            PeerError: they are no TLS, or nobody is there.
        """
        dialect = detect_dialect(first)
        if dialect is None:
            return None
        if dialect is Dialect.PLAIN_TUNNEL:
            if len(first) < HEADER_BYTES + _UID_BYTES:
                return None
            uid = int.from_bytes(first[HEADER_BYTES : HEADER_BYTES + _UID_BYTES])
            return self.workers[(uid - 1) % len(self.workers)]
        if dialect is not Dialect.NATIVE:
            return self._first()
        hello = parse_client_hello(first)
        if hello is None:
            return None
        if hello.route is not None:
            for worker in self.workers:
                if worker.word == hello.route and worker.is_there:
                    return worker
        if ALPN not in hello.alpn:
            return self._first()
        chosen = min((each for each in self.workers if each.is_there), key=_load, default=None)
        if chosen is None:
            raise ConnectionLostError("no worker is there")
        chosen.expect_session()
        return chosen

    def _first(self) -> WorkerProcess:
        """Return the first worker, and no other one while it is away: a client's tunnels could not follow it there."""
        if not self.workers[0].is_there:
            raise ConnectionLostError("the worker that has clients without a route is away")
        return self.workers[0]


def _load(worker: WorkerProcess) -> int:
    return worker.load
