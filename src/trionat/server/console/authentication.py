"""Finds out who asks: by a Bearer token, or by the cookie of a login."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import trio
from starlette.requests import cookie_parser

from trionat.errors import RefusedError, StoreUnavailableError
from trionat.server.console.principal import Principal
from trionat.server.console.problem import Code, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from trionat.server.console.context import Context
    from trionat.server.console.logins import Login
    from trionat.store.base import User

COOKIE: Final = "__Host-trionat"
CSRF_HEADER: Final = "X-CSRF-Token"
CSRF_PARAMETER: Final = "csrf"
"""The same in the query of what cannot have headers, which is the stream that a browser reads by itself."""

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

_LOOK_INTERVAL: Final = 2.0
"""Seconds for which an account that was looked at counts as it was: as for the sessions of clients."""


def check_ban(context: Context, host: str) -> None:
    """Check that what somebody shows is looked at.

    Raises:
        Problem: the address is banned.
    """
    try:
        context.bans.check(host)
    except RefusedError as error:
        raise banned(error, context, host) from error


def banned(error: RefusedError, context: Context, host: str) -> Problem:
    """Return what an address is told that is banned."""
    seconds = math.ceil(context.bans.banned_for(host))
    return Problem(Code.RATE_LIMITED, error.text, headers={"Retry-After": str(max(1, seconds))})


def cookie_of(headers: Mapping[str, str]) -> str:
    """Return the cookie of a login, or nothing."""
    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")


def set_cookie(cookie: str) -> str:
    """Return what makes a browser send the cookie of a login, to this host alone and to no page of another site."""
    return f"{COOKIE}={cookie}; Path=/; Secure; HttpOnly; SameSite=Strict"


def clear_cookie() -> str:
    """Return what makes a browser forget it."""
    return f"{set_cookie('')}; Max-Age=0"


async def identify(
    context: Context, request: Request, host: str, *, counts: bool = True
) -> Principal:
    """Return who asks, which counts as a use of a login, or as a guess, if it `counts`.

    What `Authorization` says of another kind is for a proxy on the way, and nothing here.

    Raises:
        Problem: nobody that is known, or the request may come from somebody else's page.
    """
    scheme, _, said = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return await _by_token(context, said.strip(), host, counts=counts)
    login = context.logins.find(cookie_of(request.headers), counts=counts)
    if login is None or not await _is_still_good(context, login):
        raise Problem(
            Code.UNAUTHORIZED,
            "log in first, or send a token (Authorization: Bearer)",
            headers={"WWW-Authenticate": "Bearer"},
        )
    _check_proof(request, login)
    return Principal(
        username=login.username,
        account_id=login.account_id,
        is_admin=login.is_admin,
        login=login,
    )


def _check_proof(request: Request, login: Login) -> None:
    """Check that a request comes from the console's own pages, which alone know what a login was told.

    The cookie is not enough, not even to read: a browser sends it to all ports of its host, and so to services that others run there.

    Raises:
        Problem: it does not say it.
    """
    said = request.headers.get(CSRF_HEADER)
    if said is None and request.method in SAFE_METHODS:
        said = request.query_params.get(CSRF_PARAMETER)
    if login.proves(said or ""):
        return
    text = f"{CSRF_HEADER} is not what the answer to this login has told as csrf"
    if request.method in SAFE_METHODS:
        raise Problem(Code.UNAUTHORIZED, text, headers={"WWW-Authenticate": "Bearer"})
    raise Problem(Code.FORBIDDEN, text)


async def _by_token(context: Context, token: str, host: str, *, counts: bool) -> Principal:
    if counts:
        check_ban(context, host)
    if context.tokens is not None:
        principal = await context.tokens.find(token)
        if principal is not None:
            return principal
    if counts:
        await trio.sleep(context.bans.fail(host))
    raise Problem(
        Code.UNAUTHORIZED,
        "the token is not known, or has expired",
        headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
    )


async def _is_still_good(context: Context, login: Login) -> bool:
    """Look at the account of a login, now and then; one that may not go on ends. A store that is away ends none."""
    if trio.current_time() - login.looked < _LOOK_INTERVAL:
        return True
    login.looked = trio.current_time()
    try:
        user = await context.store.find_user(login.username)
    except StoreUnavailableError:
        return True
    if user is not None and user.account_id == login.account_id and not _is_over(user):
        credential = await login.credential.renewed(user)
        if credential is not None and user.admin == login.is_admin:
            login.credential = credential
            return True
    context.logins.end(login)
    return False


def _is_over(user: User) -> bool:
    return bool(user.damage) or user.disabled or user.is_expired(datetime.now(UTC))
