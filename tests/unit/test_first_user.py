from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.server.accounts.first_user import (
    FIRST_USER,
    FirstUser,
    ensure_first_user,
    find_first_user,
)
from trionat.store.base import User, new_ticket_salt
from trionat.store.passwords import verify_password
from trionat.store.sqlite import open_sqlite_store

if TYPE_CHECKING:
    from pathlib import Path

    from trionat.store.base import Store


def user(name: str = "alice", salt: bytes = b"s" * 16) -> User:
    return User(name=name, password="h", ticket_salt=salt, created_at=datetime.now(UTC))


async def test_an_empty_store_gets_a_first_user_once(tmp_path: Path) -> None:
    async with open_sqlite_store(tmp_path / "users.db") as store:
        assert await find_first_user(store) is None
        first = await ensure_first_user(store)
        assert first is not None
        (found,) = await store.list_users()
        assert attrs.evolve(found, account_id=0) == first.user
        assert first.user.name == FIRST_USER == "trionat"
        assert first.user.expires_at is None
        assert first.user.admin
        assert await verify_password(first.user.password, first.password)
        assert first.password not in repr(first)
        assert await ensure_first_user(store) is None
        assert await find_first_user(store) == found


async def test_the_first_user_is_known_as_long_as_it_is_alone(tmp_path: Path) -> None:
    async with open_sqlite_store(tmp_path / "users.db") as store:
        await store.add_user(user())
        assert await ensure_first_user(store) is None
        assert await find_first_user(store) is None  # alone, but somebody's
        await store.add_user(user(FIRST_USER, new_ticket_salt()))
        assert await find_first_user(store) is None
        await store.remove_user("alice")
        assert await find_first_user(store) is not None
        await store.add_user(user("zoe"))
        assert await find_first_user(store) is None


async def test_two_servers_that_start_at_once_make_one_first_user(tmp_path: Path) -> None:
    async with (
        open_sqlite_store(tmp_path / "users.db") as here,
        open_sqlite_store(tmp_path / "users.db") as there,
    ):
        outcomes: list[FirstUser | None] = []

        async def start(store: Store) -> None:
            outcomes.append(await ensure_first_user(store))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start, here)
            nursery.start_soon(start, there)
        (first,) = filter(None, outcomes)
        (found,) = await here.list_users()
        assert attrs.evolve(found, account_id=0) == first.user
