"""The pool of visit ports."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trionat.errors import RefusedError
from trionat.protocol.messages import RefusalCode, ServiceRequest
from trionat.server.visitors.ports import PortPool, VisitPort

ALICE, BOB = ("alice", "a"), ("bob", "b")


def pool(count: int = 4) -> PortPool:
    return PortPool([VisitPort(60001 + number) for number in range(count)])


def wish(*ports: int | None, preferred: int | None = None) -> tuple[ServiceRequest, ...]:
    return tuple(ServiceRequest(visit_port=port, preferred_port=preferred) for port in ports)


async def take(ports: PortPool, *wished: int | None, holder: tuple[str, str] = ALICE) -> list[int]:
    return [port.number for port in await ports.take(wish(*wished), holder)]


def give_back(ports: PortPool, *numbers: int) -> None:
    ports.give_back([ports.ports[number] for number in numbers])


async def test_free_for_the_longest_time_first() -> None:
    ports = pool(3)
    assert await take(ports, None, None, None) == [60001, 60002, 60003]
    give_back(ports, 60002)
    give_back(ports, 60003)
    give_back(ports, 60001)
    assert await take(ports, None, holder=BOB) == [60002]
    assert await take(ports, None, holder=BOB) == [60003]


async def test_its_own_again_then_nobodys_then_somebodys() -> None:
    ports = pool(4)
    assert await take(ports, None) == [60001]
    assert await take(ports, None, holder=BOB) == [60002]
    give_back(ports, 60001)
    give_back(ports, 60002)
    assert await take(ports, None, None, holder=BOB) == [60002, 60003]
    give_back(ports, 60002, 60003)
    assert await take(ports, None, None, None) == [60001, 60004, 60002]


async def test_named_ports_come_before_preferences() -> None:
    ports = pool(3)
    services = (*wish(None, preferred=60002), *wish(60002), *wish(None, preferred=60001))
    taken = await ports.take(services, ALICE)
    assert [port.number for port in taken] == [60003, 60002, 60001]


async def test_a_preference_that_is_taken_is_no_refusal() -> None:
    ports = pool(2)
    assert await take(ports, 60001) == [60001]
    taken = await ports.take(wish(None, preferred=60001), BOB)
    assert taken[0].number == 60002


async def test_a_port_that_is_taken_takes_nothing_with_it() -> None:
    ports = pool(3)
    await take(ports, 60001)
    with pytest.raises(RefusedError, match="60001") as caught:
        await take(ports, 60002, 60001)
    assert caught.value.code == RefusalCode.PORT_TAKEN
    assert ports.free == 2


async def test_first_come_first_served() -> None:
    ports = pool(3)
    await take(ports, None, None)
    order: list[str] = []

    async def client(name: str, count: int) -> None:
        await ports.take(wish(*[None] * count), (name, ""))
        order.append(name)

    async with trio.open_nursery() as nursery:
        for name, count in (("three", 3), ("one", 1), ("two", 2)):
            nursery.start_soon(client, name, count)
            await trio.testing.wait_all_tasks_blocked()
        assert order == []
        give_back(ports, 60001)
        await trio.testing.wait_all_tasks_blocked()
        assert order == []
        give_back(ports, 60002)
        await trio.testing.wait_all_tasks_blocked()
        assert order == ["three"]
        give_back(ports, 60001, 60002, 60003)
    assert order == ["three", "one", "two"]
    assert ports.free == 0


async def test_cancelled_takes_nothing_and_holds_nobody_up() -> None:
    ports = pool(2)
    await take(ports, None)
    with trio.move_on_after(0.01):
        await take(ports, None, None)
    assert await take(ports, None, holder=BOB) == [60002]


async def test_holder_is_remembered_and_line_forgotten() -> None:
    ports = pool(1)
    (port,) = await ports.take(wish(None), ALICE)
    assert port.last_holder == ALICE
    ports.give_back([port])
    assert port.visitors is None
    assert ports.free == 1
