"""Counting what sessions relay, and bringing it to the store: every byte once, whatever fails when.

Every 10 s, and soon after the end of a session, what has come together since the last look is put into the journal (on the
disk), and from there into the store. A server that is killed loses what it has relayed since that look; whatever else fails
(the store, its answer, the disk) costs nothing but time. What the store refuses for its data is set aside, so that the traffic of all
others goes on. `store/journal.py` has the law, and this module the times.
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import trio

from trionat.errors import StartupError, StoreDataError, StoreUnavailableError
from trionat.log import get_logger
from trionat.signals import Signal
from trionat.store.day import day_within
from trionat.store.journal import Journal, load_journal, save_journal
from trionat.store.month import month_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Generator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from trionat.store.base import Flush, Store

log = get_logger(__name__)

FLUSH_INTERVAL: Final = 10.0
"""Seconds from one look at the sessions to the next, which is what a server that is killed loses at most; and how often a
store that is down is tried again."""

RETRY_INTERVAL: Final = 3600.0
"""Seconds after which what the store has refused is offered again; at each start as well."""

# Seconds from the end of a session to its flush: so that many which end together are one.
_GATHER: Final = 0.5

# Seconds for the store to take what there is. Well below the interval, so that the next look is not late.
_STORE_TIMEOUT: Final = 5.0

# Seconds for the last flush of a server that stops; the journal keeps the rest.
_STOP_GRACE: Final = 5.0


def _now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def open_traffic(
    folder: Path | None,
    store: Store,
    now: Callable[[], datetime] = _now,
    *,
    later: bool = False,
) -> AsyncGenerator[Traffic]:
    """Give what counts traffic; what the journal in the state folder has from before is sent first. Without a folder, the journal is in memory.

    With `later`, another process has the journal until `take_over` is called: before that nothing is written down or sent.

    Whoever runs sessions in the block starts `flush_regularly`, and has ended them when the block ends. That makes a last
    flush, under cancellation too, which takes at most 5 s; what the store does not take then stays in the journal.

    Raises:
        StartupError: The journal cannot be read.
    """
    journal = (
        Journal()
        if later or folder is None
        else await trio.to_thread.run_sync(load_journal, folder)
    )
    traffic = Traffic(folder, store, journal, now)
    traffic.is_elsewhere = later
    try:
        yield traffic
    finally:
        with trio.move_on_after(_STOP_GRACE, shield=True):
            await traffic.flush()
        traffic.tell_rest()


class Relaying(Protocol):
    """Tunnels, which know how many bytes they have relayed."""

    @property
    def relayed(self) -> int:
        """Bytes so far; never less than before."""
        ...


class Counted(Protocol):
    """What is asked of a session whose bytes are counted."""

    username: str

    @property
    def tunnels(self) -> Relaying:
        """What relays its bytes."""
        ...


@attrs.define(eq=False)
class _Meter:
    """A session's counter. `relayed` tells the bytes so far and never goes back; `seen` is what was counted of them."""

    user: str
    relayed: Callable[[], int]
    seen: int = 0

    @property
    def unseen(self) -> int:
        return self.relayed() - self.seen

    def take(self) -> int:
        unseen = self.unseen
        self.seen += unseen
        return unseen


