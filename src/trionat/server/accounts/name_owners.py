"""Whose a name is: its user's for a while after it was used last, so that nobody else gets the visitors, callbacks and cookies that are still on their way there."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import (
    NameTakenError,
    RefusedError,
    StoreDataError,
    StoreError,
    StoreUnavailableError,
)
from trionat.log import get_logger
from trionat.protocol.messages import RefusalCode
from trionat.store.base import UNSETTLED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from trionat.store.base import Store

log = get_logger(__name__)

KEPT_FOR: Final = timedelta(days=30)
"""After the last use."""

_TOUCH_INTERVAL: Final = 3600.0


def _now() -> datetime:
    return datetime.now(UTC)


@attrs.frozen(kw_only=True)
class Reservation:
    """The `names` that have become an account's with a login; those that were its own before are not among them. `at` is when that was (aware)."""

    user: str
    account_id: int
    names: tuple[str, ...]
    at: datetime


@attrs.define(eq=False)
class NameOwners:
    """Asks the store, which all servers of a cluster share. `now` is the time of day (aware)."""

    store: Store
    now: Callable[[], datetime] = _now
    _lost: set[tuple[str, str]] = attrs.field(init=False, factory=lambda: set())

    async def reserve(self, user: str, account_id: int, names: Sequence[str]) -> Reservation:
        """Make all of them the account's, or none.

        Raises:
            RefusedError: one is somebody else's, the user has too many, or the store cannot be asked now.
        """
        now = self.now()
        try:
            new = await self.store.reserve_names(user, account_id, names, now, KEPT_FOR)
        except StoreUnavailableError as error:
            log.warning("names cannot be looked up", reason=str(error))
            text = "names cannot be looked up now; try again"
            raise RefusedError(RefusalCode.STORE_UNAVAILABLE, text) from error
        except NameTakenError as error:
            raise RefusedError(
                RefusalCode.NAME_TAKEN,
                f"{error.name} belongs to another account, or was used by one within {KEPT_FOR.days} days: choose another one, or have the server's operator give it free (trionat user release-name {error.name})",
            ) from error
        except StoreError as error:
            raise RefusedError(RefusalCode.NAME_NOT_OFFERED, str(error)) from error
        return Reservation(user=user, account_id=account_id, names=tuple(sorted(new)), at=now)

    async def take_back(self, reservation: Reservation) -> None:
        """Forget what was new with a reservation, since its client has not got the names.

        Not after a while: then others of the account may count on it without saying so (`UNSETTLED`), and clocks of servers differ.
        """
        if not timedelta(0) <= self.now() - reservation.at < UNSETTLED / 2:
            return
        try:
            await self.store.take_back_names(
                reservation.user, reservation.account_id, reservation.names, reservation.at
            )
        except StoreError as error:
            log.debug("names stay reserved that nobody has got", reason=str(error))

    async def touch_regularly(self, in_use: Callable[[], Iterable[tuple[str, str]]]) -> None:
        """Note once an hour that names are in use, for ever; `in_use` has them, each with its user."""
        while True:
            await trio.sleep(_TOUCH_INTERVAL)
            await self.touch(in_use())

    async def touch(self, in_use: Iterable[tuple[str, str]]) -> None:
        """Note that names are in use, each by itself, so that one which its user has lost takes no other along."""
        used = dict.fromkeys(in_use)
        self._lost &= used.keys()
        for name, user in used:
            try:
                is_kept = await self.store.touch_name(user, name, self.now())
            except StoreDataError as error:
                log.warning("it cannot be noted that a name is in use", name=name, error=str(error))
            except StoreError as error:  # the others would wait for nothing as well
                log.debug("it was not noted that names are in use", reason=str(error))
                return
            else:
                self._note_kept(name, user, is_kept=is_kept)

    def _note_kept(self, name: str, user: str, *, is_kept: bool) -> None:
        """Log that a name which is in use is not kept for its user any more, once, as long as that lasts."""
        if is_kept:
            self._lost.discard((name, user))
        elif (name, user) not in self._lost:
            self._lost.add((name, user))
            log.warning(
                "a name is in use and not kept for its user any more: another may have it afterwards",
                name=name,
                user=user,
            )
