"""The thread that draws the screen. Whoever has something new to show leaves it here and goes on, however long the terminal takes."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

V = TypeVar("V")

_ENTER: Final = (
    "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"  # another page, no cursor, no line breaks of its own
)
_LEAVE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_FALLBACK_SIZE: Final = (80, 24)

CLOSE_TIMEOUT: Final = 2.0
"""Seconds for which the end of a program waits for the terminal."""


@attrs.define(eq=False)
class Painter(Generic[V]):
    """Draws the latest view on the terminal behind a descriptor, which it does not own; views that come too fast are never drawn.

    `draw` makes a view into lines for so many columns and lines, in the painter's thread: a daemon, since nothing can wake it from a write that blocks.
    Only lines that have changed are written. Nothing is shown before `resume`.
    """

    descriptor: int
    draw: Callable[[V, int, int], list[str]]
    on_shown: Callable[[V], None] = lambda _: None
    """Called in the thread with each view that is on the terminal."""
    problem: Exception | None = attrs.field(init=False, default=None)
    """Why nothing is drawn any more."""
    _view: V | None = attrs.field(init=False, default=None)
    _extra: deque[str] = attrs.field(init=False, factory=lambda: deque(maxlen=4))
    _wake: threading.Event = attrs.field(init=False, factory=threading.Event)
    _thread: threading.Thread = attrs.field(init=False)
    _wanted: bool = attrs.field(init=False, default=False)
    _is_shown: bool = attrs.field(init=False, default=False)
    _afresh: bool = attrs.field(init=False, default=False)
    _last: str | None = attrs.field(init=False, default=None)
    _painted: list[str] = attrs.field(init=False, factory=lambda: [])

    def __attrs_post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="trionat-screen", daemon=True)
        self._thread.start()

    @property
    def is_away(self) -> bool:
        """Whether the terminal shows what was there before."""
        return not self._is_shown

    def show(self, view: V) -> None:
        """Draw this soon, unless a newer one comes first."""
        self._view = view
        self._wake.set()

    def send(self, sequence: str) -> None:
        """Send the terminal something else, a request to it for example."""
        self._extra.append(sequence)
        self._wake.set()

    def repaint(self) -> None:
        """Draw all of it anew: the terminal has another size, or has forgotten what it has shown."""
        self._afresh = True
        self._wake.set()

    def resume(self) -> None:
        """Take the terminal."""
        self._wanted = self._afresh = True
        self._wake.set()

    def pause(self) -> None:
        """Give the terminal back for a while; `is_away` tells when that is done."""
        self._wanted = False
        self._wake.set()

    def close(self, last: str) -> bool:
        """Give the terminal back, print these last lines on it, and end the thread; tell whether the terminal took that within `CLOSE_TIMEOUT`."""
        self._wanted = False
        self._last = last
        self._wake.set()
        return self.has_ended(CLOSE_TIMEOUT)

    def has_ended(self, within: float) -> bool:
        """Wait at most so many seconds for the thread to end after `close`, and tell whether it has."""
        self._thread.join(within)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._last is None:
                self._wake.wait()
                self._wake.clear()
                self._turn()
            self._wanted = False
            self._turn()
            self._write(self._last)
        except Exception as error:  # noqa: BLE001 (whatever a terminal is: the program goes on)
            self.problem = error
            with suppress(OSError):
                if self._is_shown:
                    self._write(_LEAVE)
            self._is_shown = False

    def _turn(self) -> None:
        if self._is_shown != self._wanted:
            self._write(_ENTER if self._wanted else _LEAVE)
            self._is_shown = self._wanted
        view = self._view
        if not self._is_shown or view is None:
            return
        while self._extra:
            self._write(self._extra.popleft())
        columns, lines = self._size()
        drawn = self.draw(view, columns, lines)[:lines]
        before = self._painted
        if self._afresh or len(before) != len(drawn):
            self._afresh = False
            before = []
        self._write(_difference(before, drawn))
        self._painted = drawn
        self.on_shown(view)

    def _size(self) -> tuple[int, int]:
        with suppress(OSError):
            columns, lines = os.get_terminal_size(self.descriptor)
            if columns > 0 and lines > 0:
                return columns, lines
        return _FALLBACK_SIZE

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        while data:
            try:
                data = data[os.write(self.descriptor, data) :]
            except BlockingIOError:  # somebody has made it non-blocking, for all who share it
                select.select([], [self.descriptor], [])


def _difference(before: list[str], after: list[str]) -> str:
    """Return what makes the one into the other; from nothing, all of it on an empty page."""
    parts: list[str] = [] if before else ["\x1b[2J"]
    for number, line in enumerate(after):
        if number >= len(before) or before[number] != line:
            # Erased first: behind a full line, tmux and xterm have the cursor still on its last cell.
            parts.append(f"\x1b[{number + 1};1H\x1b[K{line}\x1b[0m")
    return "".join(parts)


if sys.platform != "win32":
    import termios

    def start_again(descriptor: int) -> None:
        """Let a terminal that Ctrl-S has stopped go on."""
        with suppress(termios.error):
            # Only who has stopped it can start it, so we stop it as well.
            termios.tcflow(descriptor, termios.TCOOFF)
            termios.tcflow(descriptor, termios.TCOON)
