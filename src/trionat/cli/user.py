"""`trionat user`: accounts and their tickets.

Works on the server's store itself, whether the server runs or not; a running one sees every change at the next login.
"""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final
from urllib.parse import urlsplit

import attrs
import typer

from trionat.cli.command_line import App
from trionat.cli.limits import limit, show_limits
from trionat.cli.local_server import (
    STORE,
    AsJson,
    ConfigFile,
    State,
    StateDir,
    existing_user,
    given,
    told,
)
from trionat.cli.output import say
from trionat.cli.password import read_new_password
from trionat.cli.qr_code import qr_code
from trionat.cli.remote import Remote, user_path
from trionat.cli.ticket import (
    WHEN,
    Expires,
    OnlyName,
    OnlyPort,
    read_caveats,
    tell_restrictions,
)
from trionat.config.server import ServerConfig
from trionat.errors import StartupError, StoreError
from trionat.hostnames import parse_hostname
from trionat.log import escape
from trionat.protocol.ticket import Ticket
from trionat.server.accounts.name_owners import KEPT_FOR
from trionat.server.accounts.tickets import make_ticket, narrow_ticket
from trionat.server.accounts.values import user_values
from trionat.server.admin.messages import AskStatus
from trionat.server.state_folder import (
    StateFolder,
    is_self_signed,
    prepare_state,
    ticket_key_file,
)
from trionat.store.base import OwnedName, Store, User, check_new_name, new_ticket_salt
from trionat.store.expiry import NEVER, format_time, parse_expiry
from trionat.store.passwords import make_no_password
from trionat.store.private_file import is_there
from trionat.text import counted, quoted

user_app = App(help="Accounts that may connect, and their tickets.")

_OF_TICKETS: Final = (
    *STORE,
    *("Server.PublicAddr", "Server.OtherServers", "Server.ControllerAddr", "Server.Certificate"),
)
"""What making a ticket needs of the configuration."""

_MAY_BE_IN_USE: Final = timedelta(hours=2)
"""After the last use that was noted; servers note it once an hour."""

Name = Annotated[str, typer.Argument(help="The user's name.", metavar="NAME")]


