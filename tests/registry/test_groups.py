"""What every registry promises of groups: claims of a user that share their ports and a slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import pytest
import trio

from tests.registry.test_registry import (
    PORTS,
    SLOTS,
    Process,
    RemoteWorld,
    World,
    remote_world,
    wait_for,
    world,
)
from tests.registry.test_registry import wish as any_wish
from trionat.errors import RefusedError
from trionat.protocol.messages import RefusalCode
from trionat.server.accounts.scope import Scope
from trionat.server.registry.claim import TakenError, group_key
from trionat.server.workers.remote import RemoteRegistry
from trionat.store.base import Limits

if TYPE_CHECKING:
    from trionat.server.registry.claim import Claim, Wish
    from trionat.server.visitors.ports import LeaseKey

__all__ = ["world"]

WEB: Final = group_key("user", "web")


def wish(identity: str, *ports: int | None, user: str = "user", **limits: object) -> Wish:
    return attrs.evolve(any_wish(identity, *ports, user=user, **limits), group="web")


async def test_they_share_ports_and_a_slot(world: World) -> None:
    one = await Process.start(world, "one")
    claims = [await one.claim(wish(each, None, 60003)) for each in "abcd"]
    assert {claim.ports for claim in claims} == {(60001, 60003)}
    assert len({claim.fence for claim in claims}) == 4
    assert one.registry.free_slots == SLOTS - 1
    others = [(await one.claim(any_wish(each))).ports for each in "xy"]
    assert sorted(others) == [(60002,), (60004,)]
    assert one.registry.free_slots == 0
    assert await one.registry.claim(any_wish("z")) is None
    assert (await one.claim(wish("e", None, None))).ports == (60001, 60003)  # with no slot left


async def test_the_last_one_gives_the_ports_back(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    claims = [await one.claim(wish(each)) for each in "abc"]
    for claim in claims[:2]:
        one.registry.release(claim)
        one.registry.release(claim)  # nothing happens
        await wait_for(lambda: one.registry.free_slots == SLOTS - 1)
        with pytest.raises(RefusedError, match="60001 is in use"):
            await two.claim(any_wish("x", 60001))
    one.registry.release(claims[2])
    await wait_for(lambda: two.registry.free_slots == SLOTS)
    assert (await two.claim(any_wish("x", 60001))).ports == (60001,)
    await wait_for(lambda: one.registry.free_slots == SLOTS - 1)


async def test_it_is_at_one_process(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    first = await one.claim(wish("a"))
    assert await two.registry.holder(WEB) == "one"
    assert await one.registry.holder(WEB) is None
    with pytest.raises(TakenError) as taken:
        await two.claim(wish("b"))
    assert taken.value.holder == "one"
    one.registry.release(first)
    assert (await two.claim_soon(wish("b"))).ports == first.ports
    assert await one.registry.holder(WEB) == "two"


async def test_a_group_is_of_its_user(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    first = await one.claim(wish("a"))
    other = await two.claim(wish("a", user="other"))
    assert other.ports != first.ports
    assert await two.registry.holder(group_key("other", "web")) is None


async def test_a_group_of_a_narrowed_ticket_is_another_one(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    first = await one.claim(wish("a"))
    name = Scope.of(Limits(), ("only ports=60001-60004",)).key_of("web")
    narrow = await two.claim(attrs.evolve(wish("b"), group=name))
    assert narrow.ports != first.ports
    assert await one.registry.holder(group_key("user", name)) == "two"
    assert await two.registry.holder(WEB) == "one"


async def test_it_is_remembered_as_a_client_is(world: World) -> None:
    one = await Process.start(world, "one")
    first = await one.claim(wish("a"))
    one.registry.release(first)
    assert (await one.claim_soon(any_wish("a"))).ports != first.ports
    assert (await one.claim(wish("b"))).ports == first.ports


@pytest.mark.parametrize(
    ("services", "reason"),
    [
        ((None, None), "the group web has 1 service, and this client 2"),
        ((60002,), "the group web is at visit port 60001, and not at 60002"),
    ],
)
async def test_who_does_not_fit_gets_nothing(
    world: World, services: tuple[int | None, ...], reason: str
) -> None:
    one = await Process.start(world, "one")
    await one.claim(wish("a"))
    with pytest.raises(RefusedError) as refused:
        await one.claim(wish("b", *services))
    assert (refused.value.code, refused.value.text) == (RefusalCode.PORT_TAKEN, reason)
    await one.claim(wish("b"))


async def test_ports_that_the_user_may_not_have_any_more(world: World) -> None:
    one = await Process.start(world, "one")
    await one.claim(wish("a"))
    with pytest.raises(RefusedError, match="at 60001, which this account may not have any more"):
        await one.claim(wish("b", visit_ports=(60002,)))


async def test_each_client_is_one_of_the_users_sessions(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    first, _ = [await one.claim(wish(each, sessions=3)) for each in "ab"]
    third = await two.claim(any_wish("x", sessions=3))
    for process, fourth in ((one, wish("c", sessions=3)), (two, any_wish("y", sessions=3))):
        with pytest.raises(RefusedError, match="all the sessions") as refused:
            await process.claim(fourth)
        assert refused.value.code == RefusalCode.TOO_MANY_SESSIONS
    two.registry.release(third)
    await wait_for(lambda: _is_let_in(one, wish("c", sessions=3)))
    one.registry.occupy(first, occupied=False)
    await wait_for(lambda: _is_asked_to_make_room(one, two))


async def _is_let_in(process: Process, last: Wish) -> bool:
    try:
        return await process.registry.claim(last) is not None
    except RefusedError:
        return False


async def _is_asked_to_make_room(one: Process, two: Process) -> bool:
    """Claim what takes the place of a client that is lost; only its own claim is to be given up for it."""
    try:
        assert await two.registry.claim(any_wish("y", sessions=3)) is None
    except RefusedError:
        return False  # it has not been told yet
    await wait_for(lambda: bool(one.evicted))
    assert set(one.evicted) == {(("user", "a"), True)}
    return True


async def test_one_that_comes_to_another_process_is_found_where_its_group_is(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    for each in "ab":
        await one.claim(wish(each))
    assert await two.registry.holder(("user", "b")) == "one"
    await two.registry.evict(("user", "b"), "it has come to another one")
    await wait_for(lambda: one.evicted == [(("user", "b"), False)])


async def test_a_process_that_died_leaves_the_ports_to_the_group(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    claims = [await one.claim(wish(each, 60002)) for each in "abc"]
    await world.kill("one")
    with pytest.raises(RefusedError, match="60002 is in use"):
        await two.claim(any_wish("x", 60002))
    again = [await two.claim_soon(wish(each)) for each in "bdac"]
    assert {claim.ports for claim in again} == {(60002,)}
    assert min(claim.fence for claim in again) > max(claim.fence for claim in claims)
    assert two.registry.free_slots == SLOTS - 1
    for claim in again:
        two.registry.release(claim)
    await wait_for(lambda: two.registry.free_slots == SLOTS)
    assert (await two.claim(any_wish("x", 60002))).ports == (60002,)


async def test_a_client_that_leaves_its_group_and_comes_without(world: World) -> None:
    one = await Process.start(world, "one")
    first, _ = [await one.claim(wish(each)) for each in "ab"]
    one.registry.release(first)
    alone = await one.claim_soon(any_wish("a"))
    assert alone.ports != first.ports
    assert set(PORTS) > {*alone.ports, *first.ports}


async def test_a_worker_that_lets_go_while_the_next_client_joins_gets_the_ports_anew() -> None:
    """The release is on its way when the parent grants the next claim, so the worker has closed the ports that it is to have."""
    async with remote_world() as world:
        assert isinstance(world, RemoteWorld)
        one = await Process.start(world, "one")
        lent: list[Claim] = []
        world.servers["one"].on_granted = lent.append
        first = await one.claim(wish("a"))
        second = await one.claim(wish("b"))
        assert lent == [first, second]
        one.registry.release(first)
        await wait_for(lambda: lent == [first, second, second])
        one.registry.release(second)
        await wait_for(lambda: one.registry.free_slots == SLOTS)
        assert len(lent) == 3


async def test_what_comes_too_late_for_a_group_is_begun_and_ended() -> None:
    """A worker counts the claims of a port, so each that ends has to have begun."""
    async with remote_world() as world:
        one = await Process.start(world, "one")
        assert isinstance(one.registry, RemoteRegistry)
        held: list[LeaseKey] = []
        one.registry.on_claimed = lambda claim: held.append(claim.key)
        one.registry.on_released = lambda claim: held.remove(claim.key)
        first = await one.claim(wish("a"))
        with trio.move_on_after(0) as scope:
            await one.claim(wish("b"))
        assert scope.cancelled_caught
        third = await one.claim(wish("c"))
        assert held == [first.key, third.key]
