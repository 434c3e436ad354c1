"""What every registry promises of names: they are claimed as ports are, in the same step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest

from tests.registry.test_registry import PORTS, Process, World, remote_world, wait_for, world
from trionat.address import TCPAddress
from trionat.config.server import ServerConfig
from trionat.errors import RefusedError
from trionat.protocol.messages import Publish, PublishKind, RefusalCode, ServiceRequest
from trionat.server.admission.leases import Leases
from trionat.server.admission.legacy_client import LegacyQueuedClient
from trionat.server.registry.claim import Wish
from trionat.server.visitors.ports import PortPool, VisitPort
from trionat.store.base import Limits

if TYPE_CHECKING:
    from trionat.server.registry.claim import Claim

__all__ = ["world"]

SHOP = "shop.example.org"
WIKI = "wiki.example.org"


def service(place: int | str | None) -> ServiceRequest:
    """Return one that wants this visit port, any, or this name."""
    if isinstance(place, str):
        publish = Publish(kind=PublishKind.HTTP, name=place, allow=("127.0.0.0/8",), rate=5.0)
        return ServiceRequest(publish=publish)
    return ServiceRequest(visit_port=place)


def wish(identity: str, *places: int | str | None) -> Wish:
    return Wish(key=("user", identity), services=tuple(map(service, places)), limits=Limits())


async def refusal_of(process: Process, wanted: Wish) -> str:
    with pytest.raises(RefusedError) as refusal:
        await process.registry.claim(wanted)
    return refusal.value.code


async def test_a_name_has_one_holder(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    claim = await one.claim(wish("a", SHOP))
    assert claim.points == (SHOP,)
    assert claim.wish == wish("a", SHOP)  # with all that the client has asked for
    for process in (one, two):
        assert await refusal_of(process, wish("b", SHOP)) == RefusalCode.NAME_TAKEN
    one.registry.release(claim)
    await wait_for(lambda: bool(two.freed))
    assert (await two.claim_soon(wish("b", SHOP))).points == (SHOP,)


async def test_names_stand_among_ports_in_the_order_of_the_services(world: World) -> None:
    one = await Process.start(world, "one")
    places: tuple[int | str | None, ...] = (SHOP, 60003, WIKI, None)
    first, second, third, fourth = (await one.claim(wish("a", *places))).points
    assert (first, second, third) == (SHOP, 60003, WIKI)
    assert fourth in set(PORTS) - {60003}


async def test_where_a_name_is_taken_no_port_sticks(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    await one.claim(wish("a", SHOP))
    for process in (one, two):
        wanted = wish("b", *PORTS, WIKI, SHOP)
        assert await refusal_of(process, wanted) == RefusalCode.NAME_TAKEN
    assert (await two.claim(wish("c", *PORTS, WIKI))).points == (*PORTS, WIKI)


async def test_where_a_port_is_taken_no_name_sticks(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    await one.claim(wish("a", 60001))
    for process in (one, two):
        assert await refusal_of(process, wish("b", SHOP, 60001)) == RefusalCode.PORT_TAKEN
    assert (await one.claim(wish("c", SHOP))).points == (SHOP,)


async def test_names_need_no_free_port(world: World) -> None:
    one = await Process.start(world, "one")
    await one.claim(wish("a", *PORTS))
    assert (await one.claim(wish("b", SHOP, WIKI))).points == (SHOP, WIKI)
    assert await one.registry.claim(wish("c", "other.example.org", None)) is None
    assert (await one.claim(wish("d", "other.example.org"))).points == ("other.example.org",)


@pytest.mark.parametrize("address", ["203.0.113.7", "2001:db8::7"])
async def test_a_domain_that_is_an_address_is_a_name(world: World, address: str) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    claim = await one.claim(wish("a", address, None))
    assert claim.points[0] == address
    assert await refusal_of(two, wish("b", address)) == RefusalCode.NAME_TAKEN
    await world.kill("one")
    assert await refusal_of(two, wish("b", address)) == RefusalCode.NAME_TAKEN
    assert (await two.claim(wish("a", address, None))).points == claim.points


async def test_many_long_names_are_claimed_or_refused(world: World) -> None:
    """A claim that was granted holds, however long it is."""
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    names = [f"{number:060}.{'a' * 60}.{'b' * 60}.example.org" for number in range(64)]
    code = None
    try:
        claim = await one.claim(wish("a", *names))
    except RefusedError as refusal:
        code = refusal.code
        claim = await one.claim(wish("a", *names[:32]))
    assert code in (None, RefusalCode.TOO_MANY_SERVICES)
    assert claim.points[0] == names[0]
    assert await refusal_of(two, wish("b", names[0])) == RefusalCode.NAME_TAKEN


async def test_a_dead_process_leaves_names_to_its_clients(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    claim = await one.claim(wish("a", SHOP, None))
    await world.kill("one")
    assert await refusal_of(two, wish("b", SHOP)) == RefusalCode.NAME_TAKEN
    again = await two.claim(wish("a", SHOP, None))
    assert again.points == claim.points
    assert again.fence > claim.fence


async def test_a_claim_that_is_over_gives_back_no_name(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    old = await one.claim(wish("a", SHOP))
    freed = two.freed
    one.registry.release(old)
    await wait_for(lambda: two.freed > freed)
    new = await two.claim_soon(wish("b", SHOP))
    one.registry.release(old)
    two.registry.release(attrs.evolve(new, fence=new.fence - 1))
    assert await refusal_of(two, wish("c", SHOP)) == RefusalCode.NAME_TAKEN


async def test_a_group_shares_its_names(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")

    def member(identity: str, *places: int | str | None) -> Wish:
        return attrs.evolve(wish(identity, *places), group="web")

    claims: list[Claim] = [await one.claim(member(each, SHOP, None)) for each in "ab"]
    assert claims[0].points == claims[1].points
    assert await refusal_of(one, member("c", WIKI, None)) == RefusalCode.NAME_TAKEN
    assert await refusal_of(one, member("c", None, None)) == RefusalCode.NAME_TAKEN
    assert await refusal_of(one, member("c", SHOP, SHOP)) == RefusalCode.PORT_TAKEN
    assert await refusal_of(two, wish("x", SHOP)) == RefusalCode.NAME_TAKEN
    freed = two.freed
    one.registry.release(claims[0])
    assert await refusal_of(one, wish("x", SHOP)) == RefusalCode.NAME_TAKEN
    await wait_for(lambda: two.freed > freed)
    freed = two.freed
    one.registry.release(claims[1])
    await wait_for(lambda: two.freed > freed)
    assert (await two.claim_soon(wish("x", SHOP))).points == (SHOP,)


async def test_a_worker_forgets_what_was_at_the_points_that_it_gives_back() -> None:
    """Else whoever has the name next would find there what the one before has allowed."""
    async with remote_world() as world:
        pool = PortPool([VisitPort(number) for number in PORTS])
        config = ServerConfig(domain="example.org")
        leases = Leases(config, pool, registry=await world.process("one"))
        https = ServiceRequest(publish=Publish(kind=PublishKind.HTTPS, approve=True))
        lease = await leases.grant(
            LegacyQueuedClient(
                key=("user", "a"),
                client_name="",
                address=TCPAddress("192.0.2.7", 1),
                services=(service(SHOP), https),
                limits=Limits(),
                channel=None,  # type: ignore[arg-type] # nobody listens to it here
            )
        )
        assert lease is not None
        port = lease.points[1]
        assert set(pool.names) == {SHOP}
        assert port.restrictions is not None
        leases.release(lease, "it is over")
        assert not pool.names
        assert port.restrictions is None
