"""A Redis server for tests: a process of its own in a folder of its own. Everything here blocks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from bench.program import free_port
from tests.mariadb import HOST, program, write_certificates

if TYPE_CHECKING:
    from collections.abc import Iterator

READY_TIMEOUT = 20.0


@attrs.define(eq=False)
class RedisServer:
    """The server; `running_redis` makes it. Its port stays the same through every stop and start. It keeps nothing on the disk.

    `inside` is what runs its programs, where that is to be on a machine of the test's own, whose address `host` is then.
    """

    folder: Path
    port: int
    password: str = ""
    encrypted: bool = False
    host: str = HOST
    inside: tuple[str, ...] = ()
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis{'s' if self.encrypted else ''}://{self.host}:{self.port}"

    @property
    def authority(self) -> Path:
        """Who has signed its certificate."""
        return self.folder / "authority.pem"

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        log = self.folder / "log"
        command = [*self.inside, program("redis-server"), "--bind", self.host]
        if self.encrypted:
            command += ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            command += ["--tls-cert-file", str(self.folder / "server.pem")]
            command += ["--tls-key-file", str(self.folder / "server.key")]
            command += ["--tls-ca-cert-file", str(self.authority)]
        else:
            command += ["--port", str(self.port)]
        command += ["--dir", str(self.folder), "--save", "", "--appendonly", "no"]
        if self.password:
            command += ["--requirepass", self.password]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        deadline = time.monotonic() + READY_TIMEOUT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"redis-server did not start:\n{log.read_text('utf-8')}")
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill it at once; what it had is lost."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(20)
            self._process = None

    def pause(self) -> None:
        """Let it hang: it accepts connections and says nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ask(self, *words: str) -> str:
        """Run one command, as `redis-cli` prints the answer."""
        command = [*self.inside, program("redis-cli"), "-h", self.host, "-p", str(self.port)]
        if self.encrypted:
            command += ["--tls", "--cacert", str(self.authority)]
        if self.password:
            command += ["--no-auth-warning", "-a", self.password]
        done = subprocess.run(
            [*command, *words], capture_output=True, check=True, timeout=10, encoding="utf-8"
        )
        return done.stdout.strip()

    def _answers(self) -> bool:
        try:
            return self.ask("ping") == "PONG"
        except subprocess.CalledProcessError:
            return False

    def empty(self, *, settled: bool = True) -> None:
        """Remove everything. `settled`: nodes that come need not wait until all others have told what they hold."""
        self.ask("flushall")
        if settled:
            (run,) = [
                line.partition(":")[2].strip()
                for line in self.ask("info", "server").splitlines()
                if line.startswith("run_id:")
            ]
            now = round(time.time() * 1000)
            self.ask("hset", "{trionat}:cluster", "run", run, "last", str(now))

    def age(self, node: str) -> None:
        """Let a node's last beat be long ago."""
        self.ask("zadd", "{trionat}:beats", "xx", "1", node)


@contextmanager
def running_redis(
    password: str = "",
    *,
    encrypted: bool = False,
    host: str = HOST,
    port: int | None = None,
    name: str | None = None,
    inside: tuple[str, ...] = (),
) -> Iterator[RedisServer]:
    """Give a server with an empty folder; it is killed at the end. Its certificate is for `host`, and for a `name`."""
    folder = Path(tempfile.mkdtemp(prefix="trionat-redis-"))
    try:
        if encrypted:
            write_certificates(folder, host, name)
        server = RedisServer(folder, port or free_port(), password, encrypted, host, inside)
        try:
            server.start()
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
