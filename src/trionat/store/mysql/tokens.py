"""API tokens, in a table of trionat's own."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from trionat.store.mysql import accounts
from trionat.store.tokens import Token, TokenScope

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from trionat.store.mysql.pool import Link

_SELECT: Final = "select id, owner, account_id, name, digest, scope, created_at, expires_at, last_used from trionat_tokens"
_SCOPES: Final = tuple(scope.value for scope in TokenScope)


async def names_of(link: Link, owner: str, account_id: int) -> set[str]:
    """Return the names of an account's tokens."""
    rows = await link.ask(
        "select name from trionat_tokens where owner = %s and account_id = %s", owner, account_id
    )
    return {name.decode() for (name,) in rows}


async def add(link: Link, token: Token) -> None:
    """Add a token; that its account may have it is seen to."""
    await link.change(
        "insert into trionat_tokens (id, owner, account_id, name, digest, scope, created_at, expires_at) "
        "values (%s, %s, %s, %s, %s, %s, %s, %s)",
        token.token_id,
        token.user,
        token.account_id,
        token.name,
        token.digest,
        token.scope.value,
        _naive(token.created_at),
        _naive(token.expires_at),
    )


async def find(link: Link, digest: bytes) -> Token | None:
    """Return the token of that digest, or None."""
    found = await _alive(link, await link.ask(f"{_SELECT} where digest = %s", digest))
    return found[0] if found else None


async def find_all(link: Link, owner: str | None) -> list[Token]:
    """Return every token, or those of one account, sorted by account and name."""
    if owner is None:
        rows = await link.ask(f"{_SELECT} order by owner, name")
    else:
        rows = await link.ask(f"{_SELECT} where owner = %s order by name", owner)
    return await _alive(link, rows)


async def touch(link: Link, token_id: str, now: datetime) -> None:
    """The token was used now."""
    await link.change(
        "update trionat_tokens set last_used = greatest(coalesce(last_used, %s), %s) where id = %s",
        _naive(now),
        _naive(now),
        token_id,
    )


async def remove(link: Link, token_id: str) -> bool:
    """Remove a token; tell whether it was there."""
    known = await link.ask("select 1 from trionat_tokens where id = %s", token_id)
    await link.change("delete from trionat_tokens where id = %s", token_id)
    return bool(known)


async def remove_all(link: Link, owner: str) -> None:
    """Remove the tokens of an account that is removed."""
    await link.change("delete from trionat_tokens where owner = %s", owner)


async def _alive(link: Link, rows: Iterable[tuple[Any, ...]]) -> list[Token]:
    """Return those whose account is there: others than us may remove accounts, who know nothing of tokens."""
    # A scope that is not known here is a newer trionat's.
    tokens = [_token(row) for row in rows if row[5] in _SCOPES]
    owners = tuple({token.user for token in tokens})
    users = await accounts.find(link, owners) if owners else {}
    return [
        token
        for token in tokens
        if token.user in users and users[token.user].account_id == token.account_id
    ]


def _token(row: tuple[Any, ...]) -> Token:
    token_id, owner, account_id, name, digest, scope, created_at, expires_at, last_used = row
    return Token(
        token_id=token_id,
        name=name.decode(),
        user=owner.decode(),
        account_id=account_id,
        digest=digest,
        scope=TokenScope(scope),
        created_at=created_at.replace(tzinfo=UTC),
        expires_at=_aware(expires_at),
        last_used=_aware(last_used),
    )


def _naive(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)


def _aware(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)
