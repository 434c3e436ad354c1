"""Processes that may have few descriptors: what does not fit is said at the start, and those that there are are shared out well."""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask, end_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.services import Service

pytestmark = [pytest.mark.limit(90), pytest.mark.timeout(120)]

TOO_FEW = "descriptors are too few for what is configured"
VISITORS = 30


def limited(number: int) -> tuple[str, str]:
    return services.find_program("prlimit", package="util-linux"), f"--nofile={number}"


async def test_more_visit_ports_than_descriptors(tmp_path: Path) -> None:
    """It ends at once, and the number that it names is enough."""
    ports = ",".join(["0"] * 200)
    command = services.trionat_command(
        *("serve", "-c", "127.0.0.1:0", "-t", "127.0.0.1:0", "-p", ports),
        *("--state-dir", tmp_path / "state"),
    )
    with trio.fail_after(10):
        done = await trio.run_process(
            [*limited(150), *command], capture_stdout=True, capture_stderr=True, check=False
        )
    assert done.returncode == 3
    assert done.stdout == b""
    [line] = done.stderr.decode().splitlines()
    told = re.fullmatch(
        r"trionat: (\d+) descriptors are needed for 200 visit ports, and this process may have 150:"
        r" raise the limit \(ulimit -n, under systemd LimitNOFILE\)",
        line,
    )
    assert told is not None
    assert not (tmp_path / "state").exists()
    needed = int(told[1])
    assert 200 < needed < 300
    async with (
        services.echo() as echo,
        running.server(tmp_path / "s", visit=ports, inside=limited(needed)) as server,
        running.client(tmp_path / "c", server.ticket, echo) as client,
        await client.visit() as visitor,
    ):
        assert await ask(visitor, b"room for one") == b"room for one"
        warning = await server.wait_record(
            "descriptors are too few for what is configured: raise the limit (ulimit -n, under systemd LimitNOFILE)",
            level="warning",
            limit=needed,
            configured="200 visit ports, MaxTCPConnNum 200, MaxVisitors 1024",
        )
        assert warning["needed"] > 200 + 2 * 1024
        assert server.log_text().count(TOO_FEW) == 2  # in the file and on the terminal


async def test_a_client_with_few(echo_server: Service, tmp_path: Path) -> None:
    """Half of what it has is for services: as many as are let in are served, the others wait, and none meets a client without any."""
    ends: Counter[str] = Counter()
    async with (
        running.server(tmp_path / "s") as server,
        running.client(tmp_path / "c", server.ticket, echo_server, inside=limited(40)) as client,
    ):

        async def talk() -> None:
            async with await client.visit() as stream:
                try:
                    assert await ask(stream, b"anybody?") == b"anybody?"
                except (trio.BrokenResourceError, AssertionError):
                    ends["refused"] += 1
                else:
                    ends["served"] += 1
                    await trio.sleep(0.1)
                    await stream.send_eof()
                    assert await end_of(stream) == "end"

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for _ in range(VISITORS):
                    nursery.start_soon(talk)
        assert ends == {"served": 2 * VISITORS}
        warnings = [record for record in client.records if record["level"] == "warning"]
        [warning] = warnings
        assert warning["event"].startswith(TOO_FEW)
        assert (warning["limit"], warning["configured"]) == (
            40,
            "MaxTunnels 1024, each with a local connection",
        )
        assert "tunnel lost" not in client.log_text()


async def test_a_client_that_loses_some(echo_server: Service, tmp_path: Path) -> None:
    """While it is up, its limit goes down: idle tunnels make room for services, which is told once, and once when it is over."""
    async with (
        running.server(tmp_path / "s") as server,
        running.client(
            tmp_path / "c", server.ticket, echo_server, "--min-idle-tunnels", 8, "--max-tunnels", 64
        ) as client,
        await client.visit() as early,
    ):
        assert await ask(early, b"early") == b"early"
        await running.wait_until(lambda: len(numbers(client)) >= 8 + 2)
        await trio.sleep(1.5)
        await set_limit(client, max(numbers(client)) + 1)
        for _ in range(3):
            async with await client.visit() as visitor:
                with trio.fail_after(5):
                    assert await ask(visitor, b"late") == b"late"
                assert await ask(early, b"still there?") == b"still there?"
            await trio.sleep(1)
        await set_limit(client, 1024)
        await client.wait_record("there are enough descriptors again")
        events = [record["event"] for record in client.records]
        assert sum(event.startswith("descriptors are short") for event in events) == 1
        assert "visitor refused" not in events
        await running.wait_until(lambda: len(numbers(client)) >= 8 + 2)


def numbers(client: running.Client) -> list[int]:
    """Return the descriptors that it has."""
    return [int(number) for number in os.listdir(f"/proc/{client.process.process.pid}/fd")]  # noqa: PTH208


async def set_limit(client: running.Client, number: int) -> None:
    await trio.run_process(
        [
            services.find_program("prlimit", package="util-linux"),
            f"--pid={client.process.process.pid}",
            f"--nofile={number}:",
        ]
    )
