"""The services of the end-to-end tests, without trionat in between: what fails here is no fault of trionat's."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import h11
import pytest
import trio
import trio_websocket

from tests.e2e import services

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.services import Service, SSHServer


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([data async for data in stream])


async def test_echo_ends_only_after_everything(nothing_left: None) -> None:
    async with services.echo(login=b"hello\n", farewell=b"bye\n") as echo:
        assert 1024 < echo.port < 32_768
        async with await echo.connect() as stream:
            assert await stream.receive_some(6) == b"hello\n"
            data = os.urandom(3_000_000)
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    await stream.send_all(data)
                    await stream.send_eof()

                nursery.start_soon(send)
                assert await read_all(stream) == data + b"bye\n"


async def test_sink_stops_who_sends(nothing_left: None) -> None:
    async with services.sink() as sink, await sink.connect() as stream:
        with trio.move_on_after(0.2) as scope:
            await stream.send_all(bytes(100_000_000))
        assert scope.cancelled_caught


@pytest.mark.parametrize("after", [0, 5])
async def test_resetter_resets(after: int, nothing_left: None) -> None:
    async with services.resetter(after=after) as service, await service.connect() as stream:
        if after:
            with trio.move_on_after(0.05) as scope:
                await stream.receive_some()
            assert scope.cancelled_caught
            await stream.send_all(b"x" * after)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_websocket_echo(nothing_left: None) -> None:
    async with services.websocket_echo() as service:
        limit = services.WEBSOCKET_MESSAGE_BYTES
        url = f"ws://{service}/"
        async with trio_websocket.open_websocket_url(url, max_message_size=limit) as connection:
            for message in ("text", bytes(2_000_000)):
                await connection.send_message(message)
                assert await connection.get_message() == message


class HTTPClient:
    """One keep-alive connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.connection = h11.Connection(h11.CLIENT)

    async def request(
        self, method: str, target: str, body: bytes = b"", **headers: str
    ) -> tuple[int, str, int]:
        """Return the status, the digest of the body and its size."""
        fields = {"Host": "x", "Content-Length": str(len(body)), **headers}
        request = h11.Request(method=method, target=target, headers=list(fields.items()))
        for part in (request, h11.Data(data=body), h11.EndOfMessage()):
            await self.stream.send_all(self.connection.send(part) or b"")
        status, size, digest = 0, 0, hashlib.sha256()
        while True:
            event = self.connection.next_event()
            if event is h11.NEED_DATA:
                self.connection.receive_data(await self.stream.receive_some(262_144))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                digest.update(event.data)
                size += len(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self.connection.start_next_cycle()
                return status, digest.hexdigest(), size


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_http_keeps_alive_streams_and_digests(nothing_left: None) -> None:
    body = os.urandom(3_000_000)
    async with services.http() as server, await server.connect() as stream:
        client = HTTPClient(stream)
        assert await client.request("GET", "/") == (200, sha(b"hello"), 5)
        size = 5_000_000
        answer = await client.request("GET", f"/bytes?n={size}")
        assert answer == (200, services.pattern_digest(size), size)
        assert await client.request("POST", "/digest", body) == (200, sha(sha(body).encode()), 64)
        assert (await client.request("GET", "/none"))[0] == 404
        # and one that goes away in the middle of a body leaves the server up
        async with await server.connect() as rude:
            await rude.send_all(b"POST /digest HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
        assert await client.request("GET", "/") == (200, sha(b"hello"), 5)


async def test_http_with_curl(http_server: Service, tmp_path: Path) -> None:
    """A client by somebody else; from 1 MiB on it waits for `100 Continue`."""
    curl = services.find_program("curl", package="curl")
    (tmp_path / "body").write_bytes(body := os.urandom(2_000_000))
    result = await trio.run_process(
        [curl, "-sS", "--data-binary", f"@{tmp_path}/body", f"http://{http_server}/digest"],
        capture_stdout=True,
    )
    assert result.stdout.decode() == sha(body)


@pytest.mark.slow
@pytest.mark.limit(60)
async def test_http_does_not_hold_a_gigabyte(http_server: Service) -> None:
    resource = pytest.importorskip("resource")
    size = 2**30
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with await http_server.connect() as stream:
        assert (await HTTPClient(stream).request("GET", f"/bytes?n={size}"))[2] == size
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


async def test_redis_answers_and_is_gone_afterwards(nothing_left: None) -> None:
    async with services.redis() as redis:
        async with await redis.connect() as stream:
            await stream.send_all(b"SET a 1\r\nGET a\r\n")
            answer = b""
            while len(answer) < len(b"+OK\r\n$1\r\n1\r\n"):
                answer += await stream.receive_some()
            assert answer == b"+OK\r\n$1\r\n1\r\n"
    with pytest.raises(OSError, match="connect"):
        await redis.connect()


async def test_ssh_runs_commands_and_copies_files(ssh_server: SSHServer, tmp_path: Path) -> None:
    command = ssh_server.ssh("printf %s hello; exit 7")
    result = await trio.run_process(command, capture_stdout=True, check=False)
    assert (result.returncode, result.stdout) == (7, b"hello")
    (tmp_path / "a").write_bytes(os.urandom(1_000_000))
    await trio.run_process(ssh_server.scp(f"{tmp_path}/a", f"remote:{tmp_path}/b"))
    await trio.run_process(ssh_server.scp(f"remote:{tmp_path}/b", f"{tmp_path}/c"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()


@pytest.mark.parametrize(
    ("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)]
)
def test_a_missing_program_skips_here_and_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="install the Debian package no-such-package"):
        services.find_program("no-such-program", package="no-such-package")


async def test_a_server_that_does_not_start_says_why() -> None:
    def command(_port: int) -> list[str]:
        return [sys.executable, "-c", "print('no such option'); raise SystemExit(1)"]

    async def answers(_port: int, _pid: int) -> bool:
        return False

    with pytest.raises(RuntimeError, match="no such option"):
        async with services.started(command, answers):
            pytest.fail("it started")


async def test_a_process_that_ignores_signals_is_killed(nothing_left: None) -> None:
    program = "import signal, time; signal.signal(2, signal.SIG_IGN); print('x', flush=True); time.sleep(60)"
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", program], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    async with process.stdout:
        await process.stdout.receive_some()
        started = time.monotonic()
        await services.stop_process(process, signal.SIGINT, timeout=0.1)
    assert process.returncode == -signal.SIGKILL
    assert time.monotonic() - started < 2


# --- how trionat is run, with a stand-in for it ---

STAND_IN = """
import json, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell has put into the background
try:
    print("to the terminal", file=sys.stderr, flush=True)
    print(json.dumps({"event": "ready", "said": sys.stdin.read()}), flush=True)
    print(json.dumps({"event": "other"}), flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print(json.dumps({"event": "stopped"}), flush=True)
    raise SystemExit(3)
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "trionat_command", lambda: [sys.executable, "-c", STAND_IN])


async def test_events_come_as_objects(stand_in: None, nothing_left: None) -> None:
    async with services.trionat_process(stdin=b"secret") as trionat:
        assert await trionat.next_event("ready") == {"event": "ready", "said": "secret"}
        assert await trionat.next_event() == {"event": "other"}
        trionat.interrupt()
        assert await trionat.next_event("stopped") == {"event": "stopped"}
        assert await trionat.wait() == 3
        assert trionat.errors == b"to the terminal\n"


async def test_a_missing_event_fails_with_what_was_said(stand_in: None) -> None:
    with pytest.RaisesGroup(
        pytest.RaisesExc(pytest.fail.Exception, match=r"0.5 seconds(.|\n)*to the terminal")
    ):
        async with services.trionat_process() as trionat:
            await trionat.next_event("ready")
            await trionat.next_event("never", within=0.5)


async def test_the_block_ends_the_process(stand_in: None, nothing_left: None) -> None:
    async with services.trionat_process() as trionat:
        await trionat.next_event("ready")
    assert trionat.process.returncode == 3
    assert trionat.events[-1] == {"event": "stopped"}
