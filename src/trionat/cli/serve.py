"""`trionat serve`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import trio
import typer

from trionat.cli.diagnostics import log_warnings
from trionat.cli.flags import Flags, with_flags
from trionat.cli.output import say
from trionat.cli.reloading import make_reloader, prepare_watching, tell_reloads, watch_files
from trionat.cli.running import (
    Verbosity,
    find_service_manager,
    log_level,
    run_until_signalled,
    tell,
)
from trionat.cli.screen.choice import can_show_screen
from trionat.config.cluster import ClusterConfig
from trionat.config.database import DatabaseConfig
from trionat.config.load import SEARCHED, load
from trionat.config.server import ServerConfig
from trionat.config.values import PORTS, user_state_dir
from trionat.errors import ConfigError, StartupError
from trionat.events import Ready
from trionat.libraries import CONSOLE, NAMES, require_libraries
from trionat.server.app import reserve
from trionat.server.app import serve as run_server
from trionat.server.upgrade.upgrade import (
    VARIABLE,
    Upgrade,
    this_command,
    this_environment,
)
from trionat.system import is_in_foreground
from trionat.text import counted
from trionat.version import VERSION

if TYPE_CHECKING:
    from trionat.cli.screen.screen import Screen
    from trionat.cli.screen.server_page import PublicView
    from trionat.cli.screen.server_screen import ServerScreen
    from trionat.config.load import Configuration
    from trionat.config.reload import Reloader
    from trionat.server.upgrade.predecessor import Predecessor
    from trionat.service_manager.notification import Notification


@with_flags(ServerConfig, DatabaseConfig, ClusterConfig)
def serve(
    flags: Flags,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The configuration file.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line on standard output.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Lines instead of the screen, at a terminal.")
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", help="After the start only what somebody should look at."),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Lines for whoever looks for a fault.")
    ] = False,
) -> None:
    """Run the public side: clients and visitors connect here.

    Starts without any file or flag. Configuration comes from flags, environment (TRIONAT_SERVER_...), server.yml, defaults,
    in this order.
    """
    environ = dict(os.environ)  # before what is for this process only is taken out
    predecessor = _find_predecessor()
    try:
        verbosity = Verbosity.of(quiet=quiet, verbose=verbose)
        if verbosity.log_level is not None:
            flags = {**flags, "Server.LogLevel": verbosity.log_level}
        read = partial(load, "server", file=config, flags=flags, environ=os.environ)
        configuration = read()
        server = configuration.server
        level = log_level(configuration, "server")
        log_file = server.effective_log_filename if server.start_log else None
        require_parts(configuration)
    except (ConfigError, StartupError) as error:
        if predecessor is not None:
            predecessor.decline(str(error))
        raise typer.Exit(tell([error])) from None
    reloader = make_reloader("server", read, configuration)
    notification = find_service_manager()
    # Of two processes on one terminal, the one whose place this one takes still has it.
    can_show = predecessor is None and verbosity is Verbosity.USUAL and can_show_screen()
    screen = _new_screen() if can_show and not (as_json or plain) else None
    upgrade = Upgrade(
        this_command(sys.orig_argv, sys.executable),
        this_environment(environ),
        is_at_terminal=is_in_foreground,
    )
    if notification is not None:
        upgrade.on_success, upgrade.orphaned = notification.main_process, True
    run_until_signalled(
        partial(_serve, reloader, as_json, notification, upgrade, predecessor, screen),
        log_file=log_file,
        log_mode=0o666 if server.log_filename else 0o600,  # the state folder is its owner's
        reserved=reserve(server, upgrade=upgrade, predecessor=predecessor),
        notification=notification,
        on_upgrade=upgrade.ask,
        level=level,
        on_hangup=reloader.wanted.notify,
        is_quiet=quiet,
        screen=screen,
    )


def require_parts(configuration: Configuration) -> None:
    """Import what the configuration needs, before the loop runs.

    Raises:
        StartupError: a library is not installed.
    """
    prepare_watching(configuration, "server")
    if configuration.cluster is not None:
        from trionat.server.cluster.redis_link import (  # noqa: PLC0415 - only there
            require_library,
        )

        require_library()
    if configuration.server.console_addr is not None:
        require_libraries("Server.ConsoleAddr", CONSOLE, extra="console")
    if configuration.server.domain is not None:
        require_libraries("Server.Domain", NAMES, extra="names")


def _new_screen() -> Screen[PublicView]:
    from trionat.cli.screen.server_screen import new_screen  # noqa: PLC0415 - start time, memory

    return new_screen()


def _new_server_screen(
    screen: Screen[PublicView], configuration: Configuration, stopping: trio.Event
) -> ServerScreen:
    from trionat.cli.screen.server_screen import ServerScreen  # noqa: PLC0415 - as above
    from trionat.server.admin.messages import (  # noqa: PLC0415 - as above
        AskStatus,
        decode_answer,
        encode_request,
    )
    from trionat.server.admin.socket import call  # noqa: PLC0415 - as above

    folder = configuration.server.effective_state_dir
    return ServerScreen(
        screen, stopping, lambda: decode_answer(call(folder, encode_request(AskStatus())))
    )


def _find_predecessor() -> Predecessor | None:
    """Return the process whose place this one is to take, if there is one."""
    if VARIABLE not in os.environ:
        return None
    from trionat.server.upgrade.predecessor import Predecessor  # noqa: PLC0415 - seldom

    return Predecessor.find(os.environ)


async def _serve(
    reloader: Reloader,
    as_json: bool,
    notification: Notification | None,
    upgrade: Upgrade,
    predecessor: Predecessor | None,
    on_screen: Screen[PublicView] | None,
    stopping: trio.Event,
) -> None:
    run = partial(_run, reloader, as_json, notification, upgrade, predecessor, stopping)
    if on_screen is None:
        await run(None)
        return
    screen = _new_server_screen(on_screen, reloader.current, stopping)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(screen.run, name="show it")
        await run(screen)
        nursery.cancel_scope.cancel("the server has stopped")


async def _run(
    reloader: Reloader,
    as_json: bool,
    notification: Notification | None,
    upgrade: Upgrade,
    predecessor: Predecessor | None,
    stopping: trio.Event,
    screen: ServerScreen | None,
) -> None:
    configuration = reloader.current
    log_warnings(configuration.warnings)
    tell_reloads(reloader, notification, stopping)
    job = partial(
        run_server,
        configuration.server,
        database=configuration.database,
        cluster=configuration.cluster,
        acme=configuration.acme,
        origins=configuration.origins,
        events=configuration.events,
        stopping=stopping,
        reserved=True,
        default_folder=True,
        reloader=reloader,
        upgrade=upgrade,
        predecessor=predecessor,
    )
    async with trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[Ready]) -> None:  # noqa: ASYNC128 - what it calls does
            await job(task_status=task_status)
            # At a stop, and after an upgrade, which nothing else tells of: what runs beside the server ends with it.
            nursery.cancel_scope.cancel("the server has ended")

        try:
            watching = trio.CancelScope()
            with trio.CancelScope() as starting:

                async def give_up() -> None:
                    with watching:
                        await stopping.wait()
                        starting.cancel("told to stop before it was up")

                nursery.start_soon(give_up, name="stop before it is up")
                ready: Ready = await nursery.start(serve, name="serve")
                watching.cancel("it is up")  # another process may take its place
                file = configuration.file
                if screen is not None:
                    screen.note_ready(
                        ready, banner(ready, file), _command(ready), ticket_command(ready, file)
                    )
                elif as_json:
                    say(json.dumps(_as_json(ready, file)))
                elif predecessor is None:
                    say(banner(ready, file))
                else:
                    say(f"trionat {VERSION} serves in place of process {predecessor.pid}")
                if notification is not None:
                    notification.ready()
                    notification.status(f"clients dial {ready.public}")
                if configuration.server.reload_on_change:
                    ends = (stopping, upgrade.done)
                    nursery.start_soon(watch_files, reloader, "server", *ends, name="reload")
        except StartupError:
            if not stopping.is_set():  # else it was the first to hear of that
                raise


def _as_json(ready: Ready, file: Path | None) -> dict[str, object]:
    return {
        "event": "ready",
        "control": str(ready.control),
        "tunnel": str(ready.tunnel),
        "visit_ports": list(ready.visit_ports),
        "public": str(ready.public),
        "fingerprint": ready.fingerprint,
        **({} if ready.console is None else {"console": ready.console}),
        **({} if ready.domain is None else {"domain": ready.domain}),
        "configuration": None if file is None else str(file),
        **({} if ready.ticket is None else {"ticket": ready.ticket}),
        **(
            {}
            if ready.node is None
            else {
                "node": ready.node,
                "node_addr": str(ready.node_addr),
                "other_nodes": ready.other_nodes,
            }
        ),
        **{
            name: str(address)
            for name in ("proxy_control", "proxy_visit", "http", "https")
            if (address := getattr(ready, name)) is not None
        },
    }


def _names_row(ready: Ready) -> str:
    """Tell where services have names, and which DNS records lead there."""
    from trionat.server.names.dns_records import needed  # noqa: PLC0415 - only with a domain

    domain = ready.domain or ""
    records = needed(domain, ready.public)
    if not records:
        return f"https://{domain}  (http {ready.http}, https {ready.https})"
    lines = [
        f"below {domain}  (http {ready.http}, https {ready.https})",
        *(f"DNS record: {record}" for record in records),
    ]
    return f"\n{'':18}".join(lines)


def _command(ready: Ready) -> str | None:
    """Return what to run beside a private service, where the ticket for that is known."""
    if ready.ticket is None:
        return None
    return f"trionat connect {ready.ticket} {'8080' if ready.domain is None else 'http:8080'}"


def ticket_command(ready: Ready, file: Path | None = None) -> str:
    """Return what prints a user's ticket, with what it takes to find this server: `file` is the configuration file that was read."""
    found = [folder / "server.yml" for folder in SEARCHED]  # by every command that runs here
    words = [] if file is None or file in found else ["--config", str(file)]
    try:
        usual = str(user_state_dir())
    except StartupError:  # no home, so this one was named
        usual = None
    if ready.state_dir not in {None, usual}:
        words += ["--state-dir", str(ready.state_dir)]
    return " ".join(["trionat user ticket NAME", *map(shlex.quote, words)])


