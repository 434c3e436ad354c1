"""`trionat db`: the database that users and traffic live in, where the configuration names one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import trio
import typer

from trionat.cli.command_line import App
from trionat.cli.local_server import ConfigFile, State, StateDir, told
from trionat.cli.output import say
from trionat.cli.progress import progress
from trionat.cli.running import ExitCode
from trionat.config.database import DatabaseConfig
from trionat.errors import ConfigError, Problem
from trionat.server.state_folder import database_file
from trionat.store.journal import FILE_NAME, load_journal
from trionat.store.private_file import is_there
from trionat.store.sqlite_file import check_file

if TYPE_CHECKING:
    from trionat.store.mysql.pool import Pool

T = TypeVar("T")

_TOLD: Final = 20
"""Lines for traffic that is set aside; who has more has one cause for all of it."""

db_app = App(help="The database of users and traffic, where there is one.")


@db_app.command()
def init(config: ConfigFile = None) -> None:
    """Make the tables that are missing; those that are there stay as they are."""
    with told():
        database = _database(config)
        from trionat.store.mysql import schema  # noqa: PLC0415 - as store/backend.py does

        with progress("making tables"):
            made = _ask(database, schema.init)
    for table in made:
        say(f"made table {table}")
    say(f"Database {database.db_name} at {database.address} has all tables.")


@db_app.command()
def check(state_dir: StateDir = None, config: ConfigFile = None) -> None:
    """Tell what does not work with the database, or not as expected, a line each; nothing is changed.

    Without a section Database it looks at the file of the state folder. Traffic that a server has set aside, because the database refuses it, is told as well.

    Ends with code 6 where it has found something.
    """
    with told():
        state = State.find(state_dir, config)
        folder, file = state.folder, database_file(state.folder)
        if state.database is None and is_there(file):
            set_aside = load_journal(folder).set_aside
            with progress(f"looking at {file.name}", "rows") as looking:
                found = check_file(file, looking.count)
            what = str(file)
        else:
            database = _database(config)
            set_aside = load_journal(folder).set_aside
            found = _look_at(database)
            what = f"Database {database.db_name} at {database.address}"
        findings = found + _refused(set_aside, folder / FILE_NAME)
    for finding in findings:
        say(str(finding))
    if findings:
        raise typer.Exit(ExitCode.FINDINGS)
    say(f"{what}: all is well.")


def _look_at(database: DatabaseConfig) -> list[str]:
    from trionat.store.mysql.check import check as find  # noqa: PLC0415 - as store/backend.py does

    with progress("looking at the database", "rows") as looking:

        def note(table: str, done: int, of: int) -> None:
            looking.what = f"looking at {table}"
            looking.count(done, of)

        return _ask(database, partial(find, told=note))


def _refused(set_aside: Mapping[str, Mapping[str, int]], file: Path) -> list[str]:
    """Return a line for the traffic of each user and month that the database refuses, of the first ones at least."""
    found = [
        f"{amount} bytes of {user!r} in {month} are set aside in {file}: the database refuses them: mend the table, as a line"
        " above or the server's log says, and restart the server or wait an hour: it tries again"
        for month, amounts in sorted(set_aside.items())
        for user, amount in sorted(amounts.items())
    ]
    if len(found) > _TOLD:
        more = f"traffic of {len(found) - _TOLD} more users and months is set aside in {file}"
        return [*found[:_TOLD], more]
    return found


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
