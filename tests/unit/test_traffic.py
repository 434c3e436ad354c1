"""Traffic on its way from live sessions to the store: every byte once, whatever fails when.

The store is a real one in a file; what happens between it and the server is the test's to say. The clock stands still but for
where a test moves it, since files and SQLite run in threads, which Trio's own mock clock cannot see.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections import Counter
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from trionat.errors import StoreUnavailableError
from trionat.server.accounts.traffic import FLUSH_INTERVAL, RETRY_INTERVAL, Traffic, open_traffic
from trionat.store.journal import load_journal
from trionat.store.sqlite import open_sqlite_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection

    from trio.testing import MockClock

    from trionat.store.base import Flush, Store

NOVEMBER = datetime(2026, 11, 30, 23, 59, 50, tzinfo=UTC)
DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)

Outcome: TypeAlias = Literal[
    "added", "added slowly", "answer lost", "down", "hangs", "crash before", "crash after"
]


class Crash(BaseException):
    """The server is killed."""


@attrs.define(eq=False)
class Line:
    """A line to a store that breaks on demand: `outcome` is what becomes of the next flushes."""

    store: Store
    outcome: Outcome = "added"
    seen: list[Flush] = attrs.field(factory=list)
    asked: list[int] = attrs.field(factory=list)
    before_answer: Callable[[], Awaitable[None]] | None = None

    async def add_traffic(self, flush: Flush, day: str | None = None) -> bool:
        self.seen.append(flush)
        if self.outcome == "down":
            raise StoreUnavailableError("the store is down")
        if self.outcome == "crash before":
            raise Crash
        if self.outcome == "hangs":
            await trio.sleep_forever()
        added = await self.store.add_traffic(flush, day)
        if self.outcome == "added slowly":
            await trio.sleep(1)
        if self.outcome == "answer lost":
            raise StoreUnavailableError("the answer is lost")
        if self.outcome == "crash after":
            raise Crash
        return added

    async def monthly_traffic(
        self, month: str, names: Collection[str], pending: Flush | None = None
    ) -> dict[str, int]:
        self.asked.append(len(names))
        if (act := self.before_answer) is not None:
            self.before_answer = None
            await act()
        if self.outcome == "down":
            raise StoreUnavailableError("the store is down")
        if self.outcome == "hangs":
            await trio.sleep_forever()
        return await self.store.monthly_traffic(month, names, pending)


@attrs.define(eq=False)
class AdminServer:
    """A server's traffic, its folder and its store; `now` is the wall clock. `sessions` are counters of live sessions."""

    folder: Path
    line: Line
    clock: MockClock
    now: datetime = NOVEMBER
    sessions: Counter[str] = attrs.field(factory=Counter)
    traffic: Traffic = attrs.field(init=False)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Traffic]:
        """Run the server, until the end of the block."""
        async with open_traffic(self.folder, self.line, lambda: self.now) as self.traffic:  # type: ignore[arg-type]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.traffic.flush_regularly)
                await calm()
                yield self.traffic
                nursery.cancel_scope.cancel()

    async def total(self, name: str = "alice") -> int:
        return (await self.line.store.traffic()).get(name, 0)

    async def next_look(self) -> None:
        await calm()
        self.clock.jump(FLUSH_INTERVAL)
        await calm()


async def calm() -> None:
    """Wait until nobody but us has anything to do, threads included."""
    await trio.testing.wait_all_tasks_blocked()
    while trio.testing.active_thread_count():
        await trio.testing.wait_all_threads_completed()
        await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
async def office(tmp_path: Path, mock_clock: MockClock) -> AsyncIterator[AdminServer]:
    async with open_sqlite_store(tmp_path / "users.db") as store:
        (folder := tmp_path / "state").mkdir()
        yield AdminServer(folder, Line(store), mock_clock)


async def test_a_live_counter_is_in_the_store_every_ten_seconds(
    office: AdminServer, mock_clock: MockClock
) -> None:
    async with office.open() as traffic:
        with traffic.metered("alice", lambda: office.sessions["alice"]):
            office.sessions["alice"] = 1000
            await office.next_look()
            assert await office.total() == 1000
            office.sessions["alice"] = 1500
            await office.next_look()
            assert await office.total() == 1500
            sent = len(office.line.seen)
            await office.next_look()  # nothing new
            assert len(office.line.seen) == sent == 2
            office.sessions["alice"] = 1501
    assert await office.total() == 1501
    assert load_journal(office.folder).unsettled() == {}


