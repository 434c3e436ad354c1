"""The embedded store: one SQLite file in the server's state folder.

Every change is one statement or one transaction, and so whole or not at all. Calls run in a thread, one at a time (`sqlite3`
connections are not for several threads at once), and take some 100 µs; a change is on the disk when its call returns, which
takes as long as the disk does. The write-ahead log lets `trionat user` write while a server reads; a call waits up to 5 s for
another process that is writing.
"""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
import trio

from trionat.errors import StoreError
from trionat.store.base import (
    FORGOTTEN_AT_ONCE,
    MOST_DAYS_AT_ONCE,
    MOST_NAMES,
    TOO_MANY_NAMES,
    OwnedName,
    User,
    check_administrators,
    check_free,
    read_limits,
)
from trionat.store.day import DAYS_KEPT, DayTotal, days_before
from trionat.store.sqlite_file import open_file, translated
from trionat.store.tokens import Token, TokenScope, check_new_token

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncGenerator, Callable, Collection, Mapping
    from pathlib import Path

    from trionat.store.base import Flush

T = TypeVar("T")

_COLUMNS: Final = "name, password, ticket_salt, expires_at, created_at, limits, admin, disabled"
_SELECT: Final = f"select {_COLUMNS} from users"  # noqa: S608 - our own column names
_TOKENS: Final = """select tokens.id, tokens.owner, tokens.account_id, tokens.name, tokens.digest, tokens.scope,
    tokens.created_at, tokens.expires_at, tokens.last_used
    from tokens join users on users.name = tokens.owner and users.created_at = tokens.account_id"""
"""Those whose account is there: others than us may remove accounts, who know nothing of tokens."""

