"""A server as its client sees it, as far as the checks have come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trionat.address import TCPAddress
from trionat.protocol.messages import EXAMINE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionat.client.native.dialer import Server
    from trionat.config.client import ClientConfig
    from trionat.config.service import Service
    from trionat.protocol.messages import Examined, Welcome


@attrs.frozen(kw_only=True)
class Visit:
    """What came of a visit to the doctor's own service, from here: `failure` is empty where it answered."""

    address: TCPAddress
    failure: str


@attrs.define(eq=False, kw_only=True)
class Peer:
    """Each check adds what it has learnt. `services` are those that it is to be asked for.

    `hosts` are the addresses of its name, `reachable` those that answer, `shown` is the fingerprint of what it shows; `examined_at` is our own clock when `examined` came, in seconds since 1970.
    """

    server: Server
    config: ClientConfig
    services: Sequence[Service] = ()
    hosts: list[str] = attrs.field(factory=list[str])
    reachable: list[str] = attrs.field(factory=list[str])
    shown: bytes | None = None
    pin: bytes | None = None
    welcome: Welcome | None = None
    examined: Examined | None = None
    examined_at: float = 0.0
    visit: Visit | None = None

    @property
    def why_not_examined(self) -> str:
        """Why the server has told nothing of what it sees."""
        if self.welcome is not None and EXAMINE in self.welcome.capabilities:
            return "it has not told in time"
        return "it is older"

    @property
    def control(self) -> TCPAddress:
        """Where it is, as it was told."""
        return self.server.control

    def at(self, host: str) -> TCPAddress:
        """Return one of its addresses."""
        return TCPAddress(host, self.control.port)
