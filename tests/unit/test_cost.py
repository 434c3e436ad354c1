"""What the data path costs, without a clock: steps of Trio, calls of sockets and of functions, server and client added.

A guard against becoming twice as slow unnoticed; `bench/` measures speed. The product runs whole in this thread, over real
sockets and with TLS, and everything that this thread does is counted. Visitors and the service are in threads of their own,
which are not.
"""

from __future__ import annotations

import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

import trionat
from trionat.config.server import ServerConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path
    from types import FrameType

TRIES = 3
"""Timing can only add, such as a read that finds half of what was sent: so the cheapest of some tries counts."""
SLACK = 1.5
MIB = 2**20
LOCAL = "127.0.0.1"

TRANSFERS = {"socket.recv_into", "socket.send"}
"""The calls of the kernel that move bytes."""
WAITS = {"epoll.register", "epoll.modify", "epoll.unregister"}
"""What Trio calls for tasks that begin or cease to wait for a socket."""


@attrs.frozen(kw_only=True)
class Cost:
    """How often something was done: steps of Trio's tasks, transfers, waits, and Python functions entered or resumed."""

    steps: float
    transfers: float
    waits: float
    functions: float


# What it takes now, on all Pythons about the same.
MESSAGE = Cost(steps=0.3, transfers=8, waits=0.3, functions=110)
"""A message and its answer: each is read and written twice, and no task is woken for it."""
VISITOR = Cost(steps=10, transfers=14.5, waits=8.5, functions=710)
"""A visitor that comes, asks, is answered and leaves, with idle tunnels ready."""
MEBIBYTE = Cost(steps=5.5, transfers=91, waits=1.5, functions=675)
"""One way, from a visitor or to it."""


CROWD = 100
"""Visitors who are there and say nothing."""


class Echo(socketserver.BaseRequestHandler):
    """The service: sends back what comes."""

    def handle(self) -> None:
        """Serve one connection."""
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := self.request.recv(MIB):
            self.request.sendall(data)


class EchoServer(socketserver.ThreadingTCPServer):
    """Serves each connection in a thread, and waits for them at the end."""

    request_queue_size = 100


@asynccontextmanager
async def tunnelled_echo(folder: Path) -> AsyncIterator[int]:
    """Run the service, a server and a client; yield the visit port."""
    any_port = trionat.TCPAddress(LOCAL, 0)
    server = trionat.ServerConfig(
        controller_addr=any_port, tunnel_addr=any_port, visit_port=(0,), state_dir=folder / "server"
    )
    with EchoServer((LOCAL, 0), Echo) as echo:
        thread = threading.Thread(target=echo.serve_forever, args=(0.01,))
        thread.start()
        try:
            async with trio.open_nursery() as nursery:
                ready = await nursery.start(trionat.serve, server)
                service = trionat.parse_service(str(echo.server_address[1]))
                client = trionat.ClientConfig(
                    ticket=ready.ticket, services=(service,), state_dir=folder / "client"
                )
                async with trionat.connect(client) as connection:
                    yield connection.services[0].public.port
                nursery.cancel_scope.cancel()
        finally:
            echo.shutdown()
            thread.join()


@attrs.define(eq=False)
class Meter(trio.abc.Instrument):
    """Counts what this thread does."""

    steps: int = 0
    functions: int = 0
    calls: Counter[str] = attrs.field(factory=Counter)

    def before_task_step(self, _task: trio.lowlevel.Task) -> None:
        """Hear it from Trio."""
        self.steps += 1

    def profile(self, _frame: FrameType, event: str, function: Any) -> None:
        """Hear it from the interpreter (`sys.setprofile`)."""
        if event == "c_call":
            self.calls[function.__qualname__] += 1
        elif event == "call":
            self.functions += 1

    def cost(self, count: int) -> Cost:
        """Return what each of `count` came to."""
        return Cost(
            steps=self.steps / count,
            transfers=sum(self.calls[name] for name in TRANSFERS) / count,
            waits=sum(self.calls[name] for name in WAITS) / count,
            functions=self.functions / count,
        )


