"""What people do through a tunnel goes on over an outage, and over another address of the client: ssh, a download, an upload."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
from functools import partial
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from tests.e2e import running, services
from tests.e2e.services import find_program

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.services import SSHServer
    from tests.faults.networks import Lab

pytestmark = [pytest.mark.limit(170), pytest.mark.timeout(200)]

OUTAGE = 20.0
"""Seconds."""
BACK_WITHIN = 5.0
SLACK = 5.0
"""Seconds that a busy machine may add to what the product promises."""
TRANSFER = 200 * 10**6
"""Bytes, each way."""
RATE = 10 * 10**6
"""Bytes a second, so that it takes long enough to be disturbed."""


async def out(lab: Lab, client: running.Client) -> None:
    """Let neither end see anything but silence for a while."""
    lab.cut()
    await trio.sleep(OUTAGE)
    lab.mend()
    await client.wait_connected(within=BACK_WITHIN + SLACK)


async def move(lab: Lab, client: running.Client) -> None:
    """Give the client another address, at once."""
    lab.unplug_client()
    lab.move_client()
    await client.wait_connected(within=10 + BACK_WITHIN + SLACK)


# --- ssh ---

SHELL = """
stty -echo
(n=0; while sleep 0.2; do n=$((n + 1)); echo "count $n"; done) &
while read -r line; do echo "said $line"; done
kill $!
echo bye
"""
"""What runs at the client's end: it counts, repeats what is typed, and ends when its terminal says that there is no more."""


async def serve_ssh(server: SSHServer, stream: trio.SocketStream) -> None:
    """Serve one connection as inetd would: the socket may be of any network, and sshd need not be in it."""
    with socket.socket(fileno=os.dup(stream.socket.fileno())) as end:
        end.setblocking(True)
        process = await trio.lowlevel.open_process(
            [*server.daemon, "-i"], stdin=end.fileno(), stdout=end.fileno(), stderr=subprocess.PIPE
        )
    stream.socket.close()
    assert process.stderr is not None
    try:
        async for _ in process.stderr:
            pass
        await process.wait()
    finally:
        await services.stop_process(process)  # noqa: ASYNC102 (shields itself, for a bounded time)


@attrs.define(eq=False)
class Terminal:
    """Somebody at an ssh: `typed` are the lines so far, `shown` what came."""

    ssh: trio.Process
    typed: list[str] = attrs.field(factory=lambda: [])
    shown: bytearray = attrs.field(factory=bytearray)

    async def show(self) -> None:
        assert self.ssh.stdout is not None
        async for data in self.ssh.stdout:
            self.shown += data

    async def type(self) -> None:
        """Type a line, whatever becomes of it."""
        assert self.ssh.stdin is not None
        self.typed.append(f"line {len(self.typed) + 1}")
        await self.ssh.stdin.send_all(self.typed[-1].encode() + b"\n")

    @property
    def said(self) -> list[str]:
        """What the other end repeated, line by line."""
        return re.findall(r"said (.*?)\r\n", self.shown.decode())

    @property
    def counted(self) -> list[int]:
        return [int(number) for number in re.findall(r"count (\d+)\r\n", self.shown.decode())]

    async def wait_all_said(self) -> None:
        await running.wait_until(lambda: self.said == self.typed, within=BACK_WITHIN + SLACK)


