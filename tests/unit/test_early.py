"""Visitors for whom no tunnel is idle begin on the control connection, at the server and at a client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from tests.unit.memory import MemoryEndpoint, receive_all, receive_exactly, receive_some
from tests.unit.memory_server import (
    MemoryClient,
    MemoryServer,
    MemoryStore,
    open_memory_server,
    raw_tunnel,
    token_of,
)
from trionat.client.native.early import EarlyStreams
from trionat.client.native.streams import WaitingStreams
from trionat.errors import RemoteProtocolError
from trionat.protocol.messages import (
    CAPABILITIES,
    EARLY_BYTES,
    RESUME,
    Begin,
    Demand,
    Early,
    Resumption,
    Welcome,
)
from trionat.protocol.tunnel_frames import Abort, AbortReason, End, Open, Resume, Resumed
from trionat.relay.client_tunnel import LocalServiceError
from trionat.relay.early import MOST_EARLY, EarlyOutbox

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.conftest import Tidy


async def early_client(
    server: MemoryServer, **hello: object
) -> tuple[MemoryClient, list[Begin | Early]]:
    """Return a client whose session is up, and the list of what it hears about early visitors; it says nothing about them by itself."""
    client = server.client(capabilities=(*CAPABILITIES, RESUME), **hello)  # type: ignore[arg-type]
    heard: list[Begin | Early] = []
    client.on_early = heard.append
    await client.ask()
    client.welcome = await client.hear(Welcome)
    return client, heard


def opened(begin: Begin | Early) -> Open:
    assert isinstance(begin, Begin)
    return Open.decode(begin.open)


# -- at the server ----------------------------------------------------------------------------------------------------


async def test_question_and_answer_need_no_tunnel(tidy: Tidy, autojump_clock: MockClock) -> None:
    """And a tunnel goes on from there, with nothing said twice."""
    async with open_memory_server(tidy) as server:
        client, heard = await early_client(server)
        visitor = server.visit(client.port, early=b"question")
        await trio.testing.wait_all_tasks_blocked()
        frame = opened(heard[0])
        assert heard[1:] == [Early(frame.visitor, 0, b"question")]
        await client.say(Early(frame.visitor, 0, b""), Early(frame.visitor, 0, b"answer"))
        assert await receive_exactly(visitor, 6) == b"answer"
        assert server.sessions[0].tunnels.relayed == len(b"question" + b"answer")
        await client.say(Early(frame.visitor, 0, b"answer"))  # again: it is known
        wire = await raw_tunnel(client)
        assert await wire.next() == Resume(frame, received=6, kept=0, attempt=1)
        await client.say(Early(frame.visitor, 6, b" that is late"))  # a tunnel has it
        wire.wire.send(Resumed(3).encode())
        assert await wire.next() == b"stion"
        wire.data(b", and more")
        assert await receive_exactly(visitor, 10) == b", and more"
        visitor.send(b"!")
        visitor.close()
        assert await wire.next() == b"!"
        assert await wire.next() == End()
        wire.end()
        await trio.testing.wait_all_tasks_blocked()
        tunnels = server.sessions[0].tunnels
        assert (tunnels.served, tunnels.relayed) == (1, len(b"question!" + b"answer, and more"))


@pytest.mark.parametrize(("answered", "waits"), [(False, 8), (True, 30)])
async def test_how_long_it_waits_for_a_tunnel(
    tidy: Tidy, autojump_clock: MockClock, answered: bool, waits: int
) -> None:
    """Whoever has had an answer is being served, and waits for a client that is away as those do who have lost their tunnel."""
    async with open_memory_server(tidy, visitor_wait=8, resume_wait=30) as server:
        client, heard = await early_client(server)
        visitor = server.visit(client.port, early=b"question")
        await trio.testing.wait_all_tasks_blocked()
        frame = opened(heard[0])
        await client.say(Early(frame.visitor, 0, b"answer" if answered else b""))
        await trio.testing.wait_all_tasks_blocked()
        queue = server.sessions[0].lease.queue
        await trio.sleep(waits - 1)
        assert queue.waiting == 1
        await trio.sleep(2)
        assert queue.waiting == 0
        visitor.close()


async def test_nobody_begins_where_memory_is_used_up(tidy: Tidy, autojump_clock: MockClock) -> None:
    """What began could not be resumed, and a tunnel has to resume it. So it waits for a tunnel, and is served as before there was any of this."""
    async with open_memory_server(tidy) as server:
        client, heard = await early_client(server)
        memory = server.sessions[0].lease.send_memory
        memory.add(memory.limit)
        visitor = server.visit(client.port, early=b"question")
        await trio.testing.wait_all_tasks_blocked()
        assert heard == []
        wire = await raw_tunnel(client)
        assert isinstance(await wire.next(), Open)
        assert await wire.next() == b"question"
        wire.data(b"answer")
        assert await receive_exactly(visitor, 6) == b"answer"
        memory.add(-memory.limit)


async def test_no_tunnel_before_the_client_has_heard_of_it(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """Else BEGIN might come after everything is over, and the service would get it a second time."""
    async with open_memory_server(tidy) as server:
        client, heard = await early_client(server)
        server.visit(client.port, early=b"question")
        await trio.testing.wait_all_tasks_blocked()
        frame = opened(heard[0])
        wire = await raw_tunnel(client)
        assert not wire.wire._incoming
        await client.say(Early(frame.visitor, 0, b""))
        assert await wire.next() == Resume(frame, received=0, kept=0, attempt=1)


async def test_only_the_first_bytes_begin(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client, heard = await early_client(server)
        server.visit(client.port, early=bytes(4 * EARLY_BYTES - 1))
        await trio.testing.wait_all_tasks_blocked()
        pieces = [each for each in heard if isinstance(each, Early)]
        assert [(each.position, len(each.data)) for each in pieces] == [(0, EARLY_BYTES)]


async def test_only_so_many_begin(tidy: Tidy, autojump_clock: MockClock) -> None:
    """The others wait for a tunnel, as ever; when some have left, others may begin."""
    async with open_memory_server(tidy) as server:
        client, heard = await early_client(server)
        visitors = [server.visit(client.port) for _ in range(MOST_EARLY + 10)]
        await trio.testing.wait_all_tasks_blocked()
        begun = [each for each in heard if isinstance(each, Begin)]
        assert len(begun) == MOST_EARLY
        server.sessions[0].lease.queue.waiting_visitors[0].since -= 60
        await trio.sleep(1)
        with pytest.raises(ConnectionResetError):
            await receive_some(visitors[0])
        visitors.append(server.visit(client.port))
        await trio.testing.wait_all_tasks_blocked()
        assert len([each for each in heard if isinstance(each, Begin)]) == MOST_EARLY + 1


async def test_who_is_limited_waits(tidy: Tidy, autojump_clock: MockClock) -> None:
    store = MemoryStore("alice")
    store.limit("alice", bandwidth=1000)
    async with open_memory_server(tidy, store=store) as server:
        client, heard = await early_client(server, username="alice", token=token_of("alice"))
        server.visit(client.port, early=b"question")
        assert await client.hear(Demand) == Demand(1)
        await trio.sleep(1)
        assert heard == []


async def test_an_older_client_hears_nothing_of_it(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        server.visit(client.port, early=b"question")
        assert await client.hear(Demand) == Demand(1)
        await trio.sleep(0.5)
        assert not any(isinstance(message, Begin | Early) for message in client.heard)


async def test_no_tunnel_comes(tidy: Tidy, autojump_clock: MockClock) -> None:
    """It has begun, but its time is that of a visitor without a tunnel."""
    async with open_memory_server(tidy, visitor_wait=3) as server:
        client, _ = await early_client(server)
        started = trio.current_time()
        visitor = server.visit(client.port, early=b"question")
        with pytest.raises(ConnectionResetError):
            await receive_some(visitor)
        assert 2.9 < trio.current_time() - started < 4.5
        assert server.sessions[0].lease.queue.present == 0
        assert server.sessions[0].lease.send_memory.held == 0


async def test_a_visitor_that_resets_meanwhile(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client, heard = await early_client(server)
        visitor = server.visit(client.port, early=b"question")
        await trio.testing.wait_all_tasks_blocked()
        frame = opened(heard[0])
        visitor.reset()
        await client.say(Early(frame.visitor, 0, b""))
        wire = await raw_tunnel(client)
        assert isinstance(await wire.next(), Resume)
        wire.wire.send(Resumed(8).encode())
        abort = await wire.next()
        assert isinstance(abort, Abort)
        assert abort.reason is AbortReason.RESET


async def test_the_session_is_lost_meanwhile(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client, heard = await early_client(server)
        visitor = server.visit(client.port, early=b"question")
        await trio.testing.wait_all_tasks_blocked()
        frame = opened(heard[0])
        await client.say(Early(frame.visitor, 0, b""), Early(frame.visitor, 0, b"ans"))
        assert await receive_exactly(visitor, 3) == b"ans"
        client.hang_up()
        await trio.sleep(1)
        assert client.welcome.resumption is not None
        again, _ = await early_client(server, resume=client.welcome.resumption.lease)
        wire = await raw_tunnel(again)
        assert await wire.next() == Resume(frame, received=3, kept=0, attempt=1)
        wire.wire.send(Resumed(8).encode())
        wire.data(b"wer")
        assert await receive_exactly(visitor, 3) == b"wer"
        assert server.counted() == {"anonymity": len(b"question" + b"answer")}


# -- at the client ----------------------------------------------------------------------------------------------------

FRAME = Open(visitor=41, service=0, host="v", port=1, visit_host="s", visit_port=2)


@attrs.define(eq=False)
class Side:
    """A client's early streams; `sent` is what they say."""

    tidy: Tidy
    nursery: trio.Nursery
    local: list[MemoryEndpoint] = attrs.field(factory=list)
    sent: list[Begin | Early] = attrs.field(factory=list)
    dialling: trio.Event = attrs.field(factory=trio.Event)
    refusal: str | None = None
    waiting: WaitingStreams = attrs.field(factory=lambda: WaitingStreams(100))
    early: EarlyStreams = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.waiting.begin(Resumption(lease="x", wait=30, buffer=2**20))

        def send() -> None:
            if (message := outbox.next()) is not None:
                self.sent.append(message)

        outbox = EarlyOutbox(send)
        self.early = EarlyStreams(self._connect, self.waiting, outbox)
        self.dialling.set()

    async def _connect(self, _: Open) -> MemoryEndpoint:
        await self.dialling.wait()
        if self.refusal is not None:
            raise LocalServiceError(self.refusal)
        near, far = self.tidy.pair()
        self.local.append(far)
        return near

    def begin(self) -> None:
        self.early.begin(Begin(FRAME.payload()), self.nursery)

    def close(self) -> None:
        self.waiting.drop_all("the test is over")
        for end in self.local:
            end.close()


