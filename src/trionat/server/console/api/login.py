"""Logging in and out with a browser, and who one is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from trionat.errors import RefusedError
from trionat.log import get_logger
from trionat.protocol.messages import RefusalCode
from trionat.server.console.authentication import (
    banned,
    check_ban,
    clear_cookie,
    cookie_of,
    set_cookie,
)
from trionat.server.console.operation import Call, Nothing, Operation, Reply
from trionat.server.console.principal import Permission
from trionat.server.console.problem import Code, Problem
from trionat.server.console.shape import field

if TYPE_CHECKING:
    from trionat.store.base import User

log = get_logger(__name__)

_CODES = {
    RefusalCode.AUTH_FAILED: Code.UNAUTHORIZED,
    RefusalCode.STORE_UNAVAILABLE: Code.STORE_UNAVAILABLE,
}


@attrs.frozen(kw_only=True)
class Credentials:
    """What somebody types."""

    username: str = field(longest=255)
    password: str = field(longest=1024, secret=True)


@attrs.frozen(kw_only=True)
class Me:
    """Who one is. `csrf` goes into the header X-CSRF-Token of all that is asked for by the cookie, and is null for who has come with a token."""

    username: str
    admin: bool
    csrf: str | None


async def _authenticate(call: Call[Nothing, Credentials]) -> User:
    context, host = call.context, call.host
    check_ban(context, host)
    try:
        async with context.bans.trying(host):
            try:
                user = await context.accounts.authenticate(
                    call.body.username, password=call.body.password, has_traffic=False
                )
            except RefusedError as refusal:
                if refusal.code != RefusalCode.AUTH_FAILED:
                    raise
                failure, delay = refusal, context.bans.fail(host)
            else:
                if user is None:
                    raise RuntimeError("a console is not opened where there are no accounts")
                return user
    except RefusedError as refusal:
        if refusal.code == RefusalCode.BANNED:
            raise banned(refusal, context, host) from refusal
        code = _CODES.get(RefusalCode(refusal.code), Code.FORBIDDEN)
        raise Problem(code, refusal.text) from refusal
    log.info("a login at the console has failed", host=host, user=call.body.username)
    await trio.sleep(delay)
    raise Problem(Code.UNAUTHORIZED, failure.text)


async def _log_in(call: Call[Nothing, Credentials]) -> Reply:
    context = call.context
    user = await _authenticate(call)
    context.logins.end_by(cookie_of(call.headers))  # whoever may have put it there
    cookie, login = context.logins.add(user)
    log.info("logged in at the console", user=user.name, host=call.host)
    return Reply(
        values=Me(username=user.name, admin=user.admin, csrf=login.csrf),
        headers={"Set-Cookie": set_cookie(cookie)},
    )


async def _log_out(call: Call[Nothing, Nothing]) -> Reply:
    await trio.lowlevel.checkpoint()
    login = call.principal.login
    if login is None:
        raise Problem(Code.CONFLICT, "this is a token: revoke it instead")
    call.context.logins.end(login)
    return Reply(headers={"Set-Cookie": clear_cookie()})


async def _tell(call: Call[Nothing, Nothing]) -> Me:
    await trio.lowlevel.checkpoint()
    principal = call.principal
    return Me(
        username=principal.username,
        admin=principal.is_admin,
        csrf=None if principal.login is None else principal.login.csrf,
    )


OPERATIONS = (
    Operation(
        method="POST",
        path="/login",
        name="log_in",
        summary="Log in; the answer sets a cookie that is good for 12 hours, and ends after one in which it is not used",
        permission=Permission.OPEN,
        body=Credentials,
        answer=Me,
        handle=_log_in,
    ),
    Operation(
        method="POST",
        path="/logout",
        name="log_out",
        summary="Log out",
        status=204,
        handle=_log_out,
    ),
    Operation(
        method="GET",
        path="/me",
        name="get_me",
        summary="Who one is",
        answer=Me,
        handle=_tell,
    ),
)
