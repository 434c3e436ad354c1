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
from trionat.errors import RefusedError, StoreUnavailableError
from trionat.protocol.messages import CloseCode, RefusalCode
from trionat.server.accounts.accounts import Accounts
from trionat.server.accounts.credential import Credential
from trionat.server.accounts.limits import UserLimits
from trionat.server.accounts.tickets import make_ticket
from trionat.server.accounts.traffic import Traffic
from trionat.server.state_folder import StateFolder
from trionat.store.journal import Journal
from trionat.store.mysql.pool import open_pool
from trionat.store.mysql.store import MySQLStore
from trionat.store.passwords import hash_password, is_hashed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.mariadb import MariaDB
    from trionat.config.database import DatabaseConfig
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


# --- sessions that came by a password ---


@attrs.define(eq=False)
class Live:
    """A session, as far as its account is watched."""

    username: str
    account_id: int
    credential: Credential | None
    user_limits: UserLimits
    ended: list[tuple[CloseCode, str]] = attrs.field(factory=list)

    def end(self, code: CloseCode, text: str) -> None:
        self.ended.append((code, text))


async def log_in(accounts: Accounts, name: str = "alice", password: str = "Straße 7") -> Live:
    """Log in as `NativeLogin` does."""
    user = await accounts.authenticate(name, password=password)
    assert user is not None
    credential = Credential.of(user, by_ticket=False)
    return Live(name, user.account_id, credential, UserLimits(name, user.limits))


async def look(accounts: Accounts, *sessions: Live, ends: bool = False) -> list[str]:
    """Have the accounts looked at a few times, until all have ended if they have to; return why."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accounts.watch, dict(enumerate(sessions)))
        for _ in range(250 if ends else 15):
            await trio.sleep(0.02)
            if ends and all(session.ended for session in sessions):
                break
        nursery.cancel_scope.cancel()
    return [text for session in sessions for _, text in session.ended[:1]]


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trionat.server.accounts.accounts.WATCH_INTERVAL", 0.05)


VOID = "the password of alice is void by now"


@pytest.mark.usefixtures("quick_looks")
@pytest.mark.parametrize("salted", [True, False])
async def test_a_session_lives_on_when_its_password_is_replaced_by_the_hash(
    store: MySQLStore, salted: bool
) -> None:
    """By the login itself, by another server, or by an administrator for all accounts."""
    if salted:
        await store.set_ticket_salt("alice", SALT)
    plain = accounts_of(store)
    session = await log_in(plain)
    assert "Straße" not in repr(session.credential)
    upgrading = await log_in(accounts_of(store, upgrade_passwords=True))
    assert is_hashed((await stored(store)).password)
    assert await look(plain, session, upgrading) == []
    assert session.credential is not None
    assert session.credential.plain is None
    assert session.credential == upgrading.credential
    await store.set_password("alice", await hash_password("another"), SALT)
    assert await look(plain, session, upgrading, ends=True) == [VOID, VOID]


@pytest.mark.usefixtures("quick_looks")
async def test_a_session_lives_on_whose_upgrade_failed_at_first(
    mariadb: MariaDB, database: DatabaseConfig, store: MySQLStore
) -> None:
    reader = mariadb.new_user(database, "select")
    async with open_pool(reader) as pool:
        session = await log_in(accounts_of(MySQLStore(pool), upgrade_passwords=True))
    accounts = accounts_of(store, upgrade_passwords=True)
    later = await log_in(accounts)
    assert await look(accounts, session, later) == []


@pytest.mark.usefixtures("quick_looks")
@pytest.mark.parametrize("new", ["another", "$argon2id$damaged", None])
@pytest.mark.parametrize("upgrade", [True, False])
async def test_a_new_password_ends_sessions_by_the_old_one(
    store: MySQLStore, upgrade: bool, new: str | None
) -> None:
    """None is `trionat user passwd`; the others are what somebody may write into the table."""
    accounts = accounts_of(store, upgrade_passwords=upgrade)
    session = await log_in(accounts)
    assert await look(accounts, session) == []
    if new is None:
        await store.set_password("alice", await hash_password("another"), SALT)
    else:
        assert await store.upgrade_password("alice", (await stored(store)).password, new)
    assert await look(accounts, session, ends=True) == [VOID]
    assert session.ended[0][0] is CloseCode.ACCOUNT_REMOVED


@pytest.mark.limit(40)
@pytest.mark.usefixtures("quick_looks")
@pytest.mark.parametrize("what", ["removed", "expired", "void", "expired and hashed"])
async def test_passwords_that_are_hashed_all_at_once_hold_up_no_look(
    store: MySQLStore, what: str
) -> None:
    """Comparing one takes 25 ms and more; whoever may not stay is ended meanwhile, and all others stay."""
    accounts = accounts_of(store)
    await store.add_user(attrs.evolve(await stored(store), name="bob", password="plain"))
    session, bob = await log_in(accounts), await log_in(accounts, "bob", "plain")
    crowd = [attrs.evolve(session, ended=[]) for _ in range(60)]
    for name, old in (("alice", "Straße 7"), ("bob", "plain")):
        if name == "alice" or what == "expired and hashed":
            assert await store.upgrade_password(name, old, await hash_password(old))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accounts.watch, dict(enumerate([*crowd, bob])))
        with trio.fail_after(35):
            while not _renewed(crowd):  # noqa: ASYNC110 - polls
                await trio.sleep(0.005)
            if what == "removed":
                await store.remove_user("bob")
            elif what == "void":
                assert await store.upgrade_password("bob", "plain", "another")
            else:
                await store.set_expiry("bob", datetime(2020, 1, 1, tzinfo=UTC))
            while not bob.ended:  # noqa: ASYNC110 - polls
                await trio.sleep(0.005)
            assert _renewed(crowd) < 50
            while _renewed(crowd) < 60:  # noqa: ASYNC110 - polls
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    assert not any(one.ended for one in crowd)


def _renewed(sessions: list[Live]) -> int:
    return sum(one.credential is not None and one.credential.plain is None for one in sessions)


@attrs.define(eq=False)
class Eventful(MySQLStore):
    """A store in which something happens between the check of a password and its replacement, or behind that."""

    before: Callable[[], Awaitable[None]] | None = None
    down_behind: bool = False
    _upgraded: bool = False

    async def find_user(self, name: str) -> User | None:
        if self.down_behind and self._upgraded:
            raise StoreUnavailableError("it is gone")
        return await super().find_user(name)

    async def upgrade_password(self, name: str, old: str, new: str) -> bool:
        if self.before is not None:
            await self.before()
        self._upgraded = True
        return await super().upgrade_password(name, old, new)


@pytest.mark.usefixtures("quick_looks")
async def test_a_password_that_is_changed_during_a_login_by_the_old_one_ends_its_session(
    store: MySQLStore,
) -> None:
    async def passwd() -> None:
        await store.set_password("alice", await hash_password("another"), SALT)

    eventful = Eventful(store._pool, before=passwd)
    accounts = accounts_of(eventful, upgrade_passwords=True)
    session = await log_in(accounts)  # it was the right one when it was checked
    assert await look(accounts, session, ends=True) == [VOID]


@pytest.mark.usefixtures("quick_looks")
async def test_a_store_that_goes_away_behind_the_upgrade_harms_no_session(
    store: MySQLStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionat")
    eventful = Eventful(store._pool, down_behind=True)
    session = await log_in(accounts_of(eventful, upgrade_passwords=True))
    assert caplog.text.count("was replaced by its hash") == 1
    assert "stays in plain text" not in caplog.text
    assert await look(accounts_of(store), session) == []
