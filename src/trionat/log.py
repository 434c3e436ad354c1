"""Log records: how modules write them, and where a program of ours puts them.

A module writes `LOG = get_logger(__name__)` and then `LOG.info("visitor came", visitor=peer)`: the event is a constant text, and
whatever varies is a keyword. Values are rendered later and in another thread, so pass what does not change. Keys that every
record of a task and its children should carry are bound with `structlog.contextvars.bound_contextvars(session=3)`.

Used as a library, trionat configures nothing: records go to the standard library's `logging` under `trionat.*`. A program
wraps its life in `log_to`, which takes rendering and writing off the Trio thread: a bounded queue, and a thread that writes.
Neither a stuck terminal nor a full disk stops anything; what is lost is counted and told.

No output ever has a ticket or a password in it (`_mask`), and what a peer sent cannot forge a line or drive the terminal: control
characters come out escaped.
"""

from __future__ import annotations

import copy
import datetime as dt
import json
import logging
import logging.handlers
import os
import queue
import re
import sys
import threading
import time
import traceback
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO, TypeAlias, cast

import attrs
import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from structlog.typing import EventDict

QUEUE_RECORDS: Final = 8192
"""Records that may wait for the writing thread; at about 1 KiB each that is 8 MiB. Chosen, not measured."""
FILE_BYTES: Final = 10 * 1024 * 1024
FILE_BACKUPS: Final = 5
FLUSH_TIMEOUT: Final = 2.0
"""Seconds that leaving `log_to` waits for what is queued: a stuck terminal must not keep the program from ending."""
COMPLAINT_INTERVAL: Final = 60.0
"""Seconds between two complaints about a full disk or the like."""
TEXT_CHARACTERS: Final = 2000
"""Longer texts are cut: what a peer sends must not fill the memory by way of the queue. Chosen, not measured."""

