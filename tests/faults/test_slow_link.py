"""A link of 100 ms on which one piece in fifty is held up: nothing is lost, doubled or swapped, and no session."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from tests.faults.load import MIB
from tests.faults.proxy import Proxy, proxied

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VISITORS = 4
SLOWEST = 4
"""MiB a second, both ways together, below which something is wrong even on a busy machine."""

pytestmark = [
    pytest.mark.limit(30 + MIB // SLOWEST),
    pytest.mark.timeout(60 + MIB // SLOWEST),
    pytest.mark.slow,
]


def stream(seed: bytes) -> Iterator[bytes]:
    """A visitor's or a service's bytes, which are no other's."""
    yield seed.ljust(16)
    yield from services.pattern(MIB * 1024 * 1024 // VISITORS - 16)


def digest_of(seed: bytes) -> bytes:
    digest = hashlib.sha256()
    for piece in stream(seed):
        digest.update(piece)
    return digest.digest()


async def say(to: trio.SocketStream, seed: bytes) -> None:
    for piece in stream(seed):
        await to.send_all(piece)


async def serve(visitor: trio.SocketStream) -> None:
    """Say our own bytes while hearing the visitor's; the digest of these comes last."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(say, visitor, b"service")
        digest = hashlib.sha256()
        async for data in visitor:
            digest.update(data)
    await visitor.send_all(digest.digest())
    await visitor.send_eof()


async def visit(stream: trio.SocketStream, seed: bytes) -> None:
    async with stream, trio.open_nursery() as nursery:

        async def say_all() -> None:
            await say(stream, seed)
            await stream.send_eof()

        nursery.start_soon(say_all)
        digest = hashlib.sha256()
        last = b""
        async for data in stream:
            last += data
            digest.update(last[:-32])
            last = last[-32:]
        assert digest.digest() == digest_of(b"service")
        assert last == digest_of(seed)


async def test_streams_both_ways(tmp_path: Path) -> None:
    port = services.free_low_port()
    async with (
        services.serve(serve) as service,
        running.server(tmp_path / "s", "--public-addr", f"{services.HOST}:{port}") as server,
    ):
        proxy = Proxy(server.control, port, delay=0.1, stalls=0.02)
        async with (
            proxied(proxy),
            running.client(tmp_path / "c", server.ticket, service) as client,
        ):
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                for number in range(VISITORS):
                    nursery.start_soon(visit, await client.visit(), b"visitor %d" % number)
            seconds = trio.current_time() - began
            print(f"{MIB} MiB each way, {2 * MIB / seconds:.1f} MiB/s both ways together")
            assert len(client.process.events) == 1  # it was connected all the time
