"""What a person sees of something that takes long: what is done, and for how long, on a line of standard error that goes away again."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TextIO

import attrs

from trionat.cli.output import FLUSH_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Generator

_BEGINS_AFTER: Final = 1.0
_INTERVAL: Final = 1.0

_CLEAR: Final = "\r\x1b[K"


@attrs.define(eq=False)
class Progress:
    """What is being done, and how much of it is done: `done` of `of` (0: nobody knows) rows or whatever `unit` says. Nothing is said of that while `unit` is empty, or both are 0.

    The block sets these, as often as it likes: only what holds when a line is written is seen.
    """

    what: str
    done: int = 0
    of: int = 0
    unit: str = ""

    def count(self, done: int, of: int = 0) -> None:
        """Note how much is done."""
        self.done, self.of = done, of

    def text(self, seconds: float) -> str:
        """Return the line after that many seconds."""
        line = f"{self.what} ... {seconds:.0f} s"
        if not self.unit or not (self.done or self.of):
            return line
        of = f" of {self.of:,}" if self.of else ""
        return f"{line}, {self.done:,}{of} {self.unit}"


@contextmanager
def progress(what: str, unit: str = "") -> Generator[Progress]:
    """Tell what is being done while the block runs, once a second, from the second second on; only where standard error is a terminal.

    A thread tells: a terminal that takes nothing does not hold the block up, and its end for `FLUSH_TIMEOUT` at most.
    """
    state = Progress(what, unit=unit)
    stream: TextIO | None = sys.stderr
    if stream is None or stream.closed or not stream.isatty():
        yield state
        return
    done = threading.Event()
    thread = threading.Thread(
        target=_tell, args=(stream, state, done), name="trionat-progress", daemon=True
    )
    thread.start()
    try:
        yield state
    finally:
        done.set()
        thread.join(FLUSH_TIMEOUT)


def _tell(stream: TextIO, state: Progress, done: threading.Event) -> None:
    began = time.monotonic()
    if done.wait(_BEGINS_AFTER):
        return
    try:
        while True:
            stream.write(_CLEAR + state.text(time.monotonic() - began))
            stream.flush()
            if done.wait(_INTERVAL):
                break
        stream.write(_CLEAR)
        stream.flush()
    except (OSError, ValueError):  # it is gone; nobody looks any more
        return
