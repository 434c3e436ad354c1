"""A path between the two ends of a chain that takes time: `path.py LISTEN_HOST LISTEN_PORT TARGET_PORT ROUND_TRIP_SECONDS`.

A TCP proxy that delivers every piece, and the end of each direction, half a round trip late. It answers connections at once, as
the loopback does, so TCP's handshake is added to what the client says first: that arrives one and a half round trips after
the connection was made, as it would on a real path.

A program of its own, so that the visitors' work cannot delay it, and no Trio in it: a heap and a selector add some 10 µs
to each piece, tasks and timers several times that. For small messages only, as it blocks on a receiver that does not read.
"""

from __future__ import annotations

import heapq
import itertools
import selectors
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE_BYTES = 64 * 1024


class Clock:
    """What is to be done when; things of the same moment are done in the order in which they were asked for."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def at(self, when: float, do: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._heap, (when, next(self._number), do))

    def run_due(self) -> float | None:
        """Do what is due, and return the seconds until the next thing is, or None."""
        while self._heap and self._heap[0][0] <= time.perf_counter():
            heapq.heappop(self._heap)[2]()
        return max(0.0, self._heap[0][0] - time.perf_counter()) if self._heap else None


class Crossing:
    """A connection over the path."""

    def __init__(self, path: Path, client: socket.socket) -> None:
        self.path = path
        self.client = client
        self.server = socket.socket()
        self.began = time.perf_counter()
        self.answered = False
        self.ended = 0
        self.last_due = {client: 0.0, self.server: 0.0}
        path.clock.at(self.began + 1.5 * path.round_trip, self.arrive)
        path.watch(client, partial(self.read, client, self.server))

    def arrive(self) -> None:
        """The client's connection is complete at the server, or it is closed, if nobody listens there (any more)."""
        try:
            self.server.connect(self.path.target)
        except OSError:
            self.server.close()
            with suppress(KeyError):  # it has ended by itself
                self.path.selector.unregister(self.client)
            self.client.close()
            return
        self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.path.watch(self.server, partial(self.read, self.server, self.client))

    def read(self, source: socket.socket, sink: socket.socket) -> None:
        """Take a piece, or the end, and deliver it when it is due."""
        try:
            data = source.recv(PIECE_BYTES)
        except OSError:
            data = b""
        now = time.perf_counter()
        delay = self.path.round_trip / 2
        if source is self.client and not self.answered and now < self.began + self.path.round_trip:
            delay += self.path.round_trip  # of TCP's handshake
        due = self.last_due[source] = max(now + delay, self.last_due[source])
        if not data:
            self.path.selector.unregister(source)
        self.path.clock.at(due, partial(self.deliver, sink, data))

    def deliver(self, sink: socket.socket, data: bytes) -> None:
        """Hand it over; whoever is gone by then does not get it."""
        self.answered |= sink is self.client
        with suppress(OSError):
            if data:
                sink.sendall(data)
            else:
                sink.shutdown(socket.SHUT_WR)
        if not data:
            self.ended += 1
            if self.ended == 2:
                self.client.close()
                self.server.close()


class Path:
    """Accepts connections and carries them to the target, until it is killed."""

    def __init__(
        self, address: tuple[str, int], target: tuple[str, int], round_trip: float
    ) -> None:
        self.target = target
        self.round_trip = round_trip
        self.clock = Clock()
        self.selector = selectors.DefaultSelector()
        self.listener = socket.create_server(address, backlog=1024)
        self.watch(self.listener, self.accept)

    def watch(self, sock: socket.socket, do: Callable[[], None]) -> None:
        """Do something whenever there is something to read."""
        self.selector.register(sock, selectors.EVENT_READ, do)

    def accept(self) -> None:
        """Take the next connection."""
        client, _ = self.listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        Crossing(self, client)

    def run(self) -> None:
        """Carry for ever."""
        while True:
            timeout = self.clock.run_due()
            for key, _ in self.selector.select(timeout):
                key.data()


if __name__ == "__main__":
    host, port, target_port, round_trip = sys.argv[1:]
    Path((host, int(port)), ("127.0.0.1", int(target_port)), float(round_trip)).run()
