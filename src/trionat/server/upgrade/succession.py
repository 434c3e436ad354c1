"""How one server comes after another: who serves waits for the process that takes its place, gives it everything and lets go, or goes on; and the other way round.

It is the same for a server of one process and for one of several, and what is handed over does not tell which it was.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.server.upgrade.upgrade import Upgraded, UpgradeError
from trionat.version import VERSION

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable
    from contextlib import AsyncExitStack
    from pathlib import Path

    from trionat.errors import StartupError
    from trionat.server.accounts.traffic import Traffic
    from trionat.server.admission.bans import Bans
    from trionat.server.events.delivery import Delivery
    from trionat.server.events.hub import Hub
    from trionat.server.upgrade.estate import Estate
    from trionat.server.upgrade.predecessor import Predecessor
    from trionat.server.upgrade.successor import Successor
    from trionat.server.upgrade.upgrade import Upgrade
    from trionat.server.upgrade.wire import Parcel, Values
    from trionat.transport.listener import Listener


@attrs.define(eq=False, kw_only=True)
class Succession:
    """See the module. The parts are the server's; `listeners` goes through all that is listened at, each with what it is for.

    Who serves calls `wait_end`, then `give`, and then `succeed` or `fail`; who comes after it calls `inherit`.
    """

    upgrade: Upgrade | None
    folder: Path | None
    stopping: trio.Event
    traffic: Traffic
    delivery: Delivery | None
    bans: Bans
    events: Hub
    listeners: Callable[[], Iterable[tuple[str, Listener]]]

    async def wait_end(
        self, admin_socket: socket.socket | None, pause: AsyncExitStack
    ) -> Successor | None:
        """Wait for the planned stop (None), or until a process is ready to go on. What is to be over before anybody notices is over then.

        No traffic and no event is written down from then on until `pause` is closed, which also ends that process, unless it was let go.
        """
        upgrade, successor = self.upgrade, None
        if upgrade is None:
            await self.stopping.wait()
            return None
        async with trio.open_nursery() as waiting:

            async def wait_stop() -> None:
                await self.stopping.wait()
                waiting.cancel_scope.cancel("the server stops")

            waiting.start_soon(wait_stop, name="wait for the stop")
            assert self.folder is not None, "an upgrade needs one"  # noqa: S101 - for type checkers
            successor = await upgrade.wait_successor(self.folder, self.listeners, admin_socket)
            pause.push_async_callback(successor.end)
            await pause.enter_async_context(self.traffic.resting())
            if self.delivery is not None:
                await pause.enter_async_context(self.delivery.resting())
            waiting.cancel_scope.cancel("another process is ready")
        if not self.stopping.is_set():
            return successor
        upgrade.stop()
        return None

    async def give(self, successor: Successor, estate: Estate, values: Values) -> None:
        """Give everything to the process that is ready to go on, with `values` besides the estate; return when it has taken over.

        Raises:
            StartupError: it has not.
        """
        await self.traffic.write_down()
        if self.delivery is not None:
            await self.delivery.write_down()
        await successor.give(
            {**estate.values, **values, "bans": self.bans.write()},
            estate.data,
            estate.descriptors,
        )

    def succeed(self, successor: Successor, estate: Estate, seconds: float) -> None:
        """It has taken over: nothing here counts any more, and nobody listens. For so many seconds nobody was accepted. A stop that was asked for meanwhile was meant for whoever serves."""
        assert self.upgrade is not None, "it has made the other one"  # noqa: S101 - for type checkers
        successor.let_go()
        self.traffic.is_elsewhere = self.events.is_elsewhere = True
        for _, listener in self.listeners():
            listener.close()
        self.upgrade.succeed(
            Upgraded(
                pid=successor.pid,
                version=successor.version,
                old_pid=os.getpid(),
                old_version=VERSION,
                clients=estate.leases,
                visitors=estate.visitors,
                seconds=round(seconds, 3),
            )
        )
        if self.stopping.is_set():
            os.kill(successor.pid, signal.SIGTERM)

    async def fail(self, successor: Successor, error: StartupError) -> bool:
        """It has not: end it, so that this process can go on. Tell whether it has taken over in the very moment in which it was given up, so that it may have read what is not here."""
        assert self.upgrade is not None, "it has made the other one"  # noqa: S101 - as above
        had_taken = await successor.end()
        for _, listener in self.listeners():
            listener.rest()
        self.upgrade.fail(UpgradeError(str(error)))
        return had_taken

    async def inherit(self, predecessor: Predecessor) -> Parcel:
        """Take what another process leaves, as far as it is not for sessions; return all of it.

        Raises:
            StartupError: it goes on itself, or is gone.
        """
        parcel = await predecessor.inherit()
        await self.traffic.take_over()
        if self.delivery is not None:
            await self.delivery.take_over()
        self.bans.read(parcel.values.get("bans", {}))
        return parcel
