"""`trionat unban`: lifts the ban of an address."""

from __future__ import annotations

from typing import Annotated

import typer

from trionat.cli.local_server import FOLDER, ConfigFile, State, StateDir, given, told
from trionat.cli.output import say
from trionat.errors import ConfigError, Problem
from trionat.networks import network_of, parse_network
from trionat.server.admin.messages import LiftBan, Lifted


def unban(
    address: Annotated[
        str,
        typer.Argument(
            metavar="ADDRESS", help="The address, or the network as trionat status --json has it."
        ),
    ],
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Let an address that is banned try passwords again, at once. The failures behind the ban are forgotten."""
    with told():
        with given("ADDRESS"):
            parse_network(address)
            network = address if "/" in address else network_of(address)
        state = State.find(state_dir, config, needs=FOLDER)
        if not Lifted.of(state.ask_server(LiftBan(network))).is_lifted:
            raise ConfigError(Problem("ADDRESS", f"{network} is not banned"))
        state.note("ban.lifted", network)
    say(f"{network} is not banned any more.")
