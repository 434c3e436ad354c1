"""Addresses of which no password is tried for a while."""

from __future__ import annotations

import attrs
import trio

from trionat.networks import parse_network
from trionat.server.admin.metrics import view_banned
from trionat.server.admin.snapshot import BannedView
from trionat.server.console.operation import ByText, Call, Nothing, Operation, Page, cut_page
from trionat.server.console.principal import Permission
from trionat.server.console.problem import Code, Problem
from trionat.server.console.shape import field


@attrs.frozen(kw_only=True)
class One:
    """Which network."""

    network: str = field(longest=64, about="as the list has it: an address, or a network of IPv6")


async def _list(call: Call[ByText, Nothing]) -> Page[BannedView]:
    return cut_page(
        await view_banned(call.context.bans),
        lambda each: each.network,
        limit=call.parameters.limit,
        after=call.parameters.after,
    )


async def _lift(call: Call[One, Nothing]) -> None:
    await trio.lowlevel.checkpoint()
    try:
        parse_network(call.parameters.network)
    except ValueError as error:
        raise Problem(Code.INVALID, str(error), field="network") from error
    if not call.context.commands.lift(call.parameters.network):
        raise Problem(Code.NOT_FOUND, f"{call.parameters.network} is not banned")


OPERATIONS = (
    Operation(
        method="GET",
        path="/bans",
        name="list_bans",
        summary="Addresses and networks that are banned",
        is_for_admins=True,
        parameters=ByText,
        answer=Page[BannedView],
        handle=_list,
        is_long=True,
    ),
    Operation(
        method="DELETE",
        path="/bans/{network:path}",
        name="lift_ban",
        summary="Lift a ban, and forget the failures behind it",
        permission=Permission.MANAGE,
        is_for_admins=True,
        parameters=One,
        status=204,
        handle=_lift,
    ),
)
