"""Connections to MySQL or MariaDB, and what can go wrong with them.

asyncmy is for asyncio, so it lives in an event loop of its own, in a thread behind anyio's portal: `Pool.run` sends a piece of
work there, and Trio's deadline and cancellation reach it. Only this module knows asyncio's side, and no error of asyncmy
leaves it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asyncmy
import attrs
import trio
from anyio.from_thread import start_blocking_portal
from asyncmy import errors

from trionat.errors import StartupError, StoreDataError, StoreUnavailableError
from trionat.store.mysql.faults import DENIALS, INCOMPARABLE, REFUSALS, explain

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from anyio.from_thread import BlockingPortal

    from trionat.config.database import DatabaseConfig

T = TypeVar("T")

_CLOSE_GRACE: Final = 2.0
"""Seconds for connections to say goodbye; then they are cut."""

_RECYCLE: Final = 10
"""Seconds after which an idle connection is not used again; less than `wait_timeout` below, when the database closes it."""

_SESSION: Final = """set session time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION',
    wait_timeout = 20, innodb_lock_wait_timeout = {seconds}, lock_wait_timeout = {seconds}
    /*M!100300 , max_statement_time = {seconds}, idle_transaction_timeout = {seconds} */
    /*!50708 , max_execution_time = {milliseconds} */"""
"""What holds in every session, whatever the server's configuration. A name that is too long is an error and not cut off.

