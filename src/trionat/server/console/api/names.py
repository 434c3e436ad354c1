"""Whose the names of services are, and until when nobody else may have them."""

from __future__ import annotations

from datetime import UTC, datetime

import attrs

from trionat.hostnames import parse_hostname
from trionat.server.accounts.name_owners import KEPT_FOR
from trionat.server.console.operation import Call, Nothing, Operation, Page, cut_page
from trionat.server.console.principal import Permission
from trionat.server.console.refusals import there, valid
from trionat.server.console.shape import field


@attrs.frozen(kw_only=True)
class NameRow:
    """A name: `user` is empty where its account is gone. Nobody else may have it before `kept_until`."""

    name: str
    user: str
    used: str
    kept_until: str


@attrs.frozen(kw_only=True)
class Names:
    """Which part of the list."""

    user: str | None = field(None, longest=255, about="one account's only")
    limit: int = field(100, least=1, most=1000, about="entries at most")
    after: str | None = field(None, about="what `next` of the page before says")


@attrs.frozen(kw_only=True)
class One:
    """Which name."""

    name: str = field(longest=253, about="the whole name")


async def _list(call: Call[Names, Nothing]) -> Page[NameRow]:
    now, given, principal = datetime.now(UTC), call.parameters, call.principal
    return cut_page(
        (
            NameRow(
                name=owned.name,
                user=owned.owner,
                used=owned.used_at.isoformat(),
                kept_until=(owned.used_at + KEPT_FOR).isoformat(),
            )
            for owned in await call.context.store.list_names()
            if owned.used_at + KEPT_FOR > now
            and principal.may_see(owned.owner)
            and given.user in (None, owned.owner)
        ),
        lambda row: row.name,
        limit=given.limit,
        after=given.after,
    )


async def _release(call: Call[One, Nothing]) -> None:
    with valid("name"):
        name = parse_hostname(call.parameters.name)
    with there(f"name {name} that is kept"):
        await call.context.store.release_name(name)


OPERATIONS = (
    Operation(
        method="GET",
        path="/names",
        name="list_names",
        summary="Names that are kept for an account: all for an administrator, for anybody else his own",
        parameters=Names,
        answer=Page[NameRow],
        handle=_list,
        is_long=True,
    ),
    Operation(
        method="DELETE",
        path="/names/{name}",
        name="release_name",
        summary="Let anybody have a name that is kept for an account; a client that uses it goes on until it leaves",
        permission=Permission.MANAGE,
        is_for_admins=True,
        parameters=One,
        status=204,
        handle=_release,
    ),
)
