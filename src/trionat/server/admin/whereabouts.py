"""Where a user's clients are: at which nodes of the cluster, and with which ports and names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trionat.server.admin.messages import Holding, Whereabouts
from trionat.server.registry.claim import is_group

if TYPE_CHECKING:
    from trionat.server.cluster.node import Node

_MOST: Final = 1000
"""Holdings in one answer."""


def look_for(node: Node | None, name: str) -> Whereabouts:
    """Look into this node's copy of the table: Redis is not asked."""
    if node is None:
        return Whereabouts(node=None)
    entries = sorted(node.table.of_user(name), key=lambda each: (each.node, each.fence))
    return Whereabouts(
        node=node.name,
        away=node.away,
        holdings=tuple(
            Holding(node=each.node, points=each.points, is_group=is_group(each.key))
            for each in entries[:_MOST]
        ),
        more=max(0, len(entries) - _MOST),
    )
