"""A server that is one process: it does itself what a parent has its workers for. Read `_serve` from outside to inside: that is the order of start."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.errors import StartupError
from trionat.log import get_logger
from trionat.server.admin.commands import LocalCommands
from trionat.server.admin.drain import Drain
from trionat.server.admin.kick import kick
from trionat.server.admin.metrics import Metrics
from trionat.server.admin.server import AdminServer
from trionat.server.admission.authenticator import LocalAuthenticator
from trionat.server.admission.leases import Leases
from trionat.server.admission.queue import Admission, others_than
from trionat.server.control.connections import ConnectionHandler
from trionat.server.control.context import ServerContext
from trionat.server.registry.local import LocalRegistry
from trionat.server.serving_process import ServingProcess
from trionat.server.sessions.registry import TO_LET_GO, Sessions
from trionat.server.visitors.acceptor import VisitorAcceptor
from trionat.signals import AutoResetEvent

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Collection

    from trionat.address import TCPAddress
    from trionat.server.change import ServerChange
    from trionat.server.names.listener import PassOn
    from trionat.server.upgrade.extension import Extensions
    from trionat.server.upgrade.predecessor import Predecessor
    from trionat.server.upgrade.successor import Successor
    from trionat.transport.listener import Listener

log = get_logger(__name__)


@attrs.define(eq=False, kw_only=True)
class SingleProcess(ServingProcess):
    """See the module, and `ServingProcess`."""

    tls: ssl.SSLContext
    context: ServerContext = attrs.field(init=False)
    _connections: ConnectionHandler = attrs.field(init=False)
    _serving: dict[int, trio.CancelScope] = attrs.field(init=False, factory=lambda: {})
    _ports_changed: AutoResetEvent = attrs.field(init=False, factory=AutoResetEvent)
    _extensions: Extensions | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        node = self.node
        leases = (
            Leases(self.config, self.ports, self.refusals)
            if node is None
            else Leases(self.config, self.ports, self.refusals, registry=node.registry)
        )
        self.context = ServerContext(
            config=self.config,
            authenticator=LocalAuthenticator(self.accounts, self.bans),
            refusals=self.refusals,
            bans=self.bans,
            leases=leases,
            admission=Admission(self.config, leases, others_than(self.ready.public, self.config)),
            sessions=Sessions(self.traffic.accounted, tally=self.tally, events=self.events),
            stopping=self.stopping,
            public_host=self.ready.public.host,
            route=None if node is None else node.route,
            node=node,
            tally=self.tally,
        )
        self._acceptor = VisitorAcceptor(self.config, self.refusals, tally=self.tally)
        self._connections = ConnectionHandler(self.context, self.tls)
        leases.pass_on, leases.owners = self._acceptor.pass_on, self.owners
        self._open_frontend(passes_on=self.member is not None)

    async def _serve(
        self,
        serving: trio.Nursery,
        admin_socket: socket.socket | None,
        when_up: Callable[[], None],
    ) -> None:
        """See `ServingProcess`."""
        context, sessions, member = self.context, self.context.sessions, self.member
        if self.predecessor is not None:
            await self._inherit(self.predecessor)
        metrics = Metrics(self.ready, context, self.descriptors)
        metrics.quotas = self.accounts.quotas
        if self._frontend is not None:
            metrics.certificates = self._frontend.certificates
        draining = Drain(context, waits=member is not None)
        commands = LocalCommands(metrics, draining, None if member is None else member.handover)
        admin = AdminServer(commands, reload=self.reload, upgrade=self.upgrade)
        async with trio.open_nursery() as besides:
            if member is not None:
                self._join(
                    member,
                    besides,
                    figures=self._figures,
                    kick_here=partial(kick, context, everywhere=False),
                    tell_others=draining.name_others,
                )
                await member.wait_joined(self.stopping)
            besides.start_soon(context.admission.run, name="admission")
            besides.start_soon(context.leases.expire_visitors, name="expire visitors")
            besides.start_soon(metrics.count_rates, name="count rates")
            besides.start_soon(draining.run, name="drain clients")
            self._start_besides(besides, serving, sessions.by_uid)
            await self._accept_until_end(serving, admin, admin_socket, when_up)
            await self._wait_answered(admin)
            besides.cancel_scope.cancel("the server stops")
        await self._extend(serving)

    def _accept_clients(self, nursery: trio.Nursery) -> Callable[[socket.socket, TCPAddress], None]:
        """See `ServingProcess`."""
        return self._connections.acceptor(nursery)

    async def _stop(self) -> None:
        """See `ServingProcess`."""
        sessions, grace = self.context.sessions, self.config.drain_grace
        log.info("visit ports closed", sessions=len(sessions.by_uid), grace=grace)
        until = trio.current_time() + grace
        if self.member is not None:
            await self.member.handover.offer_at_once()
        self.context.admission.drain()
        await sessions.wait_none()
        if self.member is not None:
            await self.member.leave(until)

    async def _rest(self) -> None:
        """See `ServingProcess`: no session is up any more."""
        self.context.leases.is_at_rest = True
        with trio.move_on_after(TO_LET_GO):  # noqa: ASYNC912 - where some are up
            await self.context.sessions.let_go()

    # -- upgrades ----------------------------------------------------------------------------------------------------

    async def _hand_over(self, successor: Successor) -> bool:
        """See `ServingProcess`."""
        from trionat.server.upgrade.estate import write_estate  # noqa: PLC0415 - seldom
        from trionat.server.upgrade.extension import Extensions  # noqa: PLC0415 - the same

        leases, began = self.context.leases, trio.current_time()
        next_visitor, next_session = (
            next(self._acceptor.numbers),
            next(self.context.sessions.uids),
        )
        self._acceptor.numbers = count(next_visitor)
        self.context.sessions.uids = count(next_session)
        extensions = self._extensions = Extensions()
        estate = write_estate(leases, extensions.descriptor)
        values = {
            "next_visitor": next_visitor,
            "next_session": next_session,
            "logins": {} if self.console is None else self.console.logins.write(),
        }
        try:
            await self._succession.give(successor, estate, values)
        except StartupError as error:
            if await self._succession.fail(successor, error):
                for lease in leases:
                    lease.queue.reset_streams("the process that had taken it over was given up")
            leases.is_at_rest = False
            extensions.close()
            self._acceptor.go_on(handed_over=False)
            return False
        self._succession.succeed(successor, estate, trio.current_time() - began)
        leases.let_go(extensions.visitors)
        self._acceptor.go_on(handed_over=True)
        return True

    async def _extend(self, serving: trio.Nursery) -> None:
        """Stay for those visitors whom another process serves, and whose connection cannot leave this one; at a stop for the grace at most."""
        extensions = self._extensions
        if extensions is not None and len(extensions):
            await extensions.keep(serving, self.stopping, self.config.drain_grace)

    async def _inherit(self, predecessor: Predecessor) -> None:
        """Go on with what another process leaves, as far as that can be done before it is told."""
        from trionat.server.upgrade.estate import read_estate  # noqa: PLC0415 - seldom

        parcel = await self._succession.inherit(predecessor)
        values = parcel.values
        self._acceptor.numbers = count(values["next_visitor"])
        self.context.sessions.uids = count(values["next_session"])
        if self.console is not None:
            self.console.logins.read(values.get("logins", {}))
        clients, visitors = await read_estate(parcel, self.context.leases, self._acceptor)
        log.info(
            "taken over from another process",
            pid=predecessor.pid,
            version=predecessor.version,
            clients=clients,
            visitors=visitors,
        )

    def _take(self, predecessor: Predecessor) -> None:
        """See `ServingProcess`."""
        try:
            predecessor.take()
        except StartupError:
            self.context.leases.let_go()  # without a reset: they are the other one's
            raise

    # -- visitors ----------------------------------------------------------------------------------------------------

    def is_leaving(self) -> bool:
        """See `ServingProcess`: each answer is the last one on its connection then."""
        return self.context.admission.draining.is_set() or self._acceptor.is_handed_over

    def _passes_on(self, name: str) -> PassOn | None:
        """See `ServingProcess`."""
        here = self.ports.names.get(name)
        if (here is not None and here.queue is not None) or not self._acceptor.is_elsewhere(name):
            return None
        return partial(self._acceptor.forward_named, name)

    def _take_visitor(
        self, connection: socket.socket, source: TCPAddress, destination: TCPAddress
    ) -> None:
        """See `ServingProcess`."""
        self._acceptor.accept_behind_proxy(self.ports.ports, connection, source, destination)

    async def _serve_ports(self, nursery: trio.Nursery) -> None:
        """See `ServingProcess`."""
        self._serving.clear()
        while True:
            for listener in self.listeners.visits:
                number = listener.address.port
                if number not in self._serving:
                    scope = self._serving[number] = trio.CancelScope()
                    nursery.start_soon(
                        self._serve_port, listener, scope, name=f"visit port {number}"
                    )
            await self._ports_changed.wait()

    async def _serve_port(self, listener: Listener, scope: trio.CancelScope) -> None:
        port, most = self.ports.ports[listener.address.port], self.descriptors.for_visitors
        with scope:
            accept = partial(self._acceptor.accept, port, listener.address)
            await listener.serve(accept, self.descriptors, most=most)

    # -- a reload ----------------------------------------------------------------------------------------------------

    def needs_restart(self) -> Collection[str]:
        """See `ServingProcess`."""
        return ()

    def take_change(self, change: ServerChange) -> None:
        """See `ServingProcess`."""
        super().take_change(change)
        context, config = self.context, change.config
        context.config = config
        self.tls = change.tls
        context.leases.take_config(config)
        if isinstance(registry := context.leases.registry, LocalRegistry):
            registry.table.slots = config.session_limit
        admission = context.admission
        elsewhere = (
            others_than(self.ready.public, config) if self.member is None else admission.elsewhere
        )
        admission.take_config(config, elsewhere)
        self._connections.take_config(config, change.tls)
        for session in context.sessions.by_uid.values():
            session.config = attrs.evolve(session.config, drain_grace=config.drain_grace)
        self._change_ports(change.added, frozenset(change.removed))

    def _change_ports(self, added: tuple[Listener, ...], removed: frozenset[int]) -> None:
        """Ports have come, and go: who has one of these is told, comes again, and gets another one."""
        for number in removed:
            if (scope := self._serving.pop(number, None)) is not None:
                scope.cancel("the port was taken away")
        self.listeners = self.listeners.with_visits(added, removed)
        self.ports.remove(removed)
        self.ports.add(listener.address.port for listener in added)
        self.context.leases.take_away(removed)
        self._ports_changed.notify()

    def _figures(self) -> tuple[int, int]:
        present = sum(lease.queue.present for lease in self.context.leases)
        return len(self.context.sessions.by_uid), present
