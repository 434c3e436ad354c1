"""`trionat tasks`: the tree of tasks and nurseries of a running server."""

from __future__ import annotations

from collections.abc import Iterator

from trionat.cli.local_server import FOLDER, ConfigFile, State, StateDir, told
from trionat.cli.output import say
from trionat.log import escape
from trionat.server.admin.messages import AskTasks
from trionat.server.admin.task_tree import Branch


def tasks(state_dir: StateDir = None, config: ConfigFile = None) -> None:
    """Show the tasks of a running server, as they own each other. With the nurseries that hold them."""
    with told():
        values = State.find(state_dir, config, needs=FOLDER).ask_server(AskTasks())
    for line in _lines(Branch.of(values)):
        say(line)


def _lines(branch: Branch) -> Iterator[str]:
    yield escape(branch.name)
    for number, below in enumerate(branch.branches, 1):
        corner, edge = ("└─ ", "   ") if number == len(branch.branches) else ("├─ ", "│  ")
        first, *others = _lines(below)
        yield corner + first
        yield from (edge + line for line in others)
