"""A framed, recyclable tunnel: two tasks that live as long as it does and serve one visitor after another.

`receive` reads frames from the wire for the tunnel's whole life and gives visitors' bytes to the plain end. `carry` takes the
plain end's bytes to the wire, for one stream. Either side has one task for each, so a visitor costs no task, no nursery, no
TCP connection and no TLS handshake. What moves bytes are plain functions, `_receive_step` and `_carry_step`, which `pump` calls
(`transport/readiness.py`): the tasks are woken for what has to be waited for otherwise.

Who may write to the wire: `carry` while there is a visitor, `receive` and `sweep` while there is none. `Conversation` knows
which of the two it is. What both tasks share is changed between two checkpoints only, so there is no lock, but for one frame: an
ABORT behind an END of ours may still be leaving when the peer's END makes the tunnel idle. An ACK leaves in between, where nothing of
`carry` is half sent.

A stream with a send buffer outlives the tunnel. Whoever owns the tunnel takes it off with `detach` when the tunnel is gone, and another one
goes on with it. That includes a stream that has just ended, of which the other side may not have heard the last words: `before`.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

import attrs
import trio

from trionat.errors import ConnectionLostError, RemoteProtocolError
from trionat.protocol.conversation import Conversation
from trionat.protocol.frames import BIG_ENDIAN, HEADER_BYTES
from trionat.protocol.tunnel_frames import (
    DATA_ID,
    END_FRAME,
    Abort,
    AbortReason,
    Ack,
    End,
    TunnelReader,
)
from trionat.relay.liveness import ACKNOWLEDGED_WITHIN, Liveness
from trionat.relay.stream import VisitorStream, reset_text
from trionat.transport.endpoint import MORE_LIKELY_BYTES, Endpoint, lost, send_all
from trionat.transport.readiness import TURN, pump
from trionat.transport.scratch import HEADROOM_BYTES, SCRATCH_BYTES, Scratch, scratch

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.protocol.conversation import Side
    from trionat.protocol.tunnel_frames import TunnelFrame
    from trionat.transport.readiness import Readiness

# Frames before the others get their turn; each costs a few microseconds, and a peer may send nothing but the smallest. A read after which there is
# most likely more ends the turn as well: to decrypt what it brings and give it away may take a millisecond, and a faster peer has always more.
_EVENTS_TURN: Final = 64

# At the end of a direction so many bytes are acknowledged at once, so that the peer need not keep them until the next visitor comes.
_ACK_BYTES: Final = 16 * 1024

# What may leave together with a visitor's first bytes.
_OPENING_BYTES: Final = HEADROOM_BYTES - HEADER_BYTES


@attrs.define(eq=False)
class Tunnel(ABC):
    """What both ends of a tunnel do alike. Does not own the wire; whoever runs the two tasks closes it, and then calls `detach` or `abandon`.

    `on_full` is called when no more is sent before the peer acknowledges some of it, and it may not know how far we are: where neither plain end takes
    anything before it has got rid of something, each side would wait for an ACK that stands behind bytes in the tunnel. `acknowledged_within` is in seconds. `stream` is that of the current visitor, `before` that of the one before, as long as the peer may not
    have heard all of it.
    """

    side: ClassVar[Side]
    wire: Endpoint
    acknowledged_within: float = attrs.field(default=ACKNOWLEDGED_WITHIN, kw_only=True)
    on_full: Callable[[], None] = attrs.field(default=lambda: None, kw_only=True)
    stream: VisitorStream | None = attrs.field(init=False, default=None)
    before: VisitorStream | None = attrs.field(init=False, default=None)
    liveness: Liveness = attrs.field(init=False)
    _conversation: Conversation = attrs.field(init=False)
    _reader: TunnelReader = attrs.field(init=False, factory=TunnelReader)
    _last_word: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    _scratch: Scratch = attrs.field(init=False, factory=scratch)
    # What the steps leave to their tasks, or to the next step.
    _event: TunnelFrame | memoryview | None = attrs.field(init=False, default=None)
    _emptied: bool = attrs.field(init=False, default=False)
    _ungiven: tuple[VisitorStream, memoryview] | None = attrs.field(init=False, default=None)
    _opening: bytes = attrs.field(init=False, default=b"")
    _unsent: memoryview = attrs.field(init=False, factory=lambda: memoryview(b""))
    _limited: bytes | None = attrs.field(init=False, default=None)
    _writing: bool = attrs.field(init=False, default=False)
    _ack_due: bool = attrs.field(init=False, default=False)
    _is_gone: bool = attrs.field(init=False, default=False)

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
        for count in itertools.count(1):
            try:
                await pump(self._receive_step)
            except trio.ClosedResourceError:
                if self._ungiven is None:
                    raise
                self._lose_plain(self._ungiven[0])  # `carry` has lost it while it had no room
                continue
            event, self._event = self._event, None
            if event is None:
                break
            if isinstance(event, memoryview):
                await self._give_slowly(event)
            else:
                await self._take(event)
            if count % _EVENTS_TURN == 0:
                await trio.lowlevel.checkpoint()
        if not self.idle:
            raise ConnectionLostError("the tunnel was closed with a visitor on it")

    def _receive_step(self) -> Readiness | None:
        """Give visitors' bytes to the plain end until something else comes, which is `_event` then, or the wire ends.

        Whatever of the scratch buffer is not used up is copied before this returns, since others use it next.

        Raises:
            ConnectionLostError, RemoteProtocolError: see `receive`.
        """
        if self._ungiven is not None and not self._give_rest(*self._ungiven):
            return self._ungiven[0].plain.writable
        reader, has_read = self._reader, False
        for _ in range(_EVENTS_TURN):
            event = reader.next()
            if event is None:
                if self._emptied:  # by the read before
                    self._emptied = False
                    return self.wire.readable
                if has_read:
                    return TURN
                try:
                    count = self._read_wire()
                except BlockingIOError:
                    return self.wire.readable
                if not count:
                    return None
                has_read = True
            elif not isinstance(event, memoryview):
                if not self._take_at_once(event):
                    self._event = event
                    reader.keep()
                    return None
            elif (stream := self._receiver()) is None:
                continue
            elif stream.is_limited:
                self._event = memoryview(bytes(event))
                reader.keep()
                return None
            else:
                sent = self._give(stream, event)
                if sent < len(event) or (stream.plain.has_unsent and stream.failure is None):
                    self._ungiven = stream, memoryview(bytes(event[sent:]))
                    reader.keep()
                    return stream.plain.writable
        reader.keep()
        return TURN

    def _read_wire(self) -> int:
        """Read what is there into the scratch buffer, and feed it to the reader; 0 means the end."""
        room = self._scratch.incoming
        if self.stream is not None:
            room = self.stream.portion(room)
        try:
            count = self.wire.recv_into(room)
        except BlockingIOError:
            raise
        except OSError as error:
            raise lost(error) from error
        self.liveness.heard = True
        self._emptied = count < MORE_LIKELY_BYTES
        self._reader.feed(room[:count])
        return count

    def _receiver(self) -> VisitorStream | None:
        """Return whose bytes have come; None where its plain end is gone, which the peer may not know yet."""
        self._conversation.receive_data()
        if self.before is not None:
            self._forget_before()
        stream = self.stream
        return None if stream is None or stream.failure is not None else stream

    def _forget_before(self) -> None:
        """The peer is past the visitor before: frames come in their order, so it has had all of that."""
        if self.before is not None:
            self.before.release()
            self.before = None

    def _give(self, stream: VisitorStream, piece: memoryview) -> int:
        """Write to the plain end what it takes at once; return how much that was. All of it is dropped where that end is gone."""
        try:
            sent = stream.plain.send(piece)
        except BlockingIOError:
            return 0
        except OSError:
            self._lose_plain(stream)
            return len(piece)
        if not stream.given and stream.on_answer is not None and sent:
            stream.on_answer()
        stream.given += sent
        buffer = stream.send_buffer
        if buffer is not None and stream.given - stream.told >= buffer.ack_after:
            self._acknowledge(stream)
        return sent

    def _acknowledge(self, stream: VisitorStream) -> bool:
        """Tell the peer how far we are: now, or where something else is half sent, behind that. Tell whether it has left."""
        self._ack_due = True
        if self._writing or self._conversation.resuming or self._unsent or self.wire.has_unsent:
            return False
        frame = memoryview(Ack(stream.visitor, stream.received).encode())
        if sent := self._send(frame):
            self._unsent = frame[sent:]
            self._ack_due = False
            stream.note_told()
        return sent == len(frame) and not self.wire.has_unsent

    def _give_rest(self, stream: VisitorStream, rest: memoryview) -> bool:
        """Go on with what the plain end did not take before; tell whether that is all of it now."""
        if rest and stream.failure is None:
            rest = rest[self._give(stream, rest) :]
        if not rest:
            self._flush_plain(stream)
        waits = stream.failure is None and (len(rest) > 0 or stream.plain.has_unsent)
        self._ungiven = (stream, rest) if waits else None
        return not waits

    def _flush_plain(self, stream: VisitorStream) -> None:
        """Have the plain end send what it has taken and not sent, as far as there is room."""
        if stream.failure is None and stream.plain.has_unsent:
            try:
                stream.plain.flush()
            except BlockingIOError:
                pass
            except OSError:
                self._lose_plain(stream)

    async def _give_slowly(self, piece: memoryview) -> None:
        """Give a piece of a stream whose bandwidth is limited, when its turn comes.

        Deaf meanwhile, which `sweep` may not take for the peer's silence. It does not: the answer to a probe comes before
        the first byte for a visitor, and where an ABORT is waited for, the throttle lets go.
        """
        stream = self.stream
        assert stream is not None, "only `receive` takes it off"  # noqa: S101 - for type checkers
        await stream.slow_down(len(piece))
        self._ungiven = stream, piece
        try:
            while not self._give_rest(*self._ungiven):
                await stream.plain.writable.wait()
        except trio.ClosedResourceError:
            self._lose_plain(stream)

    def _lose_plain(self, stream: VisitorStream) -> None:
        """The plain end is gone: note it and wake `carry`, which tells the peer."""
        stream.fail(AbortReason.RESET, reset_text(self.side))
        stream.plain.close()

    def _take_at_once(self, frame: TunnelFrame) -> bool:
        """Take END, ABORT or ACK; False: it is another frame."""
        match frame:
            case Ack():
                self._take_ack(frame)
            case End():
                self._conversation.receive_end()
                self._forget_before()
                if (stream := self.stream) is not None and stream.failure is None:
                    try:
                        if (
                            not self._conversation.sent_last
                        ):  # else it is closed now, which says the same
                            stream.plain.send_eof()
                    except OSError:
                        self._lose_plain(stream)
                    else:
                        stream.gave_end = True
                        if (
                            stream.send_buffer is not None
                            and stream.given - stream.told > _ACK_BYTES
                        ):
                            self._acknowledge(stream)
                self._settle()
            case Abort():
                if self._conversation.receive_abort(frame.visitor):
                    self._forget_before()  # a late one came before the peer heard our last word
                    if (stream := self.stream) is not None:
                        self._abort_plain(stream, frame)
                    self._settle()
            case _:
                return False
        return True

    def _take_ack(self, ack: Ack) -> None:
        if ack.visitor == self._conversation.visitor:
            if self.stream is not None:
                self.stream.acknowledge(ack.received)
        elif ack.visitor != self._conversation.previous:
            raise RemoteProtocolError(f"ACK for visitor {ack.visitor}, who is not here")
        elif self.before is not None:
            self.before.acknowledge(ack.received)
            if self.before.is_acknowledged:
                self._forget_before()

    @abstractmethod
    async def _take(self, frame: TunnelFrame) -> None:
        """Take a frame that only the other side sends.

        Raises:
            RemoteProtocolError: it is not the other side's to send.
        """

    def _abort_plain(self, stream: VisitorStream, abort: Abort) -> None:
        stream.aborted = True
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
                stream.changed.open()
                if stream.send_buffer is not None and not stream.aborted:
                    self.before = stream
            self._ack_due = False
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
        if stream.failure is None and not stream.took_end:
            await self._carry_bytes(stream, opening)
        # Left to do is what `_carry_step` does not: an END that another tunnel was to send, and an ABORT.
        if stream.failure is None and not self._conversation.sent_last and not stream.over:
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

    async def _carry_on(self, stream: VisitorStream) -> None:
        """Send what the peer has not received over another tunnel, then `carry`. Raises as that does."""
        assert stream.send_buffer is not None, "only a stream that has one is resumed"  # noqa: S101 - for type checkers
        buffer, position = stream.send_buffer, stream.send_buffer.start
        while piece := buffer.piece(position, SCRATCH_BYTES):  # none if it has failed
            position = max(position, buffer.start) + len(piece)
            await self._write(BIG_ENDIAN.pack(len(piece), DATA_ID) + piece)
        self._settle()  # it may be over with nothing left to say
        await self.carry(stream)

    async def _carry_bytes(self, stream: VisitorStream, opening: bytes) -> None:
        """Read and send, END as well, until the stream is over, or the plain end is lost."""
        self._opening = opening
        step = partial(self._carry_step, stream)
        while True:
            try:
                await pump(step)
            except (OSError, trio.ClosedResourceError):
                self._lose_plain(
                    stream
                )  # before the next checkpoint: the kernel tells it only once
                break
            if self._limited is not None:
                frames, self._limited = self._limited, None
                await stream.slow_down(len(frames) - HEADER_BYTES)
                await self._write(frames)
            else:
                break
        if (
            self._opening
        ):  # else a last word would follow about a visitor of whom the peer never heard
            await self._write(self._opening)

    def _carry_step(self, stream: VisitorStream) -> Readiness | None:
        """Take the plain end's bytes and its END to the wire until the stream is over or has failed, or bandwidth is limited: then they are `_limited`.

        Raises:
            ConnectionLostError: the wire is lost.
            OSError: the plain end is.
        """
        if stream.over:  # the wire may be the next visitor's
            return None
        if (len(self._unsent) > 0 or self.wire.has_unsent) and not self._send_rest():
            return self.wire.writable
        if self._ack_due and not self._acknowledge(stream):
            return self.wire.writable
        if stream.took_end:
            return self._note_end(stream)
        plain, buffer = stream.plain, stream.send_buffer
        outgoing = self._scratch.outgoing if buffer is None else self._scratch.keepable()
        room = stream.portion(outgoing[HEADROOM_BYTES:])
        if buffer is not None and buffer.is_full:
            if stream.failure is not None:
                return None
            if stream.is_unconfirmed:
                self.on_full()
            return stream.changed
        try:
            count = plain.recv_into(room)
        except BlockingIOError:
            if self._opening:  # nothing there yet, and the other side can begin without it
                self._unsent, self._opening = memoryview(self._opening), b""
                return self._carry_step(stream)
            return plain.readable
        if not count:
            stream.took_end = True
            frames, self._opening = memoryview(self._opening + END_FRAME), b""
            self._unsent = frames[self._send(frames) :]
            if self._unsent or self.wire.has_unsent:
                return self.wire.writable
            return self._note_end(stream)
        stream.taken += count
        if buffer is not None:
            buffer.keep_read(count)
        start = _OPENING_BYTES - len(self._opening)
        outgoing[start:_OPENING_BYTES] = self._opening
        self._opening = b""
        BIG_ENDIAN.pack_into(outgoing, _OPENING_BYTES, count, DATA_ID)
        frames = outgoing[start : HEADROOM_BYTES + count]
        if stream.is_limited:
            self._limited = bytes(frames)  # others use the scratch buffer meanwhile
            return None
        sent = self._send(frames)
        if sent < len(frames):
            self._unsent = memoryview(bytes(frames[sent:]))
            return self.wire.writable
        if self.wire.has_unsent:
            return self.wire.writable
        return plain.readable if count < MORE_LIKELY_BYTES else TURN

    def _note_end(self, stream: VisitorStream) -> Readiness | None:
        """END has left; wait until the other side has said its last word as well."""
        if not self._conversation.sent_last:
            self._conversation.sent_end()
            self._settle()
        return None if stream.over or stream.failure is not None else stream.changed

    def _send(self, data: memoryview) -> int:
        """Write to the wire what it takes at once; return how much that was."""
        try:
            return self.wire.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise lost(error) from error

    def _send_rest(self) -> bool:
        """Go on with what the wire did not take before; tell whether that is all of it now."""
        if self._unsent:
            self._unsent = self._unsent[self._send(self._unsent) :]
        elif self.wire.has_unsent:
            try:
                self.wire.flush()
            except BlockingIOError:
                return False
            except OSError as error:
                raise lost(error) from error
        return not self._unsent and not self.wire.has_unsent

    async def _write(self, data: bytes) -> None:
        """Send all of it, behind what is half sent."""
        rest, self._unsent = self._unsent, memoryview(b"")
        self._writing = True
        try:
            await send_all(self.wire, bytes(rest) + data if rest else data)
        except OSError as error:
            raise lost(error) from error
        finally:
            self._writing = False

    # -- from outside -------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Look after what no read or write would notice; to be called every `SWEEP_INTERVAL`.

        Notices a plain end that was reset while nobody touched it, and asks the kernel about a busy wire.

        Raises:
            PeerTimeoutError: the tunnel is to be given up, since the peer owes an answer for too long.
            ConnectionLostError: the wire is lost.
        """
        stream = self.stream
        if stream is not None and stream.failure is None and not stream.has_ended:
            if stream.plain.is_lost():
                self._lose_plain(stream)
            else:
                if self._ungiven is None:  # what was given before there was a tunnel
                    self._flush_plain(stream)
                if self._ack_due:
                    self._acknowledge(stream)
        if not self._writing and (self._unsent or self.wire.has_unsent):
            self._send_rest()
        failed = self._conversation.aborted or (stream is not None and stream.failure is not None)
        self.liveness.sweep(
            busy=not self.idle,
            aborting=failed and not self.idle,
            given=0 if stream is None else stream.given,
        )

    @property
    def streams(self) -> list[VisitorStream]:
        """Those that are on it: `before` and `stream`, where they are there."""
        if self.before is not None and self.before.is_acknowledged:
            self._forget_before()
        return [stream for stream in (self.before, self.stream) if stream is not None]

    def serves(self, visitor: int) -> bool:
        """Whether that visitor is on it, or the service is still being connected to for it. Not any more once the tunnel is gone."""
        return not self._is_gone and (
            self._conversation.visitor == visitor
            or any(stream.visitor == visitor for stream in self.streams)
        )

    def detach(self) -> list[VisitorStream]:
        """The tunnel is gone: return the streams that are still on it, for the caller to go on with, or to reset."""
        streams = self.streams
        self.before = self.stream = None
        self._is_gone = True
        return streams

    def abandon(self) -> None:
        """The tunnel is gone: reset the plain end that is still on it, since what it got may not be all."""
        for stream in self.detach():
            stream.plain.reset()
            stream.release()
