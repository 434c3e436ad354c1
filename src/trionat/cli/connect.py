"""`trionat connect`."""

from __future__ import annotations

import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, assert_never

import attrs
import trio
import typer

from trionat.cli.approvals import Approver
from trionat.cli.diagnostics import log_warnings
from trionat.cli.flags import Flags, with_flags
from trionat.cli.output import say
from trionat.cli.qr_code import NO_PHONE, is_loopback, qr_code
from trionat.cli.reloading import make_reloader, prepare_watching, tell_reloads, watch_files
from trionat.cli.running import (
    Verbosity,
    find_service_manager,
    log_level,
    run_until_signalled,
    tell,
)
from trionat.cli.screen.choice import can_show_screen
from trionat.cli.screen.language import ENGLISH
from trionat.client.app import Client
from trionat.client.native.dialer import find_servers
from trionat.config.client import AuthConfig, ClientConfig
from trionat.config.load import Configuration, load
from trionat.config.service import parse_service
from trionat.errors import ConfigError, Problem, StartupError
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
from trionat.log import get_logger
from trionat.protocol.ticket import Ticket
from trionat.text import is_ticket_like
from trionat.transport.descriptors import warn_if_short

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.cli.screen.client_page import ClientView
    from trionat.cli.screen.client_screen import ClientScreen
    from trionat.cli.screen.screen import Screen
    from trionat.config.reload import Reloader
    from trionat.service_manager.notification import Notification

log = get_logger(__name__)

_NUMBER: Final = re.compile(r"\b\d+(?= s\b)")
"""Seconds, in a reason that is else the same as the one before."""

_LONG_WORD: Final = re.compile(r"[\w-]{24,}", re.ASCII)
"""What is too long for a name of something, and could be a piece of a ticket."""

_OTHER_DESCRIPTORS: Final = 8
"""Of a client that is up, besides those for visitors: its control connection, its log and so on."""


@with_flags(AuthConfig, ClientConfig)
def connect(
    flags: Flags,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TICKET] [SERVICE]...",
            help="The ticket that the server printed (or TRIONAT_TICKET, or --ticket-file), and the services: 8080, "
            "127.0.0.1:22, 6379:60001 (local port, wanted visit port), /run/app.sock, http:8080, http:8080@shop (a name).",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The configuration file.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line on standard output.")
    ] = False,
    qr: Annotated[
        bool,
        typer.Option("--qr", help="Show the public address as a QR code as well, for a phone."),
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Lines instead of the screen, at a terminal.")
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", help="Only the public addresses, and what somebody should look at."
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Lines for whoever looks for a fault.")
    ] = False,
) -> None:
    """Run the private side: make services here reachable. They stay so: a connection that is lost comes back by itself."""
    try:
        verbosity = Verbosity.of(quiet=quiet, verbose=verbose)
        if verbosity.log_level is not None:
            flags = {**flags, "Client.LogLevel": verbosity.log_level}
        ticket, services = read_arguments(arguments or [])
        given = {**flags, "Client.Ticket": ticket, "Client.Services": services or None}
        read = partial(
            load,
            "client",
            file=config,
            flags=given,
            environ=os.environ,
            check_ticket=Ticket.decode,
        )
        configuration = read()
        configuration, typed = _with_password(configuration)
        level = log_level(configuration, "client")
        prepare_watching(configuration, "client")
    except (ConfigError, StartupError) as error:
        raise typer.Exit(tell([error])) from None
    reloader = make_reloader("client", lambda: _with_typed(read(), typed), configuration)
    notification = find_service_manager()
    has_screen = not (as_json or plain) and verbosity is Verbosity.USUAL and can_show_screen()
    screen = _new_screen() if has_screen else None
    output = _Output(as_json=as_json, qr=qr, quiet=quiet, screen=screen)
    run_until_signalled(
        partial(_connect, reloader, notification, output),
        log_file=configuration.client.log_filename,
        notification=notification,
        level=level,
        on_hangup=reloader.wanted.notify,
        is_quiet=quiet,
        screen=screen,
    )


