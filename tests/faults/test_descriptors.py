"""A server that runs out of descriptors keeps its sessions, refuses what it cannot take, and takes more when there is room."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask
from tests.faults.load import THOROUGH
from trionat.address import TCPAddress, parse_tcp_address
from trionat.protocol.proxy import PROXY_V2, proxy_header

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.services import Service

pytestmark = [pytest.mark.limit(90), pytest.mark.timeout(120), pytest.mark.slow]

DESCRIPTORS, VISITORS = (128, 300) if THOROUGH else (80, 120)
ANSWERED_WITHIN = 8.0 + 4.0 + 4.0
"""Seconds that a visitor waits for a tunnel, that the kernel's queue waits for room, and for a busy machine."""
SHORTAGE = "descriptors are short"


@pytest.mark.parametrize("behind_proxy", [False, True])
async def test_more_visitors_than_descriptors(
    echo_server: Service, tmp_path: Path, *, behind_proxy: bool
) -> None:
    prlimit = services.find_program("prlimit", package="util-linux")
    limit = (prlimit, f"--nofile={DESCRIPTORS}")
    async with (
        running.server(
            tmp_path / "s", "--proxy-visit-addr", "127.0.0.1:0", visit="0,0", inside=limit
        ) as server,
        running.client(tmp_path / "a", server.ticket, echo_server) as client,
        running.client(tmp_path / "b", server.ticket, echo_server, "--identity", "b") as other,
        await client.visit() as served,
        await other.visit() as served_too,
    ):
        ends: Counter[str] = Counter()
        leave = trio.Event()
        address = parse_tcp_address(server.ready["proxy_visit"])
        visit_port = TCPAddress("198.51.100.1", client.port())
        header = proxy_header(PROXY_V2, TCPAddress("192.0.2.7", 1), visit_port)

        async def come() -> trio.SocketStream:
            if not behind_proxy:
                return await client.visit()
            return await trio.open_tcp_stream(address.host, address.port)

        async def talk() -> None:
            async with await come() as stream:
                try:
                    if behind_proxy:
                        await stream.send_all(header)
                    with trio.fail_after(ANSWERED_WITHIN):
                        assert await ask(stream, b"anybody?") == b"anybody?"
                except (trio.BrokenResourceError, AssertionError):
                    ends["refused"] += 1
                else:
                    ends["served"] += 1
                    await leave.wait()
                    assert await ask(stream, b"still there?") == b"still there?"

        async with trio.open_nursery() as nursery:
            for _ in range(VISITORS):
                nursery.start_soon(talk)
            while ends.total() < VISITORS:
                for visitor in (served, served_too):
                    with trio.fail_after(2):
                        assert await ask(visitor, b"meanwhile") == b"meanwhile"
                await trio.sleep(0.05)
            other.kill()
            async with running.client(
                tmp_path / "b", server.ticket, echo_server, "--identity", "b"
            ) as back:
                assert back.port() == other.port()
            leave.set()
        print(ends)
        assert ends["refused"]
        assert ends["served"] >= DESCRIPTORS // 8
        async with await client.visit() as newcomer:
            with trio.fail_after(2):
                assert await ask(newcomer, b"is there room?") == b"is there room?"
        ended = [r["code"] for r in server.records if r["event"] == "session closed"]
        assert ended == ["lost", "left"]  # the one that was killed, and its successor
        times = [
            datetime.fromisoformat(record["time"])
            for record in server.records
            if record["event"].startswith(SHORTAGE)
        ]
        assert times
        assert all((after - before).total_seconds() > 0.99 for before, after in pairwise(times))
