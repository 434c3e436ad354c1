"""HTTP on one connection: the protocol is anycorn's, and what goes in and out of it has bounds and deadlines of ours.

anycorn's own server shields what it sends from cancellation, so a browser that reads nothing would hold up the end of the program; it
accepts as many connections as there are; and whatever goes wrong with one ends all. Here each has a task of its own, which can be ended at any time.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

import attrs
import trio
from anycorn.app_wrappers import ASGIWrapper
from anycorn.config import Config
from anycorn.events import Closed, RawData, Updated
from anycorn.logging import Logger
from anycorn.protocol.h11 import H11Protocol
from anycorn.protocol.http_stream import HTTPStream
from anycorn.task_group import TaskGroup
from anycorn.typing import ConnectionState
from anycorn.worker_context import WorkerContext

from trionat.errors import ConnectionLostError
from trionat.log import get_logger
from trionat.transport.deadline import deadline

if TYPE_CHECKING:
    import socket
    import ssl

    import h11
    from anycorn.events import Event
    from anycorn.typing import ASGIFramework
    from starlette.types import ASGIApp, Scope

    from trionat.address import TCPAddress

log = get_logger(__name__)

_CONNECTION: Final = "trionat.connection"
"""In the `state` of a request: its connection."""

_HEAD_BYTES: Final = 16 * 1024
"""A request's head has at most."""

_HEAD_PATIENCE: Final = 15.0
"""Seconds for a head to be there: from the beginning of the connection, or from the answer before."""

_HANDSHAKE_PATIENCE: Final = 10.0
_WRITE_PATIENCE: Final = 20.0
"""Seconds for `_PIECE` to leave."""

_PIECE: Final = 64 * 1024
_LINGER: Final = 1.0
"""Seconds for what a peer goes on sending that has its answer: closed at once, the kernel would take the answer away from it."""

_QUOTED: Final = re.compile(r"(?:\bbytearray\()?\bb['\"].*", re.DOTALL)
_LOST: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


class _Silent(Logger):
    """Takes what anycorn would print. What is wrong with a request is its sender's, and told at DEBUG."""

    async def info(self, message: str, *args: Any, **_: Any) -> None:
        """Log it, but for what was said: where a head is malformed, h11 quotes a line of it, which may be the one with a token or a cookie."""
        told = (
            _QUOTED.sub("…", str(each)) if isinstance(each, Exception) else each for each in args
        )
        log.debug("a request was refused", reason=message % tuple(told))

    async def exception(self, message: str, *_: Any, **__: Any) -> None:
        """Log a bug."""
        log.exception("internal error", of=message)  # noqa: LOG004 - called where there is one

    async def access(self, request: object, response: object, request_time: float) -> None:
        """Log nothing: what is changed is logged by name."""


def _make_config() -> Config:
    config = Config()
    config.errorlog = None
    config.logger_class = _Silent
    config.include_server_header = False
    config.h11_max_incomplete_size = _HEAD_BYTES
    config.max_app_queue_size = 2  # pieces of a body
    return config


_CONFIG: Final = _make_config()


class _HTTP1(H11Protocol):
    """HTTP/1.1 alone: a request that offers to go on as HTTP/2 is answered as it is."""

    async def _check_protocol(self, event: h11.Request) -> None:
        await trio.lowlevel.checkpoint()
        names = {name for name, _ in event.headers}
        if b"content-length" in names and b"transfer-encoding" in names:
            # Whoever stands between may have believed the other one: what follows is not read as a request (RFC 9112 6.1).
            self.keep_alive_requests = self.config.keep_alive_max_requests

    async def _maybe_recycle(self) -> None:
        # The application has said its last word and is told that it is over, by itself: where a body is left that it has not read, the queue is full, and it would wait for itself.
        if isinstance(self.stream, HTTPStream):
            self.stream.app_put = None
        await super()._maybe_recycle()


