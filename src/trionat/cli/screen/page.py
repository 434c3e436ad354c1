"""What the screens have in common: a page of lines by rich, in the sixteen colours that the terminal's owner has chosen."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Final

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.panel import Panel
from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from trionat.cli.screen.language import Language

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
    line = Text(no_wrap=True, overflow="ellipsis").append(f" {fitted(title, 9)} ", "dim")
    return line.append_text(text) if isinstance(text, Text) else line.append(text, style or "none")


def fitted(text: str, width: int, *, right: bool = False) -> str:
    """Return a text that takes so many cells, of which some characters take two: cut, or with blanks behind it.

    With `right` the blanks are before it, and it is not cut: of a number no digit may be missing.
    """
    missing = width - cell_len(text)
    if missing < 0 and not right:
        return f"{set_cell_size(text, max(0, width - 1))}…"
    return " " * missing + text if right else text + " " * missing


def wrapped(title: str, text: str, columns: int, style: str = "none") -> list[Text]:
    """Return a text with a title in front, in as many lines as it takes."""
    parts = broken(Text(text, style=style), columns - 12)
    return [titled("" if number else title, part) for number, part in enumerate(parts)]


def broken(text: Text, width: int) -> list[Text]:
    """Return a text in as many lines of that width as it takes; one that is hardly wide is taken as wider."""
    return list(text.wrap(new_console(width, 1), max(10, width)))


def between(left: Text, right: Text, columns: int) -> Text:
    """Return a line with a text at either end, where there is room for both."""
    room = columns - left.cell_len - right.cell_len
    return left.append(" " * room).append_text(right) if room > 0 else left


def keys_lines(keys: Sequence[tuple[str, str]], columns: int) -> list[Text]:
    """Return the keys and what they do, in as many lines as they take."""
    lines = [Text(" ", no_wrap=True)]
    for key, meaning in keys:
        one = Text().append(f" {key} ", "reverse").append(f" {meaning}")
        if len(lines[-1]) > 1 and lines[-1].cell_len + one.cell_len > columns:
            lines.append(Text(" ", no_wrap=True))
        lines[-1].append_text(one).append("  ")
    for line in lines:
        line.rstrip()
    return lines


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


def lasting(seconds: float, say: Language) -> str:
    """Return how long something is."""
    whole = max(0, int(seconds))
    if whole >= _DAY:
        return say("{days} d {hours} h", days=whole // _DAY, hours=f"{whole % _DAY // _HOUR:02}")
    if whole >= _HOUR:
        return f"{whole // _HOUR}:{whole % _HOUR // _MINUTE:02}:{whole % _MINUTE:02}"
    return f"{whole // _MINUTE}:{whole % _MINUTE:02}"
