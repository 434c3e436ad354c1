"""One worker as its parent sees it: a process that is started, heard, and replaced when it has ended."""

from __future__ import annotations

import enum
import logging
import os
import pickle
import socket
import subprocess
import sys
from collections import deque
from contextlib import ExitStack, closing
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs
import trio

from trionat.errors import PeerTimeoutError
from trionat.log import get_logger
from trionat.protocol.client_hello import ROUTE_LENGTH
from trionat.server.admin.readings import Present
from trionat.server.refusals import Bound
from trionat.server.registry.values import write_claim
from trionat.server.upgrade.wire import TO_GIVE, Parcel, Wire, wait_for
from trionat.server.workers.claims import ClaimServer
from trionat.server.workers.link import BEAT, Link
from trionat.server.workers.log_relay import relay_log
from trionat.server.workers.purpose import CONNECTION, GIVE, INHERIT
from trionat.server.workers.remote_sessions import RemoteSessions
from trionat.server.workers.shares import Usage
from trionat.server.workers.values import (
    read_addresses,
    read_reservation,
    write_addresses,
    write_identity,
    write_reservation,
)
from trionat.transport.isolation import isolated
from trionat.version import VERSION

if TYPE_CHECKING:
    from trionat.address import TCPAddress
    from trionat.config.server import ServerConfig
    from trionat.server.accounts.limits import Share
    from trionat.server.registry.claim import Claim
    from trionat.server.upgrade.estate import Estate
    from trionat.server.workers.link import Values
    from trionat.server.workers.parent import Parent
    from trionat.store.base import Limits

log = get_logger(__name__)

_SILENT_LOOKS: Final = 6
"""Looks, one each `BEAT`, without a word of a worker after which it hangs. Counted, not timed: a parent that was stopped itself has not looked."""

_START_LOOKS: Final = 30
"""The same for one that has not begun to serve yet."""

_STABLE_AFTER: Final = 10.0
"""Seconds after which a worker that ends has not failed at the start. Chosen."""

_LONGEST_PAUSE: Final = 30.0

_EXPECTED_FOR: Final = 10.0
"""Seconds for which a client that was sent to a worker counts as one of its sessions, until it is one. Chosen: most log in at once."""

_MOST_WAITING: Final = 1024
"""Connections that wait for a worker that is being started; more are closed."""

_LAST_WORDS: Final = 1.0
"""Seconds to read what a worker has said last, to its parent and to the log; and for one to end whose link has ended."""

_VISITORS_AHEAD: Final = 100_000
"""How far a worker's successor is ahead in its count of visitors: more than may have come since the last report."""


_Process: TypeAlias = trio.Process


