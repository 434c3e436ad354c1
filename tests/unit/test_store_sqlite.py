from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from trionat.errors import NameTakenError, StoreDataError, StoreUnavailableError
from trionat.store.base import Flush, Limits, User
from trionat.store.passwords import verify_password
from trionat.store.sqlite import open_sqlite_store
from trionat.store.sqlite_file import _SCHEMA
from trionat.store.tokens import Token, TokenScope

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")

WRITER = """
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
import trio
from trionat.store.base import User
from trionat.store.sqlite import open_sqlite_store
from trionat.store.sqlite_file import _SCHEMA

async def main(path, prefix, count):
    print("ready", flush=True)
    sys.stdin.read(1)
    async with open_sqlite_store(path) as store:
        for number in range(count):
            await store.add_user(User(name=f"{prefix}{number}", password="h", ticket_salt=b"s", created_at=datetime.now(UTC)))

trio.run(main, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
"""


def user(name: str) -> User:
    return User(name=name, password="hash", ticket_salt=b"salt", created_at=datetime.now(UTC))


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
    path, writers, each = tmp_path / "users.db", 6, 10
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

    for number in range(20):
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


async def test_a_file_that_does_not_answer_holds_up_nobody_who_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """Its disk may hang, or somebody hold it; whoever waits may be a server that stops."""
    monkeypatch.setattr("trionat.store.sqlite._CLOSE_GRACE", 0.1)
    path = tmp_path / "users.db"
    async with open_sqlite_store(path) as store:
        await store.prepare()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin immediate")
    started = trio.current_time()
    async with open_sqlite_store(path) as store:
        with trio.move_on_after(0.1) as scope:
            await store.add_user(user("alice"))
        assert scope.cancelled_caught
    assert trio.current_time() - started < 2  # SQLite itself waits for 5 s
    other.execute("commit")
    other.close()
    async with store._limiter:  # the call has come to its end, and has closed the file
        assert store._connection is not None
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            store._connection.execute("select 1")
    with pytest.raises(RuntimeError, match="closed"):
        await store.list_users()
    async with open_sqlite_store(path) as store:
        assert [one.name for one in await store.list_users()] == ["alice"]


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
    monkeypatch.setattr("trionat.store.sqlite_file._BUSY_TIMEOUT", 0.05)
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
        async with open_sqlite_store(path) as store:
            await store.prepare()


async def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match=r"users\.db: No such file or directory$"):
        async with open_sqlite_store(tmp_path / "gone" / "users.db") as store:
            await store.prepare()


async def test_a_file_of_the_first_version_is_taken_over(
    tmp_path: Path, nothing_left: None
) -> None:
    """The file is one that trionat 0.1 wrote; the passwords are in it."""
    path = tmp_path / "users.db"
    path.write_bytes((Path(__file__).parent / "data" / "users-1.db").read_bytes())
    async with trio.open_nursery() as nursery:  # by several at once

        async def read() -> None:
            async with open_sqlite_store(path) as store:
                alice, other = await store.list_users()
                created = datetime(2026, 11, 20, 8, 30, 0, 123456, tzinfo=UTC)
                assert alice == User(
                    name="alice",
                    password=alice.password,
                    ticket_salt=bytes(range(16)),
                    created_at=created,
                    account_id=alice.account_id,
                )
                assert await verify_password(alice.password, "correct horse")
                assert (other.name, other.expires_at) == ("été", datetime(2027, 2, 1, tzinfo=UTC))
                assert len({alice.account_id, other.account_id, 0}) == 3
                assert await store.traffic() == {}

        for _ in range(4):
            nursery.start_soon(read)
    async with open_sqlite_store(path) as store:
        await store.change_user(
            "alice", lambda each: attrs.evolve(each, limits=Limits(sessions=1), damage="")
        )
        await store.add_traffic(
            Flush(server="a" * 32, number=1, month="2026-11", amounts={"alice": 1})
        )
        assert await store.traffic() == {"alice": 1}


