"""What every store has to do. A store joins by a factory in `STORES`."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import pytest
import trio
import trio.testing

from trionat.errors import LastAdministratorError, NameTakenError, StoreError, StoreUnavailableError
from trionat.store import sqlite as sqlite_store
from trionat.store.backend import open_store
from trionat.store.base import (
    FORGOTTEN_AT_ONCE,
    Flush,
    Limits,
    User,
    check_new_name,
    new_ticket_salt,
    read_limits,
)
from trionat.store.day import DayTotal
from trionat.store.mysql import store as mysql_store
from trionat.store.mysql.pool import open_pool
from trionat.store.mysql.schema import init
from trionat.store.tokens import MOST_TOKENS, Token, TokenScope

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from tests.mariadb import MariaDB
    from trionat.store.base import Store

    Opener: TypeAlias = Callable[[], AbstractAsyncContextManager[Store]]

CREATED = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
EXPIRES = datetime(2027, 1, 31, 23, 59, 59, 999999, tzinfo=UTC)
LIMITS = Limits(
    visit_ports=(60000, 60002),
    sessions=1,
    visitors=0,
    bandwidth=2**40,
    monthly_quota=2**60,
    allow_visitors=("192.0.2.0/24", "2001:db8::/32"),
    deny_visitors=("192.0.2.7",),
    names=("shop-*.tunnel.example.com", "blog"),
)


def sqlite(request: pytest.FixtureRequest) -> Opener:
    file = request.getfixturevalue("tmp_path") / "users.db"
    return lambda: open_store(None, file)


def mariadb(request: pytest.FixtureRequest) -> Opener:
    server: MariaDB = request.getfixturevalue("mariadb")
    database = server.new_database()

    async def make_tables() -> None:
        async with open_pool(database) as pool:
            await init(pool)

    trio.run(make_tables)
    return lambda: open_store(database, Path("/nowhere"))


STORES: dict[str, Callable[[pytest.FixtureRequest], Opener]] = {
    "sqlite": sqlite,
    "mariadb": mariadb,
}


@pytest.fixture(params=STORES)
def opener(request: pytest.FixtureRequest) -> Opener:
    """Opens a store that is empty at first, and the same one every time."""
    return STORES[request.param](request)


def user(name: str = "alice", *, expires_at: datetime | None = None) -> User:
    return User(
        name=name,
        password=f"hash of {name}",
        ticket_salt=new_ticket_salt(),
        expires_at=expires_at,
        created_at=CREATED,
    )


def as_added(found: User | None) -> User:
    """Check that the store gave the account an id, and return it without."""
    assert found is not None
    assert found.account_id > 0
    return attrs.evolve(found, account_id=0)


async def listed(store: Store) -> list[User]:
    return list(map(as_added, await store.list_users()))


async def test_an_account_comes_back_as_it_was(opener: Opener) -> None:
    alice, bob = user(), user("bob", expires_at=EXPIRES)
    async with opener() as store:
        await store.add_user(alice)
        await store.add_user(bob)
        assert as_added(await store.find_user("alice")) == alice
        assert as_added(await store.find_user("bob")) == bob
        assert await store.find_user("carol") is None
    async with opener() as store:
        await store.prepare()
        assert await listed(store) == [alice, bob]


async def test_accounts_are_found_by_many_names_at_once(opener: Opener) -> None:
    async with opener() as store:
        assert await store.find_users([]) == {}
        for name in ("alice", "bob", "zoe"):
            await store.add_user(user(name))
        many = [f"nobody {number}" for number in range(2000)]
        found = await store.find_users(["zoe", "Alice", "bob", "bob", "\ud800", *many])
        assert found == {name: await store.find_user(name) for name in ("bob", "zoe")}


async def test_accounts_are_listed_by_name(opener: Opener) -> None:
    names = ["zoe", "Zoe", "été", "alice", "10", "9"]
    async with opener() as store:
        assert await store.list_users() == []
        for name in names:
            await store.add_user(user(name))
        assert [found.name for found in await store.list_users()] == sorted(names)


@pytest.mark.parametrize("other", ["Alice", "alice ", "alic", "alicé", "alice\0", "ALICE", "%", "alice' or 1=1 --"])  # fmt: skip
async def test_names_are_compared_exactly(opener: Opener, other: str) -> None:
    async with opener() as store:
        await store.add_user(user())
        assert await store.find_user(other) is None
        with pytest.raises(StoreError):
            await store.remove_user(other)
        assert [found.name for found in await store.list_users()] == ["alice"]


async def test_a_name_that_is_no_text_is_nobody(opener: Opener) -> None:
    async with opener() as store:
        await store.add_user(user("?"))
        for name in ["\ud800", "\udcff", "?\ud800"]:
            assert await store.find_user(name) is None
            with pytest.raises(StoreError):
                await store.set_expiry(name, None)


async def test_a_name_is_taken_once(opener: Opener) -> None:
    first = user()
    async with opener() as store:
        await store.add_user(first)
        with pytest.raises(StoreError, match="'alice'") as caught:
            await store.add_user(user(expires_at=EXPIRES))
        assert not isinstance(caught.value, StoreUnavailableError)
        assert await listed(store) == [first]


async def test_a_name_is_free_again_after_its_account(opener: Opener) -> None:
    again = attrs.evolve(user(), created_at=CREATED + timedelta(microseconds=1))
    async with opener() as store:
        await store.add_user(user())
        first = await store.find_user("alice")
        await store.remove_user("alice")
        assert await store.find_user("alice") is None
        await store.add_user(again)
        second = await store.find_user("alice")
        assert as_added(second) == again
        assert first is not None
        assert second is not None
        assert second.account_id != first.account_id


async def test_each_change_changes_its_own_field_of_its_own_account(opener: Opener) -> None:
    alice, bob = user(), user("bob")
    async with opener() as store:
        await store.add_user(alice)
        await store.add_user(bob)

        await store.set_expiry("alice", EXPIRES)
        alice = attrs.evolve(alice, expires_at=EXPIRES)
        assert await listed(store) == [alice, bob]

        await store.set_ticket_salt("alice", b"another salt of ")
        alice = attrs.evolve(alice, ticket_salt=b"another salt of ")
        assert await listed(store) == [alice, bob]

        await store.set_password("alice", "another hash", b"salt again, 16 b")
        alice = attrs.evolve(alice, password="another hash", ticket_salt=b"salt again, 16 b")
        assert await listed(store) == [alice, bob]

        assert await store.upgrade_password("alice", "another hash", "the third")
        alice = attrs.evolve(alice, password="the third")
        assert await listed(store) == [alice, bob]

        await store.change_user("alice", lambda each: attrs.evolve(each, limits=LIMITS, damage=""))
        alice = attrs.evolve(alice, limits=LIMITS)
        assert await listed(store) == [alice, bob]

        await store.set_expiry("alice", None)
        alice = attrs.evolve(alice, expires_at=None)
        assert await listed(store) == [alice, bob]

        await store.change_user(
            "alice", lambda each: attrs.evolve(each, limits=Limits(), damage="")
        )
        alice = attrs.evolve(alice, limits=Limits())
        assert await listed(store) == [alice, bob]

        await store.set_admin("alice", admin=True)
        alice = attrs.evolve(alice, admin=True)
        assert await listed(store) == [alice, bob]

        await store.set_disabled("alice", disabled=True)
        alice = attrs.evolve(alice, disabled=True)
        assert await listed(store) == [alice, bob]

        await store.set_admin("alice", admin=False)
        assert await listed(store) == [attrs.evolve(alice, admin=False), bob]


async def test_an_account_is_changed_in_one_step(opener: Opener) -> None:
    alice, bob = user(), user("bob")
    async with opener() as store:
        await store.add_user(alice)
        await store.add_user(bob)
        wish = attrs.evolve(alice, expires_at=EXPIRES, limits=LIMITS, admin=True, disabled=True)
        changed = await store.change_user(
            "alice",
            lambda each: attrs.evolve(
                each, expires_at=EXPIRES, limits=LIMITS, admin=True, disabled=True
            ),
        )
        assert as_added(changed) == wish
        assert await listed(store) == [wish, bob]

        def fail(each: User) -> User:
            raise ValueError(each.name)

        with pytest.raises(ValueError, match="alice"):
            await store.change_user("alice", fail)
        with pytest.raises(StoreError, match="there is no user 'carol'"):
            await store.change_user("carol", lambda each: each)
        assert await listed(store) == [wish, bob]


async def test_changes_at_once_are_all_made(opener: Opener) -> None:
    async with opener() as store:
        await store.add_user(user())
        changed: list[tuple[int, ...] | None] = []

        async def add(port: int) -> None:
            def change(each: User) -> User:
                ports = each.limits.visit_ports or ()
                return attrs.evolve(
                    each, limits=attrs.evolve(each.limits, visit_ports=(*ports, port))
                )

            changed.append((await store.change_user("alice", change)).limits.visit_ports)

        async with trio.open_nursery() as nursery:
            for port in range(1, 9):
                nursery.start_soon(add, port)
        (alice,) = await store.list_users()
        assert set(alice.limits.visit_ports or ()) == set(range(1, 9))
        assert alice.limits.visit_ports in changed


async def test_the_last_administrator_stays(opener: Opener) -> None:
    names = ("alice", "bob", "carol", "dave")
    async with opener() as store:
        for name in names:
            await store.add_user(attrs.evolve(user(name), admin=name != "dave"))
        await store.set_disabled("carol", disabled=True)
        left: list[str] = []
        changes = (
            lambda each: attrs.evolve(each, admin=False),
            lambda each: attrs.evolve(each, disabled=True),
        )

        async def change(name: str, how: Callable[[User], User]) -> None:
            try:
                await store.change_user(name, how, keep_administrator=True)
            except LastAdministratorError:
                left.append(name)

        async with trio.open_nursery() as nursery:
            for name, how in zip(("alice", "bob"), changes, strict=True):
                nursery.start_soon(change, name, how)
        (name,) = left
        with pytest.raises(LastAdministratorError):
            await store.remove_user(name, keep_administrator=True)
        over = datetime(2020, 1, 1, tzinfo=UTC)
        with pytest.raises(LastAdministratorError):
            await store.change_user(
                name, lambda each: attrs.evolve(each, expires_at=over), keep_administrator=True
            )
        await store.change_user(
            name, lambda each: attrs.evolve(each, limits=LIMITS), keep_administrator=True
        )
        await store.remove_user("dave", keep_administrator=True)
        await store.set_disabled("carol", disabled=False)
        await store.remove_user(name, keep_administrator=True)
        await store.remove_user("carol")  # as the command line may


async def test_what_is_set_to_what_it_was_is_set(opener: Opener) -> None:
    alice = attrs.evolve(user(expires_at=EXPIRES), limits=LIMITS)
    async with opener() as store:
        await store.add_user(alice)
        await store.set_expiry("alice", EXPIRES)
        await store.change_user("alice", lambda each: attrs.evolve(each, limits=LIMITS, damage=""))
        await store.set_admin("alice", admin=False)
        await store.set_disabled("alice", disabled=False)
        await store.set_ticket_salt("alice", alice.ticket_salt)
        await store.set_password("alice", alice.password, alice.ticket_salt)
        assert await store.upgrade_password("alice", alice.password, alice.password)
        assert await listed(store) == [alice]


async def test_a_password_is_upgraded_only_from_what_it_was(opener: Opener) -> None:
    alice = user()
    async with opener() as store:
        await store.add_user(alice)
        for old in ["something else", "HASH OF ALICE", "hash of alice ", ""]:
            assert not await store.upgrade_password("alice", old, "new")
        assert not await store.upgrade_password("nobody", "hash of alice", "new")
        assert not await store.upgrade_password("Alice", "hash of alice", "new")
        assert await listed(store) == [alice]
        await store.set_password("alice", "changed meanwhile", alice.ticket_salt)
        assert not await store.upgrade_password("alice", "hash of alice", "new")


async def test_an_account_is_added_with_its_flags(opener: Opener) -> None:
    alice = attrs.evolve(user(), admin=True, disabled=True)
    async with opener() as store:
        await store.add_user(alice)
        await store.add_user(user("bob"))
        assert as_added(await store.find_user("alice")) == alice
        bob = await store.find_user("bob")
        assert bob is not None
        assert (bob.admin, bob.disabled) == (False, False)
        for change in (store.set_admin("carol", admin=True), store.set_disabled("Alice", disabled=False)):  # fmt: skip
            with pytest.raises(StoreError, match="there is no user"):
                await change
        await store.remove_user("alice")
        await store.add_user(user())
        again = await store.find_user("alice")
        assert again is not None
        assert (again.admin, again.disabled) == (False, False)


async def test_an_account_without_a_date_is_made_now(opener: Opener) -> None:
    before = datetime.now(UTC)
    async with opener() as store:
        await store.add_user(attrs.evolve(user(), created_at=None))
        found = await store.find_user("alice")
        assert found is not None
        assert found.created_at is not None
        assert before <= found.created_at <= datetime.now(UTC)


def flush(number: int, month: str = "2026-11", server: str = "a" * 32, **amounts: int) -> Flush:
    return Flush(server=server, number=number, month=month, amounts=amounts)


async def test_traffic_adds_up_in_all_and_by_month(opener: Opener) -> None:
    async with opener() as store:
        assert await store.traffic() == {}
        await store.add_traffic(flush(1, alice=10, bob=1))
        await store.add_traffic(flush(2, alice=5, Alice=1000))
        await store.add_traffic(flush(3, month="2026-12", alice=7))
        assert await store.traffic() == {"alice": 22, "Alice": 1000, "bob": 1}
        assert await store.monthly_traffic("2026-11", ["alice", "bob", "ALICE", "\ud800"]) == {
            "alice": 15,
            "bob": 1,
        }
        assert await store.monthly_traffic("2026-12", ["alice", "bob"]) == {"alice": 7}
        assert await store.monthly_traffic("2026-10", ["alice"]) == {}
        assert await store.monthly_traffic("2026-11", []) == {}
    async with opener() as store:
        assert await store.traffic() == {"alice": 22, "Alice": 1000, "bob": 1}


async def test_a_flush_that_may_be_there_counts_once_in_its_month(opener: Opener) -> None:
    async with opener() as store:
        names = ["alice", "bob", "\ud800"]
        pending = flush(1, alice=10, bob=1, eve=5)
        for _ in range(2):
            of_month = await store.monthly_traffic("2026-11", names, pending)
            assert of_month == {"alice": 10, "bob": 1}
            assert await store.monthly_traffic("2026-12", names, pending) == {}
            assert await store.monthly_traffic("2026-11", [], pending) == {}
            await store.add_traffic(pending)
        other = flush(1, server="b" * 32, alice=100)
        assert await store.monthly_traffic("2026-11", names, other) == {"alice": 110, "bob": 1}
        assert await store.monthly_traffic("2026-11", names) == {"alice": 10, "bob": 1}


async def test_a_flush_is_added_once(opener: Opener) -> None:
    async with opener() as store:
        first = flush(1, alice=10)
        assert await store.add_traffic(first)
        assert not await store.add_traffic(first)
        assert await store.add_traffic(flush(5, alice=1))
        assert not await store.add_traffic(flush(4, alice=100))  # cannot be a new one
        assert await store.add_traffic(flush(1, server="b" * 32, alice=1000))
    async with opener() as store:
        assert not await store.add_traffic(flush(5, alice=1))
        assert await store.traffic() == {"alice": 1011}
        assert await store.monthly_traffic("2026-11", ["alice"]) == {"alice": 1011}


async def test_many_that_send_the_same_flush_add_it_once(opener: Opener) -> None:
    answers: list[bool] = []

    async def add(store: Store, number: int) -> None:
        answers.append(await store.add_traffic(flush(number, alice=10**number)))

    async with opener() as here, opener() as there:
        for number in range(1, 6):
            async with trio.open_nursery() as nursery:
                for store in [here, there] * 3:
                    nursery.start_soon(add, store, number)
        assert await here.traffic() == {"alice": 111110}
    assert sum(answers) == 5


async def test_many_servers_that_add_at_once_add_up(opener: Opener) -> None:
    async def add(store: Store, server: str) -> None:
        for number in range(1, 9):
            amounts = {"alice": 1, "bob": 2, server: 3}
            await store.add_traffic(
                Flush(server=server, number=number, month="2026-11", amounts=amounts)
            )

    servers = [character * 32 for character in "abcdef"]
    async with opener() as here, opener() as there:
        async with trio.open_nursery() as nursery:
            for number, server in enumerate(servers):
                nursery.start_soon(add, [here, there][number % 2], server)
        total = {"alice": 48, "bob": 96, **dict.fromkeys(servers, 24)}
        assert await here.traffic() == total
        assert await here.monthly_traffic("2026-11", list(total)) == total


def day(number: int, who: str, amount: int) -> DayTotal:
    return DayTotal(day=f"2026-11-{number:02}", user=who, amount=amount)


async def test_traffic_adds_up_by_day_in_the_same_step(opener: Opener) -> None:
    november = ("2026-11-01", "2026-11-30")
    async with opener() as store:
        await store.prepare()
        assert await store.daily_traffic(*november) == []
        assert await store.add_traffic(flush(1, alice=10, bob=1), "2026-11-09")
        assert await store.add_traffic(flush(2, alice=5, Alice=1000), "2026-11-09")
        assert not await store.add_traffic(flush(2, alice=5, Alice=1000), "2026-11-10")
        assert await store.add_traffic(flush(3, alice=7), "2026-11-10")
        assert await store.add_traffic(flush(4, alice=100))
    async with opener() as store:
        found = [day(9, "Alice", 1000), day(9, "alice", 15), day(9, "bob", 1), day(10, "alice", 7)]
        assert await store.daily_traffic(*november) == found
        assert await store.daily_traffic(*november, user="alice") == [found[1], found[3]]
        assert await store.daily_traffic(*november, user="\ud800") == []
        assert await store.daily_traffic("2026-11-10", "2026-11-10") == [found[3]]
        for number in range(len(found)):
            behind = (found[number].day, found[number].user)
            assert await store.daily_traffic(*november, after=behind) == found[number + 1 :]
        assert await store.daily_traffic(*november, limit=2) == found[:2]
        assert await store.daily_traffic("2026-11-10", "2026-11-30", after=("2026-11-09", "zoe")) == [found[3]]  # fmt: skip


async def test_days_are_forgotten_after_a_while(opener: Opener) -> None:
    async with opener() as store:
        for number, each in enumerate(("2025-10-24", "2025-10-25", "2026-11-29"), 1):
            await store.add_traffic(flush(number, month=each[:7], alice=1), each)
        kept = await store.daily_traffic("2020-01-01", "2030-01-01")
        assert [total.day for total in kept] == ["2025-10-25", "2026-11-29"]
        assert await store.traffic() == {"alice": 3}


async def test_a_flush_of_a_day_cancelled_at_any_moment_is_added_wholly_or_not(
    opener: Opener,
) -> None:
    async with opener() as store:
        await store.prepare()
        for number in range(1, 16):
            with trio.move_on_after(number * 0.0002):
                await store.add_traffic(flush(number, alice=1), "2026-11-29")
            await store.add_traffic(flush(number, alice=1), "2026-11-29")
            assert await store.traffic() == {"alice": number}
            assert await store.daily_traffic("2026-11-29", "2026-11-29") == [day(29, "alice", number)]  # fmt: skip


async def test_traffic_is_large_and_may_be_nothing(opener: Opener) -> None:
    exbibyte = 2**60
    async with opener() as store:
        await store.add_traffic(flush(1, alice=exbibyte))
        await store.add_traffic(flush(2, alice=exbibyte))
        await store.add_traffic(flush(3))
        await store.add_traffic(flush(3, alice=1))
        assert await store.traffic() == {"alice": 2 * exbibyte}


async def test_traffic_outlives_its_account(opener: Opener) -> None:
    async with opener() as store:
        await store.add_user(user())
        await store.add_traffic(flush(1, alice=10))
        await store.remove_user("alice")
        assert await store.traffic() == {"alice": 10}
        assert await store.find_user("alice") is None


async def test_a_flush_cancelled_at_any_moment_is_added_wholly_or_not(opener: Opener) -> None:
    async with opener() as store:
        for number in range(1, 31):
            before = await store.traffic()
            with trio.move_on_after(number * 0.0001):
                await store.add_traffic(flush(number, alice=1, bob=1))
            after = await store.traffic()
            assert after.get("alice", 0) - before.get("alice", 0) in {0, 1}
            assert after.get("alice") == after.get("bob")
            await store.add_traffic(flush(number, alice=1, bob=1))  # sent again under its number
            assert await store.traffic() == {"alice": number, "bob": number}


async def token_of(store: Store, who: str, name: str = "grafana", **more: Any) -> Token:
    """Return a token for whoever has the account now; make the account where there is none. Its text is its name."""
    return Token(
        name=name,
        user=who,
        account_id=await account(store, who),
        digest=hashlib.sha256(f"{who} {name}".encode()).digest(),
        **{"scope": TokenScope.READ, "created_at": CREATED, **more},
    )


async def test_a_token_comes_back_as_it_was(opener: Opener) -> None:
    async with opener() as store:
        await store.prepare()
        one = await token_of(store, "été", "日本", scope=TokenScope.MANAGE, expires_at=EXPIRES)
        other = await token_of(store, "bob")
        for token in (one, other):
            await store.add_token(token)
    async with opener() as store:
        assert await store.find_token(one.digest) == one
        assert await store.find_token(other.digest) == other
        assert await store.find_token(bytes(32)) is None
        assert await store.list_tokens() == [other, one]
        assert await store.list_tokens("bob") == [other]
        for nobody in ("Bob", "carol", "\ud800"):
            assert await store.list_tokens(nobody) == []


async def test_an_account_has_a_token_of_a_name_once(opener: Opener) -> None:
    async with opener() as store:
        first = await token_of(store, "alice")
        await store.add_token(first)
        again = attrs.evolve(first, token_id="another", digest=bytes(32))
        with pytest.raises(StoreError, match="'alice' has a token 'grafana' already"):
            await store.add_token(again)
        await store.add_token(await token_of(store, "alice", "Grafana"))
        await store.add_token(await token_of(store, "bob"))
        assert [token.name for token in await store.list_tokens("alice")] == ["Grafana", "grafana"]


async def test_of_many_that_add_the_same_token_one_does(opener: Opener) -> None:
    outcomes: list[str] = []

    async def add(store: Store, token: Token) -> None:
        try:
            await store.add_token(token)
        except StoreError as error:
            outcomes.append(type(error).__name__)
        else:
            outcomes.append("added")

    async with opener() as here, opener() as there:
        token = await token_of(here, "alice")
        async with trio.open_nursery() as nursery:
            for number in range(6):
                mine = attrs.evolve(token, token_id=str(number), digest=bytes([number]) * 32)
                nursery.start_soon(add, [here, there][number % 2], mine)
    assert sorted(outcomes) == ["StoreError"] * 5 + ["added"]


async def test_an_account_has_so_many_tokens_at_most(opener: Opener) -> None:
    async with opener() as store:
        for number in range(MOST_TOKENS):
            await store.add_token(await token_of(store, "alice", str(number)))
        with pytest.raises(StoreError, match="revoke one"):
            await store.add_token(await token_of(store, "alice"))
        await store.add_token(await token_of(store, "bob"))
        await store.remove_token((await store.list_tokens("alice"))[0].token_id)
        await store.add_token(await token_of(store, "alice"))


async def test_a_token_of_nobody_is_not_added(opener: Opener) -> None:
    async with opener() as store:
        token = await token_of(store, "alice")
        for wrong in (
            attrs.evolve(token, user="carol"),
            attrs.evolve(token, user="Alice"),
            attrs.evolve(token, user="\ud800"),
            attrs.evolve(token, account_id=token.account_id + 1),
        ):
            with pytest.raises(StoreError, match="there is no user"):
                await store.add_token(wrong)
        assert await store.list_tokens() == []


async def test_the_tokens_of_an_account_end_with_it(opener: Opener) -> None:
    async with opener() as store:
        token = await token_of(store, "alice")
        await store.add_token(token)
        await store.remove_user("alice")
        assert await store.find_token(token.digest) is None
        assert await account(store, "alice") != token.account_id
        assert await store.find_token(token.digest) is None
        assert await store.list_tokens() == []
        with pytest.raises(StoreError, match="there is no such token"):
            await store.remove_token(token.token_id)


async def test_a_removed_token_is_gone_and_no_other(opener: Opener) -> None:
    async with opener() as store:
        one, other = await token_of(store, "alice"), await token_of(store, "alice", "other")
        await store.add_token(one)
        await store.add_token(other)
        await store.remove_token(one.token_id)
        assert await store.find_token(one.digest) is None
        assert await store.list_tokens() == [other]
        for gone in (one.token_id, "", "\ud800", "é", other.token_id.upper() + "x"):
            with pytest.raises(StoreError, match="there is no such token"):
                await store.remove_token(gone)


async def test_the_last_use_of_a_token_never_becomes_earlier(opener: Opener) -> None:
    async with opener() as store:
        token = await token_of(store, "alice")
        await store.add_token(token)
        for moment in (NOW, NOW - timedelta(days=1), NOW):
            await store.touch_token(token.token_id, moment)
            assert await store.find_token(token.digest) == attrs.evolve(token, last_used=NOW)
        await store.touch_token("gone", NOW)
        assert await store.list_tokens() == [attrs.evolve(token, last_used=NOW)]


NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
KEEP = timedelta(days=30)
SHOP, BLOG = "shop.tunnel.example.com", "blog.example.org"


async def account(store: Store, name: str) -> int:
    """Return the id of the account of that name; make one where there is none."""
    if (found := await store.find_user(name)) is None:
        await store.add_user(attrs.evolve(user(name), created_at=None))
        found = await store.find_user(name)
        assert found is not None
    return found.account_id


async def reserve(store: Store, who: str, names: list[str], now: datetime) -> str | None:
    """Reserve names for whoever has the account now; return one that is somebody else's."""
    try:
        await store.reserve_names(who, await account(store, who), names, now, KEEP)
    except NameTakenError as error:
        return error.name
    return None


