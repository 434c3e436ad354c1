"""The embedded store's file: how it is opened, and what is in it. Everything here blocks."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from trionat.errors import StoreDataError, StoreUnavailableError
from trionat.store.base import read_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_OF_WRITING: Final = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
}
"""What SQLite says where it cannot write, mostly as "disk I/O error". The last one is of a file that it has beside one that is read."""

MEMORY: Final = Path(":memory:")
"""What SQLite calls a database without a file: a new one for each connection, which nobody else can have."""

T = TypeVar("T")

_SCHEMA: Final = (
    # Version 1: accounts.
    (
        """create table users (
            name text primary key not null,  -- compared byte by byte: SQLite's default
            password_hash text not null,
            ticket_salt blob not null,
            expires_at integer,              -- microseconds since 1970, UTC
            created_at integer not null      -- likewise
        ) without rowid""",
    ),
    # Version 2: their limits, and traffic; that is by name, and stays when an account is removed.
    (
        "alter table users rename column password_hash to password",
        "alter table users add column limits text not null default ''",  # Limits.to_text
        "create table traffic (name text primary key not null, bytes integer not null) without rowid",
        """create table months (
            month text not null,             -- 2026-11, UTC
            name text not null,
            bytes integer not null,
            primary key (month, name)
        ) without rowid""",
        """create table flushes (
            server text primary key not null,
            number integer not null          -- of the last flush that was added
        ) without rowid""",
    ),
    # Version 3: whose the names of services are.
    (
        """create table names (
            name text primary key not null,
            owner text not null,             -- '': its account is gone
            used_at integer not null         -- microseconds since 1970, UTC
        ) without rowid""",
    ),
    # Version 4: of which account of that name.
    (
        "alter table names add column account_id integer not null default 0",  # its created_at
        """update names set account_id = coalesce(
            (select users.created_at from users where users.name = names.owner), 0
        )""",
        "create index names_by_owner on names (owner)",
        "create index names_by_use on names (used_at)",
    ),
    # Version 5: what accounts may do beside connecting, tokens, and traffic by day.
    (
        "alter table users add column admin integer not null default 0",
        "alter table users add column disabled integer not null default 0",
        # The account that an older server has made for itself, as long as it is the only one.
        "update users set admin = 1 where name = 'trionat' and (select count(*) from users) = 1",
        """create table tokens (
            id text primary key not null,
            owner text not null,
            account_id integer not null,     -- its created_at
            name text not null,
            digest blob not null unique,     -- SHA-256
            scope text not null,
            created_at integer not null,     -- microseconds since 1970, UTC
            expires_at integer,              -- likewise
            last_used integer,               -- likewise
            unique (owner, account_id, name)
        ) without rowid""",
        """create table days (
            day text not null,               -- 2026-11-29, UTC
            name text not null,
            bytes integer not null,
            primary key (day, name)
        ) without rowid""",
    ),
)
"""What makes each version of the schema out of the one before; `PRAGMA user_version` of the file tells how many it has."""

_BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for another process. Our own transactions take milliseconds: who holds the file longer is not one of us."""
_SWITCH_INTERVAL: Final = 0.01

_LOOKED_AT: Final = (
    ("users", "name, limits"),
    ("traffic", "name, bytes"),
    ("months", "name, bytes"),
    ("days", "name, bytes"),
)
"""Tables whose rows may be wrong in themselves, with a name and what has to be right."""

_ROWS_AT_ONCE: Final = 10_000
_MOST_FINDINGS: Final = 100

_PAGES_AT_ONCE: Final = 2048
"""Pages (of 4 KiB) that are copied before somebody hears of it."""