async def test_names_in_a_file_of_the_first_version_are_had_as_in_a_new_one(
    tmp_path: Path,
) -> None:
    path, keep = tmp_path / "users.db", timedelta(days=30)
    path.write_bytes((Path(__file__).parent / "data" / "users-1.db").read_bytes())
    now = datetime.now(UTC)
    async with open_sqlite_store(path) as store:
        alice, other = await store.list_users()
        for one, name in ((alice, "shop.example.org"), (other, "blog.example.org")):
            await store.reserve_names(one.name, one.account_id, [name], now, keep)
        with pytest.raises(
            NameTakenError, match=r"^blog\.example\.org belongs to another account$"
        ):
            await store.reserve_names("alice", alice.account_id, ["blog.example.org"], now, keep)
        assert [(owned.name, owned.owner) for owned in await store.list_names()] == [
            ("blog.example.org", "été"),
            ("shop.example.org", "alice"),
        ]


async def test_names_of_before_there_were_ids_of_accounts_stay_their_users(tmp_path: Path) -> None:
    path, keep = tmp_path / "users.db", timedelta(days=30)
    now = datetime.now(UTC)
    with sqlite3.connect(path) as before:
        for statement in [each for version in _SCHEMA[:3] for each in version]:
            before.execute(statement)
        before.execute(
            "insert into users values ('alice', 'hash', x'00', null, 1700000000000000, '')"
        )
        used_at = int(now.timestamp() * 1_000_000)
        for name, owner in (("shop", "alice"), ("blog", "bob"), ("wiki", "")):
            before.execute("insert into names values (?, ?, ?)", (name, owner, used_at))
        before.execute("pragma user_version = 3")
    before.close()
    async with open_sqlite_store(path) as store:
        alice = await store.find_user("alice")
        assert alice is not None
        assert [(owned.name, owned.owner) for owned in await store.list_names()] == [
            ("blog", ""),
            ("shop", "alice"),
            ("wiki", ""),
        ]
        assert await store.reserve_names("alice", alice.account_id, ["shop"], now, keep) == set()
        for name in ("blog", "wiki"):
            with pytest.raises(NameTakenError):
                await store.reserve_names("alice", alice.account_id, [name], now, keep)
        await store.add_user(user("bob"))
        bob = await store.find_user("bob")
        assert bob is not None
        with pytest.raises(NameTakenError):
            await store.reserve_names("bob", bob.account_id, ["blog"], now, keep)


@pytest.mark.parametrize(
    ("names", "admins"),
    [(["trionat"], ["trionat"]), (["alice"], []), (["alice", "trionat"], []), ([], [])],
)
async def test_the_only_account_that_an_older_server_has_made_is_an_administrator(
    tmp_path: Path, names: list[str], admins: list[str]
) -> None:
    path = tmp_path / "users.db"
    with sqlite3.connect(path) as before:
        for statement in [each for version in _SCHEMA[:4] for each in version]:
            before.execute(statement)
        for name in names:
            before.execute("insert into users values (?, 'hash', x'00', null, 17, '')", (name,))
        before.execute("pragma user_version = 4")
    before.close()
    async with open_sqlite_store(path) as store:
        found = await store.list_users()
        assert [one.name for one in found] == names
        assert [one.name for one in found if one.admin] == admins
        assert not any(one.disabled for one in found)
        assert await store.list_tokens() == []
        assert await store.daily_traffic("2000-01-01", "2100-01-01") == []


async def test_a_token_of_an_account_that_another_program_has_removed_is_none(
    tmp_path: Path,
) -> None:
    path = tmp_path / "users.db"
    async with open_sqlite_store(path) as store:
        await store.add_user(user("alice"))
        (alice,) = await store.list_users()
        token = Token(
            name="grafana",
            user="alice",
            account_id=alice.account_id,
            digest=bytes(32),
            scope=TokenScope.READ,
            created_at=datetime.now(UTC),
        )
        await store.add_token(token)
        with sqlite3.connect(path) as other:
            other.execute("delete from users")
        other.close()
        await store.add_user(user("alice"))
        assert await store.find_token(bytes(32)) is None
        assert await store.list_tokens() == []