@attrs.define(eq=False)
class WebConnection:
    """A connection to a web server, and who is behind it. `run` owns the socket."""

    sock: socket.socket
    peer: TCPAddress
    app: ASGIApp
    tls: ssl.SSLContext | None
    idle_since: float | None = attrs.field(init=False, factory=trio.current_time)
    """Since when it waits for a request, or for the rest of its head; None: it does not."""

    is_known: bool = attrs.field(init=False, default=False)
    """Whether somebody has said there who he is; see `note_known`."""

    _stream: trio.abc.Stream = attrs.field(init=False)
    _protocol: _HTTP1 = attrs.field(init=False)
    _whole: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    _reading: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    _sending: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    _is_lost: bool = attrs.field(init=False, default=False)

    def give_up(self) -> None:
        """End it at once, whatever it waits for: it makes room for another one."""
        self._whole.cancel("there are too many")

    async def run(self) -> None:
        """Serve it until its end.

        Raises:
            PeerError: the peer is to blame.
        """
        with self._whole:
            await self._run()

    async def _run(self) -> None:
        transport = trio.SocketStream(trio.socket.from_stdlib_socket(self.sock))
        try:
            self._stream = transport
            if self.tls is not None:
                self._stream = await _shake_hands(transport, self.tls)
            async with TaskGroup() as task_group:
                self._protocol = _HTTP1(
                    ASGIWrapper(cast("ASGIFramework", self.app)),
                    _CONFIG,
                    WorkerContext(None),
                    task_group,
                    ConnectionState({_CONNECTION: self}),
                    (self.peer.host, self.peer.port),
                    self.sock.getsockname()[:2],
                    self._send,
                    None,
                )
                self._set_idle(is_idle=True)
                with self._reading:
                    await self._read()
                await self._protocol.handle(Closed())
            await self._say_goodbye(transport)
        finally:
            self.sock.close()
            await trio.aclose_forcefully(transport)

    async def _read(self) -> None:
        while True:
            try:
                data = await self._stream.receive_some(_PIECE)
            except _LOST:
                return
            if not data:
                return
            await self._protocol.handle(RawData(bytes(data)))

    async def _send(self, event: Event) -> None:
        """Do what the protocol says."""
        match event:
            case RawData(data=data):
                async with self._sending:
                    await self._send_all(data)
            case Updated(idle=is_idle):
                self._set_idle(is_idle=is_idle)
            case Closed():
                self._reading.cancel("the answer was the last")
            case _:
                raise RuntimeError(f"{event}: no such thing was offered")

    async def _send_all(self, data: bytes) -> None:
        """Send, or end the connection: what was cut off in the middle cannot go on."""
        if self._is_lost:
            await trio.lowlevel.checkpoint()
            return
        self._is_lost = True
        view = memoryview(data)
        try:
            for start in range(0, len(view), _PIECE):
                with trio.fail_after(_WRITE_PATIENCE):
                    await self._stream.send_all(view[start : start + _PIECE])
        except (*_LOST, trio.TooSlowError):
            self._reading.cancel("it reads nothing")
        else:
            self._is_lost = False

    def _set_idle(self, *, is_idle: bool) -> None:
        now = trio.current_time()
        self.idle_since = now if is_idle else None
        self._reading.deadline = now + _HEAD_PATIENCE if is_idle else float("inf")

    async def _say_goodbye(self, transport: trio.SocketStream) -> None:
        if self._is_lost:
            return
        with suppress(*_LOST), trio.move_on_after(_LINGER):
            if self.tls is not None:
                await cast("trio.SSLStream[trio.SocketStream]", self._stream).unwrap()
            else:
                await transport.send_eof()
            while await transport.receive_some(_PIECE):
                pass


def note_known(scope: Scope) -> None:
    """Note that whoever has sent this request has said who he is: his connection makes room for nobody who has not."""
    connection: WebConnection = scope["state"][_CONNECTION]
    connection.is_known = True


async def _shake_hands(
    transport: trio.SocketStream, context: ssl.SSLContext
) -> trio.SSLStream[trio.SocketStream]:
    stream = trio.SSLStream(transport, context, server_side=True, https_compatible=True)
    with deadline(_HANDSHAKE_PATIENCE, "no TLS handshake in time"):
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as error:
            raise ConnectionLostError(f"no TLS: {error.__cause__ or error}") from error
    return stream