def open_file(path: Path) -> sqlite3.Connection:
    """Open the file, in autocommit mode, and bring its schema up to date; where there is none it is made (mode 0600).

    The connection is for any thread, but for one at a time.

    Raises:
        StoreUnavailableError: It cannot be opened, is no database of ours, or is a newer trionat's.
    """
    with translated(path):
        # SQLite would make it readable by everybody; its log beside it gets the same mode.
        if path != MEMORY:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(
            path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            _use_log(connection)
            # Not `normal`, which may lose the last commits with the machine's power: traffic is forgotten by its server once
            # it is added here.
            connection.execute("pragma synchronous = full")
            _migrate(path, connection)
        except BaseException:
            connection.close()
            raise
    return connection


def copy_file(
    path: Path,
    target: Path,
    *,
    meanwhile: Callable[[], T],
    told: Callable[[int, int], None] = lambda _done, _of: None,
) -> tuple[T, int]:
    """Copy the file as it is at one moment, while others read and write it, and bring nothing in it up to date.

    Args:
        path: The file; it has to be there.
        target: An empty file, for a database without a log beside it. It is not forced to the disk.
        meanwhile: Called once at that moment, in which nobody writes: what it reads belongs to what is copied. It has to be quick.
        told: Gets how many pages are copied, and of how many, again and again.

    Returns:
        What `meanwhile` has returned, and the version of the schema.

    Raises:
        StoreUnavailableError: It cannot be read, is no database of ours, or is a newer trionat's; or the copy cannot be written.
    """
    with (
        translated(path),
        _writing(path.parent, path),
        closing(_connect(path, "mode=rw")) as source,
        closing(sqlite3.connect(target, isolation_level=None)) as copy,
    ):
        with closing(_connect(path, "mode=rw")) as writer:
            writer.execute("begin immediate")
            source.execute("begin")
            version = _own_version(path, source)  # its first reading: what it sees stays so
            found = meanwhile()
            writer.execute("rollback")
        with _writing(target.parent, path):
            copy.execute("pragma journal_mode = off")
            source.backup(
                copy, pages=_PAGES_AT_ONCE, progress=lambda _, left, of: told(of - left, of)
            )
            source.execute("rollback")
            copy.execute("pragma journal_mode = delete")  # the page that was copied says otherwise
    return found, version


@contextmanager
def _writing(folder: Path, path: Path) -> Generator[None]:
    """Tell that a folder has no room for what a copy takes, instead of naming the file that is copied."""
    try:
        yield
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode not in _OF_WRITING:
            raise
        reason = f"{folder}: cannot write here, for a copy of {path.name} (is the disk full?)"
        raise StoreUnavailableError(f"{reason}: {exc}") from exc


def check_copy(path: Path) -> int:
    """Look through a file that `copy_file` may have made, and return the version of its schema; nothing is written.

    Nobody else has it open, and it may come from anybody.

    Raises:
        StoreUnavailableError: It is damaged, is no database of ours, or is a newer trionat's.
    """
    with translated(path), closing(_connect(path, "mode=ro&immutable=1")) as connection:
        connection.execute("pragma trusted_schema = off")
        version = _own_version(path, connection)
        if (damage := _damage(connection)) is not None:
            raise StoreUnavailableError(f"{path}: it is damaged: {damage}")
    return version


def check_file(path: Path, told: Callable[[int, int], None] = lambda _done, _of: None) -> list[str]:
    """Look for what is wrong in the file of a server that may run, at all of its rows; nothing is changed.

    `told` gets how many rows were looked at, and of how many (0 at first, while the file as a whole is), again and again.

    Returns:
        A line for each finding, with what to do; none where all is well.

    Raises:
        StoreUnavailableError: It cannot be read, is no database of ours, or is a newer trionat's.
    """
    with translated(path), closing(_connect(path, "mode=rw")) as connection:
        connection.execute("begin")
        _own_version(path, connection)
        told(0, 0)
        if (damage := _damage(connection)) is not None:
            return [f"{path}: it is damaged: {damage}: restore a backup (trionat state restore)"]
        tables = [
            (table, columns)
            for table, columns in _LOOKED_AT
            if set(columns.split(", ")) <= _columns(connection, table)
        ]
        of = sum(
            connection.execute(f"select count(*) from {table}").fetchone()[0]  # noqa: S608 - our own names
            for table, _ in tables
        )
        findings: list[str] = []
        done = 0
        for table, columns in tables:
            for name, value in connection.execute(f"select {columns} from {table}"):  # noqa: S608 - our own names
                done += 1
                if done % _ROWS_AT_ONCE == 0:
                    told(done, of)
                if len(findings) < _MOST_FINDINGS and (wrong := _wrong(table, name, value)):
                    findings.append(wrong)
        told(done, of)
    return findings


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    """Return the columns of a table; none where an older schema does not have it."""
    return {name for _, name, *_ in connection.execute(f"pragma table_info({table})")}


def _wrong(table: str, name: str, value: object) -> str:
    if table == "users":
        return read_limits(str(value), of=name)[1]
    if type(value) is not int or value < 0:
        return f"{table} has {value!r} as the bytes of {name!r}: correct it (sqlite3), or remove that row"
    return ""


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=_BUSY_TIMEOUT, isolation_level=None
    )


def _own_version(path: Path, connection: sqlite3.Connection) -> int:
    version = _version(connection)
    (users,) = connection.execute(
        "select count(*) from sqlite_master where type = 'table' and name = 'users'"
    ).fetchone()
    if version < 1 or not users:
        raise StoreUnavailableError(f"{path}: it is no database of trionat")
    _check_version(path, version)
    return version


def _check_version(path: Path, version: int) -> None:
    if version > len(_SCHEMA):
        raise StoreUnavailableError(
            f"{path}: written by a newer trionat (schema {version}, this one knows {len(_SCHEMA)}): update this one"
        )


def _damage(connection: sqlite3.Connection) -> str | None:
    """Return what SQLite finds wrong with a file first, or None."""
    (found,) = connection.execute("pragma quick_check(1)").fetchone()
    return None if found == "ok" else " ".join(str(found).split())


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
    newest = len(_SCHEMA)
    if _version(connection) == newest:
        return
    connection.execute("begin immediate")
    with connection:  # commits, or rolls back on an error
        version = _version(connection)  # again: another process may have been faster
        _check_version(path, version)
        for statements in _SCHEMA[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"pragma user_version = {newest}")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("pragma user_version").fetchone()
    return int(version)


@contextmanager
def translated(path: Path) -> Generator[None]:
    """Turn what SQLite and the system say of the file into `StoreUnavailableError`, but not our own mistakes.

    What depends on the values becomes a `StoreDataError`: text that is no UTF-8, a number above 2^63 - 1, or what a constraint or
    a trigger refuses that somebody has added.
    """
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # our own mistake, such as a closed store
    except (sqlite3.IntegrityError, sqlite3.DataError, UnicodeEncodeError, OverflowError) as exc:
        raise StoreDataError(f"{path}: {exc}") from exc
    except sqlite3.Error as exc:
        raise StoreUnavailableError(f"{path}: {exc}") from exc
    except OSError as exc:
        raise StoreUnavailableError(f"{path}: {exc.strerror or exc}") from exc
