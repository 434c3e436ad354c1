"""The screens of client and server, in terminals of all kinds, with real processes."""

# ruff: noqa: RUF001 - some of it is Chinese
from __future__ import annotations

import base64
import os
import re
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.named import DOMAIN, named_server

if sys.platform == "win32":
    pytest.skip("terminals as POSIX has them", allow_module_level=True)

from tests.e2e.terminal import Terminal, terminal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

pytestmark = pytest.mark.limit(90)


@asynccontextmanager
async def connected(
    folder: Path, server: running.Server, service: object, *flags: str, **options: object
) -> AsyncIterator[Terminal]:
    """A client in a terminal, which is up."""
    files = ("--state-dir", folder / "client" / "state", "--log-name", folder / "client.log")
    async with terminal(
        "connect",
        *(server.ticket, str(service), *flags),
        *files,
        **options,  # type: ignore[arg-type]
    ) as window:
        await window.shows(f"127.0.0.1:{server.ready['visit_ports'][0]}")
        yield window


def web() -> AbstractAsyncContextManager[services.Service]:
    """Answer whatever is asked in HTTP."""

    async def handler(stream: trio.SocketStream) -> None:
        question = b""
        while not question.endswith(b"\r\n\r\n") and (data := await stream.receive_some()):
            question += data
        await stream.send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    return services.serve(handler)


def rows(text: str, title: str) -> str:
    """Return the line with that title."""
    return next(line for line in text.splitlines() if line.split()[:1] == [title])


async def test_the_address_comes_first_and_is_copied_by_a_key(tmp_path: Path) -> None:
    async with (
        running.server(tmp_path) as server,
        web() as service,
        connected(tmp_path, server, service) as window,
    ):
        port = server.ready["visit_ports"][0]
        url = f"http://127.0.0.1:{port}"
        text = await window.shows(f"│ {url}  -> {service}")
        assert text.splitlines()[2].startswith(f"│ {url}")
        assert f";{url}\x1b\\".encode() in window.said  # which can be clicked
        await window.shows("round trip")
        assert "encrypted, logged in as trionat" in rows(window.text, "server")
        window.type("c")
        await window.shows(f"copied, if the terminal allows it: {url}")
        assert b"\x1b]52;c;" + base64.b64encode(url.encode()) in window.said
        window.type("?")
        await window.shows("Ctrl-S holds what is shown")
        window.type("?")
        await window.shows("nobody is here")
        window.type("i")
        await window.shows("there is no inspector")
        window.type("q")
        assert await window.wait() == 0
        assert not window.emulator.other_page
        assert f"{url} -> {service}" in window.text  # it stays
        assert "stopping: visitors may finish" in window.text


async def test_a_service_that_speaks_first_is_not_taken_for_http(tmp_path: Path) -> None:
    async with (
        running.server(tmp_path) as server,
        services.echo(login=b"SSH-2.0-x\r\n") as service,
        connected(tmp_path, server, service) as window,
    ):
        await window.read_for(2)
        address = f"127.0.0.1:{server.ready['visit_ports'][0]}"
        assert f"│ {address}  -> {service}" in window.text
        window.type("q")
        assert await window.wait() == 0


async def test_a_code_is_there_for_a_phone(tmp_path: Path) -> None:
    async with (
        running.server(tmp_path) as server,
        web() as service,
        connected(tmp_path, server, service, "--qr", columns=80, lines=40) as window,
    ):
        await window.shows("▀▀")
        await window.shows("no phone gets there: a loopback address")
        window.type("r")
        await window.shows("nobody is here")
        window.type("r")
        await window.shows("▀▀")
        window.type("q")
        assert await window.wait() == 0


async def test_who_is_asked_about_is_let_in_by_a_key_that_comes_after_the_question(
    tmp_path: Path,
) -> None:
    async with named_server(tmp_path) as named, services.http() as service:
        name = f"shop.{DOMAIN}"
        async with terminal(
            *("connect", named.server.ticket, f"http:{service.port}@shop", "--approve"),
            *("--state-dir", tmp_path / "client"),
        ) as window:
            await window.shows(f"│ https://{name}")
            window.type("y")  # of nobody
            assert (await named.ask(name, "/secret")).status == 403
            await window.shows("127.0.0.1 wants to visit")
            window.type("y")  # too early: it was meant for something else
            await window.read_for(1)
            assert "127.0.0.1 wants to visit" in window.text
            window.type("n")
            await window.shows("127.0.0.1 is kept out for an hour")
            assert "127.0.0.1 wants to visit" not in window.text
            window.type("q")
            assert await window.wait() == 0


