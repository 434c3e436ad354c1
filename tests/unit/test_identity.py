from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from trionat.client.native.identity import load_identity
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