async def owners(store: Store) -> dict[str, tuple[str, datetime]]:
    return {owned.name: (owned.owner, owned.used_at) for owned in await store.list_names()}


async def test_a_name_is_its_user_s_until_it_was_not_used_for_long(opener: Opener) -> None:
    async with opener() as store:
        await store.prepare()
        assert await reserve(store, "alice", [SHOP, BLOG], NOW) is None
        assert await reserve(store, "bob", [SHOP], NOW + KEEP / 2) == SHOP
        assert await reserve(store, "alice", [SHOP], NOW + KEEP / 2) is None
        # All or none: one that is free is not taken beside one that is not.
        assert await reserve(store, "bob", ["free.example.org", SHOP], NOW + KEEP) == SHOP
        assert [owned.name for owned in await store.list_names()] == [BLOG, SHOP]
        # The blog was not used since, the shop was.
        assert await reserve(store, "bob", [BLOG], NOW + KEEP) is None
        assert await reserve(store, "bob", [SHOP], NOW + KEEP) == SHOP
        assert await reserve(store, "bob", [SHOP], NOW + 1.5 * KEEP) is None
        assert await reserve(store, "alice", [SHOP, BLOG], NOW + 1.5 * KEEP) in (
            SHOP,
            BLOG,
        )
        assert await owners(store) == {
            SHOP: ("bob", NOW + 1.5 * KEEP),
            BLOG: ("bob", NOW + KEEP),
        }