async def test_visitors_are_shown_with_their_rates(tmp_path: Path) -> None:
    async with (
        running.server(tmp_path) as server,
        services.echo() as service,
        connected(tmp_path, server, service) as window,
    ):
        await trio.sleep(0.5)
        async with (
            await trio.open_tcp_stream(services.HOST, server.ready["visit_ports"][0]) as visitor,
            trio.open_nursery() as nursery,
        ):

            async def send() -> None:
                while True:
                    await visitor.send_all(bytes(50_000))
                    await trio.sleep(0.1)

            async def receive() -> None:
                while True:
                    await visitor.receive_some(65536)

            nursery.start_soon(send)
            nursery.start_soon(receive)
            await window.shows("1 here")
            await window.shows(lambda text: len(re.findall(r"\d KiB/s", text)) == 2)
            here = running.name_of(visitor)
            assert here in window.text
            nursery.cancel_scope.cancel()
        await window.shows("nobody is here")
        await window.shows("visitor closed")


async def test_a_service_that_goes_down_and_comes_back_is_told_though_nobody_visits(
    tmp_path: Path,
) -> None:
    port = services.free_low_port()
    async with running.server(tmp_path) as server:
        async with connected(tmp_path, server, port) as window:
            await window.shows("DOWN")
            assert "cannot be reached" in rows(window.text, "down")
            async with services.echo(port=port):
                await window.shows(lambda text: "DOWN" not in text)
                await window.shows("the local service is back")
            await window.shows("DOWN", within=30)


async def test_why_it_waits_and_until_when(tmp_path: Path) -> None:
    async with services.echo() as service, running.server(tmp_path) as server:
        async with connected(tmp_path, server, service) as window:
            server.kill()
            await window.shows("not connected")
            await window.shows(
                lambda text: bool(re.search(r"tries again at \d\d:\d\d:\d\d, in \d+ s", text))
            )
            window.type("q")
            assert await window.wait() == 0


async def test_a_newer_session_has_taken_over(tmp_path: Path) -> None:
    async with services.echo() as service, running.server(tmp_path) as server:
        async with connected(tmp_path, server, service) as window:
            async with running.client_process(
                tmp_path / "client", server.ticket, str(service)
            ) as second:
                assert await window.wait() == 5
                assert "trionat: " in window.text
                assert "a new connection of the same client" in window.text
                second.terminate()
                await second.wait()


async def test_it_is_chinese_where_the_locale_says_so(tmp_path: Path) -> None:
    """Whether there is such a locale on this machine or not."""
    async with services.echo() as service, running.server(tmp_path) as server:
        async with connected(tmp_path, server, service, LC_ALL="zh_CN.UTF-8") as window:
            text = await window.shows("往返")
            assert "已连接 0:0" in text.splitlines()[0]
            assert "已加密，登录用户 trionat" in rows(text, "服务器")
            assert "暂无访客" in rows(text, "访客")
            assert " q  停止" in text.splitlines()[-1]
            window.type("?")
            await window.shows("隧道不受影响")
            window.type("?")
            window.type("c")
            await window.shows("已复制（如果终端允许）：127.0.0.1")
            server.kill()
            await window.shows("未连接")
            again = re.compile(r"状态 .*[：，].*\n +将在 \d\d:\d\d:\d\d 重试（\d+ 秒后）")
            await window.shows(lambda text: bool(again.search(text)))
            window.type("q")
            assert await window.wait() == 0
        log = (tmp_path / "client.log").read_text()
        assert log.isascii()  # whoever reads logs by a program finds what is documented


async def test_why_it_ends_is_told_in_chinese_too(tmp_path: Path) -> None:
    port = services.free_low_port()
    async with running.server(tmp_path) as server:
        async with connected(
            tmp_path, server, port, LC_ALL="", LANG="zh_CN.UTF-8", columns=100
        ) as window:
            await window.shows("不可用")
            row = rows(window.text, "故障")
            assert f"本地服务 127.0.0.1:{port} 无法连接：连接被拒绝" in row
            async with running.client_process(
                tmp_path / "client", server.ticket, str(port)
            ) as second:
                assert await window.wait() == 5
                assert "trionat: 同一客户端（Client-NAT）的新连接接管了会话" in window.text
                second.terminate()
                await second.wait()


async def test_the_screen_of_a_server_is_chinese_too(tmp_path: Path) -> None:
    addresses = ("-c", "127.0.0.1:0", "-t", "127.0.0.1:0", "-p", "0")
    files = ("--state-dir", tmp_path / "state")
    async with terminal("serve", *addresses, *files, LC_ALL="zh_CN.UTF-8") as window:
        text = await window.shows("暂无客户端")
        assert "首个用户：trionat，密码 " in text
        assert "运行中 0:0" in text.splitlines()[0]
        assert all(line.endswith("│") for line in text.splitlines() if line.startswith("│"))
        window.type("q")
        assert await window.wait() == 0
        assert "(shown only this once)" in window.text.replace("\n", "")  # as in every other place


