"""A process that is started here, and is the child of whoever looks after this one.

At a stop systemd waits only for what it takes for its own child, and it looks at that once, when it is told of another main process (`MAINPID`). A
child of the process before would not be asked to end, but killed at once: the visitors of a server would have no time to finish.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import attrs

from trionat.system import is_running

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TO_START: Final = 10.0
"""Seconds for a shell to start a program and to end."""

_LOOK: Final = 0.01
"""Seconds from one look to the next whether it has gone: whoever is not its parent is not told."""

_SCRIPT: Final = '"$@" & echo $! >&0'
"""It ends at once, by which its child becomes that of another; whose number goes to standard input, since standard output is the program's."""


@attrs.frozen
class Orphan:
    """One, by its number. It is looked for only for as long as its place is to be taken: numbers are used again, later."""

    pid: int

    @classmethod
    def start(
        cls, command: Sequence[str], environ: Mapping[str, str], descriptors: Sequence[int]
    ) -> Orphan:
        """Start a program; blocks for some hundredths of a second. Its standard input is empty.

        Raises:
            OSError: there is no shell, or it cannot start anything.
        """
        told, tell = os.pipe()
        with open(told, "rb") as answer:  # noqa: PTH123 - a descriptor
            try:
                shell = subprocess.Popen(  # noqa: S603 - as this process was started
                    ["/bin/sh", "-c", _SCRIPT, "sh", *command],
                    stdin=tell,
                    pass_fds=descriptors,
                    env=dict(environ),
                )
            finally:
                os.close(tell)
            number = answer.readline()
        try:
            shell.wait(_TO_START)
        except subprocess.TimeoutExpired:
            shell.kill()
            shell.wait()
        if not number.strip().isdigit():
            raise OSError("the shell has not started it")
        return cls(int(number))

    def kill(self) -> None:
        """Kill it, if it is there."""
        with suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """Wait until it has gone, and tell whether it has. Blocks."""
        until = time.monotonic() + seconds
        while is_running(self.pid):
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK)
        return True