async def test_the_names_of_an_account_that_is_gone_are_nobody_s(opener: Opener) -> None:
    async with opener() as store:
        await store.prepare()
        assert await reserve(store, "alice", [SHOP], NOW) is None
        first = await account(store, "alice")
        await store.remove_user("alice")
        # A session that is about to end may still note that it uses the name, or get another one.
        await store.touch_name("alice", SHOP, NOW + KEEP / 2)
        await store.reserve_names("alice", first, [BLOG], NOW, KEEP)
        assert await account(store, "alice") != first
        for name in (SHOP, BLOG):
            assert await reserve(store, "alice", [name], NOW) == name
        assert await owners(store) == {SHOP: ("", NOW), BLOG: ("", NOW)}
        await store.release_name(SHOP)
        assert await reserve(store, "alice", [SHOP], NOW) is None
        assert await reserve(store, "alice", [BLOG], NOW + KEEP) is None
        with pytest.raises(StoreError, match="nobody"):
            await store.release_name("none.example.org")


async def test_a_later_account_of_a_name_has_none_of_its_names(
    opener: Opener, request: pytest.FixtureRequest
) -> None:
    """However the one before was removed: by the Go program, or by hand."""
    async with opener() as store:
        await store.prepare()
        assert await reserve(store, "alice", [SHOP, BLOG], NOW) is None
        remove_behind_its_back(request, store, "alice")
        assert await owners(store) == {SHOP: ("", NOW), BLOG: ("", NOW)}
        await account(store, "alice")
        assert await owners(store) == {SHOP: ("", NOW), BLOG: ("", NOW)}
        await store.touch_name("alice", SHOP, NOW + KEEP / 2)  # by a session of the first
        assert await reserve(store, "alice", [SHOP], NOW + KEEP) == SHOP
        assert await reserve(store, "alice", [BLOG], NOW + KEEP) is None
        assert (await owners(store))[BLOG] == ("alice", NOW + KEEP)


