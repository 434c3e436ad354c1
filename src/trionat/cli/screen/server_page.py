"""The page that a server shows: how clients get here, who is there, and what is refused."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import attrs
from rich.text import Text

from trionat.cli.screen.page import (
    between,
    boxed,
    event_line,
    keys_line,
    lasting,
    link,
    rate,
    titled,
    to_lines,
)
from trionat.log import escape
from trionat.text import counted
from trionat.version import VERSION

if TYPE_CHECKING:
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
    """What there is to be seen. `ready` is None before the server is up, `snapshot` before it has been asked; `why` says why it cannot be."""

    began: float
    stopping: bool = False
    ready: Ready | None = None
    command: str | None = attrs.field(default=None, repr=False)
    snapshot: Snapshot | None = None
    why: str = ""
    note: str = ""
    help: bool = False
    events: tuple[str, ...] = ()


def server_page(view: PublicView, columns: int, lines: int) -> list[str]:
    """Return the page as lines of a terminal."""
    return to_lines(server_parts(view, columns, lines), columns, lines)


def server_parts(view: PublicView, columns: int, lines: int) -> list[RenderableType]:
    """Return the page's parts, for a terminal of that size."""
    top, used = _top(view, columns, room=max(1, lines // 3))
    bottom = [Text(f" {escape(view.note)}", style="cyan")] if view.note else []
    bottom.append(keys_line([("q", "stop"), ("c", "copy the command"), ("?", "help")]))
    status = _status(view)
    room = lines - used - len(status) - len(bottom)
    if view.help:
        middle = [Text(line, no_wrap=True) for line in HELP]
    else:
        middle = _sessions(view, max(0, room - _LEAST_EVENTS - 1))
        left = room - len(middle) - 1
        if left > 0:
            middle.append(titled("events", ""))
            middle += [event_line(event) for event in view.events[-left:]]
    middle = middle[: max(0, room)]
    middle += [Text("")] * (room - len(middle))
    return [*top, *status, *middle, *bottom]


def _top(view: PublicView, columns: int, room: int) -> tuple[list[RenderableType], int]:
    """Return the first lines, and how many they are."""
    left = Text(" trionat ", style="bold", no_wrap=True).append(f"{VERSION} server", "dim")
    if view.ready is None:
        right = Text("starting", style="yellow")
    elif view.stopping:
        right = Text("stopping", style="yellow")
    else:
        right = Text("up", style="green")
    right.append(f" for {lasting(time.monotonic() - view.began)} ", "none")
    top: list[RenderableType] = [between(left, right, columns)]
    if view.ready is None:
        return top, 1
    rows: list[Text] = []
    if view.command is not None:
        rows.append(Text("Beside the private service, run (8080 stands for its port):"))
        width = max(1, columns - 4)
        # Cut anywhere: it is the ticket that is long, and words of it there are none.
        starts = range(0, len(view.command), width)[: room + 2]
        rows += [Text(view.command[at : at + width], style="bold cyan") for at in starts]
    else:
        rows.append(Text("A user's ticket: trionat user ticket NAME"))
    if view.ready.first_password is not None:
        user = f"first user: {view.ready.first_user}, password {view.ready.first_password}"
        rows.append(Text(f"{user} (shown only this once)", style="yellow"))
    return [*top, boxed(rows, style="green")], 3 + len(rows)


def _status(view: PublicView) -> list[Text]:
    rows: list[Text] = []
    if (ready := view.ready) is not None:
        login = "" if ready.authentication else "; login OFF: whoever reaches it may connect"
        rows.append(titled("clients", f"dial {ready.public}{login}"))
        if ready.console is not None:
            rows.append(titled("console", Text(ready.console, style=link(ready.console))))
    if view.why:
        rows.append(titled("status", escape(view.why), "yellow"))
    if (snapshot := view.snapshot) is None:
        return rows
    if view.stopping:
        visitors = sum(len(session.visitors) for session in snapshot.sessions)
        still = f"{counted(visitors, 'visitor')} of {counted(len(snapshot.sessions), 'session')}"
        rows.append(titled("status", f"stopping: {still} still here; q again stops at once"))
    if snapshot.queue:
        users = ", ".join(escape(each.user or each.client) for each in snapshot.queue[:_MOST_NAMED])
        rows.append(titled("queue", f"{len(snapshot.queue)} wait: {users}"))
    refused = ", ".join(f"{count} {bound}" for bound, count in snapshot.refused.items() if count)
    rows.append(titled("refused", refused or "nobody", "yellow" if refused else ""))
    if snapshot.banned:
        banned = ", ".join(escape(each.network) for each in snapshot.banned[:_MOST_NAMED])
        rows.append(titled("banned", f"{len(snapshot.banned)}: {banned}", "yellow"))
    return rows


def _sessions(view: PublicView, room: int) -> list[Text]:
    if (snapshot := view.snapshot) is None:
        return []
    if not snapshot.sessions:
        return [titled("sessions", "no client is here")]
    sessions = snapshot.sessions
    total = f"{len(sessions)} of {snapshot.server.session_limit}, {rate(snapshot.server.rate)}"
    rows = [titled("sessions", total)]
    heads = f"   {'user':12} {'from':21} {'for':>8} {'visitors':>8} {'rate':>9}  service"
    rows.append(Text(heads, style="dim", no_wrap=True, overflow="ellipsis"))
    fit = max(1, room - 2)
    shown = sessions if len(sessions) <= fit else sessions[: max(0, fit - 1)]
    rows += [_session(session) for session in shown]
    if len(shown) < len(sessions):
        rows.append(Text(f"   and {len(sessions) - len(shown)} more", style="dim"))
    return rows


def _session(session: SessionView) -> Text:
    services = ", ".join(
        escape(each.url or str(each.port)) + (" DOWN" if each.down else "")
        for each in session.services[:_MOST_NAMED]
    )
    user = escape(session.user or session.client or "-")
    line = (
        f"   {_cut(user, 12):12} {_cut(escape(session.address), 21):21} {lasting(session.seconds):>8}"
        f" {len(session.visitors):>8} {rate(session.rate):>9}  {services}"
    )
    row = Text(line, no_wrap=True, overflow="ellipsis")
    if any(each.down for each in session.services):
        row.stylize("red")
    return row


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
