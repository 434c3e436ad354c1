"""Finds an account for whoever asks for it by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trionat.server.console.problem import Code, Problem

if TYPE_CHECKING:
    from trionat.server.console.context import Context
    from trionat.server.console.principal import Principal
    from trionat.store.base import User


async def find_account(context: Context, principal: Principal, name: str) -> User:
    """Return an account that who asks may see.

    Raises:
        Problem: for these eyes there is none of that name.
    """
    principal.require_sight(name, f"user {name!r}")
    user = await context.store.find_user(name)
    if user is None:
        raise Problem(Code.NOT_FOUND, f"there is no user {name!r}")
    return user
