"""What runs in a thread for programs of asyncio, or of none: real servers and clients, entered and left in every way."""

from __future__ import annotations

import asyncio
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

import trionat
from trionat import TrioThread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

LOOPBACK = "127.0.0.1"
ANY_PORT = trionat.TCPAddress(LOOPBACK, 0)


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    yield
    assert [each for each in threading.enumerate() if each.name == "trionat"] == []


@pytest.fixture(scope="module")
def ready() -> Iterator[trionat.Ready]:
    config = trionat.ServerConfig(
        controller_addr=ANY_PORT, tunnel_addr=ANY_PORT, visit_port=(0,), drain_grace=0
    )
    server = TrioThread(trionat.open_server(config), timeout=30)
    given = server.__enter__()
    for thread in threading.enumerate():
        if thread.name == "trionat":
            thread.name = "the server of all tests"
    yield given
    server.__exit__(None, None, None)


@pytest.fixture
def config(ready: trionat.Ready) -> trionat.ClientConfig:
    return trionat.ClientConfig(
        ticket=ready.ticket, services=(trionat.parse_service("9"),), drain_grace=0
    )


class Manager:
    """Notes what becomes of it."""

    def __init__(self, *, slow: bool = False, error: BaseException | None = None) -> None:
        self.log: list[str] = []
        self.slow, self.error = slow, error

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        self.log.append("entering")
        try:
            if self.slow:
                await trio.sleep_forever()
            if self.error is not None:
                raise self.error
            yield threading.current_thread().name
            self.log.append("left as planned")
        except trio.Cancelled:
            self.log.append("cancelled")
            raise
        finally:
            self.log.append("over")


# --- plain threads ---


def test_a_client_in_a_script(config: trionat.ClientConfig) -> None:
    events: list[trionat.ClientEvent] = []
    tunnel = TrioThread(trionat.connect(config, on_event=events.append), timeout=30)
    with tunnel as client:
        public = client.services[0].public
        with socket.create_connection((public.host, public.port)) as visitor:
            visitor.settimeout(10)
            assert visitor.recv(1) == b""  # nobody listens at port 9
        assert tunnel.call(client.snapshot).services == config.effective_services()
    assert isinstance(events[0], trionat.Connected)
    with pytest.raises(trio.RunFinishedError):
        tunnel.call(client.snapshot)


