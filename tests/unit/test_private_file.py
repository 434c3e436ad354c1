"""Small files and several processes: those that are killed, and those that write at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from trionat.address import TCPAddress
from trionat.client.native.known_servers import KnownServers
from trionat.errors import StartupError
from trionat.server.events.audit import note_change
from trionat.store import private_file
from trionat.store.private_file import hold_lock, write_private
from trionat.system import is_root

if TYPE_CHECKING:
    from pathlib import Path

KILLED = """
import os, pathlib, signal, sys
from trionat.store.private_file import write_private
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
write_private(pathlib.Path(sys.argv[1]), b"new")
"""
TRUSTING = """
import pathlib, sys
from trionat.address import TCPAddress
from trionat.client.native.known_servers import KnownServers
known = KnownServers.of(pathlib.Path(sys.argv[1]))
sys.stdin.read()
for number in range(10):
    known.remember(TCPAddress(f"h{sys.argv[2]}", 1 + number), bytes(32))
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_what_a_killed_process_left_is_removed_in_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_private(path, b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, timeout=30)
    assert done.returncode == -signal.SIGKILL
    (left,) = [each for each in tmp_path.iterdir() if each != path]
    mine = tmp_path / ".notes.txt"
    mine.write_text("not of trionat")
    old = time.time() - 7200
    os.utime(mine, (old, old))
    write_private(tmp_path / "other", b"")
    assert left.exists()  # its writer may be at it
    os.utime(left, (old, old))
    write_private(tmp_path / "other", b"")
    assert not left.exists()
    assert mine.exists()
    assert path.read_bytes() == b"old"


def test_clients_that_trust_at_once_lose_no_entry(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRUSTING, str(tmp_path), str(number)], stdin=subprocess.PIPE
        )
        for number in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(30) for process in processes] == [0] * 4
    known = KnownServers.of(tmp_path)
    missing = [
        address
        for address in (TCPAddress(f"h{n}", port) for n in range(4) for port in range(1, 11))
        if known.lookup(address) is None
    ]
    assert missing == []


def test_a_lock_that_is_not_given_back_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_file, "LOCK_TIMEOUT", 0.05)
    path = tmp_path / "x.lock"
    with (
        hold_lock(path),
        pytest.raises(StartupError, match="another process has held this lock"),
        hold_lock(path),
    ):
        pass
    with hold_lock(path):
        pass


OTHER = 12345


@pytest.mark.skipif(not is_root(), reason="only root gives files away")
def test_what_root_makes_in_the_folder_of_another_user_is_that_user_s(tmp_path: Path) -> None:
    """Else `sudo trionat user add` would keep the server, which runs as that user, from writing down what is changed."""
    os.chown(tmp_path, OTHER, OTHER)
    note_change(tmp_path, "user.add", "anna")
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == ["audit.lock", "audit.log"]
    for path in tmp_path.iterdir():
        status = path.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (OTHER, OTHER, 0o600)


@pytest.mark.skipif(not is_root(), reason="only root gives files away")
@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_root_gives_nothing_away_that_a_link_leads_to(kind: str, tmp_path: Path) -> None:
    folder, secret = tmp_path / "theirs", tmp_path / "secret"
    folder.mkdir()
    os.chown(folder, OTHER, OTHER)
    secret.touch(0o600)
    if kind == "symbolic":
        (folder / "audit.log").symlink_to(secret)
        with pytest.raises(StartupError, match="audit"):
            note_change(folder, "user.add", "anna")
    else:
        os.link(secret, folder / "audit.log")
        note_change(folder, "user.add", "anna")
    assert secret.stat().st_uid == 0