@pytest.mark.parametrize("slow", [False, True])
async def test_connects_and_carries_both_ways(tidy: Tidy, slow: bool) -> None:
    """What has come while the service was being connected to is given as well."""
    async with trio.open_nursery() as nursery:
        side = Side(tidy, nursery)
        if slow:
            side.dialling = trio.Event()
        side.begin()
        side.early.take(Early(41, 0, b"GET /"))
        await trio.testing.wait_all_tasks_blocked()
        assert side.sent == [Early(41, 0, b"")]  # at once
        side.early.take(Early(41, 5, b" HTTP"))
        side.dialling.set()
        await trio.testing.wait_all_tasks_blocked()
        side.early.take(Early(41, 5, b"twice"))
        assert await receive_exactly(side.local[0], 10) == b"GET / HTTP"
        side.local[0].send(b"200")
        side.local[0].send_eof()
        await trio.testing.wait_all_tasks_blocked()
        assert side.sent[1:] == [Early(41, 0, b"200")]
        await side.early.release(41)
        side.early.take(Early(41, 10, b"late"))
        stream = side.waiting.take(41)
        assert stream is not None
        assert (stream.given, stream.taken, stream.took_end) == (10, 3, False)
        stream.plain.close()
        stream.release()
        assert side.waiting.memory.held == 0
        side.close()


