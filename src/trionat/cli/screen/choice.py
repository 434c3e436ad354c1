"""Whether there is a screen: only for a person at a terminal that can show it. Everybody else gets lines."""

from __future__ import annotations

import codecs
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from trionat.cli.screen.language import locale_of

if TYPE_CHECKING:
    from collections.abc import Mapping

LEAST_COLUMNS: Final = 60
LEAST_LINES: Final = 16
"""A terminal that is smaller at the start gets lines. Chosen: an address, and a few visitors and events below it."""


def can_show_screen(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether standard input and output are a terminal that is ours and can show the screen.

    Not a narrow or dumb one, nor where NO_COLOR is set, nor one of another encoding than UTF-8, nor in the background, nor on Windows.
    The locale's name tells the encoding of the terminal even where the system does not have that locale, and Python takes UTF-8.
    """
    if sys.platform == "win32" or environ.get("NO_COLOR"):
        return False
    if environ.get("TERM", "dumb") in ("", "dumb", "unknown"):
        return False
    if sys.stdin is None or sys.stdout is None:
        return False
    try:
        named = locale_of(environ).partition(".")[2].partition("@")[0]
        for encoding in (sys.stdout.encoding or "ascii", named or "utf-8"):
            if codecs.lookup(encoding).name != "utf-8":
                return False
        stdin, stdout = sys.stdin.fileno(), sys.stdout.fileno()
        if not (os.isatty(stdin) and os.isatty(stdout)):
            return False
        if os.tcgetpgrp(stdout) != os.getpgrp():
            return False
        columns, lines = os.get_terminal_size(stdout)
    except (OSError, ValueError, LookupError):  # closed, or not a descriptor
        return False
    return columns >= LEAST_COLUMNS and lines >= LEAST_LINES


def stderr_is_terminal() -> bool:
    """Tell whether complaints would land on the screen."""
    with suppress(OSError, ValueError):
        return sys.stderr is not None and sys.stderr.isatty()
    return False
