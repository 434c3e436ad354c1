"""Log records: how modules write them, and where a program of ours puts them.

A module writes `LOG = get_logger(__name__)` and then `LOG.info("visitor came", visitor=peer)`: the event is a constant text, and
whatever varies is a keyword. Values are rendered later and in another thread, so pass what does not change. Keys that every
record of a task and its children should carry are bound with `bind_context(session=3)`.

Used as a library, trionat configures nothing: records go to the standard library's `logging` under `trionat.*`. A program
wraps its life in `log_to`, which takes rendering and writing off the Trio thread: a bounded queue, and a thread that writes.
Neither a stuck terminal nor a full disk stops anything; what is lost is counted and told.

No output ever has a ticket or a password in it (`record.mask_secrets`), and what a peer sent cannot forge a line or drive the terminal: control
characters come out escaped.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TextIO

from trionat.log.logger import Logger, bind_context, get_logger, unbind_context
from trionat.log.record import escape
from trionat.log.writer import Enqueue, LogStatistics, Pipe, RotatingFile, Sink, Terminal, Writer

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

__all__ = [
    "LogStatistics",
    "Logger",
    "bind_context",
    "escape",
    "get_logger",
    "log_to",
    "set_level",
    "unbind_context",
]

FLUSH_TIMEOUT: Final = 2.0
"""Seconds that leaving `log_to` waits for what is queued: a stuck terminal must not keep the program from ending."""


def set_level(level: int | str) -> None:
    """Have the records of this process count from another level on, in the block of `log_to`."""
    root, ours = logging.getLogger(), logging.getLogger("trionat")
    ours.setLevel(level)
    root.setLevel(max(ours.level, logging.WARNING))


@contextmanager
def log_to(
    *,
    terminal: TextIO | None,
    filename: Path | None,
    descriptor: int | None = None,
    json_terminal: bool = False,
    level: int | str = logging.INFO,
    terminal_level: int = logging.NOTSET,
) -> Generator[LogStatistics]:
    """Write the records of this process to a terminal and to a file while the block runs.

    trionat's records count from `level` on, those of other libraries from WARNING on (or `level`, where that is higher). A
    call costs the Trio thread about 9 us (CPython 3.11, 5 keys); the rest happens in a thread of its own. When that thread
    falls behind by `QUEUE_RECORDS`, records are dropped, and their number is logged as soon as there is room again.

    Args:
        terminal: takes one line a record, for people: local time, level, event, keys; coloured only on a tty without
            NO_COLOR. It is left open.
        filename: takes one JSON object a line: `time` (ISO 8601, UTC, milliseconds), `level`, `logger`, `event`, the keys
            and `exception`. Rotates at 10 MiB and keeps 5 old files. A file that cannot be opened or written is no error: the
            terminal is told, at most once a minute, and every record tries again.
        descriptor: what `filename` has been opened with, non-blocking, where it is a pipe or a device. It is not opened again, does not
            rotate, and is closed here. A pipe that is full for a second loses records until somebody reads it.
        json_terminal: gives the terminal the JSON lines as well, for containers.
        level: a level of `logging`, by number or by name.
        terminal_level: the terminal takes records from this one on, whatever the file takes.

    Error handling:
        Failed writes are counted and swallowed. At the end of the block all that is queued is written, for at most 2 s.
    """
    root, ours = logging.getLogger(), logging.getLogger("trionat")
    levels = root.level, ours.level
    set_level(level.upper() if isinstance(level, str) else level)
    statistics = LogStatistics()
    sinks: list[Sink] = []
    if terminal is not None:
        sinks.append(Terminal(terminal, as_json=json_terminal, level=terminal_level))
    if filename is not None:
        sinks.append(RotatingFile(filename) if descriptor is None else Pipe(filename, descriptor))
    writer = Writer(sinks, statistics)
    handler = Enqueue(writer.records, statistics)
    root.addHandler(handler)
    writer.start()
    try:
        yield statistics
    finally:
        root.removeHandler(handler)
        handler.close()
        root.setLevel(levels[0])
        ours.setLevel(levels[1])
        writer.stop(FLUSH_TIMEOUT)
