"""The account that a new server makes for itself, so that it can be used at once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import attrs

from trionat.errors import StoreError, StoreUnavailableError
from trionat.store.base import User, new_ticket_salt
from trionat.store.passwords import hash_password, make_password

if TYPE_CHECKING:
    from trionat.store.base import Store

FIRST_USER: Final = "trionat"
"""The account that a server makes for itself when it has none."""


@attrs.frozen(kw_only=True)
class FirstUser:
    """The account that a server made for itself, with the password that is known only now."""

    user: User
    password: str = attrs.field(repr=False)


async def ensure_first_user(store: Store) -> FirstUser | None:
    """Make an account where there is none, so that a new server can be used at once.

    Returns:
        The account and its random password, which nobody can look up later; None where there are accounts.
    """
    if await store.list_users():
        return None
    password = make_password()
    user = User(
        name=FIRST_USER,
        password=await hash_password(password),
        ticket_salt=new_ticket_salt(),
        created_at=datetime.now(UTC),
        admin=True,
    )
    try:
        await store.add_user(user)
    except StoreUnavailableError:
        raise
    except StoreError:
        return None  # another server, starting at the same moment, was first
    return FirstUser(user=user, password=password)


async def find_first_user(store: Store) -> User | None:
    """Return the first user as long as it is the only account: the one whose ticket a starting server shows."""
    match await store.list_users():
        case [User(name=name) as user] if name == FIRST_USER:
            return user
        case _:
            return None
