"""A server that is upgraded, so that it is one process after another."""

from __future__ import annotations

import json
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from tests.e2e import running, services
from tests.e2e.running import Server, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Mapping

UPGRADE_TIMEOUT: Final = 60.0


@attrs.define(eq=False)
class Upgradable:
    """A server, whichever process is it by now: `pid`."""

    server: Server
    pid: int

    async def upgrade(self) -> dict[str, Any]:
        """Have a new process take over, and return what the command says of it."""
        result = await self.try_upgrade()
        assert result.returncode == 0, result.stderr.decode()
        upgraded: dict[str, Any] = json.loads(result.stdout)
        assert upgraded["old_pid"] == self.pid
        self.pid = upgraded["pid"]
        assert self.pid != upgraded["old_pid"]
        await self.server.process.next_event("ready", within=UPGRADE_TIMEOUT)
        await wait_until(lambda: not is_there(upgraded["old_pid"]), within=UPGRADE_TIMEOUT)
        return upgraded

    async def try_upgrade(self) -> subprocess.CompletedProcess[bytes]:
        """Run the command."""
        with trio.fail_after(UPGRADE_TIMEOUT):
            return await services.run_trionat("upgrade", "--json", "--state-dir", self.server.state)

    async def status(self) -> dict[str, Any]:
        """Ask the server."""
        result = await services.run_trionat("status", "--json", "--state-dir", self.server.state)
        assert result.returncode == 0, result.stderr.decode()
        status: dict[str, Any] = json.loads(result.stdout)
        return status


def is_there(pid: int) -> bool:
    """Tell whether a process runs; one that has ended, and that its parent has not asked for yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@asynccontextmanager
async def upgradable(
    folder: Path, *flags: str | Path, visit: str = "0", environ: Mapping[str, str] | None = None
) -> AsyncIterator[Upgradable]:
    """Run a server; in the end the process is stopped that is it by then."""
    async with (
        running.server(folder, *flags, visit=visit, environ=environ) as server,
        upgrading(server) as it,
    ):
        yield it


@asynccontextmanager
async def upgrading(server: Server) -> AsyncIterator[Upgradable]:
    """Give a server that runs; at the end of the block the process is stopped that is it by then, and the first one has ended as it should."""
    first = server.process.process
    server.ended = True
    it = Upgradable(server, first.pid)
    try:
        yield it
    finally:
        if it.pid != first.pid:
            os.kill(it.pid, signal.SIGTERM)
            with trio.move_on_after(20, shield=True):
                while is_there(it.pid):  # noqa: ASYNC110 - nothing tells
                    await trio.sleep(0.02)
    if it.pid != first.pid:
        with trio.fail_after(20):  # it stays for visitors who are about to be gone
            assert await first.wait() == 0
