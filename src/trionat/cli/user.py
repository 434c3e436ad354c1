"""`trionat user`: accounts and their tickets.

Works on the server's store itself, whether the server runs or not; a running one sees every change at the next login.
"""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime
from typing import Annotated

import attrs
import typer

from trionat.cli.command_line import App
from trionat.cli.limits import show_limits
from trionat.cli.local_server import AsJson, ConfigFile, State, StateDir, existing_user, given, told
from trionat.cli.output import say
from trionat.cli.password import read_new_password
from trionat.config.server import ServerConfig
from trionat.errors import StartupError, StoreError
from trionat.log import escape
from trionat.server.accounts.tickets import make_ticket
from trionat.server.state_folder import (
    StateFolder,
    is_self_signed,
    prepare_state,
    ticket_key_file,
)
from trionat.store.base import Store, User, check_new_name, new_ticket_salt
from trionat.store.expiry import NEVER, format_time, parse_expiry
from trionat.store.passwords import hash_password
from trionat.store.private_file import is_there

user_app = App(help="Accounts that may connect, and their tickets.")

_WHEN = (
    "2027-01-31 (valid through that day, UTC), 2027-01-31T12:00 (UTC), 30d, 12h (from now) or never"
)

Name = Annotated[str, typer.Argument(help="The user's name.", metavar="NAME")]


