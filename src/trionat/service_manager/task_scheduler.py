"""Tasks for the scheduler of Windows, at a user's login: schtasks, and the Task Scheduler schema."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

import attrs

from trionat.service_manager.daemon import home_folder
from trionat.service_manager.manager import DaemonState
from trionat.service_manager.plan import Command, File, Plan, run

if TYPE_CHECKING:
    from trionat.service_manager.daemon import Daemon

_FOLDER: Final = "trionat"
"""Where the scheduler lists our tasks."""

_TASK: Final = """\
<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo>
    <Description>{description}</Description>
  </RegistrationInfo>
  <Triggers>
    <LogonTrigger>
      <Enabled>true</Enabled>
    </LogonTrigger>
  </Triggers>
  <Principals>
    <Principal id="Author">
      <LogonType>InteractiveToken</LogonType>
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <RestartOnFailure>
      <Interval>PT1M</Interval>
      <Count>255</Count>
    </RestartOnFailure>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>{command}</Command>
      <Arguments>{arguments}</Arguments>
    </Exec>
  </Actions>
</Task>
"""


@attrs.frozen
class TaskScheduler:
    """Tasks that start when the user who asks logs in."""

    def installation(self, daemon: Daemon, *, start: bool) -> Plan:
        """Write the task and the ticket, register it, and start it where `start` says so."""
        files: list[File] = []
        ticket_file = None
        if daemon.ticket is not None:
            path = self._file(daemon.name, "ticket")
            files.append(File(path, f"{daemon.ticket}\n".encode(), 0o600))
            ticket_file = str(path)
        program, *arguments = daemon.command(ticket_file)
        task = _TASK.format(
            description=escape(daemon.description),
            command=escape(program),
            arguments=escape(subprocess.list2cmdline(arguments)),
        )
        file = self._file(daemon.name, "xml")
        files.append(File(file, task.encode("utf-16")))
        name = _task(daemon.name)
        return Plan(
            files=tuple(files),
            then=(
                Command(("schtasks", "/Create", "/F", "/TN", name, "/XML", str(file))),
                *((Command(("schtasks", "/Run", "/TN", name)),) if start else ()),
            ),
        )

    def removal(self, name: str) -> Plan:
        """End the task, and remove it and its files."""
        return Plan(
            first=(
                Command(("schtasks", "/End", "/TN", _task(name)), optional=True),
                Command(("schtasks", "/Delete", "/F", "/TN", _task(name)), optional=True),
            ),
            removed=(self._file(name, "xml"), self._file(name, "ticket")),
        )

    def installed(self) -> list[str]:
        """Return the names of our tasks."""
        return sorted(path.stem for path in self._file("any", "xml").parent.glob("*.xml"))

    def folder(self, name: str) -> Path:
        """Return the scheduler's own."""
        return Path(os.environ.get("SYSTEMROOT", "C:\\Windows")) / "System32"

    def state(self, name: str) -> DaemonState:
        """Ask schtasks, whose words are in the language of this Windows but for the number of the last result."""
        said = run(("schtasks", "/Query", "/TN", _task(name), "/FO", "CSV", "/NH"))
        text = said.stdout.strip().split('","')[-1].strip('"') if not said.returncode else ""
        return DaemonState(
            name=name,
            active=text.casefold() == "running",
            text=text or "not registered",
            file=self._file(name, "xml"),
        )

    def last_words(self, name: str) -> list[str]:
        """Return none: the scheduler keeps nothing of what a task says."""
        del name
        return []

    def _file(self, name: str, kind: str) -> Path:
        root = os.environ.get("LOCALAPPDATA")
        folder = Path(root) if root else home_folder()
        return folder / "trionat" / "tasks" / f"{name}.{kind}"


def _task(name: str) -> str:
    return f"\\{_FOLDER}\\{name}"
