"""What commands may ask of a server; the same for one process and for several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs
import trio

from trionat.server.admin.kick import kick
from trionat.server.admin.task_tree import grow, main_task

if TYPE_CHECKING:
    from trionat.server.admin.drain import Drain
    from trionat.server.admin.messages import Drained, Kick, Kicked
    from trionat.server.admin.metrics import Metrics
    from trionat.server.admin.snapshot import Snapshot
    from trionat.server.admin.task_tree import Branch
    from trionat.server.cluster.handover import Handover


class Commands(Protocol):
    """Each may take a while, and may be cancelled."""

    async def snapshot(self) -> Snapshot:
        """Look at the server."""
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


@attrs.define(eq=False)
class LocalCommands:
    """The `Commands` of one process. `draining` has to run. `handover` is there where this process is a node of a cluster."""

    metrics: Metrics
    draining: Drain
    handover: Handover | None = None

    async def snapshot(self) -> Snapshot:
        """See `Commands`."""
        return await self.metrics.snapshot()

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
