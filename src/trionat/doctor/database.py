"""Whether the store of users and traffic is there, and as it has to be."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

import trio

from trionat.doctor.clock import compare_clocks
from trionat.doctor.finding import Finding, fine, unknown, wrong
from trionat.store.private_file import is_there
from trionat.text import counted

if TYPE_CHECKING:
    from pathlib import Path

    from trionat.config.database import DatabaseConfig
    from trionat.store.mysql.pool import Link

_RESTORE: Final = "restore it from a backup (docs/reference.md says which files belong to one)"

_BUSY: Final = 5.0
"""Seconds to wait for a server that writes."""

_MEND: Final = (
    "trionat db check says the same; correct Database in the configuration, or the database"
)


async def check_database(config: DatabaseConfig) -> list[Finding]:
    """Ask the database, as `trionat db check` does, and for its clock."""
    # As store/backend.py does: only where there is one.
    from trionat.store.mysql.check import check  # noqa: PLC0415
    from trionat.store.mysql.pool import open_pool  # noqa: PLC0415

    async def ask_time(link: Link) -> float:
        rows = await link.ask("select unix_timestamp(now(6))")
        return float(rows[0][0])

    async with open_pool(config) as pool:
        there = await pool.run(ask_time)
        here = time.time()
        faults = await check(pool)
    found = [wrong(fault, _MEND) for fault in faults]
    if not found:
        found.append(fine(f"{config.db_name} at {config.address}: all is well"))
    clock = compare_clocks(there, here, f"that of the database {config.address}")
    return [*found, clock]


async def check_accounts_file(file: Path) -> list[Finding]:
    """Look at the file that holds accounts where there is no database."""
    return await trio.to_thread.run_sync(_look_at_file, file, abandon_on_cancel=True)


def _look_at_file(file: Path) -> list[Finding]:
    if not is_there(file):
        return [unknown(f"{file}: there are no accounts yet: the first start makes one")]
    try:
        uri = f"{file.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY)) as link:
            ((answer,),) = link.execute("pragma quick_check(1)").fetchall()
            ((users,),) = link.execute("select count(*) from users").fetchall()
    except sqlite3.Error as error:
        return [wrong(f"{file}: {error}", _RESTORE)]
    if answer != "ok":
        return [wrong(f"{file} is damaged: {answer}", _RESTORE)]
    return [fine(f"{file}: whole, {counted(users, 'user')}")]
