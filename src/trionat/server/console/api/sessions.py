"""Clients that are connected."""

from __future__ import annotations

import attrs

from trionat.server.admin.messages import KickSession
from trionat.server.console.operation import ByNumber, Call, Nothing, Operation, Page, cut_page
from trionat.server.console.principal import Permission
from trionat.server.console.problem import Code, Problem
from trionat.server.console.rows import SessionRow
from trionat.server.console.shape import field


@attrs.frozen(kw_only=True)
class One:
    """Which session."""

    uid: int = field(about="its number", least=1)


async def _list(call: Call[ByNumber, Nothing]) -> Page[SessionRow]:
    sample = await call.context.sampler.look()
    return cut_page(
        (row for row in sample.sessions.values() if call.principal.may_see(row.user)),
        lambda row: row.uid,
        limit=call.parameters.limit,
        after=call.parameters.after,
    )


async def _get(call: Call[One, Nothing]) -> SessionRow:
    sample = await call.context.sampler.look()
    row = sample.sessions.get(call.parameters.uid)
    if row is None or not call.principal.may_see(row.user):
        raise Problem(Code.NOT_FOUND, f"there is no session {call.parameters.uid}")
    return row


async def _kick(call: Call[One, Nothing]) -> None:
    row = await _get(call)
    kicked = await call.context.commands.kick(KickSession(row.uid))
    if not kicked.sessions:
        raise Problem(Code.NOT_FOUND, f"session {row.uid} has just ended")


OPERATIONS = (
    Operation(
        method="GET",
        path="/sessions",
        name="list_sessions",
        summary="Clients that are connected; those of the account that asks, and all for an administrator",
        parameters=ByNumber,
        answer=Page[SessionRow],
        handle=_list,
        is_long=True,
    ),
    Operation(
        method="GET",
        path="/sessions/{uid}",
        name="get_session",
        summary="One of them",
        parameters=One,
        answer=SessionRow,
        handle=_get,
    ),
    Operation(
        method="DELETE",
        path="/sessions/{uid}",
        name="kick_session",
        summary="Send a client away: its ports are free, and it does not come back by itself",
        permission=Permission.MANAGE,
        parameters=One,
        status=204,
        handle=_kick,
    ),
)
