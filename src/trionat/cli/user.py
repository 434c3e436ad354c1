"""`trionat user`: accounts and their tickets.

Works on the server's state folder itself, whether the server runs or not; a running one sees every change at the next login.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Awaitable, Callable, Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import attrs
import trio
import typer

from trionat.cli.password import read_password
from trionat.config.load import Configuration, load
from trionat.errors import ConfigError, Problem, StartupError, StoreError, StoreUnavailableError
from trionat.server.state import ServerState, database_file, make_ticket, prepare_state
from trionat.store.base import Store, User, check_new_name, new_ticket_salt
from trionat.store.expiry import NEVER, format_time, parse_expiry
from trionat.store.passwords import hash_password
from trionat.store.private_file import make_private_folder
from trionat.store.sqlite import open_sqlite_store

T = TypeVar("T")

user_app = typer.Typer(
    help="Accounts that may connect, and their tickets.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_WHEN = (
    "2027-01-31 (valid through that day, UTC), 2027-01-31T12:00 (UTC), 30d, 12h (from now) or never"
)

Name = Annotated[str, typer.Argument(help="The user's name.", metavar="NAME")]
StateDir = Annotated[
    Path | None, typer.Option("--state-dir", metavar="DIR", help="The server's state folder.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The server's configuration file."),
]


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
    with _told():
        folder = _folder(_configuration(state_dir, config))
        now = datetime.now(UTC)
        with _given("NAME"):
            check_new_name(name)
        with _given("--expires"):
            expires_at = parse_expiry(expires, now)
            if expires_at is not None and expires_at <= now:
                raise ValueError(f"{expires} is over already")
        make_private_folder(folder)
        if _ask(folder, lambda store: store.find_user(name), make=True) is not None:
            raise StoreError(f"there is a user {name!r} already")
        password = read_password(confirm=True)

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

        _ask(folder, add_user)
    until = "" if expires_at is None else f" until {format_time(expires_at)}"
    typer.echo(
        f"{name} can log in now{until}: trionat connect … -u {shlex.quote(name)}; "
        f"or without a password by a ticket: trionat user ticket {shlex.quote(name)}"
    )


@user_app.command(name="list")
def list_users(
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, for scripts.")
    ] = False,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """List every account, and until when it is valid."""
    with _told():
        users = _ask(_folder(_configuration(state_dir, config)), lambda store: store.list_users())
    now = datetime.now(UTC)
    if as_json:
        for user in users:
            typer.echo(json.dumps(_as_json(user, now)))
        return
    if not users:
        typer.echo("There are no accounts: trionat user add NAME makes one.", err=True)
        return
    width = max(len(user.name) for user in users)
    for user in users:
        added = "" if user.created_at is None else f"  added {format_time(user.created_at)}"
        state = "expired" if user.is_expired(now) else "expires"
        typer.echo(f"{user.name:{width}}{added}  {state} {format_time(user.expires_at)}")


@user_app.command()
def remove(name: Name, state_dir: StateDir = None, config: ConfigFile = None) -> None:
    """Remove an account; its password and its tickets are void."""
    with _told():
        _ask(_folder(_configuration(state_dir, config)), lambda store: store.remove_user(name))
    typer.echo(f"{name} is removed: the password and all tickets are void.")


@user_app.command()
def passwd(name: Name, state_dir: StateDir = None, config: ConfigFile = None) -> None:
    """Set another password; it is asked for, or read from standard input where that is no terminal."""
    with _told():
        folder = _folder(_configuration(state_dir, config))
        _ask(folder, lambda store: _existing(store, name))
        password = read_password(confirm=True)

        async def set_password(store: Store) -> None:
            await store.set_password(name, await hash_password(password), new_ticket_salt())

        _ask(folder, set_password)
    typer.echo(
        f"{name} has a new password: the old one and all tickets handed out before are void."
    )


@user_app.command()
def expire(
    name: Name,
    when: Annotated[str, typer.Argument(metavar="WHEN", help=f"{_WHEN}.")],
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Set when an account ends; a time that is past ends it now."""
    with _told():
        now = datetime.now(UTC)
        with _given("WHEN"):
            expires_at = parse_expiry(when, now)
        folder = _folder(_configuration(state_dir, config))
        _ask(folder, lambda store: store.set_expiry(name, expires_at))
    if expires_at is None:
        typer.echo(f"{name} can log in for ever.")
    elif expires_at <= now:
        typer.echo(
            f"{name} expired on {format_time(expires_at)}: neither password nor tickets are accepted."
        )
    else:
        typer.echo(f"{name} can log in until {format_time(expires_at)}.")


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
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Print a user's ticket: all that trionat connect needs. The same one every time, unless --renew."""
    with _told():
        configuration = _configuration(state_dir, config, public_addr)
        folder = _folder(configuration)
        user = _ask(folder, lambda store: _existing(store, name))
        # A certificate of the keeper's own changes when it is renewed, so clients check it by authority instead.
        pinned = configuration.server.certificate is None
        state = prepare_state(folder, self_signed=pinned)
        if renew:
            user = attrs.evolve(user, ticket_salt=new_ticket_salt())
        with _given("--public-addr"):
            host, port = _public_address(configuration, state)
            text = make_ticket(state, user, host, port, pinned=pinned).encode()
        if renew:
            _ask(folder, lambda store: store.set_ticket_salt(name, user.ticket_salt))
    typer.echo(text)
    if renew:
        typer.echo(f"Tickets of {name} handed out before are void.", err=True)
    if user.is_expired(datetime.now(UTC)):
        typer.echo(
            f"It is of no use now: {name} expired on {format_time(user.expires_at)}.", err=True
        )
    else:
        typer.echo(f"Whoever has it can log in as {name}: trionat connect TICKET SERVICE", err=True)


