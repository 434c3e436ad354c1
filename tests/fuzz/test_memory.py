"""What a peer can make the server hold: frames that never become whole, and tunnels whose visitors are never acknowledged."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

import trionat
import trionat.testing
from tests.unit.memory import CAPACITY
from tests.unit.memory_server import open_memory_server
from trionat.protocol.frames import (
    BIG_ENDIAN,
    CONTROL_FRAME_BYTES,
    FIRST_FRAME_BYTES,
    HEADER_BYTES,
)
from trionat.protocol.messages import (
    CAPABILITIES,
    RESUME,
    Expose,
    Hello,
    Welcome,
    encode_message,
)
from trionat.protocol.tunnel_frames import SMALL_FRAME_BYTES, Abort
from trionat.transport import pipe
from trionat.transport.endpoint import send_all

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.conftest import Tidy
    from tests.unit.memory_server import MemoryServer

PEERS = 40
BUFFER = 64 * 1024
OBJECTS = 6 * 1024
"""Bytes that each connection costs besides what is told it may: a task's frames, a channel, a session's parts."""
OURS = tracemalloc.Filter(True, str(Path(trionat.__file__).parent / "*"))
NOT_OURS = [
    tracemalloc.Filter(False, str(Path(trionat.testing.__file__).parent / "*")),
    tracemalloc.Filter(False, pipe.__file__),
]
"""What is between the two ends: the network, were it real."""
GROWTH = 9 / 8
"""A bytearray that grows takes an eighth more than it needs (CPython, Objects/bytearrayobject.c)."""


def almost(message_id: int, length: int) -> bytes:
    """All of a frame but its last byte."""
    return BIG_ENDIAN.pack(length, message_id) + bytes(length - 1)


async def strangers(server: MemoryServer) -> None:
    for _ in range(PEERS):
        await send_all(server.connect(), almost(Hello.id, FIRST_FRAME_BYTES))


async def known(server: MemoryServer) -> None:
    hello = encode_message(Hello(username="", identity="x"))
    for _ in range(PEERS):
        await send_all(server.connect(), hello + almost(Expose.id, CONTROL_FRAME_BYTES))


async def tunnels(server: MemoryServer) -> None:
    client = await server.welcome()
    for _ in range(PEERS):
        wire = await client.attach()
        await trio.testing.wait_all_tasks_blocked()
        await send_all(wire, almost(Abort.ID, SMALL_FRAME_BYTES))


async def unacknowledged(server: MemoryServer) -> None:
    """Visitors that send more than may be kept for another tunnel, to a client that takes everything and acknowledges nothing."""
    client = server.client("y", capabilities=(*CAPABILITIES, RESUME))
    await client.ask()
    client.welcome = await client.hear(Welcome)
    for _ in range(PEERS):
        wire = await client.attach(capacity=8 * BUFFER)
        await trio.testing.wait_all_tasks_blocked()
        visitor = server.visit(client.port)
        for _ in range(2):
            await send_all(visitor, bytes(CAPACITY - 1))
            await trio.testing.wait_all_tasks_blocked()
        assert len(wire._incoming) > BUFFER
        with pytest.raises(trio.TooSlowError), trio.fail_after(1):
            while True:
                await send_all(visitor, bytes(CAPACITY))


@pytest.mark.parametrize(
    ("peers", "allowed"),
    [
        (strangers, FIRST_FRAME_BYTES),
        (known, CONTROL_FRAME_BYTES),
        (tunnels, SMALL_FRAME_BYTES),
        (unacknowledged, BUFFER + CAPACITY),
    ],
)
async def test_no_more_is_held_than_the_bound(
    tidy: Tidy, autojump_clock: MockClock, peers: object, allowed: int
) -> None:
    async with open_memory_server(tidy, max_visitors=PEERS, resume_buffer=BUFFER) as server:
        (await server.welcome("first")).hang_up()  # what is made once and kept
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        tracemalloc.start()
        try:
            await peers(server)  # type: ignore[operator]
            await trio.testing.wait_all_tasks_blocked()
            gc.collect()
            ours = tracemalloc.take_snapshot().filter_traces([OURS, *NOT_OURS])
        finally:
            tracemalloc.stop()
        held = sum(trace.size for trace in ours.traces)
        print(held / PEERS)
        assert held <= PEERS * ((HEADER_BYTES + allowed) * GROWTH + OBJECTS)
