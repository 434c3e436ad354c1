"""What every store has to do. A store joins by a factory in `STORES`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, TypeAlias

import attrs
import pytest
import trio
import trio.testing

from trionat.errors import StoreError, StoreUnavailableError
from trionat.store.base import User, check_new_name, new_ticket_salt
from trionat.store.sqlite import open_sqlite_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from trionat.store.base import Store

    Opener: TypeAlias = Callable[[], AbstractAsyncContextManager[Store]]

CREATED = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
EXPIRES = datetime(2027, 1, 31, 23, 59, 59, 999999, tzinfo=UTC)


def sqlite(folder: Path) -> Opener:
    return lambda: open_sqlite_store(folder / "users.db")


STORES: dict[str, Callable[[Path], Opener]] = {"sqlite": sqlite}


@pytest.fixture(params=STORES)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Opens a store that is empty at first, and the same one every time."""
    return STORES[request.param](tmp_path)


def user(name: str = "alice", *, expires_at: datetime | None = None) -> User:
    return User(
        name=name,
        password_hash=f"hash of {name}",
        ticket_salt=new_ticket_salt(),
        expires_at=expires_at,
        created_at=CREATED,
    )


async def test_an_account_comes_back_as_it_was(opener: Opener) -> None:
    alice, bob = user(), user("bob", expires_at=EXPIRES)
    async with opener() as store:
        await store.add_user(alice)
        await store.add_user(bob)
        assert await store.find_user("alice") == alice
        assert await store.find_user("bob") == bob
        assert await store.find_user("carol") is None
    async with opener() as store:
        assert await store.list_users() == [alice, bob]


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
        assert await store.list_users() == [first]


async def test_a_name_is_free_again_after_its_account(opener: Opener) -> None:
    again = user()
    async with opener() as store:
        await store.add_user(user())
        await store.remove_user("alice")
        assert await store.find_user("alice") is None
        await store.add_user(again)
        assert await store.find_user("alice") == again


async def test_each_change_changes_its_own_field_of_its_own_account(opener: Opener) -> None:
    alice, bob = user(), user("bob")
    async with opener() as store:
        await store.add_user(alice)
        await store.add_user(bob)

        await store.set_expiry("alice", EXPIRES)
        alice = attrs.evolve(alice, expires_at=EXPIRES)
        assert await store.list_users() == [alice, bob]

        await store.set_ticket_salt("alice", b"another salt of ")
        alice = attrs.evolve(alice, ticket_salt=b"another salt of ")
        assert await store.list_users() == [alice, bob]

        await store.set_password_hash("alice", "another hash", b"salt again, 16 b")
        alice = attrs.evolve(alice, password_hash="another hash", ticket_salt=b"salt again, 16 b")
        assert await store.list_users() == [alice, bob]

        await store.set_expiry("alice", None)
        assert await store.list_users() == [attrs.evolve(alice, expires_at=None), bob]


async def test_who_is_not_there_cannot_be_changed(opener: Opener) -> None:
    async with opener() as store:
        for change in (
            store.remove_user("nobody"),
            store.set_expiry("nobody", None),
            store.set_ticket_salt("nobody", b"salt"),
            store.set_password_hash("nobody", "hash", b"salt"),
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
                    nursery.start_soon(store.set_password_hash, "alice", salt.decode(), salt)
                await trio.sleep(delay * 0.00005)
                nursery.cancel_scope.cancel()
            found = await store.find_user("alice")
            assert found is not None
            # Both fields are of the same call.
            assert found.password_hash in (
                found.ticket_salt.decode(errors="replace"),
                "hash of alice",
            )
        await store.remove_user("alice")


def test_secrets_of_an_account_are_not_shown() -> None:
    shown = repr(user())
    assert "hash of" not in shown
    assert "salt" not in shown


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
