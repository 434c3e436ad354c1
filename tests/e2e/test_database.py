"""A server whose users are in MariaDB: it waits for it, outlives it, and whoever is in stays in."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import START_TIMEOUT, Logged, ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.e2e.running import Client
    from tests.e2e.services import Service, TrionatProcess
    from tests.mariadb import MariaDB
    from trionat.config.database import DatabaseConfig

pytestmark = pytest.mark.limit(60)

PASSWORD = "plain as NAT has it"
ANY_PORT = ["--controller-addr", "127.0.0.1:0", "--tunnel-addr", "127.0.0.1:0", "--expose-port", "0"]  # fmt: skip


@pytest.fixture
def database(mariadb: MariaDB) -> DatabaseConfig:
    """The tables of NAT, empty."""
    return mariadb.new_database()


@pytest.fixture
def config(tmp_path: Path, database: DatabaseConfig) -> Path:
    """A `server.yml` with nothing but that database."""
    file = tmp_path / "server.yml"
    file.write_text(
        f'Database:\n  Username: "{database.username}"\n  Password: "{database.password}"\n'
        f'  Host: "{database.host}"\n  DBName: "{database.db_name}"\n'
    )
    return file


@asynccontextmanager
async def stopped(mariadb: MariaDB) -> AsyncIterator[None]:
    """Stop the database server for a while."""
    await trio.to_thread.run_sync(mariadb.stop)
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):  # it stops by itself when it does not come up
            await trio.to_thread.run_sync(mariadb.start)


@asynccontextmanager
async def starting(folder: Path, *flags: str | Path) -> AsyncIterator[TrionatProcess]:
    """Run `trionat serve`, which may take its time to be ready."""
    await trio.Path(folder).mkdir(exist_ok=True)
    files = ("--state-dir", folder / "state", "--log-name", folder / "server.log")
    async with services.trionat_process(
        "serve", "--json", *ANY_PORT, *files, *flags, cwd=folder
    ) as process:
        yield process


async def test_losing_the_database(
    echo_server: Service, tmp_path: Path, config: Path, database: DatabaseConfig, mariadb: MariaDB
) -> None:
    """Who is in stays in; who comes is told to come again, and gets in by itself when the database is back."""
    add_ann = f"insert into userInfo_userinfo (username, password) values ('ann', '{PASSWORD}')"
    await trio.to_thread.run_sync(mariadb.sql, add_ann, database.db_name)
    environ = {"TRIONAT_AUTH_USERNAME": "ann", "TRIONAT_AUTH_PASSWORD": PASSWORD}
    async with (
        running.server(tmp_path / "s", "--config", config, visit="0,0") as server,
        AsyncExitStack() as clients,
    ):

        async def start(name: str, *flags: str) -> Client:
            pin = str(server.ready["fingerprint"])
            login = ("-c", server.ready["control"], "--fingerprint", pin, str(echo_server))
            client = running.client_process(tmp_path / name, *login, *flags, environ=environ)
            return await clients.enter_async_context(client)

        first = await start("first")
        await first.wait_connected()
        visitor = await clients.enter_async_context(await first.visit())
        async with stopped(mariadb):
            once = await start("once", "--once")
            assert await once.wait() == 3
            second = await start("second")
            gone = await second.process.next_event("disconnected")
            assert gone["reason"] == "the server cannot check accounts now; try again"
            await server.wait_record("the user store cannot be asked; sessions go on")
            assert await ask(visitor, b"still there?") == b"still there?"
        await second.wait_connected()
        async with await second.visit() as other:
            assert await ask(other, b"hello") == b"hello"
        assert await ask(visitor, b"and now?") == b"and now?"
        assert len(first.process.events) == 1


async def test_database_that_is_not_there(
    tmp_path: Path, config: Path, database: DatabaseConfig, mariadb: MariaDB
) -> None:
    """A server that is told to wait for it waits, for a signal as well, and listens when it is there.

    No account is made up in it.
    """
    start = partial(starting, tmp_path / "s", "--config", config, "--wait-for-database")
    log = Logged(tmp_path / "s" / "server.log")
    async with AsyncExitStack() as servers:
        async with stopped(mariadb):
            async with start() as process:
                await log.wait_record("waiting for the store", within=START_TIMEOUT)
                process.process.terminate()
                assert await process.wait(within=5) == 0
                assert process.events == []
            process = await servers.enter_async_context(start())
            await log.wait_record("waiting for the store", count=2, within=START_TIMEOUT)
            assert process.events == []
        ready = await process.next_event("ready", within=START_TIMEOUT)
        assert "ticket" not in ready
        users = "select count(*) from userInfo_userinfo"
        assert await trio.to_thread.run_sync(mariadb.sql, users, database.db_name) == [("0",)]
        await log.wait_record("the store is there")
