"""The parent of several workers: it has what there can be only one of, and passes the rest on.

It holds the listening sockets, accounts, traffic, bans, the admin socket and the table of claims. It moves no visitor's byte.
"""

from __future__ import annotations

import math
from itertools import count
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import StartupError
from trionat.log import get_logger
from trionat.server.admin.server import AdminServer
from trionat.server.admission.authenticator import LocalAuthenticator
from trionat.server.admission.queue import others_than
from trionat.server.registry.local import LocalRegistry
from trionat.server.registry.table import ClaimTable
from trionat.server.serving_process import ServingProcess
from trionat.server.visitors.acceptor import VisitorAcceptor
from trionat.server.workers.commands import AllWorkers
from trionat.server.workers.guard import PortGuard
from trionat.server.workers.lost_sessions import LostSessions
from trionat.server.workers.node_table import NodeTable, WorkerOfNode
from trionat.server.workers.process import State, WorkerProcess
from trionat.server.workers.router import Router
from trionat.server.workers.shared_limits import LimitTable
from trionat.server.workers.succession import WorkersSuccession
from trionat.server.workers.visitor_router import VisitorRouter

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Iterable
    from pathlib import Path

    from trionat.address import TCPAddress
    from trionat.config.server import ServerConfig
    from trionat.server.certificates.renewal import NameStatus
    from trionat.server.change import ServerChange
    from trionat.server.names.listener import PassOn
    from trionat.server.registry.claim import Claim
    from trionat.server.upgrade.predecessor import Predecessor
    from trionat.server.upgrade.successor import Successor
    from trionat.server.visitors.ports import PointId
    from trionat.server.workers.link import Values
    from trionat.server.workers.remote_sessions import RemoteSession

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

_STOP_GRACE: Final = 5.0
"""Seconds for workers to end at a planned stop, besides the grace of their visitors."""


