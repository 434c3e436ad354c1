"""Streams that are resumed, at the moments between two states."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing

from tests.unit.memory import receive_exactly
from tests.unit.memory_server import open_memory_server
from tests.unit.test_resumed_sessions import resuming, resuming_pool
from trionat.client.native.streams import WaitingStreams
from trionat.protocol.messages import Resumption
from trionat.protocol.tunnel_frames import Open
from trionat.relay.stream import VisitorStream

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.conftest import Tidy


async def test_a_stream_whose_tunnel_was_given_up_a_moment_ago(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """Its task has not run since. Were the stream not found, the service would get the visitor's bytes for a second time."""
    async with open_memory_server(tidy) as server:
        streams = WaitingStreams(100)
        client = await resuming(server)
        pool = resuming_pool(client, tidy, streams, trio.CancelScope())
        await trio.testing.wait_all_tasks_blocked()
        visitor = server.visit(client.port, early=b"x")
        assert await receive_exactly(visitor, 1) == b"x"
        (tunnel,) = (tunnel for tunnel in pool._tunnels if not tunnel.idle)
        assert tunnel.stream is not None
        number = tunnel.stream.visitor
        pool._give_up(tunnel, "silent for too long")
        tunnel.wire.reset()
        stream = await pool._find(number)
        assert stream is not None
        assert stream.given == 1
        stream.plain.reset()
        stream.release()


async def test_streams_are_given_up_in_time_where_no_session_lasts_a_second(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """The server is down, and its system refuses every connection at once."""
    streams = WaitingStreams(100)
    streams.begin(Resumption(lease="one", wait=5.0, buffer=65536))
    service, far = tidy.pair()
    frame = Open(
        visitor=1, service=0, host="192.0.2.1", port=1, visit_host="192.0.2.2", visit_port=2
    )
    streams.hold(frame, VisitorStream(1, service, streams.new_buffer()))
    for _ in range(40):
        with trio.move_on_after(0.5):
            await streams.expire()
    assert trio.current_time() <= 20
    assert len(streams) == 1
    for _ in range(4):
        with trio.move_on_after(0.5):
            await streams.expire()
    assert len(streams) == 0
    assert service.closed
    far.close()
