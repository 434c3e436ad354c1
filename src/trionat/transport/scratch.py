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
    """`incoming` is read into from tunnels, `outgoing` from visitors and local services, `records` from sockets below TLS.

    What is read for a send buffer goes to `keepable()` instead of `outgoing`: that is another buffer each time after one was kept, so nobody
    holds on to it from one read to the next. Who did would read into what a send buffer keeps of another stream.
    """

    incoming: memoryview = attrs.field(factory=lambda: memoryview(bytearray(SCRATCH_BYTES)))
    outgoing: memoryview = attrs.field(factory=_new_outgoing)
    records: memoryview = attrs.field(factory=lambda: memoryview(bytearray(SCRATCH_BYTES)))
    _spare: list[memoryview] = attrs.field(init=False, factory=lambda: [])

    def keepable(self) -> memoryview:
        """Return a buffer like `outgoing` for one read, for which `keep` may be called before the next checkpoint."""
        if not self._spare:
            self._spare.append(_new_outgoing())
        return self._spare[-1]

    def keep(self) -> memoryview:
        """Return what `keepable` has returned, for the caller to keep until `take_back`."""
        return self._spare.pop()

    def take_back(self, kept: memoryview) -> None:
        """Nobody needs what is in it any more."""
        if len(self._spare) < _MOST_SPARE:
            self._spare.append(kept)


_of_run: trio.lowlevel.RunVar[Scratch] = trio.lowlevel.RunVar("scratch")


def scratch() -> Scratch:
    """Return this run's buffers."""
    try:
        return _of_run.get()
    except LookupError:
        buffers = Scratch()
        _of_run.set(buffers)
        return buffers
