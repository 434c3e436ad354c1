"""A client's way to a server, in memory, and the server's end of it in the test's hands."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import attrs
import trio

from trionat.address import TCPAddress
from trionat.client.legacy.dialer import LegacyDialer
from trionat.client.native.dialer import Server, ServerDialer
from trionat.errors import ConnectionLostError, PeerError
from trionat.transport.isolation import leaves

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.conftest import Tidy
    from tests.unit.memory import MemoryEndpoint
    from trionat.client.session import Session
    from trionat.transport.tls_endpoint import TLSEndpoint

CONTROL = TCPAddress("server.example", 8007)
TUNNEL = TCPAddress("server.example", 8008)
SERVER = Server(control=CONTROL, tunnel=TUNNEL, username="alice", password="secret")


@attrs.define(eq=False)
class MemoryDialer(ServerDialer):
    """Gets its connections from `dial`; `dialled` is when and where, `asked_for` by which route."""

    dial: Callable[[TCPAddress], MemoryEndpoint] = attrs.field(kw_only=True)
    dialled: list[tuple[float, TCPAddress]] = attrs.field(factory=list, kw_only=True)

    async def look_up(self) -> list[str]:
        return [self.server.control.host]

    asked_for: list[str | None] = attrs.field(factory=list, kw_only=True)

    async def connect(
        self,
        address: TCPAddress,
        host: str | None = None,
        route: str | None = None,
        *_: object,
    ) -> TLSEndpoint:
        self.asked_for.append(route)
        self.dialled.append((trio.current_time(), address))
        await trio.lowlevel.checkpoint()
        return cast("TLSEndpoint", self.dial(address))

    def remember_session(self, endpoint: TLSEndpoint, *_: object) -> None:
        """There is no TLS."""


class Host:
    """The server's side of what a client dials: it hands out the far ends.

    While it is `down` it refuses connections, while it is `silent` it does not answer any.
    """

    def __init__(self, tidy: Tidy, folder: Path) -> None:
        self.tidy = tidy
        self.down = False
        self.silent = False
        self.ends: list[MemoryEndpoint] = []
        self._calls_end, self._calls = trio.open_memory_channel[
            tuple[TCPAddress, "MemoryEndpoint"]
        ](1000)
        self.dialer = MemoryDialer(SERVER, 10.0, lambda: folder, dial=self.dial)

    def dial(self, address: TCPAddress) -> MemoryEndpoint:
        if self.down:
            raise ConnectionLostError(f"cannot reach {address}: Connection refused")
        near, far = self.tidy.pair()
        self.ends.append(far)
        self._calls_end.send_nowait((address, far))
        return near

    async def answer(self, address: TCPAddress = CONTROL) -> MemoryEndpoint:
        """Return the far end of the next connection, which must be to this address and come within a minute."""
        with trio.fail_after(60):
            dialled, end = await self._calls.receive()
        assert dialled == address
        return end

    def waiting(self) -> int:
        """How many connections have not been answered yet."""
        return self._calls.statistics().current_buffer_used

    def go(self) -> None:
        for end in self.ends:
            end.close()


@attrs.frozen(kw_only=True)
class MemoryLegacyServer(LegacyDialer):
    """Gets its connections from a host."""

    host: Host

    async def _connect(self, address: TCPAddress) -> MemoryEndpoint:
        await trio.lowlevel.checkpoint()
        if self.host.silent:
            await trio.sleep_forever()
        return self.host.dial(address)


@attrs.define(eq=False)
class Running:
    """A session that runs, and how it ended."""

    session: Session
    problems: list[BaseException] = attrs.field(init=False, factory=list)
    over: trio.Event = attrs.field(init=False, factory=trio.Event)
    ended_at: float = attrs.field(init=False, default=float("nan"))

    async def run(self) -> None:
        try:
            await self.session.run()
        except* PeerError as group:
            self.problems = list(leaves(group))
        finally:
            self.ended_at = trio.current_time()
            self.over.set()

    async def problem(self) -> BaseException:
        """Return why the session ended; of several the first that is no loss."""
        await self.over.wait()
        said = (p for p in self.problems if not isinstance(p, ConnectionLostError))
        return next(said, self.problems[0])
