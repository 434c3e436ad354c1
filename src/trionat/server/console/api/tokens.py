"""Tokens of this API."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import attrs

from trionat.server.accounts.values import token_values
from trionat.server.console.account import find_account
from trionat.server.console.expiry import WHEN, check_end, read_expiry
from trionat.server.console.operation import ROOT, Call, Nothing, Operation, Page, Reply, cut_page
from trionat.server.console.principal import Permission
from trionat.server.console.problem import Code, Problem
from trionat.server.console.refusals import there, valid
from trionat.server.console.rows import TokenRow
from trionat.server.console.shape import field
from trionat.store.base import check_new_name
from trionat.store.tokens import Token, TokenScope, check_scope, digest_token, make_token_text

if TYPE_CHECKING:
    from trionat.server.console.context import Context
    from trionat.server.console.principal import Principal


@attrs.frozen(kw_only=True)
class NewTokenRow(TokenRow):
    """A token that was made just now, with its secret: nobody can look that up later."""

    token: str


@attrs.frozen(kw_only=True)
class NewToken:
    """A token to be made; without `user` it is that of who asks."""

    name: str = field(shortest=1, longest=64)
    scope: Literal["read", "manage", "metrics"] = "read"
    expires_at: str | None = field(None, about=WHEN)
    user: str | None = field(None, longest=255)


@attrs.frozen(kw_only=True)
class Tokens:
    """Which part of the list."""

    user: str | None = field(None, longest=255, about="one account's only")
    limit: int = field(100, least=1, most=1000, about="entries at most")
    after: str | None = field(None, about="what `next` of the page before says")


@attrs.frozen(kw_only=True)
class One:
    """Which token."""

    id: str = field(longest=64)


async def _list(call: Call[Tokens, Nothing]) -> Page[TokenRow]:
    now, principal = datetime.now(UTC), call.principal
    user = call.parameters.user if principal.is_admin else principal.username
    if call.parameters.user is not None:
        await find_account(call.context, principal, call.parameters.user)
    return cut_page(
        (TokenRow.of(token, now) for token in await call.context.store.list_tokens(user)),
        lambda row: f"{row.user} {row.name} {row.id}",
        limit=call.parameters.limit,
        after=call.parameters.after,
    )


async def _find(context: Context, principal: Principal, token_id: str) -> Token:
    user = None if principal.is_admin else principal.username
    for token in await context.store.list_tokens(user):
        if token.token_id == token_id:
            return token
    raise Problem(Code.NOT_FOUND, "there is no such token")


async def _get(call: Call[One, Nothing]) -> TokenRow:
    token = await _find(call.context, call.principal, call.parameters.id)
    return TokenRow.of(token, datetime.now(UTC))


async def _add(call: Call[Nothing, NewToken]) -> Reply:
    body, now, text = call.body, datetime.now(UTC), make_token_text()
    with valid("name"):
        check_new_name(body.name, "token")
    expires_at = read_expiry(body.expires_at, now, must_be_later=True)
    check_end(call.principal, "a token", expires_at)
    name = call.principal.username if body.user is None else body.user
    user = await find_account(call.context, call.principal, name)
    scope = TokenScope(body.scope)
    with valid("scope"):
        check_scope(scope, user.name, is_admin=user.admin)
    token = Token(
        name=body.name,
        user=user.name,
        account_id=user.account_id,
        digest=digest_token(text),
        scope=scope,
        created_at=now,
        expires_at=expires_at,
    )
    with valid("name"):
        await call.context.store.add_token(token)
    call.also.update(id=token.token_id, user=token.user, scope=scope.value)
    values: dict[str, Any] = token_values(token, now)
    return Reply(
        values=NewTokenRow(**values, token=text),
        status=201,
        headers={"Location": f"{ROOT}/tokens/{token.token_id}"},
    )


async def _revoke(call: Call[One, Nothing]) -> None:
    token = await _find(call.context, call.principal, call.parameters.id)
    call.also.update(name=token.name, user=token.user)
    with there("such token"):
        await call.context.store.remove_token(token.token_id)


OPERATIONS = (
    Operation(
        method="GET",
        path="/tokens",
        name="list_tokens",
        summary="Tokens: all for an administrator, for anybody else his own",
        parameters=Tokens,
        answer=Page[TokenRow],
        handle=_list,
        is_long=True,
    ),
    Operation(
        method="POST",
        path="/tokens",
        name="add_token",
        summary="Make a token, which is shown only now; 409 where the account has one of that name",
        permission=Permission.MANAGE,
        body=NewToken,
        answer=NewTokenRow,
        status=201,
        handle=_add,
    ),
    Operation(
        method="GET",
        path="/tokens/{id}",
        name="get_token",
        summary="One token",
        parameters=One,
        answer=TokenRow,
        handle=_get,
    ),
    Operation(
        method="DELETE",
        path="/tokens/{id}",
        name="revoke_token",
        summary="Make a token void, at once",
        permission=Permission.MANAGE,
        parameters=One,
        status=204,
        handle=_revoke,
    ),
)
