"""The commands on a database: the same as on the file, and those that only a database has."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
from typer.testing import CliRunner

from tests.unit.commands import Outcome, Trionat
from trionat.cli import app
from trionat.protocol.ticket import Ticket
from trionat.server.state_folder import prepare_state
from trionat.store.base import Flush
from trionat.store.journal import Journal, save_journal
from trionat.store.mysql.check import check
from trionat.store.mysql.pool import open_pool
from trionat.store.mysql.schema import init

if TYPE_CHECKING:
    from pathlib import Path

    from tests.mariadb import MariaDB
    from trionat.config.database import DatabaseConfig


def on(trionat: Trionat, database: DatabaseConfig, file: Path) -> Trionat:
    """Write the configuration of a server on a database, and return the commands with it."""
    file.write_text(
        f"Database:\n  Username: {database.username}\n  Password: {database.password}\n"
        f"  Host: {database.host}\n  DBName: {database.db_name}\n"
    )
    return attrs.evolve(trionat, options=("--config", str(file)), database=database)


@pytest.fixture
def user(trionat: Trionat, mariadb: MariaDB, tmp_path: Path) -> Trionat:
    """`trionat user` on the tables of NAT, with an account that NAT has made."""
    database = mariadb.new_database()
    mariadb.sql(
        "insert into userInfo_userinfo (username, password) values ('nat', 'plain')",
        database.db_name,
    )
    return on(trionat, database, tmp_path / "server.yml")


def test_accounts_in_a_database(user: Trionat) -> None:
    added = user("add", "alice", "--expires", "2099-01-31", stdin="secret\n")
    assert (added.code, added.err) == (0, "")
    assert "there is a user 'alice' already" in user.fails(2, "add", "alice", stdin="x\n")
    assert user("limit", "alice", "--sessions", "2").code == 0
    assert user("expire", "alice", "never").out == "alice can log in for ever.\n"
    alice, nat = (json.loads(line) for line in user("list", "--json").out.splitlines())
    assert (alice["name"], alice["expires_at"], alice["limits"]["sessions"]) == ("alice", None, 2)
    assert (nat["name"], nat["created_at"], nat["expired"]) == ("nat", None, False)
    lines = user("list").out.splitlines()
    assert lines[0].startswith("alice  added ")
    assert lines[1:] == ["       limits: sessions 2", "nat    expires never"]
    assert user("passwd", "alice", stdin="other\n").code == 0
    assert user.password_is("alice", "other")
    assert user("remove", "alice").code == 0
    assert user("remove", "nat").code == 0
    assert user("list", "--json").out == ""
    assert user.fails(2, "expire", "nat", "1d") == "there is no user 'nat'"
    assert not user.folder.exists()  # nothing of all that is there


def db(*args: str) -> Outcome:
    """Run `trionat db …`."""
    result = CliRunner().invoke(app, ["db", *args], catch_exceptions=False)
    return Outcome(result.exit_code, result.stdout, result.stderr)


def test_missing_tables_are_made_once(trionat: Trionat, mariadb: MariaDB, tmp_path: Path) -> None:
    database = mariadb.new_database("")
    user = on(trionat, database, tmp_path / "server.yml")
    assert "trionat db init" in user.fails(3, "list")
    last = f"Database {database.db_name} at {database.address} has all tables."
    tables = ["userInfo_userinfo", "bars", "trionat_accounts", "trionat_months"]
    tables += ["trionat_flushes", "trionat_names"]
    tables += ["trionat_flags", "trionat_tokens", "trionat_days"]
    made = [f"made table {table}" for table in tables]
    assert db("init", *user.options) == Outcome(0, "\n".join([*made, last, ""]), "")
    assert db("init", *user.options) == Outcome(0, f"{last}\n", "")
    assert user("list", "--json") == Outcome(0, "", "")


def test_findings_are_told_a_line_each(user: Trionat, mariadb: MariaDB) -> None:
    """And nothing is changed by it."""
    assert user.database is not None
    outcome = db("check", *user.options)
    assert (outcome.code, outcome.err) == (6, "")
    lines = outcome.out.splitlines()
    assert lines[0].startswith("userInfo_userinfo has no index on username: ")
    assert any(line.startswith("1 passwords are in plain text: ") for line in lines)
    assert lines[-5].startswith("trionat_flushes is missing: ")
    assert lines[-4].startswith("trionat_names is missing: ")
    assert db("check", *user.options) == outcome
    tables = {row for (row,) in mariadb.sql("show tables", user.database.db_name)}
    assert tables == {"userInfo_userinfo", "bars"}


def test_a_database_that_init_has_made_is_well(
    trionat: Trionat, mariadb: MariaDB, tmp_path: Path
) -> None:
    database = mariadb.new_database("")
    user = on(trionat, database, tmp_path / "server.yml")
    db("init", *user.options)
    user("add", "alice", stdin="x\n")
    told = f"Database {database.db_name} at {database.address}: all is well.\n"
    assert db("check", *user.options) == Outcome(0, told, "")
    nobody = attrs.evolve(database, host="127.0.0.1:1")
    on(trionat, nobody, tmp_path / "server.yml")
    down = db("check", *user.options)
    assert (down.code, down.out) == (3, "")
    assert down.err.startswith("trionat: database 127.0.0.1:1: Connection refused")


def test_traffic_that_is_set_aside_is_a_finding(
    trionat: Trionat, mariadb: MariaDB, tmp_path: Path
) -> None:
    database = mariadb.new_database("")
    user = on(trionat, database, tmp_path / "server.yml")
    db("init", *user.options)
    prepare_state(user.folder)
    journal = Journal().counted("2026-11", {"\x1bna\u00efve": 5000}).attempt().refused()
    where = (*user.options, "--state-dir", str(user.folder))
    save_journal(user.folder, journal)
    outcome = db("check", *where)
    assert (outcome.code, outcome.err) == (6, "")
    assert outcome.out == (
        f"5000 bytes of '\\x1bnaïve' in 2026-11 are set aside in {user.folder}/traffic.json: the database refuses them:"
        " mend the table, as a line above or the server's log says, and restart the server or wait an hour: it tries again\n"
    )
    for number in range(30):
        journal = journal.counted("2026-12", {f"user {number}": 1}).attempt().refused()
    save_journal(user.folder, journal)
    lines = db("check", *where).out.splitlines()
    assert len(lines) == 21
    assert lines[-1].startswith("traffic of 11 more users and months is set aside in ")
    save_journal(user.folder, journal.retried())
    assert db("check", *where).code == 0


@pytest.mark.parametrize("command", ["init", "check"])
@pytest.mark.usefixtures("nothing_configured")
def test_without_a_database_there_is_nothing_to_make_or_check(command: str) -> None:
    outcome = db(command)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        "trionat: configuration: Database: there is no database: users live in a file of the state folder, which needs none"
        " of this; for MySQL or MariaDB add the section to server.yml\n"
    )


@pytest.mark.usefixtures("nothing_configured")
def test_the_file_of_a_state_folder_is_looked_at(tmp_path: Path) -> None:
    user = Trionat(folder=tmp_path / "state")
    user("add", "alice", stdin="x\n")
    where = ("--state-dir", str(user.folder))
    file = user.folder / "trionat.db"
    assert db("check", *where) == Outcome(0, f"{file}: all is well.\n", "")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("update users set limits = '[]'")
        connection.execute("insert into traffic values ('alice', 'much'), ('bob', 7), ('eve', -1)")
        connection.commit()
    outcome = db("check", *where)
    assert (outcome.code, outcome.err) == (6, "")
    assert outcome.out.splitlines() == [
        "the limits of 'alice' in the store are damaged: set all of them anew with trionat user limit",
        "traffic has 'much' as the bytes of 'alice': correct it (sqlite3), or remove that row",
        "traffic has -1 as the bytes of 'eve': correct it (sqlite3), or remove that row",
    ]
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    content = bytearray(file.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    file.write_bytes(content)
    damaged = db("check", *where)
    assert damaged.code == 6
    assert damaged.out.startswith(f"{file}: it is damaged: ")
    assert damaged.out.endswith(": restore a backup (trionat state restore)\n")


def test_many_rows_are_looked_at_a_few_at_once(mariadb: MariaDB) -> None:
    """More than a question may take: with names that are there twice in different parts, and how far it is."""
    database = mariadb.new_database()
    values = ",".join(f"('user{number}', '$argon2', now())" for number in range(45_000))
    mariadb.sql(
        f"insert into userInfo_userinfo (username, password, time) values {values}, ('user7', 'plain', now()), ('user7', '', now())",
        database.db_name,
    )
    told: list[tuple[str, int, int]] = []

    async def look() -> list[str]:
        async with open_pool(database) as pool:
            await init(pool)
            return await check(pool, told=lambda *each: told.append(each))

    findings = [line for line in trio.run(look) if "no index" not in line]
    assert findings[0].startswith(
        "userInfo_userinfo has several rows of 'user7' (user_id 8, 45001, 45002): "
    )
    assert [line.partition(":")[0] for line in findings[1:]] == [
        "1 passwords are in plain text",
        "1 passwords are empty",
    ]
    counted = [each for each in told if each[2]]
    assert counted[:3] == [("userInfo_userinfo", done, 45_002) for done in (20_000, 40_000, 45_002)]


@pytest.mark.parametrize("name", ["alice", "nat"])
def test_tickets_need_the_key_of_the_state_folder(user: Trionat, name: str) -> None:
    """One made in a mistyped folder would be of no use, and nobody would know why."""
    user("add", "alice", stdin="x\n")
    where = ("--public-addr", "example.com")
    reason = user.fails(3, "ticket", name, *where)
    assert reason.startswith(f"{user.folder}/ticket.key: there is no key of tickets here: ")
    assert not user.folder.exists()
    prepare_state(user.folder)
    first = user("ticket", name, *where)
    assert user("ticket", name, *where) == first
    assert Ticket.decode(first.out).username == name
    assert user.accepts(name, first.out)
    renewed = user("ticket", name, "--renew", *where)
    assert user.accepts(name, renewed.out)
    assert not user.accepts(name, first.out)


def test_traffic_in_a_database(user: Trionat) -> None:
    user("limit", "nat", "--quota", "1G")
    flush = Flush(server="0" * 32, number=1, month="2026-11", amounts={"nat": 1500, "eve": 7})
    assert user.ask(lambda store: store.add_traffic(flush))
    shown = attrs.evolve(user, command="traffic")("--month", "2026-11")
    assert shown.out.splitlines() == [
        "user  in all  2026-11",
        "nat   1.5 kB  1.5 kB of 1.0 GB",
        "eve      7 B  7 B",
    ]


def test_a_database_that_cannot_be_asked_is_told(user: Trionat, tmp_path: Path) -> None:
    assert user.database is not None
    nobody = attrs.evolve(user.database, host="127.0.0.1:1")
    told = on(user, nobody, tmp_path / "server.yml").fails(3, "add", "alice", stdin="x\n")
    assert told == (
        "database 127.0.0.1:1: Connection refused: is it running, and is Database.Host right?"
    )
