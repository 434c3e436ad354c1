"""A server on this machine, as its own operator sees it, as far as the checks have come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trionat.address import TCPAddress
from trionat.server.state_folder import StateFolder

if TYPE_CHECKING:
    from pathlib import Path

    from trionat.config.server import ServerConfig


@attrs.define(eq=False, kw_only=True)
class Host:
    """`is_up` says whether a server runs on the state folder. Then it has told of its `session_limit`, of how many visit ports it has, and which of them clients have now."""

    config: ServerConfig
    folder: Path
    is_up: bool = False
    session_limit: int = 0
    port_count: int = 0
    ports_in_use: frozenset[int] = frozenset()

    def sizes(self) -> tuple[int, int]:
        """Return how many visit ports and sessions the server has: one that is up may have been started with flags."""
        if self.is_up:
            return self.port_count, self.session_limit
        return len(self.config.visit_port), self.config.session_limit

    def known_ports(self) -> tuple[int, ...]:
        """Return the visit ports: as configured, unless the server that is up has others, of which it tells those in use."""
        if not self.is_up or self._is_configured_so():
            return self.config.visit_port
        return tuple(sorted(self.ports_in_use))

    def _is_configured_so(self) -> bool:
        config = self.config
        return (
            self.port_count == len(config.visit_port)
            and self.session_limit == config.session_limit
            and self.ports_in_use <= {*config.visit_port}
        )

    def public(self) -> TCPAddress | None:
        """Return where clients dial it: as configured, or as it was served last; None where neither is known. Blocks.

        Raises:
            StartupError: the note of what was served last cannot be read.
        """
        config = self.config
        port = config.public_port or config.controller_addr.port
        if config.public_host is not None:
            return TCPAddress(config.public_host, port)
        return StateFolder(folder=self.folder, fingerprint=b"", ticket_key=b"").last_address()
