"""What counting for `/metrics` costs: processor time for a visitor and for a message, without and with, in turns.

`pytest -n0 -s tests/load/test_metrics_cost.py` prints the figures of docs/metrics.md. Servers and clients run in this thread, whose own processor
time is looked at; visitors and services are in threads of their own. So other programs hardly matter.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
import trio

import trionat
from tests.e2e import services
from tests.e2e.test_prometheus import scrape
from tests.load.figures import THOROUGH
from tests.unit.test_cost import Echo, EchoServer

if TYPE_CHECKING:
    import socketserver
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.limit(170),
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="a thread's own time is looked at"),
]

ROUNDS: Final = 200 if THOROUGH else 30
"""The cheapest of them counts, since whatever else happens can only add."""

VISITORS: Final = 20
MESSAGES: Final = 150


def visitors(port: int) -> None:
    for _ in range(VISITORS):
        with socket.create_connection((services.HOST, port), timeout=20) as visitor:
            visitor.sendall(b"x" * 100)
            assert visitor.recv(4096)


def messages(port: int) -> None:
    with socket.create_connection((services.HOST, port), timeout=20) as visitor:
        for _ in range(MESSAGES):
            visitor.sendall(b"x" * 100)
            assert visitor.recv(4096)


@contextmanager
def echo() -> Iterator[socketserver.TCPServer]:
    with EchoServer((services.HOST, 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@asynccontextmanager
async def tunnelled(folder: Path, local: int, console: int | None) -> AsyncIterator[int]:
    """Run a server and a client here; yield the visit port."""
    any_port = trionat.TCPAddress(services.HOST, 0)
    server = trionat.ServerConfig(
        controller_addr=any_port,
        tunnel_addr=any_port,
        visit_port=(0,),
        state_dir=folder / "server",
        console_addr=None if console is None else trionat.TCPAddress(services.HOST, console),
        open_metrics=console is not None,
    )
    async with trio.open_nursery() as nursery:
        ready = await nursery.start(trionat.serve, server)
        client = trionat.ClientConfig(
            ticket=ready.ticket,
            services=(trionat.parse_service(str(local)),),
            state_dir=folder / "client",
        )
        async with trionat.connect(client) as connection:
            yield connection.services[0].public.port
        nursery.cancel_scope.cancel()


async def used(work: Callable[[int], None], port: int) -> float:
    """Return how much of this thread's time some work takes."""
    before = time.thread_time()
    await trio.to_thread.run_sync(partial(work, port))
    return time.thread_time() - before


async def test_what_counting_costs(tmp_path: Path) -> None:
    """Two servers of each kind: how much the two of a kind differ says how much of the rest is chance."""
    consoles = [services.free_low_port() for _ in range(2)]
    with echo() as service:
        local = service.server_address[1]
        async with (
            tunnelled(tmp_path / "1", local, None) as off_1,
            tunnelled(tmp_path / "2", local, None) as off_2,
            tunnelled(tmp_path / "3", local, consoles[0]) as on_1,
            tunnelled(tmp_path / "4", local, consoles[1]) as on_2,
        ):
            for work, count, name in (
                (visitors, VISITORS, "a visitor"),
                (messages, MESSAGES, "a message and its answer"),
            ):
                ports = [off_1, off_2, on_1, on_2]
                costs: dict[int, list[float]] = {port: [] for port in ports}
                for round_ in range(ROUNDS):
                    for place in range(len(ports)):
                        port = ports[(round_ + place) % len(ports)]
                        costs[port].append(await used(work, port) / count * 1e6)
                least = [min(costs[port]) for port in ports]
                ratio = min(least[2:]) / min(least[:2])
                print(
                    f"\n{name}: {least[0]:.0f} and {least[1]:.0f} us of processor without, {least[2]:.0f} and {least[3]:.0f} with: ratio {ratio:.2f}"
                )
                assert ratio < 1.3
            found = await scrape(consoles[0])
            assert found["trionat_visitor_duration_seconds_count"] >= VISITORS * ROUNDS
