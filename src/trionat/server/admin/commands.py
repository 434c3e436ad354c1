"""What commands may ask of a server; the same for one process and for several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs
import trio

from trionat.server.admin.kick import kick
from trionat.server.admin.task_tree import grow, main_task
from trionat.server.admin.whereabouts import look_for

if TYPE_CHECKING:
    from trionat.server.admin.drain import Drain
    from trionat.server.admin.messages import Drained, Kick, Kicked, Whereabouts
    from trionat.server.admin.metrics import Metrics
    from trionat.server.admin.readings import Readings
    from trionat.server.admin.snapshot import Snapshot
    from trionat.server.admin.task_tree import Branch
    from trionat.server.admission.bans import Bans
    from trionat.server.cluster.handover import Handover
    from trionat.server.cluster.node import Node


class Commands(Protocol):
    """Each may take a while, and may be cancelled."""

    async def snapshot(self) -> Snapshot:
        """Look at the server."""
        ...

    async def readings(self) -> Readings:
        """Read what `/metrics` tell; only where they are on."""
        ...

    async def tasks(self) -> Branch:
        """Return the tree of tasks."""
        ...

    async def drain(self) -> Drained:
        """Begin to send clients to other servers, if that has not begun, and return how far it has come."""
        ...

    async def kick(self, request: Kick) -> Kicked:
        """Send somebody away, and return when that is done."""
        ...

    def where(self, name: str) -> Whereabouts:
        """Tell where a user's clients are. This one takes no while."""
        ...

    def lift(self, network: str) -> bool:
        """Lift the ban of a network, at all nodes of a cluster that hear of it; tell whether it was banned here. Takes no while either."""
        ...


@attrs.define(eq=False)
class LocalCommands:
    """The `Commands` of one process. `draining` has to run. `handover` is there where this process is a node of a cluster."""

    metrics: Metrics
    draining: Drain
    handover: Handover | None = None

    async def snapshot(self) -> Snapshot:
        """See `Commands`."""
        return await self.metrics.snapshot()

    async def readings(self) -> Readings:
        """See `Commands`."""
        return await self.metrics.readings()

    async def tasks(self) -> Branch:
        """See `Commands`."""
        return await grow(main_task())

    async def drain(self) -> Drained:
        """See `Commands`."""
        self.draining.begin()
        if self.handover is not None:
            self.handover.begin()
        await trio.lowlevel.checkpoint()
        waits_for = None if self.handover is None else self.handover.waits_for
        return attrs.evolve(self.draining.look(), waits_for=waits_for)

    async def kick(self, request: Kick) -> Kicked:
        """See `Commands`."""
        return await kick(self.metrics.context, request)

    def where(self, name: str) -> Whereabouts:
        """See `Commands`."""
        return look_for(self.metrics.context.node, name)

    def lift(self, network: str) -> bool:
        """See `Commands`."""
        return lift_ban(self.metrics.context.bans, self.metrics.context.node, network)


def lift_ban(bans: Bans, node: Node | None, network: str) -> bool:
    """Lift a ban here and, where this is a node of a cluster, at the others."""
    banned = bans.lift(network)
    if banned and node is not None:
        node.lift_ban(network)
    return banned
