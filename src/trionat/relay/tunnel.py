"""A framed, recyclable tunnel: two tasks that live as long as it does and serve one visitor after another.

`receive` reads frames from the wire for the tunnel's whole life and gives visitors' bytes to the plain end. `carry` takes the
plain end's bytes to the wire, for one stream. Either side has one task for each, so a visitor costs no task, no nursery, no
TCP connection and no TLS handshake.

Who may write to the wire: `carry` while there is a visitor, `receive` and `probe` while there is none. `Conversation` knows
which of the two it is. What both tasks share is changed between two checkpoints only, so there is no lock, but for one frame: an
ABORT behind an END of ours may still be leaving when the peer's END makes the tunnel idle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

import attrs
import trio

from trionat.errors import ConnectionLostError, PeerTimeoutError, RemoteProtocolError
from trionat.protocol.conversation import Conversation, Side
from trionat.protocol.frames import BIG_ENDIAN, HEADER_BYTES
from trionat.protocol.tunnel_frames import (
    DATA_ID,
    END_FRAME,
    PROBE_FRAME,
    PROBED_FRAME,
    Abort,
    AbortReason,
    End,
    Open,
    Probe,
    Probed,
    TunnelFrame,
    TunnelReader,
)
from trionat.relay.stream import VisitorStream, reset_text
from trionat.transport.endpoint import MORE_LIKELY_BYTES, Endpoint, lost, send_all
from trionat.transport.scratch import HEADROOM_BYTES, Scratch, scratch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# Frames out of one read before the others get their turn; each costs a few microseconds.
_EVENTS_TURN: Final = 64

# `sweep` is called once a second, and all of these count its calls: no timer and no clock on the way of the bytes.
SWEEP_INTERVAL: Final = 1.0  # seconds
_PROBE_AFTER: Final = 15  # of silence on an idle tunnel; below the 30 s after which the hastiest NATs forget a connection
_PROBE_WITH_OPEN_AFTER: Final = (
    2  # of silence: whoever was heard of a moment ago need not be asked again
)
_PROBE_ANSWER_WITHIN: Final = (
    4  # a round trip, with room for two retransmissions (RFC 6298: 1 s, then 2 s)
)
_CLIENT_GIVES_UP_AFTER: Final = (
    60  # of silence on an idle tunnel, which means that several probes did not arrive
)
_ABORT_ANSWER_WITHIN: Final = (
    10  # the peer reads our ABORT only when it has delivered what came before
)
_LOST_WIRE_STUCK_FOR: Final = 5
"""Sweeps for which what came over a wire that is lost by now may wait for its reader. What is still read may be all of it, with its END."""
ACKNOWLEDGED_WITHIN: Final = 15.0
"""Seconds in which the peer's kernel has to acknowledge something of what a busy tunnel has sent. Nobody is asked there, so the kernel
has to tell; a slow reader's acknowledges all the same. With less, tunnels would end in outages that the control connection survives."""


def acknowledged_within(peer_timeout: float) -> float:
    """Return for how long the tunnels of a session whose peer may be silent for so long wait; no shorter than the session."""
    return max(ACKNOWLEDGED_WITHIN, 2 * peer_timeout)


class LocalServiceError(Exception):
    """A client's local service could not be reached; the message is for both sides' logs."""


