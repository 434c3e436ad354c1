"""The client as a whole: one session after another, for as long as it is wanted."""

from __future__ import annotations

import hashlib
import random
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.client.forwarder import Forwarder
from trionat.client.legacy.dialer import LegacyDialer
from trionat.client.legacy.session import LegacySession
from trionat.client.native.dialer import ServerDialer, find_server
from trionat.client.native.expose import check_services
from trionat.client.native.known_servers import load_identity
from trionat.client.native.session import NativeSession
from trionat.client.session import Session, SessionOverError
from trionat.config.client import NATIVE
from trionat.config.sections import AuthConfig
from trionat.errors import IdentityError, PeerError, RefusedError, StartupError
from trionat.events import ClientEvent, Connected, Disconnected, PublicService
from trionat.log import get_logger, unbind_context
from trionat.protocol.messages import CloseCode, RefusalCode
from trionat.transport.isolation import leaves

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from trionat.config.sections import ClientConfig, Service

log = get_logger(__name__)

# The first try after a loss comes at once, the next after half a second, then twice as long each time, never more than 5 s
# apart; a random half of it is taken off, so that 500 clients do not come back in one moment. The time that a try hung counts: it
# was asking all the while, and who waits on top of it would be late when the network is back. A session that was up for a
# second counts as one that had worked: however often it is lost, that makes no more than a try a second.
_FIRST_DELAY: Final = 0.5
_LONGEST_DELAY: Final = 5.0
_WORKED_AFTER: Final = 1.0

_FINAL_REFUSALS: Final = frozenset(
    {
        RefusalCode.AUTH_FAILED,
        RefusalCode.ACCOUNT_EXPIRED,
        RefusalCode.PORT_NOT_OFFERED,
        RefusalCode.TOO_MANY_SERVICES,
        RefusalCode.UNSUPPORTED_VERSION,
        CloseCode.EVICTED,
        CloseCode.KICKED,
    }
)
_FINAL_ENDS: Final = frozenset(
    {
        CloseCode.EVICTED,
        CloseCode.KICKED,
        CloseCode.ACCOUNT_EXPIRED,
        CloseCode.ACCOUNT_REMOVED,
    }
)


