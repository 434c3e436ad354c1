"""How much of everything, and visitors that keep a tunnel busy."""

from __future__ import annotations

import os
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Final

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

THOROUGH: Final = bool(os.environ.get("ALL_FAULTS"))
"""Whether there is time: `nox -s faults` says so."""

KILLS: Final = int(os.environ.get("FAULT_KILLS") or (50 if THOROUGH else 2))
MIB: Final = int(os.environ.get("FAULT_MIB") or (256 if THOROUGH else 8))


@attrs.define(eq=False)
class Crowd:
    """Visitors that come again and again, say something, and look closely at the answer; that they are cut off is no fault.

    `served` counts conversations that went through, `cut` those that did not.
    """

    connect: Callable[[], Awaitable[trio.SocketStream]]
    rng: Random = attrs.field(factory=lambda: Random(1))
    served: int = 0
    cut: int = 0
    _served_again: trio.Event = attrs.field(factory=trio.Event)

    async def run(self, visitors: int) -> None:
        """Keep so many of them there until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(visitors):
                nursery.start_soon(self._visit_for_ever)

    async def wait_served(self, *, within: float) -> None:
        """Wait for a conversation that begins after this and goes through; fail if there is none in time."""
        with trio.fail_after(within):
            for _ in range(2):  # the first one may have begun before
                self._served_again = trio.Event()
                await self._served_again.wait()

    async def _visit_for_ever(self) -> None:
        while True:
            try:
                await self._visit()
            except (OSError, trio.BrokenResourceError, EOFError):
                self.cut += 1
                await trio.sleep(0.02)
            else:
                self.served += 1
                self._served_again.set()

    async def _visit(self) -> None:
        async with await self.connect() as stream:
            for _ in range(self.rng.randrange(1, 5)):
                question = self.rng.randbytes(self.rng.choice([1, 1000, 100_000]))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send, stream, question)
                    answer = await receive(stream, len(question))
                    nursery.cancel_scope.cancel()
                assert answer == question[: len(answer)]
                if len(answer) < len(question):
                    raise EOFError


async def receive(stream: trio.SocketStream, size: int) -> bytes:
    """Read that many bytes, or as many as there are."""
    data = bytearray()
    with suppress(trio.BrokenResourceError):
        while len(data) < size and (more := await stream.receive_some(size - len(data))):
            data += more
    return bytes(data)


async def send(stream: trio.SocketStream, data: bytes) -> None:
    """Send, as far as the other end lets us; what is cut off is seen by who reads."""
    with suppress(trio.BrokenResourceError):
        await stream.send_all(data)
