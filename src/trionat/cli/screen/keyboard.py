"""The terminal's keys, one by one and without an echo, and its state as it was before."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

assert sys.platform != "win32"  # noqa: S101 - for the checkers of types; see `choice`
import termios  # noqa: E402 - the same

_BYTES: Final = 256

_LOOK_AGAIN: Final = 0.5
"""Seconds after which a program in the background looks whether the terminal is its own again: nothing tells it."""


@attrs.define(eq=False)
class Keyboard:
    """Standard input as keys. Ctrl-C, Ctrl-Z, Ctrl-S and the like stay what they are.

    `take` changes the terminal's state, and `give_back` restores it; both may be called again and again. Only what is in the foreground may do that.
    """

    descriptor: int
    _before: list[Any] | None = attrs.field(init=False, default=None)

    @property
    def is_ours(self) -> bool:
        """Whether we are in the foreground: whoever reads the terminal in the background, or changes it, is stopped."""
        try:
            return os.tcgetpgrp(self.descriptor) == os.getpgrp()
        except OSError:
            return False

    def take(self) -> bool:
        """Have keys one by one; tell whether that can be."""
        if not self.is_ours:
            return False
        with suppress(termios.error):
            state = termios.tcgetattr(self.descriptor)
            if self._before is None:
                self._before = termios.tcgetattr(self.descriptor)
            state[3] &= ~(termios.ICANON | termios.ECHO)
            state[6][termios.VMIN], state[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self.descriptor, termios.TCSANOW, state)
            return True
        return False

    def give_back(self) -> None:
        """Restore the state that was there before `take`, at once: output that is stopped is not waited for."""
        before, self._before = self._before, None
        if before is not None and self.is_ours:
            with suppress(termios.error):
                termios.tcsetattr(self.descriptor, termios.TCSANOW, before)

    async def listen(self, on_key: Callable[[str], None]) -> None:
        """Pass on the keys that have a character, until the terminal is gone or this is cancelled; nothing is taken that was not typed for us."""
        while True:  # noqa: ASYNC913 - ends where the terminal is gone
            try:
                await trio.lowlevel.wait_readable(self.descriptor)
                if self._before is None or not self.is_ours:
                    await trio.sleep(_LOOK_AGAIN)
                    continue
                data = os.read(self.descriptor, _BYTES)
            except OSError:
                return
            if not data:
                return
            if data.startswith(b"\x1b"):  # an arrow, or an answer of the terminal
                continue
            for key in data.decode(errors="ignore"):
                on_key(key)
