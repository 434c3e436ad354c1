"""What a server and a client do alike so that their configuration can be read again: by whom that is asked for, and who is told of it."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import attrs
import trio

from trionat.cli.diagnostics import find_warnings, log_warnings
from trionat.cli.running import log_level
from trionat.config.reload import Reloader
from trionat.libraries import WATCH, require_libraries
from trionat.log import set_level

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trionat.config.client import ClientConfig
    from trionat.config.load import Configuration, Role
    from trionat.config.server import ServerConfig
    from trionat.service_manager.notification import Notification


def prepare_watching(configuration: Configuration, role: Role) -> None:
    """Import what watches files, where that is wanted, before the loop runs.

    Raises:
        StartupError: a library is not installed.
    """
    section: ServerConfig | ClientConfig = getattr(configuration, role)
    if section.reload_on_change:
        require_libraries(f"{role.capitalize()}.ReloadOnChange", WATCH, extra="watch")
        import_module("trionat.cli.file_watch")


def make_reloader(role: Role, read: Callable[[], Configuration], first: Configuration) -> Reloader:
    """Return what reads the configuration again with `read`, which blocks; `first` is that of the start."""

    def complete(configuration: Configuration) -> Configuration:
        """Add what is warned of, and the level of the log that holds in the end."""
        section: ServerConfig | ClientConfig = getattr(configuration, role)
        sections: dict[str, Any] = {
            role: attrs.evolve(section, log_level=log_level(configuration, role))
        }
        warnings = tuple(find_warnings(configuration, role))
        return attrs.evolve(configuration, **sections, warnings=warnings)

    def take(before: Configuration, after: Configuration) -> None:
        section: ServerConfig | ClientConfig = getattr(after, role)
        set_level(section.log_level or "INFO")
        log_warnings([warning for warning in after.warnings if warning not in before.warnings])

    return Reloader(lambda: complete(read()), complete(first), take)


def tell_reloads(
    reloader: Reloader, notification: Notification | None, stopping: trio.Event
) -> None:
    """Have the service manager hear when a reload begins, and is over; but not of one that a stop comes before."""
    if notification is None:
        return

    def tell(begins: bool) -> None:
        if not stopping.is_set():
            (notification.reloading if begins else notification.ready)()

    reloader.tell = tell


async def watch_files(reloader: Reloader, role: Role, *ends: trio.Event) -> None:
    """Reload when the configuration's file changes, or one that it names, until one of `ends` is set; whoever starts it cancels it in the end."""
    from trionat.cli.file_watch import watch  # noqa: PLC0415 - see `prepare_watching`

    async with trio.open_nursery() as nursery:

        async def stop_at(end: trio.Event) -> None:
            await end.wait()
            nursery.cancel_scope.cancel("the configuration counts no more here")

        for end in ends:
            nursery.start_soon(stop_at, end, name="stop watching files")
        await watch(partial(_files, reloader, role), reloader.wanted.notify)


def _files(reloader: Reloader, role: Role) -> tuple[Path, ...]:
    configuration = reloader.current
    server, client = configuration.server, configuration.client
    named = (
        (server.certificate, server.certificate_key)
        if role == "server"
        else (client.ticket_file, client.ca_file)
    )
    return tuple(path for path in (configuration.file, *named) if path is not None)
