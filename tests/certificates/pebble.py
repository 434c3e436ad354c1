"""pebble, Let's Encrypt's authority for tests, with its DNS server: processes of their own in a folder of their own. Everything here blocks."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from bench.program import free_port
from tests.mariadb import HOST, write_certificates

if TYPE_CHECKING:
    from collections.abc import Iterator

READY_TIMEOUT = 20.0
BLOCKED = "blocked.example.org"
"""A name for which it gives no certificate."""


@attrs.frozen
class Pebble:
    """One that runs. It looks for answers at `http_port` and `tls_port` of 127.0.0.1, whatever the name. `folder` has its own certificate."""

    port: int
    http_port: int
    tls_port: int
    folder: Path
    management: int

    @property
    def authority(self) -> Path:
        """Who has signed its own certificate."""
        return self.folder / "authority.pem"

    def root(self) -> str:
        """Return the root of the certificates that it gives, PEM; it makes another one at each start."""
        context = ssl.create_default_context(cafile=str(self.authority))
        url = f"https://{HOST}:{self.management}/roots/0"
        with urllib.request.urlopen(url, context=context, timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    @property
    def directory(self) -> str:
        return f"https://{HOST}:{self.port}/dir"


def find_program(name: str) -> str:
    """Return the path of a program that Go installs, or skip the test."""
    go = Path(os.environ.get("GOPATH", Path.home() / "go")) / "bin"
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), str(go)]))
    if found is None:
        pytest.skip(
            f"{name} is missing: with Go 1.21 or newer, go install github.com/letsencrypt/pebble/v2/cmd/{name}@latest"
        )
    return found


@contextmanager
def running_pebble(**settings: str) -> Iterator[Pebble]:
    """Run one; `settings` are variables of its environment, such as PEBBLE_WFE_NONCEREJECT."""
    programs = [find_program("pebble"), find_program("pebble-challtestsrv")]
    folder = Path(tempfile.mkdtemp(prefix="trionat-pebble-"))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        write_certificates(folder)
        dns, management = free_port(), free_port()
        pebble = Pebble(free_port(), free_port(), free_port(), folder, free_port())
        profiles = {
            "default": {"description": "as usual", "validityPeriod": 90 * 86_400},
            "shortlived": {"description": "for addresses", "validityPeriod": 6 * 86_400},
        }
        config = {
            "listenAddress": f"{HOST}:{pebble.port}",
            "managementListenAddress": f"{HOST}:{pebble.management}",
            "certificate": str(folder / "server.pem"),
            "privateKey": str(folder / "server.key"),
            "httpPort": pebble.http_port,
            "tlsPort": pebble.tls_port,
            "domainBlocklist": [BLOCKED],
            "keyAlgorithm": "ecdsa",
            "profiles": profiles,
        }
        (folder / "config.json").write_text(json.dumps({"pebble": config}))
        commands = [
            [programs[0], "-strict", "-config", str(folder / "config.json")],
            [programs[1], "-dnsserver", f"{HOST}:{dns}", "-management", f"{HOST}:{management}"],
        ]
        commands[0] += ["-dnsserver", f"{HOST}:{dns}"]
        commands[1] += ["-defaultIPv6", "", "-defaultIPv4", HOST]
        for kind in ("-http01", "-https01", "-tlsalpn01", "-doh"):
            commands[1] += [kind, ""]
        environment = {**os.environ, "PEBBLE_VA_NOSLEEP": "1", **settings}
        with (folder / "log").open("wb") as output:
            for command in commands:
                processes.append(  # noqa: PERF401 - what has been started is stopped
                    subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        env=environment,
                    )
                )
        for port in (pebble.port, management):
            _wait_until_open(port, processes, folder / "log")
        yield pebble
    finally:
        for process in processes:
            process.kill()
            process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_open(port: int, processes: list[subprocess.Popen[bytes]], log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT
    while True:
        with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        if time.monotonic() > deadline or any(one.poll() is not None for one in processes):
            raise RuntimeError(f"pebble does not start: {log.read_text('utf-8')}")
        time.sleep(0.02)
