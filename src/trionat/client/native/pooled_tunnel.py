"""One tunnel of a client's pool, from the moment it is open to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.client.reconnect import foremost
from trionat.errors import ConnectionLostError, PeerError, RemoteProtocolError
from trionat.relay.client_tunnel import ClientTunnel
from trionat.signals import Signal
from trionat.transport.isolation import leaves

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

    from trionat.client.native.tunnel_pool import TunnelPool
    from trionat.protocol.tunnel_frames import Open
    from trionat.relay.stream import VisitorStream
    from trionat.transport.endpoint import Endpoint

# A tunnel that ends within this many seconds without a visitor counts as one that could not be opened.
_AT_ONCE: Final = 1.0


@attrs.define(eq=False)
class PooledTunnel:
    """Serves visitors of the pool over one wire, one after another. `run` owns the wire; whoever cancels `scope` ends it.

    The pool is told when it is taken, when it rests, and of each visitor that is done with. Two tasks run on it: one receives, and
    one carries.
    """

    pool: TunnelPool
    wire: Endpoint
    tunnel: ClientTunnel = attrs.field(init=False)
    scope: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    _began: float = attrs.field(init=False, factory=trio.current_time)
    # Not a channel, of which each tunnel would cost a kilobyte: at most one stream is there, since the tunnel is busy until it is over.
    _opened: VisitorStream | None = attrs.field(init=False, default=None)
    _changed: Signal = attrs.field(init=False, factory=Signal)
    _frames: dict[VisitorStream, Open] = attrs.field(init=False, factory=lambda: {})

    def __attrs_post_init__(self) -> None:
        streams = self.pool.waiting_streams
        resumes = streams.resumption is not None
        self.tunnel = ClientTunnel(
            self.wire,
            self._connect,
            self._take_over,
            self._rest,
            streams.new_buffer if resumes else None,
            self._find if resumes else None,
            acknowledged_within=self.pool.acknowledged_within,
            on_full=self.pool.on_acks,
        )

    async def run(self) -> None:
        """Serve until the tunnel ends, or is cancelled; then give the streams that are on it back to the pool.

        Raises:
            PeerError: in a group: why the tunnel was lost. Not where `scope` was cancelled, nor where it ended at once: that is told to the pool.
        """
        pool = self.pool
        pool.add(self)
        problem: PeerError = ConnectionLostError("the server closed the tunnel at once")
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._carry, name="carry")
                    if pool.outage.lasts:
                        nursery.start_soon(self._prove, name="prove")
                    await self.tunnel.receive()
                    nursery.cancel_scope.cancel("the server closed the tunnel")
        except* PeerError as group:
            if not self._ended_at_once and not self.scope.cancel_called:  # else it is our own doing
                raise
            problem = foremost(error for error in leaves(group) if isinstance(error, PeerError))
        finally:
            self._let_go()
            self.wire.close()
            pool.remove(self)
        if self._ended_at_once:
            pool.note_failed(problem, trio.current_time() - self._began)

    def visitors(self) -> Iterator[tuple[Open, VisitorStream]]:
        """The one that is on it, and the one before where that has not ended."""
        for stream in self.tunnel.streams:
            if (frame := self._frames.get(stream)) is not None:
                yield frame, stream

    @property
    def _ended_at_once(self) -> bool:
        return (
            self.tunnel.unused
            and not self.scope.cancel_called
            and trio.current_time() - self._began < _AT_ONCE
        )

    async def _carry(self) -> None:
        while True:
            while (stream := self._opened) is None:
                await self._changed.wait()
            self._opened = None
            await self.tunnel.serve(stream)
            self.pool.note_end(self._frames[stream], stream)

    async def _prove(self) -> None:
        """A tunnel that was opened in an outage, and stays, ends it."""
        await trio.sleep(_AT_ONCE)
        self.pool.note_worked()

    def _let_go(self) -> None:
        for stream, frame in self._frames.items():
            if stream.over:  # else `_carry` was cut short before it had told so
                self.pool.note_end(frame, stream)
        for stream in self.tunnel.detach():
            self.pool.lose(self._frames[stream], stream)

    # -- what the tunnel calls ---------------------------------------------------------------------------------------

    def _connect(self, frame: Open) -> Awaitable[Endpoint]:
        self.pool.take(self)
        return self.pool.connect(frame)

    async def _find(self, visitor: int) -> VisitorStream | None:
        self.pool.take(self)
        return await self.pool.find(visitor)

    def _take_over(self, frame: Open, stream: VisitorStream) -> None:
        if len(self._frames) > 1:  # of the current visitor and the one before
            del self._frames[next(iter(self._frames))]
        self._frames[stream] = frame
        if not self.pool.forwarder.knew(frame.service):  # OPEN was refused for that before
            raise RemoteProtocolError(f"RESUME for service {frame.service}, which is not there")
        self._opened = stream
        self._changed.notify()

    def _rest(self) -> None:
        self.pool.rests(self)
