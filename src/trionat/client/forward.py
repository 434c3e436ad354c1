"""From a visitor to its local service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from trionat.relay.tunnel import LocalServiceError
from trionat.transport.dial import dial
from trionat.transport.endpoint import SocketEndpoint

if TYPE_CHECKING:
    from trionat.config.schema import Service
    from trionat.transport.endpoint import Endpoint


@attrs.frozen
class Forwarder:
    """Connects visitors to the local services; `timeout` is in seconds, and below the server's patience with a visitor."""

    services: tuple[Service, ...]
    timeout: float

    async def open(self, number: int) -> Endpoint:
        """Return a connection to the service of that number, counted from 0; the caller owns it.

        Raises:
            LocalServiceError: it cannot be reached; the message goes to both sides' logs.
        """
        if number >= len(self.services):
            raise LocalServiceError(f"there is no service number {number}")
        local = self.services[number].local
        with trio.move_on_after(self.timeout):
            try:
                return SocketEndpoint(await dial(local))
            except OSError as error:
                reason = error.strerror or str(error)
                raise LocalServiceError(
                    f"the local service {local} cannot be reached: {reason}"
                ) from error
        raise LocalServiceError(
            f"the local service {local} did not answer within {self.timeout:g} s"
        )