async def test_a_stopped_terminal_stops_nobody(tmp_path: Path) -> None:
    async with (
        running.server(tmp_path) as server,
        services.echo() as service,
        connected(tmp_path, server, service) as window,
    ):
        window.type("\x13")
        await window.read_for(2.5)
        said = len(window.said)
        async with await trio.open_tcp_stream(
            services.HOST, server.ready["visit_ports"][0]
        ) as visitor:
            for _ in range(3):
                assert await running.ask(visitor, b"hello") == b"hello"
                await trio.sleep(1)
        await window.read_for(0.1)
        assert len(window.said) == said
        window.type("q")
        assert await window.wait() == 0
        assert not window.emulator.other_page
        assert not window.is_raw()


async def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(tmp_path: Path) -> None:
    async with (
        running.server(tmp_path) as server,
        services.echo() as service,
        connected(tmp_path, server, service) as window,
    ):
        assert window.is_raw()
        window.type("\x1a")
        with trio.fail_after(10):
            while not os.waitpid(window.child, os.WNOHANG | os.WUNTRACED)[0]:  # noqa: ASYNC110, ASYNC222 - nothing tells, and it does not wait
                await trio.sleep(0.05)
        await window.read_for(0.3)
        assert not window.is_raw()
        assert not window.emulator.other_page
        os.kill(window.child, signal.SIGCONT)
        await window.shows("nobody is here")
        assert window.is_raw()
        window.resize(100, 30)
        await window.shows(lambda text: "─" * 98 in text)
        os.kill(window.child, signal.SIGTERM)
        assert await window.wait() == 0
        assert not window.is_raw()


@pytest.mark.parametrize(
    ("end", "code"),
    [("q", 0), ("\x03", 0), ("\x1c", -signal.SIGQUIT), (signal.SIGTERM, 0), (signal.SIGHUP, 0)],
)
async def test_the_terminal_is_restored_on_every_way_out(
    tmp_path: Path, end: str | signal.Signals, code: int
) -> None:
    async with (
        running.server(tmp_path) as server,
        services.echo() as service,
        connected(tmp_path, server, service) as window,
    ):
        await window.shows("nobody is here")
        if isinstance(end, str):
            window.type(end)
        else:
            os.kill(window.child, end)
        assert await window.wait() == code
        assert not window.is_raw()
        assert not window.emulator.other_page


@pytest.mark.parametrize(
    "poor",
    [
        {"columns": 40, "lines": 10},
        {"TERM": "dumb"},
        {"NO_COLOR": "1"},
        {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "zh_CN.GB18030"},
        {"flag": "--plain"},
        {"flag": "--quiet"},
        {"flag": "-v"},
    ],
    ids=str,
)
async def test_other_terminals_get_lines(tmp_path: Path, poor: dict[str, object]) -> None:
    flag = poor.pop("flag", None)
    flags = () if flag is None else (str(flag),)
    async with (
        running.server(tmp_path) as server,
        web() as service,
        connected(tmp_path, server, service, *flags, **poor) as window,
    ):
        await window.read_for(1)
        said = window.said.decode("latin-1")
        assert "\x1b[?1049h" not in said
        line = f"127.0.0.1:{server.ready['visit_ports'][0]} -> {service}\r\n"
        assert line in said
        assert (f"  server   {server.ready['control']}, logged in as trionat" in said) == (
            flag != "--quiet"
        )
        assert ("debug" in said) == (flag == "-v")
        window.type("\x03")
        assert await window.wait() == 0


async def test_the_screen_of_a_server(tmp_path: Path) -> None:
    addresses = ("-c", "127.0.0.1:0", "-t", "127.0.0.1:0", "-p", "0")
    async with terminal("serve", *addresses, "--state-dir", tmp_path / "state") as window:
        await window.shows("no client is here")
        await window.shows("shown only this once")
        boxed = re.findall(r"^│ (.*?) *│$", window.text, re.MULTILINE)
        found = re.search(r"trionat connect(tn\S+)", "".join(boxed).replace("connect ", "connect"))
        assert found is not None
        ticket = found[1].removesuffix("8080")
        async with services.echo() as service:
            async with running.client(tmp_path / "client", ticket, service) as client:
                await window.shows(lambda text: bool(re.search(r"trionat +127\.0\.0\.1:\d+", text)))
                async with await client.visit() as visitor:
                    assert await running.ask(visitor, b"hello") == b"hello"
                    await window.shows(lambda text: bool(re.search(r"\d:\d\d +1 ", text)))
                client.terminate()
                await client.wait()
        await window.shows("no client is here")
        done = await services.run_trionat("upgrade", "--state-dir", tmp_path / "state")
        assert (done.returncode, done.stdout) == (3, b"")
        assert done.stderr.startswith(b"trionat: this server runs in the foreground of a terminal")
        window.type("q")
        assert await window.wait() == 0
        assert "(shown only this once)" in window.text.replace("\n", "")
        assert not window.is_raw()
