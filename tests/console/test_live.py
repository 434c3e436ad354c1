"""What changes, told as it does, to readers that read and to those that do not."""

from __future__ import annotations

import json
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from tests.console.browsing import Browser, add_user, connected, served
from trionat.server.console import guard
from trionat.server.console.live import event
from trionat.transport import web_connection

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

pytestmark = pytest.mark.limit(40)


@attrs.define(eq=False)
class Reader:
    stream: trio.SocketStream
    rest: bytes = b""
    heard: bytes = b""

    async def next(self, name: str) -> dict[str, Any]:
        """Return the next event of that name."""
        with trio.fail_after(10):
            while True:
                while b"\n\n" not in self.rest:
                    piece = await self.stream.receive_some(65536)
                    if not piece:
                        raise EOFError
                    self.rest += piece
                    self.heard += piece
                text, _, self.rest = self.rest.partition(b"\n\n")
                if b"event: " + name.encode() + b"\n" in text:
                    values: dict[str, Any] = json.loads(text.partition(b"data: ")[2])
                    return values


@asynccontextmanager
async def reading(browser: Browser, topics: str) -> AsyncGenerator[Reader]:
    async with await trio.open_tcp_stream("127.0.0.1", browser.port) as stream:
        head = f"GET /api/v1/live?topics={topics} HTTP/1.0\r\nHost: localhost\r\nCookie: {browser.cookie}\r\nX-CSRF-Token: {browser.csrf}\r\n\r\n"
        await stream.send_all(head.encode())
        reader = Reader(stream)
        assert (await reader.next("reset"))["topics"] == topics.split(",")
        yield reader


async def test_what_changes_is_told(
    nothing_left: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="trionat")
    async with served(tmp_path / "server") as server:
        browser = await server.browser()
        async with reading(browser, "server,sessions,visitors,log") as reader:
            assert (await reader.next("server"))["sessions"] == 0
            async with connected(server, folder=tmp_path / "client") as port:
                (row,) = (await reader.next("sessions"))["added"]
                assert row["services"][0]["port"] == port
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    (visitor,) = (await reader.next("visitors"))["added"]
                    await stream.send_all(bytes(50_000))
                    while True:
                        (changed,) = (await reader.next("visitors"))["changed"]
                        assert changed["number"] == visitor["number"]
                        if changed["received"] == 50_000:
                            break
                assert (await reader.next("visitors"))["removed"] == [visitor["number"]]
            assert (await reader.next("sessions"))["removed"] == [row["uid"]]
            await Browser(server.port).log_in("nobody", "x")
            while (await reader.next("log"))["event"] != "a login at the console has failed":
                pass


async def test_others_are_not_told_of(tmp_path: Path) -> None:
    async with served(tmp_path / "server") as server:
        await add_user(tmp_path / "server", "alice", "secret")
        alice = Browser(server.port)
        await alice.log_in("alice", "secret")
        async with reading(alice, "server,sessions") as reader:
            async with connected(server, folder=tmp_path / "a"):
                for _ in range(3):
                    assert (await reader.next("server"))["sessions"] == 0
                async with connected(server, "alice", "secret", folder=tmp_path / "b"):
                    (row,) = (await reader.next("sessions"))["added"]
                    assert row["user"] == "alice"
        assert b'"user":"trionat"' not in reader.heard


async def test_a_stream_ends_with_its_login(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        browser = await server.browser()
        async with reading(browser, "server") as reader:
            await browser.post("/api/v1/logout")
            with pytest.raises(EOFError):
                while True:
                    await reader.next("server")


async def test_who_does_not_read_costs_little_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_connection, "_WRITE_PATIENCE", 1.0)
    monkeypatch.setattr(
        "trionat.server.console.live.event",
        lambda name, _: event(name, {"topics": ["server"], "much": "x" * 3_000_000}),
    )
    async with served(tmp_path) as server:
        browser = await server.browser()
        async with await trio.open_tcp_stream("127.0.0.1", browser.port) as stuck:
            head = f"GET /api/v1/live?topics=server HTTP/1.1\r\nHost: localhost\r\nCookie: {browser.cookie}\r\nX-CSRF-Token: {browser.csrf}\r\n\r\n"
            await stuck.send_all(head.encode())
            async with reading(browser, "server") as reader:
                for _ in range(5):  # nobody else is held up
                    await reader.next("server")
            with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
                await trio.sleep(2)
                while await stuck.receive_some(65536):
                    pass
                raise trio.BrokenResourceError
        assert (await browser.get("/api/v1/me")).status == 200


async def test_topics_are_known(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        browser = await server.browser()
        answer = await browser.get("/api/v1/live?topics=server,secrets")
        assert (answer.code, answer.values["field"]) == ("invalid", "topics")


async def test_a_stream_whose_request_does_not_end_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guard, "_BODY_PATIENCE", 0.5)
    async with served(tmp_path) as server:
        browser = await server.browser()
        head = f"GET /api/v1/live?topics=server HTTP/1.1\r\nHost: localhost\r\nCookie: {browser.cookie}\r\nX-CSRF-Token: {browser.csrf}\r\nTransfer-Encoding: chunked\r\n\r\n"
        async with await trio.open_tcp_stream("127.0.0.1", browser.port) as stream:
            await stream.send_all(head.encode())
            with trio.fail_after(5):
                while await stream.receive_some(65536):
                    pass
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