@attrs.define(eq=False)
class Traffic:
    """See the module; made by `open_traffic`. Only `_turn`'s holder changes journal and disk, and adds to the store.

    The name under which it numbers its flushes is its own: what an earlier process has attempted keeps that one's name, and all
    else gets a new one. For another server may be running on a copy of the state folder, or the folder is an older copy itself,
    and a number that both have used would be taken for a flush that has arrived.

    While it `is_elsewhere`, the journal belongs to another process: nothing is flushed here.
    """

    folder: Path | None
    store: Store
    journal: Journal
    now: Callable[[], datetime]
    is_elsewhere: bool = attrs.field(init=False, default=False)
    _meters: set[_Meter] = attrs.field(init=False, factory=lambda: set())
    _left: Counter[str] = attrs.field(init=False, factory=lambda: Counter())  # by ended sessions
    _session_ended: Signal = attrs.field(init=False, factory=Signal)
    _turn: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    _disk: trio.CapacityLimiter = attrs.field(
        init=False, factory=partial(trio.CapacityLimiter, 1)
    )  # not the one of all threads, in which slow name servers may take every place
    _on_disk: Journal = attrs.field(init=False)
    _sent: Flush | None = attrs.field(init=False)  # the last one that the store may have seen
    _has_own_name: bool = attrs.field(init=False, default=False)
    _retry_at: float = attrs.field(init=False, default=-math.inf)
    _refused: set[str] = attrs.field(init=False, factory=lambda: set())  # users, told in the log
    _store_is_down: bool = attrs.field(init=False, default=False)
    _disk_is_full: bool = attrs.field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._on_disk = self.journal
        self._sent = self.journal.attempted

    def accounted(self, session: Counted) -> AbstractContextManager[None]:
        """Count for the user of a session while the block runs."""
        return self.metered(session.username, lambda: session.tunnels.relayed)

    @contextmanager
    def metered(self, user: str, relayed: Callable[[], int]) -> Generator[None]:
        """Count for that user, while the block runs, the bytes so far that `relayed` tells, which may only grow."""
        meter = _Meter(user, relayed)
        self._meters.add(meter)
        try:
            yield
        finally:
            self._meters.remove(meter)
            self._left[user] += meter.take()
            self._session_ended.notify()

    async def used_this_month(self, names: Collection[str]) -> dict[str, int]:
        """Return the bytes of each of these users in this month (UTC), up to this moment, from all servers of the store.

        What another server has relayed since its last flush is missing. A flush whose outcome is unknown counts once, whether the
        store has it or not. Waits for a flush on its way only if that began after the question.

        Raises:
            StoreUnavailableError: the store cannot be asked.
        """
        before = self.journal
        used = await self._find_used(names)
        if (self.journal.server, self.journal.number) != (before.server, before.number):
            async with self._turn:  # what was kept when it was asked may be in the answer as well
                used = await self._find_used(names)
        return {name: used[name] for name in names}

    async def _find_used(self, names: Collection[str]) -> Counter[str]:
        """Ask the store once; right unless another flush begins meanwhile."""
        month, journal = self._month, self.journal
        used = journal.kept(month) + self._left
        for meter in self._meters:
            used[meter.user] += meter.unseen
        used.update(await self.store.monthly_traffic(month, names, journal.attempted))
        return used

    async def flush_regularly(self) -> None:
        """Flush for ever: every 10 s, and when sessions have ended."""
        while True:
            next_look = trio.current_time() + FLUSH_INTERVAL
            await self.flush()
            with trio.CancelScope(deadline=next_look):
                while True:
                    while not self._left:
                        await self._session_ended.wait()
                    await trio.sleep(_GATHER)
                    if not self._store_is_down:
                        break
                    async with self._turn:
                        if not self.is_elsewhere:
                            self._count()
                            await self._save()

    async def flush(self) -> None:
        """Bring everything up to now into the journal, and from there to the store. Cancelling it loses nothing.

        It ends when it is time for the next look; what is left then waits for that.
        """
        end = trio.current_time() + FLUSH_INTERVAL
        async with self._turn:
            if self.is_elsewhere:
                return
            self._count()
            if trio.current_time() >= self._retry_at and not self._store_is_down:
                self._retry_at = trio.current_time() + RETRY_INTERVAL
                self.journal = self.journal.retried()
        while await self._flush_next() and trio.current_time() < end:
            pass

    async def _flush_next(self) -> bool:
        """Write the journal down, and bring what is next in it to the store; tell whether to go on."""
        async with self._turn:  # given back in between, to those who ask
            if self.is_elsewhere:
                return False
            if not self._has_own_name and self.journal.waiting and self.journal.attempted is None:
                self.journal, self._has_own_name = self.journal.renamed(), True
            self.journal = self.journal.attempt()
            flush = self.journal.attempted
            return await self._save() and flush is not None and await self._send(flush)

    @asynccontextmanager
    async def resting(self) -> AsyncGenerator[None]:
        """Neither write nor send anything in the block, but by `write_down`."""
        async with self._turn:
            yield

    async def write_down(self) -> None:
        """Bring everything up to now into the journal on the disk, where another process finds it. Only in `resting`.

        Raises:
            StartupError: it cannot be written.
        """
        self._count()
        if not await self._save():
            raise StartupError(f"{self.folder}: the traffic so far cannot be written down")

    async def take_over(self) -> None:
        """Read the journal, which the process before has written down, and is done with.

        Raises:
            StartupError: it cannot be read.
        """
        assert self.folder is not None, "another process has it"  # noqa: S101 - for type checkers
        async with self._turn:
            self.journal = await trio.to_thread.run_sync(load_journal, self.folder)
            self._on_disk, self._sent = self.journal, self.journal.attempted
            self.is_elsewhere = False

    def tell_rest(self) -> None:
        """Log what stays behind, if anything does."""
        if self.is_elsewhere:
            return
        if rest := sum(self.journal.unsettled().values()):
            if self.folder is None:
                where = "nowhere"
            elif self.journal is self._on_disk:
                where = "in the journal, until the next start"
            elif self._disk_is_full:
                where = "nowhere"
            else:
                where = "perhaps in the journal: the disk does not answer"
            log.warning("the store does not have all traffic", bytes=rest, kept=where)

    @property
    def _month(self) -> str:
        return month_of(self.now())

    def _count(self) -> None:
        """Take what the meters have into the journal."""
        amounts, self._left = self._left, Counter()
        for meter in self._meters:
            amounts[meter.user] += meter.take()
        self.journal = self.journal.counted(self._month, +amounts)

    async def _save(self) -> bool:
        journal = self.journal
        if journal is self._on_disk:
            return True
        if self.folder is None:
            self._on_disk = journal
            return True
        # A disk may hang, and must not hold up a stop. A write that is left alone keeps its place in the limiter until it is done,
        # so that no later one is overtaken by it.
        write = partial(save_journal, self.folder, journal)
        try:
            await trio.to_thread.run_sync(write, limiter=self._disk, abandon_on_cancel=True)
        except StartupError as error:
            if not self._disk_is_full:
                self._disk_is_full = True
                log.warning(
                    "traffic cannot be written down; it is kept in memory", error=str(error)
                )
            return False
        self._on_disk = journal
        if self._disk_is_full:
            self._disk_is_full = False
            log.info("traffic is written down again")
        return True

    async def _send(self, flush: Flush) -> bool:
        """Ask the store to add a flush that is on the disk; False if it is not known whether it has."""
        doubtful, self._sent = flush is self._sent, flush
        try:
            with trio.fail_after(_STORE_TIMEOUT):
                # The day is when it was relayed, to 10 s, unless the store was down: then it is when that was back.
                added = await self.store.add_traffic(flush, day_within(flush.month, self.now()))
        except StoreDataError as error:
            self._refuse(flush, error)
        except (StoreUnavailableError, trio.TooSlowError) as error:
            if not self._store_is_down:
                self._store_is_down = True
                reason = str(error) or f"no answer within {_STORE_TIMEOUT:g} s"
                log.warning("traffic cannot be added to the store; it is kept", error=reason)
            return False
        else:
            if added or doubtful:
                self._settle(flush)
            else:
                # It was never sent, and yet the store has its number: from a copy of this process, as of a virtual machine that
                # was cloned while it ran.
                self.journal = self.journal.renamed()
                log.warning("another server counts under this one's name: taking a new one")
        if self._store_is_down:
            self._store_is_down = False
            log.info("traffic is added to the store again")
        return True

    def _settle(self, flush: Flush) -> None:
        self.journal = self.journal.settled()
        for user in self._refused & flush.amounts.keys() - self.journal.refused_users:
            self._refused.remove(user)
            log.info("the store takes a user's traffic again", user=user)

    def _refuse(self, flush: Flush, error: StoreDataError) -> None:
        self.journal = self.journal.refused()
        for user in (flush.amounts.keys() & self.journal.refused_users) - self._refused:
            self._refused.add(user)
            log.warning(
                "the store refuses a user's traffic; it is set aside",
                user=user,
                month=flush.month,
                bytes=flush.amounts[user],
                error=str(error),
                hint="mend what the error names; it is tried again every hour, and at each start",
            )
