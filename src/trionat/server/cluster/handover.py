"""What the clients of this node hold is offered to the other nodes, and where its clients may go is found out: for a drain, and for a planned stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.protocol.fields import MAX_ADDRESSES

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.address import TCPAddress
    from trionat.server.cluster.node import Node

_ASK_AGAIN: Final = 2.0
"""Seconds between two looks at which other nodes there are."""

_PATIENCE: Final = 1.0
"""Seconds to wait for Redis at a planned stop. Where it is away, clients come back to another node when their session here has ended."""


@attrs.define(eq=False)
class Handover:
    """See the module. `run` has to run; it does nothing before `begin`.

    `configured` are servers that are named to clients besides the other nodes. `tell` is called with all of them, once what is held here is offered,
    and from then on every 2 s; it has to return at once.
    """

    node: Node
    configured: tuple[TCPAddress, ...] = ()
    tell: Callable[[tuple[TCPAddress, ...]], None] = lambda _: None
    others: tuple[TCPAddress, ...] | None = attrs.field(init=False, default=None)
    _begun: trio.Event = attrs.field(init=False, factory=trio.Event)

    def begin(self) -> None:
        """Offer what is held here, soon. Idempotent."""
        self._begun.set()

    async def run(self) -> None:
        """Offer it, and look again and again which other nodes there are, until cancelled."""
        await self._begun.wait()
        # First, else a client that comes to another node would end its session here.
        await self.node.drain()
        while True:
            await self._find_others()
            await trio.sleep(_ASK_AGAIN)

    async def offer_at_once(self) -> None:
        """Do it for a planned stop; best effort, within a second."""
        with trio.move_on_after(_PATIENCE):
            await self.node.drain()
            await self._find_others()

    async def _find_others(self) -> None:
        found = await self.node.find_others()
        self.others = (*found, *self.configured)[:MAX_ADDRESSES]
        self.tell(self.others)

    @property
    def waits_for(self) -> str | None:
        """What has to be there before clients are sent away; None: nothing any more."""
        if self.others:
            return None
        if self.others is not None:
            return "another node that is there, and not drained"
        return f"Redis, which has to tell the other nodes ({self.node.away or 'it is asked now'})"
