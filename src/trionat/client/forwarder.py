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
    from collections.abc import Callable, Collection, Iterable

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

    A service has a number, which is its place at the start of a session; those that come later get higher ones, and no number is used twice.
    `tell` hears when a service turns out to be down, and when it is there again; not of each that comes and goes. `changed` is notified whenever
    `down` has changed.
    """

    first_services: tuple[Service, ...]
    timeout: float
    tell: Callable[[ClientEvent], None] = attrs.field(default=lambda _: None)
    changed: Signal = attrs.field(init=False, factory=Signal)
    _health: dict[int, ServiceHealth] = attrs.field(init=False)
    _next: int = attrs.field(init=False)
    _most: int = attrs.field(init=False)  # numbers that there were, in all sessions

    def __attrs_post_init__(self) -> None:
        self._health = dict(enumerate(map(self._new_health, self.first_services)))
        self._next = self._most = len(self._health)

    def _new_health(self, service: Service) -> ServiceHealth:
        return ServiceHealth(service, self.tell, self.changed.notify)

    @property
    def services(self) -> tuple[Service, ...]:
        """The services, in the order of their numbers."""
        return tuple(health.service for health in self._health.values())

    @property
    def numbers(self) -> tuple[int, ...]:
        """Their numbers."""
        return tuple(self._health)

    def find(self, number: int) -> Service | None:
        """Return the service of a number; None where there is none, or none any more."""
        health = self._health.get(number)
        return None if health is None else health.service

    def knew(self, number: int) -> bool:
        """Tell whether there is or was a service of that number, in this session or an earlier one: a visitor may still be with it."""
        return number < self._most

    def name(self, number: int) -> str:
        """Return what the log calls a service; of one that was taken away, only the number is left."""
        service = self.find(number)
        return f"number {number}" if service is None else str(service.local)

    def change(self, removed: Collection[int], added: Iterable[Service]) -> None:
        """Services go, and others come. Visitors that are connected stay so."""
        for number in removed:
            del self._health[number]
        for service in added:
            self._health[self._next] = self._new_health(service)
            self._next += 1
        self._most = max(self._most, self._next)
        self.changed.notify()

    def renumbered(self) -> Forwarder:
        """Return the forwarder for another session: the same services, with the numbers of their places."""
        if self.numbers == tuple(range(self._next)):
            return self
        other = Forwarder(self.services, self.timeout, self.tell)
        other.changed, other._most = self.changed, self._most
        other._health = dict(enumerate(self._health.values()))
        return other

    @property
    def down(self) -> tuple[int, ...]:
        """The numbers of the services that could not be reached when they were tried last."""
        return tuple(number for number, health in self._health.items() if health.is_down)

    async def open(
        self, number: int, visitor: TCPAddress | None = None, visited: TCPAddress | None = None
    ) -> Endpoint:
        """Return a connection to the service of that number, counted from 0; the caller owns it.

        A service that wants to know has been told that `visitor` has dialled `visited`, where the server tells so.

        Raises:
            LocalServiceError: it cannot be reached; the message goes to both sides' logs.
        """
        if (health := self._health.get(number)) is None:
            raise LocalServiceError(f"there is no service number {number}")
        service = health.service
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
            raise _failed(health, f"did not answer within {self.timeout:g} s") from error
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise LocalServiceError(
                    f"no local port or address is left for a connection to the local service {local}: {error.strerror}"
                ) from error
            if error.errno in SHORTAGE:  # which is not the service's doing
                raise LocalServiceError(
                    f"no descriptor is left for a connection to the local service {local}: {error.strerror}"
                ) from error
            raise _failed(health, f"cannot be reached: {error.strerror or error}") from error
        health.worked()
        return endpoint

    def note_refused(self, number: int, reason: str, **visitor: object) -> None:
        """Log that a visitor was not served by the service of that number; not each, where there are many."""
        if (health := self._health.get(number)) is not None:
            health.refused(**visitor, reason=reason)
        else:
            log.warning("visitor refused", **visitor, reason=reason)

    def note_closed(self, plain: Endpoint, reason: str) -> None:
        """A visitor whose service was connected to is done with; for whoever records visitors."""

    async def check(self) -> None:
        """Find out whether the services are there, one after another, and tell of those that are not.

        Each is tried once in a client's life, and not where a visitor has tried already: some log each connection. One on
        this machine is not even connected to where the system tells that somebody has its port.
        """
        for number, health in tuple(self._health.items()):
            if not health.tried and not is_taken(health.service.local):
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
                for number, health in tuple(self._health.items()):
                    if not health.is_down and not is_taken(health.service.local):
                        with suppress(LocalServiceError):
                            await self._try(number)

    async def _try(self, number: int) -> None:
        (await self.open(number)).close()


def _failed(health: ServiceHealth, what: str) -> LocalServiceError:
    reason = f"the local service {health.service.local} {what}"
    health.failed(reason)
    return LocalServiceError(reason)


async def _introduce(endpoint: Endpoint, header: bytes) -> None:
    """Send what goes first; closes the endpoint where that fails."""
    try:
        await send_all(endpoint, header)
    except BaseException:
        endpoint.close()
        raise
