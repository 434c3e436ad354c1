"""How a task learns that something which another task changes has changed."""

from __future__ import annotations

import attrs
from trio.lowlevel import ParkingLot, checkpoint


@attrs.define(eq=False)
class Signal:
    """Wakes whoever waits for it; nothing is remembered, so each waiter looks at the state itself.

    Used in a loop, with no checkpoint between the look and the wait, so that no change can be missed::

        while not self.ready:
            await self._changed.wait()

    A `trio.Event` would stay set, and would have to be replaced before each wait.
    """

    _lot: ParkingLot = attrs.field(init=False, factory=ParkingLot)

    def notify(self) -> None:
        """Wake all who wait now; those who come later wait for the next call."""
        if self._lot:  # most often nobody does
            self._lot.unpark_all()

    async def wait(self) -> None:
        """Wait for the next `notify`. Always a checkpoint; cancelling it leaves nothing behind."""
        await self._lot.park()


@attrs.define(eq=False)
class AutoResetEvent:
    """A signal for one waiter that remembers: what was notified while it did something else, wakes it when it waits next, once."""

    _is_set: bool = attrs.field(init=False, default=False)
    _lot: ParkingLot = attrs.field(init=False, factory=ParkingLot)

    def notify(self) -> None:
        """Wake the waiter, now or when it waits next."""
        self._is_set = True
        self._lot.unpark_all()

    async def wait(self) -> None:
        """Wait for a `notify` since the last wait. Always a checkpoint; cancelling it forgets nothing."""
        if self._is_set:
            await checkpoint()
        else:
            await self._lot.park()
        self._is_set = False
