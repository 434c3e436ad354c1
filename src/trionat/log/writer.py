"""Where log records go: a bounded queue, and a thread that renders and writes them.

Neither a stuck terminal nor a full disk stops anything; what is lost is counted and told. Owns the thread and the descriptors.
"""

from __future__ import annotations

import copy
import errno
import io
import logging
import os
import queue
import stat
import threading
import time
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TextIO, TypeAlias

import attrs

from trionat.log.logger import context
from trionat.log.record import Event, mask_secrets, render_json, render_text
from trionat.system import wait_for_room

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

QUEUE_RECORDS: Final = 8192
"""Records that may wait for the writing thread; at about 1 KiB each that is 8 MiB. Chosen, not measured."""
FILE_BYTES: Final = 10 * 1024 * 1024
FILE_BACKUPS: Final = 5
BATCH_RECORDS: Final = 256
LINGER: Final = 0.02
"""Seconds for which the writing thread gathers records; what a killed process has not written is so much at most. A thread that wakes
for each record costs the Trio thread several times what rendering costs, since it takes the interpreter's lock away at every system call:
measured, a third of the new connections a second."""
_LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks at the log file's name."""
_ROOM_TIMEOUT: Final = 1.0
"""Seconds for which a pipe may be full before a record is lost. Chosen."""
COMPLAINT_INTERVAL: Final = 60.0
"""Seconds between two complaints about a full disk or the like."""

Records: TypeAlias = "queue.SimpleQueue[logging.LogRecord | None]"  # None: the end


@attrs.define(eq=False)
class LogStatistics:
    """What became of the records; read by whoever wants to know, written by this module.

    `dropped` counts records that found the queue full, `failed` those that a terminal or a file did not take.
    """

    written: int = 0
    dropped: int = 0
    failed: int = 0


