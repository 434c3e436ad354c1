"""The parts of a server that a control connection works with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    import trio

    from trionat.config.server import ServerConfig
    from trionat.server.admission.authenticator import Authenticator
    from trionat.server.admission.bans import Bans
    from trionat.server.admission.leases import Leases
    from trionat.server.admission.queue import Admission
    from trionat.server.cluster.node import Node
    from trionat.server.refusals import RefusalCounters
    from trionat.server.sessions.registry import Sessions
    from trionat.server.tally import Tally


@attrs.define(eq=False, kw_only=True)
class ServerContext:
    """See the module. `config` is another one after a reload; sessions keep the one with which they have begun. `bans` is asked who may connect, `authenticator` who may log in. `stopping` is the planned stop; `public_host` is what clients show as the server's name. `route` leads to this process, where there are several, or to this node. `node` is this server in its cluster. `tally` is there where `/metrics` are on."""

    config: ServerConfig
    authenticator: Authenticator
    refusals: RefusalCounters
    bans: Bans
    leases: Leases
    admission: Admission
    sessions: Sessions
    stopping: trio.Event
    public_host: str
    route: str | None = None
    node: Node | None = None
    tally: Tally | None = None
