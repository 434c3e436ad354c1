"""A framed, recyclable tunnel: two tasks that live as long as it does and serve one visitor after another.

`receive` reads frames from the wire for the tunnel's whole life and gives visitors' bytes to the plain end. `carry` takes the
plain end's bytes to the wire, for one stream. Either side has one task for each, so a visitor costs no task, no nursery, no
TCP connection and no TLS handshake. What moves bytes are plain functions, `_receive_step` and `_carry_step`, which `pump` calls
(`transport/readiness.py`): the tasks are woken for what has to be waited for otherwise.

Who may write to the wire: `carry` while there is a visitor, `receive` and `sweep` while there is none. `Conversation` knows
which of the two it is. What both tasks share is changed between two checkpoints only, so there is no lock, but for one frame: an
ABORT behind an END of ours may still be leaving when the peer's END makes the tunnel idle.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from functools import partial
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
from trionat.transport.readiness import TURN, pump
from trionat.transport.scratch import HEADROOM_BYTES, Scratch, scratch

if TYPE_CHECKING:
    from trionat.protocol.conversation import Side
    from trionat.protocol.tunnel_frames import TunnelFrame
    from trionat.transport.readiness import Readiness

# Frames before the others get their turn; each costs a few microseconds, and a peer may send nothing but the smallest.
_EVENTS_TURN: Final = 64

# What may leave together with a visitor's first bytes.
_OPENING_BYTES: Final = HEADROOM_BYTES - HEADER_BYTES


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
    # What the steps leave to their tasks, or to the next step.
    _event: TunnelFrame | memoryview | None = attrs.field(init=False, default=None)
    _emptied: bool = attrs.field(init=False, default=False)
    _ungiven: tuple[VisitorStream, memoryview] | None = attrs.field(init=False, default=None)
    _opening: bytes = attrs.field(init=False, default=b"")
    _unsent: memoryview = attrs.field(init=False, factory=lambda: memoryview(b""))
    _limited: bytes | None = attrs.field(init=False, default=None)

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
        reader = self._reader
        for _ in range(_EVENTS_TURN):
            event = reader.next()
            if event is None:
                if self._emptied:  # by the read before
                    self._emptied = False
                    return self.wire.readable
                try:
                    count = self._read_wire()
                except BlockingIOError:
                    return self.wire.readable
                if not count:
                    return None
            elif not isinstance(event, memoryview):
                if not self._take_last_word(event):
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
                if sent < len(event):
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
        stream = self.stream
        if stream is None or stream.failure is not None:
            return None
        stream.unanswered = None
        return stream

    def _give(self, stream: VisitorStream, piece: memoryview) -> int:
        """Write to the plain end what it takes at once; return how much that was. All of it is dropped where that end is gone."""
        try:
            sent = stream.plain.send(piece)
        except BlockingIOError:
            return 0
        except OSError:
            self._lose_plain(stream)
            return len(piece)
        stream.given += sent
        return sent

    def _give_rest(self, stream: VisitorStream, rest: memoryview) -> bool:
        """Go on with what the plain end did not take before; tell whether that is all of it now."""
        sent = len(rest) if stream.failure is not None else self._give(stream, rest)
        self._ungiven = (stream, rest[sent:]) if sent < len(rest) else None
        return self._ungiven is None

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

    def _take_last_word(self, frame: TunnelFrame) -> bool:
        """Take END or ABORT; False: it is another frame."""
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
                return False
        return True

    @abstractmethod
    async def _take(self, frame: TunnelFrame) -> None:
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
        if len(opening) <= _OPENING_BYTES:
            self._opening = opening
        else:
            self._unsent = memoryview(opening)
        gone: OSError | None = None
        step = partial(self._carry_step, stream)
        while gone is None:
            try:
                await pump(step)
            except OSError as error:
                gone = error
            if self._limited is None:
                break
            frames, self._limited = self._limited, None
            await stream.slow_down(len(frames) - HEADER_BYTES)
            await self._write(frames)
        if (
            self._opening
        ):  # else a last word would follow about a visitor of whom the peer never heard
            await self._write(self._opening)
        if gone is not None:
            raise gone

    def _carry_step(self, stream: VisitorStream) -> Readiness | None:
        """Take the plain end's bytes to the wire until it ends, or its bandwidth is limited: then they are `_limited`.

        Raises:
            ConnectionLostError: the wire is lost.
            OSError: the plain end is.
        """
        if (len(self._unsent) > 0 or self.wire.has_unsent) and not self._send_rest():
            return self.wire.writable
        plain, outgoing = stream.plain, self._scratch.outgoing
        room = outgoing[HEADROOM_BYTES:]
        try:
            count = plain.recv_into(stream.portion(room))
        except BlockingIOError:
            if self._opening:  # nothing there yet, and the other side can begin without it
                self._unsent, self._opening = memoryview(self._opening), b""
                return self._carry_step(stream)
            return plain.readable
        if not count:
            return None
        stream.taken += count
        if stream.unanswered is not None:
            stream.keep_unanswered(room[:count])
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