async def test_ssh(lab: Lab, ssh_server: SSHServer, tmp_path: Path) -> None:
    """What is typed meanwhile arrives, and so does what the other end says; nothing twice, and nothing is missing."""
    async with trio.open_nursery() as nursery:
        service = await lab.client.serve(partial(serve_ssh, ssh_server), nursery)
        async with (
            running.server(
                tmp_path / "s", control=f"{lab.SERVER}:8007", inside=lab.server.inside
            ) as server,
            running.client(
                tmp_path / "c", server.ticket, service, inside=lab.client.inside
            ) as client,
        ):
            visited = attrs.evolve(ssh_server, host=lab.SERVER, port=client.port())
            command = visited.ssh(SHELL)
            command.insert(1, "-tt")
            ssh = await trio.lowlevel.open_process(
                [*lab.server.inside, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            terminal = Terminal(ssh)
            nursery.start_soon(terminal.show)
            try:
                await running.wait_until(lambda: len(terminal.counted) > 2, within=20)
                await terminal.type()
                await terminal.wait_all_said()
                for disturb in (out, move):
                    counted = len(terminal.counted)
                    async with trio.open_nursery() as disturbed:
                        disturbed.start_soon(disturb, lab, client)
                        for _ in range(5):
                            await trio.sleep(1)
                            await terminal.type()
                    restored = trio.current_time()
                    await terminal.wait_all_said()
                    print(
                        f"{disturb.__name__}: all there {trio.current_time() - restored:.1f} s after"
                    )
                    await running.wait_until(
                        partial(lambda counted: len(terminal.counted) > counted + 25, counted),
                        within=BACK_WITHIN + SLACK,
                    )
                assert ssh.stdin is not None
                await ssh.stdin.send_all(b"\x04")
                await running.wait_until(lambda: b"bye" in terminal.shown, within=SLACK)
                with trio.fail_after(SLACK):
                    assert await ssh.wait() == 0
            finally:
                await services.stop_process(ssh)  # noqa: ASYNC102 (shields itself, for a bounded time)
            assert terminal.said == terminal.typed
            assert terminal.counted == list(range(1, len(terminal.counted) + 1))
            print(f"{len(terminal.typed)} lines typed, counted to {len(terminal.counted)}")
        nursery.cancel_scope.cancel()


# --- curl ---


async def test_download_and_upload(lab: Lab, tmp_path: Path) -> None:
    """Both at once, with an outage and another address of the client in their middle: the same SHA-256 at both ends."""
    curl = find_program("curl", package="curl")
    downloaded, upload = tmp_path / "downloaded", tmp_path / "upload"
    digest = hashlib.sha256()
    async with await trio.open_file(upload, "wb") as file:
        for piece in services.pattern(TRANSFER):
            await file.write(piece)
    limited = (curl, "-sS", "--limit-rate", str(RATE))
    async with trio.open_nursery() as nursery:
        service = await lab.client.serve(services.serve_http, nursery)
        async with (
            running.server(
                tmp_path / "s", control=f"{lab.SERVER}:8007", inside=lab.server.inside
            ) as server,
            running.client(
                tmp_path / "c", server.ticket, service, inside=lab.client.inside
            ) as client,
        ):
            site = f"http://{lab.SERVER}:{client.port()}"
            started = trio.current_time()
            answers: dict[str, bytes] = {}

            async def run(name: str, *arguments: str) -> None:
                command = [*lab.server.inside, *limited, *arguments]
                answers[name] = (await trio.run_process(command, capture_stdout=True)).stdout

            async with trio.open_nursery() as transfers:
                transfers.start_soon(
                    run, "download", "-o", str(downloaded), f"{site}/bytes?n={TRANSFER}"
                )
                transfers.start_soon(run, "upload", "-T", str(upload), f"{site}/digest")
                for disturb, after in ((out, 0.2), (move, 0.5)):
                    await running.wait_until(
                        partial(reached, downloaded, after * TRANSFER), within=60
                    )
                    await disturb(lab, client)
                    assert not answers, "it was over before it was disturbed"
            print(f"{TRANSFER} bytes each way in {trio.current_time() - started:.1f} s")
            async with await trio.open_file(downloaded, "rb") as arrived:
                while data := await arrived.read(2**20):
                    digest.update(data)
            assert digest.hexdigest() == services.pattern_digest(TRANSFER)
            assert answers["upload"].decode() == services.pattern_digest(TRANSFER)
        nursery.cancel_scope.cancel()


def reached(file: Path, size: float) -> bool:
    """Tell whether a file has grown to so many bytes."""
    return file.exists() and file.stat().st_size >= size
