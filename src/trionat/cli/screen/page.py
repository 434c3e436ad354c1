"""What the screens have in common: a page of lines by rich, in the sixteen colours that the terminal's owner has chosen."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_LINK_ID: Final = re.compile("\x1b]8;id=[0-9.-]+;")
"""By chance with rich, so that a line would never be as it was."""

_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86400


def new_console(columns: int, lines: int, *, record: bool = False) -> Console:
    """Return a console that writes into memory; nothing in a text is taken for markup."""
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        color_system="standard",
        legacy_windows=False,
        width=columns,
        height=lines,
        markup=False,
        emoji=False,
        highlight=False,
        record=record,
        _environ={},
    )


def to_lines(parts: Sequence[RenderableType], columns: int, lines: int) -> list[str]:
    """Return the parts, one below the other, as lines of a terminal of that size."""
    console = new_console(columns, lines)
    console.print(Group(*parts), no_wrap=True, overflow="ellipsis", crop=True)
    text = console.file
    assert isinstance(text, io.StringIO)  # noqa: S101 - it is ours
    return _LINK_ID.sub("\x1b]8;id=1;", text.getvalue()).splitlines()[:lines]


def link(url: str) -> Style:
    """Return the style of what leads to a URL."""
    return Style(bold=True, color="cyan", link=url)


def boxed(lines: Sequence[Text], *, style: str) -> Panel:
    """Return lines in a box of the page's width."""
    return Panel(Group(*lines), box=box.ROUNDED, border_style=style, padding=(0, 1))


def titled(title: str, text: Text | str, style: str = "") -> Text:
    """Return a line with a title in front."""
    line = Text(no_wrap=True, overflow="ellipsis").append(f" {title:9} ", "dim")
    return line.append_text(text) if isinstance(text, Text) else line.append(text, style or "none")


def wrapped(title: str, text: str, columns: int, style: str = "none") -> list[Text]:
    """Return a text with a title in front, in as many lines as it takes."""
    parts = Text(text, style=style).wrap(new_console(columns, 1), max(10, columns - 12))
    return [titled("" if number else title, part) for number, part in enumerate(parts)]


def between(left: Text, right: Text, columns: int) -> Text:
    """Return a line with a text at either end, where there is room for both."""
    room = columns - left.cell_len - right.cell_len
    return left.append(" " * room).append_text(right) if room > 0 else left


def keys_line(keys: Sequence[tuple[str, str]]) -> Text:
    """Return the line of keys and what they do."""
    line = Text(" ", no_wrap=True)
    for key, meaning in keys:
        line.append(f" {key} ", "reverse").append(f" {meaning}  ", "none")
    return line


def event_line(line: str) -> Text:
    """Return a line of the log, in the colour of how bad it is."""
    words = line.split(maxsplit=2)
    level = words[1] if len(words) > 1 else ""
    style = {"warning": "yellow", "error": "red", "critical": "bold red", "debug": "dim"}.get(level)
    return Text(f" {line}", style=style or "none", no_wrap=True, overflow="ellipsis")


def amount(count: float) -> str:
    """Return a number of bytes in three digits or so."""
    for unit in _UNITS[:-1]:
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {_UNITS[-1]}"


def rate(count: float) -> str:
    """Return bytes per second."""
    return "-" if count < 1 else f"{amount(count)}/s"


def lasting(seconds: float) -> str:
    """Return how long something is."""
    whole = max(0, int(seconds))
    if whole >= _DAY:
        return f"{whole // _DAY} d {whole % _DAY // _HOUR:02} h"
    if whole >= _HOUR:
        return f"{whole // _HOUR}:{whole % _HOUR // _MINUTE:02}:{whole % _MINUTE:02}"
    return f"{whole // _MINUTE}:{whole % _MINUTE:02}"
