"""Answers to commands: one request for each connection, a few connections at once."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, assert_never

import attrs
import trio

from trionat.errors import RemoteProtocolError
from trionat.log import get_logger
from trionat.server.admin.messages import (
    FOR_RELOAD,
    FOR_UPGRADE,
    REQUEST_BYTES,
    AskDrain,
    AskReload,
    AskStatus,
    AskTasks,
    AskUpgrade,
    AskWhere,
    KickSession,
    KickUser,
    KickVisitor,
    LiftBan,
    Lifted,
    Request,
    decode_request,
    encode_answer,
    encode_error,
)
from trionat.server.upgrade.upgrade import UpgradeError
from trionat.transport.deadline import deadline
from trionat.transport.isolation import isolated

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from trionat.config.reload import Reloaded
    from trionat.server.admin.commands import Commands
    from trionat.server.admin.messages import Drained, Kicked, Whereabouts
    from trionat.server.admin.snapshot import Snapshot
    from trionat.server.admin.task_tree import Branch
    from trionat.server.upgrade.upgrade import Upgrade, Upgraded

log = get_logger(__name__)

NO_UPGRADE: Final = "this server was not started by trionat serve, so nobody knows how a new process is to be started"

_PLACES: Final = 4
"""Connections at once; more wait in the kernel's queue. Chosen, not measured."""

_LONG_PLACES: Final = 4
"""Reloads at once, besides, and as many upgrades: they may take minutes, where a disk hangs, and `status` is wanted just then, or an upgrade. What is more is refused. Chosen."""

_PATIENCE: Final = 10.0
"""Seconds for a connection, from its first byte to its last."""

_NO_FILE: Final = "this server was started by a program, which knows its configuration"

_ALL_LONG: Final = f"{_LONG_PLACES} {{}} are under way: wait for them, or look at the server's log"

_SHORTAGE_WAIT: Final = 1.0
"""Seconds to the next try, where a connection cannot be accepted for lack of descriptors."""


@attrs.define(eq=False)
class AdminServer:
    """Answers what commands ask for, until it is cancelled. Does not own the listening socket. `reload` is there where the configuration can be read again.

    With `upgrade` another process can take over.
    """

    commands: Commands
    reload: Callable[[], Awaitable[Reloaded]] | None = None
    upgrade: Upgrade | None = None
    _places: trio.Semaphore = attrs.field(init=False, factory=partial(trio.Semaphore, _PLACES))
    _reloads: trio.Semaphore = attrs.field(
        init=False, factory=partial(trio.Semaphore, _LONG_PLACES)
    )
    _upgrades: trio.Semaphore = attrs.field(
        init=False, factory=partial(trio.Semaphore, _LONG_PLACES)
    )
    _scribe: trio.CapacityLimiter = attrs.field(
        init=False, factory=partial(trio.CapacityLimiter, 1)
    )  # its own, as threads for names may all be waiting

    async def serve(self, listening: socket.socket) -> None:
        """Serve every connection in a task of its own."""
        async with trio.open_nursery() as nursery:
            await self.accept(listening, nursery)

    async def accept(self, listening: socket.socket, nursery: trio.Nursery) -> None:
        """Serve every connection in a task of `nursery`, until cancelled: they go on then."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        while True:
            await self._places.acquire()
            try:
                stream = await listener.accept()
            except OSError as error:
                self._places.release()
                log.warning("cannot take a command now", error=error.strerror or str(error))
                await trio.sleep(_SHORTAGE_WAIT)
            except BaseException:
                self._places.release()
                raise
            else:
                nursery.start_soon(self._attend, stream, name="command")

    async def wait_answered(self) -> None:
        """Wait until all commands that were accepted have their answers. Nobody accepts any more."""
        for _ in range(_PLACES):
            await self._places.acquire()
        for _ in range(_LONG_PLACES):
            await self._reloads.acquire()
            await self._upgrades.acquire()

    async def _attend(self, stream: trio.SocketStream) -> None:
        """Answer one connection, which has a place; it gives that back when it has asked for what may take long."""
        place = self._places
        try:
            with isolated(log, "a command was dropped"):
                async with stream:
                    request = await self._hear(stream)
                    if (longer := self._places_of(request)) is not None:
                        longer.acquire_nowait()  # there is one
                        place = longer
                        self._places.release()
                    if request is not None:
                        await self._reply(stream, request)
        finally:
            place.release()

    async def _hear(self, stream: trio.SocketStream) -> Request | None:
        """Return what is asked for; None where that is nothing, or cannot be now, and was told."""
        with deadline(_PATIENCE, "it took too long"):
            try:
                request = decode_request(await _read_line(stream))
            except RemoteProtocolError as error:
                await _say(stream, encode_error(str(error)))
            except trio.BrokenResourceError:
                log.debug("a command went away before it had asked")
            else:
                longer = self._places_of(request)
                if longer is None or longer.value:
                    return request
                what = "reloads" if longer is self._reloads else "upgrades"
                await _say(stream, encode_error(_ALL_LONG.format(what)))
        return None

    def _places_of(self, request: Request | None) -> trio.Semaphore | None:
        """Return the places of what may take long."""
        match request:
            case AskReload():
                return self._reloads
            case AskUpgrade():
                return self._upgrades
            case _:
                return None

    async def _reply(self, stream: trio.SocketStream, request: Request) -> None:
        with deadline(_patience(request), "it took too long"):
            try:
                answer = await self._answer(request)
            except UpgradeError as error:
                answer = encode_error(str(error))
            await _say(stream, answer)

    async def _answer(self, request: Request) -> bytes:
        """Do what is asked for. The answer is written in a thread, since there may be thousands of visitors in it."""
        answer: Snapshot | Branch | Drained | Whereabouts | Kicked | Lifted | Reloaded | Upgraded
        match request:
            case AskStatus():
                answer = await self.commands.snapshot()
            case AskTasks():
                answer = await self.commands.tasks()
            case AskDrain():
                answer = await self.commands.drain()
            case AskWhere():
                answer = self.commands.where(request.name)
            case AskReload():
                if self.reload is None:
                    return encode_error(_NO_FILE)
                answer = await self.reload()
            case AskUpgrade():
                if self.upgrade is None:
                    raise UpgradeError(NO_UPGRADE)
                answer = await self.upgrade.perform()
            case KickUser() | KickSession() | KickVisitor():
                answer = await self.commands.kick(request)
                if answer.anybody:
                    log.info("kicked", request=str(request), **attrs.asdict(answer))
            case LiftBan():
                answer = Lifted(is_lifted=self.commands.lift(request.network))
            case _:
                assert_never(request)
        return await trio.to_thread.run_sync(encode_answer, answer, limiter=self._scribe)


def _patience(request: Request) -> float:
    match request:
        case AskUpgrade():
            return FOR_UPGRADE
        case AskReload():
            return FOR_RELOAD
        case _:
            return _PATIENCE


async def _say(stream: trio.SocketStream, answer: bytes) -> None:
    try:
        await stream.send_all(answer)
    except trio.BrokenResourceError:
        log.debug("a command went away before it had its answer")


async def _read_line(stream: trio.SocketStream) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = await stream.receive_some(REQUEST_BYTES)
        line += piece
        if not piece or len(line) > REQUEST_BYTES:
            raise RemoteProtocolError(f"a request is one line of at most {REQUEST_BYTES} bytes")
    return bytes(line)