def _new_screen() -> Screen[ClientView]:
    from trionat.cli.screen.client_screen import new_screen  # noqa: PLC0415 - start time, memory

    return new_screen()


@attrs.frozen
class _Output:
    """How a client tells what it does."""

    as_json: bool
    qr: bool
    quiet: bool
    screen: Screen[ClientView] | None


def _with_typed(configuration: Configuration, typed: str | None) -> Configuration:
    """Return the configuration with the password that was typed at the start, where it still needs one."""
    auth = configuration.auth
    if typed is None or auth.username is None or auth.password is not None:
        return configuration
    return attrs.evolve(configuration, auth=attrs.evolve(auth, password=typed))


def _with_password(configuration: Configuration) -> tuple[Configuration, str | None]:
    """Ask for the password where there is a user and neither a password nor a ticket; return what was typed as well.

    Without a terminal it is one line of standard input; an empty one is told with the other ways to give it.
    """
    auth, client = configuration.auth, configuration.client
    if auth.username is None or auth.password is not None or client.ticket or client.ticket_file:
        return configuration, None
    from trionat.cli.password import read_password  # noqa: PLC0415 - memory

    password = read_password(
        otherwise="TRIONAT_AUTH_PASSWORD, Auth.Password in a file, or a ticket"
    )
    auth = attrs.evolve(auth, password=password)
    warnings = [Problem("password", reason) for _, reason in auth.warnings()]
    warned = (*configuration.warnings, *warnings)
    return attrs.evolve(configuration, auth=auth, warnings=warned), password


def check_complete(configuration: Configuration) -> None:
    """See to it that nothing is missing without which no client starts where nobody is asked. A file with a ticket is not read.

    Raises:
        ConfigError: there is no service, no server, or no password.
    """
    auth, client = configuration.auth, configuration.client
    client.effective_services()
    if client.ticket_file is not None:
        return
    find_servers(client, auth)
    if auth.username is not None and auth.password is None and not client.ticket:
        reason = "nobody is there who could be asked for it: write Auth.Password into a file, and name that with --config, or give a ticket"
        raise ConfigError(Problem("password", reason))


