"""The page that a client shows: the public addresses first of all."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import attrs
from rich.text import Text

from trionat.cli.screen.language import ENGLISH, Language
from trionat.cli.screen.page import (
    amount,
    between,
    boxed,
    broken,
    event_line,
    fitted,
    keys_lines,
    lasting,
    link,
    rate,
    titled,
    to_lines,
    wrapped,
)
from trionat.log import escape
from trionat.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

_LEAST_EVENTS: Final = 4
_MOST_DOWN: Final = 3
_MOST_OF_QUESTION: Final = 4
_WIDTHS: Final = (9, 9, 9, 8)
"""Of the visitors' columns behind the address."""

HELP: Final = (
    "",
    " q   stop: visitors may finish; q or Ctrl-C again stops at once",
    " c   copy the first public address (the terminal has to allow it: OSC 52)",
    " i   the inspector's address, which is a secret, and away again (--inspect)",
    " r   the QR code (--qr)",
    " y n let the address that is asked about in, or keep it out (--approve)",
    " ?   this page, and back",
    "",
    " Ctrl-S holds what is shown, Ctrl-Q lets it go on; the tunnel does not care.",
    " Lines instead of this screen: --plain. More of them: -v. Fewer: --quiet.",
    "",
)


@attrs.frozen
class ServiceRow:
    """A service: where the public reaches it, where it is, and why it cannot be reached, if so."""

    shown: str
    local: str
    down: str | None = None

    @property
    def url(self) -> str | None:
        """What a browser takes, if it is that."""
        return self.shown if "://" in self.shown else None


@attrs.frozen
class VisitorRow:
    """A visitor; `coming` and `going` are bytes per second from and to the visitor."""

    address: str
    local: str
    seconds: float
    coming: float
    going: float
    total: int
    waiting: bool


@attrs.frozen(kw_only=True)
class ClientView:
    """What there is to be seen, in the words of `language`. `state` is a word or two, `style` its colour, `why` lines that say more.

    `since` and `retry_at` are moments of `time.monotonic`.
    """

    state: str
    style: str
    since: float | None = None
    why: tuple[str, ...] = ()
    services: tuple[ServiceRow, ...] = ()
    server: str = ""
    visitors: tuple[VisitorRow, ...] = ()
    present: int = 0
    question: str | None = None
    note: str = ""
    inspector: str | None = attrs.field(default=None, repr=False)
    inspector_key: bool = False
    code: str | None = None
    code_key: bool = False
    asks: bool = False
    help: bool = False
    events: tuple[str, ...] = ()
    retry_at: float | None = None
    language: Language = ENGLISH


def client_page(view: ClientView, columns: int, lines: int) -> list[str]:
    """Return the page as lines of a terminal."""
    return to_lines(client_parts(view, columns, lines), columns, lines)


