"""The client's end of a tunnel: it connects visitors to their local service, and answers the server's probes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs

from trionat.errors import PeerTimeoutError, RemoteProtocolError
from trionat.protocol.conversation import Side
from trionat.protocol.tunnel_frames import PROBED_FRAME, Abort, AbortReason, Open, Probe
from trionat.relay.liveness import FORGOTTEN_AFTER
from trionat.relay.stream import VisitorStream
from trionat.relay.tunnel import Tunnel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trionat.protocol.tunnel_frames import TunnelFrame
    from trionat.transport.endpoint import Endpoint


class LocalServiceError(Exception):
    """A client's local service could not be reached; the message is for both sides' logs."""


@attrs.define(eq=False)
class ClientTunnel(Tunnel):
    """See `Tunnel`.

    `connect` is the way to the local service: it returns a connected endpoint, which the tunnel owns then, or raises
    `LocalServiceError`. `on_stream` takes the stream over, to run `carry` on it. `on_idle` is called when a visitor is done with.
    """

    side: ClassVar[Side] = Side.CLIENT
    connect: Callable[[Open], Awaitable[Endpoint]]
    on_stream: Callable[[Open, VisitorStream], None]
    on_idle: Callable[[], None] = lambda: None

    async def _take(self, frame: TunnelFrame) -> None:
        match frame:
            case Open():
                await self._open(frame)
            case Probe() if self.idle:
                self._reader.keep()
                async with self._last_word:
                    await self._write(PROBED_FRAME)
            case Probe():
                raise RemoteProtocolError("PROBE of a busy tunnel")
            case _:
                raise RemoteProtocolError(f"{type(frame).__name__.upper()} from a server")

    async def _open(self, frame: Open) -> None:
        """Connect to the local service, which other visitors' tunnels do not wait for."""
        self._conversation.receive_open(frame.visitor)
        self._reader.keep()
        try:
            plain = await self.connect(frame)
        except LocalServiceError as error:
            async with self._last_word:
                await self._write(Abort(frame.visitor, AbortReason.REFUSED, str(error)).encode())
            self._conversation.sent_abort()
        else:
            self.stream = VisitorStream(frame.visitor, plain)
            self.on_stream(frame, self.stream)

    def _rest(self) -> None:
        self.on_idle()

    def sweep(self) -> None:
        """See `Tunnel`; gives up an idle tunnel that the server seems to have forgotten."""
        super().sweep()
        if self.idle and self.liveness.silent > FORGOTTEN_AFTER:
            raise PeerTimeoutError("the server has forgotten this tunnel")
