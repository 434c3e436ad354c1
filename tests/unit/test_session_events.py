"""What events say of sessions, and of which they say nothing."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
import trio.testing

from tests.events.listening import reading
from tests.events.test_publishers import told
from tests.unit.memory import receive_exactly
from tests.unit.memory_server import forwarder, open_memory_server
from trionat.protocol.messages import Close, CloseCode
from trionat.server.events.hub import Hub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock

    from tests.events.listening import Reader
    from tests.unit.conftest import Tidy
    from tests.unit.memory_server import MemoryServer

DOCTOR = f"doctor-{'0a' * 8}"


@asynccontextmanager
async def a_server(tidy: Tidy) -> AsyncIterator[tuple[MemoryServer, Reader]]:
    hub = Hub()
    with reading(hub) as reader:
        async with open_memory_server(tidy) as server:
            server.context.sessions.events = hub
            yield server, reader


async def test_a_doctor_is_no_event(tidy: Tidy, autojump_clock: MockClock) -> None:
    """Neither its coming nor its end, whether it says goodbye or is lost; a client beside it is."""
    async with a_server(tidy) as (server, reader):
        doctor = await server.welcome(DOCTOR)
        client = await server.welcome("client")
        server.nursery.start_soon(doctor.ping)
        await trio.sleep(16)
        doctor.hang_up()
        client.hang_up()
        await trio.sleep(100)
        types = [(type_, data["uid"]) for type_, data in await told(reader)]
    assert types == [("session.up", 2), ("session.lost", 2), ("session.ended", 2)]


async def test_the_end_is_told_to_whoever_has_come_meanwhile(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """As to a webhook that a reload has brought."""
    async with open_memory_server(tidy) as server:
        hub = server.context.sessions.events
        client, doctor = await server.welcome("client"), await server.welcome(DOCTOR)
        with reading(hub) as reader:
            client.hang_up()
            doctor.hang_up()
            await trio.sleep(1)
            assert [type_ for type_, _ in await told(reader)] == ["session.lost"]


async def test_who_calls_himself_a_doctor_and_stays_is_told(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with a_server(tidy) as (server, reader):
        doctor = await server.welcome(DOCTOR)
        server.nursery.start_soon(doctor.ping)
        await trio.sleep(29)
        assert await told(reader) == []
        await trio.sleep(2)
        [(type_, data)] = await told(reader)
        assert (type_, data["client"]) == ("session.up", "MemoryClient")
        doctor.hang_up()
        await trio.sleep(1)
        assert [type_ for type_, _ in await told(reader)] == ["session.lost"]


async def test_who_calls_himself_a_doctor_and_relays_is_told(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with a_server(tidy) as (server, reader):
        doctor = await server.welcome(DOCTOR)
        doctor.pool(forwarder(tidy, server.nursery))
        await trio.testing.wait_all_tasks_blocked()
        visitor = server.visit(doctor.port)
        visitor.send(bytes(4000))
        assert await receive_exactly(visitor, 4000) == bytes(4000)
        await doctor.say(Close(code=CloseCode.STOPPED, text="it has seen all"))
        await trio.sleep(10)
        up, ended = await told(reader)
    assert (up[0], ended[0]) == ("session.up", "session.ended")
    assert ended[1]["relayed"] == 8000
