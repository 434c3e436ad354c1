"""Units for systemd, of the machine and of a user: systemd.unit(5), systemd.service(5), systemd.exec(5)."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from trionat.errors import StartupError
from trionat.service_manager.daemon import (
    ACCOUNT,
    DESCRIPTORS,
    STOP_TIMEOUT,
    home_folder,
    require_readable,
)
from trionat.service_manager.manager import DaemonState
from trionat.service_manager.plan import Command, File, Plan, run
from trionat.store.private_file import is_there
from trionat.system import find_owner

if TYPE_CHECKING:
    from trionat.service_manager.daemon import Daemon

_MARK: Final = "# made by `trionat service install`"
"""The first line of a unit of ours: others are neither overwritten nor removed."""

_MACHINE_UNITS: Final = Path("/etc/systemd/system")
_MACHINE_TICKETS: Final = Path("/etc/trionat")
_SYSUSERS: Final = Path("/etc/sysusers.d/trionat.conf")

_OTHER_UNITS: Final = {
    True: tuple(
        Path(f"{root}/systemd/system")
        for root in ("/run", "/usr/local/lib", "/usr/lib", "/lib")  # systemd.unit(5)
    ),
    False: tuple(
        Path(f"{root}/systemd/user")
        for root in ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/usr/local/share", "/usr/share")
    ),
}
"""Where else units of a machine, and of its users, are: one of ours of the same name would come before them."""

_STATES: Final = Path("/var/lib")
_STATE_FILES: Final = ("server.key", "trionat.db", "identity", "known_servers")
"""One of which is in a state folder of ours."""

WATCHDOG: Final = 30
"""Seconds for which the event loop may stand still before systemd starts the daemon anew. Chosen: a hundred times the longest pause that was seen under load."""

_ANYWHERE: Final = (
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "NoNewPrivileges=yes",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "SystemCallArchitectures=native",
    "SystemCallErrorNumber=EPERM",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged @resources",
)
"""What the kernel forbids a daemon that has no need of it; also where no privilege is at hand to say so."""

_MACHINE_ONLY: Final = (
    "DevicePolicy=closed",
    "PrivateDevices=yes",
    "PrivateMounts=yes",
    "PrivateTmp=yes",
    "ProcSubset=pid",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHome=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectProc=invisible",
    "ProtectSystem=strict",
    "RemoveIPC=yes",
)


@attrs.frozen(kw_only=True)
class Systemd:
    """The manager of the machine, or of the user who asks."""

    machine: bool

    def installation(self, daemon: Daemon, *, start: bool) -> Plan:
        """Write the unit and the ticket, let it start by itself, and start it where `start` says so.

        Raises:
            StartupError: The program cannot be read by the account of the machine's daemons, or a unit or a state folder of that name is somebody else's.
        """
        self._require_ours(daemon.name)
        self._require_unused(daemon.name)
        files: list[File] = []
        then: list[Command] = []
        notes: list[str] = []
        if self.machine:
            require_readable(daemon.program[0])
            files.append(File(_SYSUSERS, _sysusers()))
            then.append(Command(("systemd-sysusers", str(_SYSUSERS))))
            if daemon.side == "serve":
                program = shlex.join(daemon.program)
                state = _STATES / daemon.name
                notes.append(
                    f"its users, tickets and more: sudo -u {ACCOUNT} {program} user list --state-dir {state}"
                )
        else:
            notes.append("it ends when you log out, unless you run: loginctl enable-linger")
        ticket_file = None
        if daemon.ticket is not None:
            path = self._ticket(daemon.name)
            files.append(File(path, f"{daemon.ticket}\n".encode(), 0o600))
            # The manager reads the machine's ticket as root, and shows it to the daemon alone.
            ticket_file = "${CREDENTIALS_DIRECTORY}/ticket" if self.machine else str(path)
        files.append(File(self._unit(daemon.name), self._text(daemon, ticket_file).encode()))
        then += [self._systemctl("daemon-reload"), self._systemctl("enable", daemon.name)]
        if start:
            then.append(self._systemctl("restart", daemon.name))
        # Where it does not answer, nothing is written.
        asked = self._systemctl("show", "--property=Version", advice=self._no_answer)
        return Plan(first=(asked,), files=tuple(files), then=tuple(then), notes=tuple(notes))

    def removal(self, name: str) -> Plan:
        """Stop it, and remove its unit and its ticket."""
        self._require_ours(name)
        return Plan(
            first=(self._systemctl("disable", "--now", name, optional=True),),
            removed=(self._unit(name), self._ticket(name)),
            then=(
                self._systemctl(
                    "daemon-reload",
                    advice=f"the files of {name} are removed, and whether it still runs is not known: {self._no_answer}",
                ),
                self._systemctl("reset-failed", name, optional=True),
            ),
        )

    def installed(self) -> list[str]:
        """Return the names of our units."""
        folder = self._unit("any").parent
        if not is_there(folder):
            return []
        return sorted(
            path.stem for path in folder.glob("*.service") if path.is_file() and _is_ours(path)
        )

    def folder(self, name: str) -> Path:
        """Return `WorkingDirectory`: the state folder, or by default the user's home."""
        return _STATES / name if self.machine else home_folder()

    def state(self, name: str) -> DaemonState:
        """Ask systemctl."""
        properties = (
            *("ActiveState", "StatusText", "MainPID", "Result"),
            *("ExecMainStatus", "UnitFileState"),
        )
        said = run((*self._words, "show", f"--property={','.join(properties)}", f"{name}.service"))
        if said.returncode:
            reason = (said.stderr.strip().splitlines() or ["no word why"])[0]
            raise StartupError(f"systemctl: {reason}")
        values: dict[str, str] = {}
        for line in said.stdout.splitlines():
            key, _, value = line.partition("=")
            values[key] = value
        active = values.get("ActiveState") in {"active", "reloading"}
        words = [values.get("ActiveState", "unknown")]
        if active and values.get("MainPID", "0") != "0":
            words.append(f"process {values['MainPID']}")
        if not active and values.get("Result", "success") != "success":
            code = values.get("ExecMainStatus", "")
            words.append(f"{values['Result']} {code}".replace("-", " "))
        if values.get("UnitFileState") != "enabled":
            words.append("does not start by itself")
        if text := values.get("StatusText"):
            words.append(text)
        return DaemonState(name=name, active=active, text=", ".join(words), file=self._unit(name))

    def last_words(self, name: str) -> list[str]:
        """Ask the journal."""
        try:
            scope = () if self.machine else ("--user",)
            words = ("journalctl", *scope, "-u", name, "-n", "5", "-o", "cat", "--no-pager", "-q")
            return run(words).stdout.splitlines()
        except StartupError:
            return []

    @property
    def _words(self) -> tuple[str, ...]:
        return ("systemctl",) if self.machine else ("systemctl", "--user")

    @property
    def _no_answer(self) -> str:
        """Say what to do where systemd does not answer: after su and sudo, and without a login, there is none of the user's."""
        if self.machine:
            return "systemd does not run here, or does not answer"
        return (
            "your own systemd does not answer: log in as yourself, without su or sudo; or have root run `loginctl enable-linger` with your"
            " name, and set XDG_RUNTIME_DIR to /run/user/ and your number (id -u)"
        )

    def _systemctl(self, *words: str, optional: bool = False, advice: str = "") -> Command:
        return Command((*self._words, *words), optional, advice)

    def _unit(self, name: str) -> Path:
        folder = _MACHINE_UNITS if self.machine else _configuration_folder() / "systemd/user"
        return folder / f"{name}.service"

    def _ticket(self, name: str) -> Path:
        folder = _MACHINE_TICKETS if self.machine else _configuration_folder() / "trionat"
        return folder / f"{name}.ticket"

    def _require_ours(self, name: str) -> None:
        path = self._unit(name)
        if is_there(path) and not _is_ours(path):
            raise StartupError(
                f"{path}: it was not made by trionat service: choose another name with --name, or remove that file first"
            )

    def _require_unused(self, name: str) -> None:
        for folder in _OTHER_UNITS[self.machine]:
            if is_there(path := folder / f"{name}.service"):
                raise StartupError(
                    f"{path}: there is another service of that name, which would be out of the way: choose another name with --name"
                )
        # Systemd gives all that is in it to our account (StateDirectory).
        state = _STATES / name
        if self.machine and is_there(state) and not _is_our_state(state):
            raise StartupError(
                f"{state}: another program keeps its state there: choose another name with --name"
            )

    def _text(self, daemon: Daemon, ticket_file: str | None) -> str:
        words = daemon.command(ticket_file)
        if daemon.side == "serve" and "--start-log" not in words:
            words += ("--start-log", "false")  # the journal has all of it
        command = " ".join(map(_quoted, words))
        lines = [
            f"{_MARK} {daemon.side}; it is overwritten by the next one",
            "",
            "[Unit]",
            f"Description={daemon.description} ({daemon.name})",
            *(
                ("After=network-online.target", "Wants=network-online.target")
                if self.machine
                else ()
            ),
            "",
            "[Service]",
            "Type=notify",
            "NotifyAccess=main",
            f"ExecStart={command}",
            "ExecReload=kill -HUP $MAINPID",
            "Restart=on-failure",
            "RestartSec=2",
            "# Another try does not mend a mistake in the configuration (2), nor what somebody has decided (4, 5).",
            "RestartPreventExitStatus=2 4 5",
            "# A store, and a server that is away, are waited for.",
            "TimeoutStartSec=infinity",
            f"TimeoutStopSec={STOP_TIMEOUT}",
            f"WatchdogSec={WATCHDOG}",
            f"LimitNOFILE={DESCRIPTORS}",
            "UMask=0077",
        ]
        if self.machine:
            low_ports = daemon.side == "serve"
            lines += [
                f"Environment=TRIONAT_STATE_DIR=%S/{daemon.name}",
                f"User={ACCOUNT}",
                f"WorkingDirectory=%S/{daemon.name}",
                f"StateDirectory={daemon.name}",
                "StateDirectoryMode=0700",
            ]
            if daemon.ticket is not None:
                lines.append(f"LoadCredential=ticket:{self._ticket(daemon.name)}")
            lines += [
                "",
                "# What it may do.",
                # Names need 80 and 443.
                f"AmbientCapabilities={'CAP_NET_BIND_SERVICE' if low_ports else ''}",
                f"CapabilityBoundingSet={'CAP_NET_BIND_SERVICE' if low_ports else ''}",
                f"PrivateUsers={'no' if low_ports else 'yes'}",
                *_MACHINE_ONLY,
                *_ANYWHERE,
            ]
        else:
            lines += ["", "# What it may do.", *_ANYWHERE]
        target = "multi-user.target" if self.machine else "default.target"
        return "\n".join([*lines, "", "[Install]", f"WantedBy={target}", ""])


def _sysusers() -> bytes:
    """Return the line that has systemd-sysusers make the account: sysusers.d(5)."""
    return f'{_MARK}\nu {ACCOUNT} - "trionat" /var/lib/trionat\n'.encode()


def _configuration_folder() -> Path:
    """Return where systemd looks for a user's units: file-hierarchy(7)."""
    named = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return named if named.is_absolute() else home_folder() / ".config"


def _is_our_state(folder: Path) -> bool:
    """Tell whether a folder belongs to our account, has state of ours in it, or nothing."""
    try:
        return (
            find_owner(folder) == ACCOUNT
            or any(is_there(folder / name) for name in _STATE_FILES)
            or not any(folder.iterdir())
        )
    except OSError:  # a file
        return False


def _is_ours(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline().startswith(_MARK)
    except OSError:
        return False


def _quoted(word: str) -> str:
    """Write a word of ExecStart so that systemd reads it as it is, but for `${CREDENTIALS_DIRECTORY}`: systemd.service(5), "Command lines"."""
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n")
    if not word.startswith("${CREDENTIALS_DIRECTORY}/"):
        text = text.replace("$", "$$")
    plain = word and all(character.isalnum() or character in "_@.,:/=+-" for character in word)
    return text if plain else f'"{text}"'