class Enqueue(logging.Handler):
    """The only handler on the Trio thread: it makes the record fit to leave, and leaves it."""

    def __init__(self, records: Records, statistics: LogStatistics) -> None:
        super().__init__()
        self._records = records
        self._statistics = statistics

    def emit(self, record: logging.LogRecord) -> None:
        """Leave the record, or count it as dropped; never wait."""
        try:
            ours = self._prepare(record)
        except Exception:  # noqa: BLE001 - whoever logs is not to hear of it
            self.handleError(record)
            return
        if self._records.qsize() < QUEUE_RECORDS:
            self._records.put(ours)
        else:
            self._statistics.dropped += 1  # under the handler's lock

    def _prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Bring another library's record into our form, with the context of the caller; the writer has its own."""
        if isinstance(record.msg, Event):
            return record
        ours = copy.copy(record)  # other handlers get the original
        event = Event({**context(), "event": record.getMessage()})
        mask_secrets(event)
        ours.msg, ours.args = event, None
        return ours

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Count a record that could not even be put together; `logging` would print a traceback."""
        self._statistics.failed += 1


class Sink(Protocol):
    """Where lines go; `place` is its name in a complaint."""

    place: str

    def emit(self, records: Sequence[logging.LogRecord]) -> Sequence[Exception]:
        """Render and write records; return an error for each that could not be written. May block."""
        ...

    def close(self) -> None:
        """Give up what was opened here."""


class Terminal:
    """Lines to a stream, straight to its file descriptor where it has one.

    Going round the stream's buffer leaves its lock free: a thread stuck in a write to a paused terminal would hold it, and the
    interpreter, which flushes the standard streams when it ends, would wait for ever.
    """

    place = "terminal"

    def __init__(self, stream: TextIO, *, as_json: bool, level: int = logging.NOTSET) -> None:
        self._stream = stream
        self._level = level
        self._render: Callable[[logging.LogRecord], str] = render_json if as_json else render_text
        if not as_json and stream.isatty() and not os.environ.get("NO_COLOR"):
            self._render = partial(render_text, colours=True)
        self._fd: int | None = None
        if os.name == "posix":  # a Windows console wants its text through the stream
            with suppress(OSError, ValueError):  # a stream in memory has none
                self._fd = os.dup(stream.fileno())

    def emit(self, records: Sequence[logging.LogRecord]) -> Sequence[Exception]:
        """Write the lines at once, whole, in one call: there is no buffer."""
        lines: list[str] = []
        errors: list[Exception] = []
        for record in records:
            if record.levelno < self._level:
                continue
            try:
                lines.append(f"{self._render(record)}\n")
            except Exception as error:  # noqa: BLE001 (some value's __str__: the log goes on)
                errors.append(error)
        try:
            self._write("".join(lines))
        except Exception as error:  # noqa: BLE001 (whatever a terminal is)
            errors += [error] * len(lines)
        return errors

    def _write(self, lines: str) -> None:
        if self._fd is None:
            self._stream.write(lines)
            self._stream.flush()
            return
        data = lines.encode(self._stream.encoding or "utf-8", "backslashreplace")
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # somebody has made it non-blocking, for all who share it
                wait_for_room(self._fd)

    def close(self) -> None:
        """Give up the descriptor; the stream belongs to the caller."""
        if self._fd is not None:
            os.close(self._fd)


class Pipe:
    """JSON lines into a pipe or a device that is open already: another opening could wait for ever, and a size it has not.

    A pipe that nobody reads holds up the other sinks for `_ROOM_TIMEOUT` once; then its records are lost until there is room.
    """

    def __init__(self, filename: Path, descriptor: int) -> None:
        self.place = str(filename)
        self._descriptor = descriptor
        self._rest = b""
        self._patience = _ROOM_TIMEOUT

    def emit(self, records: Sequence[logging.LogRecord]) -> Sequence[Exception]:
        """Write line by line, as far as there is room."""
        errors: list[Exception] = []
        for record in records:
            try:
                self._write_line(f"{render_json(record)}\n".encode("ascii"))
            except Exception as error:  # noqa: BLE001 (whatever is behind it, or some value's __str__: the log goes on)
                errors.append(error)
        return errors

    def _write_line(self, line: bytes) -> None:
        """Write a line, or nothing of it where there is no room. The end of one that was cut off there comes first."""
        rest, self._rest = self._rest, b""  # of no use to another reader
        if rest := self._write(rest):
            self._rest = rest
        elif (rest := self._write(line)) != line:
            self._rest = rest
            return
        raise BlockingIOError(errno.EAGAIN, "nobody reads it")

    def _write(self, data: bytes) -> bytes:
        """Return what there was no room for."""
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                if not wait_for_room(self._descriptor, self._patience):
                    self._patience = 0.0
                    return data
            else:
                self._patience = _ROOM_TIMEOUT
        return data

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)


class RotatingFile:
    """JSON lines in a file, opened with the first record.

    What is half written because the disk is full is completed before anything else, so that no line of the file is broken.
    """

    def __init__(self, filename: Path) -> None:
        self.place = str(filename)
        self._filename = filename.absolute()
        self._file: io.FileIO | None = None
        self._looked_at = float("-inf")
        self._size = 0
        self._is_regular = True  # has a size and can be renamed: a pipe or a device does not rotate
        self._mode = (
            0o666  # as the umask lets it; a new one is no more open to others than the one before
        )
        self._rest = b""  # of the line that is half written

    def emit(self, records: Sequence[logging.LogRecord]) -> Sequence[Exception]:
        """Write the lines in as few calls as there are files for them: each call takes the interpreter's lock away from the Trio thread."""
        lines: list[bytes] = []
        errors: list[Exception] = []
        for record in records:
            try:
                lines.append(f"{render_json(record)}\n".encode("ascii"))
            except Exception as error:  # noqa: BLE001 (some value's __str__: the log goes on)
                errors.append(error)
        try:
            while lines:
                del lines[: self._write(lines)]
        except Exception as error:  # noqa: BLE001 (whatever a disk is)
            errors += [error] * len(lines)
        return errors

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _write(self, lines: Sequence[bytes]) -> int:
        """Write lines, as many as one file takes, into a new one where the first has no room in this one; return how many were begun, at least.

        The disk is asked for the file's name and size once a second, and not for each record.

        Raises:
            OSError: nothing could be written.
        """
        file = self._current()
        count = self._fitting(lines)
        if not count:
            self._rotate()
            file = self._current()
            count = max(1, self._fitting(lines))
        before = len(self._rest)
        data = self._rest + b"".join(lines[:count])
        done = 0
        try:
            while done < len(data):
                done += file.write(data[done:])
        except OSError:
            if not done:
                raise
        self._size += done
        if data[done - 1 : done] == b"\n":
            self._rest = b""
        else:
            self._rest = data[done : data.index(b"\n", done) + 1]
        return data[before : done + len(self._rest)].count(b"\n")

    def _fitting(self, lines: Sequence[bytes]) -> int:
        """Return how many of the lines this file has room for; the first of an empty one always has."""
        if not self._is_regular:
            return len(lines)
        size = self._size
        for count, line in enumerate(lines):
            if size and size + len(line) >= FILE_BYTES:
                return count
            size += len(line)
        return len(lines)

    def _rotate(self) -> None:
        """Rename the file, and those before it; the last of them is replaced."""
        self.close()
        files = [self._filename]
        files += [Path(f"{self._filename}.{number}") for number in range(1, FILE_BACKUPS + 1)]
        for newer, older in reversed(list(pairwise(files))):
            with suppress(FileNotFoundError):
                newer.replace(older)

    def _current(self) -> io.FileIO:
        """Return the open file of our name, which is another one by now where logrotate has renamed it or somebody has deleted it."""
        now = time.monotonic()
        if (
            self._file is not None
            and now - self._looked_at >= _LOOK_INTERVAL
            and not self._is_ours(self._file)
        ):
            with suppress(OSError):
                self.close()
        if self._file is None:
            opener = partial(os.open, mode=self._mode)
            self._file = io.FileIO(str(self._filename), "a", opener=opener)
            found = os.fstat(self._file.fileno())
            self._is_regular = stat.S_ISREG(found.st_mode)
            self._size = found.st_size
            self._mode = stat.S_IMODE(found.st_mode) & 0o666
            self._rest = b""
        if now - self._looked_at >= _LOOK_INTERVAL:
            self._looked_at = now
        return self._file

    def _is_ours(self, file: io.FileIO) -> bool:
        try:
            return os.path.samestat(self._filename.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False


class Writer:
    """The thread that renders and writes. A daemon, since nothing can wake it from a write that blocks."""

    def __init__(self, sinks: Sequence[Sink], statistics: LogStatistics) -> None:
        self.records: Records = queue.SimpleQueue()
        self._sinks = sinks
        self._statistics = statistics
        self._told_dropped = 0
        self._next_complaint = 0.0
        self._thread = threading.Thread(target=self._run, name="trionat-log", daemon=True)

    def start(self) -> None:
        """Start the thread; it closes the sinks when it ends."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Write what is queued and end, within `timeout` seconds; sinks of a thread that is stuck are left alone."""
        self.records.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._write_batch():
            pass
        self._tell_dropped()
        for sink in self._sinks:
            # What is left in a file's buffer may not fit on the disk.
            with suppress(OSError, ValueError):
                sink.close()

    def _write_batch(self) -> bool:
        """Write what has come together; return whether that was the end."""
        records = [self.records.get()]
        if records[0] is not None and self.records.qsize() < BATCH_RECORDS:
            with suppress(
                OSError
            ):  # EINVAL: under libfaketime, when the time of day is set back meanwhile
                time.sleep(LINGER)
        with suppress(queue.Empty):
            while len(records) < BATCH_RECORDS:
                records.append(self.records.get_nowait())
        try:
            self._write([record for record in records if record is not None])
            if self.records.qsize() < QUEUE_RECORDS // 2:  # a busy log is never empty
                self._tell_dropped()
        except Exception as error:  # noqa: BLE001 (a bug in here is told, and does not silence the program)
            self._statistics.failed += len(records)
            with suppress(Exception):
                self._complain("the log", error)
        return None in records  # nobody logs behind the end

    def _write(self, records: Sequence[logging.LogRecord]) -> None:
        failed = 0
        for sink in self._sinks:
            if errors := sink.emit(records):
                self._complain(sink.place, errors[-1])
                failed = max(failed, len(errors))
        self._statistics.written += len(records) - failed
        self._statistics.failed += failed

    def _complain(self, place: str, error: Exception) -> None:
        if time.monotonic() < self._next_complaint:
            return
        self._next_complaint = time.monotonic() + COMPLAINT_INTERVAL
        complaint = _own_record("log records cannot be written", to=place, error=error)
        for sink in self._sinks:
            sink.emit([complaint])  # one of them is the one that fails

    def _tell_dropped(self) -> None:
        if (dropped := self._statistics.dropped) > self._told_dropped:
            number, self._told_dropped = dropped - self._told_dropped, dropped
            self._write(
                [_own_record("log records were dropped, the log was too slow", number=number)]
            )


def _own_record(event: str, **values: object) -> logging.LogRecord:
    message = Event(event=event, **values)
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, None, None)
