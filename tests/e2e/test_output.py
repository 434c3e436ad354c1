"""What is printed holds nothing up and ends nothing: unread pipes, closed pipes, full disks, poor encodings."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

TRIONAT = [sys.executable, "-m", "trionat"]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="pipes and /dev/full as Linux has them"
)


def full_pipe() -> tuple[int, int]:
    """Return both ends of a pipe that takes no byte more."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b" " * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    return reader, writer


@pytest.mark.parametrize("arguments", [["--json"], []])
def test_nobody_reads_standard_output(tmp_path: Path, arguments: list[str]) -> None:
    """The client goes on: it tries again and again, and hears the signal."""
    log = tmp_path / "client.log"
    reader, writer = full_pipe()
    command = [
        *TRIONAT,
        "connect",
        "-c",
        "127.0.0.1:9",
        "-u",
        "alice",
        "--state-dir",
        str(tmp_path),
    ]
    command += ["--log-name", str(log), "8080", *arguments]
    process = subprocess.Popen(
        command,
        stdout=writer,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TRIONAT_AUTH_PASSWORD": "x", "TRIONAT_CLIENT_FINGERPRINT": "00" * 32},
    )
    try:
        os.close(writer)
        time.sleep(3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(8) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reader)


@pytest.mark.parametrize("command", ["connect --once -c 127.0.0.1:9 -u alice 8080", "bogus"])
def test_nobody_reads_standard_error(tmp_path: Path, command: str) -> None:
    """The program ends nevertheless, with the code of its error."""
    reader, writer = full_pipe()
    process = subprocess.Popen(
        [*TRIONAT, *command.split()],
        stdout=subprocess.DEVNULL,
        stderr=writer,
        cwd=tmp_path,
        env={
            **os.environ,
            "TRIONAT_AUTH_PASSWORD": "x",
            "TRIONAT_CLIENT_FINGERPRINT": "SHA256:" + "00" * 32,
            "TRIONAT_STATE_DIR": str(tmp_path),
        },
    )
    try:
        os.close(writer)
        assert process.wait(15) == (2 if command == "bogus" else 3)
    finally:
        process.kill()
        process.wait()
        os.close(reader)


def test_the_reader_has_enough(tmp_path: Path) -> None:
    """`trionat config show | head -1`: no traceback, and the code is 0."""
    for _ in range(3):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [*TRIONAT, "config", "show"],
            stdout=writer,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            check=False,
            timeout=30,
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("command", ["config show", "config check server.yml", "demo --check"])
def test_a_full_disk(tmp_path: Path, command: str) -> None:
    (tmp_path / "server.yml").write_text("Server:\n  Name: x\n")
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [*TRIONAT, *command.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            check=False,
            timeout=30,
        )
    assert b"Traceback" not in done.stderr
    assert done.returncode == 3
    assert done.stderr == b"trionat: standard output: No space left on device\n"


@pytest.mark.parametrize("command", ["config show", "demo --check"])
def test_an_output_that_was_closed_before_the_start(command: str) -> None:
    shell = f'exec "$0" -m trionat {command} >&-'
    done = subprocess.run(
        ["/bin/sh", "-c", shell, sys.executable],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["connect -c h:1 -u bob 8080", "user add bob"])
