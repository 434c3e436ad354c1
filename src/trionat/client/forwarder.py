"""From a visitor to its local service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from trionat.config.values import NO_PROXY
from trionat.protocol.proxy import proxy_header
from trionat.relay.client_tunnel import LocalServiceError
from trionat.transport.dial import dial_service
from trionat.transport.endpoint import SocketEndpoint, send_all

if TYPE_CHECKING:
    from trionat.address import TCPAddress
    from trionat.config.sections import Service
    from trionat.transport.endpoint import Endpoint


@attrs.frozen
class Forwarder:
    """Connects visitors to the local services; `timeout` is in seconds, and below the server's patience with a visitor."""

    services: tuple[Service, ...]
    timeout: float

    async def open(
        self, number: int, visitor: TCPAddress | None = None, visited: TCPAddress | None = None
    ) -> Endpoint:
        """Return a connection to the service of that number, counted from 0; the caller owns it.

        A service that wants to know has been told that `visitor` has dialled `visited`, where the server tells so.

        Raises:
            LocalServiceError: it cannot be reached; the message goes to both sides' logs.
        """
        if number >= len(self.services):
            raise LocalServiceError(f"there is no service number {number}")
        service = self.services[number]
        local, version = service.local, service.proxy_protocol
        with trio.move_on_after(self.timeout):
            try:
                endpoint = SocketEndpoint(await dial_service(local))
                if version not in (None, NO_PROXY) and visitor is not None and visited is not None:
                    await _introduce(endpoint, proxy_header(version, visitor, visited))
            except OSError as error:
                reason = error.strerror or str(error)
                raise LocalServiceError(
                    f"the local service {local} cannot be reached: {reason}"
                ) from error
            return endpoint
        raise LocalServiceError(
            f"the local service {local} did not answer within {self.timeout:g} s"
        )


async def _introduce(endpoint: Endpoint, header: bytes) -> None:
    """Send what goes first; closes the endpoint where that fails."""
    try:
        await send_all(endpoint, header)
    except BaseException:
        endpoint.close()
        raise