def split_arguments(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Return the ticket, wherever it stands, and the services: a ticket looks like nothing else.

    One that was pasted with line breaks in it, and that the shell has cut there, is put together again if that makes it whole.

    Raises:
        ConfigError: There are two, or it is damaged. What stands behind it is not looked at, as it may be a part of it.
    """
    tickets = [number for number, argument in enumerate(arguments) if is_ticket_like(argument)]
    if not tickets:
        return None, arguments
    if len(tickets) > 1:
        reason = f"there are {len(tickets)} tickets: give one, and start one client for each server"
        raise ConfigError(Problem("argument TICKET", reason))
    start = tickets[0]
    reasons: list[str] = []
    for end in range(start + 1, len(arguments) + 1):
        text = "".join(arguments[start:end])
        try:
            Ticket.decode(text)
        except ValueError as error:
            reasons.append(str(error))
        else:
            return text, [*arguments[:start], *arguments[end:]]
    raise ConfigError(Problem("ticket", reasons[0]))


def read_arguments(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Return the ticket and the services of what has no flags in it, as `split_arguments` does.

    Raises:
        ConfigError: As there; or there is no ticket, and the first word, which may be a mistyped one, is no service either.
    """
    ticket, services = split_arguments(arguments)
    if ticket is not None or not services:
        return ticket, services
    try:
        parse_service(services[0])
    except ValueError as error:
        if _LONG_WORD.fullmatch(services[0]):  # most likely a ticket's, which is not shown
            reason = "the first word is neither a service nor a ticket"
        else:
            reason = f"Client.Services[0]: {error}"
        reason += "; a ticket begins with tn1_, tn2_ or tn3_"
        raise ConfigError(Problem("argument SERVICE", reason)) from None
    return None, services


async def _connect(
    reloader: Reloader,
    notification: Notification | None,
    output: _Output,
    stopping: trio.Event,
) -> None:
    as_json = output.as_json
    configuration = reloader.current
    log_warnings(configuration.warnings)
    tell_reloads(reloader, notification, stopping)
    if configuration.file is not None:
        log.info("configuration read", file=str(configuration.file))
    tunnels = configuration.client.max_tunnels
    warn_if_short(
        2 * tunnels + _OTHER_DESCRIPTORS, f"MaxTunnels {tunnels}, each with a local connection"
    )
    show: Callable[[ClientEvent], None] = (
        show_json if as_json else TextEvents(qr=output.qr, quiet=output.quiet)
    )
    screen: ClientScreen | None = None
    if output.screen is not None:
        from trionat.cli.screen.client_screen import ClientScreen  # noqa: PLC0415 - as above

        services = configuration.client.effective_services()
        code = qr_code if output.qr else None
        show = screen = ClientScreen(output.screen, services, stopping, code)

    def tell_event(event: ClientEvent) -> None:
        if isinstance(event, ApprovalAsked):
            # A person knows it by its name; scripts get what the configuration calls it.
            name, place = event.name, client.place(event.service)
            if not as_json and place is not None and place < len(client.services):
                name = client.services[place].shown
            approver.ask(attrs.evolve(event, name=name))
            return
        if notification is not None and (status := _status(event)):
            notification.status(status)
        show(event)

    client = Client(
        configuration.client,
        configuration.auth,
        tell_event,
        stopping,
        looks_after=screen is not None,
        default_folder=True,
    )
    asks = any(service.approve for service in configuration.client.named_services())
    approver = Approver(
        lambda service, host, approved: client.approve(service, host, approved=approved),
        as_json,
        on_screen=screen is not None,
        language=ENGLISH if output.screen is None else output.screen.language,
        nobody_answers=asks and screen is None and _nobody_answers(as_json=as_json),
    )
    if notification is not None:
        notification.ready()  # a server that is away is waited for, and does not hold up the machine's start
    reloader.reloadable = client
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reloader.run, name="reload")
        if configuration.client.reload_on_change:
            nursery.start_soon(watch_files, reloader, "client", stopping, name="reload on change")
        await _run_client(configuration, client, approver, screen, as_json=as_json)
        nursery.cancel_scope.cancel("the client stops")


async def _run_client(
    configuration: Configuration,
    client: Client,
    approver: Approver,
    screen: ClientScreen | None,
    *,
    as_json: bool,
) -> None:
    """Run the client, show it on the screen, and ask the owner of its services about visitors, where he wants that."""
    asks = any(service.approve for service in configuration.client.named_services())
    if not asks and screen is None:
        await client.run()
        return
    if asks and _nobody_answers(as_json=as_json):
        log.warning(
            "nobody can be asked who may visit (Approve), so nobody gets in: run it at a terminal, or with --json and a program at its standard input"
        )
    async with trio.open_nursery() as nursery:
        if screen is not None:
            nursery.start_soon(screen.run, client, approver, name="show it")
        nursery.start_soon(approver.listen, name="hear what is approved")
        nursery.start_soon(approver.expire, name="questions that nobody answers")
        await client.run()
        nursery.cancel_scope.cancel("the client stops")


def _status(event: ClientEvent) -> str | None:
    """Return how the client stands after this event, in a line; None where that is as before."""
    match event:
        case Connected():
            return ", ".join(f"{service.shown} -> {service.local}" for service in event.services)
        case Queued(None):
            return "waits for the server"
        case Queued(position):
            return f"number {position} in the queue of the server"
        case Disconnected(reason=reason, retry_in=None):
            return f"over: {reason}"
        case Disconnected(reason=reason, retry_in=retry_in):
            return f"not connected: {reason}; tries again in {retry_in:.0f} s"
        case _:
            return None