def remove_behind_its_back(request: pytest.FixtureRequest, store: Store, name: str) -> None:
    if isinstance(store, sqlite_store.SQLiteStore):
        with sqlite3.connect(store.path) as connection:
            connection.execute("delete from users where name = ?", (name,))
        connection.close()
    else:
        assert isinstance(store, mysql_store.MySQLStore)
        server: MariaDB = request.getfixturevalue("mariadb")
        server.sql(
            f"delete from userInfo_userinfo where username = '{name}'", store._pool.config.db_name
        )


async def test_what_was_new_with_a_reservation_is_taken_back(opener: Opener) -> None:
    wiki, moment = "wiki.example.org", timedelta(microseconds=1)
    async with opener() as store:
        await store.prepare()
        alice, bob = await account(store, "alice"), await account(store, "bob")
        assert await reserve(store, "bob", [BLOG], NOW - KEEP) is None
        assert await store.reserve_names("alice", alice, [SHOP], NOW - KEEP / 2, KEEP) == {SHOP}
        new = await store.reserve_names("alice", alice, [SHOP, BLOG, wiki], NOW, KEEP)
        assert new == {BLOG, wiki}
        for who, number, at in (("bob", bob, NOW), ("alice", bob, NOW), ("alice", alice, NOW + moment)):  # fmt: skip
            await store.take_back_names(who, number, new, at)
        assert (await owners(store)).keys() == {SHOP, BLOG, wiki}
        await store.take_back_names("alice", alice, new, NOW)
        assert await owners(store) == {SHOP: ("alice", NOW)}
        await store.take_back_names("alice", alice, [], NOW)


