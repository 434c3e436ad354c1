"""Whose a Bearer token is: asked of the store at each request, so that one which is revoked is void at once."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.errors import StoreError
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


def _now() -> datetime:
    return datetime.now(UTC)


@attrs.define(eq=False)
class StoredTokens:
    """A `TokenAuthenticator`. `now` is the time of day (aware)."""

    store: Store
    now: Callable[[], datetime] = _now

    async def find(self, token: str) -> Principal | None:
        """Return who has the token; None: nobody has it.

        Raises:
            Problem: it was one, and is void by now: whoever shows it does not guess.
            StoreUnavailableError: it cannot be asked for now.
        """
        try:
            digest = digest_token(token)
        except ValueError:
            await trio.lowlevel.checkpoint()
            return None
        found = await self.store.find_token(digest)
        if found is None or not hmac.compare_digest(found.digest, digest):
            return None
        now = self.now()
        user = await self.store.find_user(found.user)
        if user is None or user.account_id != found.account_id:
            return None
        _check(found, user, now)
        await self._note_use(found, now)
        return Principal(
            username=user.name,
            account_id=user.account_id,
            is_admin=user.admin,
            permissions=OF_SCOPE[found.scope.value],
            token=found.name,
            expires_at=found.expires_at,
        )

    async def _note_use(self, token: Token, now: datetime) -> None:
        """Note that it was used, once an hour: a request is not to cost a write."""
        if token.last_used is not None and now - token.last_used < FRESH:
            return
        try:
            await self.store.touch_token(token.token_id, now)
        except StoreError as error:
            log.debug("it was not noted that a token was used", reason=str(error))


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
    raise Problem(
        Code.UNAUTHORIZED, reason, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'}
    )
