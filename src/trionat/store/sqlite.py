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
from typing import TYPE_CHECKING, Final, TypeVar

import attrs
import trio

from trionat.errors import StoreError
from trionat.store.base import User, read_limits
from trionat.store.sqlite_file import open_file, translated

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncGenerator, Callable, Collection, Mapping
    from pathlib import Path

    from trionat.store.base import Flush, Limits

T = TypeVar("T")

_COLUMNS: Final = "name, password, ticket_salt, expires_at, created_at, limits"
_SELECT: Final = f"select {_COLUMNS} from users"  # noqa: S608 - our own column names

_CLOSE_GRACE: Final = 2.0
"""Seconds to wait at the end for the call that is running. It may wait for another process, or for a disk that hangs."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


@asynccontextmanager
async def open_sqlite_store(path: Path) -> AsyncGenerator[SQLiteStore]:
    """Give the store in that file, which is opened by the first call; where there is none it is made (mode 0600).

    The folder must exist. Leaving closes the file, behind the call that is running; where that takes longer than 2 s, the call itself
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
    the microsecond in which it was made.
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
            found = (
                connection.execute(f"{_SELECT} where name = ?", (_storable(name),)).fetchone()
                for name in names
            )
            return {row[0]: _user(row) for row in found if row is not None}

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
            f"insert into users ({_COLUMNS}) values (?, ?, ?, ?, ?, ?) on conflict do nothing",  # noqa: S608 - our own column names
            user.name,
            user.password,
            user.ticket_salt,
            _microseconds(user.expires_at),
            _microseconds(user.created_at or datetime.now(UTC)),
            user.limits.to_text(),
        )
        if not added:
            raise StoreError(f"there is a user {user.name!r} already")

    async def remove_user(self, name: str) -> None:
        """Remove an account; its traffic stays. `StoreError` where there is none."""
        await self._change_user(name, "delete from users where name = ?")

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

    async def set_limits(self, name: str, limits: Limits) -> None:
        """Replace all limits of an account; `StoreError` where there is none."""
        await self._change_user(
            name, "update users set limits = ? where name = ?", limits.to_text()
        )

    async def add_traffic(self, flush: Flush) -> bool:
        """Add a flush to the totals and to its month, wholly and once; tell whether this call did."""

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


def _user(row: tuple[str, str, bytes, int | None, int, str]) -> User:
    name, password, ticket_salt, expires_at, created_at, text = row
    limits, damage = read_limits(text, of=name)
    return User(
        name=name,
        password=password,
        ticket_salt=ticket_salt,
        expires_at=None if expires_at is None else _time(expires_at),
        created_at=_time(created_at),
        limits=limits,
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
