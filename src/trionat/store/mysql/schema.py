"""The tables: two as the Go program has them, which are never altered, and trionat's own beside them.

What a store has to know of the two: an UPDATE of `userInfo_userinfo` that does not set `time` itself sets it to now, and so
expires the account. `username` is not unique in either, and compared without case, by some collations without trailing
blanks as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trionat.errors import StoreUnavailableError
from trionat.store.mysql import hostnames

if TYPE_CHECKING:
    from trionat.store.mysql.pool import Link, Pool

GIVEN: Final = {
    "userInfo_userinfo": """create table if not exists userInfo_userinfo (
        user_id int not null auto_increment primary key,
        username varchar(255) not null,
        password varchar(255) not null,
        email varchar(254) default '00000000@test.com',
        flag tinyint(1) not null default 0,
        `time` datetime(6) null default null on update current_timestamp(6),
        key username (username)
    )""",
    "bars": """create table if not exists bars (
        id bigint not null auto_increment primary key,
        bar bigint not null,
        username varchar(255) not null,
        key username (username)
    )""",
}
"""Made by `init` alone, and only where they are missing; the index is ours, the Go program does not mind it."""

OWN: Final = {
    "trionat_accounts": """create table if not exists trionat_accounts (
        user_id int not null primary key,  -- of userInfo_userinfo
        ticket_salt char(32) null,         -- hexadecimal
        seal char(64) null,                -- which password the salt goes with, see accounts.py
        created_at datetime(6) null,       -- UTC
        limits mediumtext null             -- Limits.to_text
    )""",
    "trionat_months": """create table if not exists trionat_months (
        month char(7) not null,            -- 2026-11, UTC
        username varbinary(1020) not null, -- UTF-8, compared byte by byte
        bytes bigint not null,
        primary key (month, username)
    )""",
    "trionat_flushes": """create table if not exists trionat_flushes (
        server char(32) not null primary key, -- '' is nobody's: its row is the lock of all changes
        number bigint not null                -- of the last flush that was added
    )""",
    "trionat_names": """create table if not exists trionat_names (
        name varchar(253) character set ascii collate ascii_bin not null primary key,
        owner varbinary(1020) not null,    -- UTF-8; '': its account is gone
        account_id bigint not null,        -- its user_id: a later account of the same name has another one
        used_at datetime(6) not null,      -- UTC
        key owner (owner),
        key used_at (used_at)
    )""",
    # Not columns of trionat_accounts: an older trionat on the same database counts those.
    "trionat_flags": """create table if not exists trionat_flags (
        user_id int not null primary key,  -- of userInfo_userinfo
        owner varbinary(1020) not null,    -- its name, UTF-8: a later account with that number and another name has no flag
        admin tinyint(1) not null default 0,
        disabled tinyint(1) not null default 0
    )""",
    "trionat_tokens": """create table if not exists trionat_tokens (
        id char(12) character set ascii collate ascii_bin not null primary key,
        owner varbinary(1020) not null,    -- UTF-8
        account_id bigint not null,        -- its user_id: a later account of the same name has another one
        name varbinary(256) not null,      -- UTF-8
        digest binary(32) not null,        -- SHA-256
        scope varchar(16) character set ascii collate ascii_bin not null,
        created_at datetime(6) not null,   -- UTC, as the others
        expires_at datetime(6) null,
        last_used datetime(6) null,
        unique key digest (digest),
        key owner (owner)
    )""",
    "trionat_days": """create table if not exists trionat_days (
        day char(10) character set ascii collate ascii_bin not null, -- 2026-11-29, UTC
        username varbinary(1020) not null, -- UTF-8, compared byte by byte
        bytes bigint not null,
        primary key (day, username)
    )""",
}

_OPTIONS: Final = """engine = InnoDB default character set utf8mb4
    /*!80000 collate utf8mb4_0900_ai_ci */ /*M! collate utf8mb4_unicode_520_ci */"""
"""The collation that the Go program asks for, for MySQL, and the nearest that every MariaDB has: 10.11 does not know the other.
MariaDB skips the first comment, MySQL the second."""

_OWN_OPTIONS: Final = "engine = InnoDB default character set utf8mb4 collate utf8mb4_bin"


async def prepare(pool: Pool) -> None:
    """Make trionat's own tables where they are missing; the two given ones have to be there.

    Raises:
        StoreUnavailableError: They are not, or the database cannot be asked, or it does not let us make tables.
    """
    there = await pool.run(find_tables)
    for table in GIVEN:
        if table.lower() not in there:
            raise StoreUnavailableError(
                f"database {pool.config.address}: there is no table {table} in {pool.config.db_name!r}: "
                "check Database.DBName, or run trionat db init"
            )
    await _make_own(pool, there)


async def init(pool: Pool) -> list[str]:
    """Make every table that is missing, and leave those that are there as they are.

    Returns:
        The names of those that were made.

    Raises:
        StoreUnavailableError: The database cannot be asked, or it does not let us make tables.
    """
    there = await pool.run(find_tables)
    made = await _make(pool, GIVEN, there, _OPTIONS)
    return made + await _make_own(pool, there)


async def _make_own(pool: Pool, there: set[str]) -> list[str]:
    made = await _make(pool, OWN, there, _OWN_OPTIONS)
    if "trionat_names" in there:
        await pool.run(hostnames.complete)
    return made


async def _make(pool: Pool, tables: dict[str, str], there: set[str], options: str) -> list[str]:
    missing = [table for table in tables if table.lower() not in there]

    async def make(link: Link) -> None:
        for table in missing:
            await link.change(f"{tables[table]} {options}")

    if missing:
        await pool.run(make)
    return missing


async def find_tables(link: Link) -> set[str]:
    """Return the names of the tables in small letters: some servers keep them so."""
    rows = await link.ask(
        "select table_name from information_schema.tables where table_schema = database()"
    )
    return {name.lower() for (name,) in rows}
