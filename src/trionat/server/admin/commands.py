"""What commands may ask of a server; the same for one process and for several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

from trionat.server.admin.kick import kick
from trionat.server.admin.task_tree import grow, main_task

if TYPE_CHECKING:
    from trionat.server.admin.messages import Kick, Kicked
    from trionat.server.admin.metrics import Metrics
    from trionat.server.admin.snapshot import Snapshot
    from trionat.server.admin.task_tree import Branch


class Commands(Protocol):
    """Each may take a while, and may be cancelled."""

    async def snapshot(self) -> Snapshot:
        """Look at the server."""
        ...

    async def tasks(self) -> Branch:
        """Return the tree of tasks."""
        ...

    async def kick(self, request: Kick) -> Kicked:
        """Send somebody away, and return when that is done."""
        ...


@attrs.define(eq=False)
class LocalCommands:
    """The `Commands` of one process."""

    metrics: Metrics

    async def snapshot(self) -> Snapshot:
        """See `Commands`."""
        return await self.metrics.snapshot()

    async def tasks(self) -> Branch:
        """See `Commands`."""
        return await grow(main_task())

    async def kick(self, request: Kick) -> Kicked:
        """See `Commands`."""
        return await kick(self.metrics.context, request)
