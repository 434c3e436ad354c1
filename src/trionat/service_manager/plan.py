"""A plan: the files that a service manager writes and the commands that it runs, before it does so."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

import attrs

from trionat.errors import StartupError
from trionat.store.private_file import is_there, write_private
from trionat.text import decode_text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

COMMAND_TIMEOUT: Final = 100.0
"""Seconds for one command: systemd gives a start 90 s (systemd-system.conf(5), DefaultTimeoutStartSec)."""

_SECRET: Final = 0o600


@attrs.frozen
class File:
    """A file to write. Whoever may read it is in its `mode`; a secret one is shown by its name only."""

    path: Path
    content: bytes = attrs.field(repr=False)
    mode: int = 0o644

    @property
    def secret(self) -> bool:
        """Whether only its owner may read it."""
        return self.mode == _SECRET

    def write(self) -> None:
        """Write it, whole or not at all; blocks.

        Raises:
            StartupError: It cannot be written.
        """
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_private(self.path, self.content)
            self.path.chmod(self.mode)
        except OSError as error:
            raise StartupError(f"{self.path}: cannot write: {error.strerror or error}") from error


@attrs.frozen
class Command:
    """A command to run. What goes wrong with one that is `optional` changes nothing; `advice` says what to do about it, for people."""

    words: tuple[str, ...]
    optional: bool = False
    advice: str = ""

    def __str__(self) -> str:
        return shlex.join(self.words)

    def run(self) -> None:
        """Run it to its end; blocks, for `COMMAND_TIMEOUT` at most.

        Raises:
            StartupError: It is not there, fails, or takes too long, and is not optional.
        """
        result = run(self.words)
        if result.returncode and not self.optional:
            said = (result.stderr or result.stdout).strip().splitlines() or ["no word why"]
            advice = self.advice and f"; {self.advice}"
            raise StartupError(f"{self} ended with {result.returncode}: {said[0]}{advice}")


def run(words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Return what a command has said; blocks.

    Raises:
        StartupError: There is no such program, or it takes longer than `COMMAND_TIMEOUT`.
    """
    program = shutil.which(words[0])
    if program is None:
        raise StartupError(f"there is no {words[0]} here, which would start and stop it")
    try:
        return subprocess.run(  # noqa: S603 - our own words
            [program, *words[1:]],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        reason = f"{shlex.join(words)} has not ended after {COMMAND_TIMEOUT:g} s"
        raise StartupError(reason) from None
    except OSError as error:
        raise StartupError(f"{words[0]}: {error.strerror or error}") from error


@attrs.frozen(kw_only=True)
class Plan:
    """What is done, in this order: commands that come `first`, files written, files removed, commands that come `then`. `notes` are for whoever asked for it."""

    first: tuple[Command, ...] = ()
    files: tuple[File, ...] = ()
    removed: tuple[Path, ...] = ()
    then: tuple[Command, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> Iterable[str]:
        """Say what would be done; secrets are left out."""
        yield from (f"$ {command}" for command in self.first)
        for file in self.files:
            yield f"# {file.path} (mode {file.mode:04o})"
            if file.secret:
                yield "# (a secret)"
            else:
                yield from decode_text(file.content).splitlines()
            yield ""
        yield from (f"$ rm {shlex.quote(str(path))}" for path in self.removed)
        yield from (f"$ {command}" for command in self.then)

    def carry_out(self) -> None:
        """Do it; blocks. What is done when something fails stays done: the same plan can be carried out again.

        Raises:
            StartupError: A file cannot be written or removed, or a command fails.
        """
        for command in self.first:
            command.run()
        for file in self.files:
            file.write()
        for path in self.removed:
            if is_there(path):
                try:
                    path.unlink()
                except OSError as error:
                    reason = f"{path}: cannot remove: {error.strerror or error}"
                    raise StartupError(reason) from error
        for command in self.then:
            command.run()
