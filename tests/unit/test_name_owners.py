"""Whose names are, over time: those in use are noted as used, each by itself."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from trionat.server.accounts.name_owners import KEPT_FOR, NameOwners, Reservation
from trionat.server.workers.values import read_reservation, write_reservation
from trionat.store.base import UNSETTLED
from trionat.store.sqlite import open_sqlite_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trionat.store.sqlite import SQLiteStore

SHOP, BLOG, WIKI = "shop.example.org", "blog.example.org", "wiki.example.org"


@attrs.define
class Day:
    """The time of day, which the test moves on."""

    time: datetime = datetime(2026, 11, 29, 12, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    async with open_sqlite_store(tmp_path / "users.db") as store:
        yield store


async def used(store: SQLiteStore) -> dict[str, datetime]:
    return {owned.name: owned.used_at for owned in await store.list_names()}


async def test_names_in_use_are_touched_regularly(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trionat.server.accounts.name_owners._TOUCH_INTERVAL", 0.01)
    day = Day()
    owners = NameOwners(store, day.now)
    await owners.reserve("alice", 1, [SHOP, BLOG])
    await owners.reserve("bob", 2, [WIKI])
    began = day.time
    in_use = [(SHOP, "alice"), (WIKI, "bob")]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(owners.touch_regularly, lambda: in_use)
        for days in (29, 58):
            day.time = began + timedelta(days=days)
            expected = {SHOP: day.time, BLOG: began, WIKI: day.time}
            while await used(store) != expected:  # noqa: ASYNC110 - the store tells nobody
                await trio.sleep(0.01)
        in_use.clear()  # the clients have left
        await trio.sleep(0.05)
        left, day.time = day.time, day.time + KEPT_FOR - timedelta(seconds=1)
        await trio.sleep(0.05)
        assert (await used(store))[SHOP] == left
        nursery.cancel_scope.cancel()


async def test_a_name_that_is_lost_takes_no_other_along_and_is_told_once(
    store: SQLiteStore, caplog: pytest.LogCaptureFixture
) -> None:
    day = Day()
    owners = NameOwners(store, day.now)
    await owners.reserve("alice", 1, [SHOP, BLOG, WIKI])
    await store.release_name(SHOP)
    await store.release_name(BLOG)
    await owners.reserve("bob", 2, [BLOG])
    began = day.time
    in_use = [(name, "alice") for name in (SHOP, BLOG, WIKI)]
    for hours in (1, 2, 3):
        day.time = began + timedelta(hours=hours)
        await owners.touch(in_use)
    assert await used(store) == {BLOG: began, WIKI: day.time}
    told = [str(record.msg) for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 2
    assert f"name={SHOP} user=alice" in told[0]
    assert f"name={BLOG} user=alice" in told[1]
    await owners.reserve("alice", 1, [SHOP])
    await owners.touch(in_use)
    await store.release_name(SHOP)
    await owners.touch(in_use)  # lost anew
    told = [str(record.msg) for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 3


async def test_names_are_touched_again_when_the_store_is_back(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trionat.store.sqlite_file._BUSY_TIMEOUT", 0.01)
    day = Day()
    owners = NameOwners(store, day.now)
    await owners.reserve("alice", 1, [SHOP])
    day.time += timedelta(hours=1)
    with sqlite3.connect(store.path, isolation_level=None) as other:
        other.execute("begin immediate")
        await owners.touch([(SHOP, "alice")])
        other.execute("rollback")
    other.close()
    await owners.touch([(SHOP, "alice")])
    assert await used(store) == {SHOP: day.time}
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(("later", "left"), [(0, []), (59, []), (61, [SHOP]), (-1, [SHOP])])
async def test_a_reservation_is_taken_back_soon_or_not_at_all(
    store: SQLiteStore, later: int, left: list[str]
) -> None:
    day = Day()
    owners = NameOwners(store, day.now)
    reservation = await owners.reserve("alice", 1, [SHOP])
    assert reservation.names == (SHOP,)
    assert (await owners.reserve("alice", 1, [SHOP])).names == ()
    await store.release_name(SHOP)
    reservation = await owners.reserve("alice", 1, [SHOP])
    day.time += timedelta(seconds=later)
    await owners.take_back(reservation)
    assert list(await used(store)) == left


async def test_whoever_counts_on_a_reservation_keeps_it_from_being_taken_back(
    store: SQLiteStore,
) -> None:
    """As long as it may be: for as long as that the use of a name that is in use is written anew by each login."""
    day = Day()
    owners = NameOwners(store, day.now)
    reservation = await owners.reserve("alice", 1, [SHOP])
    day.time += UNSETTLED / 2 - timedelta(seconds=1)
    fast = NameOwners(store, lambda: day.time + UNSETTLED / 2)  # another server's clock
    await fast.reserve("alice", 1, [SHOP])
    await owners.take_back(reservation)
    assert list(await used(store)) == [SHOP]
    before = await used(store)
    day.time += UNSETTLED * 2
    await owners.reserve("alice", 1, [SHOP])
    assert await used(store) == before  # nothing to write, as mostly


def test_a_reservation_is_what_it_was_behind_the_link_to_a_worker() -> None:
    reservation = Reservation(user="été", account_id=2**40, names=(SHOP, BLOG), at=Day().time)
    assert read_reservation(json.loads(json.dumps(write_reservation(reservation)))) == reservation
