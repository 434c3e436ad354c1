"""Opens the console, and serves it beside everything else: whatever goes wrong in it ends nothing but itself, and it starts anew."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, Final, Self

import attrs
import trio

from trionat.log import get_logger
from trionat.log.tail import keep_tail
from trionat.server.connection_log import ConnectionLog
from trionat.server.console.application import make_application
from trionat.server.console.context import Context
from trionat.server.console.directory import Directory
from trionat.server.console.guard import Guard
from trionat.server.console.health import Health
from trionat.server.console.live import Live
from trionat.server.console.logins import Logins
from trionat.server.console.sampler import Sampler
from trionat.server.console.site import page_routes
from trionat.server.console.tokens import StoredTokens
from trionat.server.console.trail import Trail
from trionat.server.exposition.exposition import Exposition
from trionat.transport.isolation import isolated
from trionat.transport.listener import Listener, look_up
from trionat.transport.web_server import WebServer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from contextlib import AsyncExitStack

    from trionat.address import TCPAddress
    from trionat.config.server import ServerConfig
    from trionat.events import Ready
    from trionat.log.tail import Tail
    from trionat.server.accounts.accounts import Accounts
    from trionat.server.accounts.traffic import Traffic
    from trionat.server.admin.commands import Commands
    from trionat.server.admission.bans import Bans
    from trionat.server.events.delivery import Delivery
    from trionat.server.refusals import RefusalCounters
    from trionat.server.state_folder import StateFolder
    from trionat.store.base import Store
    from trionat.transport.descriptors import Descriptors

log = get_logger(__name__)

_MOST_CONNECTIONS: Final = 1024
"""Of 200 browsers each has a stream, and up to five more for a moment. A connection takes some 40 KiB."""

_FIRST_WAIT: Final = 1.0
_LONGEST_WAIT: Final = 30.0
"""Seconds after a bug until it starts anew: each time twice as long, unless it has run for a while."""


@attrs.frozen(kw_only=True)
class Door:
    """Where the console listens. Without `tls` it is plain HTTP, on loopback only."""

    listener: Listener
    tls: ssl.SSLContext | None

    @classmethod
    async def open(
        cls,
        address: TCPAddress,
        tls: ssl.SSLContext,
        resources: AsyncExitStack,
        given: Listener | None = None,
    ) -> Self:
        """Listen, where it is not `given`; `resources` closes it. Anything but loopback gets TLS.

        Raises:
            StartupError: the address cannot be bound.
        """
        listener = given or Listener.open(address, host=await look_up(address))
        resources.callback(listener.close)
        return cls(listener=listener, tls=None if is_loopback(address.host) else tls)

    def url(self, public_host: str) -> str:
        """Return what to type into a browser."""
        address = self.listener.address
        host = public_host if address.is_any_host else address.host
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{address.port}/"


def is_loopback(host: str) -> bool:
    """Tell whether nobody outside of this machine gets to an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@attrs.define(eq=False, kw_only=True)
class Console:
    """See the module. `serve` serves; all that it knows of sessions it asks for by `Commands`.

    `sections` is the configuration by section, and `origins` where each key is from.
    """

    door: Door
    config: ServerConfig
    ready: Ready
    state: StateFolder
    store: Store
    accounts: Accounts
    traffic: Traffic
    bans: Bans
    refusals: RefusalCounters
    descriptors: Descriptors
    delivery: Delivery
    sections: Mapping[str, Any]
    origins: Mapping[str, str]
    _context: Context | None = attrs.field(init=False, default=None)
    _guard: Guard | None = attrs.field(init=False, default=None)
    _web_server: WebServer | None = attrs.field(init=False, default=None)
    logins: Logins = attrs.field(init=False, factory=Logins)

    def take_config(
        self, config: ServerConfig, tls: ssl.SSLContext, visit_ports: tuple[int, ...]
    ) -> None:
        """These count from now on, for requests and connections that come."""
        self.config = config
        self.ready = attrs.evolve(self.ready, visit_ports=visit_ports)
        if self.door.tls is not None:
            self.door = attrs.evolve(self.door, tls=tls)
            if self._web_server is not None:
                self._web_server.tls = tls
        if self._context is not None:
            self._context.config, self._context.ready = config, self.ready
        if self._guard is not None:
            self._guard.take_config(config, self.ready)

    async def serve(self, commands: Commands) -> None:
        """Serve until cancelled, which is when the server has stopped: how a planned stop goes can be seen. It is started anew after a bug.

        Whoever serves closes the listener then, so that nobody waits there while all else is put away.
        """
        with keep_tail() as tail:
            await self._keep(commands, tail)

    async def _keep(self, commands: Commands, tail: Tail) -> None:
        wait = _FIRST_WAIT
        while True:
            began = trio.current_time()
            with isolated(log, "the console has ended"):
                await self._run(commands, tail)
            if trio.current_time() - began > 2 * _LONGEST_WAIT:
                wait = _FIRST_WAIT
            log.error("the console starts anew", seconds=wait)
            await trio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    async def _run(self, commands: Commands, tail: Tail) -> None:
        sampler = Sampler(commands)
        health = Health(self.store)
        exposition = await Exposition.open(self.config, commands, health.store_answers)
        context = self._context = Context(
            config=self.config,
            ready=self.ready,
            state=self.state,
            store=self.store,
            accounts=self.accounts,
            traffic=self.traffic,
            bans=self.bans,
            commands=commands,
            logins=self.logins,
            sampler=sampler,
            live=Live(sampler),
            directory=Directory(self.store, self.traffic),
            health=health,
            exposition=exposition,
            tail=tail,
            sections=self.sections,
            origins=self.origins,
            delivery=self.delivery,
            tokens=StoredTokens(self.store),
            on_change=Trail(self.delivery.audit).note,
        )
        pages = await trio.to_thread.run_sync(page_routes)
        guard = self._guard = Guard.of(make_application(context, pages), self.config, self.ready)
        web_server = self._web_server = WebServer(
            name="console",
            app=guard,
            listener=self.door.listener,
            descriptors=self.descriptors,
            most=_MOST_CONNECTIONS,
            closed=ConnectionLog(self.refusals).closed,
            tls=self.door.tls,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sampler.run, name="look at the server")
            nursery.start_soon(context.live.run, name="tell what changes")
            nursery.start_soon(context.directory.run, name="look at the accounts")
            await web_server.serve()