Cancelling only closes our end: the server runs the statement on, so it bounds itself how long that is, and how long a
transaction may hold its locks whose client is gone without a word (MySQL cannot tell it from an idle connection: 20 s). The
first comment is for MariaDB alone, the second for MySQL alone (MariaDB skips versions from 5.7 to 9.99, since it has other
features there), which bounds only questions.
"""


@attrs.frozen
class Link:
    """A connection, lent for one piece of work. It lives in asyncio's thread: nothing of Trio's works there."""

    _cursor: Any  # of asyncmy, whose types leave much out

    async def ask(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of a question; a tuple among the values stands for a list in parentheses."""
        await self._cursor.execute(statement, values)
        return list(await self._cursor.fetchall())

    async def ask_by_name(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask a question in which `{}` stands for the column `username`, and all text among the values is names.

        A column in an older character set does not compare with what it cannot hold, such as an emoji that somebody
        gives for a name; then all of it is read.
        """
        try:
            return await self.ask(statement.format("username"), *values)
        except errors.OperationalError as exc:
            if exc.args[0] not in INCOMPARABLE:
                raise
        return await self.ask(statement.format("convert(username using utf8mb4)"), *values)

    async def change(self, statement: str, *values: object) -> None:
        """Run a statement that has no answer."""
        await self._cursor.execute(statement, values)

    async def refusal(self, statement: str) -> str | None:
        """Run a statement; return what the database says if it does not let us, or None."""
        try:
            await self._cursor.execute(statement)
        except errors.OperationalError as exc:
            if exc.args[0] not in DENIALS:
                raise
            return str(exc.args[1])
        return None

    @property
    def last_id(self) -> int:
        """What AUTO_INCREMENT gave to the last row that was inserted."""
        row: int = self._cursor.lastrowid
        return row


@attrs.define(eq=False)
class Pool:
    """Connections to one database, made when they are needed; `open_pool` makes it.

    A connection that was lost is replaced at its next use, so nobody has to be told when the database is back. There are as many
    places as connections, and who waits waits for a place: asyncmy's own pool wakes one too few where a connection is given back
    at the moment in which another one is cut.
    """

    config: DatabaseConfig
    _portal: BlockingPortal
    _connections: asyncmy.Pool
    _places: trio.Semaphore = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._places = trio.Semaphore(self.config.pool_size)

    async def run(self, work: Callable[[Link], Awaitable[T]], *, transaction: bool = False) -> T:
        """Do a piece of work on a connection, within `Database.Timeout` seconds in all.

        Cancelling cuts the connection, and waits for that alone. What the statement under way does at the server, a commit for
        instance, is then not known; the same is true after an error.

        Args:
            work: What to do with the connection; it runs in asyncio's thread and gets data from there, nothing else.
            transaction: Commit at the end of it, or change nothing.

        Raises:
            StoreUnavailableError: The database cannot be asked; one line says what to do.
            StoreDataError: It does not take a value. A transaction has changed nothing then.
        """

        async def job() -> T:
            connection = await self._connect()
            try:
                async with connection.cursor() as cursor:
                    if not transaction:
                        return await work(Link(cursor))
                    await connection.begin()
                    result = await work(Link(cursor))
                    await connection.commit()
                    return result
            finally:
                # One that is still in a transaction is closed, and so rolled back.
                self._connections.release(connection)

        seconds = self.config.timeout
        try:
            with trio.fail_after(seconds):
                async with self._places:
                    return await self._portal.call_async(job)
        except trio.TooSlowError as exc:
            raise self._unavailable(
                f"no answer within {seconds:g} s: is the network in order, or does somebody hold a lock?"
            ) from exc
        except UnicodeEncodeError as exc:
            raise StoreDataError(self._told(f"{exc.object!r} is no text")) from exc
        except errors.MySQLError as exc:
            reason = explain(exc, self.config)
            if exc.args[0] in REFUSALS:
                raise StoreDataError(self._told(reason)) from exc
            raise self._unavailable(reason) from exc

    async def _connect(self) -> asyncmy.Connection:
        """Return a connection, to be released."""
        try:
            return await self._connections.acquire()
        except errors.MySQLError:
            raise
        except Exception as exc:
            # asyncmy reads what whoever answers there says as if it came from a database, and stumbles.
            raise errors.InterfaceError(
                0, "what answers there is no database: check Database.Host"
            ) from exc

    def _unavailable(self, reason: str) -> StoreUnavailableError:
        return StoreUnavailableError(self._told(reason))

    def _told(self, reason: str) -> str:
        return f"database {self.config.address}: {' '.join(reason.split())}"


@contextlib.asynccontextmanager
async def open_pool(config: DatabaseConfig) -> AsyncGenerator[Pool]:
    """Give a pool of connections to the database of the configuration; leaving closes them.

    No connection is made yet, so the database may be down. Cancelling is safe at any point.

    Raises:
        StartupError: The file of certificate authorities cannot be read.
    """
    # Warnings of the server are of no use to whoever reads our log: that VALUES() is old-fashioned, which MariaDB has no other
    # word for; everything else is an error in strict mode.
    logging.getLogger("asyncmy").setLevel(logging.ERROR)
    portal_context = start_blocking_portal(backend="asyncio", name="trionat-mysql")
    portal = await trio.to_thread.run_sync(portal_context.__enter__)
    try:
        connections = await portal.call_async(_create_pool, config)
        try:
            yield Pool(config, portal, connections)
        finally:
            with trio.CancelScope(shield=True):
                await portal.call_async(_close_pool, connections)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(portal_context.__exit__, None, None, None)


async def _create_pool(config: DatabaseConfig) -> asyncmy.Pool:
    seconds = math.ceil(config.timeout)
    return asyncmy.Pool(
        minsize=0,
        maxsize=config.pool_size,
        pool_recycle=_RECYCLE,
        host=config.address.dialled_host,
        port=config.address.port,
        user=config.username,
        password=config.password,
        db=config.db_name,
        charset="utf8mb4",
        init_command=_SESSION.format(seconds=seconds, milliseconds=1000 * seconds),
        connect_timeout=config.timeout,
        autocommit=True,
        ssl=await asyncio.to_thread(_tls_context, config),
    )


def _tls_context(config: DatabaseConfig) -> ssl.SSLContext | None:
    if not config.encrypted:
        return None
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
    except (OSError, ValueError) as exc:
        raise StartupError(
            f"{config.ca_file}: no certificate authorities can be read from it ({exc}): check Database.CAFile"
        ) from exc
    # On by default from Python 3.13 on: authorities without certain extensions are refused, as home-made ones are.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


async def _close_pool(connections: asyncmy.Pool) -> None:
    connections.close()
    try:
        async with asyncio.timeout(_CLOSE_GRACE):
            await connections.wait_closed()
    except TimeoutError:
        connections.terminate()
