"""A server that is one process: it does itself what a parent has its workers for. Read `serve` from outside to inside: that is the order of start."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.log import get_logger
from trionat.server.admin.commands import LocalCommands
from trionat.server.admin.drain import Drain
from trionat.server.admin.kick import kick, kick_for_others
from trionat.server.admin.metrics import Metrics
from trionat.server.admin.server import AdminServer
from trionat.server.admission.authenticator import LocalAuthenticator
from trionat.server.admission.leases import Leases
from trionat.server.admission.queue import Admission, others_than
from trionat.server.control.acceptance import listen_for_clients
from trionat.server.control.connections import ConnectionHandler
from trionat.server.control.context import ServerContext
from trionat.server.events.hub import Hub
from trionat.server.proxies import ProxyListener
from trionat.server.registry.local import LocalRegistry
from trionat.server.sessions.registry import Sessions
from trionat.server.visitors.acceptor import VisitorAcceptor, listen_for_names
from trionat.signals import AutoResetEvent

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable, Collection

    from trionat.config.reload import Reloaded
    from trionat.config.server import ServerConfig
    from trionat.events import Ready
    from trionat.server.accounts.accounts import Accounts
    from trionat.server.accounts.name_owners import NameOwners
    from trionat.server.accounts.traffic import Traffic
    from trionat.server.admission.bans import Bans
    from trionat.server.change import ServerChange
    from trionat.server.cluster.member import Member
    from trionat.server.console.console import Console
    from trionat.server.listeners import Listeners
    from trionat.server.names.frontend import Frontend, Names
    from trionat.server.names.listener import PassOn
    from trionat.server.refusals import RefusalCounters
    from trionat.server.state_folder import StateFolder
    from trionat.server.tally import Tally
    from trionat.server.visitors.ports import PortPool
    from trionat.transport.descriptors import Descriptors
    from trionat.transport.listener import Listener

log = get_logger(__name__)


@attrs.define(eq=False, kw_only=True)
class SingleProcess:
    """See the module. The listeners belong to the caller.

    `ports` are the visit ports that `listeners` has; `names` and `owners` are there where services may have names, `member` where the server is a node of a cluster, `tally` where `/metrics` are on. `stopping` is the planned stop. `events` is told what happens.
    """

    config: ServerConfig
    ready: Ready
    accounts: Accounts
    traffic: Traffic
    bans: Bans
    refusals: RefusalCounters
    descriptors: Descriptors
    stopping: trio.Event
    tls: ssl.SSLContext
    state: StateFolder
    listeners: Listeners
    ports: PortPool
    member: Member | None = None
    names: Names | None = None
    owners: NameOwners | None = None
    console: Console | None = None
    tally: Tally | None = None
    reload: Callable[[], Awaitable[Reloaded]] | None = None
    events: Hub = attrs.field(factory=Hub)
    context: ServerContext = attrs.field(init=False)
    _acceptor: VisitorAcceptor = attrs.field(init=False)
    _connections: ConnectionHandler = attrs.field(init=False)
    _proxies: list[ProxyListener] = attrs.field(init=False, factory=lambda: [])
    _serving: dict[int, trio.CancelScope] = attrs.field(init=False, factory=lambda: {})
    _ports_changed: AutoResetEvent = attrs.field(init=False, factory=AutoResetEvent)
    _frontend: Frontend | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        node = None if self.member is None else self.member.node
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
        if self.names is not None:
            from trionat.server.names.frontend import Frontend  # noqa: PLC0415 - only there

            self._frontend = Frontend(
                config=self.config,
                names=self.names,
                pool=self.ports,
                acceptor=self._acceptor,
                refusals=self.refusals,
                shuts_out=self.bans.shuts_out,
                is_in_use=self.bans.is_in_use,
                leaving=self.context.admission.draining.is_set,
                passes_on=None if self.member is None else self._passes_on,
                lock=None if self.member is None else self.member.share(self.names.certificates),
                public=self.ready.public,
                events=self.events,
            )

    async def serve(self, admin_socket: socket.socket | None, when_up: Callable[[], None]) -> None:
        """Serve until cancelled, or until every session has ended after a planned stop. `when_up` is called when clients can come."""
        context, sessions = self.context, self.context.sessions
        metrics, member = Metrics(self.ready, context, self.descriptors), self.member
        metrics.quotas = self.accounts.quotas
        if self._frontend is not None:
            metrics.certificates = self._frontend.certificates
        draining = Drain(context, waits=member is not None)
        commands = LocalCommands(metrics, draining, None if member is None else member.handover)
        async with trio.open_nursery() as serving:
            if member is not None:
                self._join(member, draining, serving)
                await member.wait_joined(self.stopping)
            serving.start_soon(context.admission.run, name="admission")
            serving.start_soon(context.leases.expire_visitors, name="expire visitors")
            serving.start_soon(self.refusals.tell_regularly, name="tell refusals")
            serving.start_soon(self.accounts.watch, sessions.by_uid, name="watch accounts")
            serving.start_soon(self.traffic.flush_regularly, name="flush traffic")
            if self.owners is not None:
                touch = partial(self.owners.touch_regularly, self.ports.names_in_use)
                serving.start_soon(touch, name="names in use")
            serving.start_soon(metrics.count_rates, name="count rates")
            if self.tally is not None:
                serving.start_soon(self.tally.measure_lag, name="measure loop lag")
            serving.start_soon(draining.run, name="drain clients")
            if admin_socket is not None:
                admin = AdminServer(commands, self.reload)
                serving.start_soon(admin.serve, admin_socket, name="admin server")
            if self.console is not None:
                serving.start_soon(self.console.serve, commands, name="console")
            behind = listen_for_clients(
                serving,
                self.listeners,
                self._connections.acceptor(serving),
                config=self.config,
                refusals=self.refusals,
                descriptors=self.descriptors,
            )
            if behind is not None:
                self._proxies.append(behind)
            if self._frontend is not None:
                self._acceptor.named = self._frontend.start(serving)
            try:
                async with trio.open_nursery() as visiting:  # stops first
                    self._listen_for_visitors(visiting)
                    when_up()
                    await self.stopping.wait()
                    visiting.cancel_scope.cancel("the server stops")
            finally:
                for listener in self.listeners.of_visitors:
                    listener.close()
            log.info(
                "visit ports closed", sessions=len(sessions.by_uid), grace=self.config.drain_grace
            )
            until = trio.current_time() + self.config.drain_grace
            if member is not None:
                await member.handover.offer_at_once()
            context.admission.drain()
            await sessions.wait_none()  # each ends by itself within the grace
            if member is not None:
                await member.leave(until)
            serving.cancel_scope.cancel("the server stops")

    def _passes_on(self, name: str) -> PassOn | None:
        """Return what brings a connection to the node that has a name; None: it is here, or nowhere."""
        here = self.ports.names.get(name)
        if (here is not None and here.queue is not None) or not self._acceptor.is_elsewhere(name):
            return None
        return partial(self._acceptor.forward_named, name)

    def _listen_for_visitors(self, nursery: trio.Nursery) -> None:
        most = self.descriptors.for_visitors
        nursery.start_soon(self._serve_ports, nursery, name="visit ports")
        listen_for_names(nursery, self.listeners, self._acceptor, self.descriptors)
        if (proxies := self.listeners.proxy_visit) is not None:
            take = partial(self._acceptor.accept_behind_proxy, self.ports.ports)
            behind = ProxyListener.of(self.config, proxies, self.refusals)
            self._proxies.append(behind)
            serve = partial(behind.serve, take, self.descriptors, most=most)
            nursery.start_soon(serve, name=f"proxies at {proxies.address}")

    async def _serve_ports(self, nursery: trio.Nursery) -> None:
        """Accept on all visit ports in `nursery`, also on those that come with a reload."""
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
        """See `Server` in `server/reload.py`."""
        return ()

    def take_change(self, change: ServerChange) -> None:
        """See `Server` in `server/reload.py`."""
        context, config = self.context, change.config
        self.config = context.config = config
        self.tls = change.tls
        context.leases.take_config(config)
        if isinstance(registry := context.leases.registry, LocalRegistry):
            registry.table.slots = config.session_limit
        admission = context.admission
        elsewhere = (
            others_than(self.ready.public, config) if self.member is None else admission.elsewhere
        )
        admission.take_config(config, elsewhere)
        self._acceptor.take_config(config)
        self._connections.take_config(config, change.tls)
        if self._frontend is not None and change.acme is not None:
            self._frontend.take_config(config, change.acme)
        for proxies in self._proxies:
            proxies.take_config(config)
        for session in context.sessions.by_uid.values():
            session.config = attrs.evolve(session.config, drain_grace=config.drain_grace)
        self._change_ports(change.added, frozenset(change.removed))

    def _change_ports(self, added: tuple[Listener, ...], removed: frozenset[int]) -> None:
        """Ports have come, and go: who has one of these is told, comes again, and gets another one."""
        kept: list[Listener] = []
        for listener in self.listeners.visits:
            if (number := listener.address.port) not in removed:
                kept.append(listener)
                continue
            if (scope := self._serving.pop(number, None)) is not None:
                scope.cancel("the port was taken away")
            listener.close()
        self.listeners = attrs.evolve(self.listeners, visits=(*kept, *added))
        self.ports.remove(removed)
        self.ports.add(listener.address.port for listener in added)
        for lease in self.context.leases:
            if not removed.isdisjoint(lease.point_ids):
                lease.give_up("its visit port was taken away")
                lease.send_back("its visit port was taken away")
        self.context.leases.changed.notify()
        self._ports_changed.notify()

    def _join(self, member: Member, draining: Drain, nursery: trio.Nursery) -> None:
        """Be a node in `nursery`."""
        context = self.context

        def figures() -> tuple[int, int]:
            present = sum(lease.queue.present for lease in context.leases)
            return len(context.sessions.by_uid), present

        def kick_too(request: bytes) -> None:
            send_away = partial(kick, context, everywhere=False)
            nursery.start_soon(kick_for_others, send_away, request, name="kick")

        member.start(
            nursery,
            self.config,
            self.state,
            self._acceptor,
            self.descriptors,
            public=self.ready.public,
            others=others_than(self.ready.public, self.config),
            figures=figures,
            on_kick=kick_too,
            tell_others=draining.name_others,
        )
