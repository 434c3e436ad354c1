"""The life of a worker: logins, the queue, sessions, tunnels and visitors of one process among several.

It listens nowhere itself. Connections to the control port come from the parent, and with each claim the listening sockets of its ports.
Signals are the parent's to act on; when the parent is gone, so is the worker.
"""

from __future__ import annotations

import pickle
import signal
import socket
import sys
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.address import TCPAddress
from trionat.config.acme import AcmeConfig
from trionat.interpreter import keep_pauses_short
from trionat.log import get_logger, log_to, set_level
from trionat.protocol.fields import to_json, write_json
from trionat.protocol.messages import CloseCode
from trionat.server.admin.commands import LocalCommands
from trionat.server.admin.drain import Drain
from trionat.server.admin.messages import KickSession, KickUser, KickVisitor, decode_request
from trionat.server.admin.metrics import Metrics
from trionat.server.admin.readings import count_present, meter_sessions
from trionat.server.admission.bans import Bans
from trionat.server.admission.leases import Leases
from trionat.server.admission.queue import Admission, others_than
from trionat.server.control.connections import ConnectionHandler
from trionat.server.control.context import ServerContext
from trionat.server.events.hub import Hub
from trionat.server.refusals import Bound, RefusalCounters
from trionat.server.registry.values import read_claim, read_key, read_limits
from trionat.server.sessions.registry import Sessions
from trionat.server.tally import Tally
from trionat.server.visitors.acceptor import VisitorAcceptor
from trionat.server.visitors.ports import PortPool, VisitPort
from trionat.server.workers.link import Link, LinkLostError
from trionat.server.workers.remote import (
    EventReports,
    HandBack,
    RemoteAuthenticator,
    RemoteNameOwners,
    RemoteRegistry,
    SessionReports,
)
from trionat.server.workers.values import (
    read_addresses,
    read_share,
)
from trionat.transport.descriptors import Descriptors
from trionat.transport.listener import Listener
from trionat.transport.names import NameResolver
from trionat.transport.tls import server_context
from trionat.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.config.server import ServerConfig
    from trionat.events import Ready
    from trionat.server.admin.snapshot import Snapshot
    from trionat.server.names.frontend import Frontend, Names
    from trionat.server.registry.claim import Claim
    from trionat.server.workers.link import Values

log = get_logger(__name__)

CONNECTION: Final = b"c"
VISIT_PORT: Final = b"v"
VISITOR: Final = b"x"
PASSED_ON: Final = b"n"
"""What a descriptor is for that comes from the parent: a client's connection, with its address; the listening socket of a visit port, with the port's
number and the fence of the claim; a visitor that came through a proxy, with its address and the one that it has dialled; and one that another node has passed on,
which is to be told whether it is taken."""

HTTPS: Final = b"s"
HTTP: Final = b"h"
"""The same: a visitor of a name, of which nothing was taken, with its address and the one that it has dialled; with TLS, or without."""

TAKEN: Final = b"+"
"""What it is told."""

BEAT: Final = 1.0
"""Seconds between two reports to the parent, which are its sign of life as well."""

_LEND_AGAIN: Final = 1.0
"""Seconds after which the parent is asked once more for a listening socket for which there was no descriptor."""

_LAST_WORDS: Final = 2.0
"""Seconds for the last report. Chosen."""


def main() -> None:
    """Run a worker: its arguments are the descriptors of the link (two) and of the log, and the level of the log."""
    messages, descriptors, log_pipe = map(int, sys.argv[1:4])
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    link = Link(socket.socket(fileno=messages), socket.socket(fileno=descriptors))
    place = Path("the log of the parent")
    with log_to(terminal=None, filename=place, descriptor=log_pipe, level=int(sys.argv[4])):
        try:
            trio.run(run_worker, link)
        except Exception:  # a bug: its traceback is for the log
            log.exception("a worker has ended by a fault of its own")
            sys.exit(1)


