from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trionat.errors import StoreUnavailableError
from trionat.store.base import User
from trionat.store.sqlite import open_sqlite_store

if TYPE_CHECKING:
    from pathlib import Path

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")

WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
import trio
from trionat.store.base import User
from trionat.store.sqlite import open_sqlite_store

async def main(path, prefix, count):
    print("ready", flush=True)
    sys.stdin.read(1)
    async with open_sqlite_store(path) as store:
        for number in range(count):
            await store.add_user(User(name=f"{prefix}{number}", password_hash="h", ticket_salt=b"s", created_at=datetime.now(UTC)))

trio.run(main, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
"""


def user(name: str) -> User:
    return User(name=name, password_hash="hash", ticket_salt=b"salt", created_at=datetime.now(UTC))


def start_writer(path: Path, prefix: str, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), prefix, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


@pytest.mark.limit(60)
async def test_several_processes_open_and_write_the_same_new_file_at_once(tmp_path: Path) -> None:
    path, writers, each = tmp_path / "users.db", 6, 25
    processes = [start_writer(path, f"w{number}-", each) for number in range(writers)]
    try:
        for process in processes:
            assert process.stdout is not None
            assert (await trio.to_thread.run_sync(process.stdout.readline)).strip() == b"ready"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"g")
            process.stdin.flush()
        async with open_sqlite_store(path) as store:  # and this one reads meanwhile
            while any(process.poll() is None for process in processes):
                await store.list_users()
            found = await store.list_users()
    finally:
        errors = [process.communicate()[1].decode() for process in processes]
    assert errors == [""] * writers
    names = {f"w{writer}-{number}" for writer in range(writers) for number in range(each)}
    assert {one.name for one in found} == names


@pytest.mark.limit(60)
async def test_a_new_file_can_be_opened_by_many_at_once(tmp_path: Path) -> None:
    async def open_and_close(path: Path) -> None:
        async with open_sqlite_store(path) as store:
            await store.list_users()

    for number in range(40):
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(open_and_close, tmp_path / f"{number}.db")


@posix
async def test_nobody_else_can_read_the_file_nor_its_log(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with open_sqlite_store(tmp_path / "users.db") as store:
            await store.add_user(user("alice"))
            files = modes(tmp_path)
    finally:
        os.umask(before)
    assert files == {"users.db": 0o600, "users.db-wal": 0o600, "users.db-shm": 0o600}


async def test_closing_leaves_one_file_and_no_descriptor(
    tmp_path: Path, nothing_left: None
) -> None:
    async with open_sqlite_store(tmp_path / "users.db") as store:
        await store.add_user(user("alice"))
    assert list(modes(tmp_path)) == ["users.db"]


async def test_closing_waits_for_the_call_that_is_running_though_cancelled(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        async with open_sqlite_store(tmp_path / "users.db") as store:
            # That it outlives the store is the point.
            nursery.start_soon(store.add_user, user("alice"))  # noqa: ASYNC111
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    async with open_sqlite_store(tmp_path / "users.db") as store:
        assert [one.name for one in await store.list_users()] == ["alice"]


async def test_a_call_that_waits_for_its_turn_can_be_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    async with open_sqlite_store(path) as store, trio.open_nursery() as nursery:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("begin immediate")  # somebody writes: our first call waits in its thread
        nursery.start_soon(store.add_user, user("first"))
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.05) as scope:
            await store.add_user(user("second"))
        assert scope.cancelled_caught
        other.execute("commit")
        other.close()
    async with open_sqlite_store(path) as store:
        assert [one.name for one in await store.list_users()] == ["first"]


async def test_a_server_reads_while_another_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    async with open_sqlite_store(path) as store:
        await store.add_user(user("alice"))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("begin immediate")
        other.execute("delete from users")
        with trio.fail_after(2):
            assert await store.find_user("alice") is not None
        other.execute("rollback")
        other.close()


async def test_a_file_that_stays_locked_makes_the_store_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trionat.store.sqlite._BUSY_TIMEOUT", 0.05)
    path = tmp_path / "users.db"
    async with open_sqlite_store(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("begin immediate")
        with pytest.raises(StoreUnavailableError, match=r"users\.db: database is locked"):
            await store.add_user(user("alice"))
        other.execute("commit")
        other.close()
        await store.add_user(user("alice"))  # and it is back


async def test_what_is_no_database_is_told(tmp_path: Path, nothing_left: None) -> None:
    path = tmp_path / "users.db"
    path.write_bytes(b"hello " * 1000)
    with pytest.raises(StoreUnavailableError, match=r"^\S*users\.db: file is not a database$"):
        async with open_sqlite_store(path):
            pytest.fail("opened")


async def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match=r"users\.db: No such file or directory$"):
        async with open_sqlite_store(tmp_path / "gone" / "users.db"):
            pytest.fail("opened")


async def test_a_newer_schema_is_left_alone(tmp_path: Path, nothing_left: None) -> None:
    path = tmp_path / "users.db"
    async with open_sqlite_store(path):
        pass
    other = sqlite3.connect(path)
    other.execute("pragma user_version = 2")
    other.close()
    with pytest.raises(StoreUnavailableError, match="written by a newer trionat"):
        async with open_sqlite_store(path):
            pytest.fail("opened")
    other = sqlite3.connect(path)
    assert other.execute("pragma user_version").fetchone() == (2,)
    other.close()


async def test_a_cancelled_user_closes_the_store_as_well(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_sqlite_store(tmp_path / "users.db") as store:
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        await store.list_users()


async def test_a_closed_store_is_our_mistake_and_not_the_files(tmp_path: Path) -> None:
    async with open_sqlite_store(tmp_path / "users.db") as store:
        pass
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        await store.list_users()
