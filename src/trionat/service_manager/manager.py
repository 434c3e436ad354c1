"""The service manager of this machine, whichever it is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

import attrs

from trionat.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trionat.service_manager.daemon import Daemon
    from trionat.service_manager.plan import Plan


@attrs.frozen(kw_only=True)
class DaemonState:
    """How an installed daemon stands: whether it is `active`, and what the manager says of it, in a line."""

    name: str
    active: bool
    text: str
    file: Path


class ServiceManager(Protocol):
    """What each of them can do. All of it blocks."""

    def installation(self, daemon: Daemon, *, start: bool) -> Plan:
        """Say what makes it a daemon that starts with the machine or the login, and at once where `start` says so."""
        ...

    def removal(self, name: str) -> Plan:
        """Say what stops it and takes it away. What trionat itself has kept (keys, users) stays."""
        ...

    def installed(self) -> Sequence[str]:
        """Return the names of our daemons."""
        ...

    def folder(self, name: str) -> Path:
        """Return the folder that one starts in."""
        ...

    def state(self, name: str) -> DaemonState:
        """Return how one stands.

        Raises:
            StartupError: The manager cannot be asked.
        """
        ...

    def last_words(self, name: str) -> Sequence[str]:
        """Return the last lines of its log, for whoever wonders why it did not start; none where they cannot be had."""
        ...


def find_manager(*, machine: bool) -> ServiceManager:
    """Return that of this platform: of the whole machine, or of this user.

    Raises:
        ConfigError: The whole machine's is wanted where that needs an account of its own, which only Linux has a plain way to make.
    """
    if machine and sys.platform in {"win32", "darwin"}:
        reason = "not on this system, where it would run with all rights: leave it out, for a service of your own"
        raise ConfigError(Problem("--system", reason))
    if sys.platform == "win32":
        from trionat.service_manager.task_scheduler import TaskScheduler  # noqa: PLC0415 - there

        return TaskScheduler()
    if sys.platform == "darwin":
        from trionat.service_manager.launchd import Launchd  # noqa: PLC0415 - only there

        return Launchd()
    from trionat.service_manager.systemd import Systemd  # noqa: PLC0415 - only there

    return Systemd(machine=machine)
