"""Whose the names of services are, in a table of trionat's own."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

import attrs

from trionat.store.base import FORGOTTEN_AT_ONCE, OwnedName
from trionat.store.mysql import accounts

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from trionat.store.mysql.pool import Link

_SELECT: Final = "select name, owner, account_id, used_at from trionat_names"


async def complete(link: Link) -> None:
    """Make the table what it is now, where it was made without the ids of accounts, and an index on the last use."""
    columns = await link.ask(
        "select column_name from information_schema.columns "
        "where table_schema = database() and table_name = 'trionat_names'"
    )
    if "account_id" in {name.lower() for (name,) in columns}:
        return
    await link.change(
        # Of two servers that start at once, MySQL refuses the second, whose next start finds it done.
        "alter table trionat_names "
        "add column /*M! if not exists */ account_id bigint not null default 0 after owner, "
        "add key /*M! if not exists */ used_at (used_at)"
    )
    rows = await link.ask("select distinct owner from trionat_names where owner <> ''")
    owners = tuple(owner.decode() for (owner,) in rows)
    for name, user in (await accounts.find(link, owners) if owners else {}).items():
        await link.change(
            "update trionat_names set account_id = %s where owner = %s", user.account_id, name
        )


async def find(link: Link, names: tuple[str, ...]) -> dict[str, OwnedName]:
    """Return what is known of these names (one at least)."""
    rows = await link.ask(f"{_SELECT} where name in %s", names)
    return {row[0]: _owned_name(row) for row in rows}


async def find_all(link: Link) -> list[OwnedName]:
    """Return all names, sorted; without the owner where the account is gone."""
    found = [_owned_name(row) for row in await link.ask(f"{_SELECT} order by name")]
    # Accounts may be removed by others than us, who know nothing of names.
    owners = tuple({owned.owner for owned in found})
    users = await accounts.find(link, owners) if owners else {}
    return [
        owned
        if owned.owner in users and users[owned.owner].account_id == owned.account_id
        else attrs.evolve(owned, owner="", account_id=0)
        for owned in found
    ]


async def count(link: Link, owner: str, account_id: int, since: datetime) -> int:
    """Return how many names an account has had since then."""
    rows = await link.ask(
        "select count(*) from trionat_names where owner = %s and account_id = %s and used_at > %s",
        owner,
        account_id,
        _naive(since),
    )
    return int(rows[0][0])


async def put(
    link: Link,
    owner: str,
    account_id: int,
    names: tuple[str, ...],
    now: datetime,
    before: datetime,
) -> None:
    """These names are the account's, and used now; some of those that were used last before that moment are forgotten."""
    for name in names:
        await link.change(
            "insert into trionat_names (name, owner, account_id, used_at) values (%s, %s, %s, %s) "
            "on duplicate key update owner = values(owner), account_id = values(account_id), "
            # Always another one.
            "used_at = greatest(used_at + interval 1 microsecond, values(used_at))",
            name,
            owner,
            account_id,
            _naive(now),
        )
    await link.change(
        "delete from trionat_names where used_at <= %s limit %s", _naive(before), FORGOTTEN_AT_ONCE
    )


async def take_back(
    link: Link, owner: str, account_id: int, names: Collection[str], used_at: datetime
) -> None:
    """Forget those of the names that are the account's, and were used last at just that moment."""
    for name in names:
        await link.change(
            "delete from trionat_names where name = %s and owner = %s and account_id = %s and used_at = %s",
            name,
            owner,
            account_id,
            _naive(used_at),
        )


async def touch(link: Link, owner: str, name: str, now: datetime) -> bool:
    """The name was used now, if it is the user's; tell whether it is."""
    known = await link.ask(
        "select 1 from trionat_names where name = %s and owner = %s", name, owner
    )
    await link.change(
        "update trionat_names set used_at = greatest(used_at, %s) where name = %s and owner = %s",
        _naive(now),
        name,
        owner,
    )
    return bool(known)


async def disown(link: Link, owner: str) -> None:
    """The user is gone: nobody has its names until their time is over."""
    await link.change("update trionat_names set owner = '', account_id = 0 where owner = %s", owner)


async def release(link: Link, name: str) -> bool:
    """Forget a name; tell whether it was known."""
    known = await link.ask("select 1 from trionat_names where name = %s", name)
    await link.change("delete from trionat_names where name = %s", name)
    return bool(known)


def _owned_name(row: tuple[Any, ...]) -> OwnedName:
    name, owner, account_id, used_at = row
    return OwnedName(
        name=name,
        owner=owner.decode(),
        account_id=account_id,
        used_at=used_at.replace(tzinfo=UTC),
    )


def _naive(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None)
