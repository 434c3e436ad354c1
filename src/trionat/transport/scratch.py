"""The buffers that bytes pass through, one of each for each Trio run.

Sharing them is sound because whatever is read into one is used up, or copied, before the next checkpoint. It is what lets an
idle visitor cost no buffer at all. They are of one run, not of the process, because another thread may run Trio as well and
`recv_into` lets other threads go on.
"""

from __future__ import annotations

from typing import Final

import attrs
import trio

# One read or write moves at most this much. Larger gained nothing in the prototypes, smaller costs system calls.
SCRATCH_BYTES: Final = 256 * 1024

# Room in front of outgoing bytes, so that frames which precede them leave in the same system call.
HEADROOM_BYTES: Final = 2048


# Given-back buffers that wait for their next use: as many as one stream at full speed has on their way.
_MOST_SPARE: Final = 4


def _new_outgoing() -> memoryview:
    return memoryview(bytearray(HEADROOM_BYTES + SCRATCH_BYTES))


@attrs.define(eq=False)
class Scratch:
    """`incoming` is read into from tunnels, `outgoing` from visitors and local services, `records` from sockets below TLS."""

    incoming: memoryview = attrs.field(factory=lambda: memoryview(bytearray(SCRATCH_BYTES)))
    outgoing: memoryview = attrs.field(factory=_new_outgoing)
    records: memoryview = attrs.field(factory=lambda: memoryview(bytearray(SCRATCH_BYTES)))
    _spare: list[memoryview] = attrs.field(init=False, factory=lambda: [])

    def part_with_outgoing(self) -> memoryview:
        """Return `outgoing`, with what was read into it, for somebody who keeps that; the next read goes to another buffer."""
        kept = self.outgoing
        self.outgoing = self._spare.pop() if self._spare else _new_outgoing()
        return kept

    def take_back(self, outgoing: memoryview) -> None:
        """Nobody keeps what is in it any more."""
        if len(self._spare) < _MOST_SPARE:
            self._spare.append(outgoing)


_of_run: trio.lowlevel.RunVar[Scratch] = trio.lowlevel.RunVar("scratch")


def scratch() -> Scratch:
    """Return this run's buffers."""
    try:
        return _of_run.get()
    except LookupError:
        buffers = Scratch()
        _of_run.set(buffers)
        return buffers
