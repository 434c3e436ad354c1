"""Whose names are, whatever two users do with them while time goes on: each store against a model of a few lines."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import attrs
import pytest
import trio
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st

from trionat.errors import NameTakenError, StoreError
from trionat.store.backend import open_store
from trionat.store.base import FRESH, UNSETTLED, User
from trionat.store.mysql.schema import init
from trionat.store.mysql.store import MySQLStore
from trionat.store.sqlite import SQLiteStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.mariadb import MariaDB
    from trionat.store.base import Store

USERS: Final = ("alice", "bob")
NAMES: Final = ("shop.example.org", "blog.example.org", "wiki.example.org")
KEEP: Final = timedelta(days=30)
MOMENT: Final = timedelta(microseconds=1)
PASSES: Final = (
    timedelta(0),
    MOMENT,
    UNSETTLED,
    FRESH,
    KEEP / 2,
    KEEP - FRESH,
    KEEP - MOMENT,
    KEEP,
    -MOMENT,
    -FRESH,
    -KEEP / 2,
)
"""How far the clock goes on between two steps, or is set back."""

steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["reserve"] * 4 + ["touch", "touch", "take back", "release", "remove", "vanish"]
        ),
        st.sampled_from(USERS),
        st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True),
        st.sampled_from(PASSES),
    ),
    max_size=20,
)
Step = tuple[str, str, list[str], timedelta]


@attrs.define
class Row:
    """A name in the model: of which account of which user, or of nobody."""

    user: str
    account_id: int
    used_at: datetime


@attrs.define
class Model:
    """What is known of the names."""

    rows: dict[str, Row] = attrs.field(factory=lambda: {})

    def reserve(
        self, user: str, account_id: int, names: list[str], now: datetime
    ) -> set[str] | None:
        """Return which names are new; None: one is somebody else's."""
        rows = {name: self.rows[name] for name in names if name in self.rows}
        own = {name for name, row in rows.items() if (row.user, row.account_id) == (user, account_id)}  # fmt: skip
        if any(now - row.used_at < KEEP for name, row in rows.items() if name not in own):
            return None
        ages = [now - rows[name].used_at for name in own]
        if len(own) == len(names) and all(UNSETTLED <= age < FRESH for age in ages):
            return set()
        for name in names:
            before = rows[name].used_at + MOMENT if name in rows else now
            self.rows[name] = Row(user, account_id, max(before, now))
        self.rows = {name: row for name, row in self.rows.items() if now - row.used_at < KEEP}
        return set(names) - own

    def touch(self, user: str, name: str, now: datetime) -> bool:
        row = self.rows.get(name)
        if row is None or row.user != user:
            return False
        row.used_at = max(row.used_at, now)
        return True

    def take_back(self, user: str, account_id: int, names: set[str], at: datetime) -> None:
        for name in names:
            if self.rows.get(name) == Row(user, account_id, at):
                del self.rows[name]

    def disown(self, user: str) -> None:
        for row in self.rows.values():
            if row.user == user:
                row.user, row.account_id = "", 0

    def listed(self, ids: dict[str, int]) -> list[tuple[str, str, datetime]]:
        """Return what is told of the names, while these accounts are there."""
        return [
            (name, row.user if ids.get(row.user) == row.account_id else "", row.used_at)
            for name, row in sorted(self.rows.items())
        ]


async def _live_through(
    store: Store, history: list[Step], remove_by_hand: Callable[[str], None]
) -> None:
    await store.prepare()
    model, now = Model(), datetime(2026, 11, 29, 12, tzinfo=UTC)
    ids = {user: await _account(store, user) for user in USERS}
    reserved: dict[str, list[tuple[int, set[str], datetime]]] = {user: [] for user in USERS}
    for deed, user, names, passes in history:
        now += passes
        note(f"{deed} {user} {names} {now}")
        before = {name: row.used_at for name, row in model.rows.items()}
        match deed:
            case "reserve":
                expected = model.reserve(user, ids[user], names, now)
                new: frozenset[str] | None = None
                with suppress(NameTakenError):
                    new = await store.reserve_names(user, ids[user], names, now, KEEP)
                assert new == expected
                if new is not None:
                    reserved[user].append((ids[user], set(new), now))
                event("taken" if new is None else "new" if new else "own")
            case "touch":
                for name in names:
                    expected_touch = model.touch(user, name, now)
                    assert await store.touch_name(user, name, now) == expected_touch
            case "take back" if reserved[user]:
                account_id, new_names, at = reserved[user].pop(0)  # perhaps there was a later one
                model.take_back(user, account_id, new_names, at)
                await store.take_back_names(user, account_id, new_names, at)
            case "release":
                known = model.rows.pop(names[0], None) is not None
                before.pop(names[0], None)
                if known:
                    await store.release_name(names[0])
                else:
                    with pytest.raises(StoreError, match="nobody has the name"):
                        await store.release_name(names[0])
            case "remove" | "vanish":
                if deed == "remove":
                    model.disown(user)
                    await store.remove_user(user)
                else:  # by the Go program, or by hand
                    remove_by_hand(user)
                ids[user] = await _account(store, user)
            case _:
                pass
        found = [(owned.name, owned.owner, owned.used_at) for owned in await store.list_names()]
        assert found == model.listed(ids)
        # No time is taken from a name, however the clock goes.
        assert all(used_at >= before.get(name, used_at) for name, _, used_at in found)


async def _account(store: Store, name: str) -> int:
    await store.add_user(User(name=name, password="hash", ticket_salt=bytes(16)))
    added = await store.find_user(name)
    assert added is not None
    return added.account_id


@settings(max_examples=150, deadline=None)
@given(history=steps)
def test_names_in_the_embedded_store(history: list[Step]) -> None:
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # no disk has to be waited for
    with TemporaryDirectory(dir=in_memory) as folder:
        file = Path(folder) / "trionat.db"

        def remove_by_hand(user: str) -> None:
            with sqlite3.connect(file) as connection:
                connection.execute("delete from users where name = ?", (user,))
            connection.close()

        async def main() -> None:
            async with open_store(None, file) as store:
                assert isinstance(store, SQLiteStore)
                await _live_through(store, history, remove_by_hand)

        trio.run(main)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(history=steps)
def test_names_in_a_database(mariadb: MariaDB, history: list[Step]) -> None:
    database = mariadb.new_database()

    def remove_by_hand(user: str) -> None:
        statement = f"delete from userInfo_userinfo where username = '{user}'"
        mariadb.sql(statement, database.db_name)

    async def main() -> None:
        async with open_store(database, Path("/nowhere")) as store:
            assert isinstance(store, MySQLStore)
            await init(store._pool)
            await _live_through(store, history, remove_by_hand)

    trio.run(main)
