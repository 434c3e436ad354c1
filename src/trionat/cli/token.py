"""`trionat token`: tokens of the API, by which programs look at a server or steer it.

Works on the server's store itself, as `trionat user` does; a running server sees every change at the next request.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from trionat.cli.command_line import App
from trionat.cli.local_server import AsJson, ConfigFile, State, StateDir, existing_user, given, told
from trionat.cli.output import say
from trionat.cli.ticket import WHEN
from trionat.errors import ConfigError, Problem, StoreError
from trionat.log import escape
from trionat.server.accounts.values import token_values
from trionat.store.base import Store, User, check_new_name
from trionat.store.expiry import NEVER, format_time, parse_expiry
from trionat.store.tokens import Token, TokenScope, check_scope, digest_token, make_token_text
from trionat.text import quoted

token_app = App(help="Tokens of the API, by which programs see or steer a server.")

_MEANINGS: Final = {
    TokenScope.READ: "see what {} may see",
    TokenScope.MANAGE: "see and change what {} may",
    TokenScope.METRICS: "read /metrics, and nothing else",
}
_ADMIN: Final = {
    TokenScope.READ: "see all of the server",
    TokenScope.MANAGE: "see and change all of the server",
}

Name = Annotated[str, typer.Argument(help="The token's name.", metavar="NAME")]
Whose = Annotated[
    str | None,
    typer.Option(
        "--user",
        metavar="USER",
        help="Whose token it is; without it, that of the only administrator.",
    ),
]


@token_app.command()
def add(
    name: Name,
    user: Whose = None,
    scope: Annotated[
        str,
        typer.Option(
            metavar="read|manage|metrics",
            help="What it is good for: to look, to change things as well, or /metrics alone.",
        ),
    ] = TokenScope.READ.value,
    expires: Annotated[
        str, typer.Option("--expires", metavar="WHEN", help=f"When the token is void: {WHEN}.")
    ] = NEVER,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Make a token and print it. Nobody can look it up later."""
    with told():
        now = datetime.now(UTC)
        with given("NAME"):
            check_new_name(name, "token")
        with given("--scope"):
            chosen = _read_scope(scope)
        with given("--expires"):
            expires_at = parse_expiry(expires, now)
            if expires_at is not None and expires_at <= now:
                raise ValueError(f"{expires} is over already")
        state = State.find(state_dir, config)
        text = make_token_text() if state.remote is None else ""

        async def add_token(store: Store) -> User:
            whose = await _find_owner(store, user)
            with given("--scope"):
                check_scope(chosen, whose.name, is_admin=whose.admin)
            await store.add_token(
                Token(
                    name=name,
                    user=whose.name,
                    account_id=whose.account_id,
                    digest=digest_token(text),
                    scope=chosen,
                    created_at=now,
                    expires_at=expires_at,
                )
            )
            return whose

        if state.remote is None:
            whose = state.ask(add_token)
            state.note("token.added", name, user=whose.name, scope=chosen.value)
        else:
            values = state.remote.ask("POST", "/tokens", _wish(name, user, chosen, expires_at))
            text = values["token"]
            whose = state.ask(lambda store: existing_user(store, values["user"]))
    say(text)
    meanings = {**_MEANINGS, **_ADMIN} if whose.admin else _MEANINGS
    may = meanings[chosen].format(escape(whose.name))
    until = "" if expires_at is None else f", until {format_time(expires_at)}"
    say(f"Whoever has it can {may}{until}. It is shown only now.", err=True)
    if whose.disabled or whose.is_expired(now):
        say(f"It is of no use now: {escape(whose.name)} may not log in.", err=True)


@token_app.command(name="list")
def list_tokens(
    user: Annotated[
        str | None, typer.Option("--user", metavar="USER", help="One user's tokens only.")
    ] = None,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """List every token: whose it is, what it is good for, until when, and when it was used last (to the hour)."""

    async def find(store: Store) -> list[Token]:
        if user is not None:
            await existing_user(store, user)
        return await store.list_tokens(user)

    with told():
        tokens = State.find(state_dir, config).ask(find)
    now = datetime.now(UTC)
    if as_json:
        for token in tokens:
            say(json.dumps(token_values(token, now)))
        return
    if not tokens:
        say("There are no tokens: trionat token add NAME makes one.", err=True)
        return
    rows = [(escape(token.name), escape(token.user), token.scope.value) for token in tokens]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, token in zip(rows, tokens, strict=True):
        cells = "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        state = "expired" if token.is_expired(now) else "expires"
        used = "never used" if token.last_used is None else f"used {format_time(token.last_used)}"
        say(f"{cells}  {state} {format_time(token.expires_at)}  {used}")


@token_app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The token's name, or its id.", metavar="NAME")],
    user: Annotated[
        str | None,
        typer.Option(
            "--user", metavar="USER", help="Whose token it is, if several have one of that name."
        ),
    ] = None,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Make a token void, at once."""

    async def remove(store: Store) -> Token:
        tokens = await store.list_tokens(user)
        found = [token for token in tokens if token.name == name] or [
            token for token in tokens if token.token_id == name
        ]
        match found:
            case [token]:
                await store.remove_token(token.token_id)
                return token
            case []:
                of = "" if user is None else f" of {user!r}"
                raise StoreError(f"there is no token {name!r}{of}")
            case _:
                owners = ", ".join(token.user for token in found)
                reason = f"{owners} have a token of that name: say whose"
                raise ConfigError(Problem("--user", reason))

    with told():
        state = State.find(state_dir, config)
        removed = state.ask(remove)
        state.note("token.revoked", removed.name, user=removed.user)
    say(f"The token {escape(removed.name)} of {escape(removed.user)} is void.")


def _wish(
    name: str, user: str | None, scope: TokenScope, expires_at: datetime | None
) -> dict[str, str | None]:
    """Return what the API is asked for; without a user it is the one whose token asks."""
    return {
        "name": name,
        "user": user,
        "scope": scope.value,
        "expires_at": None if expires_at is None else expires_at.isoformat(),
    }


def _read_scope(text: str) -> TokenScope:
    try:
        return TokenScope(text)
    except ValueError:
        scopes = ", ".join(TokenScope)
        raise ValueError(f"{quoted(text)} is not a valid scope: write one of {scopes}") from None


async def _find_owner(store: Store, name: str | None) -> User:
    """Return the account of that name; without one the only administrator, or the only account.

    Raises:
        StoreError: There is none.
        ConfigError: It has to be said which one.
    """
    if name is not None:
        return await existing_user(store, name)
    users = await store.list_users()
    for candidates in ([user for user in users if user.admin], users):
        if len(candidates) == 1:
            return candidates[0]
    reason = (
        "there is not exactly one administrator: say whose token it is to be"
        if users
        else "there are no accounts: trionat user add NAME makes one"
    )
    raise ConfigError(Problem("--user", reason))
