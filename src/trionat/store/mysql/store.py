"""The store in MySQL or MariaDB, in the tables that the Go program uses, maybe at the same time."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeVar

import attrs

from trionat.errors import StoreError
from trionat.store.base import (
    MOST_DAYS_AT_ONCE,
    MOST_NAMES,
    TOO_MANY_NAMES,
    check_administrators,
    check_free,
)
from trionat.store.mysql import accounts, hostnames, schema, tokens, traffic
from trionat.store.tokens import check_new_token

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable
    from datetime import timedelta

    from trionat.store.base import Flush, OwnedName, User
    from trionat.store.day import DayTotal
    from trionat.store.mysql.accounts import Rows
    from trionat.store.mysql.pool import Link, Pool
    from trionat.store.tokens import Token

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

    async def remove_user(self, name: str, *, keep_administrator: bool = False) -> None:
        """Remove an account; its traffic stays. `StoreError` where there is none."""

        async def remove(link: Link, rows: Rows) -> None:
            if keep_administrator:
                await _check_administrators(link, (await accounts.find(link, (name,)))[name], None)
            await accounts.remove(link, rows)
            await hostnames.disown(link, name)
            await tokens.remove_all(link, name)

        await self._change_user(name, remove)

    async def reserve_names(
        self, user: str, account_id: int, names: Collection[str], now: datetime, keep: timedelta
    ) -> frozenset[str]:
        """Make names an account's, all or none; return those that were not before."""
        wanted = tuple(names)
        if not wanted:
            return frozenset()
        found = await self._pool.run(lambda link: hostnames.find(link, wanted))
        if len(found) == len(wanted) and all(
            owned.may_stay(user, account_id, now) for owned in found.values()
        ):
            return frozenset()

        async def reserve(link: Link) -> frozenset[str]:
            found = await hostnames.find(link, wanted)
            check_free(found, user, account_id, now, keep)
            new = frozenset(
                name
                for name in wanted
                if name not in found or not found[name].is_of(user, account_id)
            )
            if new:
                count = await hostnames.count(link, user, account_id, now - keep)
                if count + len(new) > MOST_NAMES:
                    raise StoreError(TOO_MANY_NAMES)
            await hostnames.put(link, user, account_id, wanted, now, now - keep)
            return new

        return await self._change(reserve)

    async def take_back_names(
        self, user: str, account_id: int, names: Collection[str], reserved_at: datetime
    ) -> None:
        """Forget names that were new with a reservation of that moment, unless they were reserved or used since."""
        await self._change(
            lambda link: hostnames.take_back(link, user, account_id, names, reserved_at)
        )

    async def touch_name(self, user: str, name: str, now: datetime) -> bool:
        """Note that a name was used; tell whether it is the user's."""
        return await self._change(lambda link: hostnames.touch(link, user, name, now))

    async def list_names(self) -> list[OwnedName]:
        """Return every name that is known, sorted."""
        return await self._pool.run(hostnames.find_all)

    async def release_name(self, name: str) -> None:
        """Forget whose a name is; `StoreError` where it is not known."""
        known = name.isascii() and await self._change(lambda link: hostnames.release(link, name))
        if not known:
            raise StoreError(f"nobody has the name {name!r}")

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

    async def set_admin(self, name: str, *, admin: bool) -> None:
        """Make an account an administrator, or none any more; `StoreError` where there is no such account."""

        async def change(link: Link, rows: Rows) -> None:
            await accounts.set_admin(link, min(rows), name, admin=admin)

        await self._change_user(name, change)

    async def set_disabled(self, name: str, *, disabled: bool) -> None:
        """Keep an account from logging in, or let it again; `StoreError` where there is no such account."""

        async def change(link: Link, rows: Rows) -> None:
            await accounts.set_disabled(link, min(rows), name, disabled=disabled)

        await self._change_user(name, change)

    async def change_user(
        self, name: str, change: Callable[[User], User], *, keep_administrator: bool = False
    ) -> User:
        """Change an account in one step; return it as it is then. `StoreError` where there is none."""

        async def work(link: Link, rows: Rows) -> User:
            before = (await accounts.find(link, (name,)))[name]
            after = change(before)
            if keep_administrator:
                await _check_administrators(link, before, after)
            if after.expires_at != before.expires_at:
                await accounts.set_expiry(link, rows, after.expires_at)
            if after.limits != before.limits or after.damage != before.damage:
                await accounts.set_limits(link, min(rows), after.limits)
            if after.admin != before.admin:
                await accounts.set_admin(link, min(rows), name, admin=after.admin)
            if after.disabled != before.disabled:
                await accounts.set_disabled(link, min(rows), name, disabled=after.disabled)
            return after

        return await self._change_user(name, work)

    async def add_token(self, token: Token) -> None:
        """Add a token; `StoreError` where its account is not there, or has one of that name, or too many."""

        async def add(link: Link, rows: Rows) -> None:
            if min(rows) != token.account_id:
                raise _no_user(token.user)
            check_new_token(token, await tokens.names_of(link, token.user, token.account_id))
            await tokens.add(link, token)

        await self._change_user(token.user, add)

    async def find_token(self, digest: bytes) -> Token | None:
        """Return the token of that digest, or None."""
        return await self._pool.run(lambda link: tokens.find(link, digest))

    async def list_tokens(self, user: str | None = None) -> list[Token]:
        """Return every token, or those of one account, sorted by account and name."""
        if user is not None and not _askable([user]):
            return []
        return await self._pool.run(lambda link: tokens.find_all(link, user))

    async def touch_token(self, token_id: str, now: datetime) -> None:
        """Note that a token was used, if it is there."""
        await self._change(lambda link: tokens.touch(link, token_id, now))

    async def remove_token(self, token_id: str) -> None:
        """Remove a token; `StoreError` where there is none."""
        known = token_id.isascii() and await self._change(
            lambda link: tokens.remove(link, token_id)
        )
        if not known:
            raise StoreError("there is no such token")

    async def add_traffic(self, flush: Flush, day: str | None = None) -> bool:
        """Add a flush to `bars`, to its month and to a day, wholly and once; tell whether this call did."""
        return await self._change(lambda link: traffic.add_flush(link, flush, day))

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

    async def daily_traffic(
        self,
        first: str,
        last: str,
        *,
        user: str | None = None,
        after: tuple[str, str] = ("", ""),
        limit: int = MOST_DAYS_AT_ONCE,
    ) -> list[DayTotal]:
        """Return the totals of these days, of all users or one, in the order of day and user, behind `after`."""
        if len(_askable([user or "", after[1]])) < 2:
            return []
        return await self._pool.run(
            lambda link: traffic.totals_of_days(link, first, last, user, after, limit)
        )

    async def _change_user(self, name: str, change: Callable[[Link, Rows], Awaitable[T]]) -> T:
        """Make a change to the rows of an account that has to exist."""

        async def work(link: Link) -> T:
            rows = await accounts.lock_rows(link, name) if _askable([name]) else None
            if not rows:
                raise _no_user(name)
            return await change(link, rows)

        return await self._change(work)

    async def _change(self, change: Callable[[Link], Awaitable[T]]) -> T:
        """Make a change, wholly or not at all, while nobody else of us makes one."""

        async def work(link: Link) -> T:
            await link.change(_LOCK)
            return await change(link)

        return await self._pool.run(work, transaction=True)


async def _check_administrators(link: Link, before: User, after: User | None) -> None:
    others = await accounts.find_administrators(link)
    others.pop(before.name, None)
    check_administrators(before, after, others.values(), datetime.now(UTC))


def _no_user(name: str) -> StoreError:
    return StoreError(f"there is no user {name!r}")


def _askable(names: Iterable[str]) -> tuple[str, ...]:
    """Leave out names with a lone surrogate, as JSON can carry it from a peer: they are no UTF-8, and so in no table."""
    return tuple(name for name in names if not _SURROGATE.search(name))