@pytest.mark.parametrize("column", ["owner", "used_at"])
async def test_names_are_found_without_reading_all_of_them(tmp_path: Path, column: str) -> None:
    path = tmp_path / "users.db"
    async with open_sqlite_store(path) as store:
        await store.prepare()
    with sqlite3.connect(path) as connection:
        ((*_, plan),) = connection.execute(
            f"explain query plan select name from names where {column} <= ?", (0,)
        )
    connection.close()
    assert plan.startswith("SEARCH names USING")


async def test_a_store_that_could_not_be_opened_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "later" / "users.db"
    async with open_sqlite_store(path) as store:
        with pytest.raises(StoreUnavailableError):
            await store.prepare()
        path.parent.mkdir()
        await store.add_user(user("alice"))


async def test_a_newer_schema_is_left_alone(tmp_path: Path, nothing_left: None) -> None:
    path, newer = tmp_path / "users.db", len(_SCHEMA) + 1
    async with open_sqlite_store(path) as store:
        await store.prepare()
    other = sqlite3.connect(path)
    other.execute(f"pragma user_version = {newer}")
    other.close()
    with pytest.raises(StoreUnavailableError, match="written by a newer trionat"):
        async with open_sqlite_store(path) as store:
            await store.prepare()
    other = sqlite3.connect(path)
    assert other.execute("pragma user_version").fetchone() == (newer,)
    other.close()


async def test_a_cancelled_user_closes_the_store_as_well(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_sqlite_store(tmp_path / "users.db") as store:
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    with pytest.raises(RuntimeError, match="closed"):
        await store.list_users()


async def test_a_closed_store_is_our_mistake_and_not_the_files(tmp_path: Path) -> None:
    async with open_sqlite_store(tmp_path / "users.db") as store:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        await store.list_users()


@pytest.mark.parametrize(("name", "amount"), [("\udc80", 1), ("bad", 2**63), ("refused", 1)])
async def test_a_flush_that_is_refused_for_its_data_changes_nothing(
    tmp_path: Path, name: str, amount: int
) -> None:
    """It is told from a file that cannot be used, and its number can be tried again."""

    def flush(**amounts: int) -> Flush:
        return Flush(server="a" * 32, number=1, month="2026-11", amounts=amounts)

    path = tmp_path / "users.db"
    async with open_sqlite_store(path) as store:
        await store.prepare()
        with sqlite3.connect(path) as connection:
            connection.execute(
                "create trigger refusal before insert on months when new.name = 'refused' "
                "begin select raise(abort, 'no'); end"
            )
        connection.close()
        for _ in range(2):
            with pytest.raises(StoreDataError, match=r"^\S*users\.db: "):
                await store.add_traffic(flush(alice=1, **{name: amount}))
        assert await store.traffic() == {}
        assert await store.add_traffic(flush(alice=1))
        assert not await store.add_traffic(flush(alice=1, **{name: amount}))
        assert await store.traffic() == {"alice": 1}


async def test_a_flush_whose_day_is_refused_is_added_nowhere(tmp_path: Path) -> None:
    path, flush = (
        tmp_path / "users.db",
        Flush(server="a" * 32, number=1, month="2026-11", amounts={"alice": 1}),
    )
    async with open_sqlite_store(path) as store:
        await store.prepare()
        with sqlite3.connect(path) as connection:
            connection.execute(
                "create trigger refusal before insert on days begin select raise(abort, 'no'); end"
            )
        connection.close()
        for _ in range(2):
            with pytest.raises(StoreDataError):
                await store.add_traffic(flush, "2026-11-29")
        assert await store.traffic() == {}
        assert await store.monthly_traffic("2026-11", ["alice"]) == {}
        assert await store.add_traffic(flush)