async def test_sessions_that_end_together_are_one_flush(
    office: AdminServer, mock_clock: MockClock
) -> None:
    async with office.open() as traffic:
        with ExitStack() as sessions:
            for number in range(500):
                sessions.enter_context(traffic.metered(f"user {number % 3}", lambda: 7))
        await calm()
        assert not office.line.seen
        office.clock.jump(0.5)
        await calm()
        [flush] = office.line.seen
        assert flush.amounts == {"user 0": 167 * 7, "user 1": 167 * 7, "user 2": 166 * 7}
        assert await office.total("user 2") == 166 * 7


async def test_a_session_that_ends_by_an_error_is_counted(
    office: AdminServer, mock_clock: MockClock
) -> None:
    async with office.open() as traffic:
        with pytest.raises(RuntimeError), traffic.metered("alice", lambda: 9):
            raise RuntimeError
    assert await office.total() == 9


async def test_a_store_that_is_down_costs_time_alone(
    office: AdminServer, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "trionat")
    async with office.open() as traffic:
        office.line.outcome = "down"
        with traffic.metered("alice", lambda: 100):
            await office.next_look()
        office.clock.jump(0.5)
        await calm()
        for _ in range(3):
            with traffic.metered("alice", lambda: 1):
                pass
            office.clock.jump(0.5)  # written down, but the store is left in peace
            await calm()
        assert load_journal(office.folder).unsettled() == {"alice": 103}
        assert len(office.line.seen) == 1
        await office.next_look()
        assert len(office.line.seen) == 2
        office.line.outcome = "added"
        await office.next_look()
        assert await office.total() == 103
        assert load_journal(office.folder).unsettled() == {}
    numbers = [flush.number for flush in office.line.seen]
    assert numbers == [1, 1, 1, 2]
    messages = [record.getMessage() for record in caplog.records]
    assert sum("traffic cannot be added to the store" in message for message in messages) == 1
    assert sum("traffic is added to the store again" in message for message in messages) == 1


async def test_a_flush_whose_answer_was_lost_is_added_once(
    office: AdminServer, mock_clock: MockClock
) -> None:
    async with office.open() as traffic:
        office.line.outcome = "answer lost"
        with traffic.metered("alice", lambda: office.sessions["alice"]):
            office.sessions["alice"] = 100
            await office.next_look()
            office.sessions["alice"] = 150
            await office.next_look()
            office.line.outcome = "added"
            await office.next_look()
    assert await office.total() == 150
    assert [flush.number for flush in office.line.seen] == [1, 1, 1, 2]
    assert [flush.amounts["alice"] for flush in office.line.seen] == [100, 100, 100, 50]


async def test_a_store_that_does_not_answer_is_given_up_in_time(
    office: AdminServer, mock_clock: MockClock
) -> None:
    async with office.open() as traffic:
        office.line.outcome = "hangs"
        with traffic.metered("alice", lambda: office.sessions["alice"]):
            for count in range(1, 4):
                office.sessions["alice"] = count
                await office.next_look()
                office.clock.jump(5)
                await calm()
                assert load_journal(office.folder).unsettled() == {"alice": count}
            assert len(office.line.seen) >= 2
            office.line.outcome = "added"
            await office.next_look()
            assert await office.total() == 3


def refuse(file: Path, *names: str) -> None:
    """Have the store in that file refuse all traffic of these users, and of nobody else."""
    with sqlite3.connect(file) as connection:
        connection.execute("drop trigger if exists refusal")
        listed = ", ".join(f"'{name}'" for name in names)
        connection.execute(
            f"create trigger refusal before insert on months when new.name in ({listed or 'null'}) "
            "begin select raise(abort, 'not in this table'); end"
        )
    connection.close()


