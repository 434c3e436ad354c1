"""`trionat reload`."""

from __future__ import annotations

import json

import attrs
import typer

from trionat.cli.local_server import FOLDER, AsJson, ConfigFile, State, StateDir, told
from trionat.cli.output import say
from trionat.cli.running import ExitCode
from trionat.config.reload import Reloaded
from trionat.log import escape
from trionat.server.admin.messages import FOR_RELOAD, AskReload


def reload(
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Have a running server read its configuration again. It says what has changed.

    A mistake changes nothing. What needs a restart is named. Sessions and visitors go on.
    """
    with told():
        state = State.find(state_dir, config, needs=FOLDER)
        reloaded = Reloaded.of(state.ask_server(AskReload(), patience=FOR_RELOAD))
        if not reloaded.problems:
            state.note("reload", "server")
    if as_json:
        say(json.dumps(attrs.asdict(reloaded)))
    else:
        for line in describe(reloaded):
            say(escape(line))
        for problem in reloaded.problems:
            say(f"trionat: {escape(problem)}", err=True)
        for warning in reloaded.warnings:
            say(f"trionat: {escape(warning)}", err=True)
    if reloaded.problems:
        if not as_json:
            say("trionat: nothing has changed", err=True)
        raise typer.Exit(ExitCode.CONFIGURATION)


def describe(reloaded: Reloaded) -> list[str]:
    """Return what has changed, in lines for people."""
    if reloaded.problems:
        return []
    lines = [*reloaded.changed, *(f"{key} (new sessions)" for key in reloaded.new_sessions)]
    lines += [f"{key} has changed, and needs a restart" for key in reloaded.restart]
    return lines or ["nothing has changed"]
