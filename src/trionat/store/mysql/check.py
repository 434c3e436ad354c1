"""What may be wrong with a database, told to people by `trionat db check`. Nothing is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trionat.store.mysql.schema import GIVEN, OWN

if TYPE_CHECKING:
    from trionat.store.mysql.pool import Link, Pool

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

_TOLD: Final = 10
"""Names with several rows that are told one by one; who has more has one cause for all of them."""


async def check(pool: Pool) -> list[str]:
    """Look for what does not work, or not as expected.

    Returns:
        A line for each finding, with its consequence and what to do; none where all is well.

    Raises:
        StoreUnavailableError: The database cannot be asked.
    """

    async def look(link: Link) -> list[str]:
        findings: list[str] = []
        engines = await _engines(link)
        for table in (*GIVEN, *OWN):
            if table.lower() not in engines:
                findings.append(f"{table} is missing: {_USES[table][1]}: run trionat db init")
                continue
            if (engine := engines[table.lower()]) != "InnoDB":
                findings.append(
                    f"{table} is kept by {engine}: a change may be made by half, and traffic be lost or counted twice: "
                    f"alter table {table} engine = InnoDB"
                )
            broken = await _refusals(link, table, pool.config.username)
            if table in GIVEN:
                columns = await _columns(link, table)
                broken += [
                    f"{table} has no column {column}: {_USES[table][1]}: is it the Go program's?"
                    for column in _TYPES[table]
                    if column not in columns
                ]
                findings += _unfit(table, columns)
                findings += await _missing_index(link, table)
            findings += broken
            if not broken and table == "userInfo_userinfo":
                findings += await _doubles(
                    link,
                    table,
                    "only the first is the account, and the next comes up when somebody removes that: delete the others",
                )
                findings += await _passwords(link)
            elif not broken and table == "bars":
                findings += await _doubles(
                    link,
                    table,
                    "the total is their sum, and the Go program adds to each: put the sum into the first and delete the others",
                )
        return findings

    return await pool.run(look)


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


async def _doubles(link: Link, table: str, consequence: str) -> list[str]:
    key = _USES[table][0]
    rows = await link.ask(
        f"select min(username), group_concat({key} order by {key} separator ', ') from {table} "
        f"group by cast(username as binary) having count(*) > 1 order by min({key}) limit {_TOLD + 1}",
    )
    findings = [
        f"{table} has several rows of {name!r} ({key} {keys}): {consequence}"
        for name, keys in rows[:_TOLD]
    ]
    if len(rows) > _TOLD:
        findings.append(f"{table} has several rows of other names as well: {consequence}")
    return findings


async def _passwords(link: Link) -> list[str]:
    ((plain, empty),) = await link.ask(
        "select count(*), coalesce(sum(password = ''), 0) from userInfo_userinfo where password not like '$argon2%%'"
    )
    findings: list[str] = []
    if plain > empty:
        findings.append(
            f"{plain - empty} passwords are in plain text: whoever reads the table has them: "
            "Database.UpgradePasswords: true replaces each at its next login"
        )
    if empty:
        findings.append(
            f"{empty} passwords are empty: nobody can log in by them: set one with trionat user passwd"
        )
    return findings
