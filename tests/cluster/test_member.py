"""A server as a member of its cluster: how long its start and its stop wait."""

from __future__ import annotations

import trio

from tests.registry.redis_world import redis_world
from trionat.address import TCPAddress
from trionat.server.cluster.member import Member
from trionat.transport.listener import Listener


async def test_a_stop_does_not_wait_for_a_redis_that_does_not_know_the_node_yet() -> None:
    listener = Listener.open(TCPAddress("127.0.0.1", 0))
    async with redis_world([60001], 1) as world:
        member, stopping = Member(world.make("one"), listener), trio.Event()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(member.wait_joined, stopping)
            await trio.sleep(0.2)
            assert nursery.child_tasks, "nobody has asked Redis yet"
            stopping.set()
        assert trio.current_time() - began < 3
        # One that is known is not waited for.
        known = Member(await world.start("two"), listener)
        with trio.fail_after(3):
            await known.wait_joined(trio.Event())
    listener.close()
