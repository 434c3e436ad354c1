"""A clock that is set, forwards or back, under a server and a client that are at work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running
from tests.e2e.running import ask

if TYPE_CHECKING:
    from tests.e2e.services import Service

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


@pytest.mark.limit(40)
async def test_clock_that_is_set(echo_server: Service, tmp_path: Path) -> None:
    """With libfaketime, which shows a process another time of day and leaves its monotonic clock alone."""
    if not LIBRARIES:
        pytest.skip("no libfaketime here: it is in the Debian package of that name")
    offset = tmp_path / "offset"
    offset.write_text("+0")
    environ = {
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    short = ("--ping-interval", "0.5", "--peer-timeout", "2")
    async with (
        running.server(tmp_path / "s", *short, environ=environ) as server,
        running.client_process(
            tmp_path / "c", server.ticket, str(echo_server), environ=environ
        ) as client,
    ):
        await client.wait_connected()
        async with await client.visit() as visitor:
            for jump in ("+3600", "-86400", "+0"):
                offset.write_text(jump)
                for _ in range(8):
                    assert await ask(visitor, b"still here?") == b"still here?"
                    await trio.sleep(0.5)
                async with await client.visit() as newcomer:
                    assert await ask(newcomer, b"hello") == b"hello"
        days = {record["time"][:10] for record in server.records}
        assert len(days) > 1, "the time was never another"
        assert len(client.process.events) == 1