@pytest.mark.parametrize("later", [timedelta(0), timedelta(seconds=1), -timedelta(seconds=1)])
async def test_nothing_is_taken_back_that_somebody_else_of_the_account_counts_on(
    opener: Opener, later: timedelta
) -> None:
    """Another client of it has come at the same moment, perhaps to a server whose clock is another."""
    async with opener() as store, opener() as other:
        await store.prepare()
        alice = await account(store, "alice")
        new = await store.reserve_names("alice", alice, [SHOP, BLOG], NOW, KEEP)
        assert await other.reserve_names("alice", alice, [SHOP], NOW + later, KEEP) == set()
        await store.touch_name("alice", BLOG, NOW + timedelta(microseconds=1))
        await store.take_back_names("alice", alice, new, NOW)
        assert (await owners(store)).keys() == {SHOP, BLOG}


async def test_a_clock_that_is_set_back_takes_no_time_from_a_name(opener: Opener) -> None:
    back = NOW - KEEP / 2
    async with opener() as store:
        await store.prepare()
        assert await reserve(store, "alice", [SHOP], NOW) is None
        assert await reserve(store, "alice", [SHOP, BLOG], back) is None
        used = await owners(store)
        assert used[SHOP][1] >= NOW
        assert used[BLOG] == ("alice", back)
        assert await store.touch_name("alice", SHOP, back)
        assert await owners(store) == used
        assert await reserve(store, "bob", [SHOP], NOW + KEEP * 0.9) == SHOP
        assert await reserve(store, "bob", [BLOG], NOW + KEEP * 0.9) is None