def banner(ready: Ready, file: Path | None = None) -> str:
    """Return what a person sees who starts a server; `file` is the configuration file that was read."""
    rows = {
        "name": ready.name,
        "control": f"{ready.control}"
        + ("" if ready.public == ready.control else f"  (clients dial {ready.public})"),
        "tunnels": str(ready.tunnel),
        "visit ports": PORTS.write(ready.visit_ports),
        "sessions": f"{ready.sessions} at once",
        "authentication": "on"
        if ready.authentication
        else "OFF: whoever reaches the control port may connect",
        "fingerprint": ready.fingerprint,
        "state": ready.state_dir,
    }
    if ready.domain is not None:
        rows["names"] = _names_row(ready)
    if ready.console is not None:
        rows["console"] = ready.console
    if ready.proxy_control is not None or ready.proxy_visit is not None:
        both = {"clients": ready.proxy_control, "visitors": ready.proxy_visit}
        rows["from proxies"] = ", ".join(
            f"{who} at {address}" for who, address in both.items() if address is not None
        )
    if ready.node is not None:
        others = (
            f"{counted(ready.other_nodes, 'other node')} there"
            if ready.redis_away is None
            else f"Redis is away: {ready.redis_away}"
        )
        rows["cluster"] = f"node {ready.node} at {ready.node_addr}, {others}"
    if file is not None:
        rows["configuration"] = str(file)
    if ready.legacy_clients:
        rows["NAT clients"] = "let in: their traffic can be read on the way"
    if ready.database is not None and ready.authentication:
        rows["users"] = f"in the database {ready.database}"
    if ready.first_password is not None:
        rows["first user"] = (
            f"{ready.first_user}, password {ready.first_password} (shown only this once)"
        )
    lines = [
        f"trionat {VERSION} server",
        *(f"  {title:14}  {text}" for title, text in rows.items()),
        "",
    ]
    if (command := _command(ready)) is not None:
        lines += ["Beside the private service, run (8080 stands for its port):", "", f"  {command}"]
    else:
        lines += [f"A user's ticket: {ticket_command(ready, file)}"]
    return "\n".join([*lines, ""])