async def test_a_tunnel_waits_for_the_service(tidy: Tidy) -> None:
    async with trio.open_nursery() as nursery:
        side = Side(tidy, nursery)
        side.dialling = trio.Event()
        side.begin()
        released: list[int] = []

        async def release() -> None:
            await side.early.release(41)
            released.append(41)

        nursery.start_soon(release)
        await trio.testing.wait_all_tasks_blocked()
        assert not released
        side.dialling.set()
        await trio.testing.wait_all_tasks_blocked()
        assert released
        assert len(side.waiting) == 1
        side.close()


async def test_a_service_that_is_down(tidy: Tidy) -> None:
    async with trio.open_nursery() as nursery:
        side = Side(tidy, nursery, refusal="down")
        side.begin()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(LocalServiceError, match="down"):
            await side.early.release(41)
        assert len(side.waiting) == 0


async def test_those_for_whom_there_is_no_room_wait_for_a_tunnel(tidy: Tidy) -> None:
    async with trio.open_nursery() as nursery:
        side = Side(tidy, nursery)
        side.early.room = lambda: 2 - len(side.waiting)
        side.dialling = trio.Event()
        for visitor in (41, 42, 43):
            frame = attrs.evolve(FRAME, visitor=visitor)
            side.early.begin(Begin(frame.payload()), nursery)
        side.dialling.set()
        await trio.testing.wait_all_tasks_blocked()
        assert side.sent == [Early(visitor, 0, b"") for visitor in (41, 42, 43)]
        assert {stream.visitor for stream in side.waiting} == {41, 42}
        await side.early.release(43)
        assert side.waiting.take(43) is None  # the tunnel connects, as for OPEN
        side.close()


