"""From a visitor to its local service."""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.client.service_health import ServiceHealth
from trionat.config.values import NO_PROXY
from trionat.log import get_logger
from trionat.protocol.proxy import proxy_header
from trionat.relay.client_tunnel import LocalServiceError
from trionat.signals import Signal
from trionat.transport.descriptors import SHORTAGE
from trionat.transport.dial import dial_at_once, dial_service, is_taken
from trionat.transport.endpoint import SocketEndpoint, send_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.address import TCPAddress
    from trionat.config.service import Service
    from trionat.events import ClientEvent
    from trionat.transport.endpoint import Endpoint

log = get_logger(__name__)

# Seconds between two tries of a service that is down, where nobody else tries it. Chosen.
_RETRY_INTERVAL: Final = 1.0

# Seconds between two looks at a service that was there, where somebody looks on. Chosen: some log each connection.
_LOOK_INTERVAL: Final = 10.0


@attrs.define(eq=False)
class Forwarder:
    """Connects visitors to the local services; `timeout` is in seconds, and below the server's patience with a visitor.

    `tell` hears when a service turns out to be down, and when it is there again; not of each that comes and goes. `changed` is notified whenever
    `down` has changed.
    """

    services: tuple[Service, ...]
    timeout: float
    tell: Callable[[ClientEvent], None] = attrs.field(default=lambda _: None)
    changed: Signal = attrs.field(init=False, factory=Signal)
    _health: tuple[ServiceHealth, ...] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._health = tuple(
            ServiceHealth(service, self.tell, self.changed.notify) for service in self.services
        )

    @property
    def down(self) -> tuple[int, ...]:
        """The numbers of the services that could not be reached when they were tried last."""
        return tuple(number for number, health in enumerate(self._health) if health.is_down)

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
        service, health = self.services[number], self._health[number]
        local, version = service.local, service.proxy_protocol
        header = b""
        if version not in (None, NO_PROXY) and visitor is not None and visited is not None:
            header = proxy_header(version, visitor, visited)
        try:
            if header or (sock := dial_at_once(local)) is None:
                with trio.fail_after(self.timeout):
                    endpoint = SocketEndpoint(await dial_service(local))
                    await _introduce(endpoint, header)
            else:
                endpoint = SocketEndpoint(sock)
        except trio.TooSlowError as error:
            raise self._failed(number, f"did not answer within {self.timeout:g} s") from error
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise LocalServiceError(
                    f"no local port or address is left for a connection to the local service {local}: {error.strerror}"
                ) from error
            if error.errno in SHORTAGE:  # which is not the service's doing
                raise LocalServiceError(
                    f"no descriptor is left for a connection to the local service {local}: {error.strerror}"
                ) from error
            raise self._failed(number, f"cannot be reached: {error.strerror or error}") from error
        health.worked()
        return endpoint

    def _failed(self, number: int, what: str) -> LocalServiceError:
        reason = f"the local service {self.services[number].local} {what}"
        self._health[number].failed(reason)
        return LocalServiceError(reason)

    def note_refused(self, number: int, reason: str, **visitor: object) -> None:
        """Log that a visitor was not served by the service of that number; not each, where there are many."""
        if number < len(self._health):
            self._health[number].refused(**visitor, reason=reason)
        else:
            log.warning("visitor refused", **visitor, reason=reason)

    def note_closed(self, plain: Endpoint, reason: str) -> None:
        """A visitor whose service was connected to is done with; for whoever records visitors."""

    async def check(self) -> None:
        """Find out whether the services are there, one after another, and tell of those that are not.

        Each is tried once in a client's life, and not where a visitor has tried already: some log each connection. One on
        this machine is not even connected to where the system tells that somebody has its port.
        """
        for number, health in enumerate(self._health):
            if not health.tried and not is_taken(self.services[number].local):
                with suppress(LocalServiceError):
                    await self._try(number)

    async def retry(self) -> None:
        """Try the services that are down once a second, until cancelled: visitors do not, who go to other clients meanwhile."""
        while True:
            while not self.down:
                await self.changed.wait()
            await trio.sleep(_RETRY_INTERVAL)
            for number in self.down:
                with suppress(LocalServiceError):
                    await self._try(number)

    async def look_after(self) -> None:
        """Besides `retry`, look now and then whether those that were there still are, until cancelled; as `check`, not by connecting where that can be helped."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.retry, name="try services that are down")
            while True:
                await trio.sleep(_LOOK_INTERVAL)
                for number, health in enumerate(self._health):
                    if not health.is_down and not is_taken(self.services[number].local):
                        with suppress(LocalServiceError):
                            await self._try(number)

    async def _try(self, number: int) -> None:
        (await self.open(number)).close()


async def _introduce(endpoint: Endpoint, header: bytes) -> None:
    """Send what goes first; closes the endpoint where that fails."""
    try:
        await send_all(endpoint, header)
    except BaseException:
        endpoint.close()
        raise
