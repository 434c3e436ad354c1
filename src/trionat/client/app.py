"""The client as a whole: one session after another, for as long as it is wanted."""

from __future__ import annotations

import heapq
import ipaddress
import random
from contextlib import asynccontextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.address import TCPAddress
from trionat.client.forwarder import Forwarder
from trionat.client.native.dialer import ServerDialer, find_servers
from trionat.client.native.expose import check_services, hash_passwords
from trionat.client.native.identity import IdentityLock, find_identity
from trionat.client.native.servers import Servers
from trionat.client.native.session import NativeSession
from trionat.client.native.streams import WaitingStreams
from trionat.client.reconnect import Backoff, foremost, is_final
from trionat.client.snapshot import ClientSnapshot, VisitorView
from trionat.config.client import NATIVE, AuthConfig
from trionat.config.key import check_faults
from trionat.errors import ConnectionLostError, PeerError, SessionOverError, StartupError
from trionat.event_loop import require_trio
from trionat.events import ClientEvent, Connected, Disconnected, Inspecting, PublicService
from trionat.libraries import INSPECTOR, require_libraries
from trionat.log import get_logger
from trionat.protocol.messages import CloseCode
from trionat.relay.liveness import SWEEP_INTERVAL
from trionat.signals import Signal
from trionat.transport.isolation import leaves

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Sequence

    from trionat.client.inspector.inspector import Inspector
    from trionat.client.native.dialer import Server
    from trionat.client.session import Session
    from trionat.config.client import ClientConfig
    from trionat.config.load import Configuration
    from trionat.config.service import Service
    from trionat.transport.endpoint import Endpoint

log = get_logger(__name__)

# Why a server may have ended a session without giving up its streams: it did not hear us, or not what it expected.
_COMES_BACK: Final = {CloseCode.TIMEOUT, CloseCode.PROTOCOL}

# Seconds after which a client that takes the place of another one looks whether that has ended. Chosen.
_LOCKED: Final = 5.0

_ELSEWHERE: Final = "the session is at another server now"


_SERVICE_FIELDS: Final = frozenset(
    {
        "services",
        "local_server_addr",
        "proxy_protocol",
        "basic_auth",
        "allow",
        "deny",
        "rate",
        "approve",
    }
)
"""Fields of the configuration that are about services only, which may change within a session."""

_OF_SERVICES: Final = (
    "Client.Services",
    "Client.LocalServerAddr",
    "Client.ProxyProtocol",
    "Client.BasicAuth",
    "Client.Allow",
    "Client.Deny",
    "Client.Rate",
    "Client.Approve",
)
"""Their keys."""

_QUIET: Final = frozenset({"drain_grace", "log_level"})
"""Fields that no session has to hear of."""

# Seconds over which the clients of a server that stops go to others. Chosen: less than it leaves them.
_SPREAD: Final = 1.0


def _may_resume(problem: PeerError | None) -> bool:
    """Tell whether the streams of a session that has ended so may go on in another one at the same server."""
    if problem is None:
        return False
    return not isinstance(problem, SessionOverError) or problem.code in _COMES_BACK


@attrs.define(eq=False)
class _Running:
    """A session in a task of its own, and the streams that belong to it; `scope` is cancelled where another one is wanted. `problem` is why it is `done`, None after a planned end."""

    session: Session
    streams: WaitingStreams
    done: trio.Event = attrs.field(init=False, factory=trio.Event)
    scope: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    problem: PeerError | None = attrs.field(init=False, default=None)


