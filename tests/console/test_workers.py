"""The console of a server with several processes: as that of one."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
import trio

from tests.console.browsing import Browser, connected, served
from tests.console.test_live import reading

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.limit(90)]


async def test_what_workers_do_is_seen_and_steered(tmp_path: Path) -> None:
    async with served(tmp_path / "server", workers=2, ban_after=2) as server:
        browser = await server.browser()
        async with (
            reading(browser, "server,sessions,visitors") as reader,
            connected(server, folder=tmp_path / "a"),
            connected(server, folder=tmp_path / "b") as port,
        ):
            with trio.fail_after(20):
                while True:
                    rows = (await browser.get("/api/v1/sessions")).values["items"]
                    if len(rows) == 2:
                        break
                    await trio.sleep(0.2)
            (uid,) = (row["uid"] for row in rows if row["services"][0]["port"] == port)
            workers = (await browser.get("/api/v1/server")).values["whole"]["workers"]
            assert [worker["state"] for worker in workers] == ["up", "up"]
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some(5) == b"hello"
                while True:
                    (visitor,) = (await reader.next("visitors"))["added"]
                    assert visitor["session"] == uid
                    break
                answer = await browser.delete(f"/api/v1/visitors/{visitor['number']}")
                assert answer.status == 204
            for _ in range(2):
                await Browser(server.port).log_in("trionat", "a guess")
            (ban,) = (await browser.get("/api/v1/bans")).values["items"]
            assert (await browser.delete(f"/api/v1/bans/{ban['network']}")).status == 204
            assert (await browser.delete(f"/api/v1/sessions/{uid}")).status == 204
            while uid not in (await reader.next("sessions"))["removed"]:
                pass
            # One that dies does not take the console along.
            os.kill(workers[0]["pid"], signal.SIGKILL)
            with trio.fail_after(20):
                while True:
                    now = (await browser.get("/api/v1/server")).values["whole"]["workers"]
                    if now[0]["restarts"] and now[0]["state"] == "up":
                        break
                    await trio.sleep(0.3)