@attrs.define(eq=False)
class Tunnel:
    """One end of a tunnel. Does not own the wire; whoever runs the two tasks closes it, and then calls `abandon`.

    `on_open` is a client's way to its local service: it returns a connected endpoint, which the tunnel owns then, or raises
    `LocalServiceError`. `on_stream` takes the stream over, to run `carry` on it. `on_idle` is called when a visitor is done
    with. A server has none of them. `acknowledged_within` is in seconds.
    """

    wire: Endpoint
    side: Side
    on_open: Callable[[Open], Awaitable[Endpoint]] | None = None
    on_stream: Callable[[Open, VisitorStream], None] | None = None
    on_idle: Callable[[], None] = lambda: None
    acknowledged_within: float = ACKNOWLEDGED_WITHIN
    _heard: bool = attrs.field(init=False, default=True)
    _silent: int = attrs.field(init=False, default=0)
    _unanswered_probe: int | None = attrs.field(init=False, default=None)
    _failed_for: int = attrs.field(init=False, default=0)
    _stalled_for: int = attrs.field(init=False, default=0)
    _wire_lost: bool = attrs.field(init=False, default=False)
    _stuck_for: int = attrs.field(init=False, default=0)
    _given_before: int = attrs.field(init=False, default=0)
    stream: VisitorStream | None = attrs.field(init=False, default=None)
    _conversation: Conversation = attrs.field(init=False)
    _reader: TunnelReader = attrs.field(init=False, factory=TunnelReader)
    _last_word: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    _scratch: Scratch = attrs.field(init=False, factory=scratch)

    def __attrs_post_init__(self) -> None:
        self._conversation = Conversation(self.side)

    @property
    def idle(self) -> bool:
        """Whether no visitor is on this tunnel."""
        return self._conversation.idle

    @property
    def unused(self) -> bool:
        """Whether it has never had a visitor."""
        return self._conversation.unused

    @property
    def is_asked(self) -> bool:
        """Whether the peer owes an answer to a probe."""
        return self._unanswered_probe is not None

    @property
    def silent(self) -> int:
        """For how many sweeps nothing was heard of the peer."""
        return self._silent

    # -- wire to plain ------------------------------------------------------------------------------------------------

    async def receive(self) -> None:
        """Read the wire until it ends: frames to the law, visitors' bytes to the plain end.

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
            self._heard = True
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
            case Open():
                await self._open_plain(frame)
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
            case Probe():
                if self.side is not Side.CLIENT or not self.idle:
                    raise RemoteProtocolError("PROBE of a busy tunnel, or from a client")
                self._reader.keep()
                async with self._last_word:
                    await self._write(PROBED_FRAME)
            case Probed():
                if self.side is not Side.SERVER:
                    raise RemoteProtocolError("PROBED from a server")
            case _:
                assert_never(frame)

    def _abort_plain(self, stream: VisitorStream, abort: Abort) -> None:
        stream.unanswered = None
        stream.fail(
            abort.reason, abort.text or f"aborted by the other side ({abort.reason.name.lower()})"
        )
        if abort.reason is AbortReason.REFUSED:
            stream.plain.close()
        else:
            stream.plain.reset()

    async def _open_plain(self, frame: Open) -> None:
        """Client: connect to the local service, which other visitors' tunnels do not wait for."""
        self._conversation.receive_open(frame.visitor)
        assert self.on_open is not None, "only a client's conversation lets OPEN through"  # noqa: S101 - for type checkers
        assert self.on_stream is not None, "on_open and on_stream come together"  # noqa: S101 - for type checkers
        self._reader.keep()
        try:
            plain = await self.on_open(frame)
        except LocalServiceError as error:
            async with self._last_word:
                await self._write(Abort(frame.visitor, AbortReason.REFUSED, str(error)).encode())
            self._conversation.sent_abort()
        else:
            self.stream = VisitorStream(frame.visitor, plain)
            self.on_stream(frame, self.stream)

    def _settle(self) -> None:
        """After a last word of either side: is the tunnel idle again?"""
        if self._conversation.over:
            self._conversation.finish()
            if (stream := self.stream) is not None:
                self.stream = None
                stream.over = True
                stream.plain.close()  # both directions have ended, so nobody uses it any more
                stream.changed.notify()
            self.on_idle()

    # -- plain to wire ------------------------------------------------------------------------------------------------

    async def open(self, stream: VisitorStream, frame: Open, early: bytes = b"") -> None:
        """Server: give the idle tunnel its next visitor, and `carry` for it.

        `early` are bytes that were read from the visitor before. OPEN leaves together with the visitor's first bytes if they
        are there, at once if not. A tunnel that was not heard of for a while is probed in the same breath.

        Raises:
            As `carry`.
        """
        opening = frame.encode()
        if early:
            opening += BIG_ENDIAN.pack(len(early), DATA_ID) + early
        if self._silent >= _PROBE_WITH_OPEN_AFTER and self._unanswered_probe is None:
            opening = PROBE_FRAME + opening
            self._unanswered_probe = 0
        stream.unanswered = bytearray(early)
        self._conversation.open(frame.visitor)
        self.stream = stream
        await self.carry(stream, opening)

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

    def sweep(self, *, doubtful: bool = False) -> None:
        """Look after what no read or write would notice; to be called every `SWEEP_INTERVAL`.

        Notices a plain end that was reset while nobody touched it, probes an idle tunnel, asks the kernel about a busy one, and raises
        when this tunnel is to be given up. Where another tunnel to the same peer does not answer, all are `doubtful` and are asked sooner: they may have
        died together, and a visitor must not try one after another.

        Raises:
            PeerTimeoutError: the peer owes an answer for too long.
            ConnectionLostError: the wire is lost.
        """
        stream = self.stream
        if stream is not None and stream.failure is None and stream.plain.is_lost():
            self._lose_plain(stream)
        self._check_wire(stream)
        failed = self._conversation.aborted or (stream is not None and stream.failure is not None)
        self._failed_for = self._failed_for + 1 if failed and not self.idle else 0
        if self._failed_for > _ABORT_ANSWER_WITHIN:
            raise PeerTimeoutError("the other end of the tunnel did not answer an ABORT")
        # Counted, since the kernel tells when it last heard anything, which may be long before what it has just sent.
        stalled = not self.idle and self.wire.silent_for() > SWEEP_INTERVAL
        self._stalled_for = self._stalled_for + 1 if stalled else 0
        if self._stalled_for * SWEEP_INTERVAL > self.acknowledged_within:
            raise PeerTimeoutError("the other end of the tunnel acknowledged nothing")
        if self._heard:
            self._heard = False
            self._silent = 0
            self._unanswered_probe = None
            return
        self._silent += 1
        if self._unanswered_probe is not None:
            self._unanswered_probe += 1
            if self._unanswered_probe > _PROBE_ANSWER_WITHIN:
                raise PeerTimeoutError("the other end of the tunnel did not answer a probe")
        elif (
            self.idle
            and self.side is Side.SERVER
            and self._silent >= (_PROBE_WITH_OPEN_AFTER if doubtful else _PROBE_AFTER)
        ):
            self._probe()
        elif self.idle and self._silent > _CLIENT_GIVES_UP_AFTER:
            raise PeerTimeoutError("the server has forgotten this tunnel")

    def _check_wire(self, stream: VisitorStream | None) -> None:
        """Notice that the wire was lost while nobody reads it, since `receive` waits for a plain end that does not read.

        Raises:
            ConnectionLostError: so it is, and the plain end takes nothing any more.
        """
        self._wire_lost = self._wire_lost or self.wire.is_lost()
        if not self._wire_lost:
            return
        given = 0 if stream is None else stream.given
        self._stuck_for = self._stuck_for + 1 if given == self._given_before else 0
        self._given_before = given
        if self._stuck_for > _LOST_WIRE_STUCK_FOR:
            raise ConnectionLostError("the tunnel was lost")

    def _probe(self) -> None:
        if self._last_word.locked():  # it has tried to leave all the while
            raise PeerTimeoutError("the other end of the tunnel did not take an ABORT")
        self._unanswered_probe = 0
        try:
            if self.wire.send(PROBE_FRAME) == len(PROBE_FRAME):
                return
        except OSError as error:
            raise lost(error) from error
        raise ConnectionLostError("the tunnel took only half a probe")

    def abandon(self) -> None:
        """The tunnel is gone: reset the plain end that is still on it, since what it got may not be all."""
        if (stream := self.stream) is not None:
            self.stream = None
            stream.plain.reset()
