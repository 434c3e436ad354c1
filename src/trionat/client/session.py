"""What a client's sessions have in common, whatever their dialect."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import attrs
import trio

from trionat.address import TCPAddress, parse_public_address
from trionat.config.values import HTTP_PORT, HTTPS_PORT
from trionat.events import ClientEvent, Connected, PublicService
from trionat.log import bind_context
from trionat.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trionat.client.forwarder import Forwarder
    from trionat.config.client import ClientConfig
    from trionat.config.service import Service
    from trionat.errors import PeerError
    from trionat.relay.stream import VisitorStream


_PORTS: Final = {"http": HTTP_PORT, "https": HTTPS_PORT}


@attrs.define(eq=False, kw_only=True)
class Session(ABC):
    """One control connection, from dialling to its end, with all its tunnels.

    `forwarder` has the services; `tell` is called with what happens; `stopping` is the planned stop. `ports`, `up_since` and `connected`, which has been told last, are set when the session is up.

    `moving` says that the server stops, and that the next session may begin at another one: then `moved` is set, and this one ends when its last visitor
    has gone. `changed` is notified when `up_since` or `moving` has changed. `looks_after` says
    that it is found out whether services are there even while nobody visits them.
    """

    config: ClientConfig
    forwarder: Forwarder
    tell: Callable[[ClientEvent], None]
    stopping: trio.Event
    changed: Signal = attrs.field(factory=Signal)
    looks_after: bool = False
    moving: bool = attrs.field(init=False, default=False)
    moved: trio.Event = attrs.field(init=False, factory=trio.Event)
    ports: tuple[int, ...] | None = attrs.field(init=False, default=None)
    up_since: float | None = attrs.field(init=False, default=None)
    connected: Connected | None = attrs.field(init=False, default=None)

    @abstractmethod
    async def run(self) -> None:
        """Connect, log in, wait for a slot, serve; return when `stopping` is set and the last visitor has gone.

        Cancelling it ends all at once.

        Raises:
            PeerError: bare or in a group: why there is no session, or none any more. `SessionOverError` and `RefusedError`
                are the server's own words.
        """

    @property
    def round_trip(self) -> float | None:
        """Seconds to the server and back; None where that is not known."""
        return None

    @abstractmethod
    def visitors(self) -> Iterator[tuple[int, str, VisitorStream]]:
        """Yield service, address (empty where it is not known) and stream of each visitor on a tunnel; do not wait meanwhile."""

    def note_end(self, problem: PeerError, *, final: bool) -> bool:
        """Take the end of the session into account for the next one; tell whether there may be a next one elsewhere, although it is `final` here."""
        return False

    def _come_up(
        self,
        *,
        uid: int,
        ports: tuple[int, ...],
        host: str,
        server: TCPAddress,
        tunnel: TCPAddress,
        username: str,
        encrypted: bool,
        urls: tuple[str | None, ...] | None = None,
    ) -> None:
        """Note and tell that visitors can come now, to `ports` of `host` or of what the user wants to be shown instead, or to `urls`."""
        if shown := self.config.public_server_addr:
            host, _ = parse_public_address(shown)
        self.ports = ports
        self.up_since = trio.current_time()
        bind_context(session=uid)
        services = public_services(self.forwarder.services, host, ports, urls)
        self.connected = Connected(
            uid=uid,
            services=services,
            server=server,
            tunnel=tunnel,
            username=username,
            encrypted=encrypted,
        )
        self.tell(self.connected)
        self.changed.notify()


def public_services(
    services: Sequence[Service],
    host: str,
    ports: Sequence[int],
    urls: Sequence[str | None] | None,
) -> tuple[PublicService, ...]:
    """Return where services are for visitors: at these ports of a host, or at these URLs."""
    return tuple(
        PublicService(
            name=service.name,
            local=service.local,
            public=TCPAddress(host, port) if url is None else _address_of(url),
            url=url,
        )
        for service, port, url in zip(services, ports, urls or (None,) * len(ports), strict=True)
    )


def _address_of(url: str) -> TCPAddress:
    """Return host and port of a URL that the server has told; `Welcome` has checked its form."""
    parts = urlsplit(url)
    return TCPAddress(parts.hostname or "", parts.port or _PORTS.get(parts.scheme, HTTPS_PORT))
