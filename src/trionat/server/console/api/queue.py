"""Clients that have to wait, and what is kept for those that were lost."""

from __future__ import annotations

from collections import Counter

import attrs

from trionat.server.admin.snapshot import (
    QueuedView,
    VisitorView,
)
from trionat.server.console.operation import ByText, Call, Nothing, Operation, Page, cut_page_behind
from trionat.server.console.shape import field


@attrs.frozen(kw_only=True)
class ReservedRow:
    """Ports and names that are kept for a client which was lost, for `remaining` seconds; `visitors` wait for it."""

    number: int = field(about="its place in this list, as it is now")
    user: str
    ports: tuple[int, ...]
    names: tuple[str, ...]
    since: str
    seconds: float
    remaining: float
    waiting: int
    visitors: tuple[VisitorView, ...]
    group: str | None


async def _list_queue(call: Call[ByText, Nothing]) -> Page[QueuedView]:
    sample = await call.context.sampler.look()
    return cut_page_behind(
        (each for each in sample.snapshot.queue if call.principal.may_see(each.user)),
        lambda each: each.address,
        limit=call.parameters.limit,
        after=call.parameters.after,
    )


async def _list_reserved(call: Call[ByText, Nothing]) -> Page[ReservedRow]:
    sample = await call.context.sampler.look()
    seen = (each for each in sample.snapshot.reserved if call.principal.may_see(each.user))
    rows = [
        ReservedRow(
            number=number,
            **{
                name: getattr(each, name)
                for name in attrs.fields_dict(ReservedRow)
                if name != "number"
            },
        )
        for number, each in enumerate(seen, 1)
    ]
    marks = _marks(rows)
    return cut_page_behind(
        rows,
        lambda row: marks[row.number],
        limit=call.parameters.limit,
        after=call.parameters.after,
    )


def _marks(rows: list[ReservedRow]) -> dict[int, str]:
    """Return by number what each is known by: whose and what it is, and which of several places at the same."""
    counts, marks = Counter[str](), dict[int, str]()
    for row in rows:
        what = " ".join(map(str, (row.user, *row.ports, *row.names)))
        counts[what] += 1
        marks[row.number] = f"{what} {counts[what]}"
    return marks


OPERATIONS = (
    Operation(
        method="GET",
        path="/queue",
        name="list_queue",
        summary="Clients that wait for a place, the first one first",
        parameters=ByText,
        answer=Page[QueuedView],
        handle=_list_queue,
        is_long=True,
    ),
    Operation(
        method="GET",
        path="/reserved",
        name="list_reserved",
        summary="Ports and names that are kept for clients which were lost",
        parameters=ByText,
        answer=Page[ReservedRow],
        handle=_list_reserved,
        is_long=True,
    ),
)
