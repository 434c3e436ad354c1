"""How long a lease lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from trionat.address import TCPAddress
from trionat.config.server import ServerConfig
from trionat.errors import RefusedError
from trionat.protocol.messages import Publish, PublishKind, RefusalCode, ServiceRequest
from trionat.relay.send_buffer import SendMemory
from trionat.server.accounts.limits import UserLimits
from trionat.server.admission.lease import Lease
from trionat.server.admission.leases import Leases
from trionat.server.admission.legacy_client import LegacyQueuedClient
from trionat.server.visitors.group import Groups
from trionat.server.visitors.ports import PortPool, VirtualHost, VisitPort
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
    assert [(port.service, port.queue) for port in lease.points] == [
        (0, lease.queue),
        (1, lease.queue),
    ]


async def test_what_was_approved_at_a_name_stays_when_its_client_comes_again() -> None:
    """It asks for no name, as it did before, and the server has chosen one."""
    line = VisitorQueue(1, 1, UserLimits("user", Limits()))
    host = VirtualHost(name="quiet-otter-41.example.org")
    lease = Lease(("user", "identity"), (host,), line, SendMemory(0))
    publish = Publish(kind=PublishKind.HTTP, approve=True)
    named = attrs.evolve(publish, name=host.name)
    lease.take_services((ServiceRequest(publish=named),))
    before = host.restrictions
    assert before is not None
    lease.take_services((ServiceRequest(publish=publish),))
    assert host.restrictions is before
    before.approvals.answer("192.0.2.1", approved=True)
    counted = host.requests
    for said in ({"rate": 1.0}, {"basic_auth": ONE}, {"basic_auth": TWO}):
        lease.take_services((ServiceRequest(publish=attrs.evolve(publish, **said)),))
        assert host.restrictions is not before
        assert host.restrictions.ask("192.0.2.1", "GET /") is None
        assert host.restrictions.ask("192.0.2.2", "GET /") is not None
    assert host.requests is counted


class Clients:
    """Those of a group at one name; what each says is about that."""

    def __init__(self) -> None:
        self.host = VirtualHost(name="shop.example.org")
        self.groups = Groups()
        self.said = Publish(kind=PublishKind.HTTP)

    def come(self, identity: str, **said: object) -> Lease:
        queue = VisitorQueue(1, 1, UserLimits("user", Limits()))
        group = self.groups.open("user", "web", (self.host,))
        lease = Lease(("user", identity), (self.host,), queue, SendMemory(0), group=group)
        lease.take_services(self.services(**said))
        return self.come_back(lease, **said)

    def come_back(self, lease: Lease, **said: object) -> Lease:
        lease.check_services(self.services(**said))
        lease.take_services(self.services(**said))
        lease.occupy(1, ignore)
        return lease

    def services(self, **said: object) -> tuple[ServiceRequest, ...]:
        return (ServiceRequest(publish=attrs.evolve(self.said, **said)),)  # type: ignore[arg-type]

    def leave(self, lease: Lease) -> None:
        lease.give_up("it has left")
        lease.vacate()
        assert lease.group is not None
        self.groups.leave("user", lease.group, lease.queue)

    @property
    def password(self) -> tuple[str, ...]:
        """What counts."""
        assert self.host.publish is not None
        return self.host.publish.basic_auth


HASH = "$argon2id$v=19$m=8,t=1,p=1${}" + 21 * "A" + "$" + 43 * "A"
ONE, TWO, THREE = ((f"ann:{HASH.format(salt)}",) for salt in ("1", "2", "3"))
"""Passwords of the same user: the same one, or not."""


@pytest.mark.parametrize(
    ("said", "keys"),
    [
        ({"basic_auth": ()}, "BasicAuth"),
        ({"basic_auth": (f"bob:{HASH.format(1)}",)}, "BasicAuth"),
        ({"allow": ("192.0.2.0/24",)}, "Allow"),
        ({"rate": 1.0, "approve": True}, "Rate, Approve"),
        ({"http2": True, "kind": PublishKind.TLS}, "Http, Tls, Https, Http2"),
    ],
)
async def test_who_says_otherwise_than_its_group_is_not_let_in(
    said: dict[str, object], keys: str
) -> None:
    clients = Clients()
    first = clients.come("a", basic_auth=ONE)
    with pytest.raises(RefusedError) as refused:
        clients.come("b", **{"basic_auth": ONE, **said})
    assert refused.value.code == RefusalCode.PORT_TAKEN
    assert refused.value.text == (
        f"the group web says otherwise about shop.example.org than this client: say the same on all its clients ({keys})"
    )
    assert clients.password == ONE
    # Once the first has left, or is lost, it may.
    first.vacate()
    second = clients.come("b", **{"basic_auth": ONE, **said})
    with pytest.raises(RefusedError, match="says otherwise"):
        clients.come_back(first, basic_auth=ONE)
    clients.leave(second)
    clients.come_back(first, basic_auth=ONE)
    assert clients.host.publish == attrs.evolve(
        clients.said, name="shop.example.org", basic_auth=ONE
    )


async def test_the_password_of_who_is_up_for_longest_in_a_group_counts() -> None:
    clients = Clients()
    one, two = clients.come("a", basic_auth=ONE), clients.come("b", basic_auth=TWO)
    before = clients.host.restrictions
    three = clients.come("c", basic_auth=THREE)
    assert clients.host.restrictions is before  # nothing that was found out is forgotten
    assert clients.password == ONE
    one.vacate()
    assert clients.password == TWO
    clients.come_back(one, basic_auth=ONE)
    assert clients.password == TWO
    two.drain()
    assert clients.password == THREE
    two.vacate()
    clients.leave(two)
    one.vacate()
    three.vacate()
    assert clients.password == THREE  # as it was while anybody was up
    clients.leave(three)
    assert clients.password == ONE
    clients.leave(one)


async def test_a_group_says_nothing_any_more_of_a_name_that_is_somebody_else_s() -> None:
    clients = Clients()
    one, _ = clients.come("a", basic_auth=ONE), clients.come("b", basic_auth=TWO)
    queue = VisitorQueue(1, 1, UserLimits("user", Limits()))
    other = Lease(("user", "x"), (clients.host,), queue, SendMemory(0))
    other.take_services(clients.services())
    clients.leave(one)
    assert clients.password == ()
