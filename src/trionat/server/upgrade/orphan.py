"""A process that is started here, and is the child of whoever looks after this one.

At a stop systemd waits only for what it takes for its own child, and it looks at that once, when it is told of another main process (`MAINPID`). A
child of the process before would not be asked to end, but killed at once: the visitors of a server would have no time to finish.
"""

from __future__ import annotations

import marshal
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import attrs

from trionat.system import is_running, kill_process, open_process, wait_process

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TO_START: Final = 10.0
"""Seconds for an interpreter to start a program, and as many to end."""

_LOOK: Final = 0.01
"""Seconds from one look to the next whether it has gone, where the system does not tell that: whoever is not its parent hears of no end."""

_ANSWER_BYTES: Final = 32

_SCRIPT: Final = """
import marshal, os, signal, sys
environ = marshal.load(sys.stdin.buffer)
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
try:
    pid = os.posix_spawnp(
        sys.argv[1],
        sys.argv[1:],
        environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
    )
except OSError as error:
    os.write(0, b"-%d\\n" % error.errno)
    sys.exit()
is_known = b""
try:
    os.write(0, b"%d\\n" % pid)
    is_known = sys.stdin.buffer.read(1)
finally:
    if not is_known:
        os.kill(pid, signal.SIGKILL)
"""
"""What starts the program, and ends at once, by which its child becomes that of another. No shell: one has its child ignore SIGINT and SIGQUIT, and
leaves out of the environment what is no name for it.

It speaks by standard input, since standard output is the program's: it hears the environment, to which an interpreter may add something at its own
start (PEP 538), says the number of its child, or what was wrong (errno, negative), and stays until that is heard. So long the number is nobody else's.
What an interpreter has ignored, its child does not.
"""


@attrs.define(eq=False)
class Orphan:
    """One, by its number. Whoever has it calls `close`.

    Numbers are used again: where the system can, `_handle` stands for this process and no later one (`open_process`).
    """

    pid: int
    _handle: int | None = None

    @classmethod
    def start(
        cls, command: Sequence[str], environ: Mapping[str, str], descriptors: Sequence[int]
    ) -> Orphan:
        """Start a program; blocks for some hundredths of a second. Its standard input is empty.

        Raises:
            OSError: it cannot be started.
        """
        here, there = socket.socketpair()
        with here:
            with there:
                starter = subprocess.Popen(  # noqa: S603 - as this process was started
                    [sys.executable, "-I", "-S", "-c", _SCRIPT, *command],
                    stdin=there.fileno(),
                    pass_fds=descriptors,
                    env=dict(environ),
                )
            try:
                number = _ask(here, environ)
                if number < 0:
                    raise OSError(-number, os.strerror(-number), command[0])
                orphan = cls(number, open_process(number))
                with suppress(OSError):  # it was killed meanwhile
                    here.sendall(b"\n")
            finally:
                here.close()  # it ends
                try:
                    starter.wait(_TO_START)
                except subprocess.TimeoutExpired:
                    starter.kill()
                    starter.wait()
        return orphan

    def kill(self) -> None:
        """Kill it, if it is there."""
        with suppress(OSError):
            kill_process(self.pid, self._handle)

    def wait(self, seconds: float) -> bool:
        """Wait until it has gone, and tell whether it has. Blocks."""
        if self._handle is not None:
            return wait_process(self._handle, seconds)
        until = time.monotonic() + seconds
        while is_running(self.pid):
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK)
        return True

    def close(self) -> None:
        """Let go of it: it is neither killed nor waited for any more. Idempotent."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def _ask(starter: socket.socket, environ: Mapping[str, str]) -> int:
    """Return the number of the new process, or what was wrong, negative."""
    starter.settimeout(_TO_START)
    told = {os.fsencode(name): os.fsencode(value) for name, value in environ.items()}
    try:
        starter.sendall(marshal.dumps(told))
        with starter.makefile("rb") as answers:
            return int(answers.readline(_ANSWER_BYTES))
    except (ConnectionError, ValueError):
        raise OSError("the interpreter that was to start it has ended") from None
