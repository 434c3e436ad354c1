"""A disk that is full, under the log, the store and the journal of the traffic: relaying goes on, and so does the rest afterwards."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask
from tests.faults.load import THOROUGH, Crowd

if TYPE_CHECKING:
    from tests.e2e.running import Server
    from tests.e2e.services import Service

pytestmark = [pytest.mark.limit(60), pytest.mark.slow]

DISK = "2m"
MOUNT = 'mount -t tmpfs -o "size=$1" tmpfs "$2" && shift 2 && exec "$@"'
COMPLAINT = "log records cannot be written"


def on_a_small_disk(folder: Path) -> tuple[str, ...]:
    """Return the beginning of a command line: what it runs sees a small disk in the place of the folder."""
    if shutil.which("unshare") is None:
        pytest.skip("no mount namespaces without unshare")
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    inside = ("unshare", *user, "--mount", "sh", "-c", MOUNT, "sh", DISK, str(folder))
    folder.mkdir()
    tried = subprocess.run([*inside, "true"], capture_output=True, check=False, timeout=10)
    if tried.returncode:
        pytest.skip(f"no mount namespaces here: {tried.stderr.decode().strip()}")
    return inside


def fill(disk: Path) -> Path:
    """Take up all the room that there is, and return the file that does."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 1):
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                while True:
                    file.write(bytes(size))
    return filler


async def served_meanwhile(server: Server, port: int, seconds: float) -> int:
    """Let visitors come and go for a while; return how many were served. Nobody is cut off."""
    crowd = Crowd(partial(trio.open_tcp_stream, services.HOST, port))
    with trio.move_on_after(seconds):
        await crowd.run(5)
    assert crowd.cut == 0, server.log_text()
    return crowd.served


async def test_relaying_goes_on(echo_server: Service, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    inside = on_a_small_disk(folder)
    async with running.server(folder, inside=inside, visit="0,0") as server:
        disk = Path(f"/proc/{server.process.process.pid}/root{folder}")
        server.log_file = disk / "server.log"
        async with (
            running.client(tmp_path / "c", server.ticket, echo_server) as client,
            await client.visit() as visitor,
        ):
            assert await ask(visitor, b"before") == b"before"
            filler = fill(disk)
            assert await served_meanwhile(server, client.port(), 2) > 10
            assert await ask(visitor, b"meanwhile") == b"meanwhile"
            async with running.client(
                tmp_path / "d", server.ticket, echo_server, "--identity", "late"
            ) as late:
                assert await served_meanwhile(server, late.port(), 1) > 3
            assert server.process.errors.decode().count(COMPLAINT) == 1
            if THOROUGH:  # by the next flush
                await running.wait_until(
                    lambda: b"traffic cannot be written down" in server.process.errors, within=15
                )
            filler.unlink()
            before = len(server.records)
            assert await served_meanwhile(server, client.port(), 1) > 3
            assert len(server.records) > before
            assert await ask(visitor, b"after") == b"after"
            if THOROUGH:
                await server.wait_record("traffic is written down again", within=15)
            assert len(client.process.events) == len(late.process.events) == 1