def test_who_has_not_entered_it_is_told_and_does_not_wait() -> None:
    tunnel = TrioThread(Manager().open())
    told: list[str] = []

    def call() -> None:
        try:
            tunnel.call(print)
        except RuntimeError as error:
            told.append(str(error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(10)
    assert told == ["this TrioThread was not entered: call it in its block"]


def test_two_at_once_and_from_another_thread(ready: trionat.Ready) -> None:
    ended: list[str] = []

    def run() -> None:
        manager = Manager()
        with TrioThread(manager.open()) as name:
            ended.append(name)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert ended == ["trionat", "trionat"]


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while piece := self.request.recv(65536):
            self.request.sendall(piece)


def test_two_servers_and_their_clients_in_threads_of_their_own() -> None:
    """What bytes pass through is one for each Trio run, and not for the process."""
    sent = [bytes([number]) * 2_000_000 for number in (1, 2)]
    received: dict[int, bytes] = {}

    def visit(number: int, public: trionat.TCPAddress) -> None:
        with socket.create_connection((public.host, public.port), 10) as visitor:
            threading.Thread(target=visitor.sendall, args=(sent[number],)).start()
            got = bytearray()
            while len(got) < len(sent[number]) and (piece := visitor.recv(65536)):
                got += piece
            received[number] = bytes(got)

    server = trionat.ServerConfig(
        controller_addr=ANY_PORT, tunnel_addr=ANY_PORT, visit_port=(0,), drain_grace=0
    )
    with ExitStack() as stack:
        echo = stack.enter_context(socketserver.ThreadingTCPServer((LOOPBACK, 0), Echo))
        echo.daemon_threads = True
        threading.Thread(target=echo.serve_forever, args=(0.01,)).start()
        stack.callback(echo.shutdown)
        services = (trionat.parse_service(str(echo.server_address[1])),)
        publics: list[trionat.TCPAddress] = []
        for _ in range(2):
            ready = stack.enter_context(TrioThread(trionat.open_server(server), timeout=30))
            config = trionat.ClientConfig(ticket=ready.ticket, services=services, drain_grace=0)
            client = stack.enter_context(TrioThread(trionat.connect(config), timeout=30))
            publics.append(client.services[0].public)
        visitors = [
            threading.Thread(target=visit, args=(number, public))
            for number, public in enumerate(publics)
        ]
        for thread in visitors:
            thread.start()
        for thread in visitors:
            thread.join(20)
    assert received == dict(enumerate(sent))


def test_an_error_of_the_block_leaves_it_as_it_is() -> None:
    manager = Manager()
    with pytest.raises(ZeroDivisionError), TrioThread(manager.open()):
        raise ZeroDivisionError
    assert manager.log == ["entering", "left as planned", "over"]


def test_ctrl_c_in_the_block_stops_at_once() -> None:
    manager = Manager()
    with pytest.raises(KeyboardInterrupt), TrioThread(manager.open()):
        raise KeyboardInterrupt
    assert manager.log == ["entering", "cancelled", "over"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_ctrl_c_while_it_is_entered_stops_at_once() -> None:
    manager = Manager(slow=True)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        while not manager.log:
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt), TrioThread(manager.open()):
        pass
    assert manager.log == ["entering", "cancelled", "over"]


def test_an_error_at_the_start_comes_without_its_group() -> None:
    with pytest.raises(trionat.ConfigError, match="no local service is named"):
        with TrioThread(trionat.connect(trionat.ClientConfig())):
            pass


def test_an_error_meanwhile_comes_at_the_end_of_the_block() -> None:
    @asynccontextmanager
    async def failing() -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            yield

    async def fail() -> None:
        await trio.sleep(0.01)
        raise LookupError("lost")

    reached = False
    thread = TrioThread(failing())
    with pytest.raises(LookupError, match="lost"), thread:
        time.sleep(0.1)
        reached = True
    assert reached
    with pytest.raises(ZeroDivisionError) as raised, TrioThread(failing()):
        time.sleep(0.1)
        raise ZeroDivisionError
    assert raised.value.__notes__ == [
        "besides, what ran in the thread has failed: LookupError('lost')"
    ]


def test_it_waits_no_longer_than_told() -> None:
    manager = Manager(slow=True)
    with pytest.raises(TimeoutError, match=r"not there within 0\.1 s: is the server up"):
        with TrioThread(manager.open(), timeout=0.1):
            pass
    assert manager.log == ["entering", "cancelled", "over"]


def test_a_timeout_of_the_manager_is_told_as_it_is() -> None:
    with pytest.raises(TimeoutError, match="of its own"):
        with TrioThread(Manager(error=TimeoutError("of its own")).open(), timeout=30):
            pass


def test_it_is_entered_once() -> None:
    thread = TrioThread(Manager().open())
    with thread:
        pass
    with pytest.raises(RuntimeError, match="entered once"), thread:
        pass


async def test_in_a_trio_program_it_says_what_to_do() -> None:
    with pytest.raises(trionat.EventLoopError, match="this is a Trio program: write async with"):
        with TrioThread(Manager().open()):
            pass
    with pytest.raises(trionat.EventLoopError, match="this is a Trio program: write async with"):
        async with TrioThread(Manager().open()):
            pass


FEW_DESCRIPTORS = """
import os, resource, trionat, trio
tunnel = trionat.TrioThread(trionat.connect(trionat.ClientConfig()))  # imported while there are some
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, 1024))
for use in (tunnel.__enter__, lambda: tunnel.call(print)):
    try:
        use()
    except OSError as error:
        print(error.strerror)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_where_no_loop_can_begin_it_is_told() -> None:
    result = subprocess.run(
        [sys.executable, "-c", FEW_DESCRIPTORS],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert result.stdout == "Too many open files\n" * 2, result.stderr


# --- asyncio ---


def test_a_client_in_an_asyncio_program(config: trionat.ClientConfig) -> None:
    async def main() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        async with TrioThread(trionat.connect(config), timeout=30) as client:
            before = ticks
            public = client.services[0].public
            reader, writer = await asyncio.open_connection(public.host, public.port)
            assert await reader.read() == b""
            writer.close()
        assert ticks > before > 10  # the loop went on while it was entered
        ticking.cancel()

    asyncio.run(main(), debug=True)


@pytest.mark.parametrize("slow", [True, False])
def test_a_task_that_is_cancelled_stops_it_at_once(*, slow: bool) -> None:
    manager = Manager(slow=slow)

    async def hold() -> None:
        async with TrioThread(manager.open()):
            await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(hold())
        while not manager.log:  # noqa: ASYNC110 - another thread writes it
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # while it is left
        with pytest.raises(asyncio.CancelledError):
            await task
        assert manager.log == ["entering", "cancelled", "over"]

    asyncio.run(main(), debug=True)


def test_cancelled_while_it_is_left() -> None:
    log: list[str] = []

    @asynccontextmanager
    async def lingering() -> AsyncIterator[None]:
        yield
        log.append("leaving")
        try:
            await trio.sleep_forever()
        finally:
            log.append("over")

    async def hold() -> None:
        async with TrioThread(lingering()):
            pass

    async def main() -> None:
        task = asyncio.create_task(hold())
        while not log:  # noqa: ASYNC110 - another thread writes it
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == ["leaving", "over"]

    asyncio.run(main(), debug=True)


def test_the_loop_goes_on_while_it_is_stopped_at_once() -> None:
    @asynccontextmanager
    async def slowly_closed() -> AsyncIterator[None]:
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.2)

    async def hold() -> None:
        async with TrioThread(slowly_closed()):
            await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(hold())
        await asyncio.sleep(0.1)
        task.cancel()
        waits = 0
        while not task.done():
            await asyncio.sleep(0.01)
            task.cancel()
            waits += 1
        assert waits > 5
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main(), debug=True)


def test_asyncio_waits_no_longer_than_told() -> None:
    manager = Manager(slow=True)

    async def main() -> None:
        with pytest.raises(TimeoutError, match=r"not there within 0\.1 s"):
            async with TrioThread(manager.open(), timeout=0.1):
                pass
        assert manager.log == ["entering", "cancelled", "over"]

    asyncio.run(main(), debug=True)


def test_errors_come_to_asyncio_as_to_threads() -> None:
    async def main() -> None:
        with pytest.raises(trionat.ConfigError, match="no local service is named"):
            async with TrioThread(trionat.connect(trionat.ClientConfig())):
                pass
        manager = Manager()
        with pytest.raises(ZeroDivisionError):
            async with TrioThread(manager.open()):
                raise ZeroDivisionError
        assert manager.log == ["entering", "left as planned", "over"]

    asyncio.run(main(), debug=True)
