"""What the tests of upgrades have in common: a server of a copy of the program, and visitors who notice everything."""

from __future__ import annotations

import hashlib
import random
import shutil
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio

import trionat
from tests.e2e import running, services
from tests.e2e.running import ask, wait_until
from tests.e2e.upgrading import Upgradable, is_there, upgradable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SOURCE: Final = Path(trionat.__file__).parent

PIECE: Final = 64 * 1024

SUCCESSION: Final = "server/upgrade/succession.py"


def random_bytes(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


class Transfer:
    """Downloads and uploads of so many bytes, by the services `give` and `take`: three quarters of each go slowly, and what is left waits for `hurry`."""

    def __init__(self, size: int) -> None:
        self.blob = random_bytes(1, size)
        self.hurry = trio.Event()
        self.downloads = 0
        self.uploads = 0

    async def give(self, stream: trio.SocketStream) -> None:
        with memoryview(self.blob) as view:
            await stream.send_all(view)
        await stream.send_eof()

    async def take(self, stream: trio.SocketStream) -> None:
        taken = hashlib.sha256()
        async for piece in stream:
            taken.update(piece)
        await stream.send_all(taken.digest())

    async def download(self, client: running.Client) -> None:
        """Visit the client's first service, which is to be `give`."""
        digest, count = hashlib.sha256(), 0
        async with await client.visit(0) as stream:
            async for piece in stream:
                digest.update(piece)
                count += len(piece)
                await self._slow_down(count)
        assert count == len(self.blob)
        assert digest.digest() == hashlib.sha256(self.blob).digest()
        self.downloads += 1

    async def upload(self, client: running.Client) -> None:
        """Visit the client's second service, which is to be `take`."""
        async with await client.visit(1) as stream:
            for start in range(0, len(self.blob), PIECE):
                await stream.send_all(self.blob[start : start + PIECE])
                await self._slow_down(start)
            await stream.send_eof()
            assert await running.read_all(stream) == hashlib.sha256(self.blob).digest()
        self.uploads += 1

    async def _slow_down(self, count: int) -> None:
        if count < len(self.blob) * 3 // 4:
            await trio.sleep(0.005)
        else:
            await self.hurry.wait()


class Load:
    """Visitors that come and go all the while: each has its answer, or the test fails."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.done = 0

    async def run(self) -> None:
        while True:
            async with await trio.open_tcp_stream(services.HOST, self.port) as stream:
                assert await ask(stream, b"x" * 1000) == b"x" * 1000
            self.done += 1
            await trio.sleep(0.01)


@attrs.define(eq=False)
class Talker:
    """A visitor that never stops talking, and checks each answer."""

    stream: trio.SocketStream
    rounds: int = 0

    async def run(self) -> None:
        while True:
            question = f"{self.rounds:8}".encode() * 500
            assert await ask(self.stream, question) == question
            self.rounds += 1
            await trio.sleep(0.005)

    async def goes_on(self) -> None:
        """Wait until there are answers that were asked for after this."""
        await wait_until(partial(self._is_past, self.rounds + 3), within=20)

    def _is_past(self, rounds: int) -> bool:
        return self.rounds > rounds


@attrs.frozen
class Scene:
    """A server of a copy of the program, which a test changes before a new process is started; a client, and a visitor that talks."""

    it: Upgradable
    copy: Path
    client: running.Client
    talker: Talker
    config: Path

    def change(self, module: str, old: str, new: str) -> None:
        """Change the program that is installed."""
        file = self.copy / "trionat" / module
        text = file.read_text()
        assert text.count(old) == 1, f"{module} has {text.count(old)} times: {old}"
        file.write_text(text.replace(old, new))

    def restore(self) -> None:
        """Have the program be as it was."""
        shutil.copytree(SOURCE, self.copy / "trionat", dirs_exist_ok=True)

    async def fails(self, *words: str) -> None:
        """Try an upgrade that goes wrong for this reason: nobody notices, and the server can still be upgraded."""
        result = await self.it.try_upgrade()
        assert result.returncode == 3, result.stderr.decode()
        for word in words:
            assert word in result.stderr.decode()
        await self.talker.goes_on()
        assert is_there(self.it.pid)
        await self.it.status()
        async with await self.client.visit() as stream:
            assert await ask(stream, b"who is there?") == b"who is there?"
        self.restore()
        await self.it.upgrade()
        await self.talker.goes_on()


@asynccontextmanager
async def scene(
    tmp_path: Path,
    *changes: tuple[str, str, str],
    keys: str = "",
    visit: str = "0",
    managed: bool = False,
) -> AsyncIterator[Scene]:
    """Set it up; the first process has `changes` too. `managed` has it think that systemd has started it."""
    copy = tmp_path / "copy"
    shutil.copytree(SOURCE, copy / "trionat")
    config = tmp_path / "server.yml"
    config.write_text(f"Server:\n  Name: one\n{keys}")
    environ = {"PYTHONPATH": str(copy)}
    if managed:
        environ["NOTIFY_SOCKET"] = str(tmp_path / "nobody")
    for module, old, new in changes:
        file = copy / "trionat" / module
        file.write_text(file.read_text().replace(old, new))
    async with (
        services.echo() as echo,
        upgradable(tmp_path / "s", "--config", config, visit=visit, environ=environ) as it,
        running.client(tmp_path / "c", it.server.ticket, echo) as client,
        await client.visit() as stream,
        trio.open_nursery() as nursery,
    ):
        talker = Talker(stream)
        nursery.start_soon(talker.run)
        await talker.goes_on()
        yield Scene(it, copy, client, talker, config)
        nursery.cancel_scope.cancel()
