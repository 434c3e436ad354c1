"""The process that serves: what a server of one process and the parent of several do alike.

They accept the same connections, in the same order of start and stop, and give their place to another process in the same way. What becomes of a connection is for
the two kinds, `SingleProcess` and `Parent`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.server.admin.kick import kick_for_others
from trionat.server.admission.queue import others_than
from trionat.server.control.acceptance import listen_for_clients
from trionat.server.events.hub import Hub
from trionat.server.listeners import CONSOLE
from trionat.server.proxies import ProxyListener
from trionat.server.state_folder import StateFolder
from trionat.server.upgrade.succession import Succession
from trionat.server.visitors.acceptor import listen_for_names

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping

    from trionat.address import TCPAddress
    from trionat.config.reload import Reloaded
    from trionat.config.server import ServerConfig
    from trionat.events import Ready
    from trionat.server.accounts.accounts import Accounts, LiveSession
    from trionat.server.accounts.name_owners import NameOwners
    from trionat.server.accounts.traffic import Traffic
    from trionat.server.admin.messages import Kicked, KickUser
    from trionat.server.admin.server import AdminServer
    from trionat.server.admission.bans import Bans
    from trionat.server.change import ServerChange
    from trionat.server.cluster.member import Member
    from trionat.server.cluster.node import Node
    from trionat.server.cluster.node_link import Deliver
    from trionat.server.console.console import Console
    from trionat.server.events.delivery import Delivery
    from trionat.server.listeners import Listeners
    from trionat.server.names.frontend import Frontend, Names
    from trionat.server.names.listener import NameListener, PassOn
    from trionat.server.refusals import RefusalCounters
    from trionat.server.state_folder import State
    from trionat.server.tally import Tally
    from trionat.server.upgrade.predecessor import Predecessor
    from trionat.server.upgrade.successor import Successor
    from trionat.server.upgrade.upgrade import Upgrade
    from trionat.server.visitors.acceptor import VisitorAcceptor
    from trionat.server.visitors.ports import PortPool
    from trionat.transport.descriptors import Descriptors
    from trionat.transport.listener import Listener

_LAST_ANSWERS: Final = 2.0
"""Seconds in which commands that were heard get their answers, when another process serves already, or the server stops."""


@attrs.define(eq=False, kw_only=True)
class ServingProcess(ABC):
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
    state: State
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
    _acceptor: VisitorAcceptor = attrs.field(init=False)
    _proxies: list[ProxyListener] = attrs.field(init=False, factory=lambda: [])
    _frontend: Frontend | None = attrs.field(init=False, default=None)
    _named: NameListener | None = attrs.field(init=False, default=None)
    _is_up: bool = attrs.field(init=False, default=False)
    _succession: Succession = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._succession = Succession(
            upgrade=self.upgrade,
            folder=self.state.folder if isinstance(self.state, StateFolder) else None,
            stopping=self.stopping,
            traffic=self.traffic,
            delivery=self.delivery,
            bans=self.bans,
            events=self.events,
            listeners=self._all_listeners,
        )

    @property
    def node(self) -> Node | None:
        """This server in its cluster."""
        return None if self.member is None else self.member.node

    async def serve(self, admin_socket: socket.socket | None, when_up: Callable[[], None]) -> None:
        """Serve until everything has ended after a planned stop, or another process serves in place of this one, or cancelled. `when_up` is called when clients can come.

        Raises:
            StartupError: it does not come up.
        """
        try:
            async with trio.open_nursery() as serving:
                await self._serve(serving, admin_socket, when_up)
                serving.cancel_scope.cancel("the server stops")
        finally:
            for listener in self.listeners.of_visitors:  # some have come with a reload
                listener.close()
            if self.console is not None:
                self.console.door.listener.close()

    # -- what the two kinds do in their own ways ---------------------------------------------------------------------

    @abstractmethod
    async def _serve(
        self,
        serving: trio.Nursery,
        admin_socket: socket.socket | None,
        when_up: Callable[[], None],
    ) -> None:
        """The same as `serve`; connections of visitors of names, and commands, are served in `serving`, and all else has ended when this returns."""

    @abstractmethod
    def _accept_clients(self, nursery: trio.Nursery) -> Callable[[socket.socket, TCPAddress], None]:
        """Return what takes a connection to the control or tunnel port over, in `nursery`."""

    @abstractmethod
    async def _serve_ports(self, nursery: trio.Nursery) -> None:
        """Accept on all visit ports in `nursery`, also on those that come with a reload."""

    @abstractmethod
    def _take_visitor(
        self, connection: socket.socket, source: TCPAddress, destination: TCPAddress
    ) -> None:
        """Take over a visitor whose header a proxy has sent."""

    @abstractmethod
    def _passes_on(self, name: str) -> PassOn | None:
        """Return what brings a connection to the process, or node, that has a name; None: it is here, or nowhere."""

    @abstractmethod
    def is_leaving(self) -> bool:
        """Tell whether this process stops, or another one has taken over."""

    @abstractmethod
    async def _stop(self) -> None:
        """Wait until each session has ended by itself, within the grace. No visitor is let in any more."""

    @abstractmethod
    async def _rest(self) -> None:
        """Have nothing under way that is to be handed over. Nobody is accepted any more."""

    @abstractmethod
    async def _hand_over(self, successor: Successor) -> bool:
        """Give everything to the process that is ready to go on; tell whether it has taken it, else this one goes on."""

    @abstractmethod
    def _take(self, predecessor: Predecessor) -> None:
        """Tell the other process that this one serves. Nobody was accepted yet.

        Raises:
            StartupError: the other one goes on.
        """

    @abstractmethod
    def needs_restart(self) -> Collection[str]:
        """Return the paths of keys that cannot change while this kind of server runs."""

    def take_change(self, change: ServerChange) -> None:
        """Run by another configuration from now on. No checkpoint."""
        config = self.config = change.config
        self._acceptor.take_config(config)
        if self._frontend is not None and change.acme is not None:
            self._frontend.take_config(config, change.acme)
        for proxies in self._proxies:
            proxies.take_config(config)

    # -- what they do alike ------------------------------------------------------------------------------------------

    def _open_frontend(self, *, passes_on: bool) -> None:
        """Make what serves names, where services may have any. `passes_on`: others may have some of them."""
        if self.names is None:
            return
        from trionat.server.names.frontend import Frontend  # noqa: PLC0415 - only there

        self._frontend = Frontend(
            config=self.config,
            names=self.names,
            pool=self.ports,
            acceptor=self._acceptor,
            refusals=self.refusals,
            shuts_out=self.bans.shuts_out,
            is_in_use=self.bans.is_in_use,
            leaving=self.is_leaving,
            passes_on=self._passes_on if passes_on else None,
            lock=None if self.member is None else self.member.share(self.names.certificates),
            public=self.ready.public,
            events=self.events,
        )

    def _join(
        self,
        member: Member,
        nursery: trio.Nursery,
        *,
        figures: Callable[[], tuple[int, int]],
        kick_here: Callable[[KickUser], Awaitable[Kicked]],
        tell_others: Callable[[tuple[TCPAddress, ...]], None],
        deliver: Deliver | None = None,
    ) -> None:
        """Be a node in `nursery`. `kick_here` kicks whom another node was asked to kick; the rest is as for `Member.start`."""
        assert isinstance(self.state, StateFolder), "a node has one"  # noqa: S101 - for type checkers

        def kick_too(request: bytes) -> None:
            nursery.start_soon(kick_for_others, kick_here, request, name="kick")

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
            tell_others=tell_others,
            deliver=deliver,
        )

    def _start_besides(
        self,
        besides: trio.Nursery,
        serving: trio.Nursery,
        sessions: Mapping[int, LiveSession],
    ) -> None:
        """Start in `besides` what goes on all the while; connections of visitors of names are served in `serving`."""
        besides.start_soon(self.refusals.tell_regularly, name="tell refusals")
        besides.start_soon(self.accounts.watch, sessions, name="watch accounts")
        besides.start_soon(self.traffic.flush_regularly, name="flush traffic")
        if self.tally is not None:
            besides.start_soon(self.tally.measure_lag, name="measure loop lag")
        if self.owners is not None:
            touch = partial(self.owners.touch_regularly, self.ports.names_in_use)
            besides.start_soon(touch, name="names in use")
        if self._frontend is not None:
            self._acceptor.named = self._named = self._frontend.start(serving, besides)

    async def _accept_until_end(
        self,
        serving: trio.Nursery,
        admin: AdminServer,
        admin_socket: socket.socket | None,
        when_up: Callable[[], None],
    ) -> None:
        """Accept whoever comes until this process has stopped as planned, or another one has taken over. Where one has not, all goes on here."""
        while True:
            async with AsyncExitStack() as pause:
                successor = await self._accept(serving, admin, admin_socket, when_up, pause)
                if successor is None or await self._hand_over(successor):
                    return

    async def _accept(
        self,
        serving: trio.Nursery,
        admin: AdminServer,
        admin_socket: socket.socket | None,
        when_up: Callable[[], None],
        pause: AsyncExitStack,
    ) -> Successor | None:
        """Accept clients, visitors and commands; return None after a planned stop, or the process that is ready to go on.

        Then nobody is accepted, and no traffic is written down until `pause` is closed, which also ends that process, unless it was let go.
        """
        async with trio.open_nursery() as hearing:
            if admin_socket is not None:
                hearing.start_soon(
                    partial(admin.accept, admin_socket, serving), name="admin server"
                )
            if self.console is not None:
                hearing.start_soon(self.console.serve, admin.commands, name="console")
            self._listen_for_clients(
                hearing
            )  # also while visitors may finish: they may need tunnels
            async with trio.open_nursery() as visiting:  # stops first
                self._listen_for_visitors(visiting)
                if self.predecessor is not None:
                    self._take(self.predecessor)
                    self.predecessor = None
                if not self._is_up:
                    self._is_up = True
                    when_up()
                successor = await self._succession.wait_end(admin_socket, pause)
                visiting.cancel_scope.cancel("nobody is accepted any more")
            if successor is None:
                for listener in self.listeners.of_visitors:
                    listener.close()
                await self._stop()
            else:
                if self._named is not None:
                    await self._named.wait_known()
                self._acceptor.rest()
                await self._rest()
            hearing.cancel_scope.cancel("nobody is heard any more")
        return successor

    def _listen_for_clients(self, nursery: trio.Nursery) -> None:
        self._proxies.clear()
        behind = listen_for_clients(
            nursery,
            self.listeners,
            self._accept_clients(nursery),
            config=self.config,
            refusals=self.refusals,
            descriptors=self.descriptors,
        )
        if behind is not None:
            self._proxies.append(behind)

    def _listen_for_visitors(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._serve_ports, nursery, name="visit ports")
        listen_for_names(nursery, self.listeners, self._acceptor, self.descriptors)
        if (proxies := self.listeners.proxy_visit) is not None:
            behind = ProxyListener.of(self.config, proxies, self.refusals)
            self._proxies.append(behind)
            most = self.descriptors.for_visitors
            serve = partial(behind.serve, self._take_visitor, self.descriptors, most=most)
            nursery.start_soon(serve, name=f"proxies at {proxies.address}")

    async def _wait_answered(self, admin: AdminServer) -> None:
        """Wait until commands that were heard have their answers, but not for long."""
        with trio.move_on_after(_LAST_ANSWERS):
            await admin.wait_answered()

    def _all_listeners(self) -> Iterator[tuple[str, Listener]]:
        """Go through all that is listened at, each with what it is for."""
        yield from self.listeners.by_role()
        if self.console is not None:
            yield CONSOLE, self.console.door.listener
