"""The client's end of a tunnel: it connects visitors to their local service, and answers the server's probes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NoReturn

import attrs

from trionat.errors import PeerTimeoutError, RemoteProtocolError
from trionat.protocol.conversation import Side
from trionat.protocol.tunnel_frames import (
    PROBED_FRAME,
    Abort,
    AbortReason,
    Forward,
    Open,
    Probe,
    Resume,
    Resumed,
)
from trionat.relay.liveness import FORGOTTEN_AFTER
from trionat.relay.stream import VisitorStream
from trionat.relay.tunnel import Tunnel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trionat.protocol.tunnel_frames import TunnelFrame
    from trionat.relay.send_buffer import SendBuffer
    from trionat.transport.endpoint import Endpoint


class LocalServiceError(Exception):
    """A client's local service could not be reached; the message is for both sides' logs."""


async def _no_service(_: Open) -> NoReturn:  # noqa: ASYNC124 - what it stands for waits
    raise LocalServiceError("the tunnel has ended")


def _nothing_more(_: Open, stream: VisitorStream) -> None:
    stream.plain.reset()


@attrs.define(eq=False)
class ClientTunnel(Tunnel):
    """See `Tunnel`.

    `connect` is the way to the local service: it returns a connected endpoint, which the tunnel owns then, or raises
    `LocalServiceError`. `on_stream` takes the stream over, to run `serve` on it. `on_idle` is called when a visitor is done with.

    Where streams outlive their tunnels, `new_buffer` makes what each of them needs for it, and `find` is called when the server resumes one: it
    takes it off its tunnel and returns it, or None where it was never here, and raises LookupError where it is not here any more, or
    `LocalServiceError` where its service could not be reached.
    """

    side: ClassVar[Side] = Side.CLIENT
    connect: Callable[[Open], Awaitable[Endpoint]]
    on_stream: Callable[[Open, VisitorStream], None]
    on_idle: Callable[[], None] = lambda: None
    new_buffer: Callable[[], SendBuffer | None] | None = None
    find: Callable[[int], Awaitable[VisitorStream | None]] | None = None
    takes_forwards: ClassVar[bool] = False

    async def serve(self, stream: VisitorStream) -> None:
        """`carry` for a stream that `on_stream` was told of, or go on with it, where it was on another tunnel. Raises as `carry`."""
        if self._conversation.resuming:
            resumed = Resumed(stream.received)
            stream.note_confirmed()
            async with self._last_word:  # an ABORT may end the conversation meanwhile
                await self._write(resumed.encode())
            self._conversation.sent_resumed()  # at once: the server may answer before the rest has left
            await self._carry_on(stream)
        else:
            await self.carry(stream)

    async def _take(self, frame: TunnelFrame) -> None:
        self._forget_before()
        self._reader.keep()
        match frame:
            case Forward() if not self.takes_forwards:
                raise RemoteProtocolError("FORWARD from a server")
            case Open():
                self._conversation.receive_open(frame.visitor)
                await self._open(frame)
            case Resume() if self.find is not None:
                await self._resume(frame)
            case Probe() if self.idle:
                async with self._last_word:
                    await self._write(PROBED_FRAME)
            case Probe():
                raise RemoteProtocolError("PROBE of a busy tunnel")
            case _:
                raise RemoteProtocolError(f"{type(frame).__name__.upper()} from a server")

    async def _open(self, frame: Open, attempt: int = 0) -> None:
        """Connect to the local service, which other visitors' tunnels do not wait for."""
        try:
            plain = await self.connect(frame)
        except LocalServiceError as error:
            await self._abort(frame, AbortReason.REFUSED, str(error))
        else:
            buffer = None if self.new_buffer is None else self.new_buffer()
            self.stream = VisitorStream(frame.visitor, plain, buffer, attempt=attempt)
            self.on_stream(frame, self.stream)

    async def _abort(self, frame: Open, reason: AbortReason, text: str) -> None:
        async with self._last_word:
            await self._write(Abort(frame.visitor, reason, text).encode())
        self._conversation.sent_abort()

    async def _resume(self, frame: Resume) -> None:
        """Go on with a stream of another tunnel; with one of which nothing ever arrived, as if it were opened."""
        assert self.find is not None, "asked before"  # noqa: S101 - for type checkers
        visitor = frame.open.visitor
        if not self.idle:
            raise RemoteProtocolError("RESUME on a busy tunnel")
        try:
            stream = await self.find(visitor)
        except LocalServiceError as error:
            self._conversation.receive_open(visitor)
            await self._abort(frame.open, AbortReason.REFUSED, str(error))
        except LookupError:
            await self._say_gone(frame.open, "the client has given it up")
        else:
            if stream is not None:
                self._go_on(stream, frame)
            elif frame.kept or frame.received:
                await self._say_gone(frame.open, "the client does not know it")
            else:
                self._conversation.receive_open(visitor)
                async with self._last_word:
                    await self._write(Resumed(0).encode())
                await self._open(frame.open, frame.attempt)

    async def _say_gone(self, frame: Open, text: str) -> None:
        self._conversation.receive_open(frame.visitor)
        await self._abort(frame, AbortReason.GONE, text)

    def _go_on(self, stream: VisitorStream, frame: Resume) -> None:
        if not (
            frame.kept <= stream.received
            and stream.acknowledged <= frame.received <= stream.sent
            and (stream.can_resume or frame.received == stream.sent)  # all that is missing is kept
        ):
            stream.fail(AbortReason.OTHER, "the server resumed it where it cannot go on")
        else:
            stream.acknowledge(frame.received)
        self._conversation.receive_resume(
            stream.visitor,
            sent_last=stream.took_end and frame.received == stream.sent,
            received_last=stream.gave_end,
        )
        stream.over = False
        stream.attempt = frame.attempt
        self.stream = stream
        self.on_stream(frame.open, stream)

    def detach(self) -> list[VisitorStream]:
        """See `Tunnel`. Lets go of its callbacks as well: they refer to it, so it and its wire would wait for the garbage collector."""
        self.connect, self.on_stream, self.on_idle = _no_service, _nothing_more, lambda: None
        self.new_buffer = self.find = None
        return super().detach()

    def _rest(self) -> None:
        self.on_idle()

    def sweep(self) -> None:
        """See `Tunnel`; gives up an idle tunnel that the server seems to have forgotten."""
        super().sweep()
        if self.idle and self.liveness.silent > FORGOTTEN_AFTER:
            raise PeerTimeoutError("the server has forgotten this tunnel")
