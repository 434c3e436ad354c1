"""The streams of a client that have lost their tunnel and wait for another one, in this session or the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.address import TCPAddress
from trionat.log import get_logger
from trionat.protocol.messages import MAX_STREAMS, Lost
from trionat.relay.send_buffer import SendBuffer, SendMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trionat.protocol.messages import Resumption
    from trionat.protocol.tunnel_frames import Open
    from trionat.relay.stream import VisitorStream
    from trionat.transport.endpoint import Endpoint

log = get_logger(__name__)

# Bytes that are held for all streams, in case they have to be sent again: as a server does by default for one session.
_MEMORY: Final = 64 * 1024 * 1024

# Seconds for which a stream waits longer than the server lets it: the server may have noticed later that the tunnel was lost.
_LONGER: Final = 15.0

# Visitors that were given up and may still be resumed in vain.
_MOST_GIVEN_UP: Final = 1024


@attrs.define(eq=False)
class _Waiting:
    frame: Open
    stream: VisitorStream
    is_early: bool = False
    since: float = attrs.field(factory=trio.current_time)


@attrs.define(eq=False)
class WaitingStreams:
    """Belongs to the client, not to a session. `expire` has to be called now and then; `drop_all` ends it.

    `most` bounds their number. Each holds the connection to its service, which is not read meanwhile. `tell` has to be called now and then.
    `on_given_up` is told of connections with which nobody goes on, and why.
    """

    most: int
    on_given_up: Callable[[Endpoint, str], None] = lambda _plain, _reason: None
    resumption: Resumption | None = attrs.field(init=False, default=None)
    memory: SendMemory = attrs.field(init=False, factory=lambda: SendMemory(_MEMORY))
    _server: str = attrs.field(init=False, default="")
    _waiting: dict[int, _Waiting] = attrs.field(init=False, factory=lambda: {})
    _untold: dict[int, int] = attrs.field(init=False, factory=lambda: {})
    _given_up: dict[int, None] = attrs.field(init=False, factory=lambda: {})
    # Since the log was told. Sets, since one may lose several tunnels in a second.
    _begun_to_wait: set[VisitorStream] = attrs.field(init=False, factory=lambda: set())
    _resumed: set[VisitorStream] = attrs.field(init=False, factory=lambda: set())

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[VisitorStream]:
        return (waiting.stream for waiting in self._waiting.values())

    def __contains__(self, visitor: int) -> bool:
        """Whether that visitor's waits."""
        return visitor in self._waiting

    def opened(self) -> Iterator[tuple[Open, VisitorStream]]:
        """Each with the frame that has begun it."""
        return ((waiting.frame, waiting.stream) for waiting in self._waiting.values())

    @property
    def visitors(self) -> int:
        """How many visitors wait, without those of whom only the last words are to be said."""
        return sum(_is_alive(stream) for stream in self)

    def tell(self) -> None:
        """Log how many have lost their tunnel since this was called last, and how many go on over another: a line for all of them."""
        if self._begun_to_wait:
            log.info("visitors wait for another tunnel", visitors=len(self._begun_to_wait))
        # The server may have taken up others only to say that they are over.
        if go_on := sum(stream.failure is None for stream in self._resumed):
            log.info("visitors go on over another tunnel", visitors=go_on)
        self._begun_to_wait.clear()
        self._resumed.clear()

    def tell_disconnected(self) -> None:
        """The same where the session is lost, so that all of them wait."""
        self._begun_to_wait.clear()
        self.tell()
        if visitors := self.visitors:
            log.info("visitors wait until the client is connected again", visitors=visitors)

    @property
    def has_untold(self) -> bool:
        """Whether `lost` has something to say."""
        return bool(self._untold)

    def forget_acknowledged(self) -> None:
        """Let go of those that have ended, and of which the server has got all."""
        for waiting in list(self._waiting.values()):
            if waiting.stream.over and waiting.stream.is_acknowledged:
                del self._waiting[waiting.stream.visitor]

    @property
    def token(self) -> str | None:
        """What the server is shown, so that it goes on with them."""
        return None if self.resumption is None else self.resumption.lease

    def begin(self, resumption: Resumption | None, server: str = "") -> None:
        """A session is up, at that server. Where it is not the one, or not in the lease, that has the streams, nobody will go on with them."""
        if resumption is None or resumption.lease != self.token:
            self.drop_all(
                "the server does not have it any more"
                if server == self._server
                else f"the session is at another server now, {server}"
            )
            self._given_up.clear()
        self._untold.clear()  # with its session the server has lost them all
        self.resumption, self._server = resumption, server

    def new_buffer(self) -> SendBuffer | None:
        """Return what a new stream needs to be one of these later; None: the server does not do it."""
        return None if self.resumption is None else SendBuffer(self.resumption.buffer, self.memory)

    def hold(self, frame: Open, stream: VisitorStream, *, is_early: bool = False) -> None:
        """Take over a stream whose tunnel is lost, or that has had none yet; one that cannot go on is reset.

        `is_early` says that it has had none, which the server knows.
        """
        waiting = _Waiting(frame, stream, is_early)
        if stream.aborted or not stream.can_resume or len(self._waiting) >= self.most:
            self._give_up(waiting, "its tunnel was lost")
            return
        log.debug("visitor waits for a tunnel", visitor=stream.visitor)
        self._waiting[stream.visitor] = waiting
        if not is_early:
            self._untold[stream.visitor] = stream.attempt
            if _is_alive(stream):
                self._begun_to_wait.add(stream)

    def take(self, visitor: int) -> VisitorStream | None:
        """Return the stream with which another tunnel goes on; None: it was never here.

        Raises:
            LookupError: it was given up.
        """
        if visitor in self._given_up:
            raise LookupError(visitor)
        self._untold.pop(visitor, None)
        if (waiting := self._waiting.pop(visitor, None)) is None:
            return None
        if waiting.is_early:
            service = waiting.frame.service
            log.debug("visitor paired with a tunnel", visitor=visitor, service=service)
        else:
            log.debug("visitor has another tunnel", visitor=visitor)
            if _is_alive(waiting.stream):
                self._resumed.add(waiting.stream)
        return waiting.stream

    def lost(self) -> Lost | None:
        """Return what the server may not know yet of lost tunnels; None: nothing. It counts as told."""
        told = tuple(self._untold.items())[:MAX_STREAMS]
        for visitor, _ in told:
            del self._untold[visitor]
        return Lost(told) if told else None

    def expire(self) -> None:
        """Reset those that nobody has gone on with in time."""
        wait = 0.0 if self.resumption is None else self.resumption.wait
        before = trio.current_time() - wait - _LONGER
        for waiting in list(self._waiting.values()):
            if waiting.since < before:
                self._drop(waiting, "its tunnel was lost, and no other came in time")

    def drop_all(self, reason: str) -> None:
        """Reset all of them."""
        for waiting in list(self._waiting.values()):
            self._drop(waiting, reason)

    def _drop(self, waiting: _Waiting, reason: str) -> None:
        visitor = waiting.stream.visitor
        del self._waiting[visitor]
        self._untold.pop(visitor, None)
        self._give_up(waiting, reason)

    def _give_up(self, waiting: _Waiting, reason: str) -> None:
        frame, stream = waiting.frame, waiting.stream
        if len(self._given_up) >= _MOST_GIVEN_UP:
            del self._given_up[next(iter(self._given_up))]
        self._given_up[stream.visitor] = None
        stream.plain.reset()
        stream.release()
        if not stream.finished:
            stream.finished = True
            if stream.failure is not None:
                reason = stream.failure.text
            self.on_given_up(stream.plain, reason)
            address = str(TCPAddress(frame.host, frame.port))
            log.info(
                "visitor closed",
                visitor=stream.visitor,
                address=address,
                reason=reason,
                received=stream.given,
                sent=stream.taken,
                seconds=round(trio.current_time() - stream.since, 3),
            )


def _is_alive(stream: VisitorStream) -> bool:
    """Whether there is more of it than last words."""
    return stream.failure is None and not stream.over
