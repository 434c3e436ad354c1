"""A network that a test can spoil: a TCP proxy between a client and its server."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final

import attrs
import trio

from tests.e2e import running, services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PIECE_BYTES: Final = 64 * 1024
ON_THE_WAY: Final = 256
"""Pieces that may be on their way in one direction of a connection, as a long link holds them."""


@attrs.define(eq=False)
class Passage:
    """One connection through the proxy, whose end towards the client is `near`; `ended` says that it was ended here."""

    near: trio.SocketStream
    far: trio.SocketStream
    frozen: bool = False
    ended: trio.Event = attrs.field(factory=trio.Event)

    def freeze(self) -> None:
        """Let nothing through any more, not even an end: neither side hears of it."""
        self.frozen = True

    def close(self) -> None:
        """End it in the ordinary way, for both sides."""
        self.ended.set()
        for end in (self.near, self.far):
            end.socket.shutdown(trio.socket.SHUT_RDWR)

    def reset(self) -> None:
        """End it by RST, for both sides."""
        self.ended.set()
        for end in (self.near, self.far):
            running.reset(end)


@attrs.define(eq=False)
class Proxy:
    """Passes connections on to `target`, each piece `delay` seconds late; a share `stalls` of them holds up what is behind it.

    `passages` are those that are there, oldest first.
    """

    target: tuple[str, int]
    port: int
    delay: float = 0.0
    stalls: float = 0.0
    stall: float = 0.2
    passages: list[Passage] = attrs.field(factory=list)
    _rng: Random = attrs.field(factory=lambda: Random(1))

    async def handle(self, near: trio.SocketStream) -> None:
        """Serve one connection."""
        try:
            far = await trio.open_tcp_stream(*self.target)
        except OSError:
            return
        async with far:
            passage = Passage(near, far)
            self.passages.append(passage)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._carry, passage, near, far)
                    nursery.start_soon(self._carry, passage, far, near)
            finally:
                self.passages.remove(passage)

    async def _carry(
        self, passage: Passage, source: trio.SocketStream, sink: trio.SocketStream
    ) -> None:
        queue_end, queue = trio.open_memory_channel[tuple[float, bytes]](ON_THE_WAY)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deliver, passage, queue, sink)
            with queue_end, suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while data := await source.receive_some(PIECE_BYTES):
                    await queue_end.send((trio.current_time() + self.delay, data))

    async def _deliver(
        self,
        passage: Passage,
        queue: trio.MemoryReceiveChannel[tuple[float, bytes]],
        sink: trio.SocketStream,
    ) -> None:
        with queue, suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for due, data in queue:
                if self._rng.random() < self.stalls:
                    due = max(due, trio.current_time() + self.stall)  # noqa: PLW2901 (later)
                await trio.sleep_until(due)
                if passage.frozen:
                    await passage.ended.wait()
                    return
                await sink.send_all(data)
            if not passage.frozen:
                await sink.send_eof()


@asynccontextmanager
async def proxied(proxy: Proxy) -> AsyncIterator[None]:
    """Run the proxy."""
    listeners = await trio.open_tcp_listeners(proxy.port, host=services.HOST)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_listeners, proxy.handle, listeners))
        yield
        nursery.cancel_scope.cancel()
