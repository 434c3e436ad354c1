"""`trionat kick`: sends somebody away from a running server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Final

import typer

from trionat.cli.local_server import FOLDER, ConfigFile, State, StateDir, given, told
from trionat.cli.output import say
from trionat.config.values import PORTS
from trionat.errors import ConfigError, Problem
from trionat.server.admin.messages import Kick, Kicked, KickSession, KickUser, KickVisitor
from trionat.text import counted, quoted

_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_VISITOR: Final = re.compile(r"v?([0-9]{1,18})", re.ASCII)


def kick(
    who: Annotated[
        str,
        typer.Argument(
            metavar="USER|UID|VISITOR",
            help="A user's name, a session's uid (42), or a visitor (v42), as trionat status --visitors shows them.",
        ),
    ],
    user: Annotated[
        bool,
        typer.Option("--user", help="Take it for a user's name, even if it looks like a number."),
    ] = False,
    session: Annotated[
        bool, typer.Option("--session", help="Take it for a session's uid.")
    ] = False,
    visitor: Annotated[
        bool, typer.Option("--visitor", help="Take it for a visitor's number.")
    ] = False,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Send away a user's clients, one session, or one visitor. They are cut off at once. A session's visit ports become free.

    A client that is sent away ends with code 4. This is not a ban: started again, it is let in. trionat user disable keeps it out.
    """
    with told():
        with given("USER|UID|VISITOR"):
            if user + session + visitor > 1:
                raise ValueError("only one of --user, --session and --visitor goes")
            request = _request(who, user=user, session=session, visitor=visitor)
        state = State.find(state_dir, config, needs=FOLDER)
        kicked = Kicked.of(state.ask_server(request))
        if not kicked.anybody:
            raise ConfigError(Problem("USER|UID|VISITOR", f"there is no {_meant(request)}"))
        state.note("kick", _named(request), sessions=kicked.sessions, visitors=kicked.visitors)
        if not kicked.anybody_here:
            say(f"there is no {_meant(request)}")
    for line in _lines(kicked):
        say(line)


def _request(who: str, *, user: bool, session: bool, visitor: bool) -> Kick:
    guess = not (user or session or visitor)
    if session or (guess and _NUMBER.fullmatch(who)):
        if not _NUMBER.fullmatch(who) or not int(who):
            raise ValueError(f"{quoted(who)} is not a valid uid: write a number from 1")
        return KickSession(int(who))
    if visitor or (guess and _VISITOR.fullmatch(who)):
        found = _VISITOR.fullmatch(who)
        if not found or not int(found[1]):
            raise ValueError(f"{quoted(who)} is not a valid visitor: write v and a number from 1")
        return KickVisitor(int(found[1]))
    return KickUser(who)


def _named(request: Kick) -> str:
    match request:
        case KickUser(name):
            return f"user {name}"
        case KickSession(uid):
            return f"session {uid}"
        case KickVisitor(number):
            return f"visitor {number}"


def _meant(request: Kick) -> str:
    match request:
        case KickUser(name):
            return f"client of a user {name!r} here"
        case KickSession(uid):
            return f"session {uid} (a user whose name is a number takes --user)"
        case KickVisitor(number):
            return f"visitor v{number} (a user of that name takes --user)"


def _lines(kicked: Kicked) -> Iterator[str]:
    for uid in kicked.sessions:
        yield f"session {uid} is ended"
    if kicked.queued:
        clients = "client is" if kicked.queued == 1 else "clients are"
        yield f"{kicked.queued} {clients} sent away from the queue"
    if kicked.reserved:
        yield f"visit ports {PORTS.write(sorted(kicked.reserved))} are not reserved any more"
    for name in kicked.names:
        yield f"the name {name} is not reserved any more"
    if kicked.told:
        yield f"{counted(kicked.told, 'other node')} told to do the same{_known_there(kicked.elsewhere)}"
    for number in kicked.visitors:
        yield f"visitor v{number} is reset"


def _known_there(elsewhere: int | None) -> str:
    if elsewhere is None:  # the server is an older one
        return ""
    if not elsewhere:
        return ": no session of that user is known there; is the name right?"
    return f": {counted(elsewhere, 'session')} of that user {'is' if elsewhere == 1 else 'are'} known there"
