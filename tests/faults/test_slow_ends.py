"""Ends that keep others waiting: a service that never answers, a visitor that hardly reads. Nobody else notices, and nothing grows."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask, end_of
from tests.faults.load import THOROUGH

if TYPE_CHECKING:
    from tests.e2e.running import Running
    from tests.e2e.services import Service

pytestmark = [pytest.mark.limit(60), pytest.mark.slow]

SILENT = 20
SECONDS = 20 if THOROUGH else 4
MIB = 1024 * 1024
SOCKET_BUFFERS = 3 * (6 + 4) * MIB
"""What the kernel may hold between a service and a visitor: three connections, each with what Linux allows at most (tcp(7), tcp_rmem
and tcp_wmem)."""
OWN_GROWTH = 4 * MIB


def resident(running: Running) -> int:
    """Return how much memory a process has, in bytes."""
    status = Path(f"/proc/{running.process.process.pid}/status").read_text()
    return next(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:")
    )


async def test_service_that_never_answers(echo_server: Service, tmp_path: Path) -> None:
    """Its visitors wait as long as they like; those of another service are served; who gives up is forgotten."""
    async with (
        services.sink() as sink,
        running.server(tmp_path / "s", visit="0,0") as server,
        running.client(
            tmp_path / "c", server.ticket, sink, echo_server, "--drain-grace", "1"
        ) as client,
        AsyncExitStack() as crowd,
    ):
        silent = [await crowd.enter_async_context(await client.visit()) for _ in range(SILENT)]
        for visitor in silent:
            await visitor.send_all(b"anybody?")
        over = trio.current_time() + SECONDS
        while trio.current_time() < over:
            async with await client.visit(1) as visitor:
                with trio.fail_after(2):
                    assert await ask(visitor, b"hello") == b"hello"
        for visitor in silent:
            with trio.move_on_after(0.01) as waiting:
                await visitor.receive_some()
            assert waiting.cancelled_caught
            await visitor.aclose()
        client.terminate()
        assert await client.wait() == 0
        await server.wait_record("session closed", code="left")


async def test_visitor_that_reads_a_byte_a_second(tmp_path: Path) -> None:
    """A service sends as fast as it can: it comes to a stop, and neither process holds what the visitor does not read."""
    sent = 0

    async def flood(stream: trio.SocketStream) -> None:
        nonlocal sent
        if (await stream.receive_some(1)) == b"e":
            await stream.send_all(b"e")
            return
        while True:
            await stream.send_all(bytes(64 * 1024))
            sent += 64 * 1024

    async with (
        services.serve(flood) as service,
        running.server(tmp_path / "s") as server,
        running.client(tmp_path / "c", server.ticket, service) as client,
    ):
        async with await client.visit() as other:  # what the first visitor costs is no growth
            assert await ask(other, b"e") == b"e"
        before = resident(server), resident(client)
        async with await client.visit() as slow:
            await slow.send_all(b"f")
            sent_before = 0
            for second in range(SECONDS):
                assert len(await slow.receive_some(1)) == 1
                await trio.sleep(1)
                async with await client.visit() as other:
                    with trio.fail_after(2):
                        assert await ask(other, b"e") == b"e"
                if second == SECONDS // 2:
                    sent_before = sent
            assert 0 < sent <= SOCKET_BUFFERS
            assert sent == sent_before, "it goes on sending"
            after = resident(server), resident(client)
        growth = [now - then for then, now in zip(before, after, strict=True)]
        print(f"{sent / MIB:.1f} MiB sent; server and client grew by {growth} bytes")
        assert max(growth) < OWN_GROWTH
        async with await client.visit() as other:
            assert await ask(other, b"e") == b"e"
            assert await end_of(other) == "end"
