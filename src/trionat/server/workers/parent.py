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

from trionat.errors import ConnectionLostError, PeerError, StartupError
from trionat.log import get_logger
from trionat.relay.client_tunnel import LocalServiceError
from trionat.server.admin.server import AdminServer
from trionat.server.admission.authenticator import LocalAuthenticator
from trionat.server.admission.queue import others_than
from trionat.server.registry.local import LocalRegistry
from trionat.server.registry.table import ClaimTable
from trionat.server.registry.values import read_wish
from trionat.server.serving_process import ServingProcess
from trionat.server.visitors.acceptor import VisitorAcceptor
from trionat.server.workers.commands import AllWorkers
from trionat.server.workers.guard import PortGuard
from trionat.server.workers.lost_sessions import LostSessions
from trionat.server.workers.node_table import NodeTable, WorkerOfNode
from trionat.server.workers.process import RemoteSession, State, WorkerProcess, not_below
from trionat.server.workers.router import Router
from trionat.server.workers.shares import Usage, deal
from trionat.server.workers.worker import HTTP, HTTPS, PASSED_ON, TAKEN, VISITOR
from trionat.store.base import Limits
from trionat.transport.endpoint import SocketEndpoint
from trionat.transport.tcp_pair import open_tcp_pair

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Iterable, Sequence
    from pathlib import Path

    from trionat.address import TCPAddress
    from trionat.config.server import ServerConfig
    from trionat.server.accounts.limits import Share
    from trionat.server.certificates.renewal import NameStatus
    from trionat.server.change import ServerChange
    from trionat.server.names.listener import PassOn
    from trionat.server.registry.claim import Claim
    from trionat.server.upgrade.estate import Estate
    from trionat.server.upgrade.predecessor import Predecessor
    from trionat.server.upgrade.successor import Successor
    from trionat.server.upgrade.wire import Parcel
    from trionat.server.visitors.ports import LeaseKey, PointId
    from trionat.server.workers.link import Values

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
class Dealing:
    """Which worker gets which lease of another server: the one of the same word, to which the client's way leads already; else the one that has fewest by now. All of a group go to one."""

    words: Sequence[str]
    _counts: Counter[str] = attrs.field(init=False, factory=lambda: Counter())
    _groups: dict[LeaseKey, str] = attrs.field(init=False, factory=lambda: {})

    def word_for(self, values: Values) -> str:
        """Return the word of the worker."""
        wish = read_wish(values["wish"])
        word = str(values.get("worker"))
        if wish.ports_key in self._groups:
            word = self._groups[wish.ports_key]
        elif word not in self.words:
            word = min(self.words, key=self._counts.__getitem__)
        if wish.group is not None:
            self._groups[wish.ports_key] = word
        self._counts[word] += 1
        return word


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
    users: dict[str, SharedLimits] = attrs.field(init=False, factory=lambda: {})
    _guard: PortGuard = attrs.field(init=False)
    _until: float = attrs.field(init=False, default=0.0)
    _resting: trio.Event | None = attrs.field(init=False, default=None)
    _attempts: int = attrs.field(init=False, default=0)
    _heirs: dict[WorkerProcess, int | None] = attrs.field(init=False, factory=lambda: {})
    _is_handed_over: bool = attrs.field(init=False, default=False)

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
                        deliver=self.deliver,
                    )
                for worker in self.workers:
                    working.start_soon(worker.keep, name=f"worker {worker.word}")
                await self._wait_up()
                if self.predecessor is not None:
                    if self.stopping.is_set():
                        raise StartupError("the server was told to stop before it was up")
                    await self._inherit(self.predecessor)
                if self.member is not None:
                    await self.member.wait_joined(self.stopping)
                await self._accept_until_end(serving, admin, admin_socket, when_up)
                if not self._is_handed_over:
                    for worker in self.workers:  # those that have not ended in time
                        worker.cut_off()
                    await self._wait_ended()
                    if self.member is not None:
                        await self.member.leave(self._until)
                await self._wait_answered(admin)
                besides.cancel_scope.cancel("the server stops")
            if self._is_handed_over:
                await self._wait_extended()

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

    async def _wait_ended(self) -> None:
        for worker in self.workers:  # noqa: ASYNC912 - there are workers
            await worker.ended.wait()

    # -- upgrades ----------------------------------------------------------------------------------------------------

    @property
    def is_held(self) -> bool:
        """Whether another process still serves, whose place this one is about to take."""
        return self.predecessor is not None

    @property
    def is_resting(self) -> bool:
        """Whether another process is about to go on, so that no worker is to be started."""
        return self._resting is not None

    def is_leaving(self) -> bool:
        """See `ServingProcess`: no worker is to be started any more then."""
        return self.stopping.is_set() or self._is_handed_over

    async def wait_awake(self) -> None:
        """Wait until it is known who goes on."""
        while self._resting is not None:
            await self._resting.wait()

    async def _hand_over(self, successor: Successor) -> bool:
        """See `ServingProcess`. Each worker gives what it has, and all of it is given together."""
        began = trio.current_time()
        resting = self._resting = trio.Event()
        parcels: dict[str, Parcel] = {}
        self._attempts += 1
        try:
            try:
                await self._collect(parcels)
                estate, values = self._join_estates(parcels)
                await self._succession.give(successor, estate, values)
            finally:
                for parcel in parcels.values():
                    parcel.close()
        except StartupError as error:
            anew = await self._succession.fail(successor, error)
            self._acceptor.go_on(handed_over=False)
            self._wake(resting)
            for worker in self.workers:
                worker.go_on(self._attempts, anew=anew)
            return False
        self._is_handed_over = True
        self._succession.succeed(successor, estate, trio.current_time() - began)
        self._acceptor.go_on(handed_over=True)
        self._wake(resting)
        for worker in self.workers:
            if worker.word in parcels:
                worker.let_go()
            else:
                worker.cut_off()
        return True

    def _wake(self, resting: trio.Event) -> None:
        self._resting = None
        resting.set()

    async def _collect(self, parcels: dict[str, Parcel]) -> None:
        """Have all workers give what they have. What one has that ends meanwhile, or is killed as it hangs, is lost, as ever.

        Raises:
            StartupError: one that goes on does not give it.
        """
        problems: list[StartupError] = []

        async def ask(worker: WorkerProcess) -> None:
            try:
                parcels[worker.word] = await worker.give(self._attempts)
            except PeerError as error:
                if await worker.is_gone():
                    log.warning(
                        "a worker has ended before it has handed over what it has: its clients keep their ports alone",
                        worker=worker.word,
                        reason=str(error),
                    )
                else:
                    problems.append(
                        StartupError(f"worker {worker.word} does not give what it has: {error}")
                    )

        async with trio.open_nursery() as nursery:
            for worker in self.workers:
                if worker.state is State.UP:
                    nursery.start_soon(ask, worker, name=f"ask {worker.word}")
                else:
                    worker.cut_off()
        if problems:
            raise problems[0]

    def _join_estates(self, parcels: dict[str, Parcel]) -> tuple[Estate, Values]:
        """Return what is handed over, and what belongs to it."""
        from trionat.server.upgrade.estate import (  # noqa: PLC0415 - seldom
            join_estates,
            write_claim_alone,
        )

        estate, now = join_estates(parcels), trio.current_time()
        for worker in self.workers:
            if worker.word not in parcels:
                estate.values["leases"] += [
                    write_claim_alone(claim, max(0.0, now - worker.away_since))
                    for claim in self.table.held_by(worker.word)
                ]
        next_visitor, next_session = next(self._acceptor.numbers), 1
        self._acceptor.numbers = count(next_visitor, self.visitor_step)
        numbers = [worker.next_numbers for worker in self.workers]
        numbers += [
            (parcel.values["next_visitor"], parcel.values["next_session"])
            for parcel in parcels.values()
        ]
        for visitor, session in numbers:
            next_visitor, next_session = max(next_visitor, visitor), max(next_session, session)
        return estate, {
            "next_visitor": next_visitor,
            "next_session": next_session,
            "logins": {} if self.console is None else self.console.logins.write(),
        }

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

    async def _inherit(self, predecessor: Predecessor) -> None:
        """Deal to the workers what another process leaves, as far as that can be done before it is told. What one has that is lost now, the other process still has.

        Raises:
            StartupError: the other one goes on.
        """
        from trionat.server.upgrade.estate import split_estate  # noqa: PLC0415 - seldom

        parcel = await self._succession.inherit(predecessor)
        values = parcel.values
        next_visitor, next_session = values["next_visitor"], values["next_session"]
        number = next(self._acceptor.numbers)
        self._acceptor.numbers = count(
            not_below(next_visitor, number, self.visitor_step), self.visitor_step
        )
        if self.console is not None:
            self.console.logins.read(values.get("logins", {}))
        up = {worker.word: worker for worker in self.workers if worker.state is State.UP}
        for worker in self.workers:
            worker.take_numbers(next_visitor, next_session)
        parts = split_estate(parcel, Dealing(list(up)).word_for)
        taken: list[Values] = []

        async def deal(worker: WorkerProcess, part: Estate) -> None:
            self._heirs[worker] = worker.pid
            try:
                taken.append(await worker.inherit(part))
            except PeerError as error:
                raise StartupError(f"worker {worker.word} has not taken over: {error}") from error

        try:
            async with trio.open_nursery() as nursery:
                for word, part in parts.items():
                    nursery.start_soon(deal, up[word], part, name=f"deal to {word}")
        finally:
            parcel.close()
        log.info(
            "taken over from another process",
            pid=predecessor.pid,
            version=predecessor.version,
            clients=sum(each["clients"] for each in taken),
            visitors=sum(each["visitors"] for each in taken),
        )

    def _take(self, predecessor: Predecessor) -> None:
        """See `ServingProcess`. The workers serve as well from then on."""
        for worker, pid in self._heirs.items():
            if worker.pid != pid:
                raise StartupError(
                    f"worker {worker.word} has ended with what it was given; the log says why"
                )
        predecessor.take()
        self._heirs.clear()
        for worker in self.workers:
            worker.open()

    # -- visitors ----------------------------------------------------------------------------------------------------

    async def _serve_ports(self, nursery: trio.Nursery) -> None:
        """See `ServingProcess`: workers accept at their ports, and the guard at those that nobody has."""
        await self._guard.run()

    def needs_restart(self) -> Collection[str]:
        """See `Server` in `server/reload.py`."""
        return () if self.names is None else OF_NAMES

    def take_change(self, change: ServerChange) -> None:
        """See `Server` in `server/reload.py`. A worker that is being started gets the new configuration by itself.

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

    def _take_visitor(
        self, connection: socket.socket, source: TCPAddress, destination: TCPAddress
    ) -> None:
        """See `ServingProcess`: the worker that holds its port gets it."""
        worker = self._worker_at(destination.port)
        if worker is not None:
            worker.take(connection, source, destination, purpose=VISITOR)
        else:
            self._acceptor.accept_behind_proxy(self.ports.ports, connection, source, destination)

    def _figures(self) -> tuple[int, int]:
        return len(self.sessions), sum(worker.visitors for worker in self.workers)

    def _tell_others(self, _: tuple[TCPAddress, ...]) -> None:
        for worker in self.workers:
            worker.tell_others()

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
        """See `ServingProcess`: None means that no worker has it."""
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
