"""Which store a server has: the database that its configuration names, or the file in its state folder."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from trionat.config.database import DatabaseConfig
    from trionat.store.base import Store


@asynccontextmanager
async def open_store(database: DatabaseConfig | None, file: Path | None) -> AsyncGenerator[Store]:
    """Give the store of a server; leaving closes it.

    Nobody is asked for anything yet: a store that cannot be used is told by `prepare`, and by every other call.

    Args:
        database: The section of the configuration, where there is one.
        file: The SQLite file for where there is none; its folder must exist. None: one in memory, which is gone at the end.

    Raises:
        StartupError: `Database.CAFile` cannot be read.
    """
    if database is None:
        from trionat.store.sqlite import open_sqlite_store  # noqa: PLC0415 - memory
        from trionat.store.sqlite_file import MEMORY  # noqa: PLC0415 - as above

        async with open_sqlite_store(MEMORY if file is None else file) as store:
            yield store
        return
    # Imported only where there is a database: they bring anyio, asyncio and asyncmy, which is 11 MiB and some 40 ms.
    from trionat.store.mysql.pool import open_pool  # noqa: PLC0415 - memory
    from trionat.store.mysql.store import MySQLStore  # noqa: PLC0415 - memory

    async with open_pool(database) as pool:
        yield MySQLStore(pool)