async def test_one_user_whom_the_store_refuses_does_not_stop_the_others(
    office: AdminServer, mock_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "trionat")
    users = [f"user {number}" for number in range(9)]
    await office.line.store.traffic()  # makes the file
    refuse(tmp_path / "users.db", "user 4", "user 7")
    async with office.open() as traffic:
        with ExitStack() as sessions:
            for user in users:
                sessions.enter_context(traffic.metered(user, lambda: office.sessions["all"]))
            office.sessions["all"] = 100
            await office.next_look()
            expected = {user: 100 for user in users if user not in {"user 4", "user 7"}}
            assert await office.line.store.traffic() == expected
            kept = load_journal(office.folder)
            assert kept.set_aside == {"2026-11": {"user 4": 100, "user 7": 100}}
            assert (kept.attempted, kept.waiting) == (None, {})
            tried = len(office.line.seen)

            office.sessions["all"] = 110
            await office.next_look()
            assert len(office.line.seen) == tried + 1  # the others' alone
            assert await office.total("user 8") == 110
            assert load_journal(office.folder).unsettled() == {"user 4": 110, "user 7": 110}
            used = await traffic.used_this_month(["user 4", "user 8"])
            assert used == {"user 4": 110, "user 8": 110}
            office.now = DECEMBER
            office.sessions["all"] = 111

    told = [record for record in caplog.records if "refuses a user's traffic" in record.message]
    assert len(told) == 2
    for user in ("user 4", "user 7"):
        assert sum(f"'user': '{user}'" in str(vars(record)) for record in told) == 1
    assert all("not in this table" in str(vars(record)) for record in told)
    assert "cannot be added to the store" not in caplog.text
    caplog.clear()

    async with office.open() as traffic:  # a start tries again, and tells again
        assert caplog.text.count("refuses a user's traffic") == 2
        tried = len(office.line.seen)
        refuse(tmp_path / "users.db", "user 7")
        await office.next_look()
        assert len(office.line.seen) == tried
        office.clock.jump(RETRY_INTERVAL)
        await calm()
        assert await office.total("user 4") == 111
        assert load_journal(office.folder).set_aside == {
            "2026-11": {"user 7": 110},
            "2026-12": {"user 7": 1},
        }
        assert caplog.text.count("the store takes a user's traffic again") == 1
        refuse(tmp_path / "users.db")
    async with office.open() as traffic:
        assert await office.line.store.traffic() == dict.fromkeys(users, 111)
        monthly = await office.line.store.monthly_traffic("2026-11", users)
        assert monthly == dict.fromkeys(users, 110)
    assert load_journal(office.folder).unsettled() == {}


async def test_what_is_refused_is_written_down_before_anything_else_happens(
    office: AdminServer, mock_clock: MockClock, tmp_path: Path
) -> None:
    """Nothing else waits, and what comes later of the same user has no flush that would write it down."""
    await office.line.store.traffic()
    refuse(tmp_path / "users.db", "alice")
    async with office.open() as traffic:
        with traffic.metered("alice", lambda: office.sessions["alice"]):
            for office.sessions["alice"] in (5, 7):
                await office.next_look()
                kept = load_journal(office.folder)
                assert kept.set_aside == {"2026-11": {"alice": office.sessions["alice"]}}


async def test_a_store_that_refuses_everybody_holds_nobody_up(
    office: AdminServer, mock_clock: MockClock, tmp_path: Path
) -> None:
    """Who asks for usage meanwhile, as every login does, waits for one flush at most."""
    users = [f"user {number}" for number in range(60)]
    await office.line.store.traffic()
    refuse(tmp_path / "users.db", *users)
    async with open_traffic(office.folder, office.line) as traffic:  # type: ignore[arg-type]
        for user in users:
            with traffic.metered(user, lambda: 1):
                pass
        async with trio.open_nursery() as nursery:
            nursery.start_soon(traffic.flush)
            await trio.testing.wait_all_tasks_blocked()
            assert await traffic.used_this_month(["user 1"]) == {"user 1": 1}
            assert len(office.line.seen) < 4
    assert load_journal(office.folder).unsettled() == dict.fromkeys(users, 1)


async def test_a_new_month_is_a_flush_of_its_own(
    office: AdminServer, mock_clock: MockClock
) -> None:
    async with office.open() as traffic:
        office.line.outcome = "down"
        with traffic.metered("alice", lambda: office.sessions["alice"]):
            office.sessions["alice"] = 100
            await office.next_look()
            office.sessions["alice"] = 110
            await office.next_look()
            office.now = DECEMBER
            office.sessions["alice"] = 111
            await office.next_look()
            assert load_journal(office.folder).unsettled("2026-12") == {"alice": 1}
            office.line.outcome = "added"
            await office.next_look()
    store = office.line.store
    assert await store.monthly_traffic("2026-11", ["alice"]) == {"alice": 110}
    assert await store.monthly_traffic("2026-12", ["alice"]) == {"alice": 1}
    assert await office.total() == 111


