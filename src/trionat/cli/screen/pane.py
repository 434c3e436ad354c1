"""Where lines go that would be on the terminal if the screen were not there: the last ones are kept, for the screen and for its end."""

from __future__ import annotations

import io
from collections import deque
from typing import Final

from trionat.log import escape

LINES: Final = 200
"""How many are kept."""


class Pane(io.StringIO):
    """A stream to which any thread may write whole lines; never blocks."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=LINES)

    def write(self, text: str, /) -> int:
        """Keep the lines; what could drive a terminal is spelt out."""
        for line in text.splitlines():
            if line.strip():
                self._lines.append(escape(line))
        return len(text)

    def last(self, count: int) -> tuple[str, ...]:
        """Return the last ones, the newest last."""
        return tuple(self._lines.copy())[-count:] if count > 0 else ()
