from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from trionat.address import TCPAddress
from trionat.client.native.dialer import Server
from trionat.client.native.identity import IdentityLock, load_identity
from trionat.errors import StartupError

if TYPE_CHECKING:
    from pathlib import Path


def test_the_identity_is_made_once_and_at_random(tmp_path: Path) -> None:
    identity = load_identity(tmp_path / "one")
    assert re.fullmatch("[0-9a-f]{32}", identity)
    assert load_identity(tmp_path / "one") == identity
    assert load_identity(tmp_path / "two") != identity


def test_clients_that_start_at_once_have_one_identity(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from trionat.client.native.identity import load_identity\n"
        "print(flush=True); sys.stdin.read(1); print(load_identity(pathlib.Path(sys.argv[1])))"
    )
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "state")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(6)
    ]
    for client in clients:
        assert client.stdout is not None
        client.stdout.readline()
    for client in clients:
        assert client.stdin is not None
        client.stdin.write(b"g")
        client.stdin.flush()
    (identity,) = {client.communicate()[0].decode().strip() for client in clients}
    assert identity == load_identity(tmp_path / "state")


@pytest.mark.parametrize("content", [b"", b"abc", b"G" * 32, b"\xff" * 32, b"a" * 33])
def test_a_damaged_identity_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "identity").write_bytes(content)
    with pytest.raises(StartupError, match=r"identity: an identity is 32 hex digits: delete it"):
        load_identity(tmp_path)


HERE = TCPAddress("tunnel.example.com", 8007)
SERVER = Server(control=HERE, tunnel=HERE, username="alice")


def test_the_lock_tells_who_has_an_identity(tmp_path: Path) -> None:
    first, second = (IdentityLock.of(tmp_path, "me", [SERVER]) for _ in range(2))
    assert first.take()
    assert not second.take()
    assert second.find_holder() == os.getpid()
    first.release()
    assert not list(tmp_path.iterdir())
    assert second.take()
    assert second.is_held
    second.release()


def test_another_identity_user_or_server_is_another_client(tmp_path: Path) -> None:
    elsewhere = Server(control=TCPAddress("other.example.com", 8007), tunnel=HERE, username="alice")
    bob = Server(control=HERE, tunnel=HERE, username="bob")
    locks = [IdentityLock.of(tmp_path, "me", [each]) for each in (SERVER, elsewhere, bob)]
    locks.append(IdentityLock.of(tmp_path, "you", [SERVER]))
    assert [lock.take() for lock in locks] == [True] * 4
    for lock in locks:
        lock.release()


def test_the_lock_of_a_client_that_was_killed_is_free(tmp_path: Path) -> None:
    lock = IdentityLock.of(tmp_path, "me", [SERVER])
    lock.path.write_text("123456789\n")
    assert lock.take()
    assert lock.find_holder() == os.getpid()
    lock.release()


def test_a_lock_that_is_taken_too_late_is_given_back(tmp_path: Path) -> None:
    """By a thread that was left behind when the client was cancelled."""
    lock = IdentityLock.of(tmp_path, "me", [SERVER])
    lock.release()
    assert lock.take()
    assert not lock.is_held
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot lock"):
        IdentityLock.of(tmp_path / "none", "me", [SERVER]).take()
    assert not list(tmp_path.iterdir())