async def run_worker(link: Link) -> None:
    """Run until the parent is gone, or has told to stop and every session has ended."""
    trio.socket.set_custom_hostname_resolver(NameResolver())
    start, started = trio.open_memory_channel["Values"](1)
    link.hear = start.send_nowait
    link.take = lambda _, sock, __: sock.close()
    async with trio.open_nursery() as nursery:

        async def run_link() -> None:
            await link.run()
            nursery.cancel_scope.cancel("the parent is gone")

        nursery.start_soon(run_link, name="link")
        nursery.start_soon(keep_pauses_short, name="keep pauses short")
        link.post({"what": "hello", "version": VERSION})
        await (await Worker.make(link, await started.receive())).run()
        with trio.move_on_after(_LAST_WORDS):
            await link.wait_sent()
        nursery.cancel_scope.cancel("the worker stops")


def _write_snapshot(snapshot: Snapshot) -> str:
    return write_json(snapshot, to_json).decode()


def _say(sock: socket.socket, word: bytes) -> bool:
    """Say something on a new connection; False where nobody is there any more."""
    try:
        return sock.send(word) == len(word)
    except OSError:
        return False


@attrs.define(eq=False)
class Numbers:
    """Numbers at a distance of `step`; `next` is the one to come."""

    next: int
    step: int

    def __iter__(self) -> Numbers:
        return self

    def __next__(self) -> int:
        number = self.next
        self.next += self.step
        return number


@attrs.define(eq=False)
class _Port:
    """A visit port as this worker sees it: `claims` are the fences of its claims (a group has several), and `given_up` is the highest of those before.

    `spare` is its listening socket, which comes before or after the claim that it belongs to, the one with `spare_fence`.
    """

    visit_port: VisitPort
    claims: set[int] = attrs.field(factory=lambda: set())
    given_up: int = 0
    spare: socket.socket | None = None
    spare_fence: int = 0
    serving: trio.CancelScope | None = None

    def drop_spare(self) -> None:
        """Close the spare socket, if there is one."""
        if self.spare is not None:
            self.spare.close()
            self.spare = None


