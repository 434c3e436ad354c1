"""Upgrades of the process that serves: who asks for one, what comes of it, and the new process until it is ready.

Who serves waits with `wait_successor`, stops accepting, and gives everything to what that returns; then it calls `succeed`, or `fail` and goes on.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import attrs
import trio

from trionat.errors import StartupError
from trionat.log import get_logger
from trionat.signals import Signal
from trionat.system import has_unix_sockets
from trionat.version import VERSION

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from trionat.address import TCPAddress
    from trionat.server.upgrade.successor import Successor
    from trionat.transport.listener import Listener

log = get_logger(__name__)

VARIABLE: Final = "TRIONAT_UPGRADE_DESCRIPTOR"
"""The environment variable with the number of the new process's end of the wire."""

_AT_TERMINAL: Final = (
    "this server runs in the foreground of a terminal, whose shell would have its prompt back while the new process goes on there: stop the server"
    " and start it anew, or have the system keep it up (trionat service install), and upgrade it then"
)


class UpgradeError(StartupError):
    """The new process does not serve; the one before goes on."""


@attrs.frozen(kw_only=True)
class Upgraded:
    """Which process serves by now, and which has so far; how many clients and visitors were handed over, and for how many seconds nobody was accepting."""

    pid: int
    version: str
    old_pid: int
    old_version: str
    clients: int
    visitors: int
    seconds: float

    @classmethod
    def of(cls, values: dict[str, Any]) -> Upgraded:
        """Return what `attrs.asdict` has made these values of."""
        return cls(**values)


@attrs.define(eq=False)
class _Asked:
    done: trio.Event = attrs.field(factory=trio.Event)
    outcome: Upgraded | UpgradeError | None = None


@attrs.define(eq=False)
class Upgrade:
    """See the module. `command` and `environ` are what this process was started with; the new one is started with the same.

    `why_not` says why this server cannot do it, and is empty where it can. `lock` is that of the state folder. `on_success` is called with the number of the new process, which is `orphaned` where a service manager looks after this one. `is_at_terminal` tells whether a shell waits for this one. `done` is set when another process serves.
    """

    command: Sequence[str]
    environ: Mapping[str, str] = attrs.field(repr=False)
    why_not: str = ""
    lock: BinaryIO | None = None
    on_success: Callable[[int], None] = lambda _: None
    orphaned: bool = False
    is_at_terminal: Callable[[], bool] = lambda: False
    done: trio.Event = attrs.field(init=False, factory=trio.Event)
    _asked: _Asked | None = attrs.field(init=False, default=None)
    _changed: Signal = attrs.field(init=False, factory=Signal)

    @property
    def is_done(self) -> bool:
        """Whether another process serves by now."""
        return self.done.is_set()

    @property
    def is_under_way(self) -> bool:
        """Whether one was asked for and has not failed: what the new process gets must not change any more."""
        return self._asked is not None or self.is_done

    def ask(self) -> None:
        """Have a new process take over. Where that is under way, nothing changes."""
        if reason := self._refusal():
            log.warning("no upgrade", reason=reason)
        else:
            self._ask()

    def _refusal(self) -> str:
        """Return why there is none now; empty: there can be one. A shell may put a server into the background, or fetch it from there."""
        return self.why_not or (_AT_TERMINAL if self.is_at_terminal() else "")

    def _ask(self) -> _Asked:
        if self._asked is None:
            self._asked = _Asked()
            self._changed.notify()
        return self._asked

    async def perform(self) -> Upgraded:
        """The same, and return what has come of it. Cancelled, it goes on.

        Raises:
            UpgradeError: this process still serves.
        """
        if reason := self._refusal():
            raise UpgradeError(reason)
        asked = self._ask()
        await asked.done.wait()
        if isinstance(asked.outcome, Upgraded):
            return asked.outcome
        raise asked.outcome or UpgradeError("nothing has come of it")

    async def wait_successor(
        self,
        folder: Path,
        listeners: Callable[[], Iterable[tuple[str, Listener]]],
        admin_socket: socket.socket | None,
    ) -> Successor:
        """Wait until somebody asks, and return the new process when it is ready to take over. One that does not get ready is told, and ended."""
        while True:  # noqa: ASYNC913 - somebody asks for each
            while self._asked is None:
                await self._changed.wait()
            log.info("upgrade: a new process is started")
            try:
                return await self._start(folder, listeners, admin_socket)
            except UpgradeError as error:
                self.fail(error)

    async def _start(
        self,
        folder: Path,
        listeners: Callable[[], Iterable[tuple[str, Listener]]],
        admin_socket: socket.socket | None,
    ) -> Successor:
        from trionat.server.upgrade.successor import Successor  # noqa: PLC0415 - seldom

        successor = await Successor.start(self.command, self.environ, orphaned=self.orphaned)
        try:
            given = list(self._given(listeners(), admin_socket))
            values = {
                "pid": os.getpid(),
                "version": VERSION,
                "folder": str(folder.absolute()),  # noqa: ASYNC240 - asks no disk
                "sockets": [
                    {"role": role, "host": "", "port": 0}
                    if address is None
                    else {"role": role, "host": address.host, "port": address.port}
                    for role, address, _ in given
                ],
            }
            await successor.meet(values, [descriptor for _, _, descriptor in given])
        except BaseException:
            await successor.end()  # noqa: ASYNC102 - shielded there, for a while
            raise
        return successor

    def _given(
        self, listeners: Iterable[tuple[str, Listener]], admin_socket: socket.socket | None
    ) -> Iterator[tuple[str, TCPAddress | None, int]]:
        if self.lock is not None:
            yield "lock", None, self.lock.fileno()
        if admin_socket is not None:
            yield "admin", None, admin_socket.fileno()
        for role, listener in listeners:
            yield role, listener.address, listener.sock.fileno()

    def succeed(self, upgraded: Upgraded) -> None:
        """Another process serves from now on."""
        self.done.set()
        self.why_not = "another process serves by now"
        if self.lock is not None:
            self.lock.close()  # the other one has it, also while this one stays for some visitors
        self.on_success(upgraded.pid)
        log.info("upgrade: the new process serves", **attrs.asdict(upgraded))
        self._finish(upgraded)

    def fail(self, error: UpgradeError) -> None:
        """This process goes on, which whoever has asked is told too."""
        log.warning(
            "upgrade: the new process does not serve, and this one goes on", reason=str(error)
        )
        text = f"the new process does not serve, and the server goes on as it was (process {os.getpid()}): {error}"
        self._finish(UpgradeError(text))

    def stop(self) -> None:
        """This process stops: nothing comes of it any more."""
        self.why_not = "the server stops"
        if self._asked is not None:
            self._finish(UpgradeError(self.why_not))

    def _finish(self, outcome: Upgraded | UpgradeError) -> None:
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.outcome = outcome
            asked.done.set()


def this_command(argv: Sequence[str], executable: str) -> list[str]:
    """Return the command line by which this process was started, `argv` as the interpreter has got it."""
    return [executable or argv[0], *argv[1:]]


def this_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what the new process gets of the environment: what is meant for one process only it does not."""
    return {
        name: value for name, value in environ.items() if name not in {"WATCHDOG_PID", VARIABLE}
    }


def is_possible() -> bool:
    """Tell whether this system can hand descriptors from one process to another."""
    return has_unix_sockets()
