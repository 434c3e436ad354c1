"""trionat: make a service behind NAT reachable, encrypted, with two commands and no file.

The layers, of which each knows only those below: `cli` talks to people; `server` and `client` are the two programs; `relay`
moves bytes, `transport` is sockets and TLS, `store` keeps accounts; `protocol` is bytes and messages without any I/O, `config`
is checked values; `address`, `events`, `errors` and `log` are for all.

The names below are the public library. Each is imported when it is first asked for: a server needs no client.

As a library, in a Trio program of your own::

    ready = await nursery.start(trionat.serve, trionat.ServerConfig(...))

    async with trionat.connect(trionat.ClientConfig(ticket=ready.ticket, services=(trionat.parse_service("8080"),))) as client:
        print(client.services[0].public)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from trionat.version import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from trionat.address import TCPAddress as TCPAddress
    from trionat.address import UnixAddress as UnixAddress
    from trionat.client.app import Client as Client
    from trionat.client.app import connect as connect
    from trionat.config.client import AuthConfig as AuthConfig
    from trionat.config.client import ClientConfig as ClientConfig
    from trionat.config.server import ServerConfig as ServerConfig
    from trionat.config.service import Service as Service
    from trionat.config.service import parse_service as parse_service
    from trionat.errors import ConfigError as ConfigError
    from trionat.errors import PeerError as PeerError
    from trionat.errors import RefusedError as RefusedError
    from trionat.errors import StartupError as StartupError
    from trionat.errors import TrionatError as TrionatError
    from trionat.events import Connected as Connected
    from trionat.events import Disconnected as Disconnected
    from trionat.events import Draining as Draining
    from trionat.events import Inspecting as Inspecting
    from trionat.events import PublicService as PublicService
    from trionat.events import Queued as Queued
    from trionat.events import Ready as Ready
    from trionat.events import ServiceDown as ServiceDown
    from trionat.events import ServiceUp as ServiceUp
    from trionat.server.app import serve as serve

_NAMES = {
    "address": ("TCPAddress", "UnixAddress"),
    "client.app": ("Client", "connect"),
    "config.client": ("AuthConfig", "ClientConfig"),
    "config.server": ("ServerConfig",),
    "config.service": ("Service", "parse_service"),
    "errors": ("ConfigError", "PeerError", "RefusedError", "StartupError", "TrionatError"),
    "events": (
        "Connected",
        "Disconnected",
        "Draining",
        "Inspecting",
        "PublicService",
        "Queued",
        "Ready",
        "ServiceDown",
        "ServiceUp",
    ),
    "server.app": ("serve",),
}
"""Which module has which of them."""

_HOMES = {name: f"trionat.{module}" for module, names in _NAMES.items() for name in names}

if not TYPE_CHECKING:  # a checker would take it for having every name
    __all__ = [*_HOMES, "__version__"]  # noqa: PLE0604 - all are strings

    def __getattr__(name: str) -> object:
        if (home := _HOMES.get(name)) is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(home), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
