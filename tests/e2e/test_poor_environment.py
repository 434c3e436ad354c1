"""A start where much is missing ends in one line and code 3, or works without."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running

if TYPE_CHECKING:
    from tests.e2e.services import Service

# As `docker run --user 12345`: a number for a user, and no home. What is imported is imported first, since that user may not be
# allowed to read it. Typer imports what it reads paths and numbers by when it reads the first ones.
NOBODY = """
import contextlib, encodings.idna, concurrent.futures.thread, io, os, sys
import trionat.cli, trionat.config.yaml_text, trionat.store.sqlite
for command in trionat.cli.COMMANDS:
    command.load()
for words in ("config check /", "events list --limit 1 --state-dir /nowhere", "user add x --state-dir /nowhere --help"):
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        with contextlib.suppress(SystemExit):
            trionat.cli.app(words.split(), prog_name="trionat")
for name in ("HOME", "XDG_STATE_HOME", "TRIONAT_STATE_DIR"):
    os.environ.pop(name, None)
os.setgid(12345)
os.setuid(12345)
sys.argv = ["trionat", *sys.argv[1:]]
trionat.cli.main()
"""

pytestmark = pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become nobody"
)


@pytest.mark.parametrize(
    "command",
    [
        "serve -c 127.0.0.1:0 -t 127.0.0.1:0 -p 0",
        f"connect -c 127.0.0.1:9 --fingerprint {'00' * 32} 8080",
        "status",
        "user list",
    ],
)
def test_no_home(tmp_path: Path, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, *command.split()],
        capture_output=True,
        cwd="/",
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 3
    assert "no home folder here" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_holds_without_a_home_can_be_shown() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, "config", "show"],
        capture_output=True,
        cwd="/",
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "StateDir" in done.stdout


@pytest.mark.parametrize(
    "command",
    ["serve -c 127.0.0.1:0 -t 127.0.0.1:0 -p 0", "status", "user list", "user add alice"],
)
def test_a_state_folder_that_is_closed_to_us(command: str) -> None:
    """Whether there is something in it cannot be known, which is neither a bug nor "there is nothing"."""
    with tempfile.TemporaryDirectory(dir="/tmp") as closed:  # other folders on the way are open
        Path(closed).chmod(0o755)
        state = Path(closed) / "state"
        state.mkdir(mode=0o700)
        done = subprocess.run(
            [sys.executable, "-c", NOBODY, *command.split(), "--state-dir", f"{state}/below"],
            capture_output=True,
            cwd="/",
            text=True,
            check=False,
            timeout=30,
        )
    assert done.returncode == 3
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("trionat: ")]
    assert f"{state}/" in line
    assert "Permission denied" in line or "no server" in line


async def test_a_ticket_is_enough(echo_server: Service, tmp_path: Path) -> None:
    """The client needs no folder: its identity is for this run, and it says so."""
    async with running.server(tmp_path / "s") as server:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", NOBODY, "connect", server.ticket, str(echo_server), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
        )
        assert process.stdout is not None
        assert process.stderr is not None
        with trio.fail_after(20):
            told = await process.stdout.receive_some()
            process.terminate()
            errors = b""
            async for piece in process.stderr:
                errors += piece
            assert await process.wait() == 0
    assert b'"event": "connected"' in told
    assert b"the identity is for this run only" in errors


def test_working_directory_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = (
        f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); "
        "import trionat.cli; trionat.cli.main()"
    )
    words = [
        "serve",
        "-c",
        "127.0.0.1:0",
        "-t",
        "127.0.0.1:0",
        "-p",
        "0",
        "--log-name",
        "server.log",
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 3
    assert (
        done.stderr
        == "trionat: server.log: the working directory no longer exists: change to another\n"
    )