_MASK: Final = "********"
_SECRET_KEYS: Final = ("password", "ticket", "token", "secret")
_TICKET: Final = re.compile(r"tn1_[\w-]+")
_COLOURS: Final = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "31;1"}


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module; `name` is its `__name__`.

    Everything but the event is passed by keyword. A call never blocks and never raises. `exc_info` is an exception, or True.
    """
    # Wrapped one by one instead of `structlog.configure`: the host's own use of structlog stays as it is.
    logger = structlog.wrap_logger(
        logging.getLogger(name),
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            _mask,
            _hand_over,
        ],
    )
    return cast("structlog.stdlib.BoundLogger", logger.bind())


@attrs.define(eq=False)
class LogStatistics:
    """What became of the records; read by whoever wants to know, written by this module.

    `dropped` counts records that found the queue full, `failed` those that a terminal or a file did not take.
    """

    written: int = 0
    dropped: int = 0
    failed: int = 0


@contextmanager
def log_to(
    *,
    terminal: TextIO | None,
    filename: Path | None,
    json_terminal: bool = False,
    level: int | str = logging.INFO,
) -> Generator[LogStatistics]:
    """Write the records of this process to a terminal and to a file while the block runs.

    trionat's records count from `level` on, those of other libraries from WARNING on (or `level`, where that is higher). A
    call costs the Trio thread 10 to 25 us (CPython 3.11, 5 keys); the rest happens in a thread of its own. When that thread
    falls behind by `QUEUE_RECORDS`, records are dropped, and their number is logged as soon as there is room again.

    Args:
        terminal: takes one line a record, for people: local time, level, event, keys; coloured only on a tty without
            NO_COLOR. It is left open.
        filename: takes one JSON object a line: `time` (ISO 8601, UTC, milliseconds), `level`, `logger`, `event`, the keys
            and `exception`. Rotates at 10 MiB and keeps 5 old files. A file that cannot be opened or written is no error: the
            terminal is told, at most once a minute, and every record tries again.
        json_terminal: gives the terminal the JSON lines as well, for containers.
        level: a level of `logging`, by number or by name.

    Error handling:
        Failed writes are counted and swallowed. At the end of the block all that is queued is written, for at most 2 s.
    """
    root, ours = logging.getLogger(), logging.getLogger("trionat")
    levels = root.level, ours.level
    ours.setLevel(level.upper() if isinstance(level, str) else level)
    root.setLevel(max(ours.level, logging.WARNING))
    statistics = LogStatistics()
    sinks: list[_Sink] = []
    if terminal is not None:
        sinks.append(_Terminal(terminal, render_json if json_terminal else _renderer_for(terminal)))
    if filename is not None:
        sinks.append(_RotatingFile(filename))
    writer = _Writer(sinks, statistics)
    handler = _Enqueue(writer.records, statistics)
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


class Event(dict[str, Any]):
    """What a module logged: `event` and the keys. It is the `msg` of the `logging` record.

    Rendered as text only when somebody asks for the text, which is where a library user's handlers get a readable message.
    """

    def __str__(self) -> str:
        keys = " ".join(f"{key}={_plain(value)}" for key, value in self.items() if key != "event")
        return _TICKET.sub(f"tn1_{_MASK}", f"{_escape(str(self.get('event')))} {keys}".rstrip())


def render_json(record: logging.LogRecord) -> str:
    """Return one line: a JSON object in ASCII, so that no reader needs to know an encoding."""
    created = dt.datetime.fromtimestamp(record.created, dt.UTC)
    event = cast("Event", record.msg)
    frame = {
        "time": created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": event.get("event"),
    }
    # The frame twice: it comes first in the line, and no key can take its place.
    line = {**frame, **event, **frame}
    if record.exc_info:
        line["exception"] = _traceback(record)
    return _TICKET.sub(f"tn1_{_MASK}", json.dumps(line, default=_text, skipkeys=True))


def render_text(record: logging.LogRecord, *, colours: bool = False) -> str:
    """Return one line for people, and under it the traceback, indented so that no line of it can pass for a record."""
    clock = dt.datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
    level = record.levelname.lower()
    if colours:
        clock = f"\x1b[2m{clock}\x1b[0m"
        level = f"\x1b[{_COLOURS.get(level, '0')}m{level}\x1b[0m" + " " * (7 - len(level))
    origin = "" if record.name.startswith("trionat") else f"{_escape(record.name)}: "
    line = f"{clock} {level:7} {origin}{record.msg}"
    if record.exc_info:
        line += "".join(f"\n  | {_escape(part)}" for part in _traceback(record).splitlines())
    return _TICKET.sub(f"tn1_{_MASK}", line)


def _renderer_for(stream: TextIO) -> Callable[[logging.LogRecord], str]:
    if stream.isatty() and not os.environ.get("NO_COLOR"):
        return lambda record: render_text(record, colours=True)
    return render_text


def _mask(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Hide secrets, by key and by look, and cut long texts. The renderers look once more, inside nested values."""
    for key, value in event.items():
        if key.lower().endswith(_SECRET_KEYS):
            event[key] = _MASK
        elif isinstance(value, str):
            if "tn1_" in value:
                value = _TICKET.sub(f"tn1_{_MASK}", value)  # noqa: PLW2901 (the same value, made fit)
            event[key] = value if len(value) <= TEXT_CHARACTERS else value[:TEXT_CHARACTERS] + "..."
    return event


def _hand_over(
    _logger: object, _method: str, event: EventDict
) -> tuple[tuple[Event], dict[str, Any]]:
    """Turn what structlog collected into the arguments of a `logging` call."""
    exc_info = event.pop("exc_info", None)
    return (Event(event),), {"exc_info": exc_info}


def _plain(value: object) -> str:
    """Return a value as it stands in a line of text: bare where that is unmistakable, else quoted."""
    text = _text(value)
    bare = text.isprintable() and text and not any(mark in text for mark in " =\"'")
    return text if bare else repr(text)


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 (a broken __str__ must not cost the record)
        return f"<{type(value).__name__}>"


def _escape(text: str) -> str:
    """Return the text with line ends, escape sequences and direction marks spelt out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _traceback(record: logging.LogRecord) -> str:
    _, error, _ = record.exc_info or (None, None, None)
    return "".join(traceback.format_exception(error)).rstrip("\n") if error else ""


_Records: TypeAlias = "queue.Queue[logging.LogRecord | None]"  # None: the end


class _Enqueue(logging.handlers.QueueHandler):
    """The only handler on the Trio thread: it makes the record fit to leave, and leaves it."""

    def __init__(self, records: _Records, statistics: LogStatistics) -> None:
        super().__init__(records)
        self._statistics = statistics

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Bring another library's record into our form, with the context of the caller; the writer has its own."""
        if isinstance(record.msg, Event):
            return record
        ours = copy.copy(record)  # other handlers get the original
        event = {"event": record.getMessage(), **structlog.contextvars.get_contextvars()}
        ours.msg, ours.args = Event(_mask(None, "", event)), None
        return ours

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self._statistics.dropped += 1  # under the handler's lock

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        self._statistics.failed += 1