def _configuration(
    state_dir: Path | None, config: Path | None, public_addr: str | None = None
) -> Configuration:
    flags = {
        "Server.StateDir": None if state_dir is None else str(state_dir),
        "Server.PublicAddr": public_addr,
    }
    return load("server", file=config, flags=flags, environ=os.environ)


def _folder(configuration: Configuration) -> Path:
    if configuration.database is not None:
        raise StartupError(
            "accounts in a database server are not supported yet: leave the section Database out"
        )
    return configuration.server.effective_state_dir


def _public_address(configuration: Configuration, state: ServerState) -> tuple[str, int]:
    """Return host and port of the ticket; what was said (flag, configuration) before what was served last."""
    server, last = configuration.server, state.last_address()
    host = server.public_host or (last and last.host)
    port = server.public_port or (last and last.port) or server.controller_addr.port
    if not host or not port:
        raise ValueError(
            "where clients reach the server is not known yet: give HOST:PORT, or start the server once"
        )
    return host, port


def _ask(folder: Path, question: Callable[[Store], Awaitable[T]], *, make: bool = False) -> T:
    """Open the store for one question; `make` it where there is none, which for most commands means a mistyped folder."""
    path = database_file(folder)

    async def run() -> T:
        async with open_sqlite_store(path) as store:
            return await question(store)

    if not make and not path.exists():
        raise StoreUnavailableError(
            f"{path}: there are no accounts here: is it the right folder? If so, start the server or add a user"
        )
    return trio.run(run)


async def _existing(store: Store, name: str) -> User:
    user = await store.find_user(name)
    if user is None:
        raise StoreError(f"there is no user {name!r}")
    return user


def _as_json(user: User, now: datetime) -> dict[str, object]:
    return {
        "name": user.name,
        "created_at": None if user.created_at is None else user.created_at.isoformat(),
        "expires_at": None if user.expires_at is None else user.expires_at.isoformat(),
        "expired": user.is_expired(now),
    }


@contextlib.contextmanager
def _given(where: str) -> Generator[None]:
    """Name the argument, flag or stream that holds the value that is wrong."""
    try:
        yield
    except ValueError as exc:
        raise ConfigError(Problem(where, str(exc))) from exc


@contextlib.contextmanager
def _told() -> Generator[None]:
    """Turn what can go wrong into lines on standard error and an exit code: 2 for the caller's mistakes, 3 for the system's."""
    try:
        yield
    except (StartupError, StoreUnavailableError) as exc:
        _fail(exc, 3)
    except (ConfigError, StoreError) as exc:
        _fail(exc, 2)


def _fail(error: Exception, code: int) -> None:
    for line in str(error).splitlines():
        typer.echo(f"trionat: {line}", err=True)
    raise typer.Exit(code) from error
