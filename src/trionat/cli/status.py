"""`trionat status`: what a running server is doing."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from trionat.cli.local_server import FOLDER, AsJson, ConfigFile, State, StateDir, told
from trionat.cli.output import say
from trionat.cli.table import Table
from trionat.errors import StartupError
from trionat.server.admin.messages import AskStatus
from trionat.server.admin.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from types import FrameType

_WATCH_INTERVAL: Final = 1.0

_HOME: Final = "\x1b[H"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"


def status(
    visitors: Annotated[
        bool, typer.Option("--visitors", help="Show every visitor, below its session.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every second, until Ctrl-C.")
    ] = False,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Show every node of the cluster.")
    ] = False,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Show what a running server does: sessions, visitors, bytes. Ports, tunnels and the queue as well."""
    with told():
        state = State.find(state_dir, config, needs=FOLDER)
        if not watch:
            _show(state, visitors=visitors, cluster=cluster, as_json=as_json, again=False)
            return
        with suppress(KeyboardInterrupt), _remembered_interrupt() as interrupted:
            _show(state, visitors=visitors, cluster=cluster, as_json=as_json, again=False)
            while not interrupted:
                time.sleep(_WATCH_INTERVAL)
                _show(state, visitors=visitors, cluster=cluster, as_json=as_json, again=True)


@contextmanager
def _remembered_interrupt() -> Generator[list[int]]:
    """Give a list that is empty until Ctrl-C, which raises KeyboardInterrupt as ever: Python drops that where it hits a destructor."""
    interrupted: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        interrupted.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _show(state: State, *, visitors: bool, cluster: bool, as_json: bool, again: bool) -> None:
    values = state.ask_server(AskStatus())
    if as_json:
        say(json.dumps(values))
        return
    terminal = sys.stdout.isatty()
    columns, height = shutil.get_terminal_size()
    table = Table(columns if terminal else None)
    lines = table.draw(_read(state, values), visitors=visitors, cluster=cluster)
    if not again:
        say("\n".join(lines))
    elif not terminal:
        say("\n".join(["", *lines]))
    else:
        if len(lines) >= height:
            lines = [*lines[: height - 2], f"… {len(lines) - height + 2} more lines"]
        say(over(lines), end="")


def over(lines: Sequence[str]) -> str:
    """Return what writes lines, none wider than the terminal, over those that it shows."""
    # Cleared first: behind a full line, tmux and xterm have the cursor still on its last cell.
    text = "".join(f"{_CLEAR_LINE}{line}\n" for line in lines)
    return f"{_HOME}{text}{_CLEAR_BELOW}"


def _read(state: State, values: dict[str, Any]) -> Snapshot:
    try:
        return Snapshot.of(values)
    except (TypeError, KeyError) as exc:
        raise StartupError(
            f"{state.place}: the server is of another version: use the trionat that it was started with, or --json"
        ) from exc