@user_app.command()
def add(
    name: Name,
    expires: Annotated[
        str, typer.Option("--expires", metavar="WHEN", help=f"When the account ends: {_WHEN}.")
    ] = NEVER,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Add an account. The password is asked for, or read from standard input where that is no terminal."""
    with told():
        state = State.find(state_dir, config)
        now = datetime.now(UTC)
        with given("NAME"):
            check_new_name(name)
        with given("--expires"):
            expires_at = parse_expiry(expires, now)
            if expires_at is not None and expires_at <= now:
                raise ValueError(f"{expires} is over already")
        if state.ask(lambda store: store.find_user(name), make=True) is not None:
            raise StoreError(f"there is a user {name!r} already")
        password = read_new_password()

        async def add_user(store: Store) -> None:
            await store.add_user(
                User(
                    name=name,
                    password=await hash_password(password),
                    ticket_salt=new_ticket_salt(),
                    expires_at=expires_at,
                    created_at=now,
                )
            )

        state.ask(add_user)
    until = "" if expires_at is None else f" until {format_time(expires_at)}"
    say(
        f"{name} can log in now{until}: trionat connect … -u {shlex.quote(name)}; "
        f"or without a password by a ticket: trionat user ticket {shlex.quote(name)}"
    )


@user_app.command(name="list")
def list_users(
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """List every account, and until when it is valid."""
    with told():
        users = State.find(state_dir, config).ask(lambda store: store.list_users())
    now = datetime.now(UTC)
    if as_json:
        for user in users:
            say(json.dumps(_as_json(user, now)))
        return
    if not users:
        say("There are no accounts: trionat user add NAME makes one.", err=True)
        return
    width = max(len(escape(user.name)) for user in users)
    for user in users:
        added = "" if user.created_at is None else f"  added {format_time(user.created_at)}"
        state = "expired" if user.is_expired(now) else "expires"
        say(f"{escape(user.name):{width}}{added}  {state} {format_time(user.expires_at)}")
        if limits := show_limits(user.limits):
            told_limits = ", ".join(f"{title} {text}" for title, text in limits.items())
            say(f"{'':{width}}  limits: {told_limits}")
        if user.damage:
            say(f"{'':{width}}  cannot log in: {user.damage}")


@user_app.command()
def remove(name: Name, state_dir: StateDir = None, config: ConfigFile = None) -> None:
    """Remove an account; its password and its tickets are void."""
    with told():
        State.find(state_dir, config).ask(lambda store: store.remove_user(name))
    say(f"{name} is removed: the password and all tickets are void.")


@user_app.command()
def passwd(name: Name, state_dir: StateDir = None, config: ConfigFile = None) -> None:
    """Set another password; it is asked for, or read from standard input where that is no terminal."""
    with told():
        state = State.find(state_dir, config)
        state.ask(lambda store: existing_user(store, name))
        password = read_new_password()

        async def set_password(store: Store) -> None:
            await store.set_password(name, await hash_password(password), new_ticket_salt())

        state.ask(set_password)
    say(f"{name} has a new password: the old one and all tickets handed out before are void.")


@user_app.command()
def expire(
    name: Name,
    when: Annotated[str, typer.Argument(metavar="WHEN", help=f"{_WHEN}.")],
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Set when an account ends; a time that is past ends it now."""
    with told():
        now = datetime.now(UTC)
        with given("WHEN"):
            expires_at = parse_expiry(when, now)
        State.find(state_dir, config).ask(lambda store: store.set_expiry(name, expires_at))
    if expires_at is None:
        say(f"{name} can log in for ever.")
    elif expires_at <= now:
        say(
            f"{name} expired on {format_time(expires_at)}: neither password nor tickets are accepted."
        )
    else:
        say(f"{name} can log in until {format_time(expires_at)}.")


@user_app.command()
def ticket(
    name: Name,
    renew: Annotated[
        bool, typer.Option("--renew", help="Make the tickets handed out before void.")
    ] = False,
    public_addr: Annotated[
        str | None,
        typer.Option(
            metavar="HOST[:PORT]",
            help="Where clients reach the server; otherwise Server.PublicAddr, or where it was served last.",
        ),
    ] = None,
    other_server: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Another server that takes the same ticket; may be given several times. Otherwise Server.OtherServers, or those of the last run.",
        ),
    ] = None,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Print a user's ticket: all that trionat connect needs. The same one every time, unless --renew."""
    with told():
        state = State.find(state_dir, config, public_addr, other_server)
        user = state.ask(lambda store: existing_user(store, name))
        _check_ticket_key(state)
        # A certificate of the operator's own changes when it is renewed, so clients check it by authority instead.
        pinned = state.server.certificate is None and is_self_signed(state.folder)
        files = prepare_state(state.folder, self_signed=pinned)
        first = not user.ticket_salt  # an account that the Go program made
        if first or renew:
            user = attrs.evolve(user, ticket_salt=new_ticket_salt())
        with given("--public-addr"):
            host, port = _public_address(state.server, files)
            others = state.server.other_servers or files.last_others()
            text = make_ticket(files, user, host, port, pinned=pinned, others=others).encode()
        if first or renew:
            state.ask(lambda store: store.set_ticket_salt(name, user.ticket_salt))
    say(text)
    if renew:
        say(f"Tickets of {name} handed out before are void.", err=True)
    if user.is_expired(datetime.now(UTC)):
        say(f"It is of no use now: {name} expired on {format_time(user.expires_at)}.", err=True)
    else:
        say(f"Whoever has it can log in as {name}: trionat connect TICKET SERVICE", err=True)


def _check_ticket_key(state: State) -> None:
    """Refuse to make a key of tickets where the accounts are elsewhere: in a mistyped folder it would make tickets of no use."""
    file = ticket_key_file(state.folder)
    if state.database is not None and not is_there(file):
        raise StartupError(
            f"{file}: there is no key of tickets here: is it the server's state folder? If so, start the server once"
        )


def _public_address(server: ServerConfig, files: StateFolder) -> tuple[str, int]:
    """Return host and port of the ticket; what was said (flag, configuration) before what was served last."""
    last = files.last_address()
    host = server.public_host or (last and last.host)
    port = server.public_port or (last and last.port) or server.controller_addr.port
    if not host or not port:
        raise ValueError(
            "where clients reach the server is not known yet: give HOST:PORT, or start the server once"
        )
    return host, port


def _as_json(user: User, now: datetime) -> dict[str, object]:
    return {
        "name": user.name,
        "created_at": None if user.created_at is None else user.created_at.isoformat(),
        "expires_at": None if user.expires_at is None else user.expires_at.isoformat(),
        "expired": user.is_expired(now),
        "limits": attrs.asdict(user.limits),
        "damage": user.damage or None,
    }
