"""Whoever waits to write sees all the same that the other end is gone, and holds nothing any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.unit.memory import receive_some
from tests.unit.memory_server import forwarder, open_memory_server
from trionat.transport.endpoint import send_all

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.conftest import Tidy
    from tests.unit.memory import MemoryEndpoint

WITHIN = 20.0
"""Seconds: ten for the answer to an ABORT, and some sweeps on either side."""


async def test_service_that_reads_nothing_and_visitors_that_reset(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """They fill all tunnels of the client, and give them back."""
    services: list[MemoryEndpoint] = []

    async def deaf(endpoint: MemoryEndpoint) -> None:
        services.append(endpoint)
        await trio.sleep_forever()

    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        pool = client.pool(forwarder(tidy, server.nursery, deaf), limit=4)
        visitors = [server.visit(client.port) for _ in range(4)]
        async with trio.open_nursery() as uploads:
            for visitor in visitors:
                uploads.start_soon(send_all, visitor, bytes(10_000_000))
            await trio.sleep(5)
            uploads.cancel_scope.cancel()
        assert pool.busy == 4
        for visitor in visitors:
            visitor.reset()
        await trio.sleep(WITHIN)
        assert pool.busy == 0
        assert all(service._lost for service in services)
        server.nursery.cancel_scope.cancel()


@pytest.mark.parametrize("what", ["resets", "sends and resets"])
async def test_visitor_that_reads_nothing_and_a_service_that_resets(
    tidy: Tidy, autojump_clock: MockClock, what: str
) -> None:
    async def service(endpoint: MemoryEndpoint) -> None:
        with trio.move_on_after(5):
            await send_all(endpoint, bytes(10_000_000))
        if what == "sends and resets":
            await receive_some(endpoint)
        endpoint.reset()

    async with open_memory_server(tidy, max_visitors=1) as server:
        client = await server.welcome()
        client.pool(forwarder(tidy, server.nursery, service))
        visitor = server.visit(client.port, early=b"request")
        await trio.sleep(4)
        (lease,) = server.admission.leases
        assert lease.queue.present == 1
        await trio.sleep(1 + WITHIN)
        assert lease.queue.present == 0
        assert visitor._lost
        server.nursery.cancel_scope.cancel()
