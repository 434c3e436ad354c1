"""What is special about MySQL and MariaDB: the Go program's tables and their traps, and a database that fails."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from tests.mariadb import HOST, make_authority
from trionat.errors import (
    NameTakenError,
    StartupError,
    StoreDataError,
    StoreError,
    StoreUnavailableError,
)
from trionat.server.accounts.traffic import Traffic
from trionat.store.backend import open_store
from trionat.store.base import Flush, Limits, User
from trionat.store.journal import Journal
from trionat.store.mysql.check import check
from trionat.store.mysql.pool import open_pool
from trionat.store.mysql.schema import init, prepare
from trionat.store.mysql.store import MySQLStore
from trionat.store.tokens import Token, TokenScope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.mariadb import MariaDB
    from trionat.config.database import DatabaseConfig
    from trionat.store.mysql.pool import Link, Pool

SALT = b"sixteen bytes ok"
EXPIRY = "2030-01-02 03:04:05.678901"
SERVER = "a" * 32
LONG = "select sleep(1)"
"""To be cancelled. Not so long that the database has to end it: a server that ends many sleeps lets nobody in for seconds."""


@pytest.fixture
def database(mariadb: MariaDB) -> DatabaseConfig:
    """The database of a Go program, which trionat has never seen."""
    return mariadb.new_database()


@asynccontextmanager
async def opened(database: DatabaseConfig, seconds: float = 5.0) -> AsyncIterator[MySQLStore]:
    """Give the store, with our own tables made; these may take longer than the timeout."""
    async with open_pool(database) as pool:
        await prepare(pool)
    async with open_pool(attrs.evolve(database, timeout=seconds)) as pool:
        yield MySQLStore(pool)


def add_row(
    mariadb: MariaDB,
    database: DatabaseConfig,
    name: str,
    password: str = "secret",
    time: str | None = None,
) -> None:
    """Add an account as the Go program does."""
    when = "null" if time is None else f"'{time}'"
    mariadb.sql(
        f"insert into userInfo_userinfo (username, password, time) values ('{name}', '{password}', {when})",
        database.db_name,
    )


def rows(mariadb: MariaDB, database: DatabaseConfig, question: str) -> list[tuple[str, ...]]:
    return mariadb.sql(question, database.db_name)


def flush(number: int, **amounts: int) -> Flush:
    return Flush(server=SERVER, number=number, month="2026-11", amounts=amounts)


# --- the tables of the Go program ---


async def test_no_change_but_that_of_the_expiry_changes_the_expiry(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    add_row(mariadb, database, "never")
    add_row(mariadb, database, "later", time=EXPIRY)
    async with opened(database) as store:
        for name in ("never", "later"):
            assert await store.upgrade_password(name, "secret", "hash")
            await store.set_password(name, "another hash", SALT)
            await store.set_ticket_salt(name, SALT)
            await store.change_user(
                name, lambda each: attrs.evolve(each, limits=Limits(sessions=1), damage="")
            )
        assert rows(mariadb, database, "select time from userInfo_userinfo order by user_id") == [
            ("NULL",),
            (EXPIRY,),
        ]
        await store.set_expiry("later", None)
        await store.set_expiry("never", datetime.fromisoformat(f"{EXPIRY}+05:00"))
        assert rows(mariadb, database, "select time from userInfo_userinfo order by user_id") == [
            ("2030-01-01 22:04:05.678901",),
            ("NULL",),
        ]


async def test_names_that_the_database_takes_for_one_are_several(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    names = ["alice", "Alice", "alice ", "ALICE", "álice"]
    for name in names:
        add_row(mariadb, database, name, password=f"of {name}")
    question = "select count(*) from userInfo_userinfo where username = 'aLiCe'"
    assert rows(mariadb, database, question) == [(str(len(names)),)]  # it does
    async with opened(database) as store:
        found = await store.find_users(names)
        assert {name: user.password for name, user in found.items()} == {
            name: f"of {name}" for name in names
        }
        assert len({user.account_id for user in found.values()}) == len(names)
        assert [user.name for user in await store.list_users()] == sorted(names)
        assert await store.find_user("aLiCe") is None
        await store.set_password("ALICE", "hash", SALT)
        await store.remove_user("alice ")
        with pytest.raises(StoreError, match="there is no user 'aLiCe'"):
            await store.remove_user("aLiCe")
        await store.add_user(User(name="aLiCe", password="hash", ticket_salt=SALT))
        left = [(user.name, user.password) for user in await store.list_users()]
        assert left == [
            ("ALICE", "hash"),
            ("Alice", "of Alice"),
            ("aLiCe", "hash"),
            ("alice", "of alice"),
            ("álice", "of álice"),
        ]
        for number, name in enumerate(names, 1):
            await store.add_traffic(flush(number, **{name: 10**number}))
        assert await store.traffic() == {name: 10**n for n, name in enumerate(names, 1)}


async def test_of_two_rows_of_one_name_the_first_is_the_account(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    add_row(mariadb, database, "alice", "first")
    add_row(mariadb, database, "alice", "second", time=EXPIRY)
    add_row(mariadb, database, "alice", "first")
    add_row(mariadb, database, "Alice", "first")
    stored = "select password from userInfo_userinfo order by user_id"
    async with opened(database) as store:
        assert [user.name for user in await store.list_users()] == ["Alice", "alice"]
        alice = await store.find_user("alice")
        assert alice is not None
        assert (alice.account_id, alice.password, alice.expires_at) == (1, "first", None)
        with pytest.raises(StoreError, match="already"):
            await store.add_user(alice)

        assert not await store.upgrade_password("alice", "second", "hash")
        assert await store.upgrade_password("alice", "first", "hash")
        assert rows(mariadb, database, stored) == [("hash",), ("second",), ("hash",), ("first",)]

        await store.set_password("alice", "new", SALT)  # or an old one would come up
        assert rows(mariadb, database, stored) == [("new",), ("new",), ("new",), ("first",)]

        await store.set_expiry("alice", None)
        await store.change_user(
            "alice", lambda each: attrs.evolve(each, limits=Limits(sessions=1), damage="")
        )
        assert await store.find_user("alice") == attrs.evolve(
            alice, password="new", ticket_salt=SALT, limits=Limits(sessions=1)
        )
        times = "select distinct time from userInfo_userinfo"
        assert rows(mariadb, database, times) == [("NULL",)]

        await store.remove_user("alice")
        assert await store.find_user("alice") is None
        assert rows(mariadb, database, stored) == [("first",)]


async def test_when_the_first_of_two_rows_is_deleted_the_second_is_another_account(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    add_row(mariadb, database, "alice", "first")
    add_row(mariadb, database, "alice", "second")
    async with opened(database) as store:
        await store.set_ticket_salt("alice", SALT)
        await store.change_user(
            "alice", lambda each: attrs.evolve(each, limits=Limits(sessions=1), damage="")
        )
        first = await store.find_user("alice")
        mariadb.sql("delete from userInfo_userinfo where user_id = 1", database.db_name)
        second = await store.find_user("alice")
        assert first is not None
        assert second is not None
        assert second.account_id != first.account_id
        assert (second.password, second.ticket_salt, second.limits) == ("second", b"", Limits())


async def test_an_account_with_a_number_that_was_used_before_gets_nothing_of_the_other(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    async with opened(database) as store:
        await store.add_user(User(name="alice", password="hash", ticket_salt=SALT))
        await store.change_user(
            "alice", lambda each: attrs.evolve(each, limits=Limits(sessions=1), damage="")
        )
        # By hand; a database forgets which numbers it gave, at the latest when it is restored from a copy.
        mariadb.sql(
            "delete from userInfo_userinfo; alter table userInfo_userinfo auto_increment = 1",
            database.db_name,
        )
        await store.add_user(User(name="bob", password="hash", ticket_salt=SALT[::-1]))
        bob = await store.find_user("bob")
        assert bob is not None
        assert (bob.account_id, bob.limits, bob.ticket_salt) == (1, Limits(), SALT[::-1])


async def test_the_flags_of_an_account_that_is_gone_are_nobody_else_s(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    add_row(mariadb, database, "alice")
    async with opened(database) as store:
        await store.set_admin("alice", admin=True)
        await store.set_disabled("alice", disabled=True)
        # The Go program removes it, and makes another that gets its number.
        mariadb.sql(
            "delete from userInfo_userinfo; alter table userInfo_userinfo auto_increment = 1",
            database.db_name,
        )
        add_row(mariadb, database, "bob")
        bob = await store.find_user("bob")
        assert bob is not None
        assert (bob.account_id, bob.admin, bob.disabled) == (1, False, False)
        await store.set_disabled("bob", disabled=True)
        bob = await store.find_user("bob")
        assert bob is not None
        assert (bob.admin, bob.disabled) == (False, True)


async def test_a_token_of_an_account_that_the_go_program_has_removed_is_none(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    add_row(mariadb, database, "alice")
    async with opened(database) as store:
        token = Token(
            name="grafana",
            user="alice",
            account_id=1,
            digest=bytes(range(224, 256)),
            scope=TokenScope.READ,
            created_at=datetime(2026, 11, 29, tzinfo=UTC),
        )
        await store.add_token(token)
        assert await store.find_token(token.digest) == token
        mariadb.sql("delete from userInfo_userinfo", database.db_name)
        add_row(mariadb, database, "alice")
        assert await store.find_token(token.digest) is None
        assert await store.list_tokens() == []


async def test_a_token_with_the_scope_of_a_newer_program_is_none(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    add_row(mariadb, database, "alice")
    async with opened(database) as store:
        for number, scope in enumerate(TokenScope):
            await store.add_token(
                Token(
                    name=scope.value,
                    user="alice",
                    account_id=1,
                    digest=bytes([number]) * 32,
                    scope=scope,
                    created_at=datetime(2026, 11, 29, tzinfo=UTC),
                )
            )
        mariadb.sql(
            "update trionat_tokens set scope = 'everything' where name = 'read'", database.db_name
        )
        assert await store.find_token(bytes(32)) is None
        assert [token.name for token in await store.list_tokens()] == ["manage", "metrics"]


async def test_traffic_goes_to_the_first_of_several_rows_and_their_sum_is_the_total(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    mariadb.sql(
        "insert into bars (bar, username) values (1, 'bob'), (10, 'alice'), (100, 'alice'), (5, 'Alice')",
        database.db_name,
    )
    async with opened(database) as store:
        assert await store.traffic() == {"bob": 1, "alice": 110, "Alice": 5}
        await store.add_traffic(flush(1, alice=1000, bob=2, carol=7))
        await store.add_traffic(flush(2, alice=1000, carol=7))
        assert await store.traffic() == {"bob": 3, "alice": 2110, "Alice": 5, "carol": 14}
    assert rows(mariadb, database, "select id, bar, username from bars order by id") == [
        ("1", "3", "bob"),
        ("2", "2010", "alice"),
        ("3", "100", "alice"),
        ("4", "5", "Alice"),
        ("5", "14", "carol"),
    ]


async def test_flushes_use_up_no_ids(mariadb: MariaDB, database: DatabaseConfig) -> None:
    async with opened(database) as store:
        for number in range(1, 20):
            await store.add_traffic(flush(number, alice=1, bob=1))
        await store.add_traffic(flush(20, carol=1))
    assert rows(mariadb, database, "select id, username from bars order by id") == [
        ("1", "alice"),
        ("2", "bob"),
        ("3", "carol"),
    ]


async def test_the_go_program_adds_at_the_same_time(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    go = "update bars set bar = bar + 1 where username = 'alice';" * 200
    async with opened(database) as store:
        await store.add_traffic(flush(1, alice=1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, mariadb.sql, go, database.db_name)
            for number in range(2, 52):
                await store.add_traffic(flush(number, alice=1000))
        assert await store.traffic() == {"alice": 1 + 200 + 50 * 1000}


BAD_TABLES = {
    "characters": "alter table bars convert to character set latin1",
    "length": "alter table bars modify username varchar(5) not null",
    "range": "alter table bars modify bar int not null; insert into bars (bar, username) values (2147483647, '{bad}')",
    "sum": "insert into bars (bar, username) values (9223372036854775807, '{bad}')",
    "unique": "alter table bars add unique (username); insert into bars (bar, username) values (1, upper('{bad}'))",
    "foreign key": "alter table userInfo_userinfo add unique (username);"
    "insert into userInfo_userinfo (username, password) values ('alice', 'secret');"
    "alter table bars add foreign key (username) references userInfo_userinfo (username)",
    "check": "alter table bars add check (username <> '{bad}')",
    "partition": "alter table bars drop primary key, modify id bigint not null, add primary key (id, username);"
    "alter table bars modify id bigint not null auto_increment;"
    "alter table bars partition by list columns (username) (partition p values in ('alice'))",
    "trigger": "create trigger refusal before insert on bars for each row "
    "if new.username = '{bad}' then signal sqlstate '45000' set message_text = 'no'; end if",
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD_TABLES)
async def test_a_flush_that_is_refused_for_its_data_changes_nothing(
    mariadb: MariaDB, database: DatabaseConfig, fault: str
) -> None:
    """It is told from a database that cannot be asked, and its number can be tried again."""
    bad = {"characters": "日本", "length": "x" * 6}.get(fault, "bad")
    delimiter = "delimiter //\n{}//\ndelimiter ;" if fault == "trigger" else "{}"
    mariadb.sql(delimiter.format(BAD_TABLES[fault].format(bad=bad)), database.db_name)
    async with opened(database) as store:
        before = await store.traffic()
        for _ in range(2):
            with pytest.raises(StoreDataError, match=r"^database 127\.0\.0\.1:"):
                await store.add_traffic(flush(1, **{bad: 2, "alice": 1}))
        assert await store.traffic() == before
        assert await store.monthly_traffic("2026-11", [bad, "alice"]) == {}
        assert await store.add_traffic(flush(1, alice=1))
        assert await store.traffic() == {**before, "alice": 1}
        # One that was added before is not looked into.
        assert not await store.add_traffic(flush(1, **{bad: 2, "alice": 1}))


@pytest.mark.parametrize(("name", "amount"), [("\udc80", 1), ("bad", 2**63), ("x" * 2000, 1)])
async def test_amounts_and_names_that_no_table_takes_are_refused(
    database: DatabaseConfig, name: str, amount: int
) -> None:
    async with opened(database) as store:
        with pytest.raises(StoreDataError):
            await store.add_traffic(flush(1, **{name: amount, "alice": 1}))
        assert await store.add_traffic(flush(1, alice=1))


async def test_a_time_that_is_no_date_is_long_past(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    mariadb.sql(
        "set sql_mode = ''; insert into userInfo_userinfo (username, password, time) "
        "values ('alice', 'secret', '0000-00-00 00:00:00')",
        database.db_name,
    )
    async with opened(database) as store:
        found = await store.find_user("alice")
        assert found is not None
        assert found.is_expired(datetime(1, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("characters", ["latin1", "utf8mb3"])
async def test_names_that_a_table_cannot_hold_are_nobodys(
    mariadb: MariaDB, database: DatabaseConfig, characters: str
) -> None:
    for table in ("userInfo_userinfo", "bars"):
        mariadb.sql(f"alter table {table} convert to character set {characters}", database.db_name)
    add_row(mariadb, database, "été")
    async with opened(database) as store:
        assert list(await store.find_users(["日本", "🚇", "été", "%", "été\\"])) == ["été"]
        assert list(await store.find_users(["🚇", "été"])) == ["été"]  # another error
        with pytest.raises(StoreError, match="there is no user"):
            await store.remove_user("🚇")
        with pytest.raises(StoreUnavailableError, match="Incorrect string value"):
            await store.add_user(User(name="🚇", password="hash", ticket_salt=SALT))
        assert [user.name for user in await store.list_users()] == ["été"]


async def test_what_does_not_fit_is_refused_and_not_cut_off(database: DatabaseConfig) -> None:
    async with opened(database) as store:
        with pytest.raises(StoreUnavailableError, match="Data too long"):
            await store.add_user(User(name="x" * 256, password="hash", ticket_salt=SALT))
        assert await store.list_users() == []


# --- tickets of accounts that the Go program knows as well ---


async def salt_of(store: MySQLStore, name: str) -> bytes:
    found = await store.find_user(name)
    assert found is not None
    return found.ticket_salt


async def test_a_salt_goes_with_the_password_it_was_made_for(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    add_row(mariadb, database, "alice")
    async with opened(database) as store:
        assert await salt_of(store, "alice") == b""
        await store.set_ticket_salt("alice", SALT)
        assert await salt_of(store, "alice") == SALT
        assert await store.upgrade_password("alice", "secret", "hash")
        assert await salt_of(store, "alice") == SALT
        # By hand, or by the Go program.
        mariadb.sql(
            "update userInfo_userinfo set password = 'other', time = time", database.db_name
        )
        assert await salt_of(store, "alice") == b""
        await store.set_password("alice", "hash", SALT[::-1])
        assert await salt_of(store, "alice") == SALT[::-1]


async def test_an_upgrade_without_a_salt_makes_none(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    add_row(mariadb, database, "alice")
    async with opened(database) as store:
        assert await store.upgrade_password("alice", "secret", "hash")
        assert await salt_of(store, "alice") == b""
    assert rows(mariadb, database, "select * from trionat_accounts") == []


@pytest.mark.parametrize("salt", ["no hexadecimal", "", "00", "é"])
async def test_a_salt_that_somebody_wrote_is_none(
    mariadb: MariaDB, database: DatabaseConfig, salt: str
) -> None:
    add_row(mariadb, database, "alice")
    async with opened(database) as store:
        await store.set_ticket_salt("alice", SALT)
        mariadb.sql(f"update trionat_accounts set ticket_salt = '{salt}'", database.db_name)
        assert await salt_of(store, "alice") == b""


NULLABLE = "alter table userInfo_userinfo modify username varchar(255) null, modify password varchar(255) null"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("replace into trionat_accounts (user_id, limits) values (1, 'none')", "the limits of 'a'"),
        ("replace into trionat_accounts (user_id, limits) values (1, repeat('[', 200000))", "the"),
        ("replace into trionat_accounts (user_id, ticket_salt, seal) values (1, 'é', 'é')", ""),
        (f"{NULLABLE}; update userInfo_userinfo set password = null where user_id = 1", ""),
        (f"{NULLABLE}; insert into userInfo_userinfo (password) values ('secret')", ""),
        ("alter table userInfo_userinfo modify time date null", ""),
        ("alter table userInfo_userinfo modify password varbinary(255) not null", ""),
    ],
)
async def test_one_account_that_is_out_of_order_keeps_nobody_else_out(
    mariadb: MariaDB, database: DatabaseConfig, damage: str, reason: str
) -> None:
    """Whatever somebody writes into the tables, or makes of them."""
    add_row(mariadb, database, "a", "secret")
    add_row(mariadb, database, "b", "secret", "2030-01-02")
    async with opened(database) as store:
        await store.prepare()
        mariadb.sql(damage, database.db_name)
        a, b = (await store.find_users(["a", "b"])).values()
        assert [a, b] == await store.list_users()
        assert (b.password, b.damage) == ("secret", "")
        assert b.expires_at == datetime(2030, 1, 2, tzinfo=UTC)
        assert a.password == ("" if "password = null" in damage else "secret")
        assert a.damage.startswith(reason)
        assert bool(a.damage) == bool(reason)
        await store.set_ticket_salt("a", SALT)
        assert await salt_of(store, "a") == SALT
        await store.change_user("a", lambda each: attrs.evolve(each, limits=Limits(), damage=""))
        assert not (await store.find_users(["a"]))["a"].damage
        await store.set_password("a", "hash", SALT)
        assert await store.upgrade_password("a", "hash", "another")


async def test_an_amount_that_is_nothing_is_added_to(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    mariadb.sql(
        "alter table bars modify bar bigint null, modify username varchar(255) null;"
        " insert into bars (bar, username) values (null, 'a'), (7, null), (null, null)",
        database.db_name,
    )
    async with opened(database) as store:
        assert await store.traffic() == {"a": 0}
        assert await store.add_traffic(flush(1, a=3, b=4))
        assert await store.traffic() == {"a": 3, "b": 4}


# --- tables ---


async def test_what_is_missing_is_made_and_the_rest_left_alone(mariadb: MariaDB) -> None:
    database = mariadb.new_database("")
    async with open_pool(database) as pool:
        with pytest.raises(
            StoreUnavailableError, match=r"no table userInfo_userinfo in 'test.*trionat db init$"
        ):
            await prepare(pool)
        made = await init(pool)
        assert made == [
            "userInfo_userinfo",
            "bars",
            "trionat_accounts",
            "trionat_months",
            "trionat_flushes",
            "trionat_names",
            "trionat_flags",
            "trionat_tokens",
            "trionat_days",
        ]
        assert await init(pool) == []
        await prepare(pool)
        assert await check(pool) == []
        mariadb.sql("drop table trionat_months; drop table bars", database.db_name)
        assert await init(pool) == ["bars", "trionat_months"]
    columns = rows(
        mariadb,
        database,
        "select column_name, column_type, is_nullable, column_default, extra, collation_name from information_schema.columns "
        "where table_schema = database() and table_name = 'userInfo_userinfo' order by ordinal_position",
    )
    collation = "utf8mb4_unicode_520_ci"
    assert columns == [
        ("user_id", "int(11)", "NO", "NULL", "auto_increment", "NULL"),
        ("username", "varchar(255)", "NO", "NULL", "", collation),
        ("password", "varchar(255)", "NO", "NULL", "", collation),
        ("email", "varchar(254)", "YES", "'00000000@test.com'", "", collation),
        ("flag", "tinyint(1)", "NO", "0", "", "NULL"),
        ("time", "datetime(6)", "YES", "NULL", "on update current_timestamp(6)", "NULL"),
    ]


NAMES_WITHOUT_IDS = """create table trionat_names (
    name varchar(253) character set ascii collate ascii_bin not null primary key,
    owner varbinary(1020) not null,
    used_at datetime(6) not null,
    key owner (owner)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin"""


async def test_names_of_before_there_were_ids_of_accounts_stay_their_users(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    add_row(mariadb, database, "Été")
    add_row(mariadb, database, "été")
    mariadb.sql(
        f"{NAMES_WITHOUT_IDS}; insert into trionat_names values "
        "('shop', 'été', utc_timestamp(6)), ('blog', 'bob', utc_timestamp(6)), ('wiki', '', utc_timestamp(6))",
        database.db_name,
    )
    async with open_pool(database) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(3):  # servers that start at once
                nursery.start_soon(prepare, pool)
        await init(pool)
        store = MySQLStore(pool)
        assert [(owned.name, owned.owner) for owned in await store.list_names()] == [
            ("blog", ""),
            ("shop", "été"),
            ("wiki", ""),
        ]
        found = await store.find_user("été")
        assert found is not None
        now, keep = datetime.now(UTC), timedelta(days=30)
        assert await store.reserve_names("été", found.account_id, ["shop"], now, keep) == set()
        for name in ("blog", "wiki"):
            with pytest.raises(NameTakenError):
                await store.reserve_names("été", found.account_id, [name], now, keep)
    question = "show create table trionat_names"
    ((_, amended),) = rows(mariadb, database, question)
    new = mariadb.new_database()
    async with opened(new):
        pass
    ((_, made),) = rows(mariadb, new, question)
    assert amended.replace(" DEFAULT 0", "") == made
    assert "KEY `used_at` (`used_at`)" in made


async def test_only_our_own_tables_are_made_without_being_asked(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    before = rows(mariadb, database, "show create table userInfo_userinfo; show create table bars")
    async with opened(database) as store:
        await store.prepare()
    assert rows(mariadb, database, "show tables") == [
        ("bars",),
        ("trionat_accounts",),
        ("trionat_days",),
        ("trionat_flags",),
        ("trionat_flushes",),
        ("trionat_months",),
        ("trionat_names",),
        ("trionat_tokens",),
        ("userInfo_userinfo",),
    ]
    after = rows(mariadb, database, "show create table userInfo_userinfo; show create table bars")
    assert after == before


async def test_who_may_make_no_tables_is_told_who_has_to(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    limited = mariadb.new_user(database, "select, insert, update, delete")
    async with open_pool(limited) as pool:
        with pytest.raises(
            StoreUnavailableError, match=r"CREATE command denied .*trionat db init"
        ) as caught:
            await prepare(pool)
        assert "\n" not in str(caught.value)
        async with open_pool(database) as other:
            await init(other)
        await prepare(pool)
        assert await check(pool) == [
            f"{table} has no index on username: all of it is read for every name: alter table {table} add index (username)"
            for table in ("userInfo_userinfo", "bars")
        ]


@pytest.mark.parametrize(
    ("statements", "finding"),
    [
        ("drop table trionat_accounts", "trionat_accounts is missing: nobody can log in: run trionat db init"),
        ("drop table bars", "bars is missing: traffic cannot be added: run trionat db init"),
        ("drop table trionat_tokens", "trionat_tokens is missing: the API takes no token: run trionat db init"),
        ("drop table trionat_flags", "trionat_flags is missing: nobody can log in: run trionat db init"),
        ("drop table trionat_days", "trionat_days is missing: traffic cannot be added: run trionat db init"),
        ("alter table bars engine = MyISAM", "bars is kept by MyISAM: a change may be made by half"),
        ("alter table bars modify bar int", "bars.bar is int, not bigint: what it cannot hold is refused"),
        ("alter table userInfo_userinfo drop column time", "userInfo_userinfo has no column time: nobody can log in"),
        ("alter table bars convert to character set latin1", "bars.username is in latin1: names and passwords"),
        ("alter table userInfo_userinfo drop key username", "userInfo_userinfo has no index on username"),
        ("insert into userInfo_userinfo (username, password) values ('a', '$argon2'), ('A', '$argon2'), ('a', '$argon2')", "userInfo_userinfo has several rows of 'a' (user_id 1, 3): only the first is the account"),
        ("insert into bars (username, bar) values ('a', 1), ('A', 2), ('a', 3)", "bars has several rows of 'a' (id 1, 3): the total is their sum"),
        ("insert into userInfo_userinfo (username, password) values ('a', 'x'), ('b', 'y'), ('c', '$argon2id$')", "2 passwords are in plain text"),
        ("insert into userInfo_userinfo (username, password) values ('a', '')", "1 passwords are empty: nobody can log in"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_found(mariadb: MariaDB, statements: str, finding: str) -> None:
    database = mariadb.new_database("")
    async with open_pool(database) as pool:
        await init(pool)
        mariadb.sql(statements, database.db_name)
        (found,) = await check(pool)
        assert found.startswith(finding)
        assert "\n" not in found


@pytest.mark.parametrize(
    ("granted", "findings"),
    [
        ("select", ["INSERT", "UPDATE", "DELETE"]),
        ("select, insert", ["UPDATE", "DELETE"]),
        ("select, insert, update", ["DELETE"]),
        ("insert, update, delete", ["SELECT", "SELECT"]),
    ],
)
async def test_a_missing_privilege_is_found(
    mariadb: MariaDB, granted: str, findings: list[str]
) -> None:
    database = mariadb.new_database("")
    async with open_pool(database) as pool:
        await init(pool)
    limited = mariadb.new_user(
        database, "select, insert, update, delete", but={"trionat_accounts": granted}
    )
    async with open_pool(limited) as pool:
        found = await check(pool)
    assert [line.split(" command denied to user ")[0] for line in found] == findings
    for line in found:
        assert line.endswith(f"grant it to {limited.username!r}")


# --- a database that fails ---


async def unavailable(database: DatabaseConfig) -> str:
    """Return what is said of a database that cannot be used; it has to be one line that names the database."""
    async with open_pool(database) as pool:
        with pytest.raises(StoreUnavailableError) as caught:
            await MySQLStore(pool).find_user("alice")
        with pytest.raises(StoreUnavailableError) as again:
            await MySQLStore(pool).prepare()
    prefix = f"database {database.address}: "
    for error in (str(caught.value), str(again.value)):
        assert error.startswith(prefix)
        assert "\n" not in error
        assert database.password not in error
    return str(caught.value).removeprefix(prefix)


async def test_reasons_are_told(
    mariadb: MariaDB, database: DatabaseConfig, nothing_left: None
) -> None:
    refused = attrs.evolve(database, password="wrong password")
    assert await unavailable(refused) == (
        "it does not let 'trionat' in: check Database.Username and Database.Password"
    )
    assert (await unavailable(attrs.evolve(database, username="nobody"))).startswith(
        "it does not let 'nobody' in"
    )
    assert (await unavailable(attrs.evolve(database, db_name="test_gone"))) == (
        "there is no database 'test_gone': check Database.DBName, or make it"
    )
    assert (await unavailable(attrs.evolve(database, db_name="mysql"))).startswith(
        "Access denied for user"
    )
    assert (await unavailable(attrs.evolve(database, host="127.0.0.1:1"))) == (
        "Connection refused: is it running, and is Database.Host right?"
    )
    assert "Database.Host" in await unavailable(attrs.evolve(database, host="nowhere.invalid"))
    assert (
        "userInfo_userinfo' doesn't exist: check Database.DBName, or run trionat db init"
        in await unavailable(mariadb.new_database("create table other (id int)"))
    )


@pytest.mark.parametrize(
    "words",
    [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 100, b"\xff" * 100, b"\x05\0\0\0\x0ajunk", b"\x01\0\0\0\x0a", b"-ERR unknown command\r\n"],
    ids=["nothing", "ssh", "http", "zeros", "ones", "short", "shorter", "redis"],
)  # fmt: skip
async def test_what_is_no_database_is_told(
    database: DatabaseConfig, words: bytes, nothing_left: None
) -> None:
    async def speak(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(words)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, speak, 0, host=HOST))
        port = listeners[0].socket.getsockname()[1]
        assert await unavailable(attrs.evolve(database, host=f"{HOST}:{port}", timeout=1.0))
        nursery.cancel_scope.cancel()


async def test_a_database_that_says_nothing_costs_no_more_than_the_deadline(
    database: DatabaseConfig, nothing_left: None
) -> None:
    with socket.create_server((HOST, 0)) as listener:
        host = f"{HOST}:{listener.getsockname()[1]}"
        started = trio.current_time()
        reason = await unavailable(attrs.evolve(database, host=host, timeout=0.1))
        assert reason.startswith("no answer within 0.1 s")
        assert trio.current_time() - started < 2


async def test_the_store_works_again_after_a_restart_by_itself(
    mariadb: MariaDB, database: DatabaseConfig, nothing_left: None
) -> None:
    answers: list[bool] = []

    async def ask_on_and_on(store: MySQLStore) -> None:
        while True:
            try:
                answers.append(await store.find_user("alice") is not None)
            except StoreUnavailableError:
                answers.append(False)
            await trio.sleep(0.001)

    async with opened(database) as store, trio.open_nursery() as nursery:
        await store.add_user(User(name="alice", password="hash", ticket_salt=SALT))
        for _ in range(database.pool_size):
            nursery.start_soon(ask_on_and_on, store)
        for end in (mariadb.stop, mariadb.kill):
            await trio.sleep(0.02)
            await trio.to_thread.run_sync(end)
            with pytest.raises(StoreUnavailableError, match="is it running"):
                await store.find_user("alice")
            await trio.to_thread.run_sync(mariadb.start)
            for _ in range(2 * database.pool_size):  # with every connection of the pool
                assert await store.find_user("alice") is not None
        nursery.cancel_scope.cancel()
    assert set(answers) == {False, True}


async def test_one_that_hangs_costs_the_deadline_and_is_used_again(
    mariadb: MariaDB, database: DatabaseConfig, nothing_left: None
) -> None:
    async with opened(attrs.evolve(database, pool_size=2), 0.5) as store:
        await store.add_user(User(name="alice", password="hash", ticket_salt=SALT))
        mariadb.pause()
        try:
            started = trio.current_time()
            for _ in range(3):  # more than there are connections
                with pytest.raises(StoreUnavailableError, match=r"no answer within 0\.5 s"):
                    await store.find_user("alice")
            assert 1.4 < trio.current_time() - started < 3
        finally:
            mariadb.resume()
        assert await store.find_user("alice") is not None
        mariadb.pause()
        started = trio.current_time()
    mariadb.resume()
    assert trio.current_time() - started < 4  # leaving does not wait for it for ever


async def test_a_locked_table_costs_the_deadline_and_nothing_is_left_of_the_change(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    add_row(mariadb, database, "alice")

    async with opened(database, 0.4) as store, opened(database) as patient:
        async with trio.open_nursery() as nursery:
            hold = "lock tables userInfo_userinfo write; select sleep(2)"
            nursery.start_soon(trio.to_thread.run_sync, mariadb.sql, hold, database.db_name)
            is_held = "select 1 from information_schema.processlist where state = 'User sleep'"
            while not rows(mariadb, database, is_held):  # noqa: ASYNC110 - the database tells by being asked
                await trio.sleep(0.01)
            with pytest.raises(StoreUnavailableError, match="no answer within"):
                await store.set_password("alice", "hash", SALT)
            with pytest.raises(StoreUnavailableError, match="no answer within"):
                await store.find_user("alice")
        found = await patient.find_user("alice")
        assert found is not None
        assert (found.password, found.ticket_salt) == ("secret", b"")


async def test_calls_cancelled_at_any_moment_leave_the_pool_whole(
    mariadb: MariaDB, database: DatabaseConfig, nothing_left: None
) -> None:
    small = attrs.evolve(database, pool_size=2)
    async with open_pool(small) as pool:
        for delay in range(40):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(pool.run, lambda link: link.ask(LONG))
                await trio.sleep(delay * 0.0005)
                nursery.cancel_scope.cancel()
            with trio.fail_after(2):
                assert await pool.run(lambda link: link.ask("select 1")) == [(1,)]


async def test_there_are_no_more_connections_than_allowed(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    mine = mariadb.new_user(database, "all privileges")
    async with open_pool(attrs.evolve(mine, pool_size=3)) as pool, trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(pool.run, lambda link: link.ask("select sleep(0.05)"))
        question = (
            f"select count(*) from information_schema.processlist where user = '{mine.username}'"
        )
        seen = set()
        while nursery.child_tasks:
            seen.add(rows(mariadb, database, question)[0][0])
            await trio.sleep(0.01)
    assert max(seen) == "3"


async def test_nobody_waits_for_a_connection_while_another_may_be_made(
    database: DatabaseConfig,
) -> None:
    """Not even where one is given back at the moment in which another one is cut, for its open transaction."""
    done: list[str] = []
    both = threading.Barrier(3)
    go = threading.Event()

    async def hold(_: Link, *, fails: bool) -> None:
        await asyncio.to_thread(both.wait)
        while not go.is_set():  # noqa: ASYNC110 - so that both end in one turn of the loop
            await asyncio.sleep(0)
        if fails:
            raise ZeroDivisionError

    async with open_pool(attrs.evolve(database, pool_size=2)) as pool:

        async def give_back() -> None:
            await pool.run(partial(hold, fails=False))

        async def cut() -> None:
            with suppress(ZeroDivisionError):
                await pool.run(partial(hold, fails=True), transaction=True)

        async def ask(name: str, seconds: int) -> None:
            await pool.run(lambda link: link.ask("select sleep(%s)", seconds))
            done.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_back)
            nursery.start_soon(cut)
            await trio.to_thread.run_sync(both.wait)
            nursery.start_soon(ask, "long", 2)
            await trio.sleep(0.1)
            nursery.start_soon(ask, "short", 0)
            await trio.sleep(0.1)
            go.set()
    assert done == ["short", "long"]


async def test_the_server_ends_what_we_have_given_up(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    quick = attrs.evolve(database, timeout=0.2)
    async with open_pool(quick) as pool:
        with pytest.raises(StoreUnavailableError):
            await pool.run(lambda link: link.ask("select benchmark(1000000000, md5('given up'))"))
        question = (
            "select count(*) from information_schema.processlist where info like '%given up%'"
        )
        assert rows(mariadb, database, question) == [("2",)]  # it, and the question
        with trio.fail_after(8):  # bounded by whole seconds there
            while await trio.to_thread.run_sync(rows, mariadb, database, question) != [("1",)]:
                pass


async def test_a_session_is_the_same_whatever_the_server_is_set_to(
    mariadb: MariaDB, database: DatabaseConfig
) -> None:
    mariadb.sql("set global time_zone = '+05:00', sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'")
    try:
        async with opened(database) as store:
            for name in (
                '"',
                "\\",
                "\\'; drop table bars; -- ",
                "'",
                "\\\\",
                "a\0b",
                "%s",
                "{}",
                "\n",
            ):
                await store.add_user(User(name=name, password=name, ticket_salt=SALT))
                found = await store.find_user(name)
                assert found is not None
                assert (found.name, found.password) == (name, name)
                assert found.created_at is not None
                assert abs(found.created_at - datetime.now(UTC)) < timedelta(seconds=10)
            # The trap at work, in UTC.
            mariadb.sql("update userInfo_userinfo set flag = 1", database.db_name)
    finally:
        mariadb.sql("set global time_zone = default, sql_mode = default")


async def test_closing_leaves_no_thread_and_no_descriptor(
    database: DatabaseConfig, nothing_left: None
) -> None:
    before = set(threading.enumerate())
    async with trio.open_nursery() as nursery:
        async with open_pool(database) as pool:
            nursery.start_soon(pool.run, lambda link: link.ask(LONG))  # noqa: ASYNC111 - it is cancelled before
            await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
    with trio.CancelScope() as scope:
        async with open_pool(database):
            scope.cancel()
            await trio.lowlevel.checkpoint()
    with pytest.raises(KeyError):
        async with open_pool(database) as pool:
            await pool.run(lambda link: link.ask("select 1"))
            raise KeyError
    with trio.CancelScope() as scope:
        scope.cancel()
        async with open_pool(database):
            pass
    assert [one for one in set(threading.enumerate()) - before if "trionat" in one.name] == []


# --- answers that are lost ---


@attrs.define(eq=False)
class Proxy:
    """Stands between us and the database, and cuts connections where it hurts."""

    port: int = 0
    cut: str = ""
    cuts: int = 0

    async def run(
        self, target: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async def serve(client: trio.SocketStream) -> None:
            server = await trio.open_tcp_stream(HOST, target)
            async with server, trio.open_nursery() as nursery:

                async def answers() -> None:
                    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                        async for data in server:
                            if held.is_set():  # what it says to the commit does not arrive
                                break
                            await client.send_all(data)
                    nursery.cancel_scope.cancel()

                held = trio.Event()
                nursery.start_soon(answers)
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    async for data in client:
                        if b"COMMIT" in data and self.cut:
                            self.cuts += 1
                            if self.cut == "before":
                                break
                            held.set()
                            if self.cut == "freeze":
                                self.cut = ""
                                await trio.sleep_forever()
                        await server.send_all(data)
                        if held.is_set():
                            await trio.sleep_forever()  # until it has answered
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host=HOST))
            self.port = listeners[0].socket.getsockname()[1]
            task_status.started()


@asynccontextmanager
async def through_proxy(
    database: DatabaseConfig, seconds: float = 5.0
) -> AsyncIterator[tuple[Proxy, MySQLStore]]:
    proxy = Proxy()
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run, database.address.port)
        there = attrs.evolve(database, host=f"{HOST}:{proxy.port}")
        async with opened(there, seconds) as store:
            yield proxy, store
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_flush_whose_answer_was_lost_is_added_once(
    database: DatabaseConfig, cut: str, nothing_left: None
) -> None:
    async with through_proxy(database) as (proxy, store), opened(database) as direct:
        total = 0
        for number in range(1, 6):
            await store.traffic()  # a new connection has a commit of its own
            proxy.cut = cut
            with pytest.raises(StoreUnavailableError, match="the connection was lost"):
                await store.add_traffic(flush(number, alice=10**number))
            proxy.cut = ""
            # For the quota it counts once, whether it has arrived or not.
            pending = flush(number, alice=10**number, bob=number)
            expected = {"alice": total + 10**number} | ({"bob": number} if cut == "before" else {})
            assert await direct.monthly_traffic("2026-11", ["alice", "bob"], pending) == expected
            added = await (store if number % 2 else direct).add_traffic(
                flush(number, alice=10**number)
            )
            assert added is (cut == "before")
            total += 10**number
            assert await direct.traffic() == {"alice": total}
            assert await direct.monthly_traffic("2026-11", ["alice"]) == {"alice": total}
        assert proxy.cuts == 5


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_flush_whose_answer_was_lost_counts_once_for_the_quota(
    database: DatabaseConfig, tmp_path: Path, cut: str
) -> None:
    async with through_proxy(database) as (proxy, store):
        await store.traffic()  # a new connection has a commit of its own
        traffic = Traffic(tmp_path, store, Journal(), lambda: datetime.now(UTC))
        with traffic.metered("alice", lambda: 100):
            proxy.cut = cut
            await traffic.flush()
            proxy.cut = ""
            assert traffic.journal.attempted is not None
            assert await store.traffic() == ({} if cut == "before" else {"alice": 100})
            assert await traffic.used_this_month(["alice"]) == {"alice": 100}
            await traffic.flush()
            assert await traffic.used_this_month(["alice"]) == {"alice": 100}
        assert await store.traffic() == {"alice": 100}


async def test_a_server_that_vanishes_in_a_transaction_holds_nobody_up_for_long(
    database: DatabaseConfig,
) -> None:
    """Its connection stays open at the database, as when its power goes, with the lock that all changes need."""
    async with through_proxy(database, 0.5) as (proxy, store), opened(database) as other:
        await store.traffic()  # a new connection has a commit of its own
        proxy.cut = "freeze"
        with pytest.raises(StoreUnavailableError, match="no answer"):
            await store.add_traffic(flush(1, alice=1))
        with trio.fail_after(8):  # it takes a second; the next bound would be 20
            assert await other.add_traffic(flush(1, alice=1))
        assert await other.traffic() == {"alice": 1}


# --- TLS ---


async def cipher(pool: Pool) -> str:
    ((_, name),) = await pool.run(lambda link: link.ask("show status like 'Ssl_cipher'"))
    return str(name)


# asyncio waits 30 s for the other end's goodbye, and that waits for its statement.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_tls_by_an_authority_of_ones_own(
    mariadb: MariaDB, database: DatabaseConfig, tmp_path: Path, nothing_left: None
) -> None:
    secure = attrs.evolve(database, ca_file=mariadb.authority)
    async with open_pool(secure) as pool:
        assert await cipher(pool)
        async with trio.open_nursery() as nursery:  # cutting an encrypted connection harms no other
            nursery.start_soon(pool.run, lambda link: link.ask(LONG))
            await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        assert await cipher(pool)
    async with open_pool(database) as pool:
        assert await cipher(pool) == ""

    reason = await unavailable(attrs.evolve(database, tls=True))  # by the system's authorities
    assert reason.startswith("its certificate is not to be trusted (")
    assert reason.endswith("): check Database.CAFile and Database.Host")
    (tmp_path / "other.pem").write_bytes(make_authority()[1])
    stranger = attrs.evolve(database, ca_file=tmp_path / "other.pem")
    assert "not to be trusted" in await unavailable(stranger)
    named = attrs.evolve(secure, host=f"localhost:{mariadb.port}")
    assert "Hostname mismatch" in await unavailable(named)
    here = attrs.evolve(secure, host=f"0.0.0.0:{mariadb.port}")  # this machine, by 127.0.0.1
    async with open_pool(here) as pool:
        assert await cipher(pool)


async def test_where_tls_is_wanted_no_password_leaves_without_it(
    database: DatabaseConfig, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_bytes(make_authority()[1])
    said = bytearray()
    login = b"\x0a10.11.19-MariaDB\0" + bytes(4) + b"saltsalt\0" + b"\xff\xf7\x08\x02\0\xff\x81\x15" + bytes(10) + b"saltsaltsalt\0mysql_native_password\0"  # fmt: skip
    # Capabilities without CLIENT_SSL (0x0800): a man in the middle who takes it out.

    async def speak(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(len(login).to_bytes(3, "little") + b"\0" + login)
            async for data in stream:
                said.extend(data)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, speak, 0, host=HOST))
        host = f"{HOST}:{listeners[0].socket.getsockname()[1]}"
        await unavailable(
            attrs.evolve(database, host=host, ca_file=tmp_path / "ca.pem", timeout=0.5)
        )
        nursery.cancel_scope.cancel()
    assert database.username.encode() not in said


async def test_a_file_of_authorities_that_cannot_be_read_is_told(
    database: DatabaseConfig, tmp_path: Path, nothing_left: None
) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for name in ("gone.pem", "empty.pem"):
        with pytest.raises(StartupError, match=rf"^\S*{name}: .*: check Database\.CAFile$"):
            async with open_store(attrs.evolve(database, ca_file=tmp_path / name), tmp_path):
                pytest.fail("opened")
