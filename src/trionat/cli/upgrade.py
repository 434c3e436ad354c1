"""`trionat upgrade`: has a new process take the place of a running server."""

from __future__ import annotations

import json

import attrs

from trionat.cli.local_server import FOLDER, AsJson, ConfigFile, State, StateDir, told
from trionat.cli.output import say
from trionat.server.admin.messages import FOR_UPGRADE, AskUpgrade
from trionat.server.upgrade.upgrade import Upgraded
from trionat.text import counted


def upgrade(as_json: AsJson = False, state_dir: StateDir = None, config: ConfigFile = None) -> None:
    """Have a newer process take the place of a running server. It is of the version that is installed by now. Nobody is cut off.

    It is started with the server's own command line, and reads its configuration anew. If it does not get ready, the server goes on as it was, and this ends with 3.
    """
    with told():
        state = State.find(state_dir, config, needs=FOLDER)
        upgraded = Upgraded.of(state.ask_server(AskUpgrade(), patience=FOR_UPGRADE))
        state.note("upgrade", "server", version=upgraded.version)
    say(json.dumps(attrs.asdict(upgraded)) if as_json else _text(upgraded))


def _text(upgraded: Upgraded) -> str:
    clients, visitors = counted(upgraded.clients, "client"), counted(upgraded.visitors, "visitor")
    return (
        f"trionat {upgraded.version} serves as process {upgraded.pid}, in place of {upgraded.old_version} ({upgraded.old_pid}):"
        f" {clients} and {visitors} were handed over, nobody was accepted for {upgraded.seconds * 1000:.0f} ms"
    )
