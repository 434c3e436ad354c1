"""Tickets of accounts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs

from trionat.server.accounts.limit_lists import check_names, check_ports
from trionat.server.accounts.scope import Only, until
from trionat.server.accounts.tickets import make_ticket, narrow_ticket
from trionat.server.console.account import find_account
from trionat.server.console.expiry import WHEN, check_end, read_expiry
from trionat.server.console.operation import Call, Nothing, Operation
from trionat.server.console.principal import Permission
from trionat.server.console.refusals import there, valid
from trionat.server.console.shape import field
from trionat.store.base import new_ticket_salt

if TYPE_CHECKING:
    from trionat.protocol.ticket import Ticket


@attrs.frozen(kw_only=True)
class One:
    """Whose tickets."""

    name: str = field(longest=255)


@attrs.frozen(kw_only=True)
class TicketWish:
    """What a ticket is to be good for; without any of these for all that the account may have."""

    only_names: tuple[str, ...] | None = field(None, longest=253, about="these names alone")
    only_ports: tuple[int, ...] | None = field(
        None, least=1, most=65535, about="these visit ports alone"
    )
    expires: str | None = field(None, about=WHEN)


@attrs.frozen(kw_only=True)
class TicketRow:
    """A ticket, and what it is narrowed to."""

    ticket: str
    restrictions: tuple[str, ...]


def _caveats(wish: TicketWish, expires: datetime | None) -> tuple[str, ...]:
    caveats: list[str] = []
    names: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    if wish.only_names is not None:
        with valid("only_names"):
            names = check_names(wish.only_names)
    if wish.only_ports is not None:
        with valid("only_ports"):
            ports = check_ports(wish.only_ports)
    if names or ports:
        caveats.append(str(Only(names=names, ports=ports)))
    if expires is not None:
        caveats.append(until(expires))
    return tuple(caveats)


async def _make(call: Call[One, TicketWish]) -> TicketRow:
    context = call.context
    now = datetime.now(UTC)
    expires = read_expiry(call.body.expires or None, now, field="expires", must_be_later=True)
    check_end(call.principal, "a ticket", expires, field="expires")
    caveats = _caveats(call.body, expires)
    user = await find_account(context, call.principal, call.parameters.name)
    if not user.ticket_salt:  # an account that the Go program made
        user = attrs.evolve(user, ticket_salt=new_ticket_salt())
        with there(f"user {user.name!r}"):
            await context.store.set_ticket_salt(user.name, user.ticket_salt)
    with valid("only_names" if call.body.only_names else "only_ports"):
        ticket: Ticket = make_ticket(
            context.state,
            user,
            context.ready.public.host,
            context.ready.public.port,
            pinned=context.config.certificate is None,
            others=context.config.other_servers,
        )
        ticket = narrow_ticket(ticket, user.limits, caveats)
    return TicketRow(ticket=ticket.encode(), restrictions=tuple(ticket.caveats))


async def _revoke(call: Call[One, Nothing]) -> None:
    user = await find_account(call.context, call.principal, call.parameters.name)
    with there(f"user {user.name!r}"):
        await call.context.store.set_ticket_salt(user.name, new_ticket_salt())


OPERATIONS = (
    Operation(
        method="POST",
        path="/users/{name}/tickets",
        name="make_ticket",
        summary="Make a ticket: the same one every time, unless it is narrowed",
        permission=Permission.MANAGE,
        parameters=One,
        body=TicketWish,
        answer=TicketRow,
        handle=_make,
    ),
    Operation(
        method="DELETE",
        path="/users/{name}/tickets",
        name="revoke_tickets",
        summary="Make all tickets of an account void that were made before; sessions by one end within 2 s",
        permission=Permission.MANAGE,
        parameters=One,
        status=204,
        handle=_revoke,
    ),
)