@contextmanager
def metered() -> Iterator[Meter]:
    """Count what this thread does in the block."""
    meter = Meter()
    trio.lowlevel.add_instrument(meter)
    sys.setprofile(meter.profile)
    try:
        yield meter
    finally:
        sys.setprofile(None)
        trio.lowlevel.remove_instrument(meter)


def visit(port: int) -> socket.socket:
    visitor = socket.create_connection((LOCAL, port))
    visitor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return visitor


def exchange_messages(port: int, count: int) -> None:
    with visit(port) as visitor:
        for _ in range(count):
            visitor.sendall(bytes(100))
            assert len(visitor.recv(200)) == 100


def come_and_go(port: int, count: int) -> None:
    for _ in range(count):
        exchange_messages(port, 1)


def come_and_stay(port: int, count: int) -> ExitStack:
    """Have so many visitors hear an answer; they say nothing more, and leave when the caller closes."""
    with ExitStack() as present:
        visitors = [present.enter_context(visit(port)) for _ in range(count)]
        for visitor in visitors:
            visitor.sendall(b"x")
        for visitor in visitors:
            assert visitor.recv(1) == b"x"
        return present.pop_all()


def move(port: int, mebibytes: int) -> None:
    """Send half of them there, and receive them back."""
    with visit(port) as visitor:

        def send() -> None:
            for _ in range(mebibytes // 2):
                visitor.sendall(bytes(MIB))
            visitor.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        room = bytearray(MIB)
        while visitor.recv_into(room):
            pass
        sender.join()


@pytest.mark.skipif(sys.platform != "linux", reason="the counts are those of Trio's epoll loop")
@pytest.mark.limit(60)
@pytest.mark.parametrize(
    ("do", "count", "expected"),
    [(exchange_messages, 300, MESSAGE), (come_and_go, 100, VISITOR), (move, 64, MEBIBYTE)],
    ids=["message", "visitor", "mebibyte"],
)
async def test_cost(
    do: Callable[[int, int], None], count: int, expected: Cost, tmp_path: Path, nothing_left: None
) -> None:
    async with tunnelled_echo(tmp_path) as port:
        await check_cost(partial(do, port), count, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="the counts are those of Trio's epoll loop")
@pytest.mark.limit(60)
async def test_a_visitor_costs_the_same_in_a_crowd(tmp_path: Path, nothing_left: None) -> None:
    async with tunnelled_echo(tmp_path) as port:
        with await trio.to_thread.run_sync(come_and_stay, port, CROWD):
            await check_cost(partial(come_and_go, port), 100, VISITOR)


async def check_cost(do: Callable[[int], None], count: int, expected: Cost) -> None:
    tries: list[Cost] = []
    await trio.to_thread.run_sync(do, 10)  # everything is imported now
    for _ in range(TRIES):
        with metered() as meter:
            await trio.to_thread.run_sync(do, count)
        tries.append(meter.cost(count))
    for name, now in attrs.asdict(expected).items():
        least = min(getattr(cost, name) for cost in tries)
        assert least < now * SLACK, f"{name} have risen from {now}: {tries}"
        if name in {"transfers", "functions"}:  # the others hang on how much comes at once
            assert least > now / SLACK, (
                f"{name} have fallen from {now}: write the new figure: {tries}"
            )


def test_a_command_loads_nothing_heavy() -> None:
    """A fifth of a process's memory at rest hangs on it: with pydantic, typer reads a command line no better."""
    program = (
        "import sys, trionat.cli\n"
        "try: trionat.cli.app(['config', 'show', '--help'])\n"
        "except SystemExit: pass\n"
        "print(*sorted({'pydantic', 'rich', 'asyncio', 'structlog', 'cryptography', 'asyncmy'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
    assert done.stdout.splitlines()[-1] == ""


def test_all_ports_there_are_cost_no_more_to_check_than_to_read() -> None:
    config = ServerConfig(visit_port=tuple(range(1024, 65536)))
    began = time.perf_counter()
    assert list(config.faults()) == []
    assert time.perf_counter() - began < 0.5  # far more, where each port is counted among all
