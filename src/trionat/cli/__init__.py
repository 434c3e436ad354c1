"""The command line: the only place that prints, prompts or picks an exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import trionat
from trionat.cli.cluster import cluster_app
from trionat.cli.command_line import App
from trionat.cli.config import config_app
from trionat.cli.connect import connect
from trionat.cli.db import db_app
from trionat.cli.demo import demo
from trionat.cli.drain import drain
from trionat.cli.events import events_app
from trionat.cli.kick import kick
from trionat.cli.limits import limit
from trionat.cli.local_server import told
from trionat.cli.output import say
from trionat.cli.reload import reload
from trionat.cli.remote import CHOSEN, COMMANDS, Remote
from trionat.cli.serve import serve
from trionat.cli.service import service_app
from trionat.cli.status import status
from trionat.cli.tasks import tasks
from trionat.cli.ticket import ticket_app
from trionat.cli.token import token_app
from trionat.cli.traffic import traffic
from trionat.cli.user import user_app
from trionat.errors import ConfigError, Problem

app = App(
    help="A reverse tunnel: make a service behind NAT reachable, encrypted, with two commands and no file."
)
app.command()(serve)
app.command()(connect)
app.command()(demo)
user_app.command()(limit)
app.add_typer(user_app, name="user")
app.add_typer(ticket_app, name="ticket")
app.add_typer(token_app, name="token")
app.command()(traffic)
app.command()(status)
app.command()(tasks)
app.command()(kick)
app.command()(drain)
app.command()(reload)
app.add_typer(events_app, name="events")
app.add_typer(db_app, name="db")
app.add_typer(cluster_app, name="cluster")
app.add_typer(config_app, name="config")
app.add_typer(service_app, name="service")


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"trionat {trionat.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help=f"A server elsewhere, by the URL of its console: for {', '.join(COMMANDS)}.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the token for --server is (trionat token add)."),
    ] = None,
    server_fingerprint: Annotated[
        str | None,
        typer.Option(
            metavar="SHA256:…",
            help="The certificate that --server has to show, as trionat serve prints it.",
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version, and end."
        ),
    ] = False,
) -> None:
    with told():
        CHOSEN.set(_choose(context.invoked_subcommand, server, token_file, server_fingerprint))


def _choose(
    command: str | None, server: str | None, token_file: Path | None, fingerprint: str | None
) -> Remote | None:
    """Return the server elsewhere that is meant, if one is."""
    if server is None:
        for flag, value in (("--token-file", token_file), ("--server-fingerprint", fingerprint)):
            if value is not None:
                raise ConfigError(Problem(flag, "of no use without --server"))
        return None
    if command not in COMMANDS:
        reason = f"{command} does not go with it: {', '.join(COMMANDS)} do"
        raise ConfigError(Problem("--server", reason))
    return Remote.read(server, token_file, fingerprint)


def main() -> None:
    """Run the command line."""
    app(prog_name="trionat")
