"""Everything that a command prints goes out here, and nothing that is printed can hold up or end the program.

Characters that an output's encoding lacks are escaped. A short command writes at once: where nobody reads any more (`| head`) it ends
quietly, and where there is no room (a full disk) with one line and its exit code. A program that serves writes in a
thread of its own, behind a bounded queue: lines that find it full are dropped, and their number is logged. Standard error has
complaints, of which the last ones come when a program ends: a thread writes them, and is waited for `FLUSH_TIMEOUT` at most.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NoReturn, TextIO

import attrs
import typer

from trionat.log import get_logger
from trionat.system import wait_for_room

if TYPE_CHECKING:
    from collections.abc import Generator

log = get_logger(__name__)

QUEUE_LINES: Final = 1024
"""Texts that wait for a slow reader. Chosen, not measured: an hour of a client's events."""

FLUSH_TIMEOUT: Final = 2.0
"""Seconds for which the end of a program waits for what is queued."""

NO_ROOM: Final = 3
"""The exit code where output cannot be written; `ExitCode.STARTUP` is the same for users."""


def say(text: str = "", *, err: bool = False, end: str = "\n") -> None:
    """Print on standard output (or standard error). Never waits while `printing_aside` is in force.

    On standard error it never waits longer than `FLUSH_TIMEOUT`; where that was too short, what comes after goes nowhere.

    Raises:
        typer.Exit: In a short command: nobody reads standard output, or it takes nothing.
    """
    if _printer is not None and not err:
        _printer.put(text + end)
        return
    stream: TextIO | None = sys.stderr if err else sys.stdout
    if stream is None:  # it was closed before the start (`>&-`)
        return
    if err:
        _complain(stream, text + end)
        return
    try:
        _write(stream, text + end)
    except (OSError, ValueError) as error:  # ValueError: it is closed
        _abandon(stream)
        _end(error)


def _complain(stream: TextIO, text: str) -> None:
    """Write in a thread, a daemon, since nothing can wake it from a write that blocks."""

    def write() -> None:
        try:
            _write_past_buffer(stream, text)
        except (OSError, ValueError):
            _abandon(stream)

    thread = threading.Thread(target=write, name="trionat-complaint", daemon=True)
    thread.start()
    thread.join(FLUSH_TIMEOUT)
    if thread.is_alive():
        _abandon(stream)


def _write(stream: TextIO, text: str) -> None:
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def _write_past_buffer(stream: TextIO, text: str) -> None:
    """Round the stream's buffer where it has a descriptor: a thread that is stuck there would hold its lock for ever."""
    data = text.encode(stream.encoding or "utf-8", "backslashreplace")
    descriptor: int | None = None
    if os.name == "posix":  # a Windows console wants its text through the stream
        with suppress(OSError, ValueError):  # a stream in memory has none
            descriptor = stream.fileno()
    if descriptor is None:
        _write(stream, text)
        return
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # somebody has made it non-blocking, for all who share it
            wait_for_room(descriptor)


def _abandon(stream: TextIO) -> None:
    """Let what is still in the stream's buffer go nowhere: else the same error comes again when the interpreter ends."""
    with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:  # noqa: PTH123 - for its descriptor
        os.dup2(nowhere.fileno(), stream.fileno())


def _end(error: Exception) -> NoReturn:
    if isinstance(error, BrokenPipeError):
        raise typer.Exit(0) from None
    reason = error.strerror if isinstance(error, OSError) else str(error)
    say(f"trionat: standard output: {reason}", err=True)
    raise typer.Exit(NO_ROOM) from None


@attrs.define(eq=False)
class _Printer:
    """The thread that writes for a program that serves. A daemon, since nothing can wake it from a write that blocks."""

    stream: TextIO
    _texts: queue.SimpleQueue[str | None] = attrs.field(
        init=False, factory=lambda: queue.SimpleQueue()
    )
    _thread: threading.Thread = attrs.field(init=False)
    _dropped: int = attrs.field(init=False, default=0)
    _failed: bool = attrs.field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="trionat-output", daemon=True)
        self._thread.start()

    def put(self, text: str) -> None:
        """Print soon, or drop it."""
        if self._texts.qsize() >= QUEUE_LINES:
            if not self._dropped:
                log.warning("standard output is not read: what is printed is dropped")
            self._dropped += 1
            return
        if self._dropped:
            log.warning("standard output is read again", dropped=self._dropped)
            self._dropped = 0
        self._texts.put(text)

    def stop(self) -> None:
        """Write what is queued, for at most `FLUSH_TIMEOUT`."""
        self._texts.put(None)
        self._thread.join(FLUSH_TIMEOUT)
        if self._dropped:
            log.warning("standard output was not read", dropped=self._dropped)

    def _run(self) -> None:
        while (text := self._texts.get()) is not None:
            if self._failed:
                continue
            try:
                _write_past_buffer(self.stream, text)
            except Exception as error:  # noqa: BLE001 (whatever an output is: the program goes on)
                self._failed = True
                reason = getattr(error, "strerror", None) or str(error)
                log.warning("standard output cannot be written any more", error=reason)


_printer: _Printer | None = None


@contextmanager
def printing_aside(instead: TextIO | None = None) -> Generator[None]:
    """Print in a thread while the block runs, so that nothing in it waits for a reader. At the end what is queued is written.

    `instead` is where that goes, if not to standard output.
    """
    global _printer  # noqa: PLW0603 - a process has one standard output
    stdout: TextIO | None = sys.stdout if instead is None else instead
    if stdout is None:  # it was closed before the start (`>&-`)
        yield
        return
    with suppress(OSError, ValueError):
        stdout.flush()
    _printer = _Printer(stdout)
    try:
        yield
    finally:
        printer, _printer = _printer, None
        printer.stop()
