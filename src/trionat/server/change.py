"""What the processes of a running server change to, when its configuration is read again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from trionat.config.acme import AcmeConfig
    from trionat.config.server import ServerConfig
    from trionat.transport.listener import Listener


@attrs.frozen(kw_only=True)
class ServerChange:
    """A configuration, the certificate of the control port, and which visit ports have come, and go.

    `acme` is None where the server was started without. Whoever gets it owns the listeners of the ports that are `added`.
    """

    config: ServerConfig
    acme: AcmeConfig | None
    tls: ssl.SSLContext
    certificate: Path
    key: Path
    added: tuple[Listener, ...] = ()
    removed: tuple[int, ...] = ()
