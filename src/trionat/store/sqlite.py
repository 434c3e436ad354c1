"""The embedded user store: one SQLite file in the server's state folder.

Every call is one statement, and so whole or not at all. It runs in a thread, one at a time (`sqlite3` connections are not for
several threads at once), and takes some 100 µs. The write-ahead log lets `trionat user` write while a server reads; a call waits
up to 5 s for another process that is writing.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from trionat.errors import StoreError, StoreUnavailableError
from trionat.store.base import User

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator
    from pathlib import Path

_VERSION: Final = 1
"""Of the schema; kept in the file as `PRAGMA user_version`."""

_SCHEMA: Final = """
    create table users (
        name text primary key not null,  -- compared byte by byte: SQLite's default
        password_hash text not null,
        ticket_salt blob not null,
        expires_at integer,              -- microseconds since 1970, UTC
        created_at integer not null      -- likewise
    ) without rowid
"""
_COLUMNS: Final = "name, password_hash, ticket_salt, expires_at, created_at"

_BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for another process. Our own transactions take milliseconds: who holds the file longer is not one of us."""
_SWITCH_INTERVAL: Final = 0.01

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


@asynccontextmanager
async def open_sqlite_store(path: Path) -> AsyncGenerator[SQLiteStore]:
    """Open the store, making the file (mode 0600) where there is none; its folder must exist.

    Cancelling is safe at any point; the file is closed before this returns.

    Raises:
        StoreUnavailableError: The file cannot be opened, is no database of ours, or is a newer trionat's.
    """
    limiter = trio.CapacityLimiter(1)
    connection = await trio.to_thread.run_sync(_connect, path, limiter=limiter)
    try:
        yield SQLiteStore(path=path, connection=connection, limiter=limiter)
    finally:
        # Not bounded in time: it waits for our own statement at most, and that for `_BUSY_TIMEOUT`.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(connection.close, limiter=limiter)


@attrs.define(eq=False, kw_only=True)
class SQLiteStore:
    """A `Store` in an SQLite file; made by `open_sqlite_store`.

    A call that is cancelled while it waits for its turn does nothing; one that is running is finished first, and its change
    stays.
    """

    path: Path
    _connection: sqlite3.Connection = attrs.field(alias="connection")
    _limiter: trio.CapacityLimiter = attrs.field(alias="limiter")

    async def find_user(self, name: str) -> User | None:
        """Return the account of that name, or None."""
        rows, _ = await self._execute(
            f"select {_COLUMNS} from users where name = ?",  # noqa: S608 - our own column names
            _storable(name),
        )
        return _user(rows[0]) if rows else None

    async def list_users(self) -> list[User]:
        """Return every account, sorted by name."""
        rows, _ = await self._execute(f"select {_COLUMNS} from users order by name")  # noqa: S608 - our own column names
        return list(map(_user, rows))

    async def add_user(self, user: User) -> None:
        """Add an account; `StoreError` where the name is taken."""
        _, added = await self._execute(
            f"insert into users ({_COLUMNS}) values (?, ?, ?, ?, ?) on conflict do nothing",  # noqa: S608 - likewise
            user.name,
            user.password_hash,
            user.ticket_salt,
            _microseconds(user.expires_at),
            _microseconds(user.created_at),
        )
        if not added:
            raise StoreError(f"there is a user {user.name!r} already")

    async def remove_user(self, name: str) -> None:
        """Remove an account; `StoreError` where there is none."""
        await self._change(name, "delete from users where name = ?")

    async def set_password_hash(self, name: str, password_hash: str, ticket_salt: bytes) -> None:
        """Replace password and salt together; `StoreError` where there is no such account."""
        await self._change(
            name,
            "update users set password_hash = ?, ticket_salt = ? where name = ?",
            password_hash,
            ticket_salt,
        )

    async def set_ticket_salt(self, name: str, ticket_salt: bytes) -> None:
        """Replace the salt alone; `StoreError` where there is no such account."""
        await self._change(name, "update users set ticket_salt = ? where name = ?", ticket_salt)

    async def set_expiry(self, name: str, expires_at: datetime | None) -> None:
        """Set when the account ends (aware), or that it never does; `StoreError` where there is no such account."""
        await self._change(
            name, "update users set expires_at = ? where name = ?", _microseconds(expires_at)
        )

    async def _change(self, name: str, statement: str, *values: object) -> None:
        """Run a statement whose last parameter is the name of an account that has to exist."""
        _, changed = await self._execute(statement, *values, _storable(name))
        if not changed:
            raise StoreError(f"there is no user {name!r}")

    async def _execute(self, statement: str, *values: object) -> tuple[list[Any], int]:
        """Run one statement in the thread; return its rows, and how many it changed."""

        def run() -> tuple[list[Any], int]:
            with _translated(self.path):
                cursor = self._connection.execute(statement, values)
                return cursor.fetchall(), cursor.rowcount

        return await trio.to_thread.run_sync(run, limiter=self._limiter)


