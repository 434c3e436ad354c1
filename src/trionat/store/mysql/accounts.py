"""Accounts as they are in the tables: rows of `userInfo_userinfo`, and what trionat keeps beside them.

Of several rows of one name the one with the lowest `user_id` is the account.
"""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from trionat.store.base import User, read_limits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trionat.store.base import Limits
    from trionat.store.mysql.pool import Link

Rows: TypeAlias = dict[int, str]
"""The stored passwords of all rows of one name, by `user_id`."""

# The casts are for tables that somebody has altered: one row must not spoil the answer about all others.
_SELECT: Final = """select u.user_id, u.username, coalesce(cast(u.password as char), ''), cast(u.`time` as datetime(6)),
        a.ticket_salt, a.seal, a.created_at, a.limits, f.owner, f.admin, f.disabled
    from userInfo_userinfo u left join trionat_accounts a on a.user_id = u.user_id
    left join trionat_flags f on f.user_id = u.user_id"""

_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


async def find_all(link: Link) -> dict[str, User]:
    """Return every account, by name."""
    return _users(await link.ask(f"{_SELECT} where u.username is not null order by u.user_id"))


async def find(link: Link, names: tuple[str, ...]) -> dict[str, User]:
    """Return the accounts of exactly those names (one at least) that exist."""
    users = _users(await link.ask_by_name(f"{_SELECT} where {{}} in %s order by u.user_id", names))
    return {name: users[name] for name in names if name in users}


async def find_administrators(link: Link) -> dict[str, User]:
    """Return the accounts that are administrators."""
    rows = await link.ask("select owner from trionat_flags where admin")
    names = tuple(owner.decode() for (owner,) in rows)
    users = await find(link, names) if names else {}
    return {name: user for name, user in users.items() if user.admin}


async def lock_rows(link: Link, name: str) -> Rows:
    """Return the rows of exactly that name, and keep others from changing them until the transaction ends."""
    # In two steps: without an index on the name, one would lock the whole table.
    found = await link.ask_by_name("select user_id from userInfo_userinfo where {} = %s", name)
    if not found:
        return {}
    rows = await link.ask(
        "select user_id, username, coalesce(cast(password as char), '') from userInfo_userinfo "
        "where user_id in %s for update",
        tuple(row for (row,) in found),
    )
    return {row: password for row, username, password in rows if username == name}


async def add(link: Link, user: User) -> None:
    """Add an account; that there is none of its name is seen to."""
    await link.change(
        "insert into userInfo_userinfo (username, password, `time`) values (%s, %s, %s)",
        user.name,
        user.password,
        _naive(user.expires_at),
    )
    account = link.last_id
    await link.change(
        # Not an insert: a row may be left of an account with that number that somebody else has removed.
        "replace into trionat_accounts values (%s, %s, %s, %s, %s)",
        account,
        user.ticket_salt.hex(),
        _seal(user.ticket_salt, user.password),
        _naive(user.created_at or datetime.now(UTC)),
        user.limits.to_text(),
    )
    await link.change(
        "replace into trionat_flags values (%s, %s, %s, %s)",
        account,
        user.name,
        user.admin,
        user.disabled,
    )


async def remove(link: Link, rows: Iterable[int]) -> None:
    """Remove rows and what is kept beside them."""
    await link.change("delete from userInfo_userinfo where user_id in %s", tuple(rows))
    await link.change("delete from trionat_accounts where user_id in %s", tuple(rows))
    await link.change("delete from trionat_flags where user_id in %s", tuple(rows))


async def set_password(link: Link, rows: Iterable[int], password: str) -> None:
    """Replace the stored passwords, and nothing else."""
    await link.change(
        # `time` would become now, and the account be expired.
        "update userInfo_userinfo set password = %s, `time` = `time` where user_id in %s",
        password,
        tuple(rows),
    )


async def set_expiry(link: Link, rows: Iterable[int], expires_at: datetime | None) -> None:
    """Set when the account of these rows ends."""
    await link.change(
        "update userInfo_userinfo set `time` = %s where user_id in %s",
        _naive(expires_at),
        tuple(rows),
    )


async def set_salt(link: Link, account: int, password: str, ticket_salt: bytes) -> None:
    """Keep the salt for tickets, as long as the stored password is this one."""
    await link.change(
        "insert into trionat_accounts (user_id, ticket_salt, seal) values (%s, %s, %s) "
        "on duplicate key update ticket_salt = values(ticket_salt), seal = values(seal)",
        account,
        ticket_salt.hex(),
        _seal(ticket_salt, password),
    )


async def set_limits(link: Link, account: int, limits: Limits) -> None:
    """Replace all limits."""
    await link.change(
        "insert into trionat_accounts (user_id, limits) values (%s, %s) "
        "on duplicate key update limits = values(limits)",
        account,
        limits.to_text(),
    )


async def set_admin(link: Link, account: int, name: str, *, admin: bool) -> None:
    """Make an account an administrator, or none any more."""
    await _prepare_flags(link, account, name)
    await link.change("update trionat_flags set admin = %s where user_id = %s", admin, account)


async def set_disabled(link: Link, account: int, name: str, *, disabled: bool) -> None:
    """Keep an account from logging in, or let it again."""
    await _prepare_flags(link, account, name)
    await link.change(
        "update trionat_flags set disabled = %s where user_id = %s", disabled, account
    )


async def _prepare_flags(link: Link, account: int, name: str) -> None:
    """Make the row of an account's flags; one that was left of another account is replaced."""
    await link.change("delete from trionat_flags where user_id = %s and owner <> %s", account, name)
    await link.change(
        "insert into trionat_flags (user_id, owner) values (%s, %s) on duplicate key update user_id = user_id",
        account,
        name,
    )


def _users(rows: Iterable[tuple[Any, ...]]) -> dict[str, User]:
    """Make users of rows of `_SELECT` in the order of their ids."""
    users: dict[str, User] = {}
    for account_id, name, password, time, salt, seal, created_at, text, *flags in rows:
        if name not in users:
            limits, damage = read_limits(text or "", of=name)
            admin, disabled = _flags(name, *flags)
            users[name] = User(
                name=name,
                password=password,
                ticket_salt=_unseal(salt, seal, password),
                expires_at=_aware(time),
                created_at=_aware(created_at),
                limits=limits,
                admin=admin,
                disabled=disabled,
                damage=damage,
                account_id=account_id,
            )
    return users


def _flags(name: str, owner: bytes | None, admin: int, disabled: int) -> tuple[bool, bool]:
    """Return whether the account is an administrator and whether it is disabled: neither where the row is another account's."""
    if owner != name.encode():
        return False, False
    return bool(admin), bool(disabled)


def _seal(ticket_salt: bytes, password: str) -> str:
    """Return what tells that a salt goes with a stored password."""
    return hmac.digest(ticket_salt, password.encode(), "sha256").hex()


def _unseal(salt: str | None, seal: str | None, password: str) -> bytes:
    """Return the salt, or nothing where there is none, or the stored password is not the one that it was kept for."""
    try:
        ticket_salt = bytes.fromhex(salt or "")
    except ValueError:  # somebody wrote into our table
        return b""
    return ticket_salt if hmac.compare_digest(_seal(ticket_salt, password), seal or "") else b""


def _naive(moment: datetime | None) -> datetime | None:
    """Return a time as the tables have it: UTC without saying so."""
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)


def _aware(moment: datetime | str | None) -> datetime | None:
    """Return a time of a table; one that is no date, such as 0000-00-00, was long ago."""
    if isinstance(moment, str):
        return _LONG_AGO
    return None if moment is None else moment.replace(tzinfo=UTC)