@attrs.define(eq=False, kw_only=True)
class Parent(ServingProcess):
    """See the module, and `ServingProcess`. Owns its workers.

    `certificate` and `key` are the files that workers read. Where the server is a node of a cluster, the claims of workers are the node's. `drained` says that workers send their clients to other servers.
    """

    certificate: Path
    key: Path
    _router: Router | None = attrs.field(init=False, default=None)
    drained: bool = attrs.field(init=False, default=False)
    authenticator: LocalAuthenticator = attrs.field(init=False)
    worker_config: ServerConfig = attrs.field(init=False)
    table: ClaimTable = attrs.field(init=False)
    registry_kind: type[LocalRegistry] = attrs.field(init=False, default=LocalRegistry)
    workers: tuple[WorkerProcess, ...] = attrs.field(init=False)
    lost: LostSessions = attrs.field(init=False)
    sessions: dict[int, RemoteSession] = attrs.field(init=False, factory=lambda: {})
    limits: LimitTable = attrs.field(init=False)
    succession: WorkersSuccession = attrs.field(init=False)
    _visitors: VisitorRouter = attrs.field(init=False)
    _guard: PortGuard = attrs.field(init=False)
    _until: float = attrs.field(init=False, default=0.0)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
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
        self.limits = LimitTable(self.table, self.workers)
        self.succession = WorkersSuccession(
            succession=self._succession,
            table=self.table,
            workers=self.workers,
            acceptor=self._acceptor,
            visitor_step=self.visitor_step,
            console=self.console,
        )
        self._visitors = VisitorRouter(self.table, self.workers, self.ports, self._acceptor)
        self._open_frontend(passes_on=True)

    def certificates(self) -> list[NameStatus]:
        """Return how the certificates of the names stand that somebody has."""
        return [] if self._frontend is None else self._frontend.certificates()

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

    async def _serve(
        self,
        serving: trio.Nursery,
        admin_socket: socket.socket | None,
        when_up: Callable[[], None],
    ) -> None:
        """See `ServingProcess`.

        Raises:
            StartupError: no worker comes up.
        """
        commands = AllWorkers(self)
        admin = AdminServer(commands, reload=self.reload, upgrade=self.upgrade)
        async with trio.open_nursery() as working:
            async with trio.open_nursery() as besides:
                besides.start_soon(self._deal_regularly, name="deal shares")
                self._start_besides(besides, serving, self.sessions)
                if self.member is not None:
                    self._join(
                        self.member,
                        besides,
                        figures=self._figures,
                        kick_here=commands.kick_here,
                        tell_others=self._tell_others,
                        deliver=self._visitors.deliver,
                    )
                for worker in self.workers:
                    working.start_soon(worker.keep, name=f"worker {worker.word}")
                await self._wait_up()
                if self.predecessor is not None:
                    if self.stopping.is_set():
                        raise StartupError("the server was told to stop before it was up")
                    await self.succession.inherit(self.predecessor)
                if self.member is not None:
                    await self.member.wait_joined(self.stopping)
                await self._accept_until_end(serving, admin, admin_socket, when_up)
                if not self.succession.is_handed_over:
                    for worker in self.workers:  # those that have not ended in time
                        worker.cut_off()
                    await self._wait_ended()
                    if self.member is not None:
                        await self.member.leave(self._until)
                await self._wait_answered(admin)
                besides.cancel_scope.cancel("the server stops")
            if self.succession.is_handed_over:
                await self._wait_extended()

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

    def _accept_clients(self, nursery: trio.Nursery) -> Callable[[socket.socket, TCPAddress], None]:
        """See `ServingProcess`."""
        self._router = Router(self.config, self.bans, self.refusals, self.workers, self.tally)
        return self._router.acceptor(nursery)

    async def _stop(self) -> None:
        """See `ServingProcess`: the sessions are the workers', which end with the last of them."""
        log.info("visit ports closed", sessions=len(self.sessions), grace=self.config.drain_grace)
        if self.member is not None:
            await self.member.handover.offer_at_once()
        for worker in self.workers:
            worker.drain()
        self._until = trio.current_time() + self.config.drain_grace
        with trio.move_on_at(self._until + _STOP_GRACE):
            await self._wait_ended()

    async def _rest(self) -> None:
        """See `ServingProcess`: workers rest when they are asked for what they have."""

    async def _wait_extended(self) -> None:
        """Another process serves: wait until no worker has to stay for a visitor; after a stop for the grace at most."""
        async with trio.open_nursery() as nursery:

            async def wait_stop() -> None:
                await self.stopping.wait()
                for worker in self.workers:
                    worker.drain()
                await trio.sleep(self.config.drain_grace + _STOP_GRACE)
                nursery.cancel_scope.cancel("the server stops")

            nursery.start_soon(wait_stop, name="wait for the stop")
            await self._wait_ended()
            nursery.cancel_scope.cancel("nobody is left")

    async def _wait_ended(self) -> None:
        for worker in self.workers:  # noqa: ASYNC912 - there are workers
            await worker.ended.wait()

    # -- upgrades ----------------------------------------------------------------------------------------------------

    @property
    def is_held(self) -> bool:
        """Whether another process still serves, whose place this one is about to take."""
        return self.predecessor is not None

    def is_leaving(self) -> bool:
        """See `ServingProcess`: no worker is to be started any more then."""
        return self.stopping.is_set() or self.succession.is_handed_over

    async def _hand_over(self, successor: Successor) -> bool:
        """See `ServingProcess`. Each worker gives what it has, and all of it is given together."""
        return await self.succession.hand_over(successor)

    def _take(self, predecessor: Predecessor) -> None:
        """See `ServingProcess`. The workers serve as well from then on."""
        self.succession.take(predecessor)

    # -- visitors ----------------------------------------------------------------------------------------------------

    async def _serve_ports(self, nursery: trio.Nursery) -> None:
        """See `ServingProcess`: workers accept at their ports, and the guard at those that nobody has."""
        await self._guard.run()

    def _take_visitor(
        self, connection: socket.socket, source: TCPAddress, destination: TCPAddress
    ) -> None:
        """See `ServingProcess`: the worker that holds its port gets it."""
        self._visitors.take_behind_proxy(connection, source, destination)

    def _passes_on(self, name: str) -> PassOn | None:
        """See `ServingProcess`: None means that no worker has it."""
        return self._visitors.passes_on(name)

    # -- a reload ---------------------------------------------------------------------------------------------------

    def needs_restart(self) -> Collection[str]:
        """See `ServingProcess`."""
        return () if self.names is None else OF_NAMES

    def take_change(self, change: ServerChange) -> None:
        """See `ServingProcess`. A worker that is being started gets the new configuration by itself.

        A worker closes the ports that are gone when it hears of that, and gives back what it has claimed of them; what one has claimed that dies before is released when the next one is started.
        """
        super().take_change(change)
        config = change.config
        self.certificate, self.key = change.certificate, change.key
        self.worker_config = _part_of(config, config.worker_count)
        self.table.slots = config.session_limit
        if self._router is not None:
            self._router.take_config(config)
        removed = frozenset(change.removed)
        self._guard.remove(removed)
        self.listeners = self.listeners.with_visits(change.added, removed)
        self.ports.remove(removed)
        self.ports.add(listener.address.port for listener in change.added)
        self._guard.add(change.added)
        for worker in self.workers:
            worker.tell_change()

    # -- for other nodes ---------------------------------------------------------------------------------------------

    def _figures(self) -> tuple[int, int]:
        return len(self.sessions), sum(worker.visitors for worker in self.workers)

    def _tell_others(self, _: tuple[TCPAddress, ...]) -> None:
        for worker in self.workers:
            worker.tell_others()

    # -- for the workers -----------------------------------------------------------------------------------------------

    def take_back(self, connection: socket.socket, source: TCPAddress, visited: TCPAddress) -> None:
        """Bring a visitor, which a worker hands back, to the node that has its port by now."""
        self._acceptor.take_back(connection, source, visited)

    async def order_certificate(self, name: str) -> Values:
        """Have a certificate for a name, on the disk, for a worker that was asked for it; return why there is none."""
        assert self._frontend is not None, "asked by a worker with names"  # noqa: S101 - for type checkers
        return await self._frontend.order_certificate(name)

    def _note_ports(self, numbers: Iterable[PointId]) -> None:
        """Ports or names were taken, or given back."""
        self._guard.note(numbers)
        for worker in self.workers:
            if worker.state is State.UP:
                worker.claims.tell_room()

    def lend(self, claim: Claim, worker: WorkerProcess) -> None:
        """Give a worker what belongs to its claim: the listening sockets, and its share of the user's limits."""
        self._guard.lend(claim, worker.link)
        self.limits.take_claim(claim, worker)

    def lend_again(self, number: int, worker: WorkerProcess) -> None:
        """Give a worker a port's listening socket once more, which was lost on the way, if it still has a claim of it."""
        claim = self.table.claim_of(number)
        if claim is not None and claim.holder == worker.word:
            self._guard.lend(claim, worker.link, [number])

    async def _deal_regularly(self) -> None:
        while True:
            await trio.sleep(_DEAL_INTERVAL)
            self.limits.deal_all()
            self._release_left_behind()
            self.lost.tell_ends()

    def _release_left_behind(self) -> None:
        """Release what a worker has left that could not be started again in time."""
        for worker in self.workers:
            if trio.current_time() - worker.away_since > self.config.port_reservation:
                for claim in self.table.held_by(worker.word):
                    self.table.release(claim)
                worker.away_since = float("inf")


def _part_of(config: ServerConfig, workers: int) -> ServerConfig:
    """Return the configuration of one worker: what all of them have together at most is divided."""
    return attrs.evolve(
        config,
        max_conn_num=math.ceil(config.queue_places / workers),
        max_handshakes=math.ceil(config.max_handshakes / workers),
        resume_memory_total=max(config.resume_memory_total // workers, 2**16),
    )
