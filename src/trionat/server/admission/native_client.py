"""A native client in the queue: it is told its position again and again, and must let itself be heard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trionat.errors import ConnectionLostError, RemoteProtocolError
from trionat.protocol.messages import QUEUE_TIMEOUT, Close, Ping, Pong, Queued
from trionat.server.admission.queued_client import QueuedClient
from trionat.transport.deadline import deadline

if TYPE_CHECKING:
    from trionat.transport.channel import Channel


@attrs.define(eq=False, kw_only=True)
class NativeQueuedClient(QueuedClient):
    """See `QueuedClient`."""

    channel: Channel

    async def send_position(self) -> None:
        """Send QUEUED."""
        with deadline(QUEUE_TIMEOUT, "the queued client does not read"):
            await self.channel.send(Queued(position=max(self.position, 1)))

    async def listen(self) -> None:
        """See `QueuedClient`; it leaves by CLOSE, by hanging up, or by falling silent."""
        while True:
            with deadline(QUEUE_TIMEOUT, f"the queued client was silent for {QUEUE_TIMEOUT:g} s"):
                message = await self.channel.receive()
            match message:
                case Ping() | Pong():
                    pass
                case Close(text=text):
                    raise ConnectionLostError(f"the client left the queue: {text}")
                case _:
                    raise RemoteProtocolError(
                        f"{type(message).__name__.upper()} from a queued client"
                    )
