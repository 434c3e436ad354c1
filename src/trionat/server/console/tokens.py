"""Whose a Bearer token is: asked of the store at each request, so that one which is revoked is void at once. Where the store is away, a token that was good may still look."""

from __future__ import annotations

import hmac
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeVar

import attrs
import trio

from trionat.errors import StoreError, StoreUnavailableError
from trionat.log import get_logger
from trionat.server.console.principal import OF_SCOPE, Principal
from trionat.server.console.problem import Code, Problem
from trionat.store.base import FRESH
from trionat.store.tokens import digest_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.store.base import Store, User
    from trionat.store.tokens import Token

log = get_logger(__name__)

T = TypeVar("T")


def _now() -> datetime:
    return datetime.now(UTC)


_MOST: Final = 1000
"""Tokens that are remembered, those that were good and those that were not; the one that was looked for longest ago is forgotten first."""

_TRUST: Final = 12 * 3600.0
"""Seconds for which a token may look, if the store cannot be asked: as long as a login."""

_PATIENCE: Final = 2.0
"""Seconds that a store has for a token that was good: Prometheus waits 10 s for all of its answer."""

_DOUBT: Final = 2.0
"""Seconds for which a token that was void is not asked for again: as long as an account that was looked at counts as it was."""


@attrs.frozen
class _Known:
    token: Token
    user: User
    looked: float


@attrs.define(eq=False)
class StoredTokens:
    """A `TokenAuthenticator`. `now` is the time of day (aware).

    What was found is remembered, by the digest. So a program that goes on with a token which is void by now does not count as one that guesses, and metrics can be read
    while the store is away. One who guesses never shows the same token twice.
    """

    store: Store
    now: Callable[[], datetime] = _now
    _known: dict[bytes, _Known] = attrs.field(init=False, factory=lambda: {})
    _void: dict[bytes, float] = attrs.field(init=False, factory=lambda: {})

    async def find(self, token: str) -> Principal | None:
        """Return who has the token; None: nobody has it, and it is a guess.

        Raises:
            Problem: it was one, and is void by now, or was shown before: whoever shows it does not guess.
            StoreUnavailableError: it cannot be asked for now, and was not good of late.
        """
        try:
            digest = digest_token(token)
        except ValueError:
            await trio.lowlevel.checkpoint()
            return None
        if trio.current_time() - self._void.get(digest, -math.inf) < _DOUBT:
            await trio.lowlevel.checkpoint()
            raise _void("the token is not known")
        known = self._known.get(digest)
        if known is not None and trio.current_time() - known.looked > _TRUST:
            known = None
        try:
            with trio.fail_after(math.inf if known is None else _PATIENCE):
                found = await self._look(digest)
        except (StoreUnavailableError, trio.TooSlowError):
            if known is None:
                raise
            _check(known.token, known.user, self.now())
            return _principal(known, is_remembered=True)
        if found is None:
            was_shown = digest in self._known or digest in self._void
            self._known.pop(digest, None)
            _put_last(self._void, digest, trio.current_time())
            if was_shown:
                raise _void("the token was revoked, or its account is gone")
            return None
        self._void.pop(digest, None)
        _put_last(self._known, digest, found)
        now = self.now()
        _check(found.token, found.user, now)
        await self._note_use(found.token, now)
        return _principal(found)

    async def _look(self, digest: bytes) -> _Known | None:
        found = await self.store.find_token(digest)
        if found is None or not hmac.compare_digest(found.digest, digest):
            return None
        user = await self.store.find_user(found.user)
        if user is None or user.account_id != found.account_id:
            return None
        return _Known(found, user, trio.current_time())

    async def _note_use(self, token: Token, now: datetime) -> None:
        """Note that it was used, once an hour: a request is not to cost a write."""
        if token.last_used is not None and now - token.last_used < FRESH:
            return
        try:
            await self.store.touch_token(token.token_id, now)
        except StoreError as error:
            log.debug("it was not noted that a token was used", reason=str(error))


def _principal(known: _Known, *, is_remembered: bool = False) -> Principal:
    return Principal(
        username=known.user.name,
        account_id=known.user.account_id,
        is_admin=known.user.admin,
        permissions=OF_SCOPE[known.token.scope.value],
        token=known.token.name,
        expires_at=known.token.expires_at,
        is_remembered=is_remembered,
    )


def _check(token: Token, user: User, now: datetime) -> None:
    if token.is_expired(now):
        reason = "the token has expired"
    elif user.disabled:
        reason = f"the account {user.name} is disabled"
    elif user.is_expired(now):
        reason = f"the account {user.name} has expired"
    elif user.damage:
        reason = f"the account {user.name} is damaged"
    else:
        return
    raise _void(reason)


def _void(reason: str) -> Problem:
    return Problem(
        Code.UNAUTHORIZED, reason, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'}
    )


def _put_last(table: dict[bytes, T], digest: bytes, value: T) -> None:
    table.pop(digest, None)
    if len(table) >= _MOST:
        del table[next(iter(table))]
    table[digest] = value
