"""How the Python of a process of ours is set, so that nothing in it holds up its loop for long. Who uses trionat as a library decides about his process himself.

**Garbage.** What refers to itself in a circle is found by a collector only; all else is free at once. Python by itself looks at everything that lives, in one go, each time that a quarter more has come. A visitor is
a hundred objects, so with 10,000 of them that is a million, and half a second in which nobody moves; and whoever watches so many in the console makes enough new objects for that to come several times a minute.
Here only what has come since the last time is looked at, and then put aside (`gc.freeze`). What was put aside and becomes garbage in a circle later stays until everything is looked at: once a minute
for as long as that takes no longer than anybody would notice, and in a process that is larger only when it has become twice as large. So memory has a bound, whatever is in it.

**Threads.** One that computes, as for the console, gives the interpreter to the loop when it was asked to for a while. The loop lets go of it in every call of a socket, so a message may wait for that several times.
"""

from __future__ import annotations

import gc
import sys
import time
from typing import Final

import attrs
import trio

from trionat.system import find_resident_memory

_SWITCH_INTERVAL: Final = 0.001
"""Seconds for which a thread that computes keeps the interpreter where another one wants it; Python has 0.005. Chosen: some of it is there for whoever computes, and four calls cost a message 4 ms instead of 20."""

LOOK_INTERVAL: Final = 0.25
"""Seconds between two looks whether there is something to do."""

YOUNG: Final = 2
"""Collections of what is young, after which all that is new is looked at: some 15,000 objects, 8 ms. Python makes one for each 7,000 objects that stay."""

_SHORT: Final = 0.05
"""Seconds that looking at everything may take to be done regularly."""

_USUAL: Final = 0.35e-6
"""Seconds for each block of memory, until it was measured: on an old processor."""

_WHOLE_INTERVAL: Final = 60.0
"""Seconds between two looks at everything, where that is short. Chosen: what was put aside and is garbage by now may stay for a minute."""

_GROWTH: Final = 2
_MORE_BLOCKS: Final = 400_000
"""Everything is looked at where there are so many times as many blocks of memory as after the last time, and so many more: a visitor has 150 of them."""

_MORE_BYTES: Final = 64 * 1024 * 1024
"""The same of resident memory, where the system tells it: what OpenSSL holds for a tunnel is in no block of Python's."""

_NEVER: Final = 2**30


async def keep_pauses_short() -> None:
    """Do all of that until cancelled; then Python does as it did before."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        await GarbageCollection().run()
    finally:
        sys.setswitchinterval(before)


@attrs.define(eq=False)
class GarbageCollection:
    """See the module; `run` does it."""

    _young: int = attrs.field(init=False, default=0)
    _whole_at: float = attrs.field(init=False, default=float("-inf"))
    _blocks: int = attrs.field(init=False, default=0)
    _resident: int = attrs.field(init=False, default=0)
    _seconds_per_block: float = attrs.field(init=False, default=_USUAL)

    async def run(self) -> None:
        """Do it until cancelled; then Python does it by itself again, as it did before."""
        before = gc.get_threshold()
        gc.set_threshold(before[0], before[1], _NEVER)
        try:
            gc.freeze()  # what a start has made is no garbage, and to look at it would take a tenth of the start
            self._note_whole()
            while True:
                await trio.sleep(LOOK_INTERVAL)
                self.look()
        finally:
            gc.set_threshold(*before)
            gc.unfreeze()

    def look(self) -> None:
        """Do what is due."""
        if _count_young() - self._young < YOUNG:
            return
        blocks = sys.getallocatedblocks()  # quickly told, as the number of objects is not
        is_short = blocks * self._seconds_per_block <= _SHORT
        is_due = is_short and trio.current_time() - self._whole_at >= _WHOLE_INTERVAL
        if is_due or self._has_grown(blocks):
            self.collect_all()
        else:
            gc.collect()
            gc.freeze()
            self._young = _count_young()

    def _has_grown(self, blocks: int) -> bool:
        """Tell whether there is so much more than after everything was looked at that garbage may be most of it."""
        resident = find_resident_memory() or 0
        if not self._resident:  # it was not told then, as without a descriptor to spare
            self._resident = resident
        return (
            blocks > _GROWTH * self._blocks + _MORE_BLOCKS
            or resident > _GROWTH * self._resident + _MORE_BYTES
        )

    def collect_all(self) -> None:
        """Look at everything, also at what was put aside."""
        gc.unfreeze()
        began = time.thread_time()
        gc.collect()
        seconds = time.thread_time() - began
        gc.freeze()
        self._note_whole()
        self._seconds_per_block = seconds / max(1, self._blocks)

    def _note_whole(self) -> None:
        self._whole_at = trio.current_time()
        self._blocks, self._resident = sys.getallocatedblocks(), find_resident_memory() or 0
        self._young = _count_young()


def _count_young() -> int:
    """Return how often Python has looked at what is young, since it was started."""
    count: int = gc.get_stats()[1]["collections"]
    return count