async def test_a_name_that_is_used_is_touched_if_it_is_its_user_s(opener: Opener) -> None:
    async with opener() as store:
        await store.prepare()
        assert await reserve(store, "alice", [SHOP, BLOG], NOW) is None
        later = NOW + timedelta(microseconds=1)
        assert await store.touch_name("alice", SHOP, later)
        assert await store.touch_name("alice", SHOP, later)  # nothing to change
        for user, name in (("bob", SHOP), ("Alice", SHOP), ("alice", "none.example.org")):
            assert not await store.touch_name(user, name, NOW + KEEP)
        assert await owners(store) == {
            SHOP: ("alice", later),
            BLOG: ("alice", NOW),
        }


async def test_of_many_that_want_a_name_at_once_one_gets_it(opener: Opener) -> None:
    async with opener() as one, opener() as two:
        await one.prepare()
        got: list[str] = []

        async def want(store: Store, who: str) -> None:
            if await reserve(store, who, [SHOP], NOW) is None:
                got.append(who)

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(want, (one, two)[number % 2], f"user{number}")
        [winner] = got
        [owned] = await two.list_names()
        assert owned.owner == winner


async def test_names_whose_time_is_over_are_forgotten_some_at_a_time(opener: Opener) -> None:
    async with opener() as store:
        await store.prepare()
        old = [f"n{number}.example.org" for number in range(2 * FORGOTTEN_AT_ONCE + 50)]
        assert await reserve(store, "alice", old, NOW) is None
        for number, left in enumerate((FORGOTTEN_AT_ONCE + 50, 50, 0), 1):
            new = f"new{number}.example.org"
            assert await reserve(store, "bob", [new], NOW + KEEP) is None
            assert len(await store.list_names()) == left + number


