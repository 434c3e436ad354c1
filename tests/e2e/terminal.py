"""A terminal with trionat in it, as a person has one: an emulator tells what it shows."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import termios
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import pyte
import trio

from tests.e2e import services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


class _Emulator(pyte.Screen):
    """As xterm: what the other page shows is not there when that is left."""

    def __init__(self, columns: int, lines: int) -> None:
        super().__init__(columns, lines)
        self.other_page = False

    def set_mode(self, *modes: int, **options: bool) -> None:
        super().set_mode(*modes, **options)
        if 1049 in modes:
            self.other_page = True

    def reset_mode(self, *modes: int, **options: bool) -> None:
        super().reset_mode(*modes, **options)
        if 1049 in modes:
            self.other_page = False
            self.erase_in_display(2)
            self.cursor_position()


@attrs.define(eq=False)
class Terminal:
    """`descriptor` is its other end, `child` the process in it; `said` is all that it was sent."""

    descriptor: int
    child: int
    emulator: _Emulator
    said: bytearray = attrs.field(factory=bytearray)
    code: int | None = None
    _stream: pyte.ByteStream = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._stream = pyte.ByteStream(self.emulator)

    @property
    def text(self) -> str:
        """What is on it."""
        return "\n".join(line.rstrip() for line in self.emulator.display)

    def is_raw(self) -> bool:
        """Whether keys come one by one."""
        return not termios.tcgetattr(self.descriptor)[3] & termios.ICANON

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.descriptor, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Change its size, as who drags a window."""
        self.emulator.resize(lines, columns)
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, size)

    async def shows(self, what: str | Callable[[str], bool], *, within: float = 20.0) -> str:
        """Wait until it shows a text, or what a condition wants of all that it shows; return that."""
        try:
            with trio.fail_after(within):
                while not (what in self.text if isinstance(what, str) else what(self.text)):
                    await self._read()
        except trio.TooSlowError:
            raise AssertionError(f"not {what!r}, but:\n{self.text}") from None
        return self.text

    async def read_for(self, seconds: float) -> None:
        """Read what is shown for so long."""
        with trio.move_on_after(seconds):
            while self.code is None:
                await self._read()

    async def _read(self) -> None:
        await trio.lowlevel.wait_readable(self.descriptor)
        try:
            data = os.read(self.descriptor, 65536)
        except OSError:  # the process has ended
            data = b""
        if not data:
            raise AssertionError(f"it has ended:\n{self.text}")
        self.said += data
        self._stream.feed(data)

    async def wait(self, *, within: float = 20.0) -> int:
        """Return the exit code; what is still shown is read before."""
        with trio.fail_after(within):
            while self.code is None:
                pid, status = os.waitpid(self.child, os.WNOHANG)  # noqa: ASYNC222 (it does not wait)
                if pid:
                    self.code = os.waitstatus_to_exitcode(status)
                with trio.move_on_after(0.05):
                    try:
                        await self._read()
                    except AssertionError:
                        await trio.sleep(0.05)
        return self.code


@asynccontextmanager
async def terminal(
    *arguments: str | Path, columns: int = 80, lines: int = 24, **environ: str
) -> AsyncIterator[Terminal]:
    """Run trionat in a terminal of that size."""
    command = services.trionat_command(*arguments)
    there = {
        name: value
        for name, value in services.trionat_environ().items()
        if name not in ("NO_COLOR", "LC_ALL", "PYTHONIOENCODING", "PYTHONUTF8")
    }
    there |= {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **environ}
    child, descriptor = pty.fork()
    if not child:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        os.execve(command[0], command, there)
    found = Terminal(descriptor, child, _Emulator(columns, lines))
    try:
        yield found
    finally:
        if found.code is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)  # noqa: ASYNC222 (it ends at once)
        os.close(descriptor)
