"""What may be wrong with a database, told to people by `trionat db check`. Nothing is changed."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from trionat.store.mysql.schema import GIVEN, OWN

if TYPE_CHECKING:
    from trionat.store.mysql.pool import Link, Pool

Told: TypeAlias = Callable[[str, int, int], None]

_READING = "nobody can log in"
_WRITING = "accounts cannot be added, changed or removed"
_COUNTING = "traffic cannot be added"
_NAMING = "no service can have a name"
_ASKING = "the API takes no token"
_MAKING = "tokens cannot be made or revoked"
_USES: Final = {
    "userInfo_userinfo": ("user_id", _READING, _WRITING),
    "bars": ("id", _COUNTING, _COUNTING),
    "trionat_accounts": ("user_id", _READING, _WRITING),
    "trionat_months": ("month", _COUNTING, _COUNTING),
    "trionat_names": ("name", _NAMING, _NAMING),
    "trionat_flushes": ("server", _COUNTING, f"{_COUNTING}, and {_WRITING}"),
    "trionat_flags": ("user_id", _READING, _WRITING),
    "trionat_tokens": ("id", _ASKING, f"{_MAKING}, and {_WRITING}"),
    "trionat_days": ("day", _COUNTING, _COUNTING),
}
"""Of each table its key, and what does not work if it cannot be read, or not be written."""

_TYPES: Final = {
    "userInfo_userinfo": {
        "user_id": "int",
        "username": "varchar",
        "password": "varchar",
        "time": "datetime",
    },
    "bars": {"id": "bigint", "bar": "bigint", "username": "varchar"},
}
"""What is used of the two given tables, with the types that the Go program gave them."""

_SEVERAL: Final = {
    "userInfo_userinfo": "only the first is the account, and the next comes up when somebody removes that: delete the others",
    "bars": "the total is their sum, and the Go program adds to each: put the sum into the first and delete the others",
}
"""The tables in which a name has one row, and what follows if it has several."""

_ROWS: Final = 20_000
"""That are read at once: some 0.1 s."""

_KEYS_TOLD: Final = 100
_TOLD: Final = 10
"""Names with several rows that are told one by one; who has more has one cause for all of them."""


async def check(pool: Pool, told: Told = lambda _table, _done, _of: None) -> list[str]:
    """Look for what does not work, or not as expected. Each question is a short one, within `Database.Timeout`, however many rows there are.

    Args:
        pool: The database.
        told: Gets which table is looked at, how many of its rows were, and of how many, again and again.

    Returns:
        A line for each finding, with its consequence and what to do; none where all is well.

    Raises:
        StoreUnavailableError: The database cannot be asked.
    """
    findings: list[str] = []
    engines = await pool.run(_engines)
    for table in (*GIVEN, *OWN):
        told(table, 0, 0)
        if table.lower() not in engines:
            findings.append(f"{table} is missing: {_USES[table][1]}: run trionat db init")
            continue
        if (engine := engines[table.lower()]) != "InnoDB":
            findings.append(
                f"{table} is kept by {engine}: a change may be made by half, and traffic be lost or counted twice: "
                f"alter table {table} engine = InnoDB"
            )
        unfit, broken = await pool.run(partial(_look, table=table, username=pool.config.username))
        findings += unfit + broken
        if not broken and table in _SEVERAL:
            findings += await _look_at_rows(pool, table, told)
    return findings


async def _look(link: Link, *, table: str, username: str) -> tuple[list[str], list[str]]:
    """Return what does not fit in a table, and what makes it unusable."""
    broken = await _refusals(link, table, username)
    if table not in GIVEN:
        return [], broken
    columns = await _columns(link, table)
    broken += [
        f"{table} has no column {column}: {_USES[table][1]}: is it the Go program's?"
        for column in _TYPES[table]
        if column not in columns
    ]
    return _unfit(table, columns) + await _missing_index(link, table), broken


async def _engines(link: Link) -> dict[str, str]:
    """Return what keeps each table that can be seen, by its name in small letters: some servers have names so."""
    rows = await link.ask(
        "select table_name, engine from information_schema.tables where table_schema = database()"
    )
    return {table.lower(): engine for table, engine in rows}


async def _columns(link: Link, table: str) -> dict[str, tuple[str, str | None]]:
    """Return type and character set of a table's columns."""
    rows = await link.ask(
        "select column_name, data_type, character_set_name from information_schema.columns "
        "where table_schema = database() and table_name = %s",
        table,
    )
    return {name: (data_type, characters) for name, data_type, characters in rows}


