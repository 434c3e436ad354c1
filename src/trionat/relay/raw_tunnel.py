"""A raw tunnel, the kind that legacy peers have: it carries one visitor's bytes as they are, and ends with it.

Nothing is framed, so the end of the stream is the only last word, and a reset the only way to say that something went wrong.
Two tasks, one for each direction; what they do is what `relay/tunnel.py` does without its frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from trionat.protocol.tunnel_frames import AbortReason
from trionat.relay.stream import VisitorStream, reset_text
from trionat.transport.endpoint import MORE_LIKELY_BYTES, Endpoint
from trionat.transport.scratch import HEADROOM_BYTES, scratch

if TYPE_CHECKING:
    from trionat.protocol.conversation import Side


@attrs.define(eq=False)
class RawTunnel:
    """One end of a raw tunnel and the plain end (the visitor, or the local service) that it is joined to.

    Owns both: whoever makes one calls `run`, which closes them. `early` are bytes that were read from the wire already; they
    are the first that the plain end gets.
    """

    wire: Endpoint
    stream: VisitorStream
    side: Side
    early: bytes = attrs.field(default=b"", repr=False)
    _scope: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)

    async def run(self) -> None:
        """Relay until both directions have ended, or an end is lost; the stream tells which, and counts.

        The end of one direction ends that direction only, for as long as it takes: a half-open connection may be silent. If
        an end is lost, or this is cancelled, both are reset: what they got may not be all.
        """
        buffers = scratch()
        plain, wire, stream = self.stream.plain, self.wire, self.stream
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(
                        self._pump, plain, wire, buffers.outgoing[HEADROOM_BYTES:], b"", name="take"
                    )
                    nursery.start_soon(
                        self._pump, wire, plain, buffers.incoming, self.early, name="give"
                    )
                stream.over = stream.failure is None
        finally:
            for end in (plain, wire):
                if stream.over:
                    end.close()
                else:
                    end.reset()

    async def _pump(self, source: Endpoint, sink: Endpoint, room: memoryview, early: bytes) -> None:
        """Take bytes from one end to the other until there are no more."""
        stream, throttle = self.stream, self.stream.throttle
        taking = source is stream.plain
        try:
            await self._write(sink, memoryview(early))
            while True:
                try:
                    count = source.recv_into(room if throttle is None else throttle.portion(room))
                except BlockingIOError:
                    await source.readable.wait()
                    continue
                except OSError:
                    self._lose(source)
                    return
                if not count:
                    # Not after a failure: it was a reset, of which the other direction was told, and the kernel tells once.
                    if stream.failure is None:
                        sink.send_eof()
                        await self._write(sink, memoryview(b""))
                    return
                if taking:
                    stream.taken += count
                piece = room[:count]
                if throttle is not None and throttle.rate is not None:
                    piece = memoryview(bytes(piece))  # others use the scratch buffer meanwhile
                    await stream.slow_down(count)
                await self._write(sink, piece)
                if count < MORE_LIKELY_BYTES:
                    await source.readable.wait()
                else:  # as in a tunnel with frames: the others' turn
                    await trio.lowlevel.checkpoint()
        except (OSError, trio.ClosedResourceError):
            self._lose(sink)

    async def _write(self, sink: Endpoint, piece: memoryview) -> None:
        """Send all of it; where that takes waiting, from a copy, since others read into the same buffer meanwhile."""
        rest = piece
        while rest:
            try:
                sent = sink.send(rest)
            except BlockingIOError:
                sent = 0
            if sink is self.stream.plain:
                if not self.stream.given and self.stream.on_answer is not None and sent:
                    self.stream.on_answer()
                self.stream.given += sent
            if sent == len(rest):
                break
            rest = memoryview(bytes(rest[sent:])) if rest is piece else rest[sent:]
            await sink.writable.wait()
        while sink.has_unsent:
            try:
                sink.flush()
            except BlockingIOError:
                await sink.writable.wait()

    def _lose(self, end: Endpoint) -> None:
        """An end is gone: note which, and stop."""
        if end is self.wire:
            self.stream.fail(AbortReason.OTHER, "the tunnel was lost")
        else:
            self.stream.fail(AbortReason.RESET, reset_text(self.side))
        self._scope.cancel("an end was lost")

    def sweep(self) -> None:
        """Notice that an end was reset while nobody read or wrote it; to be called every `SWEEP_INTERVAL` while it runs."""
        for end in (self.stream.plain, self.wire):
            if not self.stream.over and self.stream.failure is None and end.is_lost():
                self._lose(end)
