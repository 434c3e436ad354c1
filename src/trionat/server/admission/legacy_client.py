"""A legacy client in the queue: nothing can be told to it, and it has nothing to say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from trionat.errors import RemoteProtocolError
from trionat.server.admission.queued_client import QueuedClient

if TYPE_CHECKING:
    from trionat.transport.channel import LegacyChannel

# Messages that it may send all the same, each of up to 4 KiB; no client that we know sends any.
_PATIENCE: Final = 16


@attrs.define(eq=False, kw_only=True)
class LegacyQueuedClient(QueuedClient):
    """See `QueuedClient`."""

    channel: LegacyChannel

    async def send_position(self) -> None:
        """Say nothing: it takes silence for the queue."""

    async def listen(self) -> None:
        """See `QueuedClient`; it leaves by hanging up.

        One whose machine is gone stays until the kernel's own check notices, about a minute later (`set_stream_options`).
        """
        for _ in range(_PATIENCE):
            await self.channel.receive()
        raise RemoteProtocolError(f"{_PATIENCE} messages from a queued client")
