"""Several Redis servers that stand in for each other: a Redis Cluster, and a master with a replica and Sentinels. Everything here blocks."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from bench.program import free_port
from tests.mariadb import HOST, program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

READY_TIMEOUT = 30.0
MASTER = "mymaster"


@attrs.define(eq=False)
class RedisGroup:
    """Servers by their ports, in a folder; `running_sentinels` and `running_cluster` make one."""

    folder: Path
    processes: dict[int, subprocess.Popen[bytes]] = attrs.field(factory=dict)

    def start(self, port: int, *options: str) -> None:
        """Start a server; the options come behind a port and what it is to keep, which is nothing."""
        folder = self.folder / str(port)
        folder.mkdir(exist_ok=True)
        command = [program("redis-server"), *options, "--port", str(port), "--bind", HOST]
        command += ["--dir", str(folder), "--save", "", "--appendonly", "no"]
        command += ["--repl-diskless-sync-delay", "0"]
        with (self.folder / f"{port}.log").open("ab") as output:
            self.processes[port] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        wait_until(lambda: self.answers(port))

    def answers(self, port: int) -> bool:
        """Tell whether a server is there."""
        return self.ask(port, "ping") == "PONG"

    def ask(self, port: int, *words: str) -> str:
        """Run one command, as `redis-cli` prints the answer; what goes wrong is an answer too."""
        command = [program("redis-cli"), "-h", HOST, "-p", str(port), *words]
        done = subprocess.run(
            command, capture_output=True, check=False, timeout=20, encoding="utf-8"
        )
        return (done.stdout + done.stderr).strip()

    def kill(self, port: int) -> None:
        """Kill a server at once."""
        process = self.processes.pop(port)
        process.send_signal(signal.SIGKILL)
        process.wait(20)

    def stop(self) -> None:
        """Kill all that run."""
        for port in list(self.processes):
            self.kill(port)

    def wait_saying(self, ports: Sequence[int], words: Sequence[str], answer: str) -> None:
        """Wait until all of them say this in answer to a command."""
        for port in ports:
            wait_until(partial(self._says, port, words, answer))

    def _says(self, port: int, words: Sequence[str], answer: str) -> bool:
        return answer in self.ask(port, *words)


def wait_until(condition: Callable[[], bool], within: float = READY_TIMEOUT) -> None:
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("the servers are not ready in time")
        time.sleep(0.05)


@contextmanager
def group() -> Iterator[RedisGroup]:
    found = RedisGroup(Path(tempfile.mkdtemp(prefix="trionat-redis-")))
    try:
        yield found
    finally:
        found.stop()
        shutil.rmtree(found.folder, ignore_errors=True)


@contextmanager
def running_sentinels(count: int = 3) -> Iterator[tuple[RedisGroup, list[int], int, int]]:
    """Give a group, the ports of its Sentinels, of the master and of its replica."""
    with group() as found:
        master, replica = free_port(), free_port()
        found.start(master)
        found.start(replica, "--replicaof", HOST, str(master))
        sentinels = [free_port() for _ in range(count)]
        for port in sentinels:
            file = found.folder / f"{port}.conf"
            file.write_text(
                f"sentinel monitor {MASTER} {HOST} {master} {count // 2 + 1}\n"
                f"sentinel down-after-milliseconds {MASTER} 1000\n"
                f"sentinel failover-timeout {MASTER} 6000\n"
            )
            found.start(port, str(file), "--sentinel")
        found.wait_saying([replica], ("info", "replication"), "master_link_status:up")
        found.wait_saying(sentinels, ("info", "sentinel"), f"slaves=1,sentinels={count}")
        yield found, sentinels, master, replica


@contextmanager
def running_cluster(masters: int = 3) -> Iterator[tuple[RedisGroup, list[int]]]:
    """Give a group, and the ports of its servers: masters, and as many replicas."""
    with group() as found:
        ports = [free_port() for _ in range(2 * masters)]
        for port in ports:
            found.start(port, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
        addresses = [f"{HOST}:{port}" for port in ports]
        words = ["--cluster", "create", *addresses, "--cluster-replicas", "1", "--cluster-yes"]
        said = found.ask(ports[0], *words)
        found.wait_saying(ports, ("cluster", "info"), "cluster_state:ok")
        assert "All 16384 slots covered" in said, said
        # Before, nobody can stand in for another.
        found.wait_saying(ports[masters:], ("info", "replication"), "master_link_status:up")
        yield found, ports