def test_an_input_that_was_closed_before_the_start(tmp_path: Path, command: str) -> None:
    shell = f'exec "$0" -m trionat {command} --state-dir state <&-'
    done = subprocess.run(
        ["/bin/sh", "-c", shell, sys.executable],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    told = "trionat: standard input: it is closed: give the password there"
    also = "; there are also TRIONAT_AUTH_PASSWORD, Auth.Password in a file, or a ticket"
    assert line == (told + also if command.startswith("connect") else told)


def test_an_encoding_that_lacks_a_character(tmp_path: Path) -> None:
    (tmp_path / "server.yml").write_text("Server:\n  Name: Z\u00fcrich \u2192\n", encoding="utf-8")
    done = subprocess.run(
        [*TRIONAT, "config", "show"],
        capture_output=True,
        cwd=tmp_path,
        check=False,
        timeout=30,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"Z\xfcrich \u2192" in done.stdout


@pytest.mark.parametrize("command", [["--help"], ["user", "list", "--help"], ["--version"]])
def test_help_to_one_who_has_read_enough(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*TRIONAT, *command], stdout=writer, stderr=subprocess.PIPE, check=False, timeout=30
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [*TRIONAT, *command], stdout=full, stderr=subprocess.PIPE, check=False, timeout=30
        )
    told = b"trionat: standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (3, told)


@pytest.mark.parametrize("command", [["bogus"], ["connect", "--bogus"], ["user", "list", "x"], []])
def test_complaints_that_cannot_be_written(command: list[str]) -> None:
    """Into a full disk or to nobody: the code says it all the same."""
    reader, nobody = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        for stderr in (full, nobody):
            done = subprocess.run(
                [*TRIONAT, *command], stdout=subprocess.PIPE, stderr=stderr, check=False, timeout=30
            )
            assert (done.returncode, done.stdout) == (2, b"")
    finally:
        os.close(full)
        os.close(nobody)


def test_help_in_a_poor_encoding() -> None:
    program = "from trionat.cli import app; app(prog_name='Z\u00fcrich \u2192')"
    done = subprocess.run(
        [sys.executable, "-c", program, "--help"],
        capture_output=True,
        check=False,
        timeout=30,
        env={**os.environ, "LANG": "C", "PYTHONIOENCODING": "iso-8859-1"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"Usage: Z\xfcrich \\u2192 [OPTIONS]")


def test_a_damaged_installation_is_not_taken_for_ctrl_d(tmp_path: Path) -> None:
    """Python says what is wrong with an EOFError, which is what a prompt says of the end of its input as well."""

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*TRIONAT, "help", "kick"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""},
        )

    assert run().returncode == 0
    [compiled] = tmp_path.glob("**/trionat/cli/kick.*.pyc")
    os.truncate(compiled, 100)
    done = run()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.lstrip().startswith("Traceback")
    assert done.stderr.endswith("EOFError: marshal data too short\n")


def test_what_a_file_has_does_not_drive_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "server.yml").write_text('Server:\n  "Na\\e[31mme": x\n', encoding="utf-8")
    done = subprocess.run(
        [*TRIONAT, "config", "check", "server.yml"],
        capture_output=True,
        cwd=tmp_path,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    assert b"\x1b" not in done.stderr + done.stdout


@pytest.mark.parametrize("terminal", [True, False])
def test_hangup(tmp_path: Path, terminal: bool) -> None:
    """A terminal that is closed is the planned stop; a service goes on."""
    command = [
        *TRIONAT,
        "connect",
        "-c",
        "127.0.0.1:9",
        "-u",
        "alice",
        "--state-dir",
        str(tmp_path),
    ]
    command += ["--log-name", str(tmp_path / "x.log"), "8080"]
    environ = {
        **os.environ,
        "TRIONAT_AUTH_PASSWORD": "x",
        "TRIONAT_CLIENT_FINGERPRINT": "00" * 32,
    }
    if terminal:
        child, master = pty.fork()
        if not child:
            signal.signal(
                signal.SIGHUP, signal.SIG_DFL
            )  # which is ignored where the tests run under nohup(1)
            os.execve(command[0], command, environ)
        time.sleep(3)
        os.close(master)  # the kernel sends SIGHUP to the foreground group
        deadline = time.monotonic() + 8
        code = None
        while code is None and time.monotonic() < deadline:
            pid, status = os.waitpid(child, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if pid else None
            time.sleep(0.05)
        if code is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert code == 0
        return
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environ,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),  # noqa: PLW1509 - no threads
    )
    try:
        time.sleep(3)
        process.send_signal(signal.SIGHUP)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(8) == 0
    finally:
        process.kill()
        process.wait()
    assert "SIGHUP" in (tmp_path / "x.log").read_text()


