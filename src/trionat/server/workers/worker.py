"""The life of a worker: logins, the queue, sessions, tunnels and visitors of one process among several.

It listens nowhere itself. Connections to the control port come from the parent, and with each claim the listening sockets of its ports.
Signals are the parent's to act on; when the parent is gone, so is the worker.
"""

from __future__ import annotations

import pickle
import signal
import socket
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.address import TCPAddress
from trionat.config.acme import AcmeConfig
from trionat.errors import PeerError
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
from trionat.server.sessions.registry import TO_LET_GO, Sessions
from trionat.server.tally import Tally
from trionat.server.upgrade.wire import TO_GIVE, Wire, wait_for
from trionat.server.visitors.acceptor import VisitorAcceptor
from trionat.server.visitors.ports import PortPool, VisitPort
from trionat.server.workers.lent_ports import LentPorts
from trionat.server.workers.link import BEAT, Link, LinkLostError
from trionat.server.workers.purpose import (
    GIVE,
    HTTP,
    HTTPS,
    INHERIT,
    PASSED_ON,
    TAKEN,
    VISIT_PORT,
    VISITOR,
)
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
from trionat.signals import Signal
from trionat.transport.descriptors import Descriptors
from trionat.transport.names import NameResolver
from trionat.transport.tls import server_context
from trionat.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.config.server import ServerConfig
    from trionat.events import Ready
    from trionat.server.admin.snapshot import Snapshot
    from trionat.server.names.frontend import Frontend, Names
    from trionat.server.names.listener import NameListener
    from trionat.server.registry.claim import Claim
    from trionat.server.upgrade.extension import Extensions
    from trionat.server.workers.link import Values

log = get_logger(__name__)

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


