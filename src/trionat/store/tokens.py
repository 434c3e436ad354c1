"""API tokens: their text, which is shown once and kept nowhere, and what a store keeps of them."""

from __future__ import annotations

import base64
import enum
import hashlib
import re
import secrets
from typing import TYPE_CHECKING, Final

import attrs

from trionat.errors import StoreError
from trionat.text import TOKEN_PREFIX

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

MOST_TOKENS: Final = 100
"""Tokens of one account; chosen, not measured: one for each program that asks."""

_SECRET_BYTES: Final = 32
_ID_BYTES: Final = 6
_TEXT: Final = re.compile(rf"{TOKEN_PREFIX}[a-z2-7]{{52}}", re.ASCII)


class TokenScope(enum.StrEnum):
    """What a token is good for: looking at all that its account may see, changing it as well, or `/metrics` alone."""

    READ = "read"
    MANAGE = "manage"
    METRICS = "metrics"


@attrs.frozen(kw_only=True)
class Token:
    """A token as a store keeps it: `digest` is SHA-256 of its text.

    It is the account's of that name and `account_id`, not a later one's of the same name. `last_used` (aware) is right to the hour, and None before the first use.
    """

    token_id: str = attrs.field(factory=lambda: secrets.token_hex(_ID_BYTES))
    name: str
    user: str
    account_id: int
    digest: bytes = attrs.field(repr=False)
    scope: TokenScope
    created_at: datetime
    expires_at: datetime | None = None
    last_used: datetime | None = None

    def is_expired(self, now: datetime) -> bool:
        """Tell whether it is void at `now` (aware); whether its account is, is another question."""
        return self.expires_at is not None and now >= self.expires_at


def check_scope(scope: TokenScope, user: str, *, is_admin: bool) -> None:
    """Check that a new token of an account with that scope would be good for something.

    Raises:
        ValueError: It would not: metrics are there for all users together only.
    """
    if scope is TokenScope.METRICS and not is_admin:
        raise ValueError(
            f"/metrics tells of all users, so it is for administrators, and {user!r} is none: trionat user admin makes it one"
        )


def check_new_token(token: Token, names: Collection[str]) -> None:
    """Check that an account which has tokens of these names may have this one as well.

    Raises:
        StoreError: It may not.
    """
    if token.name in names:
        raise StoreError(f"{token.user!r} has a token {token.name!r} already")
    if len(names) >= MOST_TOKENS:
        raise StoreError(
            f"{token.user!r} has {MOST_TOKENS} tokens, which is all that an account may have: revoke one"
        )


def make_token_text() -> str:
    """Return the text of a new token: 256 random bits, in base32, so that a double click selects all of it."""
    secret = base64.b32encode(secrets.token_bytes(_SECRET_BYTES)).decode()
    return TOKEN_PREFIX + secret.rstrip("=").lower()


def digest_token(text: str) -> bytes:
    """Return what a store keeps of a token, and finds it by.

    Raises:
        ValueError: It is none; the message does not show it.
    """
    if not _TEXT.fullmatch(text):
        raise ValueError(f"this is no token: one begins with {TOKEN_PREFIX} and has 56 characters")
    return hashlib.sha256(text.encode()).digest()