_CLOSE_GRACE: Final = 2.0
"""Seconds to wait at the end for the call that is running. It may wait for another process, or for a disk that hangs."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


@asynccontextmanager
async def open_sqlite_store(path: Path) -> AsyncGenerator[SQLiteStore]:
    """Give the store in that file, which is opened by the first call; where there is none it is made (mode 0600).

    The folder must exist. `MEMORY` stands for a new store in memory, which is gone at the end. Leaving closes the file, behind the call that is running; where that takes longer than 2 s, the call itself
    closes it at its end. Cancelling is safe at any point.
    """
    store = SQLiteStore(path=path)
    try:
        yield store
    finally:
        with trio.move_on_after(_CLOSE_GRACE, shield=True):
            await store.aclose()


@attrs.define(eq=False, kw_only=True)
class SQLiteStore:
    """A `Store` in an SQLite file; made by `open_sqlite_store`.

    A call that is cancelled while it waits for its turn does nothing. One that is running is left alone, since its disk may hang: it
    comes to its end in its thread, before any other call, and its change stays. An account is told from a later one of its name by
    the microsecond in which it was made. It has one connection from its first call to its end, so one in memory stays the same.
    """

    path: Path
    _connection: sqlite3.Connection | None = attrs.field(init=False, default=None)
    _closed: bool = attrs.field(init=False, default=False)
    _limiter: trio.CapacityLimiter = attrs.field(
        init=False, factory=lambda: trio.CapacityLimiter(1)
    )

    async def prepare(self) -> None:
        """Open the file and bring its schema up to date, unless that is done.

        Raises:
            StoreUnavailableError: `open_file` says so.
        """
        await self._run(lambda _: None)

    async def aclose(self) -> None:
        """Close the file; whoever uses the store after that has made a mistake.

        Waits for the call that is running; cancelled meanwhile, it leaves the closing to that.
        """
        try:
            await trio.to_thread.run_sync(
                self._close, limiter=self._limiter, abandon_on_cancel=True
            )
        finally:
            self._closed = True

    def _close(self) -> None:
        self._closed = True
        if self._connection is not None:
            self._connection.close()

    def _close_late(self) -> None:
        """Close the file where `aclose` did not wait for the call that was running."""
        if self._closed:
            self._close()

    async def find_user(self, name: str) -> User | None:
        """Return the account of that name, or None."""
        return (await self.find_users([name])).get(name)

    async def find_users(self, names: Collection[str]) -> dict[str, User]:
        """Return the accounts of those names that exist, by name."""

        def find(connection: sqlite3.Connection) -> dict[str, User]:
            # One by one, some 5 µs each: a list in one statement would have a limit.
            found = (_find_user(connection, name) for name in names)
            return {user.name: user for user in found if user is not None}

        return await self._run(find)

    async def list_users(self) -> list[User]:
        """Return every account, sorted by name."""
        return await self._run(
            lambda connection: [
                _user(row) for row in connection.execute(f"{_SELECT} order by name")
            ]
        )

    async def add_user(self, user: User) -> None:
        """Add an account; `StoreError` where the name is taken."""
        added = await self._change(
            f"insert into users ({_COLUMNS}) values (?, ?, ?, ?, ?, ?, ?, ?) on conflict do nothing",  # noqa: S608 - our own column names
            user.name,
            user.password,
            user.ticket_salt,
            _microseconds(user.expires_at),
            _microseconds(user.created_at or datetime.now(UTC)),
            user.limits.to_text(),
            user.admin,
            user.disabled,
        )
        if not added:
            raise StoreError(f"there is a user {user.name!r} already")

    async def remove_user(self, name: str, *, keep_administrator: bool = False) -> None:
        """Remove an account; its traffic stays. `StoreError` where there is none."""

        def remove(connection: sqlite3.Connection) -> bool:
            connection.execute("begin immediate")
            with connection:  # commits, or rolls back on an error
                if keep_administrator and (user := _find_user(connection, name)) is not None:
                    _check_administrators(connection, user, None)
                connection.execute(
                    "update names set owner = '', account_id = 0 where owner = ?", (name,)
                )
                connection.execute("delete from tokens where owner = ?", (name,))
                return bool(
                    connection.execute("delete from users where name = ?", (name,)).rowcount
                )

        if not (_is_text(name) and await self._run(remove)):
            raise StoreError(f"there is no user {name!r}")

    async def reserve_names(
        self, user: str, account_id: int, names: Collection[str], now: datetime, keep: timedelta
    ) -> frozenset[str]:
        """Make names an account's, all or none; return those that were not before."""

        def reserve(connection: sqlite3.Connection) -> frozenset[str]:
            found = _find_names(connection, names)
            if len(found) == len(names) and all(
                owned.may_stay(user, account_id, now) for owned in found.values()
            ):
                return frozenset()
            connection.execute("begin immediate")
            with connection:  # commits, or rolls back on an error
                found = _find_names(connection, names)
                check_free(found, user, account_id, now, keep)
                oldest = _microseconds(now - keep)
                (count,) = connection.execute(
                    "select count(*) from names where owner = ? and account_id = ? and used_at > ?",
                    (user, account_id, oldest),
                ).fetchone()
                new = frozenset(
                    name
                    for name in names
                    if name not in found or not found[name].is_of(user, account_id)
                )
                if new and count + len(new) > MOST_NAMES:
                    raise StoreError(TOO_MANY_NAMES)
                connection.executemany(
                    "insert into names (name, owner, account_id, used_at) values (?, ?, ?, ?) "
                    "on conflict (name) do update set owner = excluded.owner, account_id = excluded.account_id, "
                    "used_at = max(used_at + 1, excluded.used_at)",  # always another one
                    ((name, user, account_id, _microseconds(now)) for name in names),
                )
                connection.execute(  # few SQLites know a limit of a delete
                    "delete from names where name in "
                    "(select name from names where used_at <= ? limit ?)",
                    (oldest, FORGOTTEN_AT_ONCE),
                )
            return new

        return await self._run(reserve)

    async def take_back_names(
        self, user: str, account_id: int, names: Collection[str], reserved_at: datetime
    ) -> None:
        """Forget names that were new with a reservation of that moment, unless they were reserved or used since."""
        moment = _microseconds(reserved_at)

        def take_back(connection: sqlite3.Connection) -> None:
            connection.execute("begin immediate")
            with connection:  # commits, or rolls back on an error
                connection.executemany(
                    "delete from names where name = ? and owner = ? and account_id = ? and used_at = ?",
                    ((name, user, account_id, moment) for name in names),
                )

        await self._run(take_back)

    async def touch_name(self, user: str, name: str, now: datetime) -> bool:
        """Note that a name was used; tell whether it is the user's."""
        touched = await self._change(
            "update names set used_at = max(used_at, ?) where name = ? and owner = ?",
            _microseconds(now),
            name,
            user,
        )
        return touched > 0

    async def list_names(self) -> list[OwnedName]:
        """Return every name that is known, sorted."""
        return await self._run(
            lambda connection: [
                _owned_name(row)
                for row in connection.execute(
                    # Accounts may be removed by others than us, who know nothing of names.
                    "select names.name, coalesce(users.name, ''), coalesce(users.created_at, 0), names.used_at "
                    "from names left join users on users.name = names.owner and users.created_at = names.account_id "
                    "order by names.name"
                )
            ]
        )

    async def release_name(self, name: str) -> None:
        """Forget whose a name is; `StoreError` where it is not known."""
        if not await self._change("delete from names where name = ?", _storable(name)):
            raise StoreError(f"nobody has the name {name!r}")

    async def set_password(self, name: str, password: str, ticket_salt: bytes) -> None:
        """Replace password (a hash) and salt together; `StoreError` where there is no such account."""
        await self._change_user(
            name,
            "update users set password = ?, ticket_salt = ? where name = ?",
            password,
            ticket_salt,
        )

    async def upgrade_password(self, name: str, old: str, new: str) -> bool:
        """Replace the stored password, if it is still `old`, and nothing else; tell whether it was."""
        changed = await self._change(
            "update users set password = ? where name = ? and password = ?",
            new,
            _storable(name),
            old,
        )
        return changed > 0

    async def set_ticket_salt(self, name: str, ticket_salt: bytes) -> None:
        """Replace the salt alone; `StoreError` where there is no such account."""
        await self._change_user(
            name, "update users set ticket_salt = ? where name = ?", ticket_salt
        )

    async def set_expiry(self, name: str, expires_at: datetime | None) -> None:
        """Set when the account ends (aware), or that it never does; `StoreError` where there is no such account."""
        await self._change_user(
            name, "update users set expires_at = ? where name = ?", _microseconds(expires_at)
        )

    async def set_admin(self, name: str, *, admin: bool) -> None:
        """Make an account an administrator, or none any more; `StoreError` where there is no such account."""
        await self._change_user(name, "update users set admin = ? where name = ?", admin)

    async def set_disabled(self, name: str, *, disabled: bool) -> None:
        """Keep an account from logging in, or let it again; `StoreError` where there is no such account."""
        await self._change_user(name, "update users set disabled = ? where name = ?", disabled)

    async def change_user(
        self, name: str, change: Callable[[User], User], *, keep_administrator: bool = False
    ) -> User:
        """Change an account in one step; return it as it is then. `StoreError` where there is none."""

        def work(connection: sqlite3.Connection) -> User:
            connection.execute("begin immediate")
            with connection:  # commits, or rolls back on an error
                before = _find_user(connection, name)
                if before is None:
                    raise StoreError(f"there is no user {name!r}")
                after = change(before)
                if keep_administrator:
                    _check_administrators(connection, before, after)
                connection.execute(
                    "update users set expires_at = ?, admin = ?, disabled = ? where name = ?",
                    (_microseconds(after.expires_at), after.admin, after.disabled, name),
                )
                if not after.damage:
                    connection.execute(
                        "update users set limits = ? where name = ?", (after.limits.to_text(), name)
                    )
            return after

        return await self._run(work)

    async def add_token(self, token: Token) -> None:
        """Add a token; `StoreError` where its account is not there, or has one of that name, or too many."""
        account = (_storable(token.user), token.account_id)

        def add(connection: sqlite3.Connection) -> None:
            connection.execute("begin immediate")
            with connection:  # commits, or rolls back on an error
                if not connection.execute(
                    "select 1 from users where name = ? and created_at = ?", account
                ).fetchone():
                    raise StoreError(f"there is no user {token.user!r}")
                names = {
                    name
                    for (name,) in connection.execute(
                        "select name from tokens where owner = ? and account_id = ?", account
                    )
                }
                check_new_token(token, names)
                connection.execute(
                    "insert into tokens (id, owner, account_id, name, digest, scope, created_at, expires_at) "
                    "values (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        token.token_id,
                        *account,
                        token.name,
                        token.digest,
                        token.scope.value,
                        _microseconds(token.created_at),
                        _microseconds(token.expires_at),
                    ),
                )

        await self._run(add)

    async def find_token(self, digest: bytes) -> Token | None:
        """Return the token of that digest, or None."""

        def find(connection: sqlite3.Connection) -> Token | None:
            row = connection.execute(f"{_TOKENS} where tokens.digest = ?", (digest,)).fetchone()
            return None if row is None else _token(row)

        return await self._run(find)

    async def list_tokens(self, user: str | None = None) -> list[Token]:
        """Return every token, or those of one account, sorted by account and name."""
        where = "" if user is None else "where tokens.owner = ?"
        values = () if user is None else (_storable(user),)
        return await self._run(
            lambda connection: [
                _token(row)
                for row in connection.execute(
                    f"{_TOKENS} {where} order by tokens.owner, tokens.name", values
                )
            ]
        )

    async def touch_token(self, token_id: str, now: datetime) -> None:
        """Note that a token was used, if it is there."""
        await self._change(
            "update tokens set last_used = max(coalesce(last_used, 0), ?) where id = ?",
            _microseconds(now),
            token_id,
        )

    async def remove_token(self, token_id: str) -> None:
        """Remove a token; `StoreError` where there is none."""
        if not await self._change("delete from tokens where id = ?", _storable(token_id)):
            raise StoreError("there is no such token")

    async def add_traffic(self, flush: Flush, day: str | None = None) -> bool:
        """Add a flush to the totals, to its month and to a day, wholly and once; tell whether this call did."""

        def add(connection: sqlite3.Connection) -> bool:
            connection.execute("begin immediate")
            with connection:  # commits, or rolls back on an error
                is_new = connection.execute(
                    "insert into flushes values (?, ?) on conflict (server) "
                    "do update set number = excluded.number where excluded.number > number",
                    (flush.server, flush.number),
                ).rowcount
                if not is_new:
                    return False
                connection.executemany(
                    "insert into traffic values (?, ?) "
                    "on conflict (name) do update set bytes = bytes + excluded.bytes",
                    flush.amounts.items(),
                )
                connection.executemany(
                    "insert into months values (?, ?, ?) "
                    "on conflict (month, name) do update set bytes = bytes + excluded.bytes",
                    ((flush.month, name, amount) for name, amount in flush.amounts.items()),
                )
                if day is not None:
                    _add_to_day(connection, day, flush.amounts)
            return True

        return await self._run(add)

    async def traffic(self) -> dict[str, int]:
        """Return the bytes of every user that has any, in all."""
        return await self._run(
            lambda connection: dict(connection.execute("select name, bytes from traffic"))
        )

    async def monthly_traffic(
        self, month: str, names: Collection[str], pending: Flush | None = None
    ) -> dict[str, int]:
        """Return the bytes of these users in that month (`2026-11`, UTC), as if `pending` had been added."""

        def find(connection: sqlite3.Connection) -> dict[str, int]:
            missing: Mapping[str, int] = {}
            if (
                pending is not None
            ):  # only this process adds flushes of its server: it does not come in between
                last = connection.execute(
                    "select number from flushes where server = ?", (pending.server,)
                ).fetchone()
                missing = pending.missing(month, last[0] if last else 0)
            found = Counter({name: missing[name] for name in names if name in missing})
            for name in names:
                found.update(
                    dict(
                        connection.execute(
                            "select name, bytes from months where month = ? and name = ?",
                            (month, _storable(name)),
                        )
                    )
                )
            return dict(found)

        return await self._run(find)

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
        where = "" if user is None else "and name = ?"
        values = () if user is None else (_storable(user),)
        return await self._run(
            lambda connection: [
                DayTotal(day=day, user=name, amount=amount)
                for day, name, amount in connection.execute(
                    "select day, name, bytes from days where day between ? and ? "  # noqa: S608 - our own words
                    f"and (day, name) > (?, ?) {where} order by day, name limit ?",
                    (max(first, after[0]), last, after[0], _storable(after[1]), *values, limit),
                )
            ]
        )

    async def _change_user(self, name: str, statement: str, *values: object) -> None:
        """Run a statement whose last parameter is the name of an account that has to exist."""
        if not await self._change(statement, *values, _storable(name)):
            raise StoreError(f"there is no user {name!r}")

    async def _change(self, statement: str, *values: object) -> int:
        """Run one statement; return how many rows it changed."""
        return await self._run(lambda connection: connection.execute(statement, values).rowcount)

    async def _run(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run a job in the thread, on the connection, which is made where there is none yet."""

        def run() -> T:
            if self._closed:
                raise RuntimeError("the store is closed")
            try:
                with translated(self.path):
                    if self._connection is None:
                        self._connection = open_file(self.path)
                    return job(self._connection)
            finally:
                self._close_late()

        return await trio.to_thread.run_sync(run, limiter=self._limiter, abandon_on_cancel=True)


def _add_to_day(connection: sqlite3.Connection, day: str, amounts: Mapping[str, int]) -> None:
    connection.executemany(
        "insert into days values (?, ?, ?) "
        "on conflict (day, name) do update set bytes = bytes + excluded.bytes",
        ((day, name, amount) for name, amount in amounts.items()),
    )
    connection.execute(
        "delete from days where (day, name) in (select day, name from days where day < ? limit ?)",
        (days_before(day, DAYS_KEPT), FORGOTTEN_AT_ONCE),
    )


def _find_user(connection: sqlite3.Connection, name: str) -> User | None:
    row = connection.execute(f"{_SELECT} where name = ?", (_storable(name),)).fetchone()
    return None if row is None else _user(row)


def _check_administrators(connection: sqlite3.Connection, before: User, after: User | None) -> None:
    others = connection.execute(f"{_SELECT} where admin and name <> ?", (before.name,))
    check_administrators(before, after, map(_user, others), datetime.now(UTC))


def _find_names(connection: sqlite3.Connection, names: Collection[str]) -> dict[str, OwnedName]:
    found = (
        connection.execute(
            "select name, owner, account_id, used_at from names where name = ?", (name,)
        ).fetchone()
        for name in names
    )
    return {row[0]: _owned_name(row) for row in found if row is not None}


def _owned_name(row: tuple[str, str, int, int]) -> OwnedName:
    name, owner, account_id, used_at = row
    return OwnedName(name=name, owner=owner, account_id=account_id, used_at=_time(used_at))


def _is_text(name: str) -> bool:
    """Tell whether a name is UTF-8, and not half a surrogate pair."""
    return isinstance(_storable(name), str)


def _token(row: tuple[Any, ...]) -> Token:
    token_id, owner, account_id, name, digest, scope, created_at, expires_at, last_used = row
    return Token(
        token_id=token_id,
        name=name,
        user=owner,
        account_id=account_id,
        digest=digest,
        scope=TokenScope(scope),
        created_at=_time(created_at),
        expires_at=None if expires_at is None else _time(expires_at),
        last_used=None if last_used is None else _time(last_used),
    )


def _user(row: tuple[str, str, bytes, int | None, int, str, int, int]) -> User:
    name, password, ticket_salt, expires_at, created_at, text, admin, disabled = row
    limits, damage = read_limits(text, of=name)
    return User(
        name=name,
        password=password,
        ticket_salt=ticket_salt,
        expires_at=None if expires_at is None else _time(expires_at),
        created_at=_time(created_at),
        limits=limits,
        admin=bool(admin),
        disabled=bool(disabled),
        damage=damage,
        account_id=created_at,
    )


def _storable(name: str) -> str | bytes:
    """Make a name one that SQLite can be asked for.

    A lone surrogate, as JSON can carry it from a peer, is no UTF-8: such a name is asked for as a blob, which no text equals.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode(errors="surrogatepass")
    return name


def _microseconds(moment: datetime | None) -> int | None:
    """Whole microseconds, exactly: `datetime.timestamp` is a float and rounds. Naive times raise `TypeError`."""
    return None if moment is None else (moment - _EPOCH) // _MICROSECOND


def _time(microseconds: int) -> datetime:
    return _EPOCH + microseconds * _MICROSECOND