def _close(connection: socket.socket, _: TCPAddress) -> None:
    """Nobody is heard now."""
    connection.close()


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
    ports: LentPorts
    visitors: Numbers
    claims: tuple[Claim, ...]
    names: Names | None = None
    in_cluster: bool = False
    _front: Frontend | None = attrs.field(init=False, default=None)
    scribe: trio.CapacityLimiter = attrs.field(
        init=False, factory=partial(trio.CapacityLimiter, 1)
    )  # its own, as threads for names may all be waiting
    _relayed: dict[str, int] = attrs.field(init=False, factory=lambda: {})
    _accept: Callable[[socket.socket, TCPAddress], None] = attrs.field(init=False, default=_close)
    _has_begun: bool = attrs.field(init=False, default=False)
    _heir: Wire | None = attrs.field(init=False, default=None)
    _attempt: int = attrs.field(init=False, default=0)
    _refused: int = attrs.field(init=False, default=0)
    _had_been_taken: bool = attrs.field(init=False, default=False)
    _called: Signal = attrs.field(init=False, factory=Signal)
    _named: NameListener | None = attrs.field(init=False, default=None)
    _extensions: Extensions | None = attrs.field(init=False, default=None)
    _visiting: trio.Nursery = attrs.field(init=False)

    @classmethod
    async def make(cls, link: Link, start: Values) -> Worker:
        """Make what runs, of what the parent says first. Blocks: it reads the certificate."""
        config: ServerConfig
        ready: Ready
        config, ready = pickle.loads(bytes.fromhex(start["config"]))  # noqa: S301 - of our own parent
        refusals = RefusalCounters()
        hub = Hub(forward=EventReports(link).tell if start["events"] else None)
        pool = PortPool([VisitPort(number) for number in ready.visit_ports])
        registry = RemoteRegistry(link, start["word"], ports=pool.ports)
        registry.note_room(*start["room"])
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
                SessionReports(link).accounted, Numbers(start["uid"], step), tally=tally, events=hub
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
        if config.domain is not None and ready.state_dir is not None:  # a parent has one
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
            ports=LentPorts(
                link=link,
                context=context,
                acceptor=acceptor,
                descriptors=descriptors,
                is_held=start["held"],
            ),
        )

    async def run(self) -> None:
        """Serve until every session has ended after a planned stop, or other processes serve in place of this server, or cancelled."""
        try:
            async with trio.open_nursery() as reporting:
                reporting.start_soon(self._report_regularly, name="report")
                async with trio.open_nursery() as serving:
                    await self._serve(serving)
                    await self._extend(serving)
                    serving.cancel_scope.cancel("the server stops")
                reporting.cancel_scope.cancel("the server stops")
        finally:
            self.descriptors.close()
            self.ports.close()

    async def _serve(self, serving: trio.Nursery) -> None:
        """The same; connections of visitors of names are served in `serving`, and all else has ended when this returns."""
        context = self.context
        async with trio.open_nursery() as besides:
            besides.start_soon(context.admission.run, name="admission")
            besides.start_soon(context.leases.expire_visitors, name="expire visitors")
            besides.start_soon(context.refusals.tell_regularly, name="tell refusals")
            besides.start_soon(self.commands.metrics.count_rates, name="count rates")
            besides.start_soon(self.commands.draining.run, name="drain clients")
            if context.tally is not None:
                besides.start_soon(context.tally.measure_lag, name="measure loop lag")
            if self.names is not None:
                self._front = self._frontend(self.names)
                self.acceptor.named = self._named = self._front.start(serving, besides)
            try:
                while await self._listen():
                    pass
            finally:
                # The parent may pass connections on until it hears of the end. Not later than here: the nurseries they are for are about to be closed.
                self.link.take = lambda _, sock, __: sock.close()
            besides.cancel_scope.cancel("the server stops")

    async def _listen(self) -> bool:
        """Take visitors and clients until the planned stop, or until other processes are to go on; True: they do not, and all goes on here."""
        context = self.context
        async with trio.open_nursery() as hearing:
            self._accept = self.connections.acceptor(hearing)
            try:
                async with trio.open_nursery() as self._visiting:
                    self.ports.nursery = self._visiting
                    if self._has_begun:
                        self.ports.open()
                    else:
                        self._begin()
                    while self._heir is None and not context.stopping.is_set():
                        await self._called.wait()
                    self._visiting.cancel_scope.cancel("nobody is accepted any more")
                if self._heir is None:
                    context.admission.drain()
                    await context.sessions.wait_none()
                else:
                    await self._rest()
            finally:
                self._accept = _close
            hearing.cancel_scope.cancel("nobody is heard any more")
        heir, self._heir = self._heir, None
        return heir is not None and await self._hand_over(heir, self._attempt)

    def _begin(self) -> None:
        self._has_begun = True
        self.registry.on_claimed, self.registry.on_released = self.ports.hold, self.ports.let_go
        self.link.hear, self.link.reply = self._hear, self._reply
        self.link.take, self.link.missed = self._take, self._miss
        for claim in self.claims:
            self.ports.hold(claim)
            self.context.leases.open(claim).vacate()
        self.context.leases.is_at_rest = self.ports.is_held
        self.link.post({"what": "ready"})

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
            leaving=self._is_leaving,
            ask_certificate=self._ask_certificate,
        )

    def _is_leaving(self) -> bool:
        """Tell whether each answer is the last one on its connection."""
        return self.context.stopping.is_set() or self.acceptor.is_handed_over

    async def _ask_certificate(self, name: str) -> None:
        """Have the parent order a certificate for a name. Raises OrderError."""
        from trionat.server.certificates.order import OrderError  # noqa: PLC0415 - only there

        try:
            answer = await self.link.ask({"what": "certificate", "name": name})
        except LinkLostError as error:
            raise OrderError("here", "the server restarts") from error
        if (reason := answer["reason"]) is not None:
            raise OrderError(answer["code"], reason)

    # -- upgrades ----------------------------------------------------------------------------------------------------

    async def _rest(self) -> None:
        """Have no session up, and nobody accepted, until it is known who goes on."""
        self.ports.rest()
        if self._named is not None:
            await self._named.wait_known()
        self.acceptor.rest()
        self.context.leases.is_at_rest = True
        with trio.move_on_after(TO_LET_GO):  # noqa: ASYNC912 - where some are up
            await self.context.sessions.let_go()

    async def _hand_over(self, heir: Wire, attempt: int) -> bool:
        """Give everything to whoever is at the other end, and wait for what comes of it; tell whether this process goes on."""
        from trionat.server.upgrade.estate import write_estate  # noqa: PLC0415 - seldom
        from trionat.server.upgrade.extension import Extensions  # noqa: PLC0415 - the same

        leases, uids = self.context.leases, self.context.sessions.uids
        assert isinstance(uids, Numbers), "made so"  # noqa: S101 - for type checkers
        extensions = self._extensions = Extensions()
        estate = write_estate(leases, extensions.descriptor)
        values = {**estate.values, "next_visitor": self.visitors.next, "next_session": uids.next}
        give = partial(
            heir.send,
            "estate",
            values,
            data=estate.data,
            descriptors=estate.descriptors,
            within=TO_GIVE,
        )
        try:
            await wait_for(give)
        except PeerError as error:
            log.warning("what this worker has cannot be handed over", reason=str(error))
        finally:
            heir.close()
        while not self.acceptor.is_handed_over and self._refused < attempt:
            await self._called.wait()
        if self.acceptor.is_handed_over:
            leases.let_go(extensions.visitors)
            self.ports.is_held = False
            self.acceptor.go_on(handed_over=True)
            return False
        if self._had_been_taken:
            for lease in leases:
                lease.queue.reset_streams("the process that had taken it over was given up")
        extensions.close()
        self.acceptor.go_on(handed_over=False)
        return True

    async def _inherit(self, wire: Wire) -> None:
        """Go on with what the processes of another server have left; nobody is accepted yet."""
        from trionat.server.upgrade.estate import read_estate  # noqa: PLC0415 - seldom

        with closing(wire):
            try:
                parcel = await wait_for(partial(wire.receive, within=TO_GIVE))
                clients, visitors = await read_estate(parcel, self.context.leases, self.acceptor)
                taken = {"clients": clients, "visitors": visitors}
                await wait_for(partial(wire.send, "taken", taken, within=TO_GIVE))
            except PeerError as error:  # the parent gives it up, and this process with it
                log.warning("nothing was inherited", reason=str(error))

    async def _extend(self, serving: trio.Nursery) -> None:
        """Stay for those visitors whom another server serves, and whose connection cannot leave this process; at a stop for the grace at most."""
        extensions = self._extensions
        if extensions is not None and self.acceptor.is_handed_over and len(extensions):
            await extensions.keep(serving, self.context.stopping, self.context.config.drain_grace)

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
                self._called.notify()
            case "handed over":
                self.acceptor.is_handed_over = True
                self._called.notify()
            case "go on":
                self._refused = message["attempt"]
                self._had_been_taken = message["anew"]
                self._called.notify()
            case "numbers":
                self.visitors.next = message["visitor"]
                context.sessions.uids = Numbers(message["uid"], message["step"])
            case "open":
                self.ports.open()
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
        self.ports.change(frozenset(ready.visit_ports))

    async def _reply(self, question: Values) -> Values:
        match question["what"]:
            case "status":
                # Written in a thread, since there may be thousands of visitors in it.
                snapshot = await self.commands.snapshot()
                text = await trio.to_thread.run_sync(_write_snapshot, snapshot, limiter=self.scribe)
                return {"status": text}
            case "tasks":
                return {"tasks": attrs.asdict(await self.commands.tasks())}
            case "at rest":
                return {}  # what was said before has been heard then
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
            self.ports.take(number, fence, sock)
        elif purpose in (HTTPS, HTTP):
            source, visited = read_addresses(about)
            self._take_named(purpose, sock, source, visited)
        elif purpose in (VISITOR, PASSED_ON):
            source, visited = read_addresses(about)
            self._take_visitor(purpose, sock, source, visited)
        elif purpose == GIVE:
            self._heir, self._attempt = Wire(sock), int(about)
            self._called.notify()
        elif purpose == INHERIT:
            self._visiting.start_soon(self._inherit, Wire(sock), name="inherit")
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
        port = ports.get(visited.port)
        is_here = port is not None and port.queue is not None
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

    def _miss(self, purpose: bytes, about: str) -> None:
        """Something came for which this process has no descriptor."""
        if purpose == VISIT_PORT:
            number, fence = map(int, about.split())
            self.ports.miss(number, fence)
        self.context.refusals.count(
            Bound.DESCRIPTORS,
            lambda count: log.warning("connections were lost for lack of descriptors", count=count),
        )

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
