"""A server that is one process: it does itself what a parent has its workers for. Read `serve` from outside to inside: that is the order of start."""

from __future__ import annotations

import os
import signal
from contextlib import AsyncExitStack
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import StartupError
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
from trionat.server.listeners import CONSOLE
from trionat.server.proxies import ProxyListener
from trionat.server.registry.local import LocalRegistry
from trionat.server.sessions.registry import Sessions
from trionat.server.upgrade.upgrade import Upgraded, UpgradeError
from trionat.server.visitors.acceptor import VisitorAcceptor, listen_for_names
from trionat.signals import AutoResetEvent
from trionat.version import VERSION

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable, Collection, Iterator

    from trionat.config.reload import Reloaded
    from trionat.config.server import ServerConfig
    from trionat.events import Ready
    from trionat.server.accounts.accounts import Accounts
    from trionat.server.accounts.name_owners import NameOwners
    from trionat.server.accounts.traffic import Traffic
    from trionat.server.admin.commands import Commands
    from trionat.server.admission.bans import Bans
    from trionat.server.change import ServerChange
    from trionat.server.cluster.member import Member
    from trionat.server.console.console import Console
    from trionat.server.events.delivery import Delivery
    from trionat.server.listeners import Listeners
    from trionat.server.names.frontend import Frontend, Names
    from trionat.server.names.listener import NameListener, PassOn
    from trionat.server.refusals import RefusalCounters
    from trionat.server.state_folder import StateFolder
    from trionat.server.tally import Tally
    from trionat.server.upgrade.extension import Extensions
    from trionat.server.upgrade.predecessor import Predecessor
    from trionat.server.upgrade.successor import Successor
    from trionat.server.upgrade.upgrade import Upgrade
    from trionat.server.visitors.ports import PortPool
    from trionat.transport.descriptors import Descriptors
    from trionat.transport.listener import Listener

log = get_logger(__name__)

_TO_NAME: Final = 0.3
"""Seconds for visitors of names to say what they want before another process takes over. Chosen: some round trips. Nobody is accepted meanwhile."""

_TO_LET_GO: Final = 5.0
"""Seconds for all sessions to end before another process takes over: it takes milliseconds, and nobody is accepted meanwhile. Those that have not are cut off then."""

_LAST_ANSWERS: Final = 2.0
"""Seconds in which commands that were heard get their answers, when another process serves already, or the server stops."""


