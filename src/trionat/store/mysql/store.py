"""The store in MySQL or MariaDB, in the tables that the Go program uses, maybe at the same time."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeVar

import attrs

from trionat.errors import StoreError
from trionat.store.mysql import accounts, schema, traffic

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable
    from datetime import datetime

    from trionat.store.base import Flush, Limits, User
    from trionat.store.mysql.accounts import Rows
    from trionat.store.mysql.pool import Link, Pool

T = TypeVar("T")

_LOCK: Final = "insert into trionat_flushes values ('', 0) on duplicate key update number = number"
"""Holds the row that is no server's until the transaction ends, and makes it where it is missing.

Every change takes it first, so that two servers do not add the same name, or the same flush, at once: the tables would let
them. Unlike GET_LOCK it needs nobody to give it back, not even by a client that is gone.
"""

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


@attrs.define(eq=False)
class MySQLStore:
    """A `Store` in a database that other servers, and the Go program, may use as well; the pool belongs to who made it.

    Names are asked for by the collation of the table, and compared exactly here. What changes or removes an account does so to
    all rows of its name, or the next one would come up. An account that somebody else has made has no ticket salt until one
    is set; and when somebody else changes a password the salt is gone, and tickets are void.
    """

    _pool: Pool

    async def prepare(self) -> None:
        """Make trionat's own tables where they are missing.

        Raises:
            StoreUnavailableError: `schema.prepare` says so.
        """
        await schema.prepare(self._pool)

    async def find_user(self, name: str) -> User | None:
        """Return the account of that name, or None."""
        return (await self.find_users([name])).get(name)

    async def find_users(self, names: Collection[str]) -> dict[str, User]:
        """Return the accounts of those names that exist, by name."""
        wanted = _askable(names)

        async def find(link: Link) -> dict[str, User]:
            return await accounts.find(link, wanted) if wanted else {}

        return await self._pool.run(find)

    async def list_users(self) -> list[User]:
        """Return every account, sorted by name."""
        users = await self._pool.run(accounts.find_all)
        return [users[name] for name in sorted(users)]

    async def add_user(self, user: User) -> None:
        """Add an account; `StoreError` where the name is taken."""

        async def add(link: Link) -> None:
            if await accounts.lock_rows(link, user.name):
                raise StoreError(f"there is a user {user.name!r} already")
            await accounts.add(link, user)

        await self._change(add)

    async def remove_user(self, name: str) -> None:
        """Remove an account; its traffic stays. `StoreError` where there is none."""
        await self._change_user(name, accounts.remove)

    async def set_password(self, name: str, password: str, ticket_salt: bytes) -> None:
        """Replace password (a hash) and salt together; `StoreError` where there is no such account."""

        async def change(link: Link, rows: Rows) -> None:
            await accounts.set_password(link, rows, password)
            await accounts.set_salt(link, min(rows), password, ticket_salt)

        await self._change_user(name, change)

    async def upgrade_password(self, name: str, old: str, new: str) -> bool:
        """Replace the stored password, if it is still `old`, so that tickets stay valid; tell whether it was."""

        async def upgrade(link: Link) -> bool:
            rows = await accounts.lock_rows(link, name)
            if not rows or rows[min(rows)] != old:
                return False
            user = (await accounts.find(link, (name,)))[name]
            await accounts.set_password(link, [row for row in rows if rows[row] == old], new)
            if user.ticket_salt:
                await accounts.set_salt(link, min(rows), new, user.ticket_salt)
            return True

        return await self._change(upgrade)

    async def set_ticket_salt(self, name: str, ticket_salt: bytes) -> None:
        """Replace the salt alone; `StoreError` where there is no such account."""

        async def change(link: Link, rows: Rows) -> None:
            await accounts.set_salt(link, min(rows), rows[min(rows)], ticket_salt)

        await self._change_user(name, change)

    async def set_expiry(self, name: str, expires_at: datetime | None) -> None:
        """Set when the account ends (aware), or that it never does; `StoreError` where there is no such account."""

        async def change(link: Link, rows: Rows) -> None:
            await accounts.set_expiry(link, rows, expires_at)

        await self._change_user(name, change)

    async def set_limits(self, name: str, limits: Limits) -> None:
        """Replace all limits of an account; `StoreError` where there is none."""

        async def change(link: Link, rows: Rows) -> None:
            await accounts.set_limits(link, min(rows), limits)

        await self._change_user(name, change)

    async def add_traffic(self, flush: Flush) -> bool:
        """Add a flush to `bars` and to its month, wholly and once; tell whether this call did."""
        return await self._change(lambda link: traffic.add_flush(link, flush))

    async def traffic(self) -> dict[str, int]:
        """Return the bytes of every user that has any, in all."""
        return await self._pool.run(traffic.totals)

    async def monthly_traffic(
        self, month: str, names: Collection[str], pending: Flush | None = None
    ) -> dict[str, int]:
        """Return the bytes of these users in that month (`2026-11`, UTC), as if `pending` had been added."""
        wanted = _askable(names)

        async def find(link: Link) -> dict[str, int]:
            return await traffic.totals_of_month(link, month, wanted, pending) if wanted else {}

        return await self._pool.run(find)

    async def _change_user(
        self, name: str, change: Callable[[Link, Rows], Awaitable[None]]
    ) -> None:
        """Make a change to the rows of an account that has to exist."""

        async def work(link: Link) -> None:
            rows = await accounts.lock_rows(link, name) if _askable([name]) else None
            if not rows:
                raise StoreError(f"there is no user {name!r}")
            await change(link, rows)

        await self._change(work)

    async def _change(self, change: Callable[[Link], Awaitable[T]]) -> T:
        """Make a change, wholly or not at all, while nobody else of us makes one."""

        async def work(link: Link) -> T:
            await link.change(_LOCK)
            return await change(link)

        return await self._pool.run(work, transaction=True)


def _askable(names: Iterable[str]) -> tuple[str, ...]:
    """Leave out names with a lone surrogate, as JSON can carry it from a peer: they are no UTF-8, and so in no table."""
    return tuple(name for name in names if not _SURROGATE.search(name))
