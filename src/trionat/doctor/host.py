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
    """`is_up` says whether a server runs on the state folder."""

    config: ServerConfig
    folder: Path
    is_up: bool = False

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
