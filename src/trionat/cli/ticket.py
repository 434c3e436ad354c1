"""`trionat ticket`: looking at a ticket and narrowing it, by whoever has it, without its server.

Owns how restrictions are written on a command line; `trionat user ticket` takes the same.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from trionat.cli.command_line import App
from trionat.cli.limits import read_names, read_ports
from trionat.cli.local_server import AsJson, given, told
from trionat.cli.output import say
from trionat.errors import ConfigError, Problem
from trionat.fingerprint import format_fingerprint
from trionat.log import escape
from trionat.protocol.ticket import Ticket
from trionat.server.accounts.scope import Only, Scope, until
from trionat.server.accounts.tickets import narrow_ticket
from trionat.store.base import Limits
from trionat.store.expiry import format_time, parse_expiry
from trionat.text import decode_text

ticket_app = App(help="A ticket that you have: what is in it, or one good for less.")

WHEN: Final = (
    "2027-01-31 (valid through that day, UTC), 2027-01-31T12:00 (UTC), 30d, 12h (from now) or never"
)

_STANDARD_INPUT: Final = "-"
_MOST_BYTES: Final = 65536
"""Of standard input; some times the longest ticket in any encoding."""

OnlyName = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Names that the ticket is good for, as shop or 'shop-*'; may be given several times.",
    ),
]
OnlyPort = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PORTS",
        help="Visit ports that the ticket is good for, as 60001 or 60000-60009; may be given several times.",
    ),
]
Expires = Annotated[
    str | None,
    typer.Option("--expires", metavar="WHEN", help=f"When the ticket is void: {WHEN}."),
]
_Text = Annotated[
    str,
    typer.Argument(metavar="TICKET", help="The ticket, or - to read it from standard input."),
]


def read_caveats(
    only_name: list[str] | None, only_port: list[str] | None, expires: str | None, now: datetime
) -> tuple[str, ...]:
    """Return the caveats that these options stand for, none where none was given.

    Raises:
        ConfigError: One of them is wrong.
    """
    caveats: list[str] = []
    names: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    if only_name:
        with given("--only-name"):
            names = read_names(",".join(only_name))
    if only_port:
        with given("--only-port"):
            ports = read_ports(",".join(only_port))
    if names or ports:
        caveats.append(str(Only(names=names, ports=ports)))
    if expires is not None:
        with given("--expires"):
            moment = parse_expiry(expires, now)
            if moment is not None and moment <= now:
                raise ValueError(f"{expires} is over already")
            if moment is not None:
                caveats.append(until(moment))
    return tuple(caveats)


def tell_restrictions(ticket: Ticket) -> None:
    """Tell, on standard error, what a narrowed ticket is good for."""
    if not ticket.caveats:
        return
    say(f"It is narrowed: {'; '.join(ticket.caveats)}", err=True)
    expires_at = Scope.of(Limits(), ticket.caveats).expires_at
    if expires_at is not None and expires_at <= datetime.now(UTC):
        say(f"It is of no use now: it was good until {format_time(expires_at)}.", err=True)


@ticket_app.command()
def narrow(
    ticket: _Text,
    only_name: OnlyName = None,
    only_port: OnlyPort = None,
    expires: Expires = None,
) -> None:
    """Print a ticket that is good for less than the one you have. No server is asked; the ticket that you have stays good."""
    with told():
        caveats = read_caveats(only_name, only_port, expires, datetime.now(UTC))
        if not caveats:
            reason = "say what the new one is to be good for: --only-name, --only-port or --expires"
            raise ConfigError(Problem("ticket", reason))
        whole = _read(ticket)
        with given("ticket"):
            narrowed = narrow_ticket(whole, Limits(), caveats)
    say(narrowed.encode())
    tell_restrictions(narrowed)


@ticket_app.command()
def show(ticket: _Text, as_json: AsJson = False) -> None:
    """Show what is in a ticket, but for its secret: user, servers, fingerprint and restrictions."""
    with told():
        found = _read(ticket)
    fingerprint = None if found.fingerprint is None else format_fingerprint(found.fingerprint)
    addresses = [str(address) for address in found.addresses]
    if as_json:
        values = {
            "user": found.username,
            "servers": addresses,
            "fingerprint": fingerprint,
            "restrictions": found.caveats,
        }
        say(json.dumps(values))
        return
    say(f"user          {escape(found.username)}")
    say(f"servers       {escape(', '.join(addresses))}")
    say(f"fingerprint   {fingerprint or 'none: the server is checked by authority and name'}")
    say(f"restrictions  {'; '.join(found.caveats) or 'none'}")


def _read(text: str) -> Ticket:
    """Return the ticket of an argument, or of standard input.

    Raises:
        ConfigError: It is none.
    """
    if text == _STANDARD_INPUT:
        with given("standard input"):
            return Ticket.decode(decode_text(sys.stdin.buffer.read(_MOST_BYTES)))
    with given("TICKET"):
        return Ticket.decode(text)