def _nobody_answers(*, as_json: bool) -> bool:
    """Tell whether nothing can come from standard input that the approver listens to."""
    if sys.stdin is None or sys.stdin.closed:
        return True
    descriptor = sys.stdin.fileno()
    if not as_json:
        return not os.isatty(descriptor)
    return os.path.samestat(os.fstat(descriptor), Path(os.devnull).stat())


@attrs.define(eq=False)
class TextEvents:
    """Tells a person: the public address first of all. A reason that comes again and again is told less and less often, counted.

    With `qr` the address is also shown as a code, where it has changed. With `quiet` it is the address and no more.
    """

    qr: bool = False
    quiet: bool = False
    _shown: str = attrs.field(init=False, default="")
    _was_up: bool = attrs.field(init=False, default=False)
    _reason: str = attrs.field(init=False, default="")
    _tries: int = attrs.field(init=False, default=0)

    def __call__(self, event: ClientEvent) -> None:
        """Print an event, or log it."""
        match event:
            case Connected():
                for service in event.services:
                    say(f"{service.shown} -> {service.local}")
                if not self.quiet:
                    login = f"logged in as {event.username}" if event.username else "no login"
                    say(f"  server   {event.server}, {login}, uid {event.uid}")
                    say(f"  tunnels  {event.tunnel}, {'' if event.encrypted else 'NOT '}encrypted")
                self._was_up, self._reason = True, ""
                if self.qr:
                    self._show_code(event)
            case Queued(None):
                say("no answer from the server yet: its sessions may all be taken; waiting for one")
            case Queued(position):
                say(f"all sessions are taken: number {position} in the queue")
            case Disconnected(reason=reason, retry_in=retry_in):
                if retry_in is not None:  # else the reason comes with the exit
                    self._tell_failure(reason, retry_in)
            case Draining(seconds):
                log.warning("the server stops or is drained: visitors may finish", seconds=seconds)
            case ServiceDown() | ServiceUp():
                pass  # the log has it, which is on the terminal as well
            case ApprovalAsked():
                pass  # the approver asks
            case Inspecting(url):
                say(f"inspector: {url}")
            case _:
                assert_never(event)

    def _show_code(self, event: Connected) -> None:
        """Show that of the first service: two codes beside each other are read by chance."""
        shown = event.services[0].shown
        address = shown if "://" in shown else f"http://{shown}"
        if address != self._shown:
            say(f"\n{address}\n{qr_code(address)}")
            if is_loopback(address):
                say(NO_PHONE)
            self._shown = address

    def _tell_failure(self, reason: str, retry_in: float) -> None:
        same = _NUMBER.sub("", reason)  # a ban tells how many seconds are left of it
        self._tries = self._tries + 1 if same == self._reason else 1
        self._reason = same
        if self._tries & (self._tries - 1):  # the first, second, fourth, eighth ... time
            return
        what = "disconnected" if self._was_up else "cannot connect"
        self._was_up = False
        tries = self._tries if self._tries > 1 else None
        log.warning(what, reason=reason, tries=tries, retry_in=retry_in)


def show_json(event: ClientEvent) -> None:
    """Tell a script."""
    line: dict[str, object]
    match event:
        case Connected():
            services = [
                {"name": service.name, "local": str(service.local), "public": service.shown}
                for service in event.services
            ]
            line = {
                "event": "connected",
                "uid": event.uid,
                "server": str(event.server),
                "services": services,
            }
        case Queued(position):
            line = {"event": "queued", "position": position}
        case Disconnected(reason=reason, retry_in=retry_in):
            line = {"event": "disconnected", "reason": reason, "retry_in": retry_in}
        case Draining(seconds):
            line = {"event": "draining", "seconds": seconds}
        case ServiceDown(name=name, local=local, reason=reason):
            line = {"event": "service-down", "name": name, "local": str(local), "reason": reason}
        case ServiceUp(name=name, local=local):
            line = {"event": "service-up", "name": name, "local": str(local)}
        case ApprovalAsked():
            return  # the approver asks
        case Inspecting(url):
            line = {"event": "inspecting", "url": url}
        case _:
            assert_never(event)
    say(json.dumps(line))
