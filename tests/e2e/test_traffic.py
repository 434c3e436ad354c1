"""Traffic in real stores, through whatever may happen to the server and to the store."""

from __future__ import annotations

import json
import sqlite3
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.e2e.running import Client, Server
    from tests.e2e.services import Service
    from tests.mariadb import MariaDB
    from trionat.config.database import DatabaseConfig

pytestmark = pytest.mark.limit(60)

INTERVAL = 10.0
"""Seconds between two looks at the sessions."""
SLACK = 5.0
"""Seconds that a busy machine may add."""


def in_store(state: Path) -> int:
    """Return all bytes in a server's SQLite file."""
    with sqlite3.connect(state / "trionat.db") as connection:
        (total,) = connection.execute("select total(bytes) from traffic").fetchone()
    connection.close()
    return int(total)


async def wait_total(total: int, look: Callable[[], int], *, within: float = SLACK) -> None:
    """Wait until a look at the store finds just so many bytes; it must never have more."""
    found = -1
    with trio.move_on_after(within):
        while True:
            found = await trio.to_thread.run_sync(look)
            if found >= total:
                break
            await trio.sleep(0.05)
    assert found == total


async def traffic(*flags: str | Path, cwd: Path) -> list[dict[str, Any]]:
    """Run `trionat traffic`."""
    result = await services.run_trionat("traffic", "--json", *flags, cwd=cwd)
    assert result.returncode == 0, result.stderr.decode()
    return [json.loads(line) for line in result.stdout.splitlines()]


async def relay(client: Client, size: int) -> None:
    """Be a visitor that has so many bytes come back: they count twice."""
    async with await client.visit() as visitor:
        assert await ask(visitor, bytes(size)) == bytes(size)


async def test_a_server_that_is_killed_loses_what_it_relayed_since_its_last_look(
    echo_server: Service, tmp_path: Path
) -> None:
    """What a long connection relays is in the totals while it lasts, and nothing is there twice."""
    control = f"{services.HOST}:{services.free_low_port()}"
    async with running.server(tmp_path / "s", control=control) as server:
        look = partial(in_store, server.state)
        async with running.client(tmp_path / "c", server.ticket, echo_server) as client:
            async with await client.visit() as visitor:
                await ask(visitor, bytes(500_000))
                await wait_total(1_000_000, look, within=INTERVAL + SLACK)
                await ask(visitor, bytes(1000))
                server.kill()
                assert await server.wait() != 0
            assert in_store(server.state) == 1_000_000
            async with running.server(tmp_path / "s", control=control):
                await client.wait_connected()
                await relay(client, 50)
                client.terminate()
                assert await client.wait() == 0
                # The session has ended, and nobody waits for the next look.
                await wait_total(1_000_100, look)
    [usage] = await traffic("--state-dir", server.state, cwd=tmp_path)
    assert usage["user"] == "trionat"
    assert usage["bytes"] == usage["month_bytes"] == 1_000_100
    assert usage["waiting"] == 0


async def test_a_store_that_is_locked_when_the_server_stops(
    echo_server: Service, tmp_path: Path
) -> None:
    """The stop takes no longer than it may; what waits is told, and added by the next server."""
    async with running.server(tmp_path / "s") as server:
        async with running.client(tmp_path / "c", server.ticket, echo_server) as client:
            await relay(client, 50)
            with sqlite3.connect(server.state / "trionat.db", isolation_level=None) as locking:
                locking.execute("begin immediate")
                server.terminate()
                assert await server.wait(within=5 + SLACK) == 0
                server.ended = False  # it did end as it should
                await server.wait_record("the store does not have all traffic", bytes=100)
                [usage] = await traffic("--state-dir", server.state, cwd=tmp_path)
                assert (usage["bytes"], usage["waiting"]) == (0, 100)
            locking.close()
            client.terminate()
            await client.wait()
    async with running.server(tmp_path / "s"):
        await wait_total(100, partial(in_store, server.state))


def config(folder: Path, database: DatabaseConfig) -> Path:
    """Write a `server.yml` with that database."""
    file = folder / "server.yml"
    file.write_text(
        f'Database:\n  Username: "{database.username}"\n  Password: "{database.password}"\n'
        f'  Host: "{database.host}"\n  DBName: "{database.db_name}"\n'
    )
    return file


