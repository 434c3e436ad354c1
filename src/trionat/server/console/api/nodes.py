"""Servers of a cluster, and at which of them a user's clients are."""

from __future__ import annotations

import attrs
import trio

from trionat.server.admin.messages import Whereabouts
from trionat.server.admin.snapshot import NodeView
from trionat.server.console.operation import ByText, Call, Nothing, Operation, Page, cut_page
from trionat.server.console.shape import field


@attrs.frozen(kw_only=True)
class Whose:
    """Whose clients are meant."""

    user: str = field(longest=255, about="a user's name")


async def _list(call: Call[ByText, Nothing]) -> Page[NodeView]:
    cluster = (await call.context.sampler.look()).snapshot.cluster
    return cut_page(
        () if cluster is None else cluster.nodes,
        lambda each: each.name,
        limit=call.parameters.limit,
        after=call.parameters.after,
    )


async def _find(call: Call[Whose, Nothing]) -> Whereabouts:
    await trio.lowlevel.checkpoint()
    return call.context.commands.where(call.parameters.user)


OPERATIONS = (
    Operation(
        method="GET",
        path="/nodes",
        name="list_nodes",
        summary="The nodes of the cluster, as this one knows them; none where this server is alone",
        is_for_admins=True,
        parameters=ByText,
        answer=Page[NodeView],
        handle=_list,
    ),
    Operation(
        method="GET",
        path="/whereabouts",
        name="find_clients",
        summary="At which nodes a user's clients are, and with which ports and names; node is null where this server is alone",
        is_for_admins=True,
        parameters=Whose,
        answer=Whereabouts,
        handle=_find,
        is_long=True,
    ),
)
