"""Agents of a user for launchd: launchd.plist(5), launchctl(1)."""

from __future__ import annotations

import os
import plistlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from trionat.errors import StartupError
from trionat.service_manager.daemon import DESCRIPTORS, STOP_TIMEOUT, home_folder
from trionat.service_manager.manager import DaemonState
from trionat.service_manager.plan import Command, File, Plan, run
from trionat.system import find_user_id

if TYPE_CHECKING:
    from trionat.service_manager.daemon import Daemon

_PREFIX: Final = "trionat.service."
"""Labels of ours begin with it, and so do their files."""


@attrs.frozen
class Launchd:
    """The manager of the user who asks."""

    def installation(self, daemon: Daemon, *, start: bool) -> Plan:
        """Write the job and the ticket, and load it, which starts it."""
        files: list[File] = []
        ticket_file = None
        if daemon.ticket is not None:
            path = self._ticket(daemon.name)
            files.append(File(path, f"{daemon.ticket}\n".encode(), 0o600))
            ticket_file = str(path)
        content = plistlib.dumps(self._job(daemon, ticket_file), sort_keys=False)
        file = self._file(daemon.name)
        files.append(File(file, content))
        label = f"{self._domain}/{_PREFIX}{daemon.name}"
        return Plan(
            first=(Command(("launchctl", "bootout", label), optional=True),),
            files=tuple(files),
            then=(
                Command(("launchctl", "enable", label)),
                *((Command(("launchctl", "bootstrap", self._domain, str(file))),) if start else ()),
            ),
            notes=(f"its log: {self._log(daemon.name)}",),
        )

    def removal(self, name: str) -> Plan:
        """Unload it, which stops it, and remove its files."""
        return Plan(
            first=(
                Command(("launchctl", "bootout", f"{self._domain}/{_PREFIX}{name}"), optional=True),
            ),
            removed=(self._file(name), self._ticket(name)),
        )

    def installed(self) -> list[str]:
        """Return the names of our jobs."""
        folder = self._file("any").parent
        return sorted(
            path.name.removeprefix(_PREFIX).removesuffix(".plist")
            for path in folder.glob(f"{_PREFIX}*.plist")
        )

    def folder(self, name: str) -> Path:
        """Return launchd's own: launchd.plist(5), "WorkingDirectory"."""
        return Path("/")

    def state(self, name: str) -> DaemonState:
        """Ask launchctl."""
        said = run(("launchctl", "print", f"{self._domain}/{_PREFIX}{name}"))
        values: dict[str, str] = {}
        for line in said.stdout.splitlines():
            key, equals, value = line.strip().partition(" = ")
            if equals:
                values.setdefault(key, value)
        active = values.get("state") == "running"
        words = [values.get("state", "not loaded")]
        if "pid" in values:
            words.append(f"process {values['pid']}")
        if not active and "last exit code" in values:
            words.append(f"ended with {values['last exit code']}")
        return DaemonState(name=name, active=active, text=", ".join(words), file=self._file(name))

    def last_words(self, name: str) -> list[str]:
        """Read its log."""
        try:
            with self._log(name).open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 4096))
                return file.read().decode("utf-8", "replace").splitlines()[-5:]
        except OSError:
            return []

    @property
    def _domain(self) -> str:
        return f"gui/{_uid()}"

    def _file(self, name: str) -> Path:
        return _library() / "LaunchAgents" / f"{_PREFIX}{name}.plist"

    def _ticket(self, name: str) -> Path:
        return _library() / "Application Support/trionat" / f"{name}.ticket"

    def _log(self, name: str) -> Path:
        return _library() / "Logs" / f"trionat-{name}.log"

    def _job(self, daemon: Daemon, ticket_file: str | None) -> dict[str, Any]:
        limits = {"NumberOfFiles": DESCRIPTORS}
        return {
            "Label": f"{_PREFIX}{daemon.name}",
            "ProgramArguments": list(daemon.command(ticket_file)),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 5,
            "ExitTimeOut": STOP_TIMEOUT,
            "ProcessType": "Interactive",  # else it gets little processor time
            "Umask": 0o077,
            "SoftResourceLimits": limits,
            "HardResourceLimits": limits,
            "StandardOutPath": str(self._log(daemon.name)),
            "StandardErrorPath": str(self._log(daemon.name)),
        }


def _library() -> Path:
    return home_folder() / "Library"


def _uid() -> int:
    number = find_user_id()
    if number is None:
        raise StartupError("launchd is there on macOS only")
    return number