@attrs.define(eq=False, kw_only=True)
class SingleProcess:
    """See the module. The listeners belong to the caller.

    `ports` are the visit ports that `listeners` has; `names` and `owners` are there where services may have names, `member` where the server is a node of a cluster, `tally` where `/metrics` are on. `stopping` is the planned stop. `events` is told what happens.
    `delivery` is what becomes of events, where anybody hears of them. With `upgrade`, another process may take the place of this one, and with `predecessor` this one takes another's.
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
    upgrade: Upgrade | None = None
    predecessor: Predecessor | None = None
    delivery: Delivery | None = None
    context: ServerContext = attrs.field(init=False)
    _acceptor: VisitorAcceptor = attrs.field(init=False)
    _connections: ConnectionHandler = attrs.field(init=False)
    _proxies: list[ProxyListener] = attrs.field(init=False, factory=lambda: [])
    _serving: dict[int, trio.CancelScope] = attrs.field(init=False, factory=lambda: {})
    _ports_changed: AutoResetEvent = attrs.field(init=False, factory=AutoResetEvent)
    _frontend: Frontend | None = attrs.field(init=False, default=None)
    _named: NameListener | None = attrs.field(init=False, default=None)
    _extensions: Extensions | None = attrs.field(init=False, default=None)
    _is_up: bool = attrs.field(init=False, default=False)

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
                leaving=self._is_leaving,
                passes_on=None if self.member is None else self._passes_on,
                lock=None if self.member is None else self.member.share(self.names.certificates),
                public=self.ready.public,
                events=self.events,
            )

    async def serve(self, admin_socket: socket.socket | None, when_up: Callable[[], None]) -> None:
        """Serve until cancelled, or until every session has ended after a planned stop, or another process serves in place of this one. `when_up` is called when clients can come."""
        metrics = Metrics(self.ready, self.context, self.descriptors)
        metrics.quotas = self.accounts.quotas
        if self._frontend is not None:
            metrics.certificates = self._frontend.certificates
        try:
            if self.predecessor is not None:
                await self._inherit(self.predecessor)
            async with trio.open_nursery() as serving:
                await self._serve(serving, admin_socket, metrics, when_up)
                await self._extend(serving)
                serving.cancel_scope.cancel("the server stops")
        finally:
            for listener in self.listeners.of_visitors:  # some have come with a reload
                listener.close()
            if self.console is not None:
                self.console.door.listener.close()

    async def _serve(
        self,
        serving: trio.Nursery,
        admin_socket: socket.socket | None,
        metrics: Metrics,
        when_up: Callable[[], None],
    ) -> None:
        """The same; connections of visitors of names, and commands, are served in `serving`, and all else has ended when this returns."""
        context, sessions, member = self.context, self.context.sessions, self.member
        draining = Drain(context, waits=member is not None)
        commands = LocalCommands(metrics, draining, None if member is None else member.handover)
        async with trio.open_nursery() as besides:
            if member is not None:
                self._join(member, draining, besides)
                await member.wait_joined(self.stopping)
            besides.start_soon(context.admission.run, name="admission")
            besides.start_soon(context.leases.expire_visitors, name="expire visitors")
            besides.start_soon(self.refusals.tell_regularly, name="tell refusals")
            besides.start_soon(self.accounts.watch, sessions.by_uid, name="watch accounts")
            besides.start_soon(self.traffic.flush_regularly, name="flush traffic")
            if self.owners is not None:
                touch = partial(self.owners.touch_regularly, self.ports.names_in_use)
                besides.start_soon(touch, name="names in use")
            besides.start_soon(metrics.count_rates, name="count rates")
            if self.tally is not None:
                besides.start_soon(self.tally.measure_lag, name="measure loop lag")
            besides.start_soon(draining.run, name="drain clients")
            admin = AdminServer(commands, reload=self.reload, upgrade=self.upgrade)
            if self._frontend is not None:
                self._acceptor.named = self._named = self._frontend.start(serving, besides)
            listen = partial(self._listen, serving, admin, commands, admin_socket, when_up)
            while True:
                async with AsyncExitStack() as pause:
                    successor = await listen(pause)
                    if successor is None or await self._hand_over(successor):
                        break
            with trio.move_on_after(_LAST_ANSWERS):
                await admin.wait_answered()
            besides.cancel_scope.cancel("the server stops")

    async def _listen(
        self,
        serving: trio.Nursery,
        admin: AdminServer,
        commands: Commands,
        admin_socket: socket.socket | None,
        when_up: Callable[[], None],
        pause: AsyncExitStack,
    ) -> Successor | None:
        """Accept clients, visitors and commands; return None after a planned stop, or the process that is ready to go on.

        Then nobody is accepted, no session is up, and no traffic is written down until `pause` is closed, which also ends that process, unless it was let go.
        """
        async with trio.open_nursery() as hearing:
            if admin_socket is not None:
                hearing.start_soon(
                    partial(admin.accept, admin_socket, serving), name="admin server"
                )
            if self.console is not None:
                hearing.start_soon(self.console.serve, commands, name="console")
            self._proxies.clear()
            behind = listen_for_clients(
                hearing,
                self.listeners,
                self._connections.acceptor(hearing),
                config=self.config,
                refusals=self.refusals,
                descriptors=self.descriptors,
            )
            if behind is not None:
                self._proxies.append(behind)
            async with trio.open_nursery() as visiting:  # stops first
                self._listen_for_visitors(visiting)
                if self.predecessor is not None:
                    self._take(self.predecessor)
                    self.predecessor = None
                if not self._is_up:
                    self._is_up = True
                    when_up()
                successor = await self._wait_end(admin_socket, pause)
                visiting.cancel_scope.cancel("nobody is accepted any more")
            if successor is None:
                await self._stop()
            else:
                await self._wait_for_names()
                self._acceptor.rest()
                self.context.leases.is_at_rest = True
                with trio.move_on_after(_TO_LET_GO):  # noqa: ASYNC912 - where some are up
                    await self.context.sessions.let_go()
            hearing.cancel_scope.cancel("nobody is heard any more")
        return successor

    async def _stop(self) -> None:
        """Let no visitor in any more, and wait until each session has ended by itself, within the grace."""
        for listener in self.listeners.of_visitors:
            listener.close()
        sessions, grace = self.context.sessions, self.config.drain_grace
        log.info("visit ports closed", sessions=len(sessions.by_uid), grace=grace)
        until = trio.current_time() + grace
        if self.member is not None:
            await self.member.handover.offer_at_once()
        self.context.admission.drain()
        await sessions.wait_none()
        if self.member is not None:
            await self.member.leave(until)

    # -- upgrades ----------------------------------------------------------------------------------------------------

    async def _wait_end(
        self, admin_socket: socket.socket | None, pause: AsyncExitStack
    ) -> Successor | None:
        """Wait for the planned stop, or until a process is ready to go on. What is to be over before anybody notices is over then."""
        upgrade, successor = self.upgrade, None
        if upgrade is None:
            await self.stopping.wait()
            return None
        async with trio.open_nursery() as waiting:

            async def wait_stop() -> None:
                await self.stopping.wait()
                waiting.cancel_scope.cancel("the server stops")

            waiting.start_soon(wait_stop, name="wait for the stop")
            successor = await upgrade.wait_successor(
                self.state.folder, self._all_listeners, admin_socket
            )
            pause.push_async_callback(successor.end)
            await pause.enter_async_context(self.traffic.resting())
            if self.delivery is not None:
                await pause.enter_async_context(self.delivery.resting())
            waiting.cancel_scope.cancel("another process is ready")
        if not self.stopping.is_set():
            return successor
        upgrade.stop()
        return None

    async def _hand_over(self, successor: Successor) -> bool:
        """Give everything to the process that is ready to go on; tell whether it has taken it, else this one goes on."""
        assert self.upgrade is not None, "it has made the other one"  # noqa: S101 - for type checkers
        leases, began = self.context.leases, trio.current_time()
        next_visitor, next_session = (
            next(self._acceptor.numbers),
            next(self.context.sessions.uids),
        )
        self._acceptor.numbers = count(next_visitor)
        self.context.sessions.uids = count(next_session)
        from trionat.server.upgrade.estate import write_estate  # noqa: PLC0415 - seldom
        from trionat.server.upgrade.extension import Extensions  # noqa: PLC0415 - the same

        extensions = self._extensions = Extensions()
        estate = write_estate(leases, extensions.descriptor)
        try:
            await self.traffic.write_down()
            if self.delivery is not None:
                await self.delivery.write_down()
            await successor.give(
                {
                    **estate.values,
                    "next_visitor": next_visitor,
                    "next_session": next_session,
                    "bans": self.bans.write(),
                    "logins": {} if self.console is None else self.console.logins.write(),
                },
                estate.data,
                estate.descriptors,
            )
        except StartupError as error:
            if await successor.end():  # it has taken over in the very moment in which it was given up: it may have read what is not here
                for lease in leases:
                    lease.queue.reset_streams("the process that had taken it over was given up")
            leases.is_at_rest = False
            extensions.close()
            self._acceptor.go_on(handed_over=False)
            for _, listener in self._all_listeners():
                listener.rest()
            self.upgrade.fail(UpgradeError(str(error)))
            return False
        successor.let_go()
        self.traffic.is_elsewhere = self.events.is_elsewhere = True
        leases.let_go(extensions.visitors)
        self._acceptor.go_on(handed_over=True)
        for _, listener in self._all_listeners():
            listener.close()
        self.upgrade.succeed(
            Upgraded(
                pid=successor.pid,
                version=successor.version,
                old_pid=os.getpid(),
                old_version=VERSION,
                clients=estate.leases,
                visitors=estate.visitors,
                seconds=round(trio.current_time() - began, 3),
            )
        )
        if self.stopping.is_set():  # meant for whoever serves
            os.kill(successor.pid, signal.SIGTERM)
        return True

    async def _wait_for_names(self) -> None:
        """Let visitors of names get through whose handshake has begun, for a moment: what they want is known then."""
        if self._named is not None:
            with trio.move_on_after(_TO_NAME):  # noqa: ASYNC912 - where some are left
                while len(self._named.handshakes):  # noqa: ASYNC110 - for a moment, at an upgrade
                    await trio.sleep(0.01)

    async def _extend(self, serving: trio.Nursery) -> None:
        """Stay for those visitors whom another process serves, and whose connection cannot leave this one; at a stop for the grace at most."""
        extensions = self._extensions
        if extensions is None or not len(extensions):
            return
        log.info("upgrade: visitors whose TLS ends here are kept", visitors=len(extensions))
        async with trio.open_nursery() as nursery:

            async def wait_stop() -> None:
                await self.stopping.wait()
                await trio.sleep(self.config.drain_grace)
                nursery.cancel_scope.cancel("the server stops")

            nursery.start_soon(wait_stop, name="wait for the stop")
            await extensions.run()
            with trio.move_on_after(_LAST_ANSWERS):  # each has its end on its way  # noqa: ASYNC912 - the same
                while self._named is not None and serving.child_tasks:  # noqa: ASYNC110 - the same
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel("nobody is left")

    async def _inherit(self, predecessor: Predecessor) -> None:
        """Go on with what another process leaves, as far as that can be done before it is told."""
        from trionat.server.upgrade.estate import read_estate  # noqa: PLC0415 - seldom

        parcel = await predecessor.inherit()
        values = parcel.values
        await self.traffic.take_over()
        if self.delivery is not None:
            await self.delivery.take_over()
        self._acceptor.numbers = count(values["next_visitor"])
        self.context.sessions.uids = count(values["next_session"])
        self.bans.read(values.get("bans", {}))
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

    def _all_listeners(self) -> Iterator[tuple[str, Listener]]:
        """Go through all that is listened at, each with what it is for."""
        yield from self.listeners.by_role()
        if self.console is not None:
            yield CONSOLE, self.console.door.listener

    def _take(self, predecessor: Predecessor) -> None:
        """Tell the other process that this one serves. Nobody was accepted yet."""
        try:
            predecessor.take()
        except StartupError:
            self.context.leases.let_go()  # without a reset: they are the other one's
            raise

    def _is_leaving(self) -> bool:
        """Tell whether each answer is the last one on its connection."""
        return self.context.admission.draining.is_set() or self._acceptor.is_handed_over

    def _passes_on(self, name: str) -> PassOn | None:
        """Return what brings a connection to the node that has a name; None: it is here, or nowhere."""
        here = self.ports.names.get(name)
        if (here is not None and here.queue is not None) or not self._acceptor.is_elsewhere(name):
            return None
        return partial(self._acceptor.forward_named, name)

    def _listen_for_visitors(self, nursery: trio.Nursery) -> None:
        most = self.descriptors.for_visitors
        self._serving.clear()
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
