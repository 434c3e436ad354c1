"""How long a lease lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trionat.address import TCPAddress
from trionat.config.server import ServerConfig
from trionat.protocol.messages import ServiceRequest
from trionat.relay.send_buffer import SendMemory
from trionat.server.accounts.limits import UserLimits
from trionat.server.admission.lease import Lease
from trionat.server.admission.leases import Leases
from trionat.server.admission.legacy_client import LegacyQueuedClient
from trionat.server.visitors.ports import PortPool, VisitPort
from trionat.server.visitors.queue import VisitorQueue
from trionat.store.base import Limits

if TYPE_CHECKING:
    from trio.testing import MockClock

    from trionat.server.admission.queued_client import QueuedClient


def ignore(_: str) -> None:
    """A session that takes its time."""


@pytest.fixture
async def lease() -> Lease:
    line = VisitorQueue(1, 1, UserLimits("user", Limits()))
    return Lease(("user", "identity"), (VisitPort(1), VisitPort(2)), line, SendMemory(0))


def leases(reservation: float = 5) -> Leases:
    return Leases(
        ServerConfig(port_reservation=reservation), PortPool([VisitPort(1), VisitPort(2)])
    )


def client() -> QueuedClient:
    return LegacyQueuedClient(
        key=("user", "identity"),
        client_name="",
        address=TCPAddress("192.0.2.7", 1),
        services=(ServiceRequest(), ServiceRequest()),
        limits=Limits(),
        channel=None,  # type: ignore[arg-type] # nobody listens to it here
    )


async def grant(leases: Leases) -> Lease:
    lease = await leases.grant(client())
    assert lease is not None
    return lease


async def test_no_more_than_there_are_ports_and_slots(autojump_clock: MockClock) -> None:
    table = leases()
    assert table.free_slots == 4
    await grant(table)
    assert table.free_slots == 3
    assert await table.grant(client()) is None


async def test_first_session_is_waited_for(autojump_clock: MockClock) -> None:
    table = leases()
    lease = await grant(table)
    await trio.sleep(1000)
    table.expire(lease)
    assert not lease.released


async def test_released_when_nobody_came_back_in_time(autojump_clock: MockClock) -> None:
    table = leases()
    lease = await grant(table)
    for _ in range(10):
        lease.occupy(7, ignore)
        await trio.sleep(100)
        table.expire(lease)
        lease.vacate()
        await trio.sleep(4.9)
        table.expire(lease)
    assert table.by_key
    await trio.sleep(0.1)
    table.expire(lease)
    assert not table.by_key
    assert table.ports.free == 2
    assert not lease.queue.open


async def test_given_up_without_a_session(autojump_clock: MockClock) -> None:
    table = leases()
    lease = await grant(table)
    lease.give_up("the client has left")
    assert lease.released
    lease.give_up("the client has left")  # once more does no harm
    assert table.ports.free == 2


async def test_given_up_under_its_session(autojump_clock: MockClock) -> None:
    table = leases()
    lease = await grant(table)
    lease.occupy(7, ignore)
    lease.give_up("the client has left")
    assert table.by_key
    assert not lease.queue.open
    lease.vacate()
    assert not table.by_key


async def test_evicted_as_often_as_it_takes(lease: Lease, nursery: trio.Nursery) -> None:
    evicted: list[str] = []
    lease.occupy(7, lambda reason: evicted.append(f"one {reason}"))
    done = trio.Event()

    async def evict() -> None:
        await lease.wait_vacant("go", lambda: True)
        done.set()

    nursery.start_soon(evict)
    await trio.testing.wait_all_tasks_blocked()
    lease.vacate()
    lease.occupy(7, lambda reason: evicted.append(f"two {reason}"))  # somebody was faster
    await trio.testing.wait_all_tasks_blocked()
    assert evicted == ["one go", "two go"]
    assert not done.is_set()
    lease.vacate()
    await done.wait()
    assert not lease.occupied


async def test_what_it_serves(lease: Lease) -> None:
    def wish(*ports: int | None) -> tuple[ServiceRequest, ...]:
        return tuple(ServiceRequest(visit_port=port) for port in ports)

    assert lease.port_numbers == (1, 2)
    for good in (wish(None, None), wish(1, None), wish(1, 2)):
        assert lease.serves(good)
    for bad in (wish(None), wish(None, None, None), wish(2, None), wish(2, 1), ()):
        assert not lease.serves(bad)


async def test_ports_know_their_service_and_line(lease: Lease) -> None:
    assert [(port.service, port.queue) for port in lease.ports] == [
        (0, lease.queue),
        (1, lease.queue),
    ]
