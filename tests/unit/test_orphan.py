"""A process that is nobody's child here: where it comes from, what it has, and how it is told that it has gone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from trionat.server.upgrade.orphan import Orphan

    Start = Callable[..., Orphan]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it takes processes of POSIX")

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="it takes /proc")
with_handle = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="it takes Linux 5.3")


@pytest.fixture
def start() -> Iterator[Start]:
    """Return `Orphan.start`; what it has started is killed."""
    from trionat.server.upgrade.orphan import Orphan  # noqa: PLC0415 - not on Windows

    started: list[Orphan] = []

    def start(
        command: Sequence[str],
        environ: dict[str, str] | None = None,
        descriptors: Sequence[int] = (),
    ) -> Orphan:
        orphan = Orphan.start(
            command, dict(os.environ) if environ is None else environ, descriptors
        )
        started.append(orphan)
        return orphan

    yield start
    for orphan in started:
        orphan.kill()
        orphan.close()


@pytest.fixture(params=["by a descriptor", "by its number"])
def handle(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the system know descriptors of processes, or not."""
    if request.param == "by its number":
        monkeypatch.delattr(os, "pidfd_open", raising=False)


def read(file: Path, end: str = "\n") -> str:
    """Return what a program writes into a file, when its end is there."""
    until = time.monotonic() + 20
    while not (file.exists() and file.read_text().endswith(end)):
        assert time.monotonic() < until
        time.sleep(0.01)
    return file.read_text()


@pytest.mark.usefixtures("handle")
def test_its_parent_is_somebody_else(start: Start, tmp_path: Path) -> None:
    told = tmp_path / "told"
    program = (
        "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text("
        "f'{os.getppid()} {os.getpid()} {os.environ[\"WORD\"]} {os.fstat(int(sys.argv[2])).st_ino} {sys.stdin.read()!r}\\n');"
        "time.sleep(60)"
    )
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        command = [sys.executable, "-c", program, str(told), str(descriptor)]
        orphan = start(command, {**os.environ, "WORD": "a word"}, [descriptor])
        parent, itself, rest = read(told).split(None, 2)
        assert int(parent) != os.getpid()
        assert int(itself) == orphan.pid
        assert rest == f"a word {os.fstat(descriptor).st_ino} ''\n"
        assert not orphan.wait(0.05)
        orphan.kill()
        assert orphan.wait(20)
        orphan.kill()  # it has gone
    finally:
        os.close(descriptor)


@on_linux
def test_signals_do_to_it_what_they_do_to_a_child(start: Start, tmp_path: Path) -> None:
    """A shell would have it ignore SIGINT and SIGQUIT, an interpreter SIGPIPE."""
    program = 'grep -E "Sig(Blk|Ign)" /proc/self/status >"$1"; echo >>"$1"'
    one, other = tmp_path / "one", tmp_path / "other"
    start(["/bin/sh", "-c", program, "sh", str(one)])
    subprocess.run(["/bin/sh", "-c", program, "sh", str(other)], check=True)
    assert signals(one) == signals(other)
    assert not signals(one)[1] & (1 << signal.SIGINT - 1 | 1 << signal.SIGQUIT - 1)


def signals(file: Path) -> list[int]:
    """Return the masks in a file, but for signals that are glibc's own: who calls its `posix_spawn` leaves these ignored."""
    return [int(mask, 16) & 0x7FFFFFFF for mask in read(file, "\n\n").split()[1::2]]


@on_linux
def test_its_environment_is_what_was_given(start: Start, tmp_path: Path) -> None:
    """Word for word: a shell leaves out what it has no name for, and an interpreter adds a locale."""
    told = tmp_path / "told"
    program = (
        "import sys, pathlib; told = pathlib.Path('/proc/self/environ').read_bytes().split(b'\\0');"
        "pathlib.Path(sys.argv[1]).write_text(f'{sorted(told)}\\n')"
    )
    given = {
        "A.B": "a name for Python alone",
        "EMPTY": "",
        "LINES": "one\ntwo",
        "BYTES": os.fsdecode(b"\xff"),
        "PYTHONCOERCECLOCALE": "0",
        "LARGE": "x" * 100_000,
    }
    start([sys.executable, "-c", program, str(told)], given)
    wanted = [os.fsencode(f"{name}={value}") for name, value in given.items()]
    assert read(told) == f"{sorted([*wanted, b''])}\n"


def test_a_program_that_is_not_there(start: Start) -> None:
    with pytest.raises(FileNotFoundError, match="/nowhere/trionat"):
        start(["/nowhere/trionat"])


def test_an_interpreter_that_is_not_there(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(FileNotFoundError, match="/nowhere/python"):
        start(["/bin/true"])
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(OSError, match="the interpreter that was to start it has ended"):
        start(["/bin/true"])


@with_handle
def test_another_process_that_has_its_number_is_not_killed(start: Start) -> None:
    orphan = start([sys.executable, "-c", ""])
    assert orphan.wait(20)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        orphan.pid = other.pid
        assert orphan.wait(0)
        orphan.kill()
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.2)
        other.communicate(b"\n")
    assert other.returncode == 0


@on_linux
def test_no_descriptor_is_left(start: Start) -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - numbers
    orphan = start([sys.executable, "-c", ""])
    orphan.close()
    orphan.close()
    with pytest.raises(FileNotFoundError):
        start(["/nowhere/trionat"])
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_what_nobody_has_heard_of_is_killed(tmp_path: Path) -> None:
    import marshal  # noqa: PLC0415 - as it is told

    from trionat.server.upgrade import orphan  # noqa: PLC0415 - not on Windows

    told = tmp_path / "told"
    program = "import pathlib, sys, time; time.sleep(1); pathlib.Path(sys.argv[1]).touch()"
    command = [sys.executable, "-c", program, str(told)]
    here, there = socket.socketpair()
    with here:
        with there:
            starter = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", orphan._SCRIPT, *command], stdin=there.fileno()
            )
        here.sendall(marshal.dumps({}))
        pid = int(here.recv(100))
    assert starter.wait(20) == 0
    left = orphan.Orphan(pid)
    assert left.wait(20)
    assert not told.exists()
