"""A new process takes the place of a server that is up, as its operator has it done, and no visitor notices."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.console.browsing import Browser
from tests.e2e import running, services
from tests.e2e.named import DOMAIN, named_server
from tests.e2e.running import ask, wait_until
from tests.e2e.upgrading import UPGRADE_TIMEOUT, upgradable, upgrading
from tests.events.receiver import receiving
from tests.failover.upgrade_scene import PIECE, SUCCESSION, Load, Transfer, random_bytes, scene

if TYPE_CHECKING:
    from tests.e2e.services import Service, SSHServer

SIZE: Final = 100_000_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.limit(110),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc"),
]


async def test_a_download_an_upload_and_a_shell_across_three_upgrades(
    ssh_server: SSHServer, echo_server: Service, tmp_path: Path
) -> None:
    transfer = Transfer(SIZE)
    async with (
        services.serve(transfer.give) as source,
        services.serve(transfer.take) as sink,
        upgradable(tmp_path / "s", visit="0,0,0,0") as it,
        running.client(
            tmp_path / "c", it.server.ticket, source, sink, ssh_server, echo_server
        ) as client,
        trio.open_nursery() as nursery,
    ):
        load = [Load(client.port(3)) for _ in range(4)]
        async with trio.open_nursery() as visiting:
            for each in load:
                visiting.start_soon(each.run)
            nursery.start_soon(transfer.download, client)
            nursery.start_soon(transfer.upload, client)
            shell = await visiting_shell(ssh_server, client.port(2), nursery)
            assert "first-7" in await _type(shell, "first")
            for number in range(3):
                before = load[0].done
                upgraded = await it.upgrade()
                assert upgraded["clients"] == 1
                assert upgraded["visitors"] >= 3
                assert f"round{number}-7" in await _type(shell, f"round{number}")
                await wait_until(lambda: load[0].done > before + 3)  # noqa: B023 - at once
                status = await it.status()
                [session] = status["sessions"]
                ports = [each["port"] for each in session["services"]]
                assert ports == [client.port(each) for each in range(4)]
            assert not transfer.downloads, "the download has to last for longer than the upgrades"
            transfer.hurry.set()
            assert shell.stdin is not None
            await shell.stdin.send_all(b"exit 3\n")
            with trio.fail_after(20):
                assert await shell.wait() == 3
            visiting.cancel_scope.cancel()
    assert (transfer.downloads, transfer.uploads) == (1, 1)
    assert all(each.done > 20 for each in load)


async def visiting_shell(ssh_server: SSHServer, port: int, nursery: trio.Nursery) -> trio.Process:
    """Return an ssh with a terminal, which is ended with the nursery."""
    shell = await trio.lowlevel.open_process(
        ssh_server.ssh("-tt", "exec sh", port=port),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    async def end_it() -> None:
        try:
            await shell.wait()
        finally:
            await services.stop_process(shell)  # noqa: ASYNC102 - shields itself
            assert shell.stdin is not None
            assert shell.stdout is not None
            await trio.aclose_forcefully(shell.stdin)  # noqa: ASYNC102 - at once
            await trio.aclose_forcefully(shell.stdout)  # noqa: ASYNC102 - at once

    nursery.start_soon(end_it)
    return shell


async def _type(shell: trio.Process, word: str) -> str:
    """Type a line, and return what the shell says up to the answer to it."""
    assert shell.stdin is not None
    assert shell.stdout is not None
    await shell.stdin.send_all(f"echo {word}-$((3+4))\n".encode())
    said = b""
    with trio.fail_after(20):
        while f"{word}-7".encode() not in said:
            piece = await shell.stdout.receive_some()
            assert piece, said
            said += piece
    return said.decode()


# --- what can go wrong, each with somebody who talks all the while ---


async def test_a_configuration_that_is_wrong(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        sessions = (await here.it.status())["sessions"]
        here.config.write_text("Server:\n  Nonsense: 1\n")
        result = await here.it.try_upgrade()
        assert result.returncode == 3
        assert result.stderr.decode().startswith(
            "trionat: the new process does not serve, and the server goes on as it was"
            f" (process {here.it.pid}): "
        )
        assert "Nonsense" in result.stderr.decode()
        assert (await here.it.status())["sessions"][0]["uid"] == sessions[0]["uid"]
        here.config.write_text("Server:\n  Name: two\n")
        await here.it.upgrade()
        assert (await here.it.status())["server"]["name"] == "two"
        await here.talker.goes_on()


async def test_a_program_that_does_not_start(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        here.change("cli/serve.py", "import json\n", "import json\nraise SystemExit(1)\n")
        await here.fails("ended with code 1")


@pytest.mark.parametrize(
    ("managed", "end"),
    [(False, "ended with code 7"), (True, "ended before")],
    ids=["by hand", "managed"],
)
async def test_a_process_that_dies_with_all_it_was_given(
    managed: bool, end: str, tmp_path: Path
) -> None:
    async with scene(tmp_path, managed=managed) as here:
        here.change(
            "server/single.py",
            "            predecessor.take()\n",
            "            import os; os._exit(7)\n",
        )
        await here.fails(end)


async def test_a_process_that_gives_up_with_all_it_was_given(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        here.change(
            "server/single.py",
            "            predecessor.take()\n",
            "            raise StartupError('rather not')\n",
        )
        await here.fails("rather not")


async def test_the_console_goes_on_where_another_process_gives_up(tmp_path: Path) -> None:
    pytest.importorskip("anycorn")
    async with scene(tmp_path, keys="  ConsoleAddr: 127.0.0.1:0\n") as here:
        port = int(here.it.server.ready["console"].rstrip("/").rpartition(":")[2])
        here.change(
            "server/single.py",
            "            predecessor.take()\n",
            "            raise StartupError('rather not')\n",
        )
        assert (await here.it.try_upgrade()).returncode == 3
        async with await trio.open_tcp_stream(services.HOST, port) as stream:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        await here.talker.goes_on()


async def test_a_process_that_hangs_before_it_is_ready(tmp_path: Path) -> None:
    module = "server/upgrade/successor.py"
    async with scene(
        tmp_path, (module, "_TO_PREPARE: Final = 60.0", "_TO_PREPARE: Final = 3.0")
    ) as here:
        here.change(SUCCESSION, "await predecessor.inherit()", "await trio.sleep(1000)")
        await here.fails("given up", "it is not ready")


@pytest.mark.parametrize("managed", [False, True], ids=["by hand", "managed"])
async def test_a_process_that_hangs_with_all_it_was_given(managed: bool, tmp_path: Path) -> None:
    module = "server/upgrade/successor.py"
    change = (module, "_TO_TAKE: Final = 10.0", "_TO_TAKE: Final = 2.0")
    async with scene(tmp_path, change, managed=managed) as here:
        here.change(
            "server/single.py",
            "            predecessor.take()\n",
            "            import time; time.sleep(1000)\n",
        )
        await here.fails("given up", "it has not taken over")


async def test_versions_that_know_more_and_less(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        here.change("server/upgrade/successor.py", '"streams", ', '"streams", "colours", ')
        here.change(
            "server/upgrade/estate.py",
            '"tries": visitor.tries,',
            '"tries": visitor.tries, "colour": "red",',
        )
        here.change(
            "server/upgrade/estate.py", '"taken": stream.taken,', '"taken": stream.taken, "hue": 3,'
        )
        here.change(SUCCESSION, '"bans": self.bans', '"weather": [1], "bans": self.bans')
        await here.it.upgrade()  # from less to more
        await here.talker.goes_on()
        await here.it.upgrade()  # from more to more
        await here.talker.goes_on()
        here.restore()
        await here.it.upgrade()  # from more to less
        await here.talker.goes_on()


async def test_a_signal(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        os.kill(here.it.pid, signal.SIGUSR2)
        os.kill(here.it.pid, signal.SIGUSR2)  # the same upgrade
        record = await here.it.server.wait_record(
            "upgrade: the new process serves", within=UPGRADE_TIMEOUT
        )
        here.it.pid = record["pid"]
        await here.talker.goes_on()
        assert await here.it.server.process.process.wait() == 0
        assert [each["event"] for each in here.it.server.records].count(
            "upgrade: a new process is started"
        ) == 1


async def test_a_stop_while_a_new_process_starts(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        here.change(SUCCESSION, "await predecessor.inherit()", "await trio.sleep(1000)")
        os.kill(here.it.pid, signal.SIGUSR2)
        await here.it.server.wait_record("upgrade: a new process is started")
        await trio.sleep(1)
        os.kill(here.it.pid, signal.SIGTERM)
        await here.it.server.wait_record("visit ports closed")
        await here.it.status()  # it is still there for its visitors
        await here.talker.goes_on()


async def test_the_service_manager_is_told_who_serves(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"}

        async def heard(word: str) -> str:
            while True:
                said = (await trio.to_thread.run_sync(manager.recv, 4096)).decode()
                if said.startswith(word):
                    return said

        async with upgradable(tmp_path / "s", environ=environ) as it:
            assert await heard("READY=1")
            for _ in range(2):
                await it.upgrade()
                assert await heard("MAINPID=") == f"MAINPID={it.pid}"
                assert await heard("WATCHDOG=1")


# --- what else goes along ---


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_events_and_the_console_go_on(workers: str, tmp_path: Path) -> None:
    config = tmp_path / "server.yml"
    async with receiving() as receiver, services.echo() as echo:
        hook = {"Url": receiver.url, "AllowPrivate": True}
        config.write_text(json.dumps({"Server": {"ConsoleAddr": "127.0.0.1:0"}, "Events": [hook]}))
        async with (
            upgradable(tmp_path / "s", "--config", config, "--workers", workers) as it,
            running.client(tmp_path / "c", it.server.ticket, echo) as client,
            await client.visit() as stream,
        ):
            flags = ("--state-dir", it.server.state)
            await services.run_trionat("user", "add", "boss", *flags, stdin=b"a password\n")
            await services.run_trionat("user", "admin", "boss", "on", *flags)
            browser = Browser(int(it.server.ready["console"].rstrip("/").rpartition(":")[2]))
            answer = await browser.log_in("boss", "a password")
            assert answer.status == 200, answer
            for _ in range(2):
                await it.upgrade()
                assert await ask(stream, b"still here?") == b"still here?"
                answer = await browser.get("/api/v1/sessions")
                assert answer.status == 200, "nobody has to log in again"
            await receiver.wait_type("session.back")
        await receiver.wait_type("server.stopping")
    numbers = sorted(set(receiver.numbers))
    assert numbers == list(range(1, len(numbers) + 1)), "none is missing, and none is another one"
    assert len(receiver.numbers) - len(numbers) <= 2, "one that was on its way may come twice"


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_names_go_on(workers: str, tmp_path: Path) -> None:
    """A download whose TLS ends at the server, a WebSocket, and TLS that is passed through; who has a connection that waits asks on a new one."""
    hurry = trio.Event()
    body = random_bytes(3, SIZE)[: SIZE // 4]

    async def serve_slowly(stream: trio.SocketStream) -> None:
        asked = b""
        while not asked.endswith(b"\r\n\r\n"):
            piece = await stream.receive_some()
            if not piece:
                return
            asked += piece
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), PIECE):
            await stream.send_all(body[start : start + PIECE])
            if start > len(body) // 2:
                await hurry.wait()
        await stream.aclose()

    async with (
        services.serve(serve_slowly) as slow,
        services.http() as quick,
        services.websocket_echo() as chat,
        named_server(tmp_path / "s", "--workers", workers) as named,
        upgrading(named.server) as it,
        running.client(
            tmp_path / "c",
            named.server.ticket,
            f"http:{slow.port}@slow",
            f"http:{quick.port}@quick",
            f"http:{chat.port}@chat",
        ),
        trio.open_nursery() as nursery,
    ):
        done: list[bytes] = []

        async def download() -> None:
            name = f"slow.{DOMAIN}"
            command = named.curl(named.url(name), "--max-time", "100", name=name)
            done.append((await trio.run_process(command, capture_stdout=True)).stdout)

        nursery.start_soon(download)
        async with await named.connect(f"chat.{DOMAIN}") as socket_:
            await socket_.send_all(HANDSHAKE)
            assert (await socket_.receive_some()).startswith(b"HTTP/1.1 101")
            for number in range(2):
                idle = await named.connect(f"quick.{DOMAIN}")
                await idle.send_all(f"GET / HTTP/1.1\r\nHost: quick.{DOMAIN}\r\n\r\n".encode())
                assert (await idle.receive_some()).startswith(b"HTTP/1.1 200")
                result = await it.try_upgrade()
                assert result.returncode == 0, result.stderr
                upgraded = json.loads(result.stdout)
                it.pid = upgraded["pid"]
                assert (await named.ask(f"quick.{DOMAIN}")).status == 200
                frame = _frame(f"hello {number}".encode())
                await socket_.send_all(frame)
                assert f"hello {number}".encode() in await socket_.receive_some()
                with trio.fail_after(10):
                    while await idle.receive_some():
                        pass  # the rest of the answer, and the end
                await trio.aclose_forcefully(idle)
            assert not done
            hurry.set()
            with trio.fail_after(60):
                while not done:  # noqa: ASYNC110 - curl tells nothing
                    await trio.sleep(0.05)
        assert hashlib.sha256(done[0]).digest() == hashlib.sha256(body).digest()


HANDSHAKE: Final = (
    f"GET / HTTP/1.1\r\nHost: chat.{DOMAIN}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
).encode()


def _frame(text: bytes) -> bytes:
    """Return a text frame of a client with a mask of zeros (RFC 6455 5.2)."""
    return bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text
