"""`trionat events`: whether those who are to hear what happens at a server do, and what has happened of late."""

from __future__ import annotations

import json
import os
from typing import Annotated

import trio
import typer

from trionat.cli.command_line import App
from trionat.cli.local_server import FOLDER, AsJson, ConfigFile, State, StateDir, told
from trionat.cli.output import say
from trionat.cli.running import ExitCode
from trionat.config.load import load
from trionat.errors import StartupError
from trionat.log import escape
from trionat.server.events.journal import MOST_EVENTS, read_events
from trionat.server.events.template import sentence
from trionat.transport.names import NameResolver

events_app = App(help="What happens at a server, and how its webhooks stand.")


@events_app.command(name="test")
def send_test_events(as_json: AsJson = False, config: ConfigFile = None) -> None:
    """Send a test event to every webhook of the configuration, and tell what each has answered. The server need not run.

    Ends with code 0 only where all of them have taken it.
    """
    from trionat.server.events.delivery import send_tests  # noqa: PLC0415 - brings a library
    from trionat.server.events.post import receiver_context  # noqa: PLC0415 - the same

    with told():
        needs = ("Events", "Server.Name", "Cluster.Node")
        configuration = load("server", file=config, environ=os.environ, needs=needs)
        webhooks, cluster = configuration.events.webhooks, configuration.cluster
        if not webhooks:
            raise StartupError("there is no webhook to test: name one in the section Events")
    server = configuration.server.name if cluster is None else cluster.node

    async def run() -> bool:
        trio.socket.set_custom_hostname_resolver(NameResolver())
        tls = await trio.to_thread.run_sync(receiver_context)
        outcomes = await send_tests(list(webhooks), server, tls)
        for webhook, outcome in outcomes:
            if as_json:
                values = {
                    "url": webhook.shown,
                    "taken": outcome.reason is None,
                    "status": outcome.status,
                    "reason": outcome.reason,
                }
                say(json.dumps(values))
            else:
                came = (
                    f"taken (status {outcome.status})"
                    if outcome.reason is None
                    else f"not taken: {outcome.reason}"
                )
                say(escape(f"{webhook.shown}  {came}"))
        return all(outcome.reason is None for _, outcome in outcomes)

    if not trio.run(run):
        raise typer.Exit(ExitCode.FINDINGS)


@events_app.command(name="list")
def list_events(
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, max=MOST_EVENTS, help="How many, at most.")
    ] = 50,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """List what has happened of late, the newest last, as the server has written it down. It does so where there are webhooks, or a console."""
    with told():
        folder = State.find(state_dir, config, needs=FOLDER).folder
        events = read_events(folder, limit)
    if not events and not as_json:
        say(
            "No event is written down: a server with a section Events, or with a console, does so.",
            err=True,
        )
    for event in events:
        if as_json:
            say(event.to_json().decode())
        else:
            say(f"{event.number:6}  {event.values()['time']}  {event.type:20}  {sentence(event)}")
