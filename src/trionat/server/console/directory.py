"""Looks at accounts and tokens while somebody watches them: once for all who do, however many consoles are open, and at once after a change that was made here."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import StoreError
from trionat.log import get_logger
from trionat.server.console.live import Changes, Tick, Ticks
from trionat.server.console.rows import TokenRow, UserRow
from trionat.signals import AutoResetEvent, Signal

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from trionat.server.accounts.traffic import Traffic
    from trionat.server.console.live import Topic
    from trionat.store.base import Store, User
    from trionat.store.tokens import Token

log = get_logger(__name__)

INTERVAL: Final = 2.0
"""Seconds from one look to the next."""

_SHARE: Final = 10.0
"""A pause is so many times as long as the look before it, which so takes no more than a tenth of the store's time, whatever the number of accounts."""

_ROWS_A_SECOND: Final = 1000
"""Rows that are told of: where more change at once, the next look is so much later."""

_LEAST_PAUSE: Final = 0.1
"""Seconds between two looks while one change after another is made here."""

_PART: Final = 1000
"""Accounts whose usage is asked for at once: as many as a page of the API has."""

_PATIENCE: Final = 20.0
"""Seconds for a look."""

_FIRST_LOOK: Final = 2.0
"""Seconds that a new reader waits for the first look; where it takes longer, he is told to fetch all anew after it."""


@attrs.frozen(kw_only=True)
class _Look:
    users: Mapping[str, UserRow]
    tokens: Mapping[str, TokenRow]


@attrs.define(eq=False)
class Directory(Ticks):
    """See the module. `run` has to run. While the store cannot be asked nothing is told; afterwards all readers are told to fetch the lists anew."""

    store: Store
    traffic: Traffic
    _latest: _Look | None = attrs.field(init=False, default=None)
    _watchers: int = attrs.field(init=False, default=0)
    _came: Signal = attrs.field(init=False, factory=Signal)
    _looked: Signal = attrs.field(init=False, factory=Signal)
    _due: AutoResetEvent = attrs.field(init=False, factory=AutoResetEvent)
    _scribe: trio.CapacityLimiter = attrs.field(
        init=False, factory=partial(trio.CapacityLimiter, 1)
    )

    @contextmanager
    def watching(self) -> Generator[None]:
        """Somebody watches while the block runs."""
        self._watchers += 1
        self._came.notify()
        try:
            yield
        finally:
            self._watchers -= 1

    def forget(self) -> None:
        """Something was changed here: look at once."""
        self._due.notify()

    async def wait_first(self) -> None:
        """Wait until there was a look from which on changes are told, but not for long. Always a checkpoint."""
        with trio.move_on_after(_FIRST_LOOK):
            await trio.lowlevel.checkpoint()
            while self._latest is None:
                await self._looked.wait()

    async def run(self) -> None:
        """Look while somebody watches, for ever."""
        while True:
            if not self._watchers:
                self._latest = None  # whoever comes next begins anew
                while not self._watchers:
                    await self._came.wait()
            began = trio.current_time()
            changed = await self._look()
            took = trio.current_time() - began
            await trio.sleep(max(_LEAST_PAUSE, took))
            with trio.move_on_after(max(INTERVAL, _SHARE * took, changed / _ROWS_A_SECOND)):
                await self._due.wait()

    async def _look(self) -> int:
        """Look once; return how many rows have changed."""
        try:
            with trio.fail_after(_PATIENCE):
                users = await self.store.list_users()
                used = await self._used_by(users)
                tokens = await self.store.list_tokens()
        except (StoreError, trio.TooSlowError) as error:
            log.debug("the console could not look at the accounts", reason=str(error))
            self._latest = None
            return 0
        make = partial(self._compare, users, used, tokens, datetime.now(UTC))
        latest, tick = await trio.to_thread.run_sync(make, limiter=self._scribe)
        is_first, self._latest = self._latest is None, latest
        if is_first:
            self.begin_anew()
        elif tick.size:
            self.add(tick)
        self._looked.notify()
        return 0 if is_first else tick.size

    async def _used_by(self, users: list[User]) -> dict[str, int]:
        """Ask in parts: between two of them others may ask the store."""
        names, used = [user.name for user in users], dict[str, int]()
        for start in range(0, len(names), _PART):
            used |= await self.traffic.used_this_month(names[start : start + _PART])
        return used

    def _compare(
        self, users: list[User], used: Mapping[str, int], tokens: list[Token], now: datetime
    ) -> tuple[_Look, Tick]:
        """Make the rows, and find what has changed. In a thread: there may be tens of thousands."""
        before = self._latest or _Look(users={}, tokens={})
        after = _Look(
            users={user.name: UserRow.of(user, used[user.name], now) for user in users},
            tokens={token.token_id: TokenRow.of(token, now) for token in tokens},
        )
        changes: dict[Topic, Changes] = {
            "users": Changes.between(before.users, after.users),
            "tokens": Changes.between(before.tokens, after.tokens),
        }
        return after, Tick(
            number=self.number + 1, sample=None, scribe=self._scribe, changes=changes
        )
