"""Waiting for streams, and moving bytes through them without waking a task for each piece.

A *step* is a plain function that does what can be done at once, and returns what it waits for: the `Readiness` of an end of a
stream, `TURN` where the others are to have their turn first, or None when its task has to go on. `pump` calls it again and again::

    def step() -> Readiness | None:
        try:
            count = source.recv_into(room)
        except BlockingIOError:
            return source.readable
        ...

    await pump(step)  # returns when `step` has returned None

For whoever calls it, `pump` is an ordinary call: what the step raises comes out of it, and it can be cancelled between two steps.

Waking a task costs about as much as moving a small message. So where the kernel has epoll, one task of the run, `Poller`, calls the
steps of all streams, and wakes a stream's own task only when its step returns None. Sockets are registered with epoll once, not
for each wait. Elsewhere, and for streams that are no sockets, the task waits itself.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import outcome
import trio

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    Step: TypeAlias = "Callable[[], Readiness | None]"


HAS_EPOLL: Final = sys.platform == "linux"


class Readiness(ABC):
    """What a step waits for. At most one task waits for the same at a time (`trio.BusyResourceError`).

    Whoever waits has tried before, and was told that nothing is there, or that it most likely is not (a short read).
    """

    __slots__ = ()

    @abstractmethod
    async def wait(self) -> None:
        """Wait until a try may succeed.

        Raises:
            trio.ClosedResourceError: the stream is closed, before or meanwhile.
        """

    @abstractmethod
    def nudge(self) -> None:
        """Let who waits go on, if anybody does, although nothing may have come: soon, and not within this call. From here on somebody else may wait."""

    async def run(self, step: Step) -> Readiness | None:
        """Wait, and call the step; return what it waits for then. Raises what either of them raises."""
        await self.wait()
        return step()


class _Turn(Readiness):
    __slots__ = ()

    async def wait(self) -> None:
        await trio.lowlevel.checkpoint()

    def nudge(self) -> None:
        """Nobody waits for long."""


TURN: Final = _Turn()
"""For a step that could go on at once, and lets the others have their turn."""


async def pump(step: Step) -> None:
    """Call `step` whenever what it waits for may have come true, until it waits for nothing.

    A checkpoint unless the very first call returns None. Raises what the step raises, and `trio.ClosedResourceError` when a stream that it
    waits for is closed.
    """
    awaited = step()
    while awaited is not None:
        awaited = await awaited.run(step)


class Gate(Readiness):
    """What a step waits for that a function of ours brings about: it calls `open`. Nothing is remembered, so a step looks first."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: _Waiting | None = None

    async def wait(self) -> None:
        """Wait for the next `open`."""
        await self.run(_nothing)

    async def run(self, step: Step) -> Readiness | None:
        """See `Readiness`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        waiting = _Waiting(step, trio.lowlevel.current_task())
        self.park(waiting)

        def abort(_: object) -> trio.lowlevel.Abort:
            waiting.leave()
            return trio.lowlevel.Abort.SUCCEEDED

        awaited: Readiness | None = await trio.lowlevel.wait_task_rescheduled(abort)
        return awaited

    def park(self, waiting: _Waiting) -> None:
        """Have the step called at the next `open`."""
        if self.waiting is not None:
            raise trio.BusyResourceError
        self.waiting, waiting.at = waiting, self

    def nudge(self) -> None:
        """See `Readiness`."""
        self.open()

    def open(self) -> None:
        """Let who waits go on, if anybody does: soon, and not within this call."""
        if (waiting := self.waiting) is not None:
            waiting.leave()
            if HAS_EPOLL:
                current_poller().give_turn(waiting)
            else:
                trio.lowlevel.reschedule(waiting.task, outcome.Value(TURN))


def open_readiness(sock: socket.socket) -> SocketReadiness:
    """Return both ends of a socket's readiness, in the way that is best here; whoever closes the socket closes it first."""
    return _EpollSocket(sock) if HAS_EPOLL else _TrioSocket(sock)


class SocketReadiness(Protocol):
    """Both directions of a socket's readiness."""

    @property
    def readable(self) -> Readiness:
        """What to wait for when nothing is there."""
        ...

    @property
    def writable(self) -> Readiness:
        """What to wait for when there is no room."""
        ...

    def close(self) -> None:
        """Wake whoever waits; to be called before the socket is closed. Idempotent."""
        ...


# -- with Trio's own waits -------------------------------------------------------------------------------------------


class _TrioSocket:
    __slots__ = ("_sock", "readable", "writable")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.readable = _Readable(sock)
        self.writable = _Writable(sock)

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._sock)


