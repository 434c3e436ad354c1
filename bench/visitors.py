"""Visitors for what no load generator measures: plain sockets that ask Redis to answer, and look at the clock.

All of it blocks: call it in a thread. Times are in seconds, from the moment before connecting (or asking) to the first byte of
the answer.
"""

from __future__ import annotations

import selectors
import socket
import time
from contextlib import ExitStack
from typing import Final

from bench.program import HOST, FailedError

_ANSWER_TIMEOUT: Final = 20.0
_QUESTION: Final = b"PING\r\n"
_COME_AT_ONCE: Final = 20


def _come(port: int) -> socket.socket:
    visitor = socket.create_connection((HOST, port), _ANSWER_TIMEOUT)
    visitor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return visitor


def _ask(visitor: socket.socket) -> None:
    visitor.sendall(_QUESTION)


def _hear(visitor: socket.socket) -> None:
    if not visitor.recv(64):
        raise FailedError("a visitor was sent away without an answer")


def visit_in_turn(port: int, count: int, pause: float) -> list[float]:
    """Have one visitor after another come, ask and leave; return how long each took to be answered."""
    times: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        with _come(port) as visitor:
            _ask(visitor)
            _hear(visitor)
            times.append(time.perf_counter() - began)
        time.sleep(pause)
    return times


def visit_at_once(port: int, count: int) -> list[float]:
    """Have all of them come and ask at the same moment; return how long each took to be answered."""
    times: list[float] = []
    with ExitStack() as visitors, selectors.DefaultSelector() as selector:
        for _ in range(count):
            began = time.perf_counter()
            visitor = visitors.enter_context(_come(port))
            _ask(visitor)
            selector.register(visitor, selectors.EVENT_READ, began)
        while len(times) < count:
            if not (ready := selector.select(_ANSWER_TIMEOUT)):
                raise FailedError(f"{count - len(times)} of {count} visitors were not answered")
            now = time.perf_counter()
            for key, _ in ready:
                assert isinstance(key.fileobj, socket.socket)
                _hear(key.fileobj)
                selector.unregister(key.fileobj)
                times.append(now - key.data)
    return times


def ask_for(port: int, seconds: float, pause: float) -> list[float]:
    """Be one visitor who asks now and then, as somebody who types; return how long each answer took."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    with _come(port) as visitor:
        while (began := time.perf_counter()) < end:
            _ask(visitor)
            _hear(visitor)
            times.append(time.perf_counter() - began)
            time.sleep(pause)
    return times


def come_and_stay(port: int, count: int) -> ExitStack:
    """Have that many visitors come and be answered once; they say nothing more, and leave when the caller closes."""
    with ExitStack() as present:
        for first in range(0, count, _COME_AT_ONCE):
            group = [
                present.enter_context(_come(port)) for _ in range(min(_COME_AT_ONCE, count - first))
            ]
            for visitor in group:
                _ask(visitor)
            for visitor in group:
                _hear(visitor)
        return present.pop_all()
