"""Accounts and tokens as values of JSON: the same at the command line and in the API. No secret is among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from datetime import datetime

    from trionat.store.base import User
    from trionat.store.tokens import Token


def user_values(user: User, now: datetime) -> dict[str, object]:
    """Return what there is to say of an account at `now` (aware)."""
    return {
        "name": user.name,
        "admin": user.admin,
        "disabled": user.disabled,
        "has_password": user.has_password,
        "created_at": _time(user.created_at),
        "expires_at": _time(user.expires_at),
        "expired": user.is_expired(now),
        "limits": attrs.asdict(user.limits),
        "damage": user.damage or None,
    }


def token_values(token: Token, now: datetime) -> dict[str, object]:
    """Return what there is to say of a token at `now` (aware)."""
    return {
        "id": token.token_id,
        "name": token.name,
        "user": token.user,
        "scope": token.scope.value,
        "created_at": _time(token.created_at),
        "expires_at": _time(token.expires_at),
        "expired": token.is_expired(now),
        "last_used": _time(token.last_used),
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