@pytest.mark.limit(30)
async def test_names_are_reserved_used_and_forgotten_by_several_servers_at_once(
    opener: Opener,
) -> None:
    async with opener() as one, opener() as two:
        await one.prepare()
        old = [f"old{number}.example.org" for number in range(3 * FORGOTTEN_AT_ONCE)]
        live = [f"n{number}.example.org" for number in range(20)]
        assert await reserve(one, "alice", old, NOW - KEEP) is None
        assert await reserve(one, "bob", live, NOW - KEEP / 2) is None
        bob = await account(one, "bob")

        async def touch(store: Store, name: str) -> None:
            assert await store.touch_name("bob", name, NOW)

        async def want(store: Store, number: int) -> None:
            name = f"new{number}.example.org"
            new = await store.reserve_names("bob", bob, [name], NOW, KEEP)
            if number % 2:
                await store.take_back_names("bob", bob, new, NOW)

        async with trio.open_nursery() as nursery:
            for number, name in enumerate(live):
                nursery.start_soon(touch, (one, two)[number % 2], name)
                nursery.start_soon(want, (two, one)[number % 2], number)
        expected = {*live, *(f"new{number}.example.org" for number in range(0, 20, 2))}
        assert await owners(two) == dict.fromkeys(expected, ("bob", NOW))


async def test_no_user_has_names_without_end(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sqlite_store, mysql_store):
        monkeypatch.setattr(module, "MOST_NAMES", 3)
    async with opener() as store:
        await store.prepare()
        for number in range(3):
            assert await reserve(store, "alice", [f"n{number}.example.org"], NOW) is None
        with pytest.raises(StoreError, match="names lately"):
            await reserve(store, "alice", ["n3.example.org"], NOW)
        assert await reserve(store, "alice", ["n0.example.org"], NOW) is None
        assert await reserve(store, "alice", ["n3.example.org"], NOW + KEEP) is None


async def test_who_is_not_there_cannot_be_changed(opener: Opener) -> None:
    async with opener() as store:
        for change in (
            store.remove_user("nobody"),
            store.set_expiry("nobody", None),
            store.set_ticket_salt("nobody", b"salt"),
            store.change_user("nobody", lambda each: attrs.evolve(each, limits=LIMITS, damage="")),
            store.set_password("nobody", "hash", b"salt"),
        ):
            with pytest.raises(StoreError, match="'nobody'") as caught:
                await change
            assert not isinstance(caught.value, StoreUnavailableError)
        assert await store.list_users() == []


