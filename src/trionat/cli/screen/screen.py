"""A screen on the terminal, which is given back however the program ends."""

from __future__ import annotations

import base64
import os
import signal
import sys
from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar

import attrs
import trio

from trionat.cli.output import say
from trionat.cli.screen.keyboard import Keyboard
from trionat.cli.screen.language import ENGLISH, Language, language_of
from trionat.cli.screen.painter import Painter, start_again
from trionat.cli.screen.pane import Pane

if TYPE_CHECKING:
    from collections.abc import Callable

V = TypeVar("V")

_LAST_LINES: Final = 12
"""Of the pane, that stay on the terminal when the screen is gone."""

_GIVEN_BACK_WITHIN: Final = 0.5
"""Seconds that a stop by Ctrl-Z waits for the terminal."""

_LOOK_INTERVAL: Final = 0.5
"""Seconds between two looks whether the terminal is ours again."""


@attrs.define(eq=False)
class Screen(Generic[V]):
    """Shows views in a language, and hears keys. What is written to `pane` meanwhile is for the views to show; the last lines stay when it is over.

    `first` has lines that are to stay as well, before them.
    """

    keyboard: Keyboard
    painter: Painter[V]
    pane: Pane = attrs.field(factory=Pane)
    first: tuple[str, ...] = ()
    language: Language = ENGLISH
    _is_held: bool = attrs.field(init=False, default=False)

    @classmethod
    def new(cls, draw: Callable[[V, int, int], list[str]]) -> Screen[V]:
        """Return a screen on standard input and output. It takes the terminal when it runs; where its block ends, the terminal is as it was."""
        descriptor = os.dup(sys.stdout.fileno())
        return cls(Keyboard(sys.stdin.fileno()), Painter(descriptor, draw), language=language_of())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        lines = (*self.first, *self.pane.last(_LAST_LINES))
        ended = self.painter.close("".join(f"{line}\n" for line in lines))
        if not ended and self.keyboard.is_ours:
            start_again(self.painter.descriptor)
            ended = self.painter.has_ended(_GIVEN_BACK_WITHIN)
        self.keyboard.give_back()
        if ended:  # else its thread still writes there
            os.close(self.painter.descriptor)
        problem = self.painter.problem
        if problem is not None and not isinstance(problem, OSError):  # the terminal is still there
            say(f"trionat: the screen has failed: {problem!r}", err=True)
            for line in lines:
                say(line, err=True)

    async def run(self, on_key: Callable[[str], None]) -> None:
        """Show what is given to `painter`, and pass keys on, until cancelled. Ctrl-Z and a new size are seen to."""
        watched = [signal.SIGCONT, signal.SIGWINCH, signal.SIGQUIT]
        if signal.getsignal(signal.SIGTSTP) is not signal.SIG_IGN:  # a shell without job control
            watched.append(signal.SIGTSTP)
        with trio.open_signal_receiver(*watched) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep, name="keep the terminal")
                nursery.start_soon(self.keyboard.listen, on_key, name="keys")
                async for number in signals:
                    if number == signal.SIGWINCH:
                        self.painter.repaint()
                    elif number == signal.SIGCONT:
                        self._is_held = False
                        self._take()
                    else:
                        self._is_held = True
                        await self._give_back()
                        if number == signal.SIGQUIT:
                            signal.signal(signal.SIGQUIT, signal.SIG_DFL)
                        os.kill(os.getpid(), signal.SIGSTOP if number == signal.SIGTSTP else number)

    async def _keep(self) -> None:
        """Take the terminal as soon as it is ours: a shell that brings us to the foreground need not tell."""
        while True:
            if self.painter.is_away and self.painter.problem is None and not self._is_held:
                self._take()
            await trio.sleep(_LOOK_INTERVAL)

    def _take(self) -> None:
        if self.keyboard.take():
            self.painter.resume()

    async def _give_back(self) -> None:
        self.painter.pause()
        with trio.move_on_after(_GIVEN_BACK_WITHIN):  # noqa: ASYNC912 - it may be away already
            while not self.painter.is_away:  # noqa: ASYNC110 - a thread does not tell
                await trio.sleep(0.01)
        self.keyboard.give_back()

    def copy(self, text: str) -> None:
        """Ask the terminal to put a text into the clipboard (OSC 52); it does not tell whether it has."""
        self.painter.send(f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\x07")