class _Sink(Protocol):
    place: str

    def emit(self, record: logging.LogRecord) -> None: ...
    def close(self) -> None: ...


class _Terminal:
    """Lines to a stream, straight to its file descriptor where it has one.

    Going round the stream's buffer leaves its lock free: a thread stuck in a write to a paused terminal would hold it, and the
    interpreter, which flushes the standard streams when it ends, would wait for ever.
    """

    place = "terminal"

    def __init__(self, stream: TextIO, render: Callable[[logging.LogRecord], str]) -> None:
        self._stream = stream
        self._render = render
        self._fd: int | None = None
        if os.name == "posix":  # a Windows console wants its text through the stream
            with suppress(OSError, ValueError):  # a stream in memory has none
                self._fd = os.dup(stream.fileno())

    def emit(self, record: logging.LogRecord) -> None:
        line = self._render(record) + "\n"
        if self._fd is None:
            self._stream.write(line)
            self._stream.flush()
            return
        data = line.encode(self._stream.encoding or "utf-8", "backslashreplace")
        while data:
            data = data[os.write(self._fd, data) :]

    def close(self) -> None:
        """Give up the descriptor; the stream belongs to the caller."""
        if self._fd is not None:
            os.close(self._fd)


class _RotatingFile(logging.handlers.RotatingFileHandler):
    """JSON lines in a file, opened with the first record. Used by one thread, so without the lock of `handle`."""

    def __init__(self, filename: Path) -> None:
        super().__init__(
            filename, maxBytes=FILE_BYTES, backupCount=FILE_BACKUPS, encoding="ascii", delay=True
        )
        self.place = str(filename)

    def format(self, record: logging.LogRecord) -> str:
        return render_json(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Let the error out to the writer, which counts and tells it; `logging` would print a traceback."""
        error = sys.exc_info()[1]
        if error is not None:
            raise error


class _Writer:
    """The thread that renders and writes. A daemon, since nothing can wake it from a write that blocks."""

    def __init__(self, sinks: Sequence[_Sink], statistics: LogStatistics) -> None:
        self.records: _Records = queue.Queue(QUEUE_RECORDS)
        self._sinks = sinks
        self._statistics = statistics
        self._told_dropped = 0
        self._next_complaint = 0.0
        self._thread = threading.Thread(target=self._run, name="trionat-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Write what is queued and end, within `timeout` seconds; sinks of a thread that is stuck are left alone."""
        deadline = time.monotonic() + timeout
        with suppress(queue.Full):
            self.records.put(None, timeout=timeout)
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while (record := self.records.get()) is not None:
            self._write(record)
            if self.records.qsize() < QUEUE_RECORDS // 2:  # a busy log is never empty
                self._tell_dropped()
        self._tell_dropped()
        for sink in self._sinks:
            with suppress(
                OSError, ValueError
            ):  # the rest in a file's buffer may not fit on the disk
                sink.close()

    def _write(self, record: logging.LogRecord) -> None:
        failed = False
        for sink in self._sinks:
            try:
                sink.emit(record)
            except Exception as error:  # noqa: BLE001 (a disk, or some value's __str__: the log goes on)
                failed = True
                self._complain(sink.place, error)
        self._statistics.written += not failed
        self._statistics.failed += failed

    def _complain(self, place: str, error: Exception) -> None:
        if time.monotonic() < self._next_complaint:
            return
        self._next_complaint = time.monotonic() + COMPLAINT_INTERVAL
        complaint = _own_record("log records cannot be written", to=place, error=error)
        for sink in self._sinks:
            with suppress(Exception):  # one of them is the one that fails
                sink.emit(complaint)

    def _tell_dropped(self) -> None:
        if (dropped := self._statistics.dropped) > self._told_dropped:
            number, self._told_dropped = dropped - self._told_dropped, dropped
            self._write(
                _own_record("log records were dropped, the log was too slow", number=number)
            )


def _own_record(event: str, **values: object) -> logging.LogRecord:
    message = Event(event=event, **values)
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, None, None)
