"""A framed, recyclable tunnel: two tasks that live as long as it does and serve one visitor after another.

`receive` reads frames from the wire for the tunnel's whole life and gives visitors' bytes to the plain end. `carry` takes the
plain end's bytes to the wire, for one stream. Either side has one task for each, so a visitor costs no task, no nursery, no
TCP connection and no TLS handshake.

Who may write to the wire: `carry` while there is a visitor, `receive` and `sweep` while there is none. `Conversation` knows
which of the two it is. What both tasks share is changed between two checkpoints only, so there is no lock, but for one frame: an
ABORT behind an END of ours may still be leaving when the peer's END makes the tunnel idle.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final

import attrs
import trio

from trionat.errors import ConnectionLostError
from trionat.protocol.conversation import Conversation
from trionat.protocol.frames import BIG_ENDIAN, HEADER_BYTES
from trionat.protocol.tunnel_frames import (
    DATA_ID,
    END_FRAME,
    Abort,
    AbortReason,
    End,
    TunnelReader,
)
from trionat.relay.liveness import ACKNOWLEDGED_WITHIN, Liveness
from trionat.relay.stream import VisitorStream, reset_text
from trionat.transport.endpoint import MORE_LIKELY_BYTES, Endpoint, lost, send_all
from trionat.transport.scratch import HEADROOM_BYTES, Scratch, scratch

if TYPE_CHECKING:
    from trionat.protocol.conversation import Side
    from trionat.protocol.tunnel_frames import Open, Probe, Probed, TunnelFrame

# Frames out of one read before the others get their turn; each costs a few microseconds.
_EVENTS_TURN: Final = 64


@attrs.define(eq=False)
class Tunnel(ABC):
    """What both ends of a tunnel do alike. Does not own the wire; whoever runs the two tasks closes it, and then calls `abandon`.

    `acknowledged_within` is in seconds.
    """

    side: ClassVar[Side]
    wire: Endpoint
    acknowledged_within: float = attrs.field(default=ACKNOWLEDGED_WITHIN, kw_only=True)
    stream: VisitorStream | None = attrs.field(init=False, default=None)
    liveness: Liveness = attrs.field(init=False)
    _conversation: Conversation = attrs.field(init=False)
    _reader: TunnelReader = attrs.field(init=False, factory=TunnelReader)
    _last_word: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    _scratch: Scratch = attrs.field(init=False, factory=scratch)

    def __attrs_post_init__(self) -> None:
        self._conversation = Conversation(self.side)
        self.liveness = Liveness(self.wire, self.acknowledged_within)

    @property
    def idle(self) -> bool:
        """Whether no visitor is on this tunnel."""
        return self._conversation.idle

    @property
    def unused(self) -> bool:
        """Whether it has never had a visitor."""
        return self._conversation.unused

    # -- wire to plain ------------------------------------------------------------------------------------------------

    async def receive(self) -> None:
        """Read the wire until it ends: frames to the conversation, visitors' bytes to the plain end.

        Returns when the peer closes an idle tunnel. Cancelling it ends the tunnel.

        Raises:
            ConnectionLostError: the wire is lost, or was closed with a visitor on it.
            RemoteProtocolError: the peer broke the protocol.
        """
        wire, reader, room = self.wire, self._reader, self._scratch.incoming
        while True:
            throttle = None if self.stream is None else self.stream.throttle
            try:
                count = wire.recv_into(room if throttle is None else throttle.portion(room))
            except BlockingIOError:
                await wire.wait_readable()
                continue
            except OSError as error:
                raise lost(error) from error
            if not count:
                if self.idle:
                    return
                raise ConnectionLostError("the tunnel was closed with a visitor on it")
            self.liveness.heard = True
            reader.feed(room[:count])
            events = 0
            while (event := reader.next()) is not None:
                if isinstance(event, memoryview):
                    await self._give(event)
                else:
                    await self._take(event)
                events += 1
                if events % _EVENTS_TURN == 0:  # a peer may send nothing but the smallest frames
                    reader.keep()
                    await trio.lowlevel.checkpoint()
            if count < MORE_LIKELY_BYTES:
                await wire.wait_readable()
            else:  # a read of up to 256 KiB, then the others' turn
                await trio.lowlevel.checkpoint()

    async def _give(self, piece: memoryview) -> None:
        """Write to the plain end; where that is gone, drop, since the peer may not know yet."""
        self._conversation.receive_data()
        stream = self.stream
        if stream is None or stream.failure is not None:
            return
        stream.unanswered = None
        if stream.throttle is not None and stream.throttle.rate is not None:
            piece = memoryview(bytes(piece))
            self._reader.keep()  # from here on others use the scratch buffer
            # Deaf meanwhile, which `sweep` may not take for the peer's silence. It does not: the answer to a probe comes before
            # the first byte for a visitor, and where an ABORT is waited for, the throttle lets go.
            await stream.slow_down(len(piece))
        try:
            try:
                sent = stream.plain.send(piece)
            except BlockingIOError:
                sent = 0
            stream.given += sent
            if sent < len(piece):
                rest = memoryview(bytes(piece[sent:]))
                self._reader.keep()  # from here on others use the scratch buffer
                while rest:
                    await stream.plain.wait_writable()
                    try:
                        sent = stream.plain.send(rest)
                    except BlockingIOError:
                        continue
                    stream.given += sent
                    rest = rest[sent:]
        except (OSError, trio.ClosedResourceError):
            self._lose_plain(stream)

    def _lose_plain(self, stream: VisitorStream) -> None:
        """The plain end is gone: note it and wake `carry`, which tells the peer."""
        stream.fail(AbortReason.RESET, reset_text(self.side))
        stream.plain.close()

    async def _take(self, frame: TunnelFrame) -> None:
        match frame:
            case End():
                self._conversation.receive_end()
                if (stream := self.stream) is not None:
                    stream.unanswered = None
                    if stream.failure is None:
                        try:
                            stream.plain.send_eof()
                        except OSError:
                            self._lose_plain(stream)
                self._settle()
            case Abort():
                if self._conversation.receive_abort(frame.visitor):
                    if (stream := self.stream) is not None:
                        self._abort_plain(stream, frame)
                    self._settle()
            case _:
                await self._take_own(frame)

    @abstractmethod
    async def _take_own(self, frame: Open | Probe | Probed) -> None:
        """Take a frame that only the other side sends.

        Raises:
            RemoteProtocolError: it is not the other side's to send.
        """

    def _abort_plain(self, stream: VisitorStream, abort: Abort) -> None:
        stream.unanswered = None
        stream.fail(
            abort.reason, abort.text or f"aborted by the other side ({abort.reason.name.lower()})"
        )
        if abort.reason is AbortReason.REFUSED:
            stream.plain.close()
        else:
            stream.plain.reset()

    def _settle(self) -> None:
        """After a last word of either side: is the tunnel idle again?"""
        if self._conversation.over:
            self._conversation.finish()
            if (stream := self.stream) is not None:
                self.stream = None
                stream.over = True
                stream.plain.close()  # both directions have ended, so nobody uses it any more
                stream.changed.notify()
            self._rest()

    def _rest(self) -> None:  # noqa: B027 - there may be nothing to do
        """The tunnel is idle again."""

    # -- plain to wire ------------------------------------------------------------------------------------------------

    async def carry(self, stream: VisitorStream, opening: bytes = b"") -> None:
        """Take the plain end's bytes to the wire, and return when both directions have ended and the plain end is closed.

        `opening` goes out before them. Where this raises or is cancelled, the plain end is left as it is: it may go to
        another tunnel.

        Raises:
            ConnectionLostError: the wire is lost.
        """
        try:
            await self._carry_bytes(stream, opening)
        except (OSError, trio.ClosedResourceError):
            self._lose_plain(stream)
        if stream.failure is None:
            await self._write(END_FRAME)
            self._conversation.sent_end()
            self._settle()
        while not stream.over:
            if stream.failure is not None and self._conversation.may_abort:
                abort = Abort(stream.visitor, stream.failure.reason, stream.failure.text)
                async with self._last_word:
                    await self._write(abort.encode())
                if not stream.over:  # else it is late: the peer's END came while it left
                    self._conversation.sent_abort()
                    self._settle()
                continue
            await stream.changed.wait()

    async def _carry_bytes(self, stream: VisitorStream, opening: bytes) -> None:
        """Read and send until the plain end says that there is no more; its errors come out as they are."""
        plain, wire, throttle, outgoing = (
            stream.plain,
            self.wire,
            stream.throttle,
            self._scratch.outgoing,
        )
        room = outgoing[HEADROOM_BYTES:]
        header_at = HEADROOM_BYTES - HEADER_BYTES
        if len(opening) > header_at:
            await self._write(opening)
            opening = b""
        gone: OSError | None = None
        while True:
            try:
                count = plain.recv_into(room if throttle is None else throttle.portion(room))
            except BlockingIOError:
                if opening:  # nothing there yet, and the other side can begin without it
                    await self._write(opening)
                    opening = b""
                await plain.wait_readable()
                continue
            except OSError as error:
                count, gone = 0, error
            if not count:
                if (
                    opening
                ):  # else a last word would follow about a visitor of whom the peer never heard
                    await self._write(opening)
                if gone is not None:
                    raise gone
                return
            start = header_at - len(opening)
            outgoing[start:header_at] = opening
            opening = b""
            BIG_ENDIAN.pack_into(outgoing, header_at, count, DATA_ID)
            end = HEADROOM_BYTES + count
            stream.taken += count
            if stream.unanswered is not None:
                stream.keep_unanswered(room[:count])
            if throttle is not None and throttle.rate is not None:
                frames = bytes(outgoing[start:end])  # others use the scratch buffer meanwhile
                await stream.slow_down(count)
                await self._write(frames)
            else:
                try:
                    sent = wire.send(outgoing[start:end])
                except BlockingIOError:
                    sent = 0
                except OSError as error:
                    raise lost(error) from error
                if start + sent < end:
                    await self._write(bytes(outgoing[start + sent : end]))
            if count < MORE_LIKELY_BYTES:
                await plain.wait_readable()
            else:
                await trio.lowlevel.checkpoint()

    async def _write(self, data: bytes) -> None:
        try:
            await send_all(self.wire, data)
        except OSError as error:
            raise lost(error) from error

    # -- from outside -------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Look after what no read or write would notice; to be called every `SWEEP_INTERVAL`.

        Notices a plain end that was reset while nobody touched it, and asks the kernel about a busy wire.

        Raises:
            PeerTimeoutError: the tunnel is to be given up, since the peer owes an answer for too long.
            ConnectionLostError: the wire is lost.
        """
        stream = self.stream
        if stream is not None and stream.failure is None and stream.plain.is_lost():
            self._lose_plain(stream)
        failed = self._conversation.aborted or (stream is not None and stream.failure is not None)
        self.liveness.sweep(
            busy=not self.idle,
            aborting=failed and not self.idle,
            given=0 if stream is None else stream.given,
        )

    def abandon(self) -> None:
        """The tunnel is gone: reset the plain end that is still on it, since what it got may not be all."""
        if (stream := self.stream) is not None:
            self.stream = None
            stream.plain.reset()