async def test_a_flush_is_of_the_day_on_which_it_is_brought_and_never_of_another_month(
    office: AdminServer, mock_clock: MockClock
) -> None:
    async def days() -> list[tuple[str, int]]:
        found = await office.line.store.daily_traffic("2026-01-01", "2027-12-31")
        return [(total.day, total.amount) for total in found]

    async with office.open() as traffic:
        with traffic.metered("alice", lambda: office.sessions["alice"]):
            office.now = datetime(2026, 11, 29, 23, 59, 55, tzinfo=UTC)
            office.sessions["alice"] = 1
            await office.next_look()
            office.now = datetime(2026, 11, 30, 0, 0, 5, tzinfo=UTC)
            office.sessions["alice"] = 11
            await office.next_look()
            assert await days() == [("2026-11-29", 1), ("2026-11-30", 10)]
            office.line.outcome = "down"
            office.sessions["alice"] = 111
            await office.next_look()
            office.now = datetime(2026, 12, 24, tzinfo=UTC)
            office.line.outcome = "added"
            office.sessions["alice"] = 1111
            await office.next_look()
            await office.next_look()
    assert await days() == [("2026-11-29", 1), ("2026-11-30", 110), ("2026-12-24", 1000)]
    assert await office.line.store.monthly_traffic("2026-11", ["alice"]) == {"alice": 111}


