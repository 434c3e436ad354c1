"""The visit ports of a server with workers: the parent opens them and keeps them, and lends their listening sockets with the claims.

So a port is never closed while the server runs. Where a worker dies, those who come wait in the kernel's queue for its successor. Where
nobody has a claim, the parent accepts, and closes who comes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.server.workers.purpose import VISIT_PORT
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
    is_guarded: bool = False
    guarding: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    changed: Signal = attrs.field(factory=Signal)
    accepting: trio.CancelScope | None = None


@attrs.define(eq=False)
class PortGuard:
    """See the module. Does not own the listeners, which are closed behind `remove` at the earliest. The ports are those of the pool, which nobody here has a queue for."""

    pool: PortPool
    acceptor: VisitorAcceptor
    descriptors: Descriptors
    _guarded: dict[int, _Guarded] = attrs.field(init=False, factory=lambda: {})
    _added: Signal = attrs.field(init=False, factory=Signal)

    def add(self, listeners: Iterable[Listener]) -> None:
        """There are more ports, which the pool has by now."""
        for listener in listeners:
            number = listener.address.port
            self._guarded[number] = _Guarded(self.pool.ports[number], listener)
        self._added.notify()

    def remove(self, numbers: Iterable[int]) -> None:
        """There are fewer: nobody is accepted there any more, and nobody gets these sockets."""
        for number in numbers:
            self._guarded.pop(number).guarding.cancel("the port was taken away")

    def note(self, numbers: Iterable[PointId]) -> None:
        """These ports were taken, or given back; names are nothing to it, nor are ports that were taken away."""
        for number in numbers:
            if isinstance(number, str) or (guarded := self._guarded.get(number)) is None:
                continue
            guarded.lent = not self.pool.is_free(number)
            if guarded.lent and guarded.accepting is not None:
                guarded.accepting.cancel("a worker accepts there from now on")
            guarded.changed.notify()

    def lend(self, claim: Claim, link: Link, numbers: Iterable[int] | None = None) -> None:
        """Pass the listening sockets of a claim on to the worker that has it: all, or these `numbers` of it."""
        for number in claim.ports if numbers is None else numbers:
            if (guarded := self._guarded.get(number)) is not None:
                link.lend(VISIT_PORT, guarded.listener.sock, f"{number} {claim.fence}")

    async def run(self) -> None:
        """Accept where nobody else does, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    for number, guarded in self._guarded.items():
                        if not guarded.is_guarded:
                            guarded.is_guarded, guarded.guarding = True, trio.CancelScope()
                            nursery.start_soon(self._guard, guarded, name=f"visit port {number}")
                    await self._added.wait()
        finally:
            for guarded in self._guarded.values():
                guarded.is_guarded = False

    async def _guard(self, guarded: _Guarded) -> None:
        listener = guarded.listener
        accept = partial(self.acceptor.accept, guarded.port, listener.address)
        with guarded.guarding:
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
                    if not guarded.guarding.cancel_called:
                        listener.rest()
