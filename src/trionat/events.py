"""What happens to a server or a client, as values for whoever runs it: the command line, a test, a program that embeds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs

if TYPE_CHECKING:
    from trionat.address import Address, TCPAddress


@attrs.frozen(kw_only=True)
class Ready:
    """A server listens.

    `control` and `tunnel` are bound addresses, `visit_ports` the bound public ports, `proxy_control` and `proxy_visit` the bound
    addresses for proxies, if there are any; `http` and `https` those for services with names, below `domain`. `node` is what a node of a cluster is called,
    `node_addr` where the others reach it, `other_nodes` how many of them it knows by now, and `redis_away` why it knows none. `ticket` is what a client needs to know:
    of the first user as long as that is the only one, of everybody where no login is needed, else None. `first_password` is
    there at the very first start only. `state_dir` is None where all is in memory. `database` is where the accounts are, unless there. `console` is the URL of the console, if there is one. `fingerprint` is the certificate's, as `SHA256:...`.
    """

    name: str
    control: TCPAddress
    tunnel: TCPAddress
    public: TCPAddress
    visit_ports: tuple[int, ...]
    sessions: int
    authentication: bool
    fingerprint: str
    state_dir: str | None
    database: str | None = None
    legacy_clients: bool = False
    ticket: str | None = attrs.field(default=None, repr=False)
    first_user: str | None = None
    first_password: str | None = attrs.field(default=None, repr=False)
    proxy_control: TCPAddress | None = None
    proxy_visit: TCPAddress | None = None
    domain: str | None = None
    http: TCPAddress | None = None
    https: TCPAddress | None = None
    node: str | None = None
    node_addr: TCPAddress | None = None
    other_nodes: int = 0
    redis_away: str | None = None
    console: str | None = None


@attrs.frozen(kw_only=True)
class PublicService:
    """One service and where visitors reach it.

    `public` is the visit port, or the host and port of `url`, which is there where it is published by name. `local` is the service itself, and `name` what it is called in logs.
    """

    name: str
    local: Address
    public: TCPAddress
    url: str | None = None

    @property
    def shown(self) -> str:
        """What people are shown."""
        return self.url or str(self.public)


@attrs.frozen(kw_only=True)
class Connected:
    """A client's session is up: the first one, or another one after a loss.

    `services` are in the order of the configuration. `server` and `tunnel` are the addresses that were dialled, `uid` is the session's number at the server, and
    `username` as whom it has logged in. `encrypted` tells whether tunnels are encrypted, so that nobody on the way to the server can read what visitors send.
    """

    uid: int
    services: tuple[PublicService, ...]
    server: TCPAddress
    tunnel: TCPAddress
    username: str
    encrypted: bool


@attrs.frozen
class Queued:
    """A client waits for a free slot; `position` counts from 1, and is None where the server tells nothing at all."""

    position: int | None


@attrs.frozen(kw_only=True)
class Disconnected:
    """A client has no session any more, or did not get one; `reason` is for people. It tries again in `retry_in` seconds, or never if that is None."""

    reason: str
    retry_in: float | None


@attrs.frozen
class Draining:
    """The server stops, or is drained; visitors that are there may finish within `seconds`."""

    seconds: float


@attrs.frozen(kw_only=True)
class ServiceDown:
    """A local service cannot be reached, for `reason`: its visitors get nothing. Told once, until it was there again. `name` and `local` are those of its `PublicService`."""

    name: str
    local: Address
    reason: str


@attrs.frozen(kw_only=True)
class ServiceUp:
    """A local service that was down can be reached again. `name` and `local` are those of its `PublicService`."""

    name: str
    local: Address


@attrs.frozen(kw_only=True)
class ApprovalAsked:
    """An address wants to visit a service whose owner decides about each: `Client.approve` answers.

    `service` is its number, counted from 0, which `Client.approve` takes, and `name` what it is called in logs; `host` is the visitor's IP address. `what` is in the visitor's
    words: escape it before it is shown.
    """

    service: int
    name: str
    host: str
    what: str


@attrs.frozen
class Inspecting:
    """A client shows what its visitors send; `url` is a secret, as it has a token that lets in whoever knows it."""

    url: str = attrs.field(repr=False)


ClientEvent: TypeAlias = (
    Connected
    | Queued
    | Disconnected
    | Draining
    | ServiceDown
    | ServiceUp
    | ApprovalAsked
    | Inspecting
)
"""Whatever a client tells of itself."""
