"""Clients that have to wait, and what is kept for those that were lost."""

from __future__ import annotations

import attrs

from trionat.server.admin.snapshot import (
    QueuedView,
    VisitorView,
)
from trionat.server.console.operation import ByNumber, Call, Nothing, Operation, Page, cut_page
from trionat.server.console.shape import field


@attrs.frozen(kw_only=True)
class ReservedRow:
    """Ports and names that are kept for a client which was lost, for `remaining` seconds; `visitors` wait for it."""

    number: int = field(about="its place in this list, for `after`")
    user: str
    ports: tuple[int, ...]
    names: tuple[str, ...]
    since: str
    seconds: float
    remaining: float
    waiting: int
    visitors: tuple[VisitorView, ...]
    group: str | None


async def _list_queue(call: Call[ByNumber, Nothing]) -> Page[QueuedView]:
    sample = await call.context.sampler.look()
    queue = [each for each in sample.snapshot.queue if call.principal.may_see(each.user)]
    places = {id(each): place for place, each in enumerate(queue, 1)}
    return cut_page(
        queue,
        lambda each: places[id(each)],
        limit=call.parameters.limit,
        after=call.parameters.after,
    )


async def _list_reserved(call: Call[ByNumber, Nothing]) -> Page[ReservedRow]:
    sample = await call.context.sampler.look()
    rows = [
        ReservedRow(
            number=number,
            **{
                name: getattr(each, name)
                for name in attrs.fields_dict(ReservedRow)
                if name != "number"
            },
        )
        for number, each in enumerate(sample.snapshot.reserved, 1)
        if call.principal.may_see(each.user)
    ]
    return cut_page(
        rows,
        lambda row: row.number,
        limit=call.parameters.limit,
        after=call.parameters.after,
    )


OPERATIONS = (
    Operation(
        method="GET",
        path="/queue",
        name="list_queue",
        summary="Clients that wait for a place, the first one first",
        parameters=ByNumber,
        answer=Page[QueuedView],
        handle=_list_queue,
        is_long=True,
    ),
    Operation(
        method="GET",
        path="/reserved",
        name="list_reserved",
        summary="Ports and names that are kept for clients which were lost",
        parameters=ByNumber,
        answer=Page[ReservedRow],
        handle=_list_reserved,
        is_long=True,
    ),
)
