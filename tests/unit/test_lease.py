"""How long a lease lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trionat.protocol.messages import ServiceRequest
from trionat.server.accounts.limits import UserLimits
from trionat.server.admission.lease import Lease
from trionat.server.visitors.ports import VisitPort
from trionat.server.visitors.queue import VisitorQueue
from trionat.store.base import Limits

if TYPE_CHECKING:
    from trio.testing import MockClock


def ignore(_: str) -> None:
    """A session that takes its time."""


@pytest.fixture
async def lease() -> Lease:
    line = VisitorQueue(1, 1, UserLimits("user", Limits()))
    return Lease(("user", "identity"), (VisitPort(1), VisitPort(2)), line)


class End:
    """When `wait_end` has returned."""

    at: float | None = None

    def __init__(self, lease: Lease, reservation: float) -> None:
        self.lease = lease
        self.reservation = reservation

    async def wait(self) -> None:
        await self.lease.wait_end(self.reservation)
        self.at = trio.current_time()


async def test_first_session_is_waited_for(
    lease: Lease, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    end = End(lease, 5)
    nursery.start_soon(end.wait)
    await trio.sleep(1000)
    assert end.at is None
    lease.occupy(7, ignore)
    await trio.sleep(1000)
    lease.vacate()
    left = trio.current_time()
    await trio.sleep(100)
    assert end.at == left + 5


async def test_whoever_comes_back_in_time_starts_anew(
    lease: Lease, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    end = End(lease, 5)
    nursery.start_soon(end.wait)
    lease.occupy(7, ignore)
    for _ in range(10):
        await trio.sleep(1)
        lease.vacate()
        await trio.sleep(4.9)
        lease.occupy(7, ignore)
    assert end.at is None
    lease.vacate()
    await trio.sleep(5.1)
    assert end.at is not None


@pytest.mark.parametrize("when", ["before", "during", "after"])
async def test_given_up(
    lease: Lease, autojump_clock: MockClock, nursery: trio.Nursery, when: str
) -> None:
    end = End(lease, 5)
    nursery.start_soon(end.wait)
    await trio.testing.wait_all_tasks_blocked()
    if when == "during":
        lease.occupy(7, ignore)
        await trio.sleep(1)
        lease.give_up()
        await trio.sleep(100)
        assert end.at is None  # with its session
        lease.vacate()
    elif when == "after":
        lease.occupy(7, ignore)
        await trio.sleep(1)
        lease.vacate()
        await trio.sleep(1)
        lease.give_up()
    else:
        lease.give_up()
    now = trio.current_time()
    await trio.testing.wait_all_tasks_blocked()
    assert end.at == now
    assert not lease.visitors.open


async def test_evicted_as_often_as_it_takes(lease: Lease, nursery: trio.Nursery) -> None:
    evicted: list[str] = []
    lease.occupy(7, lambda reason: evicted.append(f"one {reason}"))
    done = trio.Event()

    async def evict() -> None:
        await lease.wait_vacant("go")
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
    assert [(port.service, port.visitors) for port in lease.ports] == [
        (0, lease.visitors),
        (1, lease.visitors),
    ]
