"""Servers of a cluster."""

from __future__ import annotations

from trionat.server.admin.snapshot import NodeView
from trionat.server.console.operation import ByText, Call, Nothing, Operation, Page, cut_page


async def _list(call: Call[ByText, Nothing]) -> Page[NodeView]:
    cluster = (await call.context.sampler.look()).snapshot.cluster
    return cut_page(
        () if cluster is None else cluster.nodes,
        lambda each: each.name,
        limit=call.parameters.limit,
        after=call.parameters.after,
    )


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
)
