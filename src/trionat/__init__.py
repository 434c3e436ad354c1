"""trionat: make a service behind NAT reachable, encrypted, with two commands and no file.

The layers, of which each knows only those below: `cli` talks to people; `server` and `client` are the two programs; `relay`
moves bytes, `transport` is sockets and TLS, `store` keeps accounts; `protocol` is bytes and messages without any I/O, `config`
is checked values; `address`, `events`, `errors` and `log` are for all; `testing` is for the tests of others.

The names below are the public library (docs/library.md). Each is imported when it is first asked for: a server needs no client.

In a Trio program::

    async with trionat.open_server(trionat.ServerConfig(...)) as ready:
        config = trionat.ClientConfig(ticket=ready.ticket, services=(trionat.parse_service("8080"),))
        async with trionat.connect(config) as client:
            print(client.services[0].public)

In any other one, `with trionat.TrioThread(trionat.connect(config)) as client`, or `async with` under asyncio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from trionat.version import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from trionat.address import Address as Address
    from trionat.address import TCPAddress as TCPAddress
    from trionat.address import UnixAddress as UnixAddress
    from trionat.client.app import Client as Client
    from trionat.client.app import connect as connect
    from trionat.client.snapshot import ClientSnapshot as ClientSnapshot
    from trionat.client.snapshot import VisitorView as VisitorView
    from trionat.config.acme import AcmeConfig as AcmeConfig
    from trionat.config.client import AuthConfig as AuthConfig
    from trionat.config.client import ClientConfig as ClientConfig
    from trionat.config.cluster import ClusterConfig as ClusterConfig
    from trionat.config.database import DatabaseConfig as DatabaseConfig
    from trionat.config.events import EventsConfig as EventsConfig
    from trionat.config.events import WebhookConfig as WebhookConfig
    from trionat.config.server import ServerConfig as ServerConfig
    from trionat.config.service import Service as Service
    from trionat.config.service import parse_service as parse_service
    from trionat.errors import ConfigError as ConfigError
    from trionat.errors import ConnectionLostError as ConnectionLostError
    from trionat.errors import EventLoopError as EventLoopError
    from trionat.errors import IdentityError as IdentityError
    from trionat.errors import PeerError as PeerError
    from trionat.errors import PeerTimeoutError as PeerTimeoutError
    from trionat.errors import Problem as Problem
    from trionat.errors import RefusedError as RefusedError
    from trionat.errors import RemoteProtocolError as RemoteProtocolError
    from trionat.errors import SessionOverError as SessionOverError
    from trionat.errors import StartupError as StartupError
    from trionat.errors import StoreError as StoreError
    from trionat.errors import StoreUnavailableError as StoreUnavailableError
    from trionat.errors import TrionatError as TrionatError
    from trionat.events import ApprovalAsked as ApprovalAsked
    from trionat.events import ClientEvent as ClientEvent
    from trionat.events import Connected as Connected
    from trionat.events import Disconnected as Disconnected
    from trionat.events import Draining as Draining
    from trionat.events import Inspecting as Inspecting
    from trionat.events import PublicService as PublicService
    from trionat.events import Queued as Queued
    from trionat.events import Ready as Ready
    from trionat.events import ServiceDown as ServiceDown
    from trionat.events import ServiceUp as ServiceUp
    from trionat.networks import Network as Network
    from trionat.networks import parse_network as parse_network
    from trionat.protocol.messages import CloseCode as CloseCode
    from trionat.protocol.messages import RefusalCode as RefusalCode
    from trionat.server.embedded import open_server as open_server
    from trionat.server.embedded import serve as serve
    from trionat.trio_thread import TrioThread as TrioThread

_NAMES = {
    "address": ("Address", "TCPAddress", "UnixAddress"),
    "client.app": ("Client", "connect"),
    "client.snapshot": ("ClientSnapshot", "VisitorView"),
    "config.acme": ("AcmeConfig",),
    "config.client": ("AuthConfig", "ClientConfig"),
    "config.cluster": ("ClusterConfig",),
    "config.database": ("DatabaseConfig",),
    "config.events": ("EventsConfig", "WebhookConfig"),
    "config.server": ("ServerConfig",),
    "config.service": ("Service", "parse_service"),
    "errors": (
        "ConfigError",
        "ConnectionLostError",
        "EventLoopError",
        "IdentityError",
        "PeerError",
        "PeerTimeoutError",
        "Problem",
        "RefusedError",
        "RemoteProtocolError",
        "SessionOverError",
        "StartupError",
        "StoreError",
        "StoreUnavailableError",
        "TrionatError",
    ),
    "events": (
        "ApprovalAsked",
        "ClientEvent",
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
    "networks": ("Network", "parse_network"),
    "protocol.messages": ("CloseCode", "RefusalCode"),
    "server.embedded": ("open_server", "serve"),
    "trio_thread": ("TrioThread",),
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
