"""`trionat cluster init`: it says whose key the cluster has got, and leaves nothing behind where there is another cluster."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.e2e.services import trionat_environ
from tests.redis_server import running_redis
from trionat.fingerprint import format_fingerprint
from trionat.server.state_folder import prepare_state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.redis_server import RedisServer


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


def run(machine: Path, redis: RedisServer, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `trionat cluster` on a machine that has a folder of its own."""
    machine.mkdir(exist_ok=True)
    (machine / "server.yml").write_text(
        f"Cluster: {{Redis: '{redis.url}', Node: one, NodeAddr: '127.0.0.1:8009', KeyFile: cluster.key}}\n"
        "Database: {Username: u, Host: '127.0.0.1:1', DBName: d}\n"
    )
    return subprocess.run(
        [sys.executable, "-m", "trionat", "cluster", *words],
        cwd=machine,
        env=trionat_environ(HOME=str(machine), XDG_STATE_HOME=str(machine)),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_server_that_has_run_before_keeps_its_key(tmp_path: Path, redis: RedisServer) -> None:
    state = tmp_path / "state"
    fingerprint = format_fingerprint(prepare_state(state).fingerprint)
    for ending in ("new.", "already."):
        done = run(tmp_path / "n1", redis, "init", "--state-dir", str(state))
        assert done.returncode == 0, done.stderr
        assert f"{state} has the server's key, which was there before\n" in done.stdout
        assert f"fingerprint {fingerprint}\n" in done.stdout
        assert ending in done.stdout


def test_the_wrong_folder_and_the_way_back(tmp_path: Path, redis: RedisServer) -> None:
    """The key is new, which is said; the folder that was meant is refused then, and the remedy that is told works."""
    state, wrong = tmp_path / "state", tmp_path / "wrong"
    fingerprint = format_fingerprint(prepare_state(state).fingerprint)
    made = run(tmp_path / "n1", redis, "init", "--state-dir", str(wrong))
    assert made.returncode == 0, made.stderr
    assert f"{wrong} had no key of a server: it has a NEW one\n" in made.stdout
    assert "run this again with that server's --state-dir" in made.stdout
    assert fingerprint not in made.stdout
    refused = run(tmp_path / "n1", redis, "init", "--state-dir", str(state))
    assert refused.returncode == 3
    assert "this folder has the key of another server than the cluster's" in refused.stderr
    assert "empty the cluster's Redis, and run trionat cluster init with this" in refused.stderr
    redis.ask("flushall")
    again = run(tmp_path / "n1", redis, "init", "--state-dir", str(state))
    assert again.returncode == 0, again.stderr
    assert f"fingerprint {fingerprint}\n" in again.stdout


def test_on_the_second_node_by_mistake(tmp_path: Path, redis: RedisServer) -> None:
    """It says what to do, and leaves no key of a cluster that there is not."""
    assert run(tmp_path / "n1", redis, "init").returncode == 0
    done = run(tmp_path / "n2", redis, "init")
    assert done.returncode == 3
    assert "it has a cluster already (" in done.stderr
    assert "copy its key from one of its nodes" in done.stderr
    assert not (tmp_path / "n2/cluster.key").exists()
    key = (tmp_path / "n1/cluster.key").read_bytes()
    (tmp_path / "n2/cluster.key").touch(mode=0o600)
    (tmp_path / "n2/cluster.key").write_bytes(key)
    done = run(tmp_path / "n2", redis, "init")
    assert done.returncode == 0, done.stderr
    assert "has the cluster's key now, out of Redis" in done.stdout


def test_without_redis_no_key_is_made(tmp_path: Path, redis: RedisServer) -> None:
    redis.kill()
    done = run(tmp_path / "n1", redis, "init")
    assert done.returncode == 3
    assert "Connection refused" in done.stderr
    assert not (tmp_path / "n1/cluster.key").exists()
