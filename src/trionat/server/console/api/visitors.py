"""Whoever visits the services of clients."""

from __future__ import annotations

from itertools import islice

import attrs

from trionat.server.admin.messages import KickVisitor
from trionat.server.console.operation import ByNumber, Call, Nothing, Operation, Page, cut_page
from trionat.server.console.principal import Permission
from trionat.server.console.problem import Code, Problem
from trionat.server.console.rows import VisitorRow
from trionat.server.console.shape import field


@attrs.frozen(kw_only=True)
class Which(ByNumber):
    """Which visitors."""

    session: int | None = field(None, least=1, about="of this session alone")
    user: str | None = field(None, about="of this account's sessions alone")


@attrs.frozen(kw_only=True)
class One:
    """Which visitor."""

    number: int = field(least=1, about="its number")


async def _list(call: Call[Which, Nothing]) -> Page[VisitorRow]:
    sample, which = await call.context.sampler.look(), call.parameters
    found = (
        row
        for row in sample.visitors_after(which.after)
        if call.principal.may_see(row.user)
        and which.session in (None, row.session)
        and which.user in (None, row.user)
    )
    part = islice(found, which.limit + 1)  # of thousands, and one more says that there are more
    return cut_page(part, lambda row: row.number, limit=which.limit, after=which.after)


async def _kick(call: Call[One, Nothing]) -> None:
    number = call.parameters.number
    sample = await call.context.sampler.look(age=0.0)
    row = sample.visitors.get(number)
    if row is None or not call.principal.may_see(row.user):
        raise Problem(Code.NOT_FOUND, f"there is no visitor {number}")
    kicked = await call.context.commands.kick(KickVisitor(number))
    if not kicked.visitors:
        raise Problem(Code.NOT_FOUND, f"visitor {number} has just gone")


OPERATIONS = (
    Operation(
        method="GET",
        path="/visitors",
        name="list_visitors",
        summary="Visitors; those of the account that asks, and all for an administrator",
        parameters=Which,
        answer=Page[VisitorRow],
        handle=_list,
        is_long=True,
    ),
    Operation(
        method="DELETE",
        path="/visitors/{number}",
        name="kick_visitor",
        summary="Reset a visitor's connection",
        permission=Permission.MANAGE,
        parameters=One,
        status=204,
        handle=_kick,
    ),
)
