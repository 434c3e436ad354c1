"""Visitors by the thousand: plain sockets that one thread looks after. All of it blocks: call it in a thread.

A visitor says a word as soon as it is connected, and the service says it again. Whoever hears its word is served, and stays until it
is told to leave; whoever is sent away before it has heard a byte is refused. Nothing else may become of it.
"""

from __future__ import annotations

import errno
import math
import selectors
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

import attrs

from tests.e2e.services import HOST

if TYPE_CHECKING:
    from collections.abc import Sequence

CONNECTING: Final = {0, errno.EINPROGRESS}


@attrs.define(eq=False)
class Visitor:
    """One of them, with the word it has said last and what it has heard since. `came` is when it began to connect."""

    number: int
    port: int
    sock: socket.socket
    came: float
    word: bytes = b""
    heard: bytes = b""

    def say(self, word: str) -> None:
        self.word, self.heard = f"{self.number} says {word}\n".encode(), b""
        if self.sock.send(self.word) != len(self.word):
            raise AssertionError("a word did not fit into an empty socket")


@attrs.define(eq=False)
class Crowd:
    """`served` are there, `refused` is how many were sent away; `waits` are the seconds from coming to an answer or the end."""

    served: list[Visitor] = attrs.field(factory=list)
    refused: int = 0
    waits: list[float] = attrs.field(factory=list)

    def come(
        self,
        ports: Sequence[int],
        count: int,
        *,
        seconds: float = 0.0,
        most_waiting: float = math.inf,
        patience: float,
    ) -> float:
        """Have so many visitors come to these ports in turn, over so many seconds; wait until it is clear what becomes of each.

        At most `most_waiting` wait for an answer at once. Returns the seconds until the last one has come.

        Raises:
            AssertionError: some had neither an answer nor an end within `patience` seconds of silence, or an end in mid-word.
        """
        began = time.perf_counter()
        came, took, waiting = 0, 0.0, 0
        with selectors.DefaultSelector() as selector:
            while came < count or waiting:
                while (
                    came < count
                    and waiting < most_waiting
                    and time.perf_counter() - began >= seconds * came / count
                ):
                    selector.register(*self._connect(came, ports[came % len(ports)]))
                    came, waiting = came + 1, waiting + 1
                    took = time.perf_counter() - began
                pause = seconds / count if came < count and waiting < most_waiting else patience
                ready = selector.select(pause)
                if not ready and pause == patience:
                    raise AssertionError(f"{waiting} of {count} visitors hear nothing")
                for key, events in ready:
                    visitor: Visitor = key.data
                    if events & selectors.EVENT_WRITE:
                        selector.modify(visitor.sock, selectors.EVENT_READ, visitor)
                        with suppress(ConnectionResetError, BrokenPipeError):
                            visitor.say(
                                "hello"
                            )  # if it was not sent away already, as `_hear` tells
                    elif (told := self._hear(visitor)) is not None:
                        selector.unregister(visitor.sock)
                        waiting -= 1
                        self.waits.append(time.perf_counter() - visitor.came)
                        if told:
                            self.served.append(visitor)
                        else:
                            self.refused += 1
                            visitor.sock.close()
        return took

    def speak(self, word: str, *, patience: float) -> None:
        """Have all of them say a word, and hear it."""
        with selectors.DefaultSelector() as selector:
            for visitor in self.served:
                visitor.say(word)
                selector.register(visitor.sock, selectors.EVENT_READ, visitor)
            silent = len(self.served)
            while silent:
                if not (ready := selector.select(patience)):
                    raise AssertionError(f"{silent} of {len(self.served)} visitors hear nothing")
                for key, _ in ready:
                    told = self._hear(key.data)
                    assert told is not False, f"visitor {key.data.number} was cut off"
                    if told:
                        selector.unregister(key.data.sock)
                        silent -= 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.leave()

    def leave(self) -> None:
        """All of them close."""
        for visitor in self.served:
            visitor.sock.close()
        self.served.clear()

    def _connect(self, number: int, port: int) -> tuple[socket.socket, int, Visitor]:
        sock = socket.socket()
        sock.setblocking(False)
        error = sock.connect_ex((HOST, port))
        assert error in CONNECTING, f"visitor {number} cannot connect: {errno.errorcode[error]}"
        return sock, selectors.EVENT_WRITE, Visitor(number, port, sock, time.perf_counter())

    def _hear(self, visitor: Visitor) -> bool | None:
        """Tell whether the visitor has heard its word or was sent away; None: neither yet."""
        try:
            data = visitor.sock.recv(256)
        except ConnectionResetError:
            data = b""
        visitor.heard += data
        assert visitor.word.startswith(visitor.heard), f"{visitor.heard!r} for {visitor.word!r}"
        if not data:
            assert not visitor.heard, f"visitor {visitor.number} was cut off in mid-word"
            return False
        return True if visitor.heard == visitor.word else None
