"""The inspector as a whole: its address, its web server, and what becomes of it after a bug."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.address import TCPAddress
from trionat.client.inspector.access import Access
from trionat.client.inspector.application import make_application
from trionat.client.inspector.context import Context
from trionat.client.inspector.guard import Guard
from trionat.client.inspector.live import LiveList
from trionat.client.inspector.recorder import Recorder, RecordingForwarder
from trionat.client.inspector.replay import Replays
from trionat.client.inspector.site import FOLDER
from trionat.errors import StartupError
from trionat.log import get_logger
from trionat.transport.descriptors import Descriptors
from trionat.transport.listener import Listener
from trionat.transport.web_page import read_pages
from trionat.transport.web_server import WebServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.config.client import ClientConfig
    from trionat.config.service import Service
    from trionat.events import ClientEvent

log = get_logger(__name__)

DEFAULT_ADDR: Final = TCPAddress("127.0.0.1", 4040)
"""Where it is unless told."""

_TAKEN: Final = (errno.EADDRINUSE, errno.EACCES)  # EACCES: Windows, of a port that is reserved
_MOST_CONNECTIONS: Final = 256
"""Of 64 pages each has a stream, and a few more for a moment."""

_PORTS: Final = 20
"""Ports that are tried one after another, where none was asked for."""

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0


@attrs.define(eq=False)
class Inspector:
    """Records the visitors of its forwarder, and shows them in a browser. `serve` has to run; `close` gives the port back."""

    recorder: Recorder
    access: Access
    _listener: Listener
    _descriptors: Descriptors = attrs.field(init=False, factory=Descriptors)
    _live: LiveList = attrs.field(init=False)
    _replays: Replays | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._live = LiveList(self.recorder)

    @classmethod
    def open(cls, config: ClientConfig) -> Inspector:
        """Listen where the configuration says.

        Raises:
            StartupError: that address cannot be had.
        """
        wanted = config.inspect_addr
        listener = _listen_near() if wanted is None else _listen(wanted)
        host, port = listener.sock.getsockname()[:2]
        access = Access(TCPAddress(host, port))
        return cls(Recorder(config.inspect_bytes), access, listener)

    def new_forwarder(
        self, services: tuple[Service, ...], timeout: float, tell: Callable[[ClientEvent], None]
    ) -> RecordingForwarder:
        """Return the forwarder of this client, which records its visitors; see `Forwarder`. Called once, before `serve`."""
        forwarder = RecordingForwarder(services, timeout, tell, recorder=self.recorder)
        self._replays = Replays(forwarder)
        return forwarder

    async def serve(self) -> None:
        """Serve until cancelled. After a bug it begins anew; no tunnel hears of that."""
        assert self._replays is not None, "made before"  # noqa: S101 - for type checkers
        pause = _FIRST_PAUSE
        while True:
            began = trio.current_time()
            try:
                pages = await trio.to_thread.run_sync(read_pages, FOLDER)
                async with trio.open_nursery() as nursery:
                    context = Context(
                        pages=pages,
                        recorder=self.recorder,
                        live=self._live,
                        replays=self._replays,
                        nursery=nursery,
                    )
                    nursery.start_soon(self._live.run, name="live list")
                    await WebServer(
                        name="inspector",
                        app=Guard(make_application(context), self.access),
                        listener=self._listener,
                        descriptors=self._descriptors,
                        most=_MOST_CONNECTIONS,
                        closed=_note_closed,
                    ).serve()
            except* Exception as group:
                log.exception("the inspector has failed, and begins anew", exc_info=group)
            if trio.current_time() - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()
        self._descriptors.close()


def _note_closed(address: TCPAddress, reason: str) -> None:
    log.debug("connection closed", reason=reason, address=str(address))


def _listen_near() -> Listener:
    """Listen on the usual port, or the next one that is free."""
    for port in range(DEFAULT_ADDR.port, DEFAULT_ADDR.port + _PORTS):
        try:
            return _listen(TCPAddress(DEFAULT_ADDR.host, port))
        except StartupError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _TAKEN:
                raise
    last = DEFAULT_ADDR.port + _PORTS - 1
    raise StartupError(
        f"cannot listen on {DEFAULT_ADDR}, nor on the ports to {last}: all are taken; --inspect-addr (InspectAddr) names another"
    )


def _listen(address: TCPAddress) -> Listener:
    try:
        return Listener.open(address)
    except StartupError as error:
        cause = error.__cause__
        reason = (cause.strerror if isinstance(cause, OSError) else None) or cause
        raise StartupError(
            f"cannot listen on {address} for the inspector: {reason}; --inspect-addr (InspectAddr) names another"
        ) from cause
