"""The far ends of connections, played by a test, and what one may expect of two that are joined."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs
import trio
import trio.testing

from trionat.transport.endpoint import TLS_RECORD_BYTES
from trionat.transport.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.unit.memory import MemoryEndpoint

TICKS = 6
"""Fewer steps of Trio's than this follow a step; with this many, everybody goes as far as they can."""

GARBAGE = b"\xaa" * 4096

Seen: TypeAlias = Literal["nothing", "end", "reset"]
Step: TypeAlias = "tuple[str, Callable[[], object]]"


@attrs.define(eq=False)
class End:
    """The far end of a connection, and what was said and heard there."""

    endpoint: MemoryEndpoint
    sent: bytearray = attrs.field(factory=bytearray)
    got: bytearray = attrs.field(factory=bytearray)
    ended: bool = False
    rude: bool = False
    seen: Seen = "nothing"

    @property
    def gone(self) -> bool:
        return self.endpoint.closed

    def say(self, data: bytes) -> None:
        """Write as much of it as there is room for."""
        try:
            self.sent += data[: self.endpoint.send(data)]
        except BlockingIOError:
            pass
        except OSError:
            self.seen = "reset"

    def end(self) -> None:
        self.ended = True
        try:
            self.endpoint.send_eof()
        except OSError:
            self.seen = "reset"

    def reset(self) -> None:
        self.rude = True
        self.endpoint.reset()

    def close(self) -> None:
        """In the ordinary way, which is a reset where something is unread."""
        self.ended = True
        self.rude = self.seen == "nothing"
        self.endpoint.close()

    def listen(self, most: int) -> bool:
        """Read once, and tell whether anything came."""
        room = memoryview(bytearray(TLS_RECORD_BYTES))
        self.endpoint.largest_read = most
        try:
            count = self.endpoint.recv_into(room)
        except BlockingIOError:
            return False
        except OSError:
            self.seen = "reset"
            return False
        if not count and self.seen == "nothing":
            self.seen = "end"
        self.got += room[:count]
        return count > 0


def deeds(name: str, end: End, *, polite: bool) -> Iterator[Step]:
    """Return what may be done at an end now; the polite neither reset nor close what others may still write to."""
    yield f"{name} is silent", lambda: None
    if not end.ended and end.seen != "reset":
        for size in (1, 7, 300):
            data = bytes((len(end.sent) + number) % 251 for number in range(size))
            yield f"{name} says {size}", partial(end.say, data)
        yield f"{name} ends", end.end
    if end.seen == "nothing":
        yield f"{name} listens", partial(end.listen, 5)
        yield f"{name} listens long", partial(end.listen, 10_000)
    if not polite:
        yield f"{name} resets", end.reset
        yield f"{name} closes", end.close


def check_joined(one: End, two: End) -> None:
    """Nobody hears what was not said, sees an end before everything was heard, or a reset that nobody caused."""
    for end, other in ((one, two), (two, one)):
        assert end.got == other.sent[: len(end.got)]
        if end.seen == "end":
            assert other.ended, "an end that nobody said"
            assert end.got == other.sent, "an end before everything was heard"
        if end.seen == "reset" and not end.rude:
            assert other.rude, "a reset that nobody caused"


def check_ends(one: End, two: End) -> None:
    """Where everything has arrived and nobody was rude, an end of one direction was seen, whatever the other one does."""
    if not one.rude and not two.rude:
        for end, other in ((one, two), (two, one)):
            assert end.gone or (end.seen == "end") == other.ended


async def run_on(ticks: int) -> None:
    """Let the others go some way, or as far as they can."""
    if ticks == TICKS:
        await trio.testing.wait_all_tasks_blocked()
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()


def use_scratch() -> None:
    """What any other tunnel may do at any checkpoint: overwrite the buffers that all share."""
    buffers = scratch()
    for buffer in (buffers.incoming, buffers.outgoing):
        buffer[: len(GARBAGE)] = GARBAGE
