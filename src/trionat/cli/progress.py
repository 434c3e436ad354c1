"""What a person sees of something that takes long: what is done, and for how long, on a line of standard error that goes away again."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TextIO

from trionat.cli.output import FLUSH_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Generator

_BEGINS_AFTER: Final = 1.0
_INTERVAL: Final = 1.0

_CLEAR: Final = "\r\x1b[K"


@contextmanager
def progress(what: str) -> Generator[None]:
    """Tell what is being done while the block runs, once a second, from the second second on; only where standard error is a terminal.

    A thread tells: a terminal that takes nothing does not hold the block up, and its end for `FLUSH_TIMEOUT` at most.
    """
    stream: TextIO | None = sys.stderr
    if stream is None or stream.closed or not stream.isatty():
        yield
        return
    done = threading.Event()
    thread = threading.Thread(
        target=_tell, args=(stream, what, done), name="trionat-progress", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(FLUSH_TIMEOUT)


def _tell(stream: TextIO, what: str, done: threading.Event) -> None:
    began = time.monotonic()
    if done.wait(_BEGINS_AFTER):
        return
    try:
        while True:
            stream.write(f"{_CLEAR}{what} ... {time.monotonic() - began:.0f} s")
            stream.flush()
            if done.wait(_INTERVAL):
                break
        stream.write(_CLEAR)
        stream.flush()
    except (OSError, ValueError):  # it is gone; nobody looks any more
        return
