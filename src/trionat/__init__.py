"""trionat: make a service behind NAT reachable, encrypted, with two commands and no file.

The layers, of which each knows only those below: `cli` talks to people; `server` and `client` are the two programs; `relay`
moves bytes, `transport` is sockets and TLS, `store` keeps accounts; `protocol` is bytes and messages without any I/O, `config`
is checked values; `address`, `events`, `errors` and `log` are for all.

As a library, in a Trio program of your own::

    ready = await nursery.start(trionat.serve, trionat.ServerConfig(...))

    async with trionat.connect(trionat.ClientConfig(ticket=ready.ticket, services=(trionat.parse_service("8080"),))) as client:
        print(client.services[0].public)
"""

from importlib.metadata import version

__version__ = version("trionat")

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
