"""`trionat drain`: has a running server send its clients to other servers."""

from __future__ import annotations

import json
import time
from typing import Annotated, Final

import attrs
import typer

from trionat.cli.local_server import FOLDER, AsJson, ConfigFile, State, StateDir, told
from trionat.cli.output import say
from trionat.cli.running import ExitCode
from trionat.server.admin.drain import describe
from trionat.server.admin.messages import AskDrain, Drained

_LOOK_AGAIN: Final = 0.5


def drain(
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", metavar="SECONDS", min=0, help="Wait for no longer; the drain goes on."
        ),
    ] = None,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Send all clients to other servers; wait until all have left. Nobody is cut off.

    Each client is up at another server before its session here ends, and visitors may finish. The server stays up, and lets nobody in: stop it then
    (SIGTERM), or start it anew to have clients again.
    """
    with told():
        state = State.find(state_dir, config, needs=FOLDER)
        until = None if timeout is None else time.monotonic() + timeout
        before: Drained | None = None
        while True:
            drained = Drained.of(state.ask_server(AskDrain()))
            if before is None:
                state.note("drain", "server")
            if as_json and drained != before:
                say(json.dumps({**attrs.asdict(drained), "done": drained.is_done}))
            elif drained != before:
                _tell(drained, first=before is None)
            before = drained
            if drained.is_done:
                return
            if until is not None and time.monotonic() >= until:
                raise typer.Exit(ExitCode.FINDINGS)
            time.sleep(_LOOK_AGAIN)


def _tell(drained: Drained, *, first: bool) -> None:
    if first and not drained.others and drained.sessions and drained.waits_for is None:
        say(
            "this server knows no other one (Server.OtherServers): clients go that know one themselves (Client.Servers), those that cannot move (version 0.1, --once) are sent away, and the rest stays"
        )
    say(describe(drained))
    if drained.is_done:
        say("the server lets nobody in: stop it, or start it anew")
