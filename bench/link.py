"""The link between the two ends of a chain, which can be cut: a TCP proxy in the suite's own process."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import attrs
import trio

from bench.program import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE_BYTES: Final = 64 * 1024
_BACKLOG: Final = 1024
_RESET_WHEN_CLOSED: Final = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing drops what was not sent and resets the connection."""


@attrs.define(eq=False)
class Link:
    """Carries connections to where they go, as long as its nursery runs, and can cut them all.

    A rival can be slower over it than without: it is for what happens, not for how fast.
    """

    _nursery: trio.Nursery
    _whole: trio.Event = attrs.field(factory=trio.Event, init=False)
    _listeners: list[socket.socket] = attrs.field(factory=lambda: [], init=False)
    _crossings: set[trio.CancelScope] = attrs.field(factory=lambda: set(), init=False)
    _reset: bool = attrs.field(default=True, init=False)
    _stoppers: set[tuple[str, int]] = attrs.field(factory=lambda: set(), init=False)

    def __attrs_post_init__(self) -> None:
        self._whole.set()

    def open(self, address: tuple[str, int], target: int) -> None:
        """Carry all that connects to `address` to this port."""
        listener = socket.create_server(address, backlog=_BACKLOG)
        listener.setblocking(False)
        self._listeners.append(listener)
        self._nursery.start_soon(self._accept, listener, target)

    async def cut(self, seconds: float, *, reset: bool) -> None:
        """Cut all connections, and let nobody connect for so long.

        With `reset`, both ends of a connection are told; without, it stays open and nothing crosses it any more, not even
        afterwards. Who connects in the meantime gets no answer, as on a network that is away, and tries again as TCP does.
        """
        self._whole = trio.Event()
        self._reset = reset
        for scope in self._crossings:
            scope.cancel("cut")
        stoppers = [stopper for listener in self._listeners for stopper in self._stop(listener)]
        try:
            await trio.sleep(seconds)
        finally:
            for stopper in stoppers:
                stopper.close()
            for listener in self._listeners:
                listener.listen(_BACKLOG)
            self._whole.set()

    def _stop(self, listener: socket.socket) -> Iterator[socket.socket]:
        """Have the kernel drop whatever connects: nobody accepts now, and a connection of our own fills the queue."""
        listener.listen(0)
        stopper = socket.socket()
        stopper.setblocking(False)
        with suppress(BlockingIOError):
            stopper.connect(listener.getsockname())
        self._stoppers.add(stopper.getsockname())
        yield stopper

    async def _accept(self, listener: socket.socket, target: int) -> None:
        with listener:
            while True:
                await trio.lowlevel.wait_readable(listener)
                await self._whole.wait()
                try:
                    connection, address = listener.accept()
                except BlockingIOError:
                    continue
                if address in self._stoppers:
                    self._stoppers.discard(address)
                    connection.close()
                else:
                    here = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
                    self._nursery.start_soon(self._carry, here, target)

    async def _carry(self, here: trio.SocketStream, target: int) -> None:
        async with here:
            try:
                there = await trio.open_tcp_stream(HOST, target)
            except OSError:
                _reset_when_closed(here)
                return
            async with there:
                crossing = trio.CancelScope()
                self._crossings.add(crossing)
                try:
                    with crossing:
                        await _exchange(here, there)
                except* trio.BrokenResourceError:
                    _reset_when_closed(here, there)
                finally:
                    self._crossings.discard(crossing)
                if crossing.cancelled_caught:
                    if not self._reset:
                        await trio.sleep_forever()
                    _reset_when_closed(here, there)


async def _exchange(here: trio.SocketStream, there: trio.SocketStream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pump, here, there)
        nursery.start_soon(_pump, there, here)


async def _pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    while data := await source.receive_some(_PIECE_BYTES):
        await sink.send_all(data)
    await sink.send_eof()


def _reset_when_closed(*streams: trio.SocketStream) -> None:
    for stream in streams:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_WHEN_CLOSED)