@attrs.define(eq=False, kw_only=True)
class Worker:
    """See the module. `visitors` has the numbers of those to come: no other worker has any of them. `claims` are those of the worker before."""

    link: Link
    context: ServerContext
    registry: RemoteRegistry
    connections: ConnectionHandler
    acceptor: VisitorAcceptor
    commands: LocalCommands
    descriptors: Descriptors
    visitors: Numbers
    claims: tuple[Claim, ...]
    names: Names | None = None
    in_cluster: bool = False
    _front: Frontend | None = attrs.field(init=False, default=None)
    scribe: trio.CapacityLimiter = attrs.field(
        init=False, factory=partial(trio.CapacityLimiter, 1)
    )  # its own, as threads for names may all be waiting
    _ports: dict[int, _Port] = attrs.field(init=False)
    _relayed: dict[str, int] = attrs.field(init=False, factory=lambda: {})
    _accept: Callable[[socket.socket, TCPAddress], None] = attrs.field(init=False)
    _visiting: trio.Nursery = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        pool = self.context.leases.ports
        self._ports = {number: _Port(port) for number, port in pool.ports.items()}

    @classmethod
    async def make(cls, link: Link, start: Values) -> Worker:
        """Make what runs, of what the parent says first. Blocks: it reads the certificate."""
        config: ServerConfig
        ready: Ready
        config, ready = pickle.loads(bytes.fromhex(start["config"]))  # noqa: S301 - of our own parent
        refusals = RefusalCounters()
        hub = Hub(forward=EventReports(link).tell if start["events"] else None)
        registry = RemoteRegistry(link, start["word"])
        registry.note_room(*start["room"])
        pool = PortPool([VisitPort(number) for number in ready.visit_ports])
        leases = Leases(config, pool, refusals, registry=registry)
        step = start["step"]
        visitors = Numbers(start["visitor"], start["visitor_step"])
        tally = None if config.console_addr is None else Tally()
        context = ServerContext(
            config=config,
            authenticator=RemoteAuthenticator(link),
            refusals=refusals,
            bans=Bans(0, config.ban_time),  # who may connect, the parent knows
            leases=leases,
            admission=Admission(config, leases, others_than(ready.public, config)),
            sessions=Sessions(
                SessionReports(link).accounted, count(start["uid"], step), tally=tally, events=hub
            ),
            stopping=trio.Event(),
            public_host=ready.public.host,
            route=start["word"],
            tally=tally,
        )
        descriptors = Descriptors()
        tls = server_context(Path(start["certificate"]), Path(start["key"]))
        acceptor = VisitorAcceptor(config, refusals, visitors, tally=tally)
        if start["in_cluster"]:
            acceptor.elsewhere = HandBack(link)
        leases.pass_on = acceptor.pass_on
        names = None
        if config.domain is not None:
            from trionat.server.names.frontend import Names  # noqa: PLC0415 - only there

            names = await Names.open(config, AcmeConfig(), Path(ready.state_dir))
            if config.start_auth:
                leases.owners = RemoteNameOwners(link)
        return cls(
            link=link,
            names=names,
            in_cluster=start["in_cluster"],
            context=context,
            registry=registry,
            connections=ConnectionHandler(context, tls),
            acceptor=acceptor,
            commands=LocalCommands(
                Metrics(ready, context, descriptors), Drain(context, waits=start["in_cluster"])
            ),
            descriptors=descriptors,
            visitors=visitors,
            claims=tuple(map(read_claim, start["claims"])),
        )

    async def run(self) -> None:
        """Serve until every session has ended after a planned stop, or cancelled."""
        context = self.context
        try:
            async with trio.open_nursery() as serving:
                serving.start_soon(context.admission.run, name="admission")
                serving.start_soon(context.leases.expire_visitors, name="expire visitors")
                serving.start_soon(context.refusals.tell_regularly, name="tell refusals")
                serving.start_soon(self.commands.metrics.count_rates, name="count rates")
                serving.start_soon(self.commands.draining.run, name="drain clients")
                serving.start_soon(self._report_regularly, name="report")
                if context.tally is not None:
                    serving.start_soon(context.tally.measure_lag, name="measure loop lag")
                self._accept = self.connections.acceptor(serving)
                if self.names is not None:
                    self._front = self._frontend(self.names)
                    self.acceptor.named = self._front.start(serving)
                try:
                    await self._accept_until_stopped()
                    context.admission.drain()
                    await context.sessions.wait_none()
                finally:
                    # The parent may pass connections on until it hears of the end. Not later than here: the nursery they are for is about to be closed.
                    self.link.take = lambda _, sock, __: sock.close()
                serving.cancel_scope.cancel("the server stops")
        finally:
            self.descriptors.close()
            for port in self._ports.values():
                port.drop_spare()

    def _frontend(self, names: Names) -> Frontend:
        from trionat.server.names.frontend import Frontend  # noqa: PLC0415 - only there

        return Frontend(
            config=self.context.config,
            names=names,
            pool=self.context.leases.ports,
            acceptor=self.acceptor,
            refusals=self.context.refusals,
            shuts_out=lambda _: False,  # the parent has asked
            is_in_use=lambda _: True,
            leaving=self.context.stopping.is_set,
            ask_certificate=self._ask_certificate,
        )

    async def _ask_certificate(self, name: str) -> None:
        """Have the parent order a certificate for a name. Raises OrderError."""
        from trionat.server.certificates.order import OrderError  # noqa: PLC0415 - only there

        try:
            answer = await self.link.ask({"what": "certificate", "name": name})
        except LinkLostError as error:
            raise OrderError("here", "the server restarts") from error
        if (reason := answer["reason"]) is not None:
            raise OrderError(answer["code"], reason)

    async def _accept_until_stopped(self) -> None:
        """Take visitors and clients until the planned stop; the visit ports are closed then."""
        async with trio.open_nursery() as self._visiting:
            self.registry.on_claimed, self.registry.on_released = self._hold, self._let_go
            self.link.hear, self.link.reply = self._hear, self._reply
            self.link.take, self.link.missed = self._take, self._miss
            for claim in self.claims:
                self._hold(claim)
                self.context.leases.open(claim).vacate()
            self.link.post({"what": "ready"})
            await self.context.stopping.wait()
            self._visiting.cancel_scope.cancel("the server stops")

    # -- what the parent says ----------------------------------------------------------------------------------------

    def _hear(self, message: Values) -> None:
        context = self.context
        match message["what"]:
            case "room":
                self.registry.note_room(
                    message["slots"], message["ports"], again=message.get("again", False)
                )
            case "evict":
                self.registry.on_evict(
                    read_key(message["key"]), message["reason"], vacant_only=message["vacant_only"]
                )
            case "lost":
                self.registry.on_lost(read_key(message["key"]), message["reason"])
            case "moved":
                self.registry.on_moved(read_key(message["key"]))
            case "share":
                context.leases.live_limits.deal(
                    message["user"], read_limits(message["limits"]), read_share(message["share"])
                )
            case "end":
                if (session := context.sessions.by_uid.get(message["uid"])) is not None:
                    session.end(CloseCode(message["code"]), message["text"])
            case "change":
                self._change(message)
            case "drain":
                context.stopping.set()
            case "drain clients":
                self.commands.draining.begin()
            case "others":
                others = tuple(TCPAddress(host, port) for host, port in message["others"])
                self.commands.draining.name_others(others)
            case what:
                raise AssertionError(f"the parent says {what!r}")

    def _change(self, message: Values) -> None:
        """Run by another configuration from now on. Blocks, for a moment: it reads the certificate."""
        config: ServerConfig
        ready: Ready
        config, ready = pickle.loads(bytes.fromhex(message["config"]))  # noqa: S301 - of our own parent
        tls, context = self.connections.tls, self.context
        try:
            tls = server_context(Path(message["certificate"]), Path(message["key"]))
        except OSError as error:  # the parent has read it a moment ago
            log.warning(
                "the certificate cannot be read: the one before is shown", reason=str(error)
            )
        context.config = config
        context.leases.take_config(config)
        elsewhere = context.admission.elsewhere
        if not self.in_cluster:
            elsewhere = others_than(ready.public, config)
        context.admission.take_config(config, elsewhere)
        self.acceptor.take_config(config)
        self.connections.take_config(config, tls)
        if self._front is not None:
            self._front.take_config(config, AcmeConfig())
        for session in context.sessions.by_uid.values():
            session.config = attrs.evolve(session.config, drain_grace=config.drain_grace)
        if config.log_level is not None:
            set_level(config.log_level)

    async def _reply(self, question: Values) -> Values:
        match question["what"]:
            case "status":
                # Written in a thread, since there may be thousands of visitors in it.
                snapshot = await self.commands.snapshot()
                text = await trio.to_thread.run_sync(_write_snapshot, snapshot, limiter=self.scribe)
                return {"status": text}
            case "tasks":
                return {"tasks": attrs.asdict(await self.commands.tasks())}
            case "drain clients":
                return {"drained": attrs.asdict(await self.commands.drain())}
            case "kick":
                request = decode_request(question["request"].encode())
                assert isinstance(request, KickUser | KickSession | KickVisitor)  # noqa: S101 - for type checkers
                return {"kicked": attrs.asdict(await self.commands.kick(request))}
            case what:
                raise AssertionError(f"the parent asks {what!r}")

    def _take(self, purpose: bytes, sock: socket.socket, about: str) -> None:
        """Take over a descriptor."""
        sock.setblocking(False)
        if purpose == VISIT_PORT:
            number, fence = map(int, about.split())
            self._take_port(self._ports[number], sock, fence)
        elif purpose in (HTTPS, HTTP):
            source, visited = read_addresses(about)
            self._take_named(purpose, sock, source, visited)
        elif purpose in (VISITOR, PASSED_ON):
            source, visited = read_addresses(about)
            self._take_visitor(purpose, sock, source, visited)
        else:
            (source,) = read_addresses(about)
            self._accept(sock, source)

    def _take_visitor(
        self, purpose: bytes, sock: socket.socket, source: TCPAddress, visited: TCPAddress
    ) -> None:
        """Let a visitor in, unless it would take one of the descriptors that visitors leave free."""
        ports = self.context.leases.ports.ports
        most = self.descriptors.for_visitors
        if most is not None and sock.fileno() >= most:
            sock.close()
            self._miss(purpose, "")
            return
        is_here = ports[visited.port].queue is not None
        if purpose == PASSED_ON and not (is_here and _say(sock, TAKEN)):
            sock.close()  # the parent hears that, and the other node looks once more
            return
        self.acceptor.accept_behind_proxy(ports, sock, source, visited)

    def _take_named(
        self, purpose: bytes, sock: socket.socket, source: TCPAddress, visited: TCPAddress
    ) -> None:
        most, named = self.descriptors.for_visitors, self.acceptor.named
        if named is None or (most is not None and sock.fileno() >= most):
            sock.close()
            self._miss(purpose, "")
        elif purpose == HTTPS:
            named.accept_https(sock, source, visited)
        else:
            named.accept_http(sock, source, visited)

    def _take_port(self, port: _Port, sock: socket.socket, fence: int) -> None:
        if port.serving is not None or (fence <= port.given_up and fence not in port.claims):
            sock.close()  # of a claim that was given up before it came
            return
        port.drop_spare()
        port.spare, port.spare_fence = sock, fence
        self._serve(port)

    def _miss(self, purpose: bytes, about: str) -> None:
        """Something came for which this process has no descriptor."""
        if purpose == VISIT_PORT and not self.context.stopping.is_set():
            number, fence = map(int, about.split())
            port = self._ports[number]
            self._visiting.start_soon(self._ask_again, port, fence, name=f"ask for port {number}")
        self.context.refusals.count(
            Bound.DESCRIPTORS,
            lambda count: log.warning("connections were lost for lack of descriptors", count=count),
        )

    async def _ask_again(self, port: _Port, fence: int) -> None:
        """A port without its socket would have nobody who accepts: ask for it until it has come."""
        await trio.sleep(_LEND_AGAIN)
        if fence in port.claims and port.serving is None:
            self.link.post({"what": "lend", "port": port.visit_port.number, "fence": fence})

    # -- visit ports -------------------------------------------------------------------------------------------------

    def _hold(self, claim: Claim) -> None:
        for number in claim.ports:
            port = self._ports[number]
            port.claims.add(claim.fence)
            self._serve(port)

    def _let_go(self, claim: Claim) -> None:
        for number in claim.ports:
            port = self._ports[number]
            port.claims.discard(claim.fence)
            port.given_up = max(port.given_up, claim.fence)
            if port.claims:
                continue
            if port.serving is not None:
                port.serving.cancel("the port was given back")
                port.serving = None
            if port.spare_fence <= port.given_up:
                port.drop_spare()

    def _serve(self, port: _Port) -> None:
        """Accept visitors at a port that is claimed, as soon as its socket is there."""
        if (
            port.spare is not None
            and port.spare_fence in port.claims
            and not self.context.stopping.is_set()
        ):
            sock, port.spare = port.spare, None
            port.serving = trio.CancelScope()
            number = port.visit_port.number
            self._visiting.start_soon(
                self._accept_visitors, port, sock, port.serving, name=f"visit port {number}"
            )

    async def _accept_visitors(
        self, port: _Port, sock: socket.socket, scope: trio.CancelScope
    ) -> None:
        address = TCPAddress(self.context.config.effective_visit_host, port.visit_port.number)
        listener = Listener(sock, address)
        try:
            with scope:
                accept = partial(self.acceptor.accept, port.visit_port, address)
                await listener.serve(accept, self.descriptors, most=self.descriptors.for_visitors)
        finally:
            listener.close()

    # -- what the parent is told -------------------------------------------------------------------------------------

    async def _report_regularly(self) -> None:
        while True:
            await trio.sleep(BEAT)
            self._report()

    def _report(self) -> None:
        """Tell how much sessions have relayed and users have in use, for the limits that hold for all workers."""
        sessions = self.context.sessions.by_uid
        relayed = {uid: session.tunnels.relayed for uid, session in sessions.items()}
        users: dict[str, int] = {}
        for uid, session in sessions.items():
            users[session.username] = users.get(session.username, 0) + relayed[uid]
        before, self._relayed = self._relayed, users
        usage: dict[str, tuple[int, int, int]] = {}
        for user, limits in self.context.leases.live_limits.by_user.items():
            if limits.limits.visitors is not None or limits.limits.bandwidth is not None:
                moved = max(0, users.get(user, 0) - before.get(user, 0))
                usage[user] = limits.visitors, limits.refused, moved
                limits.refused = 0
        self.link.post(
            {
                "what": "beat",
                "relayed": relayed,
                "usage": usage,
                "visitor": self.visitors.next,
                "visitors": sum(lease.queue.present for lease in self.context.leases),
                "refused": self.commands.metrics.refused(),
                **self._counted(),
            }
        )

    def _counted(self) -> Values:
        """What was counted since the last report, and what there is, where `/metrics` are on."""
        if (tally := self.context.tally) is None:
            return {}
        meter_sessions(self.context)
        return {"tally": tally.take(), "present": attrs.asdict(count_present(self.context))}