class _Readable(Readiness):
    __slots__ = ("_scope", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._scope: trio.CancelScope | None = None  # of who waits

    async def wait(self) -> None:
        if self._sock.fileno() < 0:
            raise trio.ClosedResourceError
        scope = trio.CancelScope()
        before, self._scope = self._scope, scope
        try:
            with scope:
                await self._wait()
        finally:
            if self._scope is scope:  # else it was nudged, and somebody else may wait
                self._scope = before

    async def _wait(self) -> None:
        await trio.lowlevel.wait_readable(self._sock)

    def nudge(self) -> None:
        scope, self._scope = self._scope, None
        if scope is not None:
            scope.cancel("nudged")


class _Writable(_Readable):
    __slots__ = ()

    async def _wait(self) -> None:
        await trio.lowlevel.wait_writable(self._sock)


# -- with an epoll of our own ----------------------------------------------------------------------------------------

if sys.platform == "linux":
    import select

    # Edge-triggered: the kernel tells when something arrives or room appears, once. A step has always tried before it waits, so
    # nothing is missed but one thing: an end of the stream that came along with the last bytes. `_EpollSocket.ended` remembers that.
    _EVENTS: Final = (
        select.EPOLLIN | select.EPOLLPRI | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
    )
    _ENDED: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
    _MORE: Final = (
        select.EPOLLPRI | _ENDED
    )  # a read stops in front of urgent data (tcp(7)), or of the end
    _READ: Final = select.EPOLLIN | select.EPOLLPRI | _ENDED
    _WRITE: Final = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR

    # Sockets in one answer of epoll. Each is one step, so this many get their turn before any has a second one.
    _BATCH: Final = 256

    # Seconds for which the poller waits itself when steps were called and no task is to run: the answer to what was just sent is most often
    # a few hundred microseconds away, and the way through Trio's own wait costs fifty. It is the shortest that epoll knows.
    _LINGER: Final = 0.001

    # Seconds after which Trio's other tasks have their turn in any case: while bytes move, its deadlines and other sockets may be late by so much.
    # With 0.002 a single connection made 5 % fewer requests, since Trio's turn costs some fifty microseconds.
    _STAY: Final = 0.005


class _EpollSocket:
    __slots__ = ("closed", "fd", "poller", "readable", "writable")

    def __init__(self, sock: socket.socket) -> None:
        self.fd = sock.fileno()
        self.closed = False
        self.poller: Poller | None = None  # once it is registered
        self.readable = _EpollReadiness(self)
        self.writable = _EpollReadiness(self)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self.poller is not None:
            self.poller.forget(self)
        for end in (self.readable, self.writable):
            end.missed = True
            end.socket = None  # no circle: what is closed is free at once, and waits for no garbage collector
            if (waiting := end.waiting) is not None:
                waiting.leave()
                current_poller().wake(waiting, outcome.Error(trio.ClosedResourceError()))


class _Waiting:
    """A task in `pump`, and the step that is called in its place; `at` is what it waits for."""

    __slots__ = ("at", "step", "task")

    def __init__(self, step: Step, task: trio.lowlevel.Task) -> None:
        self.step = step
        self.task = task
        self.at: Readiness | None = None

    def leave(self) -> None:
        at, self.at = self.at, None
        if isinstance(at, _EpollReadiness | Gate):
            at.waiting = None


class _EpollReadiness(Readiness):
    """`missed` says that the kernel has told it while nobody waited; `ended` that the stream has ended, which it tells once."""

    __slots__ = ("ended", "missed", "socket", "waiting")

    def __init__(self, socket: _EpollSocket) -> None:
        self.socket: _EpollSocket | None = socket  # none once it is closed
        self.waiting: _Waiting | None = None
        self.missed = False
        self.ended = False

    async def wait(self) -> None:
        if (sock := self.socket) is not None and sock.poller is not None:
            sock.poller.ask_anew(sock)
        await self.run(_nothing)

    def nudge(self) -> None:
        if (waiting := self.waiting) is not None:
            waiting.leave()
            current_poller().give_turn(waiting)

    async def run(self, step: Step) -> Readiness | None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.missed and self.socket is not None:
            self.missed = self.ended
            await trio.lowlevel.cancel_shielded_checkpoint()
            return step()
        waiting = _Waiting(step, trio.lowlevel.current_task())
        current_poller().park(waiting, self)

        def abort(_: object) -> trio.lowlevel.Abort:
            waiting.leave()
            return trio.lowlevel.Abort.SUCCEEDED

        awaited: Readiness | None = await trio.lowlevel.wait_task_rescheduled(abort)
        return awaited


def _nothing() -> None:
    """The step of somebody who only waits."""


class Poller:
    """Calls the steps of all streams of one Trio run. Its task lives as long as the run does."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._sockets: dict[int, _EpollSocket] = {}
        self._turns: deque[_Waiting] = deque()  # can go on without anything having happened
        self._woken = False
        self._calls_steps = False

    def park(self, waiting: _Waiting, at: _EpollReadiness) -> None:
        """Have the step called when the kernel tells it.

        Raises:
            trio.ClosedResourceError, trio.BusyResourceError: see `Readiness`.
        """
        sock = at.socket
        if sock is None:
            raise trio.ClosedResourceError
        if at.waiting is not None:
            raise trio.BusyResourceError
        at.waiting = waiting
        waiting.at = at
        if sock.poller is None:  # the kernel tells at once what is there already
            self._epoll.register(sock.fd, _EVENTS)
            self._sockets[sock.fd] = sock
            sock.poller = self

    def ask_anew(self, sock: _EpollSocket) -> None:
        """Have the kernel tell once more what is there: somebody waits who may not have tried before."""
        self._epoll.modify(sock.fd, _EVENTS)

    def forget(self, sock: _EpollSocket) -> None:
        """The socket is about to be closed."""
        del self._sockets[sock.fd]
        if not self._epoll.closed:  # else the run is over
            self._epoll.unregister(sock.fd)

    async def run(self) -> None:
        """Call steps for ever."""
        fd = self._epoll.fileno()
        try:
            while True:
                if self._turns:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(fd)
                self._calls_steps = True
                try:
                    self._call_steps()
                finally:
                    self._calls_steps = False
        finally:
            self._epoll.close()

    def _call_steps(self) -> None:
        poll, sockets, turns, call = self._epoll.poll, self._sockets, self._turns, self._call
        until = perf_counter() + _STAY
        self._woken = False
        lingers = False
        while True:
            events = poll(_LINGER if lingers and not turns else 0, _BATCH)
            if not events and not turns:
                # Asked once: from here on nobody becomes runnable but by a step, and that is `_woken`.
                if lingers or trio.lowlevel.current_statistics().tasks_runnable:
                    return
                lingers = True
                continue
            for _ in range(len(turns)):
                waiting = turns.popleft()
                if waiting.at is not None:  # else it was cancelled, or what it waited for is closed
                    call(waiting)
            for fd, what in events:
                sock = sockets.get(fd)
                if sock is None:  # closed by a step before
                    continue
                if what & _READ:
                    end = sock.readable
                    if what & _MORE:
                        end.missed = True
                        end.ended = end.ended or bool(what & _ENDED)
                    if end.waiting is None:
                        end.missed = True
                    else:
                        call(end.waiting)
                if what & _WRITE:
                    end = sock.writable
                    if end.waiting is None:
                        end.missed = True
                    else:
                        call(end.waiting)
            if self._woken or perf_counter() > until:
                return

    def _call(self, waiting: _Waiting) -> None:
        waiting.leave()  # a step may close what it waited for
        try:
            awaited = waiting.step()
            # By type: `isinstance` asks an ABC, which costs as much as the rest of this.
            if type(awaited) is _EpollReadiness:
                if not awaited.missed or awaited.socket is None:
                    self.park(waiting, awaited)
                    return
                awaited.missed = awaited.ended
                awaited = TURN
            elif type(awaited) is Gate:
                awaited.park(waiting)
                return
        except BaseException as error:  # noqa: BLE001, ASYNC103 - it belongs to the task that pumps
            self.wake(waiting, outcome.Error(error))
            return  # noqa: ASYNC104 - the same
        if awaited is TURN:
            waiting.at = TURN
            self._turns.append(waiting)
        else:
            self.wake(waiting, outcome.Value(awaited))

    def give_turn(self, waiting: _Waiting) -> None:
        """Call the step in its turn; where no steps are called just now, its task does it."""
        if self._calls_steps:
            waiting.at = TURN
            self._turns.append(waiting)
        else:
            self.wake(waiting, outcome.Value(TURN))

    def wake(self, waiting: _Waiting, result: outcome.Outcome[Readiness | None]) -> None:
        """Let the task go on that waits."""
        self._woken = True
        trio.lowlevel.reschedule(waiting.task, result)


_of_run: trio.lowlevel.RunVar[Poller] = trio.lowlevel.RunVar("poller")


def current_poller() -> Poller:
    """Return the poller of this run; the first call starts it."""
    try:
        return _of_run.get()
    except LookupError:
        poller = Poller()
        _of_run.set(poller)
        trio.lowlevel.spawn_system_task(poller.run, name="poller")
        return poller
