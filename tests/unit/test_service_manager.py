"""What would be written and run to keep a server or client up, on each system, and what systemd is told."""

from __future__ import annotations

import os
import plistlib
import shutil
import socket
import subprocess
import sys
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import attrs
import pytest
import trio

from trionat.errors import ConfigError, StartupError
from trionat.service_manager import manager, systemd
from trionat.service_manager.daemon import Daemon, check_name, require_readable
from trionat.service_manager.launchd import Launchd
from trionat.service_manager.notification import Notification
from trionat.service_manager.plan import Command, File, Plan
from trionat.service_manager.systemd import Systemd
from trionat.service_manager.task_scheduler import TaskScheduler

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OTHER_UNITS = systemd._OTHER_UNITS
TICKET = "tn1_abc-def"

HARD_WORDS = ("--name", 'a "quoted" 50% $HOME \\ name', "--once", "über;&|'", "")

CLIENT = Daemon(
    side="connect",
    name="camera",
    arguments=("8554", *HARD_WORDS),
    machine=False,
    program=(sys.executable, "-m", "trionat"),
    ticket=TICKET,
)
SERVER = Daemon(
    side="serve",
    name="trionat",
    arguments=("--domain", "tunnel.example.com"),
    machine=True,
    program=("/bin/echo",),
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return tmp_path


def unit_of(plan: Plan) -> str:
    (text,) = (file.content.decode() for file in plan.files if file.path.suffix == ".service")
    return text


# --- systemd ---


def analyze() -> str:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed (Debian: systemd)")
    return program


@pytest.mark.parametrize(
    ("daemon", "words"),
    [
        (CLIENT, ("verify", "--user")),
        (SERVER, ("verify",)),
        (attrs.evolve(CLIENT, machine=True, program=("/bin/echo",)), ("verify",)),
        # In tenths: 0 is a service that may do nothing, 100 one that may do everything.
        (SERVER, ("security", "--offline=true", "--threshold=15")),
        (
            attrs.evolve(CLIENT, machine=True, program=("/bin/echo",)),
            ("security", "--offline=true", "--threshold=15"),
        ),
    ],
    ids=["client", "server", "client of the machine", "server's rights", "client's rights"],
)
def test_systemd_understands_each_line_of_a_unit(
    daemon: Daemon, words: tuple[str, ...], tmp_path: Path
) -> None:
    unit = tmp_path / "trionat-test.service"
    unit.write_text(unit_of(Systemd(machine=daemon.machine).installation(daemon, start=True)))
    result = subprocess.run(
        [analyze(), "--no-pager", *words, str(unit)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Unknown" not in result.stderr
    assert "trionat-test.service" not in result.stderr


def test_a_plan_for_a_client_starts_it_now_and_at_each_login(home: Path) -> None:
    plan = Systemd(machine=False).installation(CLIENT, start=True)
    ticket = home / ".config/trionat/camera.ticket"
    assert {file.path: file.mode for file in plan.files} == {
        ticket: 0o600,
        home / ".config/systemd/user/camera.service": 0o644,
    }
    assert [str(command) for command in plan.then] == [
        "systemctl --user daemon-reload",
        "systemctl --user enable camera",
        "systemctl --user restart camera",
    ]
    assert f"--ticket-file {ticket}" in unit_of(plan)
    assert "\nType=notify\n" in unit_of(plan)


def test_the_machine_shows_the_ticket_to_the_daemon_alone() -> None:
    daemon = attrs.evolve(CLIENT, machine=True, program=("/bin/echo",), arguments=("8554",))
    plan = Systemd(machine=True).installation(daemon, start=False)
    text = unit_of(plan)
    assert (
        'ExecStart=/bin/echo connect 8554 --ticket-file "${CREDENTIALS_DIRECTORY}/ticket"' in text
    )
    assert "\nLoadCredential=ticket:/etc/trionat/camera.ticket\n" in text
    assert "\nUser=trionat\n" in text
    assert [str(command) for command in plan.then] == [
        "systemd-sysusers /etc/sysusers.d/trionat.conf",
        "systemctl daemon-reload",
        "systemctl enable camera",
    ]


def test_only_a_server_may_listen_below_1024() -> None:
    server = unit_of(Systemd(machine=True).installation(SERVER, start=True))
    client = attrs.evolve(CLIENT, machine=True, program=("/bin/echo",))
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE\n" in server
    assert "CapabilityBoundingSet=\n" in unit_of(
        Systemd(machine=True).installation(client, start=True)
    )


def test_what_is_shown_beforehand_has_no_ticket() -> None:
    text = "\n".join(Systemd(machine=False).installation(CLIENT, start=True).lines())
    assert TICKET not in text
    assert "camera.ticket (mode 0600)\n# (a secret)" in text
    assert TICKET not in repr(CLIENT) + repr(
        Systemd(machine=False).installation(CLIENT, start=True)
    )


def test_a_unit_of_somebody_else_is_left_alone(home: Path) -> None:
    unit = home / ".config/systemd/user/camera.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    with pytest.raises(StartupError, match="was not made by trionat service"):
        Systemd(machine=False).installation(CLIENT, start=True)
    with pytest.raises(StartupError, match="was not made by trionat service"):
        Systemd(machine=False).removal("camera")
    assert Systemd(machine=False).installed() == []


def test_no_service_of_the_system_is_put_out_of_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit in /etc comes before one of the same name that the distribution has brought: with --name ssh nobody would get in any more."""
    monkeypatch.setattr(systemd, "_OTHER_UNITS", {True: (tmp_path,), False: (tmp_path,)})
    (tmp_path / "ssh.service").touch()
    for machine in (True, False):
        daemon = attrs.evolve(SERVER, name="ssh", machine=machine)
        with pytest.raises(StartupError, match=r"ssh\.service: .* choose another name with --name"):
            Systemd(machine=machine).installation(daemon, start=True)
    assert "/usr/lib/systemd/system" in map(str, OTHER_UNITS[True])


def test_the_state_of_another_program_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Systemd gives all that is in a StateDirectory to the user of the unit."""
    monkeypatch.setattr(systemd, "_STATES", tmp_path)
    daemon, folder = attrs.evolve(SERVER, name="ledger"), tmp_path / "ledger"
    folder.mkdir()
    Systemd(machine=True).installation(daemon, start=True)  # nothing is in there
    (folder / "base").mkdir()
    with pytest.raises(StartupError, match="choose another name with --name"):
        Systemd(machine=True).installation(daemon, start=True)
    (folder / "server.key").touch()  # a server that root has run by hand
    Systemd(machine=True).installation(daemon, start=True)


def test_the_program_of_the_machine_is_one_that_all_can_start(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(StartupError, match=r"since .* is closed to it: install .*/pip install \.`"):
        require_readable(str(closed / "trionat"))


def test_the_interpreter_of_the_machine_is_one_that_all_can_start(tmp_path: Path) -> None:
    """As where /opt/trionat was made with an interpreter of pyenv or uv, which is in root's home; or is a link that is."""
    closed, program = tmp_path / "closed", tmp_path / "trionat"
    closed.mkdir(mode=0o700)
    (closed / "python").symlink_to("/bin/echo")
    program.write_text(f"#!{closed}/python -I\n")
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o711)
    for each in (program, closed / "python"):
        with pytest.raises(StartupError, match=f"since {closed} is closed to it"):
            require_readable(str(each))
    program.write_text("#!/bin/sh\n")
    require_readable(str(program))


def test_each_line_of_a_unit_is_there_once() -> None:
    """Each line is there once, but for those that add to the one before."""
    lines = unit_of(Systemd(machine=True).installation(SERVER, start=True)).splitlines()
    keys = [line.partition("=")[0] for line in lines if "=" in line]
    assert {key for key in keys if keys.count(key) > 1} == {"SystemCallFilter"}


# --- launchd and Windows, whose files are read as they would be ---


def test_an_agent_for_launchd(home: Path) -> None:
    plan = Launchd().installation(CLIENT, start=True)
    file, *_ = (file for file in plan.files if file.path.suffix == ".plist")
    job = plistlib.loads(file.content)
    ticket = home / "Library/Application Support/trionat/camera.ticket"
    assert file.path == home / "Library/LaunchAgents/trionat.service.camera.plist"
    assert job["ProgramArguments"] == [
        *CLIENT.program,
        "connect",
        "8554",
        *HARD_WORDS,
        "--ticket-file",
        str(ticket),
    ]
    assert job["KeepAlive"] == {"SuccessfulExit": False}
    assert [command.words[:2] for command in plan.then] == [
        ("launchctl", "enable"),
        ("launchctl", "bootstrap"),
    ]
    assert Launchd().removal("camera").removed == (file.path, ticket)
    assert {file.mode for file in plan.files if file.path == ticket} == {0o600}


def test_a_task_for_windows(home: Path) -> None:
    plan = TaskScheduler().installation(CLIENT, start=True)
    file, *_ = (file for file in plan.files if file.path.suffix == ".xml")
    task = ET.fromstring(file.content.decode("utf-16"))
    space = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
    assert task.findtext(f".//{space}Command") == CLIENT.program[0]
    assert task.findtext(f".//{space}Arguments") == subprocess.list2cmdline(
        CLIENT.command(str(home / "trionat/tasks/camera.ticket"))[1:]
    )
    assert str(plan.then[0]).startswith("schtasks /Create /F /TN")


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_the_whole_machine_is_for_linux(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(ConfigError, match="--system: not on this system"):
        manager.find_manager(machine=True)
    assert not isinstance(manager.find_manager(machine=False), Systemd)


@pytest.mark.parametrize("name", ["", "-x", "a/b", "../etc", "a b", "x" * 65, "a\n"])
def test_a_name_is_a_plain_word(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a valid name"):
        check_name(name)


# --- carrying a plan out ---


def test_a_plan_is_carried_out_in_its_order(tmp_path: Path) -> None:
    wanted, gone = tmp_path / "a" / "wanted", tmp_path / "gone"
    gone.write_text("")
    Plan(
        first=(Command(("test", "!", "-e", str(wanted))), Command(("false",), optional=True)),
        files=(File(wanted, b"text", 0o600),),
        removed=(gone, tmp_path / "never there"),
        then=(Command(("test", "-e", str(wanted))), Command(("test", "!", "-e", str(gone)))),
    ).carry_out()
    assert wanted.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("sh", "-c", "echo no such unit >&2; exit 5"), "ended with 5: no such unit"),
        (("no-such-program-here", "x"), "there is no no-such-program-here here"),
    ],
)
def test_a_command_that_fails_says_why(words: tuple[str, ...], reason: str) -> None:
    with pytest.raises(StartupError, match=reason):
        Command(words).run()


# --- what systemd is told ---


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        yield listener


def test_the_way_is_taken_out_of_the_environment(tmp_path: Path) -> None:
    environ = {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }
    notification = Notification.take(environ)
    assert notification is not None
    assert notification.watchdog == 30
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize(
    "environ",
    [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}, {"NOTIFY_SOCKET": "vsock:2:9"}],
    ids=str,
)
def test_without_a_way_that_we_know_nothing_is_told(environ: dict[str, str]) -> None:
    assert Notification.take(environ) is None


def test_the_watchdog_of_another_process_is_not_ours(tmp_path: Path) -> None:
    environ = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}
    notification = Notification.take(environ)
    assert notification is not None
    assert notification.watchdog is None


def test_a_status_is_one_line(listener: socket.socket) -> None:
    notification = Notification(listener.getsockname())
    notification.status("two\nlines\tand READY=1 " + "x" * 500)
    told = listener.recv(4096).decode()
    assert told.startswith("STATUS=two lines and READY=1 xx")
    assert "\n" not in told
    notification.reloading()
    assert listener.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")


async def test_the_loop_tells_that_it_turns_until_it_does_not(listener: socket.socket) -> None:
    with trio.move_on_after(0.5):
        await Notification(listener.getsockname(), watchdog=0.1).keep_alive()
    listener.setblocking(False)
    told = 0
    while True:
        try:
            assert listener.recv(4096) == b"WATCHDOG=1"
        except BlockingIOError:
            break
        told += 1
    assert 4 <= told <= 12


def test_a_manager_that_is_gone_or_full_holds_nothing_up(tmp_path: Path) -> None:
    notification = Notification(str(tmp_path / "nobody"))
    notification.ready()
    notification.stopping()
