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


@attrs.frozen(eq=False)
class Scratch:
    """`incoming` is read into from tunnels, `outgoing` from visitors and local services, `records` from sockets below TLS."""

    incoming: memoryview = attrs.field(factory=lambda: memoryview(bytearray(SCRATCH_BYTES)))
    outgoing: memoryview = attrs.field(
        factory=lambda: memoryview(bytearray(HEADROOM_BYTES + SCRATCH_BYTES))
    )
    records: memoryview = attrs.field(factory=lambda: memoryview(bytearray(SCRATCH_BYTES)))


_of_run: trio.lowlevel.RunVar[Scratch] = trio.lowlevel.RunVar("scratch")


def scratch() -> Scratch:
    """Return this run's buffers."""
    try:
        return _of_run.get()
    except LookupError:
        buffers = Scratch()
        _of_run.set(buffers)
        return buffers
