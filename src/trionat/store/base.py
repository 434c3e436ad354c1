"""What the rest of trionat knows of a user store: the `Store` protocol and the `User` row.

A store answers questions about accounts; it knows nothing of sessions, sockets or the text of tickets.
SQLite is the embedded one.
Every method is a checkpoint and never blocks the loop. Cancelling a call leaves the store usable and either the whole change
made or none of it.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final, Protocol

import attrs

if TYPE_CHECKING:
    from datetime import datetime

MAX_NAME_LENGTH: Final = 64
"""Characters in the name of a new account; chosen, not measured: it fits every log line, and every store."""

_SALT_BYTES: Final = 16


def check_new_name(name: str) -> None:
    """Check the name of an account to be made; accounts that exist already may have any name.

    Raises:
        ValueError: It is empty, too long, or has blanks or characters in it that cannot be seen.
    """
    if not 1 <= len(name) <= MAX_NAME_LENGTH or not name.isprintable() or " " in name:
        raise ValueError(
            f"a user name is 1 to {MAX_NAME_LENGTH} characters without blanks or control characters, got {name!r}"
        )


def new_ticket_salt() -> bytes:
    """Return a random salt for an account's tickets."""
    return secrets.token_bytes(_SALT_BYTES)


@attrs.frozen(kw_only=True)
class User:
    """One account.

    `password_hash` is an Argon2id hash in PHC text form. `ticket_salt` (16 random bytes) goes into the account's ticket, so
    that a new salt revokes every ticket handed out before. `expires_at` is UTC and aware; None means never. The instant
    itself counts as expired.
    """

    name: str
    password_hash: str = attrs.field(repr=False)
    ticket_salt: bytes = attrs.field(repr=False)
    expires_at: datetime | None = None
    created_at: datetime

    def is_expired(self, now: datetime) -> bool:
        """Tell whether the account is past its expiry at `now` (aware)."""
        return self.expires_at is not None and now >= self.expires_at


class Store(Protocol):
    """Accounts by name; names are compared exactly, case and all.

    Every method raises `StoreUnavailableError` when the store cannot be asked, and those that need an existing user
    `StoreError` when there is none. Several processes may use one store at once: a server that runs, and `trionat user`.
    """

    async def find_user(self, name: str) -> User | None:
        """Return the account of that name, or None."""
        ...

    async def list_users(self) -> list[User]:
        """Return every account, sorted by name."""
        ...

    async def add_user(self, user: User) -> None:
        """Add an account; `StoreError` where the name is taken."""
        ...

    async def remove_user(self, name: str) -> None:
        """Remove an account; `StoreError` where there is none."""
        ...

    async def set_password_hash(self, name: str, password_hash: str, ticket_salt: bytes) -> None:
        """Replace password and salt together: who changes a password wants the old tickets dead as well."""
        ...

    async def set_ticket_salt(self, name: str, ticket_salt: bytes) -> None:
        """Replace the salt alone: old tickets are dead, the password stays."""
        ...

    async def set_expiry(self, name: str, expires_at: datetime | None) -> None:
        """Set when the account ends (aware UTC), or that it never does."""
        ...
