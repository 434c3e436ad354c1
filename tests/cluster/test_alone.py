"""A server that is alone knows nothing of clusters, one without a domain nothing of HTTP, and a cluster that lacks something says what."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from trionat.errors import StartupError
from trionat.server.cluster.redis_link import require_library

if TYPE_CHECKING:
    from pathlib import Path

SECTION = """
Cluster: {Redis: 'redis://u:hunter2@127.0.0.1:1', Node: one, NodeAddr: '127.0.0.1:8009', KeyFile: cluster.key}
Database: {Username: u, Host: '127.0.0.1:1', DBName: d}
"""


def test_it_is_imported_only_where_it_is_used() -> None:
    program = "import sys, trionat.cli, trionat.server.app; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    modules = done.stdout.split()
    assert "trionat.server.app" in modules
    of_cluster = ("coredis", "trionat.server.cluster")
    of_names = ("httptools", "trionat.protocol.http", "trionat.server.names")
    assert not [name for name in modules if name.startswith(of_cluster + of_names)]


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coredis", None)
    with pytest.raises(StartupError, match=r"run pip install '\.\[cluster\]'"):
        require_library()


@pytest.mark.parametrize(
    ("section", "command", "code", "words"),
    [
        ("", ["cluster", "status"], 2, "there is no cluster here: add the section"),
        (SECTION, ["cluster", "status"], 3, "cluster.key: there is no key of the cluster: copy it"),
        (SECTION, ["cluster", "init"], 3, "Redis at 127.0.0.1:1: "),
        (SECTION, ["cluster", "join"], 3, "there is no key of the cluster"),
    ],
    ids=["no section", "no key", "no Redis", "join without a key"],
)
def test_what_is_missing(
    tmp_path: Path, section: str, command: list[str], code: int, words: str
) -> None:
    (tmp_path / "server.yml").write_text(section)
    done = subprocess.run(
        [sys.executable, "-m", "trionat", *command, "--config", "server.yml"],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "hunter2" not in done.stdout + done.stderr