async def test_nobody_begins_at_a_client_whose_memory_is_used_up(tidy: Tidy) -> None:
    async with trio.open_nursery() as nursery:
        side = Side(tidy, nursery)
        side.waiting.memory.add(side.waiting.memory.limit)
        side.begin()
        await trio.testing.wait_all_tasks_blocked()
        assert (side.sent, len(side.waiting)) == ([Early(41, 0, b"")], 0)
        side.waiting.memory.add(-side.waiting.memory.limit)


async def test_a_server_that_begins_too_much(tidy: Tidy) -> None:
    async with trio.open_nursery() as nursery:
        side = Side(tidy, nursery)
        side.dialling = trio.Event()
        side.begin()
        with pytest.raises(RemoteProtocolError, match="BEGIN"):
            side.begin()
        for position in range(0, 2 * EARLY_BYTES, EARLY_BYTES):
            side.early.take(Early(41, position, bytes(EARLY_BYTES)))
        with pytest.raises(RemoteProtocolError, match="EARLY"):
            side.early.take(Early(41, 2 * EARLY_BYTES, b"x"))
        nursery.cancel_scope.cancel()
    side.close()


async def test_the_session_of_a_client_ends_meanwhile(tidy: Tidy) -> None:
    """Its streams wait for the next one."""
    sides: list[Side] = []
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            sides.append(Side(tidy, nursery))
            sides[0].begin()
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    (side,) = sides
    assert len(side.waiting) == 1
    await side.early.release(41)
    stream = side.waiting.take(41)
    assert stream is not None
    stream.plain.close()
    assert await receive_all(side.local[0]) == b""
    side.close()


# -- what leaves together ---------------------------------------------------------------------------------------------


async def test_the_outbox_holds_so_much_and_gives_one_at_a_time() -> None:
    posted = 0

    def on_posted() -> None:
        nonlocal posted
        posted += 1

    outbox = EarlyOutbox(on_posted)
    for number in range(20):
        outbox.post(Early(number, 0, bytes(EARLY_BYTES)))
    waited: list[bool] = []

    async def wait() -> None:
        await outbox.wait_room()
        waited.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not waited
        for number in range(20):
            message = outbox.next()
            assert isinstance(message, Early)
            assert message.visitor == number
        await trio.testing.wait_all_tasks_blocked()
        assert waited
    assert outbox.next() is None
    assert posted == 20 + 19
