"""The command line: the only place that prints, prompts or picks an exit code."""

from __future__ import annotations

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
from trionat.cli.kick import kick
from trionat.cli.limits import limit
from trionat.cli.output import say
from trionat.cli.serve import serve
from trionat.cli.status import status
from trionat.cli.tasks import tasks
from trionat.cli.traffic import traffic
from trionat.cli.user import user_app

app = App(
    help="A reverse tunnel: make a service behind NAT reachable, encrypted, with two commands and no file."
)
app.command()(serve)
app.command()(connect)
app.command()(demo)
user_app.command()(limit)
app.add_typer(user_app, name="user")
app.command()(traffic)
app.command()(status)
app.command()(tasks)
app.command()(kick)
app.command()(drain)
app.add_typer(db_app, name="db")
app.add_typer(cluster_app, name="cluster")
app.add_typer(config_app, name="config")


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"trionat {trionat.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version, and end."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    app(prog_name="trionat")
