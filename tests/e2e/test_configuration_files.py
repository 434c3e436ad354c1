"""Which configuration file is read, and what a start tells of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from trionat.protocol.ticket import TOKEN_BYTES, Ticket

if TYPE_CHECKING:
    from collections.abc import Sequence

SERVE = ("serve", "-c", "127.0.0.1:0", "-t", "127.0.0.1:0", "-p", "0")
TICKET = Ticket(
    host="127.0.0.1", port=9, fingerprint=bytes(32), username="alice", token=bytes(TOKEN_BYTES)
).encode()
CONNECT = ("connect", TICKET, "8080", "--once")


@attrs.frozen
class Outcome:
    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The only line that it says, without the log's."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("trionat: ")]
        return line


def run(folder: Path, *arguments: str, **environment: str) -> Outcome:
    """Run trionat in a folder, which is also its home, until it ends; a server is told to when it is up."""
    found = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")}
    with subprocess.Popen(
        [sys.executable, "-m", "trionat", *arguments],
        cwd=folder,
        env={**found, "HOME": str(folder), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        watchdog = threading.Timer(30, process.kill)
        watchdog.start()
        out = process.stdout.readline() if arguments[0] == "serve" else ""
        if out:  # it is up
            process.terminate()
        out += process.stdout.read()
        err = process.stderr.read()
        watchdog.cancel()
    assert "Traceback" not in err, err
    return Outcome(process.returncode, out, err)


@pytest.mark.parametrize(
    ("command", "name"),
    [(SERVE, "server.yml"), (CONNECT, "client.yml"), (("user", "list"), "server.yml")],
    ids=["serve", "connect", "user"],
)
@pytest.mark.parametrize("place", [".", "config", "../config"])
def test_a_configuration_that_is_no_file_is_not_passed_over(
    command: Sequence[str], name: str, place: str, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    (here / place).mkdir(parents=True, exist_ok=True)
    path = here / place / name
    shown = Path(place) / name
    path.symlink_to("not-there.yml")
    outcome = run(here, *command)
    assert outcome.code == 2
    assert outcome.line == (
        f"trionat: {shown}: is a link to not-there.yml, which is not there: correct or remove it"
    )
    path.unlink()
    path.mkdir()
    outcome = run(here, *command)
    assert outcome.code == 2
    assert outcome.line == (
        f"trionat: {shown}: is a folder: it has to be a file, or to have another name"
    )


def test_the_file_that_was_read_is_named(tmp_path: Path) -> None:
    outcome = run(tmp_path, *SERVE)
    assert outcome.code == 0
    assert "configuration" not in outcome.out
    assert '"configuration": null' in run(tmp_path, *SERVE, "--json").out
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "server.yml").write_text("Server: {Name: x}")
    assert "\n  configuration   config/server.yml\n" in run(tmp_path, *SERVE).out
    assert '"configuration": "config/server.yml"' in run(tmp_path, *SERVE, "--json").out
    (tmp_path / "client.yml").write_text("Client: {Services: [8080]}")
    outcome = run(tmp_path, "connect", TICKET, "--once")
    assert "configuration read file=client.yml" in outcome.err


def test_what_is_risky_is_logged_at_the_start(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o777)
    outcome = run(tmp_path, *SERVE, TRIONAT_STATE_DIR=str(state))
    assert outcome.code == 0
    assert "warning the configuration may not be what was meant" in outcome.err
    assert f"run chmod go-w {state}" in outcome.err
    password = {"TRIONAT_AUTH_PASSWORD": "a\u200bb"}
    outcome = run(tmp_path, *CONNECT, TRIONAT_STATE_DIR=str(state), **password)
    assert f"run chmod go-w {state}" in outcome.err
    assert "the password has an invisible character U+200B at position 2" in outcome.err
    state.chmod(0o700)
    assert "may not be" not in run(tmp_path, *SERVE, TRIONAT_STATE_DIR=str(state)).err


@pytest.mark.parametrize("below", [False, True], ids=["a file", "below a file"])
@pytest.mark.parametrize(
    "command",
    [SERVE, ("user", "list"), ("user", "add", "alice"), ("traffic",), ("status",), ("config", "show")],
    ids=" ".join,
)  # fmt: skip
def test_a_state_folder_that_is_none_is_told(
    command: Sequence[str], below: bool, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    folder = "file/below" if below else "file"
    outcome = run(tmp_path, *command, TRIONAT_STATE_DIR=folder)
    if command[0] == "config":
        assert outcome.code == 0
    else:
        assert (outcome.code, outcome.out) == (3, "")
        assert outcome.line.startswith("trionat: file")


def test_no_file_appears_where_nobody_asked_for_one(tmp_path: Path) -> None:
    here, state = tmp_path / "here", tmp_path / "state"
    here.mkdir()
    assert run(here, *SERVE, TRIONAT_STATE_DIR=str(state)).code == 0
    run(here, *CONNECT, TRIONAT_STATE_DIR=str(tmp_path / "client"))
    assert list(here.iterdir()) == []
    assert "stopping" in (state / "server.log").read_text()
    assert state.stat().st_mode & 0o777 == 0o700
    files = [path for path in state.iterdir() if path.is_file()]
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == {
        path.name: 0o600 for path in files
    }
    assert not list((tmp_path / "client").glob("*.log"))
    outcome = run(here, *SERVE, "--start-log", "false", TRIONAT_STATE_DIR=str(tmp_path / "other"))
    assert outcome.code == 0
    assert not (tmp_path / "other" / "server.log").exists()


def test_a_name_in_a_file_is_one_in_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "server.yml").write_text("Server:\n  LogFilename: server.log\n")
    assert run(tmp_path, *SERVE, TRIONAT_STATE_DIR=str(tmp_path / "state")).code == 0
    assert "stopping" in (tmp_path / "server.log").read_text()
    assert not (tmp_path / "state" / "server.log").exists()


@pytest.mark.parametrize("command", [SERVE, CONNECT], ids=["serve", "connect"])
def test_a_log_file_that_cannot_be_opened_is_told(command: Sequence[str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (
        (".", "Is a directory"),
        ("not-there/x.log", "No such file or directory"),
        ("pipe", "No such device or address"),
    ):
        outcome = run(tmp_path, *command, "--log-name", name)
        assert (outcome.code, outcome.out) == (3, "")
        assert outcome.line == (
            f"trionat: {name}: cannot open the log file: {reason}; --log-name (LogFilename) names another"
        )


@pytest.mark.parametrize("word", ["warn", "Warning", "fatal", "CRITICAL"])
def test_levels_in_the_words_of_other_programs(word: str, tmp_path: Path) -> None:
    outcome = run(tmp_path, *SERVE, TRIONAT_LOG_LEVEL=word)
    assert outcome.code == 0
    assert "stopping" not in outcome.err


def test_a_certificate_that_is_not_there_is_told_once(tmp_path: Path) -> None:
    flags = ("--certificate", "cert.pem", "--certificate-key", "key.pem")
    outcome = run(tmp_path, *SERVE, *flags, TRIONAT_STATE_DIR="state")
    assert (outcome.code, outcome.out) == (3, "")
    told = "cannot use the certificate cert.pem with the key key.pem: No such file or directory"
    assert outcome.line == f"trionat: {told}"