def client_parts(view: ClientView, columns: int, lines: int) -> list[RenderableType]:
    """Return the page's parts, for a terminal of that size."""
    top = _top(view, columns)
    if view.services:
        top.append(_addresses(view, room=max(1, lines // 3)))
    # A box has two lines more than it says.
    used = 1 + (min(len(view.services), max(1, lines // 3)) + 2 if view.services else 0)
    status = _status(view, columns)
    bottom = _bottom(view, columns)
    room = lines - used - len(status) - len(bottom)
    if view.help:
        middle = [Text(view.language(line), no_wrap=True, overflow="ellipsis") for line in HELP]
    elif view.code is not None:
        middle = _code(view, view.code, room, columns)
    else:
        middle = _visitors(view, max(0, room - _LEAST_EVENTS - 1), columns)
        left = room - len(middle) - 1
        if left > 0:
            middle.append(titled(view.language("events"), ""))
            middle += [event_line(event) for event in view.events[-left:]]
    middle = middle[: max(0, room)]
    middle += [Text("")] * (room - len(middle))
    return [*top, *status, *middle, *bottom]


def _top(view: ClientView, columns: int) -> list[RenderableType]:
    left = Text(" trionat ", style="bold", no_wrap=True).append(VERSION, "dim")
    right = Text(view.state, style=view.style, no_wrap=True)
    if view.since is not None:
        duration = lasting(time.monotonic() - view.since, view.language)
        right.append(f" {view.language('for {duration}', duration=duration)}", "none")
    return [between(left, right.append(" "), columns)]


def _addresses(view: ClientView, room: int) -> RenderableType:
    say = view.language
    shown = view.services if len(view.services) <= room else view.services[: room - 1]
    rows: list[Text] = []
    for service in shown:
        address = escape(service.shown)
        style = link(address) if service.url else "bold cyan"
        row = Text(no_wrap=True, overflow="ellipsis").append(address, style)
        rows.append(row.append(f"  -> {escape(service.local)}"))
        if service.down is not None:
            rows[-1].append(f"  {say('DOWN')}", "bold red")
    if len(shown) < len(view.services):
        more = say("and {count} more", count=len(view.services) - len(shown))
        rows.append(Text(more, style="dim"))
    return boxed(rows, style="green" if view.style == "green" else "yellow")


def _status(view: ClientView, columns: int) -> list[Text]:
    say = view.language
    rows: list[Text] = []
    if view.server:
        rows += wrapped(say("server"), escape(view.server), columns)
    for number, why in enumerate(view.why):
        rows += wrapped("" if number else say("status"), escape(why), columns, "yellow")
    if view.retry_at is not None:
        left = max(0.0, view.retry_at - time.monotonic())
        clock = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
        when = say("tries again at {clock}, in {seconds} s", clock=clock, seconds=f"{left:.0f}")
        rows.append(titled("", when))
    for service in [each for each in view.services if each.down is not None][:_MOST_DOWN]:
        rows += wrapped(say("down"), escape(service.down or ""), columns, "red")
    return rows


def _visitors(view: ClientView, room: int, columns: int) -> list[Text]:
    say = view.language
    here = say("{count} here", count=view.present) if view.present else say("nobody is here")
    rows = [titled(say("visitors"), here)]
    if not view.visitors or room < 3:
        return rows
    wide = columns >= 76
    several = wide and len(view.services) > 1
    width = max(15, columns - (58 if several else 42))
    heads = [say("from"), say("for"), say("in"), say("out"), say("in all")]
    head = _columns(heads, width) + (f"  {say('service')}" if several else "")
    rows.append(Text(head, style="dim", no_wrap=True, overflow="ellipsis"))
    fit = room - 2
    shown = view.visitors[: fit if view.present <= fit else fit - 1]
    for each in shown:
        numbers = [rate(each.coming), rate(each.going), amount(each.total)]
        cells = [escape(each.address) or "?", lasting(each.seconds, say), *numbers]
        row = Text(_columns(cells, width), no_wrap=True, overflow="ellipsis")
        if several:
            row.append(f"  {escape(each.local)}")
        if each.waiting:
            row.stylize("yellow")
        rows.append(row)
    if len(shown) < view.present:
        more = say("and {count} more", count=view.present - len(shown))
        rows.append(Text(f"   {more}", style="dim"))
    return rows


def _columns(cells: Sequence[str], width: int) -> str:
    """Return a line of the visitors, whose addresses take `width`."""
    address, *numbers = cells
    widths = zip(numbers, _WIDTHS, strict=True)
    return f"   {fitted(address, width)} {' '.join(fitted(*each, right=True) for each in widths)}"


def _code(view: ClientView, code: str, room: int, columns: int) -> list[Text]:
    rows = code.splitlines()
    widest = max((Text.from_ansi(row).cell_len for row in rows), default=0)
    if len(rows) > room or widest > columns:
        larger = view.language("The window is too small for the code: make it larger.")
        return [Text(f" {larger}", style="yellow")]
    return [Text.from_ansi(row, no_wrap=True) for row in rows]


def _bottom(view: ClientView, columns: int) -> list[Text]:
    say = view.language
    rows: list[Text] = []
    if view.question is not None:
        parts = broken(Text(view.question, style="bold yellow"), columns - 2)
        rows += [Text(" ").append_text(part) for part in parts[:_MOST_OF_QUESTION]]
    if view.note:
        rows.append(Text(f" {escape(view.note)}", style="cyan", overflow="ellipsis"))
    if view.inspector is not None:
        address = Text(view.inspector, style=link(view.inspector), overflow="fold")
        secret = say("a secret: whoever knows this address sees all")
        rows += [titled(say("inspector"), secret), address]
    keys = [("q", say("stop")), ("c", say("copy"))]
    if view.question is not None:
        keys = [("y", say("let in")), ("n", say("keep out")), *keys]
    if view.inspector_key:
        keys.append(("i", say("inspector")))
    if view.code_key:
        keys.append(("r", say("QR code")))
    return [*rows, *keys_lines([*keys, ("?", say("help"))], columns)]
