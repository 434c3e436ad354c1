"""Who may log in, by accounts in a real database: those of the Go program have passwords in plain text."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from tests.unit.memory_server import TICKET_KEY
from trionat.errors import RefusedError
from trionat.protocol.messages import RefusalCode
from trionat.server.accounts.accounts import Accounts
from trionat.server.accounts.traffic import Traffic
from trionat.server.state_folder import StateFolder, make_ticket
from trionat.store.journal import Journal
from trionat.store.mysql.pool import open_pool
from trionat.store.mysql.store import MySQLStore
from trionat.store.passwords import hash_password, is_hashed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.mariadb import MariaDB
    from trionat.config.sections import DatabaseConfig
    from trionat.store.base import User

SALT = b"sixteen bytes ok"
STATE = StateFolder(folder=Path("unused"), fingerprint=bytes(32), ticket_key=TICKET_KEY)


@pytest.fixture
def database(mariadb: MariaDB) -> DatabaseConfig:
    database = mariadb.new_database()
    mariadb.sql(
        "insert into userInfo_userinfo (username, password, time) values "
        "('alice', 'Straße 7', null), ('empty', '', null), ('late', 'secret', '2020-01-01')",
        database.db_name,
    )
    return database


@pytest.fixture
async def store(database: DatabaseConfig) -> AsyncIterator[MySQLStore]:
    async with open_pool(attrs.evolve(database, timeout=2.0)) as pool:
        store = MySQLStore(pool)
        await store.prepare()
        yield store


def accounts_of(store: MySQLStore, *, upgrade_passwords: bool = False) -> Accounts:
    traffic = Traffic(STATE.folder, store, Journal(), lambda: datetime.now(UTC))
    return Accounts(STATE, store, traffic, upgrade_passwords)


async def stored(store: MySQLStore, name: str = "alice") -> User:
    user = await store.find_user(name)
    assert user is not None
    return user


async def refusal(accounts: Accounts, name: str, password: str) -> RefusalCode:
    with pytest.raises(RefusedError) as caught:
        await accounts.authenticate(name, password=password)
    return RefusalCode(caught.value.code)


async def test_a_plain_text_logs_in_and_stays(store: MySQLStore) -> None:
    accounts = accounts_of(store)
    before = await stored(store)
    assert await accounts.authenticate("alice", password="Straße 7") == before
    assert await stored(store) == before


async def test_a_plain_text_is_replaced_at_the_first_login_and_tickets_stay_valid(
    store: MySQLStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionat")
    accounts = accounts_of(store, upgrade_passwords=True)
    await store.set_ticket_salt("alice", SALT)
    before = await stored(store)
    ticket = make_ticket(STATE, before, "example.com", 8007, pinned=True)

    assert await accounts.authenticate("alice", password=None, token=ticket.token)
    for wrong in ("strasse 7", "Straße 7 ", ""):
        assert await refusal(accounts, "alice", wrong) is RefusalCode.AUTH_FAILED
    assert await stored(store) == before  # neither replaces it

    assert await accounts.authenticate("alice", password="Straße 7")
    after = await stored(store)
    assert is_hashed(after.password)
    assert attrs.evolve(after, password=before.password) == before
    assert await accounts.authenticate("alice", password=None, token=ticket.token)
    assert await refusal(accounts, "alice", after.password) is RefusalCode.AUTH_FAILED

    assert await accounts.authenticate("alice", password="Straße 7")
    assert await stored(store) == after
    assert caplog.text.count("was replaced by its hash") == 1
    assert "Straße" not in caplog.text


async def test_many_that_log_in_at_once_replace_it_once(store: MySQLStore) -> None:
    accounts = accounts_of(store, upgrade_passwords=True)
    async with trio.open_nursery() as nursery:
        for _ in range(6):

            async def log_in() -> None:
                assert await accounts.authenticate("alice", password="Straße 7")

            nursery.start_soon(log_in)
    assert await accounts.authenticate("alice", password="Straße 7")


async def test_a_password_that_cannot_be_replaced_logs_in_all_the_same(
    mariadb: MariaDB, database: DatabaseConfig, store: MySQLStore, caplog: pytest.LogCaptureFixture
) -> None:
    reader = mariadb.new_user(database, "select")
    async with open_pool(reader) as pool:
        accounts = accounts_of(MySQLStore(pool), upgrade_passwords=True)
        assert await accounts.authenticate("alice", password="Straße 7")
    assert "stays in plain text" in caplog.text
    assert (await stored(store)).password == "Straße 7"


async def test_an_empty_password_an_expired_account_and_a_ticket_that_was_never_made(
    store: MySQLStore,
) -> None:
    accounts = accounts_of(store, upgrade_passwords=True)
    assert await refusal(accounts, "empty", "") is RefusalCode.AUTH_FAILED
    assert await refusal(accounts, "late", "secret") is RefusalCode.ACCOUNT_EXPIRED
    assert (await stored(store, "late")).password == "secret"  # nobody was let in
    alice = await stored(store)
    assert alice.ticket_salt == b""
    ticket = make_ticket(STATE, alice, "example.com", 8007, pinned=True)
    with pytest.raises(RefusedError):
        await accounts.authenticate("alice", password=None, token=ticket.token)


async def test_a_database_that_is_down_refuses_logins_until_it_is_back(
    mariadb: MariaDB, store: MySQLStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionat")
    await store.set_password("alice", await hash_password("secret"), SALT)
    accounts = accounts_of(store)
    mariadb.stop()
    try:
        codes = [await refusal(accounts, "alice", "secret") for _ in range(3)]
    finally:
        mariadb.start()
    assert codes == [RefusalCode.STORE_UNAVAILABLE] * 3
    for _ in range(2):
        assert await accounts.authenticate("alice", password="secret")
    assert caplog.text.count("the user store cannot be asked; sessions go on") == 1
    assert caplog.text.count("the user store can be asked again") == 1