async def test_times_are_utc_to_the_microsecond(opener: Opener) -> None:
    elsewhere = EXPIRES.astimezone(timezone(timedelta(hours=-11, minutes=-30)))
    last = datetime.max.replace(tzinfo=UTC)
    async with opener() as store:
        await store.add_user(user(expires_at=elsewhere))
        await store.add_user(user("bob", expires_at=last))
        found, bob = await store.list_users()
    assert (found.expires_at, bob.expires_at) == (EXPIRES, last)
    assert found.expires_at is not None
    assert found.created_at is not None
    assert found.expires_at.utcoffset() == found.created_at.utcoffset() == timedelta(0)


async def test_two_open_stores_see_each_other(opener: Opener) -> None:
    async with opener() as here, opener() as there:
        await here.add_user(user())
        assert await there.find_user("alice") is not None
        await there.remove_user("alice")
        assert await here.find_user("alice") is None


async def test_of_many_that_add_the_same_name_one_wins(opener: Opener) -> None:
    outcomes: list[bool] = []

    async def add(store: Store) -> None:
        try:
            await store.add_user(user())
        except StoreError:
            outcomes.append(False)
        else:
            outcomes.append(True)

    async with opener() as here, opener() as there, trio.open_nursery() as nursery:
        for store in [here, there] * 10:
            nursery.start_soon(add, store)
    assert sorted(outcomes) == [False] * 19 + [True]


async def test_every_call_is_a_checkpoint(opener: Opener) -> None:
    async with opener() as store:
        await store.add_user(user())
        with trio.testing.assert_checkpoints():
            await store.find_user("alice")
        with trio.testing.assert_checkpoints():
            await store.set_expiry("alice", None)
        with trio.testing.assert_checkpoints():
            await store.find_users([])
        with trio.testing.assert_checkpoints():
            await store.monthly_traffic("2026-11", [])


async def test_a_call_that_is_cancelled_before_it_starts_changes_nothing(opener: Opener) -> None:
    async with opener() as store:
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.add_user(user())
        assert scope.cancelled_caught
        assert await store.list_users() == []


async def test_calls_cancelled_at_any_moment_leave_the_store_whole(opener: Opener) -> None:
    async with opener() as store:
        await store.add_user(user())
        for delay in range(30):
            async with trio.open_nursery() as nursery:
                for number in range(5):
                    salt = f"{delay:08}{number:08}".encode()
                    nursery.start_soon(store.set_password, "alice", salt.decode(), salt)
                await trio.sleep(delay * 0.00005)
                nursery.cancel_scope.cancel()
            found = await store.find_user("alice")
            assert found is not None
            # Both fields are of the same call.
            assert found.password in (
                found.ticket_salt.decode(errors="replace"),
                "hash of alice",
            )
        await store.remove_user("alice")


def test_secrets_of_an_account_are_not_shown() -> None:
    shown = repr(user())
    assert "hash of" not in shown
    assert "salt" not in shown


def test_limits_are_kept_as_text() -> None:
    assert Limits().to_text() == ""
    for limits in (Limits(), LIMITS, Limits(sessions=0), Limits(visit_ports=()), Limits(names=())):
        assert Limits.from_text(limits.to_text()) == limits
        assert read_limits(limits.to_text(), of="alice") == (limits, "")


DAMAGED = ["{", "[]", "null", "7", '{"sessions": "1"}', '{"sessions": true}', '{"sessions": -1}', '{"visitors": 1.5}', '{"bandwidth": 0}', f'{{"bandwidth": 1{"0" * 400}}}', '{"visit_ports": 7}', '{"visit_ports": ["7"]}', '{"allow_visitors": "192.0.2.7"}', '{"deny_visitors": [7]}', '{"deny_visitors": 7}', '{"deny_visitors": ""}', '{"visit_ports": {}}', '{"names": "shop"}', '{"names": ""}', '{"names": [7]}', '{"names": ["Shop"]}', '{"names": ["*.*"]}', '{"names": 0}', '{"colour": 1}', "[" * 100_000]  # fmt: skip


def test_what_sessions_share_says_nothing_of_ports_and_names() -> None:
    assert LIMITS.shared == attrs.evolve(LIMITS, visit_ports=None, names=None)
    assert Limits().shared == Limits()


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_limits_are_told(text: str) -> None:
    limits, damage = read_limits(text, of="alice")
    assert limits == Limits()
    assert re.fullmatch(r"the limits of 'alice' in the store are damaged: \S.*", damage)


def test_the_instant_of_expiry_counts_as_expired() -> None:
    assert not user().is_expired(EXPIRES)
    assert not user(expires_at=EXPIRES).is_expired(EXPIRES - timedelta(microseconds=1))
    assert user(expires_at=EXPIRES).is_expired(EXPIRES)


@pytest.mark.parametrize("name", ["a", "3210561027", "jürgen", "a" * 64, "x@example.com", "日本"])
def test_good_names(name: str) -> None:
    check_new_name(name)


@pytest.mark.parametrize("name", ["", "a" * 65, "a b", "a\n", "\x1b[2J", "a\u00a0b", "a\u200bb", "\ud800", "\0"])  # fmt: skip
def test_bad_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"^a user name is 1 to 64 characters[^\n]*$"):
        check_new_name(name)
