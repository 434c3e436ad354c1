"""A server and a client on a system that lacks all that only Linux, or only POSIX, has: the same bytes get through, in the other ways.

Trio keeps epoll, and sockets of which it has chosen the kind: `sys.platform` is changed behind the back of all libraries, so only trionat looks at it.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.services import Service

# What other systems lack, by the name of the system. Libraries are imported first: they decide by what is there, too.
POOR = """
import functools, os, select, signal, socket, sys, types
import acme, anyio, argon2, attrs, cryptography.x509, h11, platformdirs, sqlite3, trio, typer, yaml
import asyncio, concurrent.futures.thread, encodings.idna, getpass, multiprocessing, shutil, subprocess, sysconfig, tempfile, webbrowser, zoneinfo

sysconfig.get_config_vars()

system, *words = sys.argv[1:]
LINUX = {
    os: ["sched_getaffinity"],
    socket: ["TCP_INFO", "TCP_USER_TIMEOUT", "SOCK_CLOEXEC", "SOCK_NONBLOCK", "MSG_CMSG_CLOEXEC"],
}
POSIX = {
    os: ["pread", "pwrite", "getuid", "geteuid", "O_NONBLOCK"],
    select: ["poll", "POLLOUT"],
    signal: ["SIGHUP"],
    socket: ["AF_UNIX", "SCM_RIGHTS", "CMSG_SPACE"],
}
socket.socketpair = functools.partial(socket.socketpair, socket.AF_UNIX)  # for Trio's own
gone = [LINUX, POSIX] if system == "win32" else [LINUX]
for module, names in [each for one in gone for each in one.items()]:
    for name in names:
        delattr(module, name)
if system == "win32":
    import fcntl

    def locking(descriptor, how, size):
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError from error

    sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
    for name in ("fcntl", "resource", "termios", "pwd", "grp"):
        sys.modules[name] = None
sys.platform = system
import trionat.cli
from trionat.transport import kernel, readiness

assert not readiness.HAS_EPOLL
assert not kernel.INHERITS_OPTIONS
sys.argv = ["trionat", *words]
trionat.cli.main()
"""

SYSTEMS = ["darwin", "win32"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="takes away what Linux has")


def words(system: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", POOR, system, *arguments]


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_demo(system: str, tmp_path: Path) -> None:
    done = subprocess.run(
        words(system, "demo", "--check"),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "-> 200 OK" in done.stdout


@pytest.mark.slow
@pytest.mark.limit(90)
@pytest.mark.parametrize("system", SYSTEMS)
async def test_a_server_and_a_client(system: str, echo_server: Service, tmp_path: Path) -> None:
    """Accounts, events and the audit are written, a mebibyte goes there and back, and both end when they are told to."""
    state = tmp_path / "state"
    server = "serve --json -c 127.0.0.1:0 -t 127.0.0.1:0 -p 0"
    async with trio.open_nursery() as nursery:
        serving, told = await start(nursery, system, *server.split(), f"--state-dir={state}")
        ticket = told.split('"ticket": "')[1].split('"')[0]
        client = words_of_client(ticket, echo_server, tmp_path / "client")
        connecting, told = await start(nursery, system, *client)
        port = int(told.split('"public": "127.0.0.1:')[1].split('"')[0])
        async with await trio.open_tcp_stream("127.0.0.1", port) as visitor:
            data = bytes(range(256)) * 4096
            async with trio.open_nursery() as both:
                both.start_soon(visitor.send_all, data)
                assert await running.read_exactly(visitor, len(data)) == data
        done = await trio.run_process(
            words(system, "user", "add", "alice", f"--state-dir={state}"),
            stdin=b"a long password\n",
            capture_stdout=True,
        )
        assert done.returncode == 0
        for process in (connecting, serving):
            process.terminate()
            assert await process.wait() == 0
    assert '"alice"' in (state / "audit.log").read_text(encoding="utf-8")


def words_of_client(ticket: str, service: Service, state: Path) -> list[str]:
    return ["connect", ticket, str(service), "--json", f"--state-dir={state}"]


async def start(nursery: trio.Nursery, system: str, *arguments: str) -> tuple[trio.Process, str]:
    """Start a program, and return what it says first: that it is up."""
    process: trio.Process = await nursery.start(
        partial(
            trio.run_process,
            words(system, *arguments),
            stdin=b"",
            stdout=subprocess.PIPE,
            check=False,
            env=services.trionat_environ(),
        )
    )
    assert process.stdout is not None
    told = b""
    while not told.endswith(b"\n"):
        piece = await process.stdout.receive_some()
        assert piece, f"{arguments[0]} ended"
        told += piece
    nursery.start_soon(running.read_all, process.stdout)
    return process, told.decode()
