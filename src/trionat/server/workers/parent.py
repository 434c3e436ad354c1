"""The parent of several workers: it has what there can be only one of, and passes the rest on.

It holds the listening sockets, accounts, traffic, bans, the admin socket and the table of claims. It moves no visitor's byte.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import ConnectionLostError, StartupError
from trionat.log import get_logger
from trionat.relay.client_tunnel import LocalServiceError
from trionat.server.admin.kick import kick_for_others
from trionat.server.admin.server import AdminServer
from trionat.server.admission.authenticator import LocalAuthenticator
from trionat.server.admission.queue import others_than
from trionat.server.control.acceptance import listen_for_clients
from trionat.server.events.hub import Hub
from trionat.server.proxies import ProxyListener
from trionat.server.registry.local import LocalRegistry
from trionat.server.registry.table import ClaimTable
from trionat.server.visitors.acceptor import VisitorAcceptor, listen_for_names
from trionat.server.workers.commands import AllWorkers
from trionat.server.workers.guard import PortGuard
from trionat.server.workers.lost_sessions import LostSessions
from trionat.server.workers.node_table import NodeTable, WorkerOfNode
from trionat.server.workers.process import RemoteSession, State, WorkerProcess
from trionat.server.workers.router import Router
from trionat.server.workers.shares import Usage, deal
from trionat.server.workers.worker import HTTP, HTTPS, PASSED_ON, TAKEN, VISITOR
from trionat.store.base import Limits
from trionat.transport.endpoint import SocketEndpoint
from trionat.transport.tcp_pair import open_tcp_pair

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Collection, Iterable
    from pathlib import Path

    from trionat.address import TCPAddress
    from trionat.config.reload import Reloaded
    from trionat.config.server import ServerConfig
    from trionat.events import Ready
    from trionat.server.accounts.accounts import Accounts
    from trionat.server.accounts.limits import Share
    from trionat.server.accounts.name_owners import NameOwners
    from trionat.server.accounts.traffic import Traffic
    from trionat.server.admission.bans import Bans
    from trionat.server.certificates.renewal import NameStatus
    from trionat.server.change import ServerChange
    from trionat.server.cluster.member import Member
    from trionat.server.cluster.node import Node
    from trionat.server.console.console import Console
    from trionat.server.listeners import Listeners
    from trionat.server.names.frontend import Frontend, Names
    from trionat.server.names.listener import PassOn
    from trionat.server.refusals import RefusalCounters
    from trionat.server.registry.claim import Claim
    from trionat.server.state_folder import StateFolder
    from trionat.server.tally import Tally
    from trionat.server.upgrade.upgrade import Upgrade
    from trionat.server.visitors.ports import PointId, PortPool
    from trionat.server.workers.link import Values
    from trionat.transport.descriptors import Descriptors

log = get_logger(__name__)

OF_NAMES: Final = (
    "Server.Certificate",
    "Server.CertificateKey",
    "Server.CertificatesDir",
    "Server.PagesDir",
)
"""Keys that cannot change while there are workers and services have names: workers read these when they start."""

_DEAL_INTERVAL: Final = 1.0
"""Seconds between two deals of shares, as workers report."""

_START_TIMEOUT: Final = 30.0
"""Seconds for the first workers to be up. Chosen: one takes half a second, on a busy machine some more."""

_DELIVERY: Final = 10.0
"""Seconds for a worker to take a visitor of another node; one that is being started takes half a second."""

_STOP_GRACE: Final = 5.0
"""Seconds for workers to end at a planned stop, besides the grace of their visitors."""


@attrs.define(eq=False)
class SharedLimits:
    """What a user may have on all workers; `usage` is what they have told last, `shares` what they were dealt, and `sessions` how many they have, by their words."""

    user: str
    limits: Limits
    usage: dict[str, Usage] = attrs.field(factory=lambda: {})
    shares: dict[str, Share] = attrs.field(factory=lambda: {})
    sessions: Counter[str] = attrs.field(factory=lambda: Counter())

    def change(self, limits: Limits) -> None:
        """Put new limits into force; the workers hear of them with the next deal."""
        if limits == self.limits:  # most often
            return
        before, self.limits = self.limits, limits
        if limits.shared != before.shared:
            self.shares.clear()


@attrs.define(eq=False, kw_only=True)
class Parent:
    """See the module. Owns its workers; the listeners belong to the caller.

    `certificate` and `key` are the files that workers read; `ports` are the visit ports that `listeners` has; `names` and `owners` are there where services may have names.
    `member` is there where the server is a node of a cluster: then the claims of workers are the node's. `tally` is there where `/metrics` are on: it has what workers count. `events` is told what happens. `stopping` is the planned stop; `drained` says that workers send
    their clients to other servers.
    """

    config: ServerConfig
    ready: Ready
    accounts: Accounts
    traffic: Traffic
    bans: Bans
    refusals: RefusalCounters
    descriptors: Descriptors
    stopping: trio.Event
    certificate: Path
    key: Path
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
    _router: Router | None = attrs.field(init=False, default=None)
    _proxies: list[ProxyListener] = attrs.field(init=False, factory=lambda: [])
    drained: bool = attrs.field(init=False, default=False)
    authenticator: LocalAuthenticator = attrs.field(init=False)
    worker_config: ServerConfig = attrs.field(init=False)
    table: ClaimTable = attrs.field(init=False)
    registry_kind: type[LocalRegistry] = attrs.field(init=False, default=LocalRegistry)
    workers: tuple[WorkerProcess, ...] = attrs.field(init=False)
    lost: LostSessions = attrs.field(init=False)
    sessions: dict[int, RemoteSession] = attrs.field(init=False, factory=lambda: {})
    users: dict[str, SharedLimits] = attrs.field(init=False, factory=lambda: {})
    _acceptor: VisitorAcceptor = attrs.field(init=False)
    _guard: PortGuard = attrs.field(init=False)
    _frontend: Frontend | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.authenticator = LocalAuthenticator(self.accounts, self.bans)
        number = self.config.worker_count
        self.worker_config = _part_of(self.config, number)
        numbers = count(number + 1, self.visitor_step)
        self._acceptor = VisitorAcceptor(self.config, self.refusals, numbers)
        self._guard = PortGuard(self.ports, self._acceptor, self.descriptors)
        self._guard.add(self.listeners.visits)
        slots = self.config.session_limit
        if self.node is None:
            self.table = ClaimTable(slots, self.ports, self._note_ports)
        else:
            registry = self.node.registry
            self.table = NodeTable(slots, self.ports, self._note_ports, node=registry)
            self.registry_kind = WorkerOfNode
        self.lost = LostSessions(self.table, self.events)
        self.workers = tuple(WorkerProcess(self, each) for each in range(number))
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
                leaving=self.stopping.is_set,
                passes_on=self._passes_on,
                lock=None if self.member is None else self.member.share(self.names.certificates),
                public=self.ready.public,
                events=self.events,
            )

    def certificates(self) -> list[NameStatus]:
        """Return how the certificates of the names stand that somebody has."""
        return [] if self._frontend is None else self._frontend.certificates()

    @property
    def node(self) -> Node | None:
        """This server in its cluster."""
        return None if self.member is None else self.member.node

    @property
    def others(self) -> tuple[TCPAddress, ...] | None:
        """Where clients may go when this server is drained, or stops; None: it is a node, and does not know yet."""
        if self.member is None:
            return others_than(self.ready.public, self.config)
        return self.member.handover.others

    @property
    def visitor_step(self) -> int:
        """The distance of the numbers that one process gives to visitors: all workers do, and the parent."""
        return self.config.worker_count + 1

    async def serve(self, admin_socket: socket.socket | None, when_up: Callable[[], None]) -> None:
        """Run the workers until they have ended after a planned stop, or cancelled; no process is left then. `when_up` is called when clients can come.

        Raises:
            StartupError: no worker comes up.
        """
        try:
            await self._serve(admin_socket, when_up)
        finally:
            for listener in self.listeners.of_visitors:  # some have come with a reload
                listener.close()
            if self.console is not None:
                self.console.door.listener.close()

    async def _serve(self, admin_socket: socket.socket | None, when_up: Callable[[], None]) -> None:
        async with trio.open_nursery() as serving:
            serving.start_soon(self.refusals.tell_regularly, name="tell refusals")
            serving.start_soon(self.accounts.watch, self.sessions, name="watch accounts")
            serving.start_soon(self.traffic.flush_regularly, name="flush traffic")
            serving.start_soon(self._deal_regularly, name="deal shares")
            if self.tally is not None:
                serving.start_soon(self.tally.measure_lag, name="measure loop lag")
            if self.owners is not None:
                touch = partial(self.owners.touch_regularly, self.ports.names_in_use)
                serving.start_soon(touch, name="names in use")
            if self._frontend is not None:
                self._acceptor.named = self._frontend.start(serving)
            commands = AllWorkers(self)
            if self.member is not None:
                self._join(self.member, commands, serving)
            async with trio.open_nursery() as working:
                for worker in self.workers:
                    working.start_soon(worker.keep, name=f"worker {worker.word}")
                await self._wait_up()
                if self.member is not None:
                    await self.member.wait_joined(self.stopping)
                if admin_socket is not None:
                    admin = AdminServer(commands, reload=self.reload, upgrade=self.upgrade)
                    serving.start_soon(admin.serve, admin_socket, name="admin server")
                if self.console is not None:
                    serving.start_soon(self.console.serve, commands, name="console")
                # Also while visitors may finish: they may need tunnels.
                router = self._router = Router(
                    self.config, self.bans, self.refusals, self.workers, self.tally
                )
                behind = listen_for_clients(
                    serving,
                    self.listeners,
                    router.acceptor(serving),
                    config=self.config,
                    refusals=self.refusals,
                    descriptors=self.descriptors,
                )
                if behind is not None:
                    self._proxies.append(behind)
                async with trio.open_nursery() as visiting:  # stops first
                    self._listen_for_visitors(visiting)
                    when_up()
                    await self.stopping.wait()
                    visiting.cancel_scope.cancel("the server stops")
                for listener in self.listeners.of_visitors:
                    listener.close()
                log.info(
                    "visit ports closed", sessions=len(self.sessions), grace=self.config.drain_grace
                )
                if self.member is not None:
                    await self.member.handover.offer_at_once()
                for worker in self.workers:
                    worker.drain()
                until = trio.current_time() + self.config.drain_grace
                working.cancel_scope.deadline = until + _STOP_GRACE
            if self.member is not None:
                await self.member.leave(until)
            serving.cancel_scope.cancel("the server stops")

    def _listen_for_visitors(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._guard.run, name="visit ports")
        listen_for_names(nursery, self.listeners, self._acceptor, self.descriptors)
        if (proxies := self.listeners.proxy_visit) is not None:
            behind = ProxyListener.of(self.config, proxies, self.refusals)
            self._proxies.append(behind)
            most = self.descriptors.for_visitors
            job = partial(behind.serve, self._take_visitor, self.descriptors, most=most)
            nursery.start_soon(job, name=f"proxies at {proxies.address}")

    def needs_restart(self) -> Collection[str]:
        """See `Server` in `server/reload.py`."""
        return () if self.names is None else OF_NAMES

    def take_change(self, change: ServerChange) -> None:
        """See `Server` in `server/reload.py`. A worker that is being started gets the new configuration by itself.

        A worker closes the ports that are gone when it hears of that, and gives back what it has claimed of them; what one has claimed that dies before is released when the next one is started.
        """
        config = self.config = change.config
        self.certificate, self.key = change.certificate, change.key
        self.worker_config = _part_of(config, config.worker_count)
        self.table.slots = config.session_limit
        self._acceptor.take_config(config)
        if self._router is not None:
            self._router.take_config(config)
        if self._frontend is not None and change.acme is not None:
            self._frontend.take_config(config, change.acme)
        for proxies in self._proxies:
            proxies.take_config(config)
        removed = frozenset(change.removed)
        self._guard.remove(removed)
        self.listeners = self.listeners.with_visits(change.added, removed)
        self.ports.remove(removed)
        self.ports.add(listener.address.port for listener in change.added)
        self._guard.add(change.added)
        for worker in self.workers:
            worker.tell_change()

    def _take_visitor(
        self, connection: socket.socket, source: TCPAddress, destination: TCPAddress
    ) -> None:
        """Give a visitor, whose header a proxy has sent, to the worker that holds its port."""
        worker = self._worker_at(destination.port)
        if worker is not None:
            worker.take(connection, source, destination, purpose=VISITOR)
        else:
            self._acceptor.accept_behind_proxy(self.ports.ports, connection, source, destination)

    def _join(self, member: Member, commands: AllWorkers, nursery: trio.Nursery) -> None:
        """Be a node in `nursery`."""

        def figures() -> tuple[int, int]:
            return len(self.sessions), sum(worker.visitors for worker in self.workers)

        def kick_too(request: bytes) -> None:
            nursery.start_soon(kick_for_others, commands.kick_here, request, name="kick")

        def tell_others(_: tuple[TCPAddress, ...]) -> None:
            for worker in self.workers:
                worker.tell_others()

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
            deliver=self.deliver,
        )

    async def deliver(
        self, point: PointId, source: TCPAddress, visited: TCPAddress, *, with_tls: bool
    ) -> SocketEndpoint:
        """Bring a visitor that another node has passed on to the worker that has its port, or name; return the other end of its stream.

        Raises:
            LocalServiceError: no worker has it any more, or takes it.
        """
        worker = self._worker_at(point)
        if worker is None:
            raise LocalServiceError("moved: no process of this node holds the port any more")
        try:
            ours, theirs = open_tcp_pair()
        except OSError as error:
            raise LocalServiceError(f"the node cannot take it now: {error.strerror}") from error
        if isinstance(point, str):
            worker.take(theirs, source, visited, purpose=HTTPS if with_tls else HTTP)
            return SocketEndpoint(ours)
        worker.take(theirs, source, visited, purpose=PASSED_ON)
        try:
            with trio.move_on_after(_DELIVERY):
                await _wait_taken(ours)
                return SocketEndpoint(ours)
        except (OSError, ConnectionLostError):
            ours.close()
            raise LocalServiceError("moved: its process has just given up the port") from None
        except BaseException:
            ours.close()
            raise
        ours.close()
        raise LocalServiceError("the process that holds the port does not take it")

    def _worker_at(self, port: PointId) -> WorkerProcess | None:
        claim = self.table.claim_of(port)
        words = (worker for worker in self.workers if claim and worker.word == claim.holder)
        return next(words, None)

    async def _wait_up(self) -> None:
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                await self.stopping.wait()
                nursery.cancel_scope.cancel("told to stop before they are up")

            nursery.start_soon(give_up, name="stop before they are up")
            with trio.move_on_after(_START_TIMEOUT):  # noqa: ASYNC912 - there are workers
                for worker in self.workers:
                    await worker.settled.wait()
            nursery.cancel_scope.cancel("they are up")
        if self.stopping.is_set():
            return
        if not any(worker.state is State.UP for worker in self.workers):
            raise StartupError("no worker could be started (Server.Workers): the log says why")

    def _passes_on(self, name: str) -> PassOn | None:
        """Return what gives a connection to the worker that has a name; None: no worker has."""
        worker = self._worker_at(name)
        if worker is None:
            if self._acceptor.is_elsewhere(name):
                return partial(self._acceptor.forward_named, name)
            return None

        def pass_on(
            connection: socket.socket, address: TCPAddress, visited: TCPAddress, *, is_tls: bool
        ) -> None:
            worker.take(connection, address, visited, purpose=HTTPS if is_tls else HTTP)

        return pass_on

    async def order_certificate(self, name: str) -> Values:
        """Have a certificate for a name, on the disk, for a worker that was asked for it; return why there is none."""
        assert self._frontend is not None, "asked by a worker with names"  # noqa: S101 - for type checkers
        return await self._frontend.order_certificate(name)

    # -- for the workers -----------------------------------------------------------------------------------------------

    def take_back(self, connection: socket.socket, source: TCPAddress, visited: TCPAddress) -> None:
        """Bring a visitor, which a worker hands back, to the node that has its port by now."""
        self._acceptor.take_back(connection, source, visited)

    def _note_ports(self, numbers: Iterable[PointId]) -> None:
        """Ports or names were taken, or given back."""
        self._guard.note(numbers)
        for worker in self.workers:
            if worker.state is State.UP:
                worker.claims.tell_room()

    def lend(self, claim: Claim, worker: WorkerProcess) -> None:
        """Give a worker what belongs to its claim: the listening sockets, and its share of the user's limits."""
        self._guard.lend(claim, worker.link)
        user = claim.key[0]
        shared = self.users.setdefault(user, SharedLimits(user, claim.wish.limits))
        shared.change(claim.wish.limits)
        shared.shares.pop(worker.word, None)
        self._deal(shared)

    def lend_again(self, number: int, worker: WorkerProcess) -> None:
        """Give a worker a port's listening socket once more, which was lost on the way, if it still has a claim of it."""
        claim = self.table.claim_of(number)
        if claim is not None and claim.holder == worker.word:
            self._guard.lend(claim, worker.link, [number])

    def limits_of(self, user: str) -> SharedLimits:
        """Return what a user's sessions share. One without a claim has lost it in this moment, and its session ends."""
        return self.users.get(user) or SharedLimits(user, Limits())

    async def _deal_regularly(self) -> None:
        while True:
            await trio.sleep(_DEAL_INTERVAL)
            for shared in list(self.users.values()):
                self._deal(shared)
            self._release_left_behind()
            self.lost.tell_ends()

    def _deal(self, shared: SharedLimits) -> None:
        """Deal a user's shares to the workers that have claims of it, or sessions whose client is at another node by now; those whose share changes are told."""
        holders = self.table.holders_of(shared.user) | set(shared.sessions)
        if not holders:
            del self.users[shared.user]
            return
        usage = {
            worker.word: shared.usage.get(worker.word, Usage())
            for worker in self.workers
            if worker.word in holders
        }
        shares = deal(shared.limits, usage, shared.shares)
        for worker in self.workers:
            share = shares.get(worker.word)
            if share is not None and share != shared.shares.get(worker.word):
                worker.tell_share(shared.user, shared.limits, share)
        shared.shares, shared.usage = shares, usage

    def _release_left_behind(self) -> None:
        """Release what a worker has left that could not be started again in time."""
        for worker in self.workers:
            if trio.current_time() - worker.away_since > self.config.port_reservation:
                for claim in self.table.held_by(worker.word):
                    self.table.release(claim)
                worker.away_since = float("inf")


async def _wait_taken(sock: socket.socket) -> None:
    """Wait until a worker has said that it takes a visitor. Raises OSError or ConnectionLostError: it does not."""
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            said = sock.recv(len(TAKEN))
        except BlockingIOError:
            continue
        if said != TAKEN:
            raise ConnectionLostError("closed")
        return


def _part_of(config: ServerConfig, workers: int) -> ServerConfig:
    """Return the configuration of one worker: what all of them have together at most is divided."""
    return attrs.evolve(
        config,
        max_conn_num=math.ceil(config.queue_places / workers),
        max_handshakes=math.ceil(config.max_handshakes / workers),
        resume_memory_total=max(config.resume_memory_total // workers, 2**16),
    )