async def _refusals(link: Link, table: str, username: str) -> list[str]:
    """Try what is needed of a table, on no row; return what the database does not let us do."""
    key, unread, unwritten = _USES[table]
    nothing = f"where {key} is null"
    trials = {
        f"select * from {table} {nothing}": unread,
        f"insert into {table} select * from {table} {nothing}": unwritten,
        f"update {table} set {key} = {key} {nothing}": unwritten,
    }
    if table != "bars":  # the only one that nothing is removed from
        trials[f"delete from {table} {nothing}"] = unwritten
    refusals: dict[str, str] = {}
    for trial, consequence in trials.items():
        if refusal := await link.refusal(trial):
            refusals.setdefault(refusal, consequence)  # all but the first read, too
    return [
        f"{refusal}: {consequence}: grant it to {username!r}"
        for refusal, consequence in refusals.items()
    ]


def _unfit(table: str, columns: dict[str, tuple[str, str | None]]) -> list[str]:
    findings: list[str] = []
    for column, expected in _TYPES[table].items():
        data_type, characters = columns.get(column, (expected, None))
        if data_type != expected:
            findings.append(
                f"{table}.{column} is {data_type}, not {expected}: what it cannot hold is refused: alter it to {expected}"
            )
        elif characters not in (None, "utf8mb4"):
            findings.append(
                f"{table}.{column} is in {characters}: names and passwords with other characters are refused: "
                f"alter table {table} convert to character set utf8mb4"
            )
    return findings


async def _missing_index(link: Link, table: str) -> list[str]:
    indexed = await link.ask(
        "select 1 from information_schema.statistics where table_schema = database() and table_name = %s "
        "and column_name = 'username' and seq_in_index = 1",
        table,
    )
    if indexed:
        return []
    return [
        f"{table} has no index on username: all of it is read for every name: alter table {table} add index (username)"
    ]


async def _look_at_rows(pool: Pool, table: str, told: Told) -> list[str]:
    """Return which names have several rows, and how many passwords are not as they should be."""
    digests = array("Q")  # 8 bytes for each of perhaps millions of names
    plain, empty = 0, 0

    def count(_key: int, name: str, is_plain: int, is_empty: int) -> None:
        nonlocal plain, empty
        digests.append(_digest(name))
        plain += is_plain
        empty += is_empty

    await _read_rows(pool, table, told, count)
    findings: list[str] = []
    if doubles := _doubles(digests):
        findings += await _several(pool, table, doubles, told)
    if plain:
        findings.append(
            f"{plain} passwords are in plain text: whoever reads the table has them: "
            "Database.UpgradePasswords: true replaces each at its next login"
        )
    if empty:
        findings.append(
            f"{empty} passwords are empty: nobody can log in by them: set one with trionat user passwd"
        )
    return findings


async def _read_rows(
    pool: Pool, table: str, told: Told, take: Callable[[int, str, int, int], None]
) -> None:
    """Give each row to `take`, in the order of their key: key, name, and whether the password is plain, or empty."""
    key = _USES[table][0]
    ((of,),) = await pool.run(lambda link: link.ask(f"select count(*) from {table}"))
    password = (
        "coalesce(password <> '' and password not like '$argon2%%', 0), coalesce(password = '', 0)"
        if "password" in _TYPES[table]
        else "0, 0"
    )
    last, done = -(1 << 63), 0

    async def ask(link: Link) -> list[tuple[Any, ...]]:
        return await link.ask(
            f"select {key}, coalesce(username, ''), {password} from {table} where {key} > %s order by {key} limit {_ROWS}",
            last,
        )

    while rows := await pool.run(ask):
        for row in rows:
            take(*row)
        last, done = rows[-1][0], done + len(rows)
        told(table, done, of)


def _digest(name: str) -> int:
    """Return 64 bits for a name, byte by byte: a collation counts more names as the same."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _doubles(digests: array[int]) -> set[int]:
    ordered = sorted(digests)
    return {one for one, other in pairwise(ordered) if one == other}


async def _several(pool: Pool, table: str, doubles: set[int], told: Told) -> list[str]:
    """Read the names anew of which there are several, and tell the first of them, with their keys."""
    keys: dict[str, list[int]] = {}
    more = False

    def note(key: int, name: str, _plain: int, _empty: int) -> None:
        nonlocal more
        if _digest(name) not in doubles:
            return
        if name in keys or len(keys) < _TOLD:
            keys.setdefault(name, []).append(key)
        else:
            more = True

    await _read_rows(pool, table, told, note)
    consequence = _SEVERAL[table]
    findings = [
        f"{table} has several rows of {name!r} ({_USES[table][0]} {_listed(found)}): {consequence}"
        for name, found in keys.items()
        if len(found) > 1
    ]
    if more:
        findings.append(f"{table} has several rows of other names as well: {consequence}")
    return findings


def _listed(keys: list[int]) -> str:
    shown = ", ".join(map(str, keys[:_KEYS_TOLD]))
    return shown if len(keys) <= _KEYS_TOLD else f"{shown} and {len(keys) - _KEYS_TOLD} more"