@attrs.define(eq=False)
class Client:
    """Makes local services reachable until it is cancelled or `stopping` is set; `connect` is the same as a block.

    Attributes:
        config: The section `Client` of a configuration. Where its `state_dir` is None nothing is kept: the identity is for this client alone, and servers that
            are trusted on first use are so until it ends. It is never the folder of `trionat connect`, unless you name that one.
        auth: As whom it logs in, where `config` has no ticket.
        on_event: Called with everything that happens, on the Trio thread. It must return at once; an error of it ends the client.
        stopping: Set by its owner for the planned stop: visitors may finish for `config.drain_grace` seconds.
        looks_after: Whether services are tried now and then, so that it is told when they are down or back; else the next visitor finds out.
        default_folder: For the command `trionat connect`: a `state_dir` of None is the user's folder.
        services: Those that are reachable now, in the order of `config`; empty while there is no session. It may be read in any thread.
    """

    config: ClientConfig
    auth: AuthConfig = attrs.field(factory=AuthConfig)
    on_event: Callable[[ClientEvent], None] = attrs.field(default=lambda _: None)
    stopping: trio.Event = attrs.field(factory=trio.Event)
    looks_after: bool = False
    default_folder: bool = attrs.field(default=False, kw_only=True)
    services: tuple[PublicService, ...] = attrs.field(init=False, default=())
    _ports: tuple[int | None, ...] = attrs.field(init=False, default=())
    _connected: trio.Event = attrs.field(init=False, factory=trio.Event)
    _lost_at: float | None = attrs.field(init=False, default=None)
    _waiting_streams: WaitingStreams = attrs.field(init=False)
    # Of a session that was lost at a server that is to stop, before there was another one: perhaps that server is all there is.
    _left_streams: WaitingStreams | None = attrs.field(init=False, default=None)
    _changed: Signal = attrs.field(init=False, factory=Signal)
    _session: Session | None = attrs.field(init=False, default=None)
    _inspector: Inspector | None = attrs.field(init=False, default=None)
    _running: _Running | None = attrs.field(init=False, default=None)
    _pausing: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    _new_session: Callable[[Session | None], Session] | None = attrs.field(init=False, default=None)
    _tell: Callable[[ClientEvent], None] = attrs.field(init=False, default=lambda _: None)
    _forwarder: Forwarder | None = attrs.field(init=False, default=None)
    _found: tuple[Server, ...] = attrs.field(init=False, default=())
    _identity: str | None = attrs.field(init=False, default=None)
    _lock: IdentityLock | None = attrs.field(init=False, default=None)
    _hashed: dict[Service, Service] = attrs.field(init=False, factory=lambda: {})

    def __attrs_post_init__(self) -> None:
        self._waiting_streams = self._new_streams()

    @property
    def _in_memory(self) -> bool:
        return self.config.state_dir is None and not self.default_folder

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold a session, and get a new one whenever it is lost; `task_status` is told when the first one is up.

        A server that is not there, or full, is tried again for ever, unless `config.once`. Returns after a planned stop. Cancelling it stops at
        once; either way no task and no connection is left behind. It is run once.

        Raises:
            EventLoopError: this is not a Trio program.
            ConfigError: no server, no service, a ticket that is none, or what does not go together with the dialect.
            StartupError: the state folder cannot be used, or the inspector cannot begin.
            RefusedError: the server does not want us, and trying again would not help.
            IdentityError: at the first connection: whoever answers is not the server.
            PeerError: with `config.once`: why there is no session (any more).
        """
        require_trio("Client.run", "async with trionat.TrioThread(trionat.connect(...))")
        check_faults(self.config)

        def tell(event: ClientEvent) -> None:
            if isinstance(event, Connected):
                self.services = event.services
                self._log_return()
                if not self._connected.is_set():
                    self._connected.set()
                    task_status.started()
            self.on_event(event)

        self._tell = tell
        if self.config.inspects:
            self._inspector = _open_inspector(self.config)
        try:
            self._new_session = await self._sessions(self.config, self.auth)
            await self._lock_identity()
            await self._run_sessions(tell)
        finally:
            if self._lock is not None:
                self._lock.release()
            self._waiting_streams.drop_all("the client stops")
            self._drop_left("the client stops")
            if self._inspector is not None:
                self._inspector.close()

    def snapshot(self, *, most: int = 100) -> ClientSnapshot:
        """Return what it is doing, with the newest visitors, of which there are `most`. Looks at each visitor: not for a busy loop. For its Trio thread."""
        session, now = self._session, trio.current_time()
        waiting = (
            (frame.service, str(TCPAddress(frame.host, frame.port)), stream, True)
            for frame, stream in self._waiting_streams.opened()
        )
        forwarder = self._forwarder
        on_tunnels = () if session is None else ((*each, False) for each in session.visitors())
        present = [
            each
            for each in chain(on_tunnels, waiting)
            if not each[2].over and each[2].failure is None
        ]
        newest = heapq.nsmallest(most, present, key=lambda each: now - each[2].since)
        return ClientSnapshot(
            visitors=tuple(
                VisitorView(
                    number=stream.visitor,
                    service=self.place(service),
                    address=address,
                    seconds=now - stream.since,
                    received=stream.given,
                    sent=stream.taken,
                    waiting=waits,
                )
                for service, address, stream, waits in newest
            ),
            present=len(present),
            round_trip=None if session is None else session.round_trip,
            services=() if forwarder is None else forwarder.services,
            down=tuple(
                place
                for number in (() if forwarder is None else forwarder.down)
                if (place := self.place(number)) is not None
            ),
        )

    def place(self, number: int) -> int | None:
        """Return which of `services` is the one of that number, counted from 0; None where it was taken away. The two differ once services have changed within a session."""
        numbers = () if self._forwarder is None else self._forwarder.numbers
        return numbers.index(number) if number in numbers else None

    def approve(self, service: int, host: str, *, approved: bool) -> bool:
        """Say whether an address may visit the service of that number, counted from 0: yes holds for a day, no for an hour. For its Trio thread.

        Returns:
            Whether there is a session, in which the server is told. Without one the answer is forgotten: the next session asks again.

        Raises:
            ValueError: there is no such service, or `host` is not an IP address.
        """
        host = str(ipaddress.ip_address(host))
        forwarder = self._forwarder
        if not (
            service in range(len(self.config.effective_services()))
            if forwarder is None
            else service >= 0 and forwarder.knew(service)
        ):
            raise ValueError(f"there is no service {service}: the first one is 0")
        session = self._session
        return isinstance(session, NativeSession) and session.approve(
            service, host, approved=approved
        )

    # -- a reload ----------------------------------------------------------------------------------------------------

    def needs_restart(self, before: Configuration, wanted: Configuration) -> Collection[str]:
        """Return the paths of keys that cannot change in this client, although others of their kind can."""
        held = set[str]()
        if self.config.inspects:  # which shows the services of the start
            held.update(_OF_SERVICES, ("Client.LocalTimeout",))
        asks = any(service.approve for service in wanted.client.named_services())
        if asks and not any(service.approve for service in before.client.named_services()):
            held.update(_OF_SERVICES)  # who asks the owner has to be there
        return held

    async def change(self, before: Configuration, after: Configuration) -> Sequence[str]:
        """Run by `after` from now on: within the session where only services change and the server takes that, else in another one, at once. Nothing is left out.

        Raises:
            ConfigError: no server, no service, or what does not go together.
            StartupError: a file cannot be used, the server refuses other services, or the client is not up, or stops; all is as it was.
        """
        config, auth = after.client, after.auth
        if self._new_session is None or self.stopping.is_set():
            raise StartupError("the client is about to start or to stop: try again in a moment")
        differ = {
            name
            for name in attrs.fields_dict(type(config))
            if getattr(config, name) != getattr(before.client, name)
        }
        if await self._found_others(config, auth):
            await self._begin_anew(config, auth)
        elif before.auth == auth and differ <= _QUIET:
            self.config = config
            if self._running is not None:
                self._running.session.config = config
        elif before.auth == auth and differ <= _QUIET | _SERVICE_FIELDS:
            await self._change_services(config, auth)
        else:
            await self._begin_anew(config, auth)
        return ()

    async def _found_others(self, config: ClientConfig, auth: AuthConfig) -> bool:
        """Tell whether servers or credentials are others: a file of the same name may hold another ticket."""
        if config.dialect != NATIVE:
            return False
        found = await trio.to_thread.run_sync(find_servers, config, auth, abandon_on_cancel=True)
        return found != self._found

    async def _change_services(self, config: ClientConfig, auth: AuthConfig) -> None:
        """Have other services in the session that is up; where that cannot be, begin anew."""
        services = await self._hash(config)
        running = self._running
        session = None if running is None else running.session
        if (
            not isinstance(session, NativeSession)
            or not session.can_change
            or config.group is not None
        ):
            await self._begin_anew(config, auth)
            return
        forwarder = session.forwarder
        left = list(services)
        removed: list[int] = []
        for number, service in zip(forwarder.numbers, forwarder.services, strict=True):
            if service in left:
                left.remove(service)
            else:
                removed.append(number)
        # From CHANGE to its answer the server may have done it, or not: then the next session says what is wanted.
        try:
            if removed or left:
                await session.change_services(removed, left)
        except trio.Cancelled:
            self._restart("it is not known which services the server has")
            raise
        except PeerError as error:
            log.debug("services cannot change in this session", reason=str(error))
            await self._begin_anew(config, auth)
            return
        self._ports = session.ports or self._ports
        self.config = session.config = config
        if self._running is not running:
            # The server stops, and the next session, at another one, has begun with the services of before.
            self._forwarder = forwarder
            self._restart("services have changed meanwhile")

    async def _begin_anew(self, config: ClientConfig, auth: AuthConfig) -> None:
        """Have another session, by this configuration, at once."""
        new_session = await self._sessions(config, auth, anew=True)
        self.config, self.auth, self._new_session = config, auth, new_session
        self._restart("the configuration has changed")

    def _restart(self, reason: str) -> None:
        """Have another session instead of the one that is up or on its way; where one is waited for, at once."""
        if self._running is not None:
            self._running.scope.cancel(reason)
        self._pausing.cancel(reason)

    async def _hash(self, config: ClientConfig) -> tuple[Service, ...]:
        """Return the services with hashes in the place of passwords: the same one again for the same service, since a hash never comes twice."""
        given = config.effective_services()
        new = tuple(service for service in given if service not in self._hashed)
        hashed = dict(zip(new, await hash_passwords(new), strict=True))
        services = tuple(hashed.get(each) or self._hashed[each] for each in given)
        check_services(services, config.group)
        before = self.config.effective_services()  # perhaps they stay
        self._hashed = {each: self._hashed[each] for each in before if each in self._hashed}
        self._hashed.update(zip(given, services, strict=True))
        return services

    async def _lock_identity(self) -> None:
        """Say that another client of the same state folder is put out by this one, if there is one; without a folder that can be written nobody knows."""
        if self._identity is None or self._in_memory:
            return
        try:
            folder = self.config.effective_state_dir
            self._lock = lock = IdentityLock.of(folder, self._identity, self._found)
            if await trio.to_thread.run_sync(lock.take, abandon_on_cancel=True):
                return
        except StartupError as error:
            log.debug("the identity is not locked", error=str(error))
            self._lock = None
            return
        holder = await trio.to_thread.run_sync(lock.find_holder, abandon_on_cancel=True)
        log.warning(
            "another client with this identity runs on this machine, and ends when this one is connected: for a second one beside it use --identity NAME (Identity)",
            process=holder,
        )

    async def _take_lock(self, lock: IdentityLock) -> None:
        """Hold the lock once the client that has it has ended; return then."""
        while True:
            try:
                if await trio.to_thread.run_sync(lock.take, abandon_on_cancel=True):
                    return
            except StartupError as error:
                log.debug("the identity is not locked", error=str(error))
                return
            await trio.sleep(_LOCKED)

    async def _run_sessions(self, tell: Callable[[ClientEvent], None]) -> None:
        async with trio.open_nursery() as besides:
            if self._inspector is not None:
                besides.start_soon(self._inspector.serve, name="inspector")
                tell(Inspecting(self._inspector.access.url))
            if self.config.dialect == NATIVE:
                besides.start_soon(self._expire_streams, name="waiting streams")
            if self._lock is not None and not self._lock.is_held:
                besides.start_soon(self._take_lock, self._lock, name="identity lock")
            async with trio.open_nursery() as nursery:
                problem = await self._hold_session(tell, nursery)
                if problem is not None:
                    nursery.cancel_scope.cancel(str(problem))
            besides.cancel_scope.cancel("there is no session any more")
        if problem is not None:
            raise problem

    async def _hold_session(
        self,
        tell: Callable[[ClientEvent], None],
        nursery: trio.Nursery,
    ) -> PeerError | None:
        """Have one session after another; return why there will be none any more, None after a planned stop.

        Where the server of one stops, the next one begins at another server before that one has ended. Until it is up, nothing is told of it.
        """
        backoff = Backoff()
        leaving: _Running | None = None
        while not self.stopping.is_set():
            if leaving is not None and leaving.done.is_set():
                if self._note_lost(leaving, tell):
                    return leaving.problem
                leaving = None
            if self._left_streams is not None:
                self._waiting_streams, self._left_streams = self._left_streams, None
            before = None if leaving is None else leaving.session
            assert self._new_session is not None, "made before"  # noqa: S101 - for type checkers
            running = self._running = _Running(self._new_session(before), self._waiting_streams)
            nursery.start_soon(self._run, running, name="session")
            session, began = running.session, trio.current_time()
            self._session = session
            while True:
                if session.up_since is not None:
                    if leaving is not None:
                        self._note_moved(leaving)
                        leaving = None
                    self._drop_left(_ELSEWHERE)
                elif leaving is not None and leaving.done.is_set():
                    if self._note_lost(leaving, tell):
                        return leaving.problem
                    leaving = None
                if running.done.is_set() or (session.moving and leaving is None):
                    break
                await self._changed.wait()
            self._ports = session.ports or self._ports
            problem = running.problem
            if not running.done.is_set():
                log.info("the server stops: going to another one")
                leaving, backoff = running, Backoff()
                self._waiting_streams = self._new_streams()
                # All of its clients go at once.
                await self._pause(random.uniform(0, _SPREAD), leaving)  # noqa: S311 - spreads load, keeps no secret
                continue
            if problem is None:
                return None
            if leaving is None:
                self.services = ()
                if not _may_resume(problem):
                    self._waiting_streams.drop_all(str(problem))
            if running.scope.cancel_called:  # after a reload
                tell(Disconnected(reason=str(problem), retry_in=0.0))
                if session.up_since is not None:
                    self._lost_at = trio.current_time()
                    self._waiting_streams.tell_disconnected()
                backoff = Backoff()
                continue
            final = is_final(problem, connected_before=self._connected.is_set())
            if session.note_end(problem, final=final) or leaving is not None:
                final = False
            if self.config.once or final:
                self._waiting_streams.drop_all(str(problem))
                tell(Disconnected(reason=str(problem), retry_in=None))
                return problem
            now = trio.current_time()
            delay = backoff.after(
                tried_for=now - began,
                up_for=None if session.up_since is None else now - session.up_since,
            )
            log.debug("session ended", reason=str(problem), delay=round(delay, 2))
            if leaving is None:
                tell(Disconnected(reason=str(problem), retry_in=round(delay, 2)))
                if session.up_since is not None:
                    self._lost_at = now
                    self._waiting_streams.tell_disconnected()
            await self._pause(delay, leaving)
        return None

    async def _pause(self, seconds: float, leaving: _Running | None) -> None:
        """Wait so long, or until the client stops, the session that it still has is over, or the configuration has changed."""
        with trio.move_on_after(seconds) as self._pausing:
            await (self.stopping if leaving is None else leaving.done).wait()

    def _note_moved(self, leaving: _Running) -> None:
        """There is another session; that one ends when its last visitor has gone."""
        leaving.session.moved.set()
        if leaving.done.is_set():
            leaving.streams.drop_all(_ELSEWHERE)

    def _drop_left(self, reason: str) -> None:
        if self._left_streams is not None:
            self._left_streams.drop_all(reason)
            self._left_streams = None

    async def _expire_streams(self) -> None:
        """Reset streams that nobody has gone on with in time, for ever."""
        while True:
            self._waiting_streams.expire()
            if self._left_streams is not None:
                self._left_streams.expire()
            await trio.sleep(SWEEP_INTERVAL)

    def _note_lost(self, leaving: _Running, tell: Callable[[ClientEvent], None]) -> bool:
        """The session has ended before there was another one; tell whether there will be none."""
        self.services = ()
        problem = leaving.problem
        if problem is None:
            return False
        # Where servers know of each other, it is our own next session that has evicted this one.
        evicted = isinstance(problem, SessionOverError) and problem.code == CloseCode.EVICTED
        final = not evicted and is_final(problem, connected_before=True)
        if leaving.session.note_end(problem, final=final):
            final = False
        tell(Disconnected(reason=str(problem), retry_in=None if final else 0.0))
        self._lost_at = trio.current_time()
        if not final and _may_resume(problem):
            self._left_streams = leaving.streams
            leaving.streams.tell_disconnected()
        return final

    def _log_return(self) -> None:
        """Log that there is a session again, if the one before was lost."""
        if self._lost_at is not None:
            seconds = round(trio.current_time() - self._lost_at, 3)
            waiting = self._waiting_streams.visitors or None
            self._lost_at = None
            log.info("connected again", seconds=seconds, waiting=waiting)

    async def _run(self, running: _Running) -> None:
        try:
            with running.scope:
                running.problem = await self._run_session(running.session)
            if running.scope.cancelled_caught:
                running.problem = ConnectionLostError("the configuration has changed")
        finally:
            running.done.set()
            is_left = running.streams is not self._waiting_streams
            if is_left and (running.session.moved.is_set() or not _may_resume(running.problem)):
                running.streams.drop_all("its server has stopped")
            self._changed.notify()

    def _new_forwarder(self, services: tuple[Service, ...], timeout: float) -> Forwarder:
        if self._inspector is not None:
            return self._inspector.new_forwarder(services, timeout, self._tell)
        return Forwarder(services, timeout, self._tell)

    def _new_streams(self) -> WaitingStreams:
        return WaitingStreams(self.config.max_tunnels, self._note_given_up)

    def _note_given_up(self, plain: Endpoint, reason: str) -> None:
        if self._inspector is not None:
            self._inspector.recorder.note_closed(plain, reason)

    async def _sessions(
        self, config: ClientConfig, auth: AuthConfig, *, anew: bool = False
    ) -> Callable[[Session | None], Session]:
        """Return what makes each session; with `anew` with the services of the configuration, else with those that there are, if there are any."""
        if config.dialect == NATIVE:
            return await self._native_sessions(config, auth, anew=anew)
        return self._legacy_sessions(config, auth)

    async def _native_sessions(
        self, config: ClientConfig, auth: AuthConfig, *, anew: bool
    ) -> Callable[[Session | None], Session]:
        """Return what makes each session: the same servers and identity, and the ports of the one before.

        It is told which session is still up at a server that stops.
        """
        services = await self._hash(config)
        # Their files may be pipes, or on a network that is gone: a thread that waits for one is left behind.
        found = await trio.to_thread.run_sync(find_servers, config, auth, abandon_on_cancel=True)
        # That of the start: it is another one for other services, and the server would take us for somebody else.
        if self._identity is None:
            find = partial(find_identity, config, in_memory=self._in_memory)
            self._identity = await trio.to_thread.run_sync(find, abandon_on_cancel=True)
        identity = self._identity
        self._found = found
        if self._forwarder is None or (anew and not config.inspects):
            self._forwarder = self._new_forwarder(services, config.local_timeout)

        def dial(server: Server) -> ServerDialer:
            return ServerDialer(
                server,
                config.connect_timeout,
                None if self._in_memory else lambda: config.effective_state_dir,
                trust_on_first_use=config.trust_on_first_use,
                ca_file=config.ca_file,
            )

        servers = Servers(
            tuple(map(dial, found)),
            lambda address: dial(attrs.evolve(found[0], control=address, tunnel=address)),
        )

        def new_session(before: Session | None) -> Session:
            assert self._forwarder is not None, "made above"  # noqa: S101 - for type checkers
            forwarder = self._forwarder = self._forwarder.renumbered()
            count = len(forwarder.services)
            return NativeSession(
                config=self.config,
                forwarder=forwarder,
                tell=self._tell,
                stopping=self.stopping,
                changed=self._changed,
                looks_after=self.looks_after,
                servers=servers,
                besides=before.place if isinstance(before, NativeSession) else None,
                identity=identity,
                preferred_ports=self._ports if len(self._ports) == count else (None,) * count,
                waiting_streams=self._waiting_streams,
            )

        return new_session

    def _legacy_sessions(
        self, config: ClientConfig, auth: AuthConfig
    ) -> Callable[[Session | None], Session]:
        """Return what makes each session at an original server, which remembers nothing of the one before."""
        from trionat.client.legacy.dialer import LegacyDialer  # noqa: PLC0415 - memory
        from trionat.client.legacy.session import LegacySession  # noqa: PLC0415 - memory

        server = LegacyDialer.of(config, auth)
        forwarder = self._forwarder = self._new_forwarder(
            config.effective_services(), config.local_timeout
        )
        log.warning(
            "whoever is on the way to this server can read the password and all that visitors send: its dialect knows no"
            " encryption",
            server=str(server.control),
            dialect=config.dialect,
        )
        return lambda _: LegacySession(
            config=self.config,
            forwarder=forwarder,
            tell=self._tell,
            stopping=self.stopping,
            changed=self._changed,
            looks_after=self.looks_after,
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
            problem = foremost(error for error in leaves(group) if isinstance(error, PeerError))
        return problem

    async def _stop_before_it_is_up(self, session: Session, scope: trio.CancelScope) -> None:
        await self.stopping.wait()
        if session.up_since is None:
            scope.cancel("the client stops")


def _open_inspector(config: ClientConfig) -> Inspector:
    # Imported only where it is wanted: it brings a web server.
    require_libraries("--inspect", INSPECTOR, extra="console")
    from trionat.client.inspector.inspector import Inspector  # noqa: PLC0415 - memory

    return Inspector.open(config)


@asynccontextmanager
async def connect(
    config: ClientConfig,
    auth: AuthConfig | None = None,
    *,
    on_event: Callable[[ClientEvent], None] = lambda _: None,
) -> AsyncGenerator[Client]:
    """Make local services reachable while the block runs; it begins when they are, `client.services` tells where.

    Waits as long as it takes until the server is there and has a slot: put the block into a cancel scope with a deadline if you want one, and set
    that to `math.inf` in the block. Leaving the block is the planned stop: no new visitors, those that are there may finish for `config.drain_grace` seconds,
    then the ports are given back. Cancelling it stops at once. A session that is lost does not end the block: the client comes back by itself, and `on_event` is told.
    An error in the block, or a loss that is final, comes out in an exception group, as from any nursery.

    Args:
        config: The section `Client` of a configuration; see `Client`.
        auth: As whom the client logs in, where `config` has no ticket.
        on_event: Called with everything that happens; see `Client`.

    Raises:
        EventLoopError: this is not a Trio program.
        ConfigError, StartupError, PeerError: as `Client.run`, in an exception group.
    """
    require_trio("trionat.connect", "async with trionat.TrioThread(trionat.connect(...))")
    client = Client(config, auth or AuthConfig(), on_event)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        try:
            yield client
        finally:
            client.stopping.set()
