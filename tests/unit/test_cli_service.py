"""`trionat service`, as somebody types it: what stands in a unit, and what may not. Nothing is installed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from trionat.cli import app
from trionat.protocol.ticket import TOKEN_BYTES, Ticket
from trionat.system import is_root

if TYPE_CHECKING:
    from pathlib import Path

TICKET = Ticket(
    host="example.com", port=8007, fingerprint=bytes(32), username="alice", token=b"t" * TOKEN_BYTES
).encode()

SOMEBODY = """
import contextlib, io, os, sys
import trionat.cli, trionat.config.yaml_text
for command in trionat.cli.COMMANDS:
    command.load()
with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    trionat.cli.app("service install --user --dry-run serve --config /dev/null".split())
os.environ["HOME"] = "/nowhere"
os.setgid(12345)
os.setuid(12345)
trionat.cli.main()
"""
"""Another user; what is imported is imported first, since he may not be allowed to read it."""


def install(*words: str, code: int = 0) -> str:
    """Show what would be installed; return that, or what is said instead."""
    result = CliRunner().invoke(
        app, ["service", "install", "--user", "--dry-run", *words], catch_exceptions=False
    )
    assert result.exit_code == code, result.output
    return result.output


def words_of(unit: str) -> list[str]:
    """The words of its command, behind `connect`."""
    (line,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    words = shlex.split(line)
    return words[words.index("connect") + 1 :]


@pytest.mark.parametrize(
    "words",
    [
        ("8080", "--password", "hunter2hunter2"),
        ("8080", "-Phunter2hunter2"),
        ("-vPhunter2hunter2", "8080"),
        ("http:8080", "--basic-auth=ann:hunter2hunter2"),
    ],
    ids=" ".join,
)
def test_no_secret_gets_into_a_unit(words: tuple[str, ...]) -> None:
    """Also where the letter of one that is secret stands behind another letter."""
    said = install("connect", "--controller-addr", "h:1", *words, code=2)
    assert "write it into a file" in said
    assert "hunter2hunter2" not in said


def test_the_paths_of_sockets_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit starts in another folder."""
    monkeypatch.chdir(tmp_path)
    services = ("./a.sock", "x/a.sock:60001", "unix:b.sock", "http:./c.sock@shop", "/run/d.sock")
    given = (*services, "8080", "--local-server-addr", "unix:e.sock", "--group=./g")
    unit = install("connect", "--controller-addr", "h:1", *given)
    assert words_of(unit) == [
        *("--controller-addr", "h:1", f"{tmp_path}/a.sock", f"{tmp_path}/x/a.sock:60001"),
        *(f"{tmp_path}/b.sock", f"http:{tmp_path}/c.sock@shop", "/run/d.sock", "8080"),
        *("--local-server-addr", f"{tmp_path}/e.sock", "--group=./g"),
    ]


def test_a_home_that_cannot_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "home folder" in install("connect", "--config", "~nobody-of-that-name/c.yml", code=2)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # a user without an entry, as in a container
    assert "HOME" in install("connect", "--controller-addr", "h:1", "8080", code=3)
    result = CliRunner().invoke(app, ["service", "status", "--user"], catch_exceptions=False)
    assert (result.exit_code, "HOME" in result.output) == (3, True)


@pytest.mark.parametrize("word", ["/etc/trionat\udcff.yml", "/etc/\x1b[2Jtrionat.yml", "/etc/a\nb"])
def test_what_no_unit_can_hold_is_refused(word: str) -> None:
    """Bytes that are no text, and what drives a terminal."""
    assert "cannot be seen" in install("connect", "--config", word, code=2)


def test_what_is_only_in_the_environment_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It works when it is tried in a shell, and not as a service."""
    monkeypatch.setenv("TRIONAT_TICKET", "tn1_secret-of-somebody")
    monkeypatch.setenv("TRIONAT_CONNECT_TIMEOUT", "")
    said = install("connect", "--controller-addr", "h:1", "8080")
    assert "does not get TRIONAT_TICKET of this environment" in said
    assert "CONNECT_TIMEOUT" not in said
    assert "secret-of" not in said


def test_the_letter_of_another_command_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`-l` is a local service for connect, and a log file for serve, which stays below the state folder."""
    monkeypatch.chdir(tmp_path)
    assert "serve -l logs/x.log" in install("serve", "-l", "logs/x.log")
    said = install("connect", "-c", "h:1", "-l", "run/x.sock")
    assert f"connect -c h:1 -l {tmp_path}/run/x.sock" in said


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps the folder")
def test_a_working_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "working directory" in install("serve", "--config", "c.yml", code=3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("serve", "-p", "abc"), "flag --visit-port: Server.VisitPort[0]: 'abc' is not"),
        (("serve", "--quiet", "--verbose"), "does not go with --verbose"),
        (("serve", "--config", "nope.yml"), "nope.yml: there is no such file"),
        (("serve", "--config", "."), "Is a directory"),
        (("serve", "--config", "wrong.yml"), "wrong.yml:2: Server.Sessions: unknown key"),
        (("connect", TICKET, "foo"), "'foo' is not a valid address"),
        (("connect", TICKET), "no local service is named"),
        (("connect", "8080"), "no server: give the ticket"),
        (("connect", "-c", "h:1", "-u", "alice", "8080"), "write Auth.Password into a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_words_that_can_never_work_are_refused(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `serve` and `connect` refuse them: later somebody would have to look for the reason in a log."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yml").write_text("Server:\n  Sessions: 1\n")
    assert said in install(*words, code=2)


def test_a_file_in_the_folder_where_it_starts_counts_and_one_that_is_here_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    (here / "client.yml").write_text("Client:\n  Services: 8080\n")
    install("connect", TICKET, code=2)
    install("connect", TICKET, "--config", "client.yml")
    (home / "client.yml").write_text("Client:\n  Services: 8080\n")
    install("connect", TICKET)


@pytest.mark.skipif(not is_root(), reason="only root can become somebody else")
def test_a_file_that_only_the_service_can_read_is_told(tmp_path: Path) -> None:
    """As /etc/trionat/server.yml. The words beside it are looked at all the same."""
    file = tmp_path / "server.yml"
    file.write_text("Server:\n  Sessions: 1\n")
    file.chmod(0o600)
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o711)
    for words, code, said in (
        ((), 0, f"note: {file} cannot be read by you"),
        (("-p", "abc"), 2, "'abc' is not a valid port"),
    ):
        done = subprocess.run(
            [
                *(sys.executable, "-c", SOMEBODY, "service", "install", "--user", "--dry-run"),
                *("serve", "--config", str(file), *words),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr


@pytest.mark.skipif(shutil.which("systemctl") is None, reason="no systemd")
def test_where_systemd_does_not_answer_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after su, and for a user who has not logged in."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "DBUS_SESSION_BUS_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    words = ["service", "install", "--user", "connect", TICKET, "8080"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert (result.exit_code, "enable-linger" in result.output) == (3, True), result.output
    assert not list(tmp_path.rglob("*"))
    unit = tmp_path / ".config/systemd/user/trionat-client.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("# made by `trionat service install` connect\n")
    words = ["service", "uninstall", "--user"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 3
    assert "the files of trionat-client are removed" in result.output
    assert not unit.exists()