class State(enum.StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    UP = "up"
    AWAY = "away"


@attrs.frozen
class _Waiting:
    """A connection that waits until some moment for a worker that is being started."""

    until: float
    purpose: bytes
    connection: socket.socket
    about: str


@attrs.define(eq=False)
class WorkerProcess:
    """The worker of a number, from 0, whichever process that is. `word` is its route, and how the log calls it: behind that of the node, where the server is one.

    Of N workers, this one's sessions have the numbers that leave its number, when 1 is taken off and N divides. Visitors have one more, for the parent's.
    """

    parent: Parent
    number: int
    word: str = attrs.field(init=False)
    state: State = attrs.field(init=False, default=State.STARTING)
    pid: int | None = attrs.field(init=False, default=None)
    starts: int = attrs.field(init=False, default=0)
    visitors: int = attrs.field(init=False, default=0)
    refused: dict[str, int] = attrs.field(init=False, factory=lambda: {})
    present: Present = attrs.field(init=False, factory=Present)
    sessions: RemoteSessions = attrs.field(init=False)
    away_since: float = attrs.field(init=False, default=float("inf"))
    settled: trio.Event = attrs.field(init=False, factory=trio.Event)
    ended: trio.Event = attrs.field(init=False, factory=trio.Event)
    link: Link = attrs.field(init=False)
    claims: ClaimServer = attrs.field(init=False)
    _told: ServerConfig | None = attrs.field(init=False, default=None)
    _running: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    _failures: int = attrs.field(init=False, default=0)
    _silent: int = attrs.field(init=False, default=0)
    _next_uid: int = attrs.field(init=False)
    _next_visitor: int = attrs.field(init=False)
    _inherited: tuple[Claim, ...] = attrs.field(init=False, default=())
    _was_held: bool = attrs.field(init=False, default=False)
    _expected: deque[float] = attrs.field(init=False, factory=lambda: deque())
    _waiting: deque[_Waiting] = attrs.field(init=False, factory=lambda: deque())

    def __attrs_post_init__(self) -> None:
        self._next_uid = self._next_visitor = self.number + 1
        self.word, node = f"w{self.number + 1}", self.parent.node
        if node is not None:  # as configurations of proxies before several nodes have it
            self.word = f"{node.route[: ROUTE_LENGTH - len(self.word) - 1]}.{self.word}"
        self.sessions = RemoteSessions(self.parent, self.word)

    @property
    def is_there(self) -> bool:
        """Whether connections are passed on to it, now or in a moment."""
        return self.state is not State.AWAY

    @property
    def load(self) -> int:
        """Its sessions, and those that are about to be."""
        now = trio.current_time()
        while self._expected and self._expected[0] < now:
            self._expected.popleft()
        return len(self.sessions) + len(self._expected)

    def expect_session(self) -> None:
        """A client was sent to it that has no session yet."""
        self._expected.append(trio.current_time() + _EXPECTED_FOR)

    def take(
        self, connection: socket.socket, *addresses: TCPAddress, purpose: bytes = CONNECTION
    ) -> None:
        """Pass a connection on, with the addresses that belong to it; one for a worker that is being started waits for it."""
        about = write_addresses(*addresses)
        if self.state is State.UP:
            self.link.pass_on(purpose, connection, about)
        else:
            self._keep_waiting(purpose, connection, about)

    def _keep_waiting(self, purpose: bytes, connection: socket.socket, about: str) -> None:
        """Have a connection wait for the process that is to come, also one that the last one has not taken; what an upgrade passes is for nobody else."""
        is_for_any = purpose not in (GIVE, INHERIT)
        if is_for_any and self.is_there and len(self._waiting) < _MOST_WAITING:
            until = trio.current_time() + self.parent.config.handshake_timeout
            self._waiting.append(_Waiting(until, purpose, connection, about))
        else:
            connection.close()
            if is_for_any and not self.parent.is_leaving():
                self._count_lost("too many wait for the worker, or it is away")

    # -- upgrades ----------------------------------------------------------------------------------------------------

    async def give(self, attempt: int) -> Parcel:
        """Have it end its sessions and accept nobody, and return all that it has. `attempt` is the number of this upgrade.

        Raises:
            PeerError: it does not give it.
        """
        here, there = socket.socketpair()
        with closing(Wire(here)) as wire:
            self.link.pass_on(GIVE, there, str(attempt))
            parcel = await wait_for(partial(wire.receive, within=TO_GIVE))
            try:  # what it has said of its sessions is heard before the answer
                with trio.fail_after(TO_GIVE):
                    await self.link.ask({"what": "at rest"})
            except trio.TooSlowError:
                parcel.close()
                raise PeerTimeoutError("it does not answer") from None
            except BaseException:
                parcel.close()
                raise
        return parcel

    async def inherit(self, estate: Estate) -> Values:
        """Give it what another server has left; return how many clients and visitors it has taken.

        Raises:
            PeerError: it does not take it.
        """
        here, there = socket.socketpair()
        with closing(Wire(here)) as wire:
            self.link.pass_on(INHERIT, there)

            def give() -> Parcel:
                wire.send(
                    "estate",
                    estate.values,
                    data=estate.data,
                    descriptors=estate.descriptors,
                    within=TO_GIVE,
                )
                return wire.receive(within=TO_GIVE)

            return (await wait_for(give)).values

    def take_numbers(self, next_visitor: int, next_session: int) -> None:
        """Its numbers are not below these from now on. One that is not up is started anew: it may know others."""
        self._next_uid = not_below(next_session, self._next_uid, len(self.parent.workers))
        self._next_visitor = not_below(next_visitor, self._next_visitor, self.parent.visitor_step)
        if self.state is not State.UP:
            self._running.cancel("its numbers have changed")
            return
        self.link.post(
            {
                "what": "numbers",
                "uid": self._next_uid,
                "step": len(self.parent.workers),
                "visitor": self._next_visitor,
            }
        )

    def open(self) -> None:
        """This server serves from now on."""
        if self.state is State.UP:
            self.link.post({"what": "open"})

    def go_on(self, attempt: int, *, anew: bool) -> None:
        """No other process goes on: this one does. `anew`: another one may have had streams, which end."""
        if self.state is State.UP:
            self.link.post({"what": "go on", "attempt": attempt, "anew": anew})
            for claim in self.parent.table.held_by(self.word):
                self.parent.lend(claim, self)

    def let_go(self) -> None:
        """Another process goes on: it ends when nobody is left whose connection it has to keep."""
        if self.state is State.UP:
            self.link.post({"what": "handed over"})

    def cut_off(self) -> None:
        """Have it end at once, if it has not ended by itself."""
        self._running.cancel("nobody needs it any more")

    async def is_gone(self) -> bool:
        """Tell whether it has ended, or does so within a moment."""
        with trio.move_on_after(_LAST_WORDS):  # noqa: ASYNC912 - where it is there
            while not self.link.lost:  # noqa: ASYNC110 - at an upgrade, where one has failed
                await trio.sleep(0.02)
        return self.link.lost

    @property
    def next_numbers(self) -> tuple[int, int]:
        """Those of the visitor and the session to come, as far as is known here."""
        return self._next_visitor, self._next_uid

    def drain(self) -> None:
        """Have it end as planned; at once where it is not up yet, and has nothing to finish."""
        if self.state is State.UP:
            self.link.post({"what": "drain"})
        else:
            self._running.cancel("told to stop before it was up")

    def tell_share(self, user: str, limits: Limits, share: Share) -> None:
        """Tell it which part of a user's limits it may give."""
        if self.state is State.UP:
            self.link.post(
                {
                    "what": "share",
                    "user": user,
                    "limits": attrs.asdict(limits),
                    "share": attrs.asdict(share),
                }
            )

    def tell_others(self) -> None:
        """Tell it where its clients may go when they have to."""
        if self.state is State.UP and self.parent.others is not None:
            others = [[each.host, each.port] for each in self.parent.others]
            self.link.post({"what": "others", "others": others})

    def tell_change(self) -> None:
        """Tell it its new configuration, and that the certificate is to be read again."""
        if self.state is State.UP:
            self.link.post({"what": "change", **self._configuration()})
            self.claims.tell_free()  # there may be more slots, and ports

    def _configuration(self) -> Values:
        """Return by what it is to run. Of all secrets it needs the private key alone, in its file; the configuration of a server has none."""
        parent = self.parent
        self._told = parent.worker_config
        ready = attrs.evolve(
            parent.ready,
            ticket=None,
            first_password=None,
            visit_ports=tuple(parent.ports.ports),
        )
        return {
            "config": pickle.dumps((parent.worker_config, ready)).hex(),
            "certificate": str(parent.certificate),
            "key": str(parent.key),
        }

    # -- its life ------------------------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Run it, and another one whenever it has ended, until a planned stop."""
        try:
            while True:
                began = trio.current_time()
                with trio.CancelScope() as self._running:
                    await self._run()
                if self.parent.succession.is_resting:
                    self._go_away()
                    await self.parent.succession.wait_awake()
                if self.parent.is_leaving():
                    return
                pause = self._pause(trio.current_time() - began)
                log.warning("a worker has ended: starting another", worker=self.word, pause=pause)
                if pause:
                    self._go_away()
                    with trio.move_on_after(pause):
                        await self.parent.stopping.wait()
                    await self.parent.succession.wait_awake()
                    if self.parent.is_leaving():
                        return
        finally:
            self._go_away()
            self.ended.set()

    def _pause(self, lived: float) -> float:
        """Return how many seconds to wait for the next start: none after one that worked, then 1, 2, 4, up to 30."""
        if lived > _STABLE_AFTER:
            self._failures = 0
        self._failures += 1
        if self._failures == 1:
            return 0.0
        return float(min(_LONGEST_PAUSE, 2.0 ** (self._failures - 2)))

    def _go_away(self) -> None:
        """There will be none for a while: its connections go elsewhere, and so may its clients."""
        self.state = State.AWAY
        self.away_since = min(
            self.away_since, trio.current_time()
        )  # not since each start that failed
        self.settled.set()
        while self._waiting:
            self._waiting.popleft().connection.close()

    async def _run(self) -> None:
        """Run one process to its end; nothing of it is left then."""
        self.state, self._silent = State.STARTING, 0
        with ExitStack() as theirs, ExitStack() as ours:
            try:
                pipe, passed = self._open_link(ours, theirs)
                process = await trio.lowlevel.open_process(
                    _command(*passed),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=passed,
                    env=_environment(),
                    process_group=0,  # what a terminal sends is for the parent, from the first moment on
                )
            except OSError as error:
                log.warning("a worker cannot be started", worker=self.word, error=str(error))
                return
            theirs.close()
            self.pid, self.starts = process.pid, self.starts + 1
            try:
                await self._accompany(process, pipe)
            finally:
                with trio.CancelScope(shield=True):
                    with trio.move_on_after(_LAST_WORDS):  # it resets what would look complete else
                        await process.wait()
                    process.kill()
                    await process.wait()
                self._clean_up()
            log.info("worker ended", worker=self.word, pid=process.pid, code=process.returncode)

    def _open_link(
        self, ours: ExitStack, theirs: ExitStack
    ) -> tuple[trio.lowlevel.FdStream, tuple[int, int, int]]:
        """Make the link to a new process; return where its log comes from, and the descriptors that it is to have. The stacks close both ends."""
        ends: list[socket.socket] = []
        passed: list[int] = []
        for _ in range(2):
            mine, its = socket.socketpair()
            ours.callback(mine.close)
            theirs.callback(its.close)
            ends.append(mine)
            passed.append(its.fileno())
        reading, writing = os.pipe()
        pipe = trio.lowlevel.FdStream(reading)
        ours.callback(pipe.close)
        theirs.callback(os.close, writing)
        os.set_blocking(writing, False)
        self.link = Link(*ends)
        lend = partial(self.parent.lend, worker=self)
        self.claims = ClaimServer(
            self.parent.table, self.word, self.link, lend, self.parent.registry_kind
        )
        return pipe, (passed[0], passed[1], writing)

    async def _accompany(self, process: _Process, pipe: trio.lowlevel.FdStream) -> None:
        heard, logged = trio.Event(), trio.Event()

        async def talk() -> None:
            with isolated(log, "the link to a worker was lost", worker=self.word):
                await self.link.run()
            heard.set()

        async def read_log() -> None:
            with isolated(log, "the log of a worker was lost", worker=self.word):
                await relay_log(pipe, self.word)
            logged.set()

        self.link.hear = self._hear
        self.link.reply = self._reply
        self.link.take = self._take_back
        self.link.missed, self.link.returned = self._miss, self._keep_waiting
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk, name="link")
            nursery.start_soon(read_log, name="log")
            nursery.start_soon(self._watch, process, name="watch")
            await process.wait()
            with trio.move_on_after(_LAST_WORDS):
                await heard.wait()
                await logged.wait()
            nursery.cancel_scope.cancel("the worker has ended")

    def _take_back(self, purpose: bytes, sock: socket.socket, about: str) -> None:
        """A visitor has waited there whose port another node has by now, or has come at the moment at which that got it."""
        most = self.parent.descriptors.for_visitors
        if most is not None and sock.fileno() >= most:
            sock.close()
            self._miss(purpose, about)
        else:
            self.parent.take_back(sock, *read_addresses(about))

    def _miss(self, _: bytes, __: str) -> None:
        """A connection could not be passed on: the worker does not take them, or the kernel holds no more descriptors on their way (RLIMIT_NOFILE)."""
        self._count_lost("the worker does not take them, or descriptors are too few (ulimit -n)")

    def _count_lost(self, reason: str) -> None:
        self.parent.refusals.count(
            Bound.DESCRIPTORS,
            lambda count: log.warning(
                "connections were lost", reason=reason, count=count, worker=self.word
            ),
        )

    async def _watch(self, process: _Process) -> None:
        """Kill a worker that hangs, and close connections that have waited too long for it."""
        ending = False
        while True:
            await trio.sleep(BEAT)
            now = trio.current_time()
            while self._waiting and self._waiting[0].until < now:
                self._waiting.popleft().connection.close()
            self._silent += 1
            most = _SILENT_LOOKS if self.state is State.UP else _START_LOOKS
            was_ending, ending = ending, self.link.lost  # by itself, within a moment
            if self._silent >= most or (was_ending and ending):
                log.warning("a worker hangs: it is killed", worker=self.word, pid=process.pid)
                process.kill()
                return

    def _clean_up(self) -> None:
        """The process has ended: what it had is lost, or stands reserved."""
        self.parent.table.leave(self.word)
        self.sessions.lose_all()
        for bound, number in self.refused.items():
            self.parent.refusals.counts[Bound(bound)] += number
        self.refused = {}
        self._next_visitor += _VISITORS_AHEAD * self.parent.visitor_step
        self.visitors = 0
        self.present = Present()
        self.pid = None
        self.state = State.STARTING

    # -- what it says --------------------------------------------------------------------------------------------------

    def _hear(self, message: Values) -> None:
        self._silent = 0
        if self.claims.hear(message):
            return
        match message["what"]:
            case "hello" if message["version"] == VERSION:
                self.link.post(self._start())
            case "hello":
                log.warning(
                    "trionat was upgraded while it runs, and no worker can be started any more: run trionat upgrade, or restart the server",
                    worker=self.word,
                    runs=VERSION,
                    installed=message["version"],
                )
                self.link.give_up()
            case "ready":
                self._come_up()
            case "beat":
                self._take_report(message)
            case "lend":
                self.parent.lend_again(message["port"], self)
            case "up":
                self.sessions.begin(message, self.link)
                self._next_uid = message["uid"] + len(self.parent.workers)
                if self._expected:
                    self._expected.popleft()
            case "down":
                self.sessions.note_relayed(message["uid"], message["relayed"])
                self.sessions.end(message["uid"])
            case "event":
                self.sessions.take_event(message["type"], message["data"])
            case what:
                raise AssertionError(f"a worker says {what!r}")

    def _start(self) -> Values:
        """Return what a worker needs to know."""
        parent = self.parent
        for claim in parent.table.held_by(self.word):
            if not all(number in parent.ports.ports for number in claim.ports):
                # A port of it was taken away, of which nobody has heard.
                parent.table.release(claim)
        self._inherited, self._was_held = parent.table.held_by(self.word), parent.is_held
        return {
            "what": "start",
            **self._configuration(),
            "word": self.word,
            "in_cluster": parent.node is not None,
            "held": self._was_held,
            "events": parent.events.is_on,
            "step": len(parent.workers),
            "uid": self._next_uid,
            "visitor": self._next_visitor,
            "visitor_step": parent.visitor_step,
            "room": list(self.claims.room.values()),
            "claims": [write_claim(claim) for claim in self._inherited],
        }

    def _come_up(self) -> None:
        parent = self.parent
        if parent.succession.is_resting:  # it is told to end in this very moment
            return
        self.state, self.away_since = State.UP, float("inf")
        if self._told is not parent.worker_config:  # it has changed meanwhile
            self.tell_change()
        self.claims.join()
        for claim in self._inherited:
            if parent.table.is_current(claim):
                parent.lend(claim, self)
            else:  # its client has gone to another worker, or node, meanwhile
                self.claims.move(claim.key)
        self._inherited = ()
        self.claims.tell_room()
        log.info("worker up", worker=self.word, pid=self.pid)
        if parent.drained:
            self.link.post({"what": "drain clients"})
        if parent.node is not None:
            self.tell_others()
        if self._was_held and not parent.is_held:
            self.open()
        for _ in range(len(self._waiting)):  # whose link is lost already gets them back
            waiting = self._waiting.popleft()
            self.link.pass_on(waiting.purpose, waiting.connection, waiting.about)
        self.settled.set()
        if parent.stopping.is_set():
            self.drain()

    def _take_report(self, report: Values) -> None:
        for uid, relayed in report["relayed"].items():
            self.sessions.note_relayed(int(uid), relayed)
        for user, (visitors, refused, moved) in report["usage"].items():
            if (shared := self.parent.limits.by_user.get(user)) is not None:
                shared.usage[self.word] = Usage(visitors=visitors, refused=refused, moved=moved)
        self._next_visitor = max(self._next_visitor, report["visitor"])
        self.visitors = report["visitors"]
        self.refused = report["refused"]
        if self.parent.tally is not None:
            self.parent.tally.add(report["tally"])
            self.present = Present(**report["present"])

    async def _reply(self, question: Values) -> Values:
        self._silent = 0
        parent = self.parent
        match question["what"]:
            case "authenticate":
                token = question["token"]
                identity = await parent.authenticator.authenticate(
                    question["host"],
                    question["username"],
                    password=question["password"],
                    token=None if token is None else bytes.fromhex(token),
                    caveats=tuple(question["caveats"]),
                )
                return {"identity": write_identity(identity)}
            case "reserve names":
                assert parent.owners is not None, "asked by a worker with names"  # noqa: S101 - for type checkers
                reservation = await parent.owners.reserve(
                    question["user"], question["account_id"], question["names"]
                )
                return {"reservation": write_reservation(reservation)}
            case "take back names":
                assert parent.owners is not None, "they were reserved"  # noqa: S101 - for type checkers
                await parent.owners.take_back(read_reservation(question["reservation"]))
                return {}
            case "certificate":
                return await parent.order_certificate(question["name"])
            case _:
                return await self.claims.reply(question)


def not_below(least: int, number: int, step: int) -> int:
    """Return the first of a process's numbers, of which `number` is one, that is not below `least`."""
    return number + max(0, -(-(least - number) // step)) * step


def _environment() -> dict[str, str]:
    """Return what a worker inherits: none of our own variables, of which some are passwords. It gets the configuration from its parent."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TRIONAT_")}


def _command(messages: int, descriptors: int, log_pipe: int) -> list[str]:
    """Return how a worker is started. Like this process, it takes no module out of the working directory unless this one does."""
    safe = [] if "" in sys.path or os.getcwd() in sys.path else ["-P"]  # noqa: PTH109 - compared as text
    level = logging.getLogger("trionat").getEffectiveLevel()
    return [
        *(sys.executable, *safe, "-m", "trionat.server.workers"),
        *map(str, (messages, descriptors, log_pipe, level)),
    ]
