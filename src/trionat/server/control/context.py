"""The parts of a server that a control connection works with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    import trio

    from trionat.config.server import ServerConfig
    from trionat.server.accounts.accounts import Accounts
    from trionat.server.accounts.traffic import Traffic
    from trionat.server.admission.bans import Bans
    from trionat.server.admission.leases import Leases
    from trionat.server.admission.queue import Admission
    from trionat.server.refusals import RefusalCounters
    from trionat.server.sessions.registry import Sessions


@attrs.frozen(eq=False, kw_only=True)
class ServerContext:
    """See the module. `stopping` is the planned stop; `public_host` is what clients show as the server's name."""

    config: ServerConfig
    accounts: Accounts
    traffic: Traffic
    refusals: RefusalCounters
    bans: Bans
    leases: Leases
    admission: Admission
    sessions: Sessions
    stopping: trio.Event
    public_host: str
