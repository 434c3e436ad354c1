"""A client at a person's terminal: what has happened, what there is to be seen, and what the keys do."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Final, assert_never

import attrs
import trio

from trionat.cli.qr_code import is_loopback
from trionat.cli.screen.client_page import ClientView, ServiceRow, VisitorRow, client_page
from trionat.cli.screen.http_check import scheme_of
from trionat.cli.screen.screen import Screen
from trionat.config.values import NO_PROXY
from trionat.events import (
    ApprovalAsked,
    ClientEvent,
    Connected,
    Disconnected,
    Draining,
    Inspecting,
    Queued,
    ServiceDown,
    ServiceUp,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from trionat.cli.approvals import Approver
    from trionat.client.app import Client
    from trionat.client.snapshot import ClientSnapshot
    from trionat.config.service import Service

_TICK: Final = 1.0
"""Seconds between two looks at the client."""

_NOTE_LASTS: Final = 5.0

_READ_WITHIN: Final = 0.5
"""Seconds for which a question has to be on the screen before a key can be the answer: it may have been meant for something else."""

_MOST_VISITORS: Final = 100
_MOST_EVENTS: Final = 100


def new_screen() -> Screen[ClientView]:
    """Return a screen for a client."""
    return Screen[ClientView].new(client_page)


@attrs.define(eq=False)
class ClientScreen:
    """Shows a client on a screen while `run` runs. Called with each event, as `Client.on_event`.

    `new_code` makes a QR code of an address, where one is wanted.
    """

    screen: Screen[ClientView]
    services: Sequence[Service]
    stopping: trio.Event
    new_code: Callable[[str], str] | None = None
    _client: Client | None = attrs.field(init=False, default=None)
    _approver: Approver | None = attrs.field(init=False, default=None)
    _view: ClientView = attrs.field(
        init=False, default=attrs.Factory(lambda self: self._first_view(), takes_self=True)
    )
    _connected: Connected | None = attrs.field(init=False, default=None)
    _schemes: dict[int, str] = attrs.field(init=False, factory=lambda: {})
    _unchecked: set[int] = attrs.field(init=False, factory=lambda: set())
    _reasons: dict[str, str] = attrs.field(init=False, factory=lambda: {})
    _before: dict[int, tuple[int, int]] = attrs.field(init=False, factory=lambda: {})
    _rates: dict[int, tuple[float, float]] = attrs.field(init=False, factory=lambda: {})
    _measured_at: float = attrs.field(init=False, default=float("-inf"))
    _read: tuple[str | None, float] = attrs.field(init=False, default=(None, 0.0))
    _note_until: float = attrs.field(init=False, default=0.0)
    _inspector: str | None = attrs.field(init=False, default=None, repr=False)
    _code_shown: bool = attrs.field(init=False, default=False)
    _code_of: str = attrs.field(init=False, default="")

    def _first_view(self) -> ClientView:
        say = self.screen.language
        return ClientView(state=say("connecting"), style="yellow", language=say)

    def __call__(self, event: ClientEvent) -> None:
        """Take an event into account."""
        say = self.screen.language
        match event:
            case Connected():
                self._connected = event
                self._unchecked = set(range(len(event.services)))
                self._change(
                    state=say("connected"),
                    style="green",
                    since=time.monotonic(),
                    why=(),
                    retry_at=None,
                )
            case Queued(None):
                why = say("no answer from the server yet: its sessions may all be taken")
                self._wait(say("waiting"), why)
            case Queued(position):
                why = say(
                    "all sessions are taken: number {position} in the queue", position=position
                )
                self._wait(say("in the queue"), why)
            case Disconnected(reason=reason, retry_in=None):
                self._wait(say("over"), say.reason(reason), style="red")
            case Disconnected(reason=reason, retry_in=retry_in):
                self._wait(say("not connected"), say.reason(reason), retry_in)
            case Draining(seconds):
                why = say(
                    "the server stops or is drained: visitors may finish within {seconds} s",
                    seconds=f"{seconds:.0f}",
                )
                self._change(why=(why,))
            case ServiceDown(name=name, reason=reason):
                self._reasons[name] = say.reason(reason)
            case ServiceUp(name=name):
                self._reasons.pop(name, None)
                self._unchecked |= {
                    number for number, service in enumerate(self.services) if service.name == name
                }
            case Inspecting(url):
                self._inspector = url
                self._change(inspector_key=True)
            case ApprovalAsked():
                pass  # the approver asks
            case _:
                assert_never(event)
        self._look()

    def _wait(
        self, state: str, why: str, retry_in: float | None = None, *, style: str = "yellow"
    ) -> None:
        self._change(
            state=state,
            style=style,
            since=None,
            why=(why,),
            retry_at=None if retry_in is None else time.monotonic() + retry_in,
        )

    def _change(self, **values: object) -> None:
        self._view = attrs.evolve(self._view, **values)  # type: ignore[arg-type]

    async def run(self, client: Client, approver: Approver) -> None:
        """Show it until cancelled."""
        self._client, self._approver = client, approver
        self.screen.painter.on_shown = self._note_read
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.screen.run, self._press, name="screen")
            nursery.start_soon(self._check_schemes, name="who speaks HTTP")
            nursery.start_soon(self._tell_stop, name="tell that the client stops")
            while True:
                self._look(measure=True)
                await trio.sleep(_TICK)

    async def _tell_stop(self) -> None:
        await self.stopping.wait()
        say = self.screen.language
        self._change(
            state=say("stopping"),
            style="yellow",
            since=None,
            why=(say("stopping: visitors may finish; q or Ctrl-C again stops at once"),),
            retry_at=None,
        )
        self._look()

    async def _check_schemes(self) -> None:
        """Ask each service once whether it speaks HTTP, when it is there for the first time or again."""
        while True:
            for number in sorted(self._unchecked):
                self._unchecked.discard(number)
                if number < len(self.services) and self._may_ask(number):
                    found = await scheme_of(self.services[number].local)
                    if found is None:
                        self._schemes.pop(number, None)
                    else:
                        self._schemes[number] = found
                    self._look()
            await trio.sleep(_TICK / 4)

    def _may_ask(self, number: int) -> bool:
        """Not one that is published as a URL anyway, nor one that wants to be told who visits it first."""
        service = self.services[number]
        return not service.by_name and service.proxy_protocol in (None, NO_PROXY)

    # -- what is shown -----------------------------------------------------------------------------------------------

    def _look(self, *, measure: bool = False) -> None:
        client = self._client
        if client is None:
            return
        snapshot = client.snapshot(most=_MOST_VISITORS)
        if snapshot.services and snapshot.services != self.services:
            self.services = snapshot.services
            if self._connected is not None:
                self._schemes.clear()
                self._unchecked = set(range(len(self.services)))
        if measure:
            self._measure(snapshot)
        say = self.screen.language
        question = None if self._approver is None else self._approver.question
        if question is not None:
            question = say("{question}. Let it in for a day? Press y or n", question=question)
        services = tuple(self._service_rows(snapshot))
        if self.new_code is not None and services and services[0].shown != self._code_of:
            self._code_of, self._code_shown = services[0].shown, True
        self._change(
            visitors=tuple(self._visitor_rows(snapshot)),
            present=snapshot.present,
            server=self._server(snapshot),
            services=services,
            question=question,
            note=self._view.note if trio.current_time() < self._note_until else "",
            events=self.screen.pane.last(_MOST_EVENTS),
            code=self._code() if self._code_shown else None,
            code_key=self.new_code is not None,
        )
        self.screen.first = tuple(f"{row.shown} -> {row.local}" for row in services)
        self.screen.painter.show(self._view)

    def _service_rows(self, snapshot: ClientSnapshot) -> Generator[ServiceRow]:
        say = self.screen.language
        if self._connected is None:
            for service in self.services:
                yield ServiceRow(say("(no public address yet)"), str(service.local))
            return
        for number, public in enumerate(self._connected.services):
            shown = public.shown
            if public.url is None and (scheme := self._schemes.get(number)):
                shown = f"{scheme}://{shown}"
            down = None
            if number in snapshot.down:
                down = self._reasons.get(public.name) or say.reason(
                    f"the local service {public.local} cannot be reached"
                )
            yield ServiceRow(shown, str(public.local), down)

    def _server(self, snapshot: ClientSnapshot) -> str:
        if self._connected is None:
            return ""
        say = self.screen.language
        event, parts = self._connected, [str(self._connected.server)]
        if snapshot.round_trip is not None:
            milliseconds = max(1, round(snapshot.round_trip * 1000))
            parts.append(say("round trip {milliseconds} ms", milliseconds=milliseconds))
        parts.append(say("encrypted") if event.encrypted else say("NOT encrypted"))
        user = event.username
        parts.append(say("logged in as {user}", user=user) if user else say("no login"))
        return say(", ").join(parts)

    def _visitor_rows(self, snapshot: ClientSnapshot) -> Generator[VisitorRow]:
        for each in snapshot.visitors:
            local = ""
            if each.service is not None and each.service < len(self.services):
                local = str(self.services[each.service].local)
            coming, going = self._rates.get(each.number, (0.0, 0.0))
            yield VisitorRow(
                address=each.address,
                local=local,
                seconds=each.seconds,
                coming=coming,
                going=going,
                total=each.received + each.sent,
                waiting=each.waiting,
            )

    def _measure(self, snapshot: ClientSnapshot) -> None:
        """Tell the rates anew, over the time since the last tick, or since a visitor has come."""
        now = trio.current_time()
        took, self._measured_at = now - self._measured_at, now
        before, self._before = self._before, {}
        self._rates = {}
        for each in snapshot.visitors:
            received, sent = before.get(each.number, (0, 0))
            seconds = max(took if each.number in before else each.seconds, _TICK)
            self._rates[each.number] = (
                max(0, each.received - received) / seconds,
                max(0, each.sent - sent) / seconds,
            )
            self._before[each.number] = each.received, each.sent

    def _code(self) -> str | None:
        if self.new_code is None or not self._code_of:
            return None
        address = self._code_of if "://" in self._code_of else f"http://{self._code_of}"
        code = self.new_code(address)
        if is_loopback(address):
            code += "\n" + self.screen.language("no phone gets there: a loopback address")
        return code

    # -- keys --------------------------------------------------------------------------------------------------------

    def _press(self, key: str) -> None:
        match key.lower():
            case "q":
                signal.raise_signal(signal.SIGINT)  # which the program waits for, twice
            case "c" if self._connected is not None and self._view.services:
                address = self._view.services[0].shown
                self.screen.copy(address)
                say = self.screen.language
                self._tell(say("copied, if the terminal allows it: {address}", address=address))
            case "i":
                self._show_inspector()
            case "r" if self.new_code is not None:
                self._code_shown = not self._code_shown
            case "?" | "h":
                self._change(help=not self._view.help)
            case "y" | "n" if self._approver is not None and self._is_read():
                self._approver.answer(approved=key.lower() == "y")
            case "\x0c":  # Ctrl-L
                self.screen.painter.repaint()
            case _:
                return
        self._look()

    def _note_read(self, view: ClientView) -> None:
        """In the painter's thread: note since when a question is on the terminal."""
        if view.question != self._read[0]:
            self._read = view.question, time.monotonic()

    def _is_read(self) -> bool:
        """Whether the question that is open has been on the terminal for a moment."""
        question, since = self._read
        return (
            question is not None
            and question == self._view.question
            and time.monotonic() - since >= _READ_WITHIN
        )

    def _show_inspector(self) -> None:
        """Show its address, which is a secret, or hide it again. No browser is started: others on this machine would see the address among its arguments."""
        if self._inspector is None:
            say = self.screen.language
            self._tell(say("there is no inspector: start it with --inspect"))
        else:
            shown = self._view.inspector
            self._change(inspector=None if shown is not None else self._inspector)

    def _tell(self, note: str) -> None:
        self._note_until = trio.current_time() + _NOTE_LASTS
        self._change(note=note)
