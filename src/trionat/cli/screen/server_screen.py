"""A server at a person's terminal: it is asked once in a while who is there, as `trionat status` asks it."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.cli.screen.screen import Screen
from trionat.cli.screen.server_page import PublicView, server_page
from trionat.errors import RemoteProtocolError, StartupError
from trionat.server.admin.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from trionat.events import Ready

_TICK: Final = 1.0

_ASK_INTERVAL: Final = 2.0
"""Seconds from one answer of the server to the next question: an answer tells of each visitor."""

_NOTE_LASTS: Final = 5.0
_MOST_EVENTS: Final = 100


def new_screen() -> Screen[PublicView]:
    """Return a screen for a server."""
    return Screen[PublicView].new(server_page)


@attrs.define(eq=False)
class ServerScreen:
    """Shows a server on a screen while `run` runs. `ask` returns the values of a `Snapshot`; it blocks, and is called in a thread."""

    screen: Screen[PublicView]
    stopping: trio.Event
    ask: Callable[[], dict[str, Any]]
    _view: PublicView = attrs.field(
        init=False, default=attrs.Factory(lambda self: self._first_view(), takes_self=True)
    )
    _note_until: float = attrs.field(init=False, default=0.0)

    def _first_view(self) -> PublicView:
        return PublicView(began=time.monotonic(), language=self.screen.language)

    def note_ready(
        self, ready: Ready, banner: str, command: str | None, ticket_command: str
    ) -> None:
        """The server is up; `banner` stays on the terminal when the screen is gone. `command` is for beside a service, and `ticket_command` for where nobody's ticket is known."""
        self.screen.first = tuple(banner.splitlines())
        self._view = attrs.evolve(
            self._view,
            ready=ready,
            command=command,
            ticket_command=ticket_command,
            began=time.monotonic(),
        )
        self._look()

    async def run(self) -> None:
        """Show it until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.screen.run, self._press, name="screen")
            nursery.start_soon(self._ask, name="ask who is there")
            while True:
                self._look()
                await trio.sleep(_TICK)

    async def _ask(self) -> None:
        while True:
            if self._view.ready is not None:
                try:
                    values = await trio.to_thread.run_sync(self.ask, abandon_on_cancel=True)
                    snapshot = Snapshot.of(values)
                    self._view = attrs.evolve(self._view, snapshot=snapshot, why="")
                except (StartupError, RemoteProtocolError) as error:
                    why = "" if self.stopping.is_set() else self.screen.language.reason(str(error))
                    self._view = attrs.evolve(self._view, why=why)
                self._look()
            await trio.sleep(_ASK_INTERVAL if self._view.ready is not None else _TICK / 4)

    def _look(self) -> None:
        self._view = attrs.evolve(
            self._view,
            stopping=self.stopping.is_set(),
            note=self._view.note if trio.current_time() < self._note_until else "",
            events=self.screen.pane.last(_MOST_EVENTS),
        )
        self.screen.painter.show(self._view)

    def _press(self, key: str) -> None:
        match key.lower():
            case "q":
                signal.raise_signal(signal.SIGINT)  # which the program waits for, twice
            case "c" if self._view.command is not None:
                self.screen.copy(self._view.command)
                self._note_until = trio.current_time() + _NOTE_LASTS
                say = self.screen.language
                note = say("copied, if the terminal allows it; the ticket in it is a secret")
                self._view = attrs.evolve(self._view, note=note)
            case "?" | "h":
                self._view = attrs.evolve(self._view, help=not self._view.help)
            case "\x0c":  # Ctrl-L
                self.screen.painter.repaint()
            case _:
                return
        self._look()