def _connect(path: Path) -> sqlite3.Connection:
    """Open the file and bring its schema up to date. Blocks."""
    with _translated(path):
        # SQLite would make it readable by everybody; its log beside it gets the same mode.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        # Autocommit, as every call is one statement; any thread, as the limiter lets one in at a time.
        connection = sqlite3.connect(
            path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            _use_log(connection)
            connection.execute("pragma synchronous = normal")
            _migrate(path, connection)
        except BaseException:
            connection.close()
            raise
    return connection


def _use_log(connection: sqlite3.Connection) -> None:
    """Switch to the write-ahead log; the file remembers it.

    Of several processes that switch a new file at once SQLite refuses some right away, whatever the timeout (it would be a
    deadlock to wait while one reads): they ask again.
    """
    deadline = time.monotonic() + _BUSY_TIMEOUT
    while True:
        try:
            connection.execute("pragma journal_mode = wal")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_SWITCH_INTERVAL)
        else:
            return


def _migrate(path: Path, connection: sqlite3.Connection) -> None:
    if _version(connection) == _VERSION:
        return
    connection.execute("begin immediate")
    with connection:  # commits, or rolls back on an error
        version = _version(connection)  # again: another process may have been faster
        if version > _VERSION:
            raise StoreUnavailableError(
                f"{path}: written by a newer trionat (schema {version}, this one knows {_VERSION}): update this one"
            )
        if version == 0:
            connection.execute(_SCHEMA)
            connection.execute(f"pragma user_version = {_VERSION}")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("pragma user_version").fetchone()
    return int(version)


@contextmanager
def _translated(path: Path) -> Generator[None]:
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # our own mistake, such as a closed store
    except sqlite3.Error as exc:
        raise StoreUnavailableError(f"{path}: {exc}") from exc
    except OSError as exc:
        raise StoreUnavailableError(f"{path}: {exc.strerror or exc}") from exc


def _storable(name: str) -> str | bytes:
    """Make a name one that SQLite can be asked for.

    A lone surrogate, as JSON can carry it from a peer, is no UTF-8: such a name is asked for as a blob, which no text equals.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode(errors="surrogatepass")
    return name


def _user(row: tuple[str, str, bytes, int | None, int]) -> User:
    name, password_hash, ticket_salt, expires_at, created_at = row
    return User(
        name=name,
        password_hash=password_hash,
        ticket_salt=ticket_salt,
        expires_at=None if expires_at is None else _time(expires_at),
        created_at=_time(created_at),
    )


def _microseconds(moment: datetime | None) -> int | None:
    """Whole microseconds, exactly: `datetime.timestamp` is a float and rounds. Naive times raise `TypeError`."""
    return None if moment is None else (moment - _EPOCH) // _MICROSECOND


def _time(microseconds: int) -> datetime:
    return _EPOCH + microseconds * _MICROSECOND
