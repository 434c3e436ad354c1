"""The visit ports of a server with workers: the parent opens them and keeps them, and lends their listening sockets with the claims.

So a port is never closed while the server runs. Where a worker dies, those who come wait in the kernel's queue for its successor. Where
nobody has a claim, the parent accepts, and closes who comes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.server.workers.worker import VISIT_PORT
from trionat.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trionat.server.registry.claim import Claim
    from trionat.server.visitors.acceptor import VisitorAcceptor
    from trionat.server.visitors.ports import PointId, PortPool, VisitPort
    from trionat.server.workers.link import Link
    from trionat.transport.descriptors import Descriptors
    from trionat.transport.listener import Listener


@attrs.define(eq=False)
class _Guarded:
    port: VisitPort
    listener: Listener
    lent: bool = False
    changed: Signal = attrs.field(factory=Signal)
    accepting: trio.CancelScope | None = None


@attrs.define(eq=False)
class PortGuard:
    """See the module. Does not own the listeners. The ports are those of the pool, which nobody here has a queue for."""

    pool: PortPool
    listeners: Iterable[Listener]
    acceptor: VisitorAcceptor
    descriptors: Descriptors
    _guarded: dict[int, _Guarded] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._guarded = {
            listener.address.port: _Guarded(self.pool.ports[listener.address.port], listener)
            for listener in self.listeners
        }

    def note(self, numbers: Iterable[PointId]) -> None:
        """These ports were taken, or given back; names are nothing to it."""
        for number in numbers:
            if isinstance(number, str):
                continue
            guarded = self._guarded[number]
            guarded.lent = not self.pool.is_free(number)
            if guarded.lent and guarded.accepting is not None:
                guarded.accepting.cancel("a worker accepts there from now on")
            guarded.changed.notify()

    def lend(self, claim: Claim, link: Link, numbers: Iterable[int] | None = None) -> None:
        """Pass the listening sockets of a claim on to the worker that has it: all, or these `numbers` of it."""
        for number in claim.ports if numbers is None else numbers:
            sock = self._guarded[number].listener.sock
            link.lend(VISIT_PORT, sock, f"{number} {claim.fence}")

    async def run(self) -> None:
        """Accept where nobody else does, until cancelled."""
        async with trio.open_nursery() as nursery:
            for number, guarded in self._guarded.items():
                nursery.start_soon(self._guard, guarded, name=f"visit port {number}")

    async def _guard(self, guarded: _Guarded) -> None:
        listener = guarded.listener
        accept = partial(self.acceptor.accept, guarded.port, listener.address)
        while True:
            while guarded.lent:
                await guarded.changed.wait()
            try:
                with trio.CancelScope() as guarded.accepting:
                    await listener.serve(
                        accept, self.descriptors, most=self.descriptors.for_visitors
                    )
            finally:
                guarded.accepting = None
                listener.rest()
