"""The command line: the only place that prints, prompts or picks an exit code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from trionat.cli.command_line import App, Group, LaterCommand, as_typed
from trionat.cli.output import say
from trionat.cli.target import FROM_AFAR, TARGET
from trionat.version import VERSION

if TYPE_CHECKING:
    from trionat.cli.remote import Remote

COMMANDS: Final = (
    LaterCommand(
        "serve:serve",
        "Run the public side: clients and visitors connect here.",
    ),
    LaterCommand(
        "connect:connect",
        "Run the private side: make services here reachable.",
    ),
    LaterCommand(
        "demo:demo",
        "See it work: server, client and web service in one process.",
    ),
    LaterCommand(
        "doctor:doctor",
        "Look at all between here and visitors, and say what to do.",
    ),
    LaterCommand(
        "traffic:traffic",
        "Show the bytes relayed for each user, in all and in a month.",
    ),
    LaterCommand(
        "status:status",
        "Show what a running server does: sessions, visitors, bytes.",
    ),
    LaterCommand(
        "tasks:tasks",
        "Show the tasks of a running server, as they own each other.",
    ),
    LaterCommand("kick:kick", "Send away a user's clients, one session, or one visitor."),
    LaterCommand(
        "unban:unban",
        "Let an address that is banned try passwords again, at once.",
    ),
    LaterCommand(
        "drain:drain",
        "Send all clients to other servers; wait until all have left.",
    ),
    LaterCommand(
        "reload:reload",
        "Have a running server read its configuration again.",
    ),
    LaterCommand(
        "upgrade:upgrade",
        "Have a newer process take the place of a running server.",
    ),
    LaterCommand("user:user_app", "Accounts that may connect, and their tickets."),
    LaterCommand(
        "ticket:ticket_app",
        "A ticket that you have: what is in it, or one good for less.",
    ),
    LaterCommand("token:token_app", "Tokens of the API, by which programs see or steer a server."),
    LaterCommand("events:events_app", "What happens at a server, and how its webhooks stand."),
    LaterCommand(
        "db:db_app",
        "The database of users and traffic, where there is one.",
    ),
    LaterCommand(
        "state:state_app",
        "The state folder as one file: for a backup, or another host.",
    ),
    LaterCommand("cluster:cluster_app", "Several servers that work as one."),
    LaterCommand("config:config_app", "Check configuration files, and show which values hold."),
    LaterCommand(
        "service:service_app",
        "Have the system keep a server or a client up.",
    ),
    LaterCommand(
        "completion:completion",
        "Print a script by which your shell completes trionat's words.",
    ),
    LaterCommand(
        "help:help",
        "Show what a command does, and what it takes.",
    ),
)
"""Each in the module of its name, with the first sentence of its help."""


class _Root(Group):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for command in COMMANDS:
            self.add_command(command)


app = App(
    help="A reverse tunnel: make a service behind NAT reachable, encrypted, with two commands and no file.",
    cls=_Root,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"trionat {VERSION}")
        raise typer.Exit


@app.callback()
@as_typed("server", "token_file", "server_fingerprint")
def _root(
    context: typer.Context,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help=f"A server elsewhere, by the URL of its console: for {', '.join(FROM_AFAR)}.",
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
            "-V",
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the version, and end.",
        ),
    ] = False,
) -> None:
    if server is None and token_file is None and server_fingerprint is None:
        TARGET.set(None)
        return
    from trionat.cli.local_server import told  # noqa: PLC0415 - start time

    with told():
        TARGET.set(_choose(context.invoked_subcommand, server, token_file, server_fingerprint))


def _choose(
    command: str | None, server: str | None, token_file: Path | None, fingerprint: str | None
) -> Remote:
    """Return the server elsewhere that is meant.

    Raises:
        ConfigError: What was given makes no sense, or does not go with the command.
    """
    from trionat.cli.remote import Remote  # noqa: PLC0415 - start time
    from trionat.errors import ConfigError, Problem  # noqa: PLC0415 - start time

    if server is None:
        flag = "--server-fingerprint" if token_file is None else "--token-file"
        raise ConfigError(Problem(flag, "of no use without --server"))
    if command not in {each.partition(" ")[0] for each in FROM_AFAR}:
        reason = f"{command} does not go with it: {', '.join(FROM_AFAR)} do"
        raise ConfigError(Problem("--server", reason))
    file = None if token_file is None else Path(token_file)  # as it was typed
    return Remote.read(server, file, fingerprint)


def main() -> None:
    """Run the command line."""
    app(prog_name="trionat")