async def test_what_a_stop_leaves_is_sent_first_by_the_next_start(
    office: AdminServer, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with office.open() as traffic:
        office.line.outcome = "answer lost"
        with traffic.metered("alice", lambda: 100):
            pass
    assert "the store does not have all traffic" in caplog.text
    left = load_journal(office.folder)
    assert left.unsettled() == {"alice": 100}
    office.line.outcome = "added"
    async with office.open() as traffic:
        assert office.line.seen[-1] == left.attempted
        assert await office.total() == 100
        with traffic.metered("alice", lambda: 1):
            pass
    assert await office.total() == 101
    assert load_journal(office.folder).server != left.server


@pytest.mark.parametrize("outcome", ["added", "hangs"])
async def test_a_server_that_is_cancelled_makes_a_last_flush(
    office: AdminServer, mock_clock: MockClock, outcome: Outcome
) -> None:
    ended_at: list[float] = []

    async def serve() -> None:
        async with office.open() as traffic:
            with traffic.metered("alice", lambda: office.sessions["alice"]):
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await calm()
        office.sessions["alice"] = 100
        office.line.outcome = outcome
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await calm()
            office.clock.jump(5)
            await calm()
        ended_at.append(trio.current_time())
    assert trio.current_time() == ended_at[0]
    left = 0 if outcome == "added" else 100
    assert load_journal(office.folder).unsettled().get("alice", 0) == left
    assert await office.total() == 100 - left


@pytest.mark.parametrize("during", ["a flush", "the last flush"])
async def test_a_disk_that_hangs_holds_up_no_stop(
    office: AdminServer,
    mock_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    during: str,
) -> None:
    hangs, answers, fsync = threading.Event(), threading.Event(), os.fsync

    def slow_fsync(descriptor: int) -> None:
        hangs.set()
        answers.wait()
        fsync(descriptor)

    async def hung() -> None:
        while not hangs.is_set():  # noqa: ASYNC110 - the clock stands still, and a thread is waited for
            await trio.testing.wait_all_tasks_blocked()

    async def serve() -> None:
        async with office.open() as traffic:
            with traffic.metered("alice", lambda: 100):
                await trio.sleep_forever()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await calm()
            monkeypatch.setattr(os, "fsync", slow_fsync)
            if during == "a flush":
                office.clock.jump(FLUSH_INTERVAL)
                await hung()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await hung()
                await trio.testing.wait_all_tasks_blocked()
                office.clock.jump(5)
        assert "bytes=100 kept='perhaps in the journal: the disk does not answer'" in caplog.text
    finally:
        answers.set()
    async with office.traffic._disk:  # the write is done
        assert load_journal(office.folder).unsettled() == {"alice": 100}


async def test_a_copy_of_the_state_folder_counts_under_another_name(
    office: AdminServer, mock_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As an administrator makes who wants a second server with the same certificate, or who restores a backup."""

    async def relay(place: AdminServer, count: int) -> None:
        async with place.open() as traffic:
            with traffic.metered("alice", lambda: count):
                await place.next_look()

    await relay(office, 1)
    shutil.copytree(office.folder, tmp_path / "copy")
    copy = AdminServer(tmp_path / "copy", Line(office.line.store), office.clock)
    await relay(office, 10)
    await relay(copy, 100)
    await relay(office, 1000)
    await relay(copy, 10000)
    assert await office.total() == 11111
    assert "another server" not in caplog.text


async def test_a_copy_of_a_running_server_counts_under_another_name(
    office: AdminServer, mock_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a virtual machine makes that is cloned while it runs."""
    (tmp_path / "copy").mkdir()
    copy = AdminServer(tmp_path / "copy", Line(office.line.store), office.clock)
    async with office.open() as traffic, copy.open() as copied:
        with traffic.metered("alice", lambda: office.sessions["alice"]):
            office.sessions["alice"] = 1
            await office.next_look()
            copied.journal, copied._has_own_name = traffic.journal, True
            with copied.metered("alice", lambda: copy.sessions["alice"]):
                for amount in (10, 1000):
                    office.sessions["alice"] += amount
                    copy.sessions["alice"] += 10 * amount
                    await office.next_look()
    assert await office.total() == 11111
    assert caplog.text.count("another server") == 1


@pytest.mark.parametrize("outcome", ["down", "answer lost"])
async def test_a_copy_whose_flush_never_arrived_loses_nothing(
    office: AdminServer, mock_clock: MockClock, tmp_path: Path, outcome: Outcome
) -> None:
    """Both servers go on from the same journal; the store must not take a flush of the one for that of the other."""
    async with office.open() as traffic:
        with traffic.metered("alice", lambda: 1):
            await office.next_look()
            office.line.outcome = outcome
        await office.next_look()
    shutil.copytree(office.folder, tmp_path / "copy")
    copy = AdminServer(tmp_path / "copy", Line(office.line.store, "down"), office.clock)
    async with copy.open() as traffic, office.open() as original:
        with traffic.metered("alice", lambda: 100), original.metered("alice", lambda: 10):
            await copy.next_look()
            office.line.outcome = "added"
            await office.next_look()
            await office.next_look()
    copy.line.outcome = "added"
    async with copy.open():
        await copy.next_look()
    assert await office.total() == 111


async def test_only_what_is_written_down_is_sent(
    office: AdminServer, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "trionat")
    async with office.open() as traffic:
        with traffic.metered("alice", lambda: office.sessions["alice"]):
            moved = office.folder.rename(office.folder.with_name("moved"))
            for office.sessions["alice"] in (100, 200):
                await office.next_look()
            assert not office.line.seen
            assert caplog.text.count("traffic cannot be written down") == 1
            moved.rename(office.folder)
            await office.next_look()
            assert caplog.text.count("traffic is written down again") == 1
            assert await office.total() == 200
            assert load_journal(office.folder).unsettled() == {}


async def test_usage_is_of_this_month_up_to_this_moment(
    office: AdminServer, mock_clock: MockClock
) -> None:
    async with office.open() as traffic:
        with (
            traffic.metered("alice", lambda: office.sessions["alice"]),
            traffic.metered("alice", lambda: 1000),
            traffic.metered("bob", lambda: 5),
        ):
            await office.next_look()
            office.sessions["alice"] = 20
            assert await traffic.used_this_month(["alice"]) == {"alice": 1020}
            office.line.outcome = "answer lost"
            await office.next_look()
            office.sessions["alice"] = 21
            office.line.outcome = "added"
            await office.next_look()
            office.sessions["alice"] = 22
            used = await traffic.used_this_month(["alice", "bob", "carol"])
            assert used == {"alice": 1022, "bob": 5, "carol": 0}
        assert await traffic.used_this_month(["alice"]) == {"alice": 1022}
        office.now = DECEMBER
        await office.next_look()
        assert await traffic.used_this_month(["alice"]) == {"alice": 22 - 21}


async def test_usage_sees_a_flush_on_its_way_once(
    office: AdminServer, mock_clock: MockClock
) -> None:
    """The store has it, and the server does not know yet."""
    async with office.open() as traffic:
        with traffic.metered("alice", lambda: 100):
            office.line.outcome = "added slowly"
            await office.next_look()
            assert await office.total() == 100
            assert load_journal(office.folder).unsettled() == {"alice": 100}
            assert await traffic.used_this_month(["alice"]) == {"alice": 100}
            office.clock.jump(1)
            await calm()
            assert load_journal(office.folder).unsettled() == {}
            assert await traffic.used_this_month(["alice"]) == {"alice": 100}
            office.line.outcome = "added"


@pytest.mark.parametrize("outcome", ["answer lost", "down"])
async def test_usage_counts_a_flush_whose_outcome_is_unknown_once(
    office: AdminServer, mock_clock: MockClock, outcome: Outcome
) -> None:
    """Whether the store has it or not."""
    async with office.open() as traffic:
        with traffic.metered("alice", lambda: office.sessions["alice"]):
            office.sessions["alice"] = 100
            await office.next_look()
            office.sessions["alice"] = 110
            office.line.outcome = outcome
            await office.next_look()
            assert traffic.journal.attempted is not None
            assert await office.total() == (110 if outcome == "answer lost" else 100)
            office.line.outcome = "added"
            office.sessions["alice"] = 111
            assert await traffic.used_this_month(["alice"]) == {"alice": 111}
            office.now = DECEMBER
            assert await traffic.used_this_month(["alice"]) == {"alice": 1}


async def test_usage_is_asked_again_where_a_flush_came_in_between(
    office: AdminServer, mock_clock: MockClock
) -> None:
    """What was waiting when it was asked is in the store when that answers."""
    async with office.open() as traffic:
        with traffic.metered("alice", lambda: 0):
            pass
        with traffic.metered("alice", lambda: 100):
            office.line.before_answer = traffic.flush
            assert await traffic.used_this_month(["alice"]) == {"alice": 100}
            assert await office.total() == 100
            assert office.line.asked == [1, 1]


async def test_who_asks_waits_for_no_flush(office: AdminServer, mock_clock: MockClock) -> None:
    """A store that hangs takes its time for each flush; a login must not wait for that as well."""
    async with office.open() as traffic, trio.open_nursery() as nursery:
        with traffic.metered("alice", lambda: 100):
            office.line.outcome = "hangs"
            nursery.start_soon(traffic.flush)
            await calm()
            assert office.line.seen
            office.line.outcome = "added"
            assert await traffic.used_this_month(["alice"]) == {"alice": 100}
            nursery.cancel_scope.cancel()


Step: TypeAlias = tuple[str, Outcome, int, bool, frozenset[str]]

steps = st.lists(
    st.tuples(
        st.sampled_from(["alice", "bob", "carol"]),
        st.sampled_from(["added", "added", "answer lost", "down", "crash before", "crash after"]),
        st.integers(0, 1000),
        st.booleans(),
        st.frozensets(st.sampled_from(["alice", "bob", "carol"]), max_size=2),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(steps=steps)
def test_every_byte_is_added_once_whatever_fails_when(steps: list[Step]) -> None:
    """Each step relays some bytes, perhaps in a new month, and flushes; the store may refuse some users.

    A crash loses what was not looked at, and only that.
    """
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # no disk has to be waited for
    with TemporaryDirectory(dir=in_memory) as folder:
        trio.run(_live_through, Path(folder), steps)


async def _live_through(folder: Path, steps: list[Step]) -> None:
    relayed: Counter[str] = Counter()
    month = [NOVEMBER]
    async with open_sqlite_store(folder / "users.db") as store:
        line = Line(store)

        def start() -> Traffic:
            return Traffic(folder, line, load_journal(folder), lambda: month[0])  # type: ignore[arg-type]

        traffic = start()
        await store.prepare()
        for name, line.outcome, amount, new_month, refused in steps:
            refuse(folder / "users.db", *refused)
            month[0] = DECEMBER if new_month else NOVEMBER
            with traffic.metered(name, _constantly(amount)):
                pass
            relayed[name] += amount
            try:
                await traffic.flush()
            except Crash:
                traffic = start()
            waits = Counter(traffic.journal.unsettled())
            assert load_journal(folder).unsettled() == traffic.journal.unsettled()
            has = Counter(await store.traffic())
            assert all(has[name] <= relayed[name] <= has[name] + waits[name] for name in relayed)
        line.outcome = "added"
        refuse(folder / "users.db")
        await start().flush()
        traffic = start()
        assert +Counter(await store.traffic()) == +relayed
        assert traffic.journal.unsettled() == {}


def _constantly(amount: int) -> Callable[[], int]:
    return lambda: amount