@user_app.command()
def add(
    name: Name,
    expires: Annotated[
        str, typer.Option("--expires", metavar="WHEN", help=f"When the account ends: {WHEN}.")
    ] = NEVER,
    admin: Annotated[
        bool,
        typer.Option("--admin", help="Let it see and change all of the server, by the API."),
    ] = False,
    no_password: Annotated[
        bool,
        typer.Option(
            "--no-password",
            help="Give it no password, and ask for none: only its tickets and tokens are good, and nobody can log in at the console as it.",
        ),
    ] = False,
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
        password = None if no_password else read_new_password()

        async def add_user(store: Store) -> None:
            await store.add_user(
                User(
                    name=name,
                    password=make_no_password() if password is None else await state.hash(password),
                    ticket_salt=new_ticket_salt(),
                    expires_at=expires_at,
                    created_at=now,
                    admin=admin,
                )
            )

        state.ask(add_user)
        state.note(
            "account.added",
            name,
            expires_at=format_time(expires_at),
            **({"admin": True} if admin else {}),
            **({"password": "none"} if no_password else {}),
        )
    until = "" if expires_at is None else f" until {format_time(expires_at)}"
    if no_password:
        say(
            f"{name} has no password and can log in{until} by a ticket: trionat user ticket {shlex.quote(name)}"
        )
        return
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
            say(json.dumps(user_values(user, now)))
        return
    if not users:
        say("There are no accounts: trionat user add NAME makes one.", err=True)
        return
    width = max(len(escape(user.name)) for user in users)
    for user in users:
        added = "" if user.created_at is None else f"  added {format_time(user.created_at)}"
        state = "expired" if user.is_expired(now) else "expires"
        marks = "  administrator" * user.admin + "  disabled" * user.disabled
        marks += "  no password" * (not user.has_password)
        say(f"{escape(user.name):{width}}{added}  {state} {format_time(user.expires_at)}{marks}")
        if limits := show_limits(user.limits):
            told_limits = ", ".join(f"{title} {text}" for title, text in limits.items())
            say(f"{'':{width}}  limits: {told_limits}")
        if user.damage:
            say(f"{'':{width}}  cannot log in: {user.damage}")


@user_app.command()
def remove(name: Name, state_dir: StateDir = None, config: ConfigFile = None) -> None:
    """Remove an account; its password and its tickets are void."""
    with told():
        state = State.find(state_dir, config)
        state.ask(lambda store: store.remove_user(name))
        state.note("account.removed", name)
    say(f"{name} is removed: the password, all tickets and all tokens are void.")


@user_app.command()
def names(
    name: Annotated[
        str | None, typer.Argument(help="A user's names only.", metavar="[NAME]")
    ] = None,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """List the names of services, whose each is, until when nobody else may have it, and which are in use at the server that runs here."""
    with told():
        state = State.find(state_dir, config)
        now = datetime.now(UTC)
        found = [
            owned
            for owned in state.ask(lambda store: store.list_names())
            if owned.used_at + KEPT_FOR > now and name in (None, owned.owner)
        ]
        in_use = _names_in_use(state)
    if as_json:
        for owned in found:
            say(
                json.dumps(
                    {
                        "name": owned.name,
                        "user": owned.owner,
                        "used": format_time(owned.used_at),
                        "kept_until": format_time(owned.used_at + KEPT_FOR),
                        **({} if in_use is None else {"in_use": owned.name in in_use}),
                    }
                )
            )
        return
    if not found:
        say("No name is in use, or was lately.")
    for owned in found:
        whose = escape(owned.owner) or "nobody's: its account is gone"
        now_here = ", in use now" if in_use is not None and owned.name in in_use else ""
        say(f"{owned.name}  {whose}, kept until {format_time(owned.used_at + KEPT_FOR)}{now_here}")


def _names_in_use(state: State) -> set[str | None] | None:
    """Return the names that clients have at the server that runs here; None where none does, or it does not say."""
    try:
        sessions = state.ask_server(AskStatus())["sessions"]
    except (StartupError, KeyError):
        return None
    return {
        urlsplit(str(service["url"])).hostname
        for session in sessions
        for service in session["services"]
        if service.get("url") and not service["port"]
    }


@user_app.command(name="release-name")
def release_name(
    name: Annotated[str, typer.Argument(help="The whole name.", metavar="NAME")],
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Let anybody have a name that is kept for the account that has used it last. A client that uses it goes on with it until it leaves."""
    with told():
        with given("NAME"):
            whole = parse_hostname(name)

        async def release(store: Store) -> OwnedName:
            known = {owned.name: owned for owned in await store.list_names()}
            await store.release_name(whole)
            return known[whole]

        state = State.find(state_dir, config)
        released = state.ask(release)
        state.note("name.released", whole, user=released.owner)
    say(f"{whole} is kept for nobody any more")
    # The store does not know who is up, and the servers of a cluster do not know it of each other.
    if released.owner and released.used_at + _MAY_BE_IN_USE > datetime.now(UTC):
        say(
            f"If a client uses it now, nobody else gets it until that has left: trionat kick {shlex.quote(released.owner)} sends it away.",
            err=True,
        )


@user_app.command()
def passwd(name: Name, state_dir: StateDir = None, config: ConfigFile = None) -> None:
    """Set another password; it is asked for, or read from standard input where that is no terminal."""
    with told():
        state = State.find(state_dir, config)
        state.ask(lambda store: existing_user(store, name))
        password = read_new_password()

        async def set_password(store: Store) -> int:
            await store.set_password(name, await state.hash(password), new_ticket_salt())
            return len(await store.list_tokens(name))

        tokens = state.ask(set_password)
        state.note("account.changed", name, what="password")
    say(f"{name} has a new password: the old one and all tickets handed out before are void.")
    if tokens:
        say(
            f"{counted(tokens, 'token')} of {name} for the API {'stays' if tokens == 1 else 'stay'} good: trionat token list shows them, trionat token revoke makes one void.",
            err=True,
        )


@user_app.command()
def expire(
    name: Name,
    when: Annotated[str, typer.Argument(metavar="WHEN", help=f"{WHEN}.")],
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Set when an account ends; a time that is past ends it now."""
    with told():
        now = datetime.now(UTC)
        with given("WHEN"):
            expires_at = parse_expiry(when, now)
        state = State.find(state_dir, config)
        state.ask(lambda store: store.set_expiry(name, expires_at))
        state.note("account.changed", name, what="expiry", expires_at=format_time(expires_at))
    if expires_at is None:
        say(f"{name} can log in for ever.")
    elif expires_at <= now:
        say(
            f"{name} expired on {format_time(expires_at)}: neither password nor tickets are accepted."
        )
    else:
        say(f"{name} can log in until {format_time(expires_at)}.")


@user_app.command()
def admin(
    name: Name,
    switch: Annotated[str, typer.Argument(metavar="on|off", help="Whether it is one.")],
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Make an account an administrator, which may see and change all of the server by the API, or none any more."""
    with told():
        with given("on|off"):
            if switch not in ("on", "off"):
                raise ValueError(f"{quoted(switch)} is neither on nor off")
        is_admin = switch == "on"
        state = State.find(state_dir, config)
        state.ask(lambda store: store.set_admin(name, admin=is_admin))
        state.note("account.changed", name, what="admin", admin=is_admin)
    say(f"{name} is {'an administrator' if is_admin else 'no administrator'} now.")


@user_app.command()
def disable(name: Name, state_dir: StateDir = None, config: ConfigFile = None) -> None:
    """Keep an account from logging in until it is enabled again; its sessions end within 2 s. All else of it stays."""
    with told():
        state = State.find(state_dir, config)
        state.ask(lambda store: store.set_disabled(name, disabled=True))
        state.note("account.changed", name, what="disabled", disabled=True)
    say(f"{name} is disabled: neither password nor tickets nor tokens are accepted.")


@user_app.command()
def enable(name: Name, state_dir: StateDir = None, config: ConfigFile = None) -> None:
    """Let an account log in again that was disabled, by its password and tickets of before."""

    async def let(store: Store) -> User:
        await store.set_disabled(name, disabled=False)
        return await existing_user(store, name)

    with told():
        state = State.find(state_dir, config)
        user = state.ask(let)
        state.note("account.changed", name, what="disabled", disabled=False)
    if user.is_expired(datetime.now(UTC)):
        say(f"{name} is enabled, but expired on {format_time(user.expires_at)}.")
    else:
        say(f"{name} can log in again.")


@user_app.command()
def ticket(
    name: Name,
    renew: Annotated[
        bool, typer.Option("--renew", help="Make the tickets handed out before void.")
    ] = False,
    only_name: OnlyName = None,
    only_port: OnlyPort = None,
    expires: Expires = None,
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
    qr: Annotated[
        bool, typer.Option("--qr", help="Show it as a QR code as well.", show_default=False)
    ] = False,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Print a user's ticket: all that trionat connect needs. The same one every time, unless --renew, or narrowed by the other options."""
    with told():
        caveats = read_caveats(only_name, only_port, expires, datetime.now(UTC))
        state = State.find(state_dir, config, public_addr, other_server, needs=_OF_TICKETS)
        user = state.ask(lambda store: existing_user(store, name))
        made = (
            _make_ticket(state, user, renew=renew, caveats=caveats)
            if state.remote is None
            else _fetch_ticket(state.remote, user, renew=renew, caveats=caveats)
        )
    say(made.encode())
    if qr:
        say(qr_code(made.encode()))
    tell_restrictions(made)
    if renew:
        say(f"Tickets of {name} handed out before are void.", err=True)
    if user.disabled:
        say(f"It is of no use now: {name} is disabled.", err=True)
    elif user.is_expired(datetime.now(UTC)):
        say(f"It is of no use now: {name} expired on {format_time(user.expires_at)}.", err=True)
    else:
        say(f"Whoever has it can log in as {name}: trionat connect TICKET SERVICE", err=True)


user_app.command()(limit)


def _make_ticket(state: State, user: User, *, renew: bool, caveats: tuple[str, ...]) -> Ticket:
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
        made = make_ticket(files, user, host, port, pinned=pinned, others=others)
    with given("ticket"):
        made = narrow_ticket(made, user.limits, caveats)
    if first or renew:
        state.ask(lambda store: store.set_ticket_salt(user.name, user.ticket_salt))
        state.note("account.changed", user.name, what="tickets")
    return made


def _fetch_ticket(remote: Remote, user: User, *, renew: bool, caveats: tuple[str, ...]) -> Ticket:
    """Have the server make it; whoever has a ticket can narrow it."""
    path = f"{user_path(user.name)}/tickets"
    if renew:
        remote.ask("DELETE", path)
    with given(str(remote)):
        whole = Ticket.decode(remote.ask("POST", path, {})["ticket"])
    with given("ticket"):
        return narrow_ticket(whole, user.limits, caveats)


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
