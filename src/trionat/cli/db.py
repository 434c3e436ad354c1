"""`trionat db`: the database that users and traffic live in, where the configuration names one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio
import typer

from trionat.cli.command_line import App
from trionat.cli.local_server import ConfigFile, State, told
from trionat.cli.output import say
from trionat.cli.running import ExitCode
from trionat.config.sections import DatabaseConfig
from trionat.errors import ConfigError, Problem

if TYPE_CHECKING:
    from trionat.store.mysql.pool import Pool

T = TypeVar("T")

db_app = App(help="The database that users and traffic live in, where the configuration names one.")


@db_app.command()
def init(config: ConfigFile = None) -> None:
    """Make the tables that are missing; those that are there stay as they are."""
    with told():
        database = _database(config)
        from trionat.store.mysql import schema  # noqa: PLC0415 - as store/backend.py does

        made = _ask(database, schema.init)
    for table in made:
        say(f"made table {table}")
    say(f"Database {database.db_name} at {database.address} has all tables.")


@db_app.command()
def check(config: ConfigFile = None) -> None:
    """Tell what does not work with the database, or not as expected, a line each; nothing is changed.

    Ends with code 6 where there is anything to tell.
    """
    with told():
        database = _database(config)
        from trionat.store.mysql.check import check as find  # noqa: PLC0415 - the same

        findings = _ask(database, find)
    for finding in findings:
        say(str(finding))
    if findings:
        raise typer.Exit(ExitCode.FINDINGS)
    say(f"Database {database.db_name} at {database.address}: all is well.")


def _database(config: Path | None) -> DatabaseConfig:
    database = State.find(None, config).database
    if database is None:
        reason = (
            "there is no database: users live in a file of the state folder, which needs none of this;"
            " for MySQL or MariaDB add the section to server.yml"
        )
        raise ConfigError(Problem("configuration", reason, "Database"))
    return database


def _ask(database: DatabaseConfig, question: Callable[[Pool], Awaitable[T]]) -> T:
    from trionat.store.mysql.pool import open_pool  # noqa: PLC0415 - the same

    async def run() -> T:
        async with open_pool(database) as pool:
            return await question(pool)

    return trio.run(run)
