"""The page that a server shows: how clients get here, who is there, and what is refused."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import attrs
from rich.cells import chop_cells
from rich.text import Text

from trionat.cli.screen.language import ENGLISH, Language
from trionat.cli.screen.page import (
    between,
    boxed,
    event_line,
    fitted,
    keys_lines,
    lasting,
    link,
    rate,
    titled,
    to_lines,
)
from trionat.log import escape
from trionat.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from trionat.events import Ready
    from trionat.server.admin.snapshot import SessionView, Snapshot

_LEAST_EVENTS: Final = 4
_MOST_NAMED: Final = 8

HELP: Final = (
    "",
    " q   stop: visitors may finish; q or Ctrl-C again stops at once",
    " c   copy the command for the private side (OSC 52), with its secret ticket",
    " ?   this page, and back",
    "",
    " More of what is here: trionat status --visitors, beside this server.",
    " Ctrl-S holds what is shown, Ctrl-Q lets it go on; the server does not care.",
    " Lines instead of this screen: --plain. More of them: -v. Fewer: --quiet.",
    "",
)


@attrs.frozen(kw_only=True)
class PublicView:
    """What there is to be seen, in `language`. `ready` is None before the server is up, `snapshot` before it has been asked; `why` says why it cannot be."""

    began: float
    stopping: bool = False
    ready: Ready | None = None
    command: str | None = attrs.field(default=None, repr=False)
    ticket_command: str = "trionat user ticket NAME"
    snapshot: Snapshot | None = None
    why: str = ""
    note: str = ""
    help: bool = False
    events: tuple[str, ...] = ()
    language: Language = ENGLISH


def server_page(view: PublicView, columns: int, lines: int) -> list[str]:
    """Return the page as lines of a terminal."""
    return to_lines(server_parts(view, columns, lines), columns, lines)


def server_parts(view: PublicView, columns: int, lines: int) -> list[RenderableType]:
    """Return the page's parts, for a terminal of that size."""
    say = view.language
    top, used = _top(view, columns, room=max(1, lines // 3))
    bottom = [Text(f" {escape(view.note)}", style="cyan")] if view.note else []
    keys = [("q", say("stop")), ("c", say("copy the command")), ("?", say("help"))]
    bottom += keys_lines(keys, columns)
    status = _status(view)
    room = lines - used - len(status) - len(bottom)
    if view.help:
        middle = [Text(say(line), no_wrap=True, overflow="ellipsis") for line in HELP]
    else:
        middle = _sessions(view, max(0, room - _LEAST_EVENTS - 1))
        left = room - len(middle) - 1
        if left > 0:
            middle.append(titled(say("events"), ""))
            middle += [event_line(event) for event in view.events[-left:]]
    middle = middle[: max(0, room)]
    middle += [Text("")] * (room - len(middle))
    return [*top, *status, *middle, *bottom]


def _top(view: PublicView, columns: int, room: int) -> tuple[list[RenderableType], int]:
    """Return the first lines, and how many they are."""
    say = view.language
    left = Text(" trionat ", style="bold", no_wrap=True).append(f"{VERSION} {say('server')}", "dim")
    if view.ready is None:
        right = Text(say("starting"), style="yellow")
    elif view.stopping:
        right = Text(say("stopping"), style="yellow")
    else:
        right = Text(say("up"), style="green")
    duration = lasting(time.monotonic() - view.began, say)
    right.append(f" {say('for {duration}', duration=duration)} ", "none")
    top: list[RenderableType] = [between(left, right, columns)]
    if view.ready is None:
        return top, 1
    rows: list[Text] = []
    if view.command is not None:
        rows.append(Text(say("Beside the private service, run (8080 stands for its port):")))
        rows += _cut(view.command, columns - 4, room + 2, "bold cyan")
    else:
        text = say("A user's ticket: {command}", command=view.ticket_command)
        rows += _cut(text, columns - 4, room + 2)
    if view.ready.first_password is not None:
        user = say(
            "first user: {user}, password {password} (shown only this once)",
            user=view.ready.first_user,
            password=view.ready.first_password,
        )
        rows.append(Text(user, style="yellow"))
    return [*top, boxed(rows, style="green")], 3 + len(rows)


def _cut(text: str, width: int, most: int, style: str = "") -> list[Text]:
    """Return a command in lines that are cut anywhere: it is a ticket or a path that is long, and words of it there are none."""
    return [Text(line, style=style) for line in chop_cells(text, max(2, width))[:most]]


def _status(view: PublicView) -> list[Text]:
    say = view.language
    rows: list[Text] = []
    if (ready := view.ready) is not None:
        dial = (
            say("dial {address}", address=ready.public)
            if ready.authentication
            else say(
                "dial {address}; login OFF: whoever reaches it may connect", address=ready.public
            )
        )
        rows.append(titled(say("clients"), dial))
        if ready.console is not None:
            rows.append(titled(say("console"), Text(ready.console, style=link(ready.console))))
    if view.why:
        rows.append(titled(say("status"), escape(view.why), "yellow"))
    if (snapshot := view.snapshot) is None:
        return rows
    if view.stopping:
        visitors = sum(len(session.visitors) for session in snapshot.sessions)
        sessions = len(snapshot.sessions)
        still = say(
            "stopping: {visitors} of {sessions} still here; q again stops at once",
            visitors=say("{count} visitor", count=1)
            if visitors == 1
            else say("{count} visitors", count=visitors),
            sessions=say("{count} session", count=1)
            if sessions == 1
            else say("{count} sessions", count=sessions),
        )
        rows.append(titled(say("status"), still))
    if snapshot.queue:
        users = ", ".join(escape(each.user or each.client) for each in snapshot.queue[:_MOST_NAMED])
        waiting = say("{count} wait: {users}", count=len(snapshot.queue), users=users)
        rows.append(titled(say("queue"), waiting))
    refused = ", ".join(f"{count} {bound}" for bound, count in snapshot.refused.items() if count)
    rows.append(titled(say("refused"), refused or say("nobody"), "yellow" if refused else ""))
    if snapshot.banned:
        banned = ", ".join(escape(each.network) for each in snapshot.banned[:_MOST_NAMED])
        rows.append(titled(say("banned"), f"{len(snapshot.banned)}: {banned}", "yellow"))
    return rows


def _sessions(view: PublicView, room: int) -> list[Text]:
    say = view.language
    if (snapshot := view.snapshot) is None:
        return []
    if not snapshot.sessions:
        return [titled(say("sessions"), say("no client is here"))]
    sessions = snapshot.sessions
    count, most = len(sessions), snapshot.server.session_limit
    if snapshot.server.rate < 1:  # in a row without heads nobody would know what "-" is
        total = say("{count} of {most}", count=count, most=most)
    else:
        total = say(
            "{count} of {most}, {rate}", count=count, most=most, rate=rate(snapshot.server.rate)
        )
    rows = [titled(say("sessions"), total)]
    heads = [say("user"), say("from"), say("for"), say("visitors"), say("rate"), say("service")]
    rows.append(Text(_columns(heads), style="dim", no_wrap=True, overflow="ellipsis"))
    fit = max(1, room - 2)
    shown = sessions if len(sessions) <= fit else sessions[: max(0, fit - 1)]
    rows += [_session(session, say) for session in shown]
    if len(shown) < len(sessions):
        more = say("and {count} more", count=len(sessions) - len(shown))
        rows.append(Text(f"   {more}", style="dim"))
    return rows


def _session(session: SessionView, say: Language) -> Text:
    down = say("DOWN")
    services = ", ".join(
        escape(each.url or str(each.port)) + (f" {down}" if each.down else "")
        for each in session.services[:_MOST_NAMED]
    )
    who = [escape(session.user or session.client or "-"), escape(session.address)]
    numbers = [lasting(session.seconds, say), str(len(session.visitors)), rate(session.rate)]
    row = Text(_columns([*who, *numbers, services]), no_wrap=True, overflow="ellipsis")
    if any(each.down for each in session.services):
        row.stylize("red")
    return row


def _columns(cells: Sequence[str]) -> str:
    """Return a line of the sessions."""
    user, address, lasts, visitors, rate_, services = cells
    who = f"{fitted(user, 12)} {fitted(address, 21)} {fitted(lasts, 9, right=True)}"
    return f"   {who} {fitted(visitors, 8, right=True)} {fitted(rate_, 9, right=True)}  {services}"
