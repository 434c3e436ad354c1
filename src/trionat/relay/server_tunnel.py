"""The server's end of a tunnel: it opens visitors, and asks whether the client is still there."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs
import trio

from trionat.errors import ConnectionLostError, PeerTimeoutError, RemoteProtocolError
from trionat.protocol.conversation import Side
from trionat.protocol.tunnel_frames import PROBE_FRAME, AbortReason, Probed, Resumed
from trionat.relay.liveness import PROBE_AFTER, PROBE_SOON_AFTER
from trionat.relay.tunnel import Tunnel
from trionat.signals import Signal
from trionat.transport.endpoint import lost

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.protocol.tunnel_frames import Open, Resume, TunnelFrame
    from trionat.relay.stream import VisitorStream


@attrs.define(eq=False)
class ServerTunnel(Tunnel):
    """See `Tunnel`. `on_probed` is called when the client has answered a probe."""

    side: ClassVar[Side] = Side.SERVER
    on_probed: Callable[[], None] = attrs.field(default=lambda: None, kw_only=True)
    _confirmed: Signal = attrs.field(init=False, factory=Signal)
    _confirming: bool = attrs.field(init=False, default=False)

    async def open(self, stream: VisitorStream, frame: Open) -> None:
        """Give the idle tunnel its next visitor, and `carry` for it.

        OPEN leaves together with the visitor's first bytes if they are there, at once if not. A tunnel that was not heard of for a while
        is probed in the same breath.

        Raises:
            As `carry`.
        """
        opening = frame.encode()
        if self.liveness.silent >= PROBE_SOON_AFTER and not self.liveness.is_asked:
            opening = PROBE_FRAME + opening
            self.liveness.ask()
        self._conversation.open(frame.visitor)
        self.stream = stream
        await self.carry(stream, opening)

    async def resume(self, stream: VisitorStream, frame: Resume) -> None:
        """Go on with a stream of another tunnel on this idle one; otherwise as `open`. The client answers at once, or is given up."""
        stream.over = False
        stream.resumed_at = None
        self._conversation.resume(stream.visitor, received_last=stream.gave_end)
        self.stream = stream
        self.liveness.ask()
        await self._write(frame.encode())
        stream.note_confirmed()
        while self._conversation.resuming:
            await stream.changed.wait()
        await self._carry_on(stream)

    async def _take(self, frame: TunnelFrame) -> None:
        self._forget_before()
        match frame:
            case Resumed(received):
                self._take_resumed(received)
            case Probed():
                self._confirming = False
                self._confirmed.notify()
                self.on_probed()
            case _:
                raise RemoteProtocolError(f"{type(frame).__name__.upper()} from a client")

    def _take_resumed(self, received: int) -> None:
        stream = self.stream
        if stream is None or stream.send_buffer is None:
            raise RemoteProtocolError("RESUMED without a RESUME")
        if not (
            stream.acknowledged <= received <= stream.sent
            and (stream.can_resume or received == stream.sent)
        ):
            stream.fail(AbortReason.OTHER, "the client resumed it where it cannot go on")
            raise RemoteProtocolError(
                f"RESUMED at {received}, where {stream.acknowledged} to {stream.sent} can be had"
            )
        self._conversation.receive_resumed(sent_last=stream.took_end and received == stream.sent)
        stream.acknowledge(received)
        stream.resumed_at = trio.current_time()
        stream.changed.open()

    def sweep(self, *, doubtful: bool = False) -> None:
        """See `Tunnel`; probes an idle tunnel that was silent for a while.

        Where another tunnel to the same client does not answer, all are `doubtful` and are asked sooner: they may have died together,
        and a visitor must not try one after another.
        """
        super().sweep()
        silence = PROBE_SOON_AFTER if doubtful else PROBE_AFTER
        if self.idle and self.liveness.silent >= silence and not self.liveness.is_asked:
            self._probe()

    def doubt(self) -> bool:
        """Probe an idle tunnel that was not heard of lately, and tell whether it owes the answer. For when another one has died in silence.

        Raises:
            ConnectionLostError: the wire is lost.
        """
        if not self.idle or self.liveness.heard or self.liveness.silent < PROBE_SOON_AFTER:
            return False
        if not self.liveness.is_asked:
            self._probe()
        return True

    async def confirm(self) -> None:
        """Probe the idle tunnel, and wait for the answer: `sweep` gives up who does not answer.

        Raises:
            ConnectionLostError: the wire is lost.
        """
        self._confirming = True
        self._probe()
        while self._confirming:
            await self._confirmed.wait()

    def _probe(self) -> None:
        if self._last_word.locked():  # it has tried to leave all the while
            raise PeerTimeoutError("the other end of the tunnel did not take an ABORT")
        self.liveness.ask()
        if self._unsent:
            raise ConnectionLostError("the tunnel is stuck: an ACK could not be sent")
        try:
            if self.wire.send(PROBE_FRAME) == len(PROBE_FRAME) and not self.wire.has_unsent:
                return
        except OSError as error:
            raise lost(error) from error
        raise ConnectionLostError("the tunnel is stuck: a probe could not be sent")
