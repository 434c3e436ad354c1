"""For how long a server with 10,000 visitors holds up its loop, and whether watching it does: `python -m bench.pauses`.

The server runs in this process, with a real console and real clients, which are in other processes as are those who watch. Visitors and the wires of their tunnels are without
sockets, of which a machine seldom has enough: they say nothing, and all else of them is as it is in a server.

A task wakes every millisecond, and then does what a message costs: it reads and writes twice, each time giving other threads the interpreter. By how much all that is late is its wait; how much of that this
process has used the processor for, whichever thread it was, is the pause that the server is to blame for. What remains is the machine's, which had something else to do. Collections of garbage are timed by
themselves.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.request import Request, urlopen

import attrs
import trio

import trionat
from bench.product import TRIONAT
from bench.program import HOST
from trionat.interpreter import keep_pauses_short
from trionat.server.sessions.native import NativeSession
from trionat.server.visitors.visitor import Visitor
from trionat.transport.readiness import Gate, Readiness

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from http.client import HTTPResponse

    from trionat.events import ClientEvent

_TICK: Final = 0.001
_SETTLE: Final = 3.0
_CONSOLES: Final = 3
_MS: Final = 1e3
_FIRST: Final = 1_000_000
_AT_ONCE: Final = 50
_COME_PER_SECOND: Final = 1000

COMING: Final = "nobody, while they come"


class SilentEndpoint:
    """An end of a stream without a socket, whose other end says nothing and takes everything."""

    has_unsent = False

    def __init__(self) -> None:
        self.readable: Readiness = Gate()
        self.writable: Readiness = Gate()

    def recv_into(self, _: memoryview) -> int:
        raise BlockingIOError

    def send(self, data: bytes | memoryview) -> int:
        return len(data)

    def flush(self) -> None:
        pass

    def send_eof(self) -> None:
        pass

    def is_lost(self) -> bool:
        return False

    def limit_silence(self, seconds: float) -> None:
        pass

    def silent_for(self) -> float:
        return 0.0

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass

    def reset(self) -> None:
        pass


@attrs.frozen
class Collection:
    """Garbage was collected: of which generation, and for how many seconds of its thread's own time."""

    generation: int
    seconds: float


