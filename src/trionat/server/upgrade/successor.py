"""The new process, as the one sees it that serves: started, heard, given everything, or ended."""

from __future__ import annotations

import socket
import subprocess
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import attrs
import trio

from trionat.errors import PeerError
from trionat.log import get_logger
from trionat.server.upgrade.orphan import Orphan
from trionat.server.upgrade.upgrade import VARIABLE, UpgradeError
from trionat.server.upgrade.wire import Parcel, Values, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

log = get_logger(__name__)

T = TypeVar("T")

CAPABILITIES: Final = ("leases", "streams", "bans")
"""What this version understands of what is handed over."""

_TO_START: Final = 30.0
"""Seconds in which the new process has to say that it is there: it imports everything, and reads its configuration."""

_TO_PREPARE: Final = 60.0
"""Seconds in which it has to be ready then: it waits for the store, and reads certificates."""

_TO_TAKE: Final = 10.0
"""Seconds in which it has to have taken over, while nobody is accepted: it takes some hundredths."""

_TO_DIE: Final = 5.0
"""Seconds for a process that was killed."""


_TO_DIE_BY_ITSELF: Final = 1.0
"""Seconds to see whether a process that says nothing any more has ended, and how."""

_TO_HEAR_LAST: Final = 0.01
"""Seconds to hear what a process has said before it was killed: it is there, or will never come."""


@attrs.define(eq=False)
class Successor:
    """See the module. Whoever has it calls `let_go` or `end`."""

    process: subprocess.Popen[bytes] | Orphan
    wire: Wire
    version: str = attrs.field(init=False, default="")
    capabilities: tuple[str, ...] = attrs.field(init=False, default=())
    _is_over: bool = attrs.field(init=False, default=False)

    @classmethod
    async def start(
        cls, command: Sequence[str], environ: Mapping[str, str], *, orphaned: bool
    ) -> Successor:
        """Start the program; `orphaned` has it be the child of whoever looks after this process.

        Raises:
            UpgradeError: it cannot be started.
        """
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with there:
            try:
                process = await trio.to_thread.run_sync(
                    _start, command, environ, there.fileno(), orphaned
                )
            except OSError as error:
                here.close()
                raise UpgradeError(
                    f"the new process cannot be started: {error.strerror or error}"
                ) from error
            except BaseException:
                here.close()
                raise
        return cls(process, Wire(here))

    @property
    def pid(self) -> int:
        """The new process's id."""
        return self.process.pid

    async def meet(self, values: Values, descriptors: Sequence[int]) -> None:
        """Hear who it is, and give it copies of what it needs to get ready; return when it is.

        Raises:
            UpgradeError: it does not get ready.
        """
        hello = await self._hear("hello", _TO_START, "it has not started")
        self.version = str(hello.values.get("version", ""))
        self.capabilities = tuple(map(str, hello.values.get("capabilities", ())))
        missing = {"leases", "streams"} - set(self.capabilities)
        if missing:
            raise UpgradeError(
                f"trionat {self.version} does not understand what it would be given: stop this server, and start that one"
            )
        await self._send("welcome", values, descriptors=descriptors, within=_TO_START)
        await self._hear("ready", _TO_PREPARE, "it is not ready")

    async def give(self, values: Values, data: Iterable[bytes], descriptors: Sequence[int]) -> None:
        """Give it everything; return when it has taken over.

        Raises:
            UpgradeError: it has not.
        """
        await self._send("estate", values, data=data, descriptors=descriptors, within=_TO_TAKE)
        await self._hear("taken", _TO_TAKE, "it has not taken over")

    async def _send(
        self,
        word: str,
        values: Values,
        *,
        data: Iterable[bytes] = (),
        descriptors: Sequence[int] = (),
        within: float,
    ) -> None:
        send = partial(
            self.wire.send, word, values, data=data, descriptors=descriptors, within=within
        )
        try:
            await self._in_thread(send)
        except PeerError as error:
            raise await self._explain(str(error)) from error

    async def _hear(self, word: str, within: float, what: str) -> Parcel:
        try:
            parcel = await self._in_thread(partial(self.wire.receive, within=within))
        except PeerError as error:
            raise await self._explain(f"{what}: {error}") from error
        if parcel.word == "no":
            raise UpgradeError(str(parcel.values.get("reason", "it does not say why")))
        if parcel.word != word:
            raise UpgradeError(f"the new process says {parcel.word!r} instead of {word!r}")
        return parcel

    async def _in_thread(self, job: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(job, abandon_on_cancel=True)
        except trio.Cancelled:
            with suppress(OSError):
                self.wire.sock.shutdown(socket.SHUT_RDWR)  # ends the thread
            raise

    async def _explain(self, reason: str) -> UpgradeError:
        """Say how it ended, if it has."""
        end = await trio.to_thread.run_sync(self._wait, _TO_DIE_BY_ITSELF, abandon_on_cancel=True)
        if end is not None:
            return UpgradeError(
                f"the new process has ended{end} before it has taken over: see its messages on standard error and in the log"
            )
        return UpgradeError(f"the new process is given up: {reason}")

    async def end(self) -> bool:
        """Kill it, and return when it is gone: only then nobody else has what it was given. Cancelling does not keep it from that.

        Tell whether it had said that it has taken over, when nobody waited for that any more. Idempotent, and nothing is done after `let_go`.
        """
        if self._is_over:
            return False
        self._is_over = True
        self.process.kill()
        end = None
        with trio.CancelScope(shield=True):  # no longer than that
            end = await trio.to_thread.run_sync(self._wait, _TO_DIE)
        if end is None:
            log.error("the new process cannot be killed", pid=self.pid)
        try:
            return self.wire.receive(within=_TO_HEAR_LAST).word == "taken"
        except PeerError:
            return False
        finally:
            self.wire.close()
            if isinstance(self.process, Orphan):
                self.process.close()

    def _wait(self, seconds: float) -> str | None:
        """Return how it has ended, as far as that can be known; None: it has not."""
        if isinstance(self.process, Orphan):
            return "" if self.process.wait(seconds) else None
        try:
            return f" with code {self.process.wait(seconds)}"
        except subprocess.TimeoutExpired:
            return None

    def let_go(self) -> None:
        """It serves: it is nobody's child any more."""
        self._is_over = True
        self.wire.close()
        if isinstance(self.process, Orphan):
            self.process.close()
        else:
            self.process.returncode = 0  # nobody waits for it, and that is no mistake


def _start(
    command: Sequence[str],
    environ: Mapping[str, str],
    descriptor: int,
    orphaned: bool,
) -> subprocess.Popen[bytes] | Orphan:
    environ = {**environ, VARIABLE: str(descriptor)}
    if orphaned:
        return Orphan.start(command, environ, [descriptor])
    return subprocess.Popen(  # noqa: S603 - as this process was started
        list(command), pass_fds=[descriptor], env=environ
    )