def connect(
    folder: Path, server: Server, local: Service, user: str = "ann"
) -> AbstractAsyncContextManager[Client]:
    """Run a client that logs in to a server by name and password."""
    pin = str(server.ready["fingerprint"])
    return running.client_process(
        folder,
        *("-c", server.ready["control"], "--fingerprint", pin, str(local)),
        environ={"TRIONAT_AUTH_USERNAME": user, "TRIONAT_AUTH_PASSWORD": "secret"},
    )


async def test_a_database_that_is_down_and_a_server_that_is_killed(
    echo_server: Service, tmp_path: Path, mariadb: MariaDB
) -> None:
    """Two servers add up in one database; what one could not bring there comes with its next start, once."""
    database = mariadb.new_database()

    def bars() -> int:
        rows = mariadb.sql("select coalesce(sum(bar), 0) from bars", database.db_name)
        return int(rows[0][0])

    add_ann = "insert into userInfo_userinfo (username, password) values ('ann', 'secret')"
    await trio.to_thread.run_sync(mariadb.sql, add_ann, database.db_name)
    flags = ("--config", config(tmp_path, database))
    control = f"{services.HOST}:{services.free_low_port()}"
    async with (
        running.server(tmp_path / "one", *flags, control=control) as one,
        running.server(tmp_path / "two", *flags) as two,
        connect(tmp_path / "a", one, echo_server) as first,
        connect(tmp_path / "b", two, echo_server) as second,
    ):
        for client in (first, second):
            await client.wait_connected()
            await relay(client, 500)
        second.terminate()
        assert await second.wait() == 0
        await wait_total(1000, bars)
        await trio.to_thread.run_sync(mariadb.stop)
        try:
            first.terminate()
            assert await first.wait() == 0
            await one.wait_record("traffic cannot be added to the store; it is kept")
            one.kill()
            assert await one.wait() != 0
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(mariadb.start)
        assert bars() == 1000
        async with running.server(tmp_path / "one", *flags, control=control):
            await wait_total(2000, bars)
    [usage] = await traffic(*flags, "--state-dir", one.state, cwd=tmp_path)
    assert (usage["user"], usage["bytes"], usage["month_bytes"]) == ("ann", 2000, 2000)
    assert usage["waiting"] == 0


async def test_a_user_whom_a_table_cannot_hold(
    echo_server: Service, tmp_path: Path, mariadb: MariaDB
) -> None:
    """Its traffic is set aside, survives a kill, is told, and added once the table is mended; all others' goes on."""
    database = mariadb.new_database()

    def sql(statement: str) -> list[tuple[str, ...]]:
        return mariadb.sql(statement, database.db_name)

    def bars() -> dict[str, int]:
        return {name: int(total) for name, total in sql("select username, bar from bars")}

    async def check(state: Path) -> tuple[int, str]:
        folder = ("--state-dir", state)
        result = await services.run_trionat("db", "check", *flags, *folder, cwd=tmp_path)
        return result.returncode, result.stdout.decode()

    await trio.to_thread.run_sync(
        sql,
        "insert into userInfo_userinfo (username, password) values ('ann', 'secret'), ('日本', 'secret');"
        "alter table bars convert to character set latin1",
    )
    flags = ("--config", config(tmp_path, database))
    control = f"{services.HOST}:{services.free_low_port()}"
    async with running.server(tmp_path / "s", *flags, control=control) as server:
        async with connect(tmp_path / "a", server, echo_server, "日本") as client:
            await client.wait_connected()
            await relay(client, 500)
        refused = await server.wait_record("the store refuses a user's traffic; it is set aside")
        async with connect(tmp_path / "b", server, echo_server) as client:
            await client.wait_connected()
            await relay(client, 50)
        await wait_total(100, lambda: sum(bars().values()))
        server.kill()
        assert await server.wait() != 0
    assert "Incorrect string value" in str(refused)
    code, told = await check(server.state)
    assert code == 6
    assert "bars.username is in latin1" in told
    assert "\n1000 bytes of '日本' in 20" in told
    assert "traffic.json: the database refuses them: mend the table" in told
    shown = await services.run_trionat("traffic", *flags, "--state-dir", server.state, cwd=tmp_path)
    assert "The store refuses the traffic of '日本'" in shown.stdout.decode()

    await trio.to_thread.run_sync(sql, "alter table bars convert to character set utf8mb4")
    async with running.server(tmp_path / "s", *flags, control=control):
        await wait_total(1100, lambda: sum(bars().values()))
    assert bars() == {"ann": 100, "日本": 1000}
    assert "set aside" not in (await check(server.state))[1]