@attrs.define(eq=False)
class Client:
    """Makes local services reachable until it is cancelled or `stopping` is set.

    `services` are those that are reachable now, empty while there is no session; `on_event` is called with everything that
    happens, on the Trio thread, and must return at once.
    """

    config: ClientConfig
    auth: AuthConfig = attrs.field(factory=AuthConfig)
    on_event: Callable[[ClientEvent], None] = attrs.field(default=lambda _: None)
    stopping: trio.Event = attrs.field(factory=trio.Event)
    services: tuple[PublicService, ...] = attrs.field(init=False, default=())
    _ports: tuple[int | None, ...] = attrs.field(init=False, default=())
    _connected: trio.Event = attrs.field(init=False, factory=trio.Event)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold a session, and get a new one whenever it is lost; `task_status` is told when the first one is up.

        A server that is not there, or full, is tried again for ever, unless `config.once`. Returns after a planned stop.

        Raises:
            ConfigError: no server, no service, a ticket that is none, or what does not go together with the dialect.
            StartupError: the state folder cannot be used.
            RefusedError: the server does not want us, and trying again would not help.
            IdentityError: at the first connection: whoever answers is not the server.
            PeerError: with `config.once`: why there is no session (any more).
        """

        def tell(event: ClientEvent) -> None:
            if isinstance(event, Connected):
                self.services = event.services
                if not self._connected.is_set():
                    self._connected.set()
                    task_status.started()
            self.on_event(event)

        if self.config.dialect == NATIVE:
            new_session = await self._native_sessions(tell)
        else:
            new_session = self._legacy_sessions(tell)
        failures = 0
        while not self.stopping.is_set():
            unbind_context("session")  # what follows is not about the one before
            session = new_session()
            began = trio.current_time()
            problem = await self._run_session(session)
            self.services = ()
            self._ports = session.ports or self._ports
            if problem is None:
                return
            if (
                session.up_since is not None
                and trio.current_time() - session.up_since >= _WORKED_AFTER
            ):
                failures = 0
            if self.config.once or self._is_final(problem):
                tell(Disconnected(reason=str(problem), retry_in=None))
                raise problem
            delay = _delay(failures, came_up=session.up_since is not None)
            if session.up_since is None:  # one that hung has waited already
                delay = max(0.0, delay - (trio.current_time() - began))
            log.debug(
                "session ended", reason=str(problem), failures=failures, delay=round(delay, 2)
            )
            failures += 1
            tell(Disconnected(reason=str(problem), retry_in=round(delay, 2)))
            with trio.move_on_after(delay):
                await self.stopping.wait()

    async def _native_sessions(self, tell: Callable[[ClientEvent], None]) -> Callable[[], Session]:
        """Return what makes each session: the same server and identity, and the ports of the one before."""
        services = self.config.effective_services()
        check_services(services)
        forwarder = Forwarder(services, self.config.local_timeout, tell)
        server = await trio.to_thread.run_sync(find_server, self.config, self.auth)
        identity = self.config.identity or _identity_of(await self._installation(), services)
        dialer = ServerDialer(
            server,
            self.config.connect_timeout,
            lambda: self.config.effective_state_dir,
            trust_on_first_use=self.config.trust_on_first_use,
            ca_file=self.config.ca_file,
        )
        return lambda: NativeSession(
            config=self.config,
            forwarder=forwarder,
            tell=tell,
            stopping=self.stopping,
            dialer=dialer,
            identity=identity,
            preferred_ports=self._ports or (None,) * len(services),
        )

    async def _installation(self) -> str:
        """Return the identity that is kept in the state folder. With a ticket no folder is needed: then, where there is none, one for now."""
        try:
            return await trio.to_thread.run_sync(load_identity, self.config.effective_state_dir)
        except StartupError as error:
            if self.config.ticket is None and self.config.ticket_file is None:
                raise
            log.warning(
                "the identity is for this run only: after the next start the visit ports may be others (Identity, StateDir)",
                error=str(error),
            )
            return secrets.token_hex(16)

    def _legacy_sessions(self, tell: Callable[[ClientEvent], None]) -> Callable[[], Session]:
        """Return what makes each session at an original server, which remembers nothing of the one before."""
        server = LegacyDialer.of(self.config, self.auth)
        forwarder = Forwarder(self.config.effective_services(), self.config.local_timeout, tell)
        log.warning(
            "whoever is on the way to this server can read the password and all that visitors send: its dialect knows no"
            " encryption",
            server=str(server.control),
            dialect=self.config.dialect,
        )
        return lambda: LegacySession(
            config=self.config,
            forwarder=forwarder,
            tell=tell,
            stopping=self.stopping,
            server=server,
        )

    async def _run_session(self, session: Session) -> PeerError | None:
        """Run a session, which the planned stop ends even before it is up; return what went wrong with it."""
        problem: PeerError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    self._stop_before_it_is_up,
                    session,
                    nursery.cancel_scope,
                    name="stop before it is up",
                )
                await session.run()
                nursery.cancel_scope.cancel("the session has ended")
        except* PeerError as group:
            problem = min(
                (error for error in leaves(group) if isinstance(error, PeerError)), key=_weight
            )
        return problem

    async def _stop_before_it_is_up(self, session: Session, scope: trio.CancelScope) -> None:
        await self.stopping.wait()
        if session.up_since is None:
            scope.cancel("the client stops")

    def _is_final(self, problem: PeerError) -> bool:
        match problem:
            case RefusedError(code=code):
                return code in _FINAL_REFUSALS
            case SessionOverError(code=code):
                return code in _FINAL_ENDS
            case IdentityError():
                # Later, it may be a hotel's network that answers for everybody: keep asking, and say nothing to it.
                return not self._connected.is_set()
            case _:
                return False


def _weight(problem: PeerError) -> bool:
    """The server's own words come first; a lost connection beside them is only their consequence."""
    return not isinstance(problem, RefusedError | SessionOverError | IdentityError)


def _delay(failures: int, *, came_up: bool) -> float:
    if came_up and not failures:
        return 0.0
    longest = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(failures, 10))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret


def _identity_of(installation: str, services: Sequence[Service]) -> str:
    """Return what the client calls itself: the same at each start with the same services, different for others.

    So a second `trionat connect` beside the first, for another service, does not evict it.
    """
    parts = [installation, *map(str, services)]
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:32]


@asynccontextmanager
async def connect(
    config: ClientConfig,
    auth: AuthConfig | None = None,
    *,
    on_event: Callable[[ClientEvent], None] = lambda _: None,
) -> AsyncGenerator[Client]:
    """Make local services reachable while the block runs; it begins when they are, `client.services` tells where.

    Waits as long as it takes until the server is there and has a slot: set a deadline around the entry if you want one.
    Leaving the block is the planned stop: no new visitors, those that are there may finish for `config.drain_grace` seconds,
    then the ports are given back. Cancelling it stops at once. An error in the block, or a loss that is final,
    comes out in an exception group, as from any nursery.

    Raises:
        As `Client.run`.
    """
    client = Client(config, auth or AuthConfig(), on_event)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        try:
            yield client
        finally:
            client.stopping.set()