def serving(folder: Path, log: Path | str) -> list[str]:
    """Return the command of a server that logs there."""
    ports = ["-c", "127.0.0.1:0", "-t", "127.0.0.1:0", "-p", "0"]
    return [*TRIONAT, "serve", *ports, "--state-dir", str(folder / "state"), "--log-name", str(log)]


def events_in(lines: bytes) -> list[str]:
    """Return what happened, by the JSON lines among the lines."""
    return [json.loads(line)["event"] for line in lines.splitlines() if line.startswith(b"{")]


def test_a_named_pipe_as_log_file(tmp_path: Path) -> None:
    """Its reader hears everything from the first record to the last, and its end once; the terminal has the same."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        server = subprocess.Popen(
            serving(tmp_path, pipe), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            assert server.stdout is not None
            assert b"server" in server.stdout.readline()
            server.send_signal(signal.SIGTERM)
            _, told = server.communicate(timeout=8)
            logged, _ = reader.communicate(timeout=8)
        finally:
            server.kill()
            server.wait()
            reader.kill()
    assert server.returncode == 0
    events = events_in(logged)
    assert len(events) >= 2
    assert events[-1] == "visit ports closed"
    assert len(told.splitlines()) == len(events)


def test_a_named_pipe_that_is_read_no_more(tmp_path: Path) -> None:
    """It is full, or has no reader: the terminal has everything nevertheless, and a word about the pipe."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    try:
        while True:
            os.write(writer, b" " * 4096)
    except BlockingIOError:
        os.close(writer)
    server = subprocess.Popen(
        serving(tmp_path, pipe), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        assert b"server" in server.stdout.readline()
        server.send_signal(signal.SIGTERM)
        _, told = server.communicate(timeout=8)
    finally:
        os.close(reader)
        server.kill()
        server.wait()
    assert server.returncode == 0
    assert b"stopping" in told
    assert b"log records cannot be written" in told
    assert b"nobody reads it" in told


def test_standard_output_as_log_file(tmp_path: Path) -> None:
    """Where it is a pipe, no record is lost, the first one neither."""
    server = subprocess.Popen(
        serving(tmp_path, "/dev/stdout"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        first = b""
        while not first.startswith(b"trionat") and b"\ntrionat" not in first:
            first += server.stdout.readline()
        server.send_signal(signal.SIGTERM)
        rest, told = server.communicate(timeout=8)
    finally:
        server.kill()
        server.wait()
    assert server.returncode == 0
    assert b"cannot be written" not in told
    assert len(events_in(first + rest)) == len(told.splitlines())


def test_a_ticket_file_that_never_comes(tmp_path: Path) -> None:
    """A pipe that nobody writes to: the second signal ends the client all the same."""
    os.mkfifo(tmp_path / "ticket")
    client = subprocess.Popen(
        [*TRIONAT, "connect", "--ticket-file", "ticket", "--state-dir", "state", "8080"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    try:
        assert client.stderr is not None
        time.sleep(2)
        client.send_signal(signal.SIGINT)
        assert b"stopping" in client.stderr.readline()
        client.send_signal(signal.SIGINT)
        assert client.wait(8) == 130
    finally:
        client.kill()
        client.communicate()


def test_hangup_under_nohup(tmp_path: Path) -> None:
    """Whoever starts it with SIGHUP ignored, as nohup(1) does, wants it to outlive the terminal."""
    log = tmp_path / "x.log"
    command = [*TRIONAT, "connect", "-c", "127.0.0.1:9", "-u", "alice", "8080"]
    command += ["--state-dir", str(tmp_path), "--log-name", str(log)]
    environ = {
        **os.environ,
        "TRIONAT_AUTH_PASSWORD": "x",
        "TRIONAT_CLIENT_FINGERPRINT": "00" * 32,
    }
    child, master = pty.fork()
    if not child:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.execve(command[0], command, environ)
    try:
        time.sleep(3)
        os.close(master)
        time.sleep(1)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        assert "stopping" not in log.read_text()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
