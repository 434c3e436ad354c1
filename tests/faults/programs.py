"""A program that runs on a machine of a test, as a person runs it, and what it has printed."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.machines import Machine

TIMEOUT: Final = 60.0
"""Seconds, many times what anything takes on a machine with nothing else to do."""


class Program:
    """A program on a machine, and what it has printed."""

    def __init__(
        self, machine: Machine, *command: str, stdin: int = subprocess.DEVNULL, **environ: str
    ) -> None:
        self.output = (
            machine.folder / f"{Path(command[0]).name}-{len(list(machine.folder.iterdir()))}.out"
        )
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*machine.inside, *command],
                cwd=machine.folder,
                env={**machine.environ, **environ},
                stdin=stdin,
                stdout=output,
                stderr=output,
            )

    @property
    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until it has printed something, and return that."""

        def look() -> re.Match[str] | None:
            if found := re.search(pattern, self.text, re.MULTILINE):
                return found
            assert self.process.poll() is None, f"it ended, without {pattern}:\n{self.text}"
            return None

        return wait(look, lambda: self.text)

    def stop(self, sign: int = signal.SIGTERM) -> int:
        """Have it end, and return its exit code; where it does not end, that is of a kill."""
        self.process.send_signal(sign)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def wait(look: Callable[[], re.Match[str] | None], tell: Callable[[], str]) -> re.Match[str]:
    """Wait until a look finds something."""
    until = time.monotonic() + TIMEOUT
    while (found := look()) is None:
        assert time.monotonic() < until, tell()
        time.sleep(0.05)
    return found