@attrs.define(eq=False)
class Observer:
    """Notes for how long the loop is held up. `waits` are what was waited for, `pauses` what this process is to blame for, both in seconds."""

    waits: list[float] = attrs.field(factory=lambda: list[float]())
    pauses: list[float] = attrs.field(factory=lambda: list[float]())
    collections: list[Collection] = attrs.field(factory=lambda: list[Collection]())
    _began: float = 0.0

    async def run(self) -> None:
        """Look, for ever."""
        near, far = socket.socketpair()
        with near, far:
            while True:
                began, used = time.perf_counter(), time.process_time()
                await trio.sleep(_TICK)
                for one, other in ((near, far), (far, near)):
                    one.send(b"x")
                    other.recv(1)
                wait = time.perf_counter() - began - _TICK
                self.waits.append(wait)
                self.pauses.append(max(0.0, min(wait, time.process_time() - used)))

    @contextmanager
    def hearing_of_garbage(self) -> Generator[None]:
        """Note collections in the block."""
        gc.callbacks.append(self._note_collection)
        try:
            yield
        finally:
            gc.callbacks.remove(self._note_collection)

    def _note_collection(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.thread_time()
        else:
            seconds = time.thread_time() - self._began
            self.collections.append(Collection(info["generation"], seconds))

    def clear(self) -> None:
        """Begin anew."""
        for each in (self.waits, self.pauses, self.collections):
            each.clear()


# -- who watches, in a process of his own -----------------------------------------------------------------------------


def _open(url: str, token: str, path: str) -> HTTPResponse:
    request = Request(url + path, headers={"Authorization": f"Bearer {token}"})  # noqa: S310 - the console's own
    answer: HTTPResponse = urlopen(request, timeout=60)  # noqa: S310 - the same
    return answer


def _fetch(url: str, token: str, path: str) -> bytes:
    with _open(url, token, path) as answer:
        return answer.read()


def _listen(url: str, token: str) -> None:
    """Hear what changes, as a browser with all screens open does."""
    with _open(url, token, "/api/v1/live?topics=server,sessions,visitors,event") as stream:
        while stream.readline():
            pass


def _page(url: str, token: str) -> None:
    """Go through all visitors, a thousand at a time."""
    after = ""
    while True:
        page = json.loads(_fetch(url, token, f"/api/v1/visitors?limit=1000{after}"))
        after = "" if page["next"] is None else f"&after={page['next']}"
        time.sleep(0.05)


def _poll(path: str, every: float, url: str, token: str) -> None:
    while True:
        _fetch(url, token, path)
        time.sleep(every)


WATCHERS: Final[dict[str, list[Callable[[str, str], None]]]] = {
    "nobody": [],
    "three consoles": [
        *([_listen] * _CONSOLES),
        partial(_poll, "/api/v1/visitors?limit=500", 2.0),
        partial(_poll, "/api/v1/server", 2.0),
    ],
    "/metrics": [partial(_poll, "/metrics", 1.0)],
    "all pages": [_page],
}
"""Who watches, by what it is called."""


def watch(what: str, url: str, token: str) -> None:
    """Watch until killed."""
    threads = [threading.Thread(target=each, args=(url, token)) for each in WATCHERS[what]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def be_clients(ticket: str, count: int, folder: Path) -> None:
    """Be so many clients until killed; say when all are connected."""
    up = 0

    def tell(event: ClientEvent) -> None:
        nonlocal up
        up += isinstance(event, trionat.Connected)
        if up == count:
            print("up", flush=True)

    async with trio.open_nursery() as nursery:
        (service,) = await trio.open_tcp_listeners(0, host=HOST)  # else visitors are refused
        local = trionat.TCPAddress(HOST, service.socket.getsockname()[1])
        for number in range(count):
            config = trionat.ClientConfig(
                ticket=ticket,
                services=(trionat.Service(local=local),),
                identity=f"pauses-{number}",
                state_dir=folder,
            )
            nursery.start_soon(trionat.Client(config, on_event=tell).run)


@contextmanager
def _another(*arguments: str) -> Generator[subprocess.Popen[str]]:
    """Run a part of this program in a process of its own, until the end of the block."""
    with subprocess.Popen(  # noqa: S603 - this program
        [sys.executable, "-m", "bench.pauses", *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


# -- the server -------------------------------------------------------------------------------------------------------


async def fill(visitors: int) -> None:
    """Give each of the sessions that are up its part of the visitors, a thousand a second: a tunnel for each, on which its stream begins."""
    gc.unfreeze()  # else they are not among those that are found
    sessions = [each for each in gc.get_objects() if isinstance(each, NativeSession)]
    gc.freeze()
    for first in range(0, visitors, _AT_ONCE):
        session = sessions[first // _AT_ONCE % len(sessions)]
        queue = session.lease.queue
        for _ in range(_AT_ONCE):
            assert session.tunnels.attach(SilentEndpoint())
        await trio.sleep(_AT_ONCE / _COME_PER_SECOND)
        while queue.idle < _AT_ONCE:  # noqa: ASYNC110 - for a moment
            await trio.sleep(0.01)
        for number in range(first, first + _AT_ONCE):
            queue.put(
                Visitor(
                    number=_FIRST + number,
                    endpoint=SilentEndpoint(),
                    address=trionat.TCPAddress("198.51.100.7", number % 60_000 + 1024),
                    service=0,
                    visited=trionat.TCPAddress(HOST, session.lease.port_numbers[0]),
                )
            )
    await trio.sleep(1)
    present = sum(len(session.tunnels.streams) for session in sessions)
    assert present == visitors, f"{present} of {visitors} visitors are served"


@attrs.frozen(kw_only=True)
class Size:
    """How much of everything: `seconds` are for each that watches. With `as_python_is`, garbage and threads are left to Python."""

    visitors: int = 10_000
    sessions: int = 10
    seconds: float = 30.0
    as_python_is: bool = False


async def measure(
    size: Size, watched: Sequence[str], folder: Path, tell: Callable[[str, Observer], None]
) -> None:
    """Have visitors come, and then each of those watch; call `tell` with what was observed, which is forgotten afterwards."""
    any_port = trionat.TCPAddress(HOST, 0)
    config = trionat.ServerConfig(
        controller_addr=any_port,
        tunnel_addr=any_port,
        visit_port=(0,) * size.sessions,
        state_dir=folder / "server",
        max_visitors=-(-size.visitors // size.sessions),
        max_tcp_conn_num=size.sessions,
        console_addr=any_port,
    )
    observer = Observer()
    async with trio.open_nursery() as nursery:
        if not size.as_python_is:
            nursery.start_soon(keep_pauses_short)
        ready = await nursery.start(trionat.serve, config)
        add = ("token", "add", "watcher", "--state-dir", str(config.state_dir))
        made = await trio.run_process([*TRIONAT, *add], capture_stdout=True, capture_stderr=True)
        (token,) = re.findall(r"\btrn_\w+", made.stdout.decode())
        with ExitStack() as stack:
            arguments = ready.ticket, str(size.sessions), str(folder / "clients")
            clients = stack.enter_context(_another("clients", *arguments))
            assert clients.stdout is not None
            await trio.to_thread.run_sync(clients.stdout.readline)
            nursery.start_soon(observer.run)
            stack.enter_context(observer.hearing_of_garbage())
            await fill(size.visitors)
            tell(COMING, observer)
            for what in watched:
                with ExitStack() as watching:
                    if WATCHERS[what]:
                        url = str(ready.console).rstrip("/")
                        watching.enter_context(_another("watch", what, url, token))
                    await trio.sleep(_SETTLE)
                    observer.clear()
                    await trio.sleep(size.seconds)
                    tell(what, observer)
        nursery.cancel_scope.cancel("measured")


def _tell(name: str, observer: Observer) -> None:
    def longest(generation: int) -> str:
        found = [each.seconds for each in observer.collections if each.generation == generation]
        return f"{max(found, default=0.0) * _MS:.0f} of {len(found)}"

    def most(values: list[float], part: float) -> str:
        return f"{sorted(values)[int((len(values) - 1) * part)] * _MS:.1f}"

    pauses, waits = observer.pauses, observer.waits
    figures = (most(pauses, part) for part in (0.5, 0.99, 0.999, 1.0))
    machine = (most(waits, 0.999), most(waits, 1.0))
    print(f"| {' | '.join((name, *figures, *machine, longest(1), longest(2)))} |", flush=True)


def main() -> int:
    """Measure and print, or be a part of it."""
    match sys.argv[1:]:
        case ["watch", what, url, token]:
            watch(what, url, token)
            return 0
        case ["clients", ticket, count, folder]:
            trio.run(be_clients, ticket, int(count), Path(folder))
            return 0
        case _:
            pass
    parser = argparse.ArgumentParser(prog="python -m bench.pauses", description=__doc__)
    parser.add_argument("--visitors", type=int, default=10_000)
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=30.0, help="for each that watches")
    parser.add_argument(
        "--as-python-is", action="store_true", help="leave garbage and threads to Python"
    )
    parser.add_argument("what", nargs="*", help=f"who watches: {', '.join(WATCHERS)}")
    options = vars(parser.parse_args())
    watched = options.pop("what") or list(WATCHERS)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(
        "| who watches | pause: median | 99 % | 99.9 % | longest | wait: 99.9 % | longest | young garbage, longest look | other garbage |"
    )
    print(f"|{' --- |' * 9}")
    with tempfile.TemporaryDirectory(prefix="trionat-bench-") as folder:
        trio.run(measure, Size(**options), watched, Path(folder), _tell)
    return 0


if __name__ == "__main__":
    sys.exit(main())
