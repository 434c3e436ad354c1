"""kill -9 at random moments, under load: the other side recovers by itself, and nothing is left of it."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

import trionat
from tests.conftest import open_descriptors
from tests.e2e import running, services
from tests.faults.load import KILLS, Crowd
from trionat.address import TCPAddress
from trionat.config.client import ClientConfig
from trionat.config.server import ServerConfig
from trionat.config.service import Service as LocalService

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.services import Service
    from trionat.events import Ready

pytestmark = [
    pytest.mark.limit(30 + 8 * KILLS),
    pytest.mark.timeout(60 + 8 * KILLS),
    pytest.mark.slow,
]

VISITORS = 6
BACK_WITHIN = 10.0
"""Seconds: a process to start on a busy machine, and what the product promises."""


def belongings() -> tuple[int, int]:
    """How many tasks and descriptors this process has."""
    return trio.lowlevel.current_statistics().tasks_living, len(open_descriptors())


async def test_client(echo_server: Service, tmp_path: Path, nothing_left: None) -> None:
    """The server is the library, so that its tasks and descriptors can be counted."""
    rng = random.Random(1)
    any_port = TCPAddress(services.HOST, 0)
    config = ServerConfig(
        controller_addr=any_port,
        tunnel_addr=any_port,
        visit_port=(0, 0, 0),
        state_dir=tmp_path / "server",
        port_reservation=1,
        visitor_wait=1,
    )
    async with trio.open_nursery() as serving:
        ready: Ready = await serving.start(trionat.serve, config)
        assert ready.ticket is not None
        await trio.testing.wait_all_tasks_blocked()
        before = belongings()
        start = partial(running.client, tmp_path / "c", ready.ticket, echo_server)
        async with trio.open_nursery() as visiting:
            [port, *_] = ready.visit_ports
            crowd = Crowd(partial(trio.open_tcp_stream, services.HOST, port))
            visiting.start_soon(crowd.run, VISITORS)
            for _ in range(KILLS):
                async with start() as client:
                    assert client.port() == port
                    await crowd.wait_served(within=BACK_WITHIN)
                    await trio.sleep(rng.uniform(0, 0.5))
                    client.kill()
            visiting.cancel_scope.cancel()
        print(f"{KILLS} kills: {crowd.served} served, {crowd.cut} cut off")
        await running.wait_until(lambda: belongings() == before, within=BACK_WITHIN)
        serving.cancel_scope.cancel()


async def test_server(echo_server: Service, tmp_path: Path, nothing_left: None) -> None:
    """The client is the library; it comes back to each new server by itself."""
    rng = random.Random(2)
    control = f"{services.HOST}:{services.free_low_port()}"
    visit = str(services.free_low_port())
    start = partial(running.server, tmp_path / "s", control=control, visit=visit)
    async with start() as server:
        ticket = server.ticket
    config = ClientConfig(
        ticket=ticket,
        services=(LocalService(local=TCPAddress(services.HOST, echo_server.port)),),
        state_dir=tmp_path / "client",
    )
    before = belongings()
    async with trio.open_nursery() as nursery:
        crowd = Crowd(partial(trio.open_tcp_stream, services.HOST, int(visit)))

        async def connect() -> None:
            async with trionat.connect(config):
                await crowd.run(VISITORS)

        nursery.start_soon(connect)
        for _ in range(KILLS):
            async with start() as server:
                await crowd.wait_served(within=BACK_WITHIN)
                await trio.sleep(rng.uniform(0, 0.5))
                server.kill()
        async with start():
            await crowd.wait_served(within=BACK_WITHIN)
            nursery.cancel_scope.cancel()
    print(f"{KILLS} kills: {crowd.served} served, {crowd.cut} cut off")
    await running.wait_until(lambda: belongings() == before, within=BACK_WITHIN)
