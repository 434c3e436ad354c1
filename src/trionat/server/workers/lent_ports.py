"""The visit ports of a worker: of those that it has claimed its parent lends it the listening sockets (`guard.py`), and it accepts visitors there."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.address import TCPAddress
from trionat.transport.listener import Listener

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from trionat.server.control.context import ServerContext
    from trionat.server.registry.claim import Claim
    from trionat.server.visitors.acceptor import VisitorAcceptor
    from trionat.server.workers.link import Link
    from trionat.transport.descriptors import Descriptors

_LEND_AGAIN: Final = 1.0
"""Seconds after which the parent is asked once more for a listening socket for which there was no descriptor."""


@attrs.define(eq=False)
class LentPort:
    """A visit port as this worker sees it: `claims` are the fences of its claims (a group has several), and `given_up` is the highest of those before.

    `spare` is its listening socket, which comes before or after the claim that it belongs to, the one with `spare_fence`. It may come before this worker has heard of the port.
    """

    number: int
    claims: set[int] = attrs.field(factory=lambda: set())
    given_up: int = 0
    spare: socket.socket | None = None
    spare_fence: int = 0
    serving: trio.CancelScope | None = None
    listener: Listener | None = None

    def drop_spare(self) -> None:
        """Close the spare socket, if there is one."""
        if self.spare is not None:
            self.spare.close()
            self.spare = None

    def stop(self, reason: str) -> None:
        """Accept nobody here any more; the socket is closed when this returns."""
        if self.serving is not None:
            self.serving.cancel(reason)
            self.serving = None
        if self.listener is not None:
            self.listener.close()
            self.listener = None


@attrs.define(eq=False, kw_only=True)
class LentPorts:
    """See the module. `nursery` is to be set before anything else is called: visitors are accepted in its tasks.

    While it `is_held`, nobody is accepted, and nothing expires: another server may have all that is here as well.
    """

    link: Link
    context: ServerContext
    acceptor: VisitorAcceptor
    descriptors: Descriptors
    is_held: bool
    nursery: trio.Nursery = attrs.field(init=False)
    _by_number: dict[int, LentPort] = attrs.field(init=False, factory=lambda: {})

    def hold(self, claim: Claim) -> None:
        """Its ports are claimed from now on."""
        for number in claim.ports:
            port = self._find(number)
            port.claims.add(claim.fence)
            self._serve_port(port)

    def let_go(self, claim: Claim) -> None:
        """They are not any more; nobody is accepted at those that no other claim has."""
        for number in claim.ports:
            port = self._find(number)
            port.claims.discard(claim.fence)
            port.given_up = max(port.given_up, claim.fence)
            if port.claims:
                continue
            port.stop("the port was given back")
            if port.spare_fence <= port.given_up:
                port.drop_spare()

    def take(self, number: int, fence: int, sock: socket.socket) -> None:
        """A listening socket has come, for the claim with that fence."""
        port = self._find(number)
        if port.serving is not None or (fence <= port.given_up and fence not in port.claims):
            sock.close()  # of a claim that was given up before it came
            return
        port.drop_spare()
        port.spare, port.spare_fence = sock, fence
        self._serve_port(port)

    def miss(self, number: int, fence: int) -> None:
        """A listening socket has come for which this process has no descriptor."""
        if self._may_accept():
            port = self._find(number)
            self.nursery.start_soon(self._ask_again, port, fence, name=f"ask for port {number}")

    def open(self) -> None:
        """Accept visitors from now on: this is the process that serves."""
        self.is_held = self.context.leases.is_at_rest = False
        for port in self._by_number.values():
            self._serve_port(port)

    def rest(self) -> None:
        """Accept nobody until `open`, or for good: another process is about to go on. The sockets stay with the parent."""
        self.is_held = True
        for port in self._by_number.values():
            port.stop("another process is about to go on")

    def close(self) -> None:
        """Close the sockets of ports at which nobody accepts; those of the others are closed with their tasks."""
        for port in self._by_number.values():
            port.drop_spare()

    def change(self, numbers: frozenset[int]) -> None:
        """These are the visit ports from now on. Nobody is accepted at the others any more, and who has one of them is told, comes again, and gets another one."""
        leases = self.context.leases
        before = leases.ports.ports.keys()
        removed, added = before - numbers, numbers - before
        leases.ports.remove(removed)
        leases.ports.add(added)
        for number in removed:
            port = self._find(number)
            port.stop("the port was taken away")
            port.drop_spare()
        leases.take_away(removed)

    def _find(self, number: int) -> LentPort:
        return self._by_number.setdefault(number, LentPort(number))

    def _may_accept(self) -> bool:
        return not (self.context.stopping.is_set() or self.is_held)

    async def _ask_again(self, port: LentPort, fence: int) -> None:
        """A port without its socket would have nobody who accepts: ask for it until it has come."""
        await trio.sleep(_LEND_AGAIN)
        if fence in port.claims and port.serving is None:
            self.link.post({"what": "lend", "port": port.number, "fence": fence})

    def _serve_port(self, port: LentPort) -> None:
        """Accept visitors at a port that is claimed, as soon as its socket is there. One that was taken away meanwhile is closed."""
        if port.spare is None or port.spare_fence not in port.claims:
            return
        visit_port = self.context.leases.ports.ports.get(port.number)
        if visit_port is None:
            port.drop_spare()
        elif self._may_accept():
            address = TCPAddress(self.context.config.effective_visit_host, port.number)
            port.listener, port.spare = Listener(port.spare, address), None
            port.serving = trio.CancelScope()
            accept = partial(self.acceptor.accept, visit_port, address)
            self.nursery.start_soon(
                self._accept_visitors,
                *(port.listener, accept, port.serving),
                name=f"visit port {port.number}",
            )

    async def _accept_visitors(
        self,
        listener: Listener,
        accept: Callable[[socket.socket, TCPAddress], None],
        scope: trio.CancelScope,
    ) -> None:
        try:
            with scope:
                await listener.serve(accept, self.descriptors, most=self.descriptors.for_visitors)
        finally:
            listener.close()
