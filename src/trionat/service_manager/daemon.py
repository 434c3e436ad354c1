"""A daemon: the server or client that a service manager is to keep up."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from trionat.errors import ConfigError, Problem, StartupError
from trionat.text import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

Side: TypeAlias = Literal["serve", "connect"]

DEFAULT_NAMES: Final[dict[Side, str]] = {"serve": "trionat", "connect": "trionat-client"}

ACCOUNT: Final = "trionat"
"""Who the daemons of a whole machine run as."""

DESCRIPTORS: Final = 65536
"""A visitor takes one, its tunnel another; the usual limit of a service is 1024, or 524,288."""

STOP_TIMEOUT: Final = 45
"""Seconds that a stop may take: visitors have `DrainGrace` (30 s) to finish. A longer one is cut short."""

_LONGEST_LINE: Final = 4096
"""Bytes of a script's first line."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)


@attrs.frozen(kw_only=True)
class Daemon:
    """What is to be kept up.

    `arguments` stand after the command's word, without a ticket: that is `ticket`, and goes into a file that only its reader can read. `program` is
    the absolute command, in one word or several. A daemon of the whole `machine` starts with it and runs as the account `trionat`; another one is its
    user's.
    """

    side: Side
    name: str
    arguments: tuple[str, ...]
    machine: bool
    program: tuple[str, ...]
    ticket: str | None = attrs.field(default=None, repr=False)

    @property
    def description(self) -> str:
        """One line for lists."""
        return "trionat server" if self.side == "serve" else "trionat client"

    def command(self, ticket_file: str | None = None) -> tuple[str, ...]:
        """Return the whole command; `ticket_file` is where its ticket will be."""
        ticket = () if ticket_file is None else ("--ticket-file", ticket_file)
        return (*self.program, self.side, *self.arguments, *ticket)


def check_name(name: str) -> str:
    """Return it.

    Raises:
        ConfigError: It cannot be the name of a unit, a task and a file.
    """
    if not _NAME.fullmatch(name):
        reason = f"{quoted(name)} is not a valid name: letters, digits and _ . - go, 64 at most, a letter or digit first"
        raise ConfigError(Problem("--name", reason))
    return name


def find_program() -> tuple[str, ...]:
    """Return the command by which this trionat is started again, from any folder: the script beside this interpreter, or the interpreter with `-m`."""
    script = Path(sys.executable).with_name("trionat.exe" if sys.platform == "win32" else "trionat")
    return (str(script),) if script.is_file() else (sys.executable, "-m", "trionat")


def home_folder() -> Path:
    """Return the folder of the user who asks.

    Raises:
        StartupError: He has none, as in a container with a number for a user.
    """
    try:
        return Path.home()
    except RuntimeError:
        raise StartupError(
            "there is no home folder here, in which the system looks for what to keep up: set HOME"
        ) from None


def require_readable(program: str) -> None:
    """See to it that the account of a whole machine's daemons can start the program, and the interpreter that runs it.

    Raises:
        StartupError: A folder on the way is closed to other accounts, as a home folder is.
    """
    path = Path(program)
    for file in (path, *_interpreter(path)):
        # A link, and what it leads to.
        for folder in dict.fromkeys((*reversed(file.parents), *reversed(file.resolve().parents))):
            try:
                mode = folder.stat().st_mode
            except OSError as error:
                raise StartupError(f"{file}: cannot be started: {error.strerror}") from error
            if not mode & 0o001:
                raise StartupError(
                    f"{file}: the account {ACCOUNT} cannot start it, since {folder} is closed to it: install trionat for all, in its"
                    " checkout by `/usr/bin/python3 -m venv /opt/trionat && /opt/trionat/bin/pip install .`, and run that one"
                )


def _interpreter(script: Path) -> Iterator[Path]:
    """Return what the first line of a script names."""
    try:
        with script.open("rb") as file:
            line = file.readline(_LONGEST_LINE)
    except OSError:
        return
    words = os.fsdecode(line[2:]).split() if line.startswith(b"#!") else ()
    if words and Path(words[0]).is_absolute():
        yield Path(words[0])
