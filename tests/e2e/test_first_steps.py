"""What somebody does first: the demo, and a server without any file or flag."""

from __future__ import annotations

import re
import signal
import stat
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask, read_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.e2e.services import Service

pytestmark = pytest.mark.limit(60)


async def test_demo_checks_itself(tmp_path: Path) -> None:
    result = await services.run_trionat("demo", "--check", cwd=tmp_path)
    assert result.returncode == 0
    line = r"GET http://127\.0\.0\.1:\d+/ -> 200 OK: Hello from behind the tunnel\.\n"
    assert re.fullmatch(line, result.stdout.decode())
    assert result.stderr == b""
    assert not list(tmp_path.iterdir())  # noqa: ASYNC240 (an empty folder)


@asynccontextmanager
async def person(
    *arguments: str, cwd: Path, **environ: str
) -> AsyncIterator[tuple[trio.Process, trio.abc.ReceiveStream]]:
    """Run a command of trionat as a person does; yields the process and its output. At the end it is interrupted."""
    process = await trio.lowlevel.open_process(
        services.trionat_command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env=services.trionat_environ(**environ),
    )
    assert process.stdout is not None
    async with process.stdout:
        try:
            yield process, process.stdout
        finally:
            await services.stop_process(process, signal.SIGINT)  # noqa: ASYNC102 (shields itself, for a bounded time)


async def read_until(stream: trio.abc.ReceiveStream, pattern: str) -> tuple[re.Match[str], str]:
    """Read until the pattern is there; return its match, and all that was read."""
    text = ""
    with trio.move_on_after(running.START_TIMEOUT):
        while (found := re.search(pattern, text, re.MULTILINE)) is None:
            data = await stream.receive_some()
            assert data, f"it ended after:\n{text}"
            text += data.decode()
        return found, text
    raise AssertionError(f"no {pattern} in:\n{text}")


async def test_demo(tmp_path: Path) -> None:
    """It prints an address that works, tells of visitors, and ends at Ctrl-C, leaving nothing."""
    async with person("demo", cwd=tmp_path, TMPDIR=str(tmp_path)) as (process, output):
        found, banner = await read_until(output, r"^http://127\.0\.0\.1:(\d+)/ (?s:.*)Ctrl-C")
        async with await trio.open_tcp_stream(services.HOST, int(found[1])) as visitor:
            request = f"GET / HTTP/1.1\r\nHost: {found[1]}\r\nConnection: close\r\n\r\n"
            name = running.name_of(visitor)
            await visitor.send_all(request.encode())
            assert (await read_all(visitor)).endswith(b"\r\n\r\nHello from behind the tunnel.\n")
        await read_until(output, rf"visitor closed.*{re.escape(name)}")
        by_name = re.search(
            r"^ +curl --header 'Host: (\S+)' http://127\.0\.0\.1:(\d+)/$", banner, re.MULTILINE
        )
        assert by_name, banner
        async with await trio.open_tcp_stream(services.HOST, int(by_name[2])) as visitor:
            request = f"GET / HTTP/1.1\r\nHost: {by_name[1]}\r\nConnection: close\r\n\r\n"
            await visitor.send_all(request.encode())
            assert (await read_all(visitor)).endswith(b"\r\n\r\nHello from behind the tunnel.\n")
        process.send_signal(signal.SIGINT)
        with trio.fail_after(5):
            assert await process.wait() == 0
            rest = (await read_all(output)).decode()
        assert "Traceback" not in rest
        assert "tn1_" not in rest
    assert not list(tmp_path.iterdir())  # noqa: ASYNC240 (an empty folder)


async def test_first_start(echo_server: Service, tmp_path: Path) -> None:
    """Without a file, in an empty home: keys and accounts are made, and the line that is printed can be copied."""
    home = tmp_path / "home"
    await trio.Path(home).mkdir()
    # Ports of our own, since tests run side by side; all else is as it comes.
    ports = {
        "TRIONAT_SERVER_CONTROLLER_ADDR": f"{services.HOST}:{services.free_low_port()}",
        "TRIONAT_SERVER_TUNNEL_ADDR": f"{services.HOST}:{services.free_low_port()}",
        "TRIONAT_SERVER_VISIT_PORT": str(services.free_low_port()),
    }
    place = {"HOME": str(home), "XDG_STATE_HOME": str(home / "state")}
    line = r"^ *trionat connect (tn1_[\w-]+) 8080\n"
    fingerprint = r"fingerprint +(SHA256:\S{43})\n"

    async with person("serve", cwd=home, **ports, **place) as (process, output):
        found, banner = await read_until(output, line)
        ticket = found[1]
        assert banner.count("tn1_") == 1
        assert f"control         {ports['TRIONAT_SERVER_CONTROLLER_ADDR']}\n" in banner
        assert f"visit ports     {ports['TRIONAT_SERVER_VISIT_PORT']}\n" in banner
        assert "authentication  on\n" in banner
        shown = re.search(fingerprint, banner)
        password = re.search(r"first user +trionat, password (\S+) ", banner)
        assert shown
        assert password
        state = home / "state" / "trionat"
        assert f"state           {state}\n" in banner
        modes = _modes(state)
        assert modes.pop(".") == 0o700
        modes.pop("server.log")  # no secret is in it, and it may be moved elsewhere
        assert {"server.key", "server.crt", "ticket.key", "trionat.db"} <= modes.keys()
        assert set(modes.values()) == {0o600}

        async with running.client(tmp_path / "c", ticket, echo_server) as client:
            async with await client.visit() as visitor:
                assert await ask(visitor, b"hello") == b"hello"
        login = {"TRIONAT_AUTH_USERNAME": "trionat", "TRIONAT_AUTH_PASSWORD": password[1]}
        arguments = ["-c", ports["TRIONAT_SERVER_CONTROLLER_ADDR"], "--fingerprint", shown[1]]
        async with running.client_process(
            tmp_path / "d", *arguments, str(echo_server), environ=login
        ) as client:
            await client.wait_connected()
        process.send_signal(signal.SIGINT)
        with trio.fail_after(5):
            assert await process.wait() == 0
            rest = (await read_all(output)).decode()
        log = await trio.Path(state / "server.log").read_text()
        for text in (log, rest, client.log_text()):
            assert "tn1_" not in text
            assert password[1] not in text

    async with person("serve", cwd=home, **ports, **place) as (process, output):
        found, banner = await read_until(output, line)
        assert found[1] == ticket
        again = re.search(fingerprint, banner)
        assert again
        assert again[1] == shown[1]
        assert "password" not in banner
        async with running.client(tmp_path / "c", ticket, echo_server) as client:
            assert client.port() == int(ports["TRIONAT_SERVER_VISIT_PORT"])
        process.send_signal(signal.SIGINT)
        with trio.fail_after(5):
            assert await process.wait() == 0


def _modes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in (folder, *folder.iterdir())
    }
