"""PendingHandshakes and clients that do anything at all: the server serves everybody else, logs no error, and nothing is left of them."""

from __future__ import annotations

from typing import TypeAlias

import attrs
import trio
import trio.testing
from hypothesis import event, given, note, settings
from hypothesis import strategies as st

from tests.fuzz.peers import Deed, deeds, do, no_errors, pauses, writings
from tests.unit.conftest import Tidy
from tests.unit.memory import MemoryEndpoint, receive_exactly
from tests.unit.memory_server import MemoryClient, MemoryServer, forwarder, open_memory_server
from trionat.protocol.dialect import Dialect
from trionat.protocol.messages import CAPABILITIES, RESUME, Welcome
from trionat.transport.endpoint import send_all

DIALECTS = [Dialect.NATIVE, Dialect.NAT_DOC, Dialect.NAT_V1]

# What is done, with which of the connections, with which bytes, and how long nothing happens behind it.
Move: TypeAlias = "tuple[str, int, Deed, bytes, float]"

moves: st.SearchStrategy[list[Move]] = st.lists(
    st.tuples(
        st.sampled_from(["deed", "deed", "deed", "connect", "log in", "attach", "visit"]),
        st.integers(0, 20),
        deeds,
        writings,
        pauses,
    ),
    min_size=5,
    max_size=30,
)


@attrs.define(eq=False)
class Rogue:
    """A peer with any number of connections, of all kinds that there are."""

    server: MemoryServer
    wires: list[MemoryEndpoint] = attrs.field(factory=list)
    clients: list[MemoryClient] = attrs.field(factory=list)

    async def move(self, what: str, number: int, deed: Deed, data: bytes) -> None:
        note(what)
        match what:
            case "connect":
                dialect = DIALECTS[number % len(DIALECTS)]
                self.wires.append(self.server.connect(capacity=5000, dialect=dialect))
            case "log in":
                more = (RESUME,) if number % 4 else ()
                client = self.server.client(
                    f"rogue {number % 3}", capabilities=(*CAPABILITIES, *more)
                )
                self.clients.append(client)
                self.wires.append(client.endpoint)
                await client.ask(None, *((None,) if number % 2 else ()), idle_tunnels=number)
            case "attach":
                for client in self._with_a_session():
                    self.wires.append(await client.attach())
            case "visit":
                for client in self._with_a_session():
                    self.wires.append(self.server.visit(client.port, early=data[:100]))
            case _ if self.wires:
                do(deed, self.wires[number % len(self.wires)], data)

    def _with_a_session(self) -> list[MemoryClient]:
        """The last one to be welcomed, if any was."""
        for client in reversed(self.clients):
            for message in client.heard:
                if isinstance(message, Welcome):
                    client.welcome = message
                    return [client]
        return []


@settings(max_examples=40, deadline=None)
@given(moves=moves)
def test_a_rogue_harms_nobody_else(moves: list[Move]) -> None:
    tidy = Tidy()

    async def main() -> None:
        async with open_memory_server(tidy, ports=4, max_visitors=5, port_reservation=5) as server:
            good = await server.welcome("good")
            good.pool(forwarder(tidy, server.nursery))
            visitor = server.visit(good.port)
            rogue = Rogue(server)
            for what, number, deed, data, pause in moves:
                await rogue.move(what, number, deed, data)
                await trio.sleep(pause)
                await send_all(visitor, b"still here?")
                assert await receive_exactly(visitor, 11) == b"still here?"
            await trio.testing.wait_all_tasks_blocked()
            assert good.ended_at is None
            newcomer = server.visit(good.port, early=b"hello")
            assert await receive_exactly(newcomer, 5) == b"hello"
            event(f"{min(3, len(server.sessions))} sessions at the end")

    with no_errors():
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    tidy.check()
