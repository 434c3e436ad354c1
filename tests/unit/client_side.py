"""A client's way to a server, in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import attrs
import trio

from trionat.address import TCPAddress
from trionat.client.native.server import Server, ServerDialer
from trionat.errors import ConnectionLostError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.conftest import Tidy
    from tests.unit.memory import MemoryEndpoint
    from trionat.transport.endpoint import TLSEndpoint

CONTROL = TCPAddress("server.example", 8007)
TUNNEL = TCPAddress("server.example", 8008)
SERVER = Server(control=CONTROL, tunnel=TUNNEL, username="alice", password="secret")


@attrs.define(eq=False)
class MemoryDialer(ServerDialer):
    """Gets its connections from `dial`; `dialled` is when and where."""

    dial: Callable[[TCPAddress], MemoryEndpoint] = attrs.field(kw_only=True)
    dialled: list[tuple[float, TCPAddress]] = attrs.field(factory=list, kw_only=True)

    async def connect(self, address: TCPAddress) -> TLSEndpoint:
        self.dialled.append((trio.current_time(), address))
        await trio.lowlevel.checkpoint()
        return cast("TLSEndpoint", self.dial(address))

    def remember_session(self, endpoint: TLSEndpoint, *_: object) -> None:
        """There is no TLS."""


class Host:
    """The server's side of a dialer, in the test's hands: it hands out the far ends of what was dialled."""

    def __init__(self, tidy: Tidy, folder: Path) -> None:
        self.tidy = tidy
        self.down = False
        self.ends: list[MemoryEndpoint] = []
        self._calls_end, self._calls = trio.open_memory_channel[
            tuple[TCPAddress, "MemoryEndpoint"]
        ](1000)
        self.dialer = MemoryDialer(SERVER, 10.0, folder, dial=self._dial)

    def _dial(self, address: TCPAddress) -> MemoryEndpoint:
        if self.down:
            raise ConnectionLostError(f"cannot reach {address}: Connection refused")
        near, far = self.tidy.pair()
        self.ends.append(far)
        self._calls_end.send_nowait((address, far))
        return near

    async def answer(self, address: TCPAddress = CONTROL) -> MemoryEndpoint:
        """Return the far end of the next connection, which must be to this address."""
        dialled, end = await self._calls.receive()
        assert dialled == address
        return end

    def waiting(self) -> int:
        """How many connections have not been answered yet."""
        return self._calls.statistics().current_buffer_used

    def go(self) -> None:
        for end in self.ends:
            end.close()
