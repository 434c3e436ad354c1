"""Groups of nodes on a real Redis: their ports are a claim of their own, which is told, lost and taken along as any client's."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import pytest
import trio

from tests.cluster.test_node import cut, in_thread, wait_for, world
from tests.cluster.test_node import wish as any_wish
from trionat.errors import RefusedError
from trionat.protocol.messages import RefusalCode
from trionat.server.registry.claim import Claim, TakenError, Wish, group_key

if TYPE_CHECKING:
    from tests.registry.redis_world import RedisWorld
    from trionat.server.cluster.node import Node
    from trionat.server.visitors.ports import LeaseKey

__all__ = ["world"]

pytestmark = pytest.mark.limit(40)

WEB: Final = group_key("user", "web")


def wish(identity: str, *ports: int) -> Wish:
    return attrs.evolve(any_wish(identity, *ports), group="web")


async def claim(node: Node, identity: str, *ports: int) -> Claim:
    """Claim as a client in the queue does, which is told when it is worth trying again."""
    while True:
        try:
            if (found := await node.registry.claim(wish(identity, *ports))) is not None:
                return found
        except RefusedError as refusal:
            if refusal.code != RefusalCode.STORE_UNAVAILABLE:
                raise
        await trio.sleep(0.05)


async def test_a_node_that_is_given_up_loses_its_group_and_its_clients_come_again(
    world: RedisWorld,
) -> None:
    """They are not evicted, which would be the end of them: none of them is at another node, but their group is."""
    one, two = await world.start("one"), await world.start("two")
    evicted: list[LeaseKey] = []
    lost: list[LeaseKey] = []
    one.registry.on_evict = lambda key, reason, **_: evicted.append(key)
    one.registry.on_lost = lambda key, reason: lost.append(key)
    claims = [await claim(one, each, 60001) for each in "ab"]
    one.link.config = attrs.evolve(one.config, redis="redis://127.0.0.1:1")
    cut(one)
    await in_thread(partial(world.server.age, "one"))
    await wait_for(lambda: "one" not in two.table.nodes)
    taken = await claim(two, "c", 60001)
    one.link.config = one.config
    await wait_for(lambda: one.away is None)
    await wait_for(lambda: lost == [WEB])
    assert not evicted
    assert await one.registry.claim(wish("d")) is None  # as long as it is on its way out
    for each in claims:
        one.registry.release(each)
    assert not one.registry.held
    with pytest.raises(TakenError):
        await one.registry.claim(wish("a"))
    await wait_for(lambda: set(two.table.by_key) == {WEB, ("user", "c")})
    assert two.table.by_point[60001].node == "two"
    await claim(two, "a")
    assert taken.fence > max(each.fence for each in claims)


async def test_redis_is_emptied_while_it_is_up(world: RedisWorld) -> None:
    one, two = await world.start("one"), await world.start("two")
    first = await claim(one, "a", 60001)
    await claim(one, "b")
    await in_thread(partial(world.server.ask, "flushall"))
    await wait_for(lambda: one.away is not None or two.away is not None, within=5)
    await wait_for(lambda: one.away is None and two.away is None)
    third = await claim(one, "c")
    assert third.ports == first.ports
    assert third.fence > first.fence
    with pytest.raises(TakenError):
        await two.registry.claim(wish("d"))
    late = await world.start("late")
    assert set(late.table.by_key) == {WEB, *(("user", each) for each in "abc")}
    assert late.table.by_point[60001].key == WEB
    assert late.table.slots_taken == 1


async def test_a_claim_that_came_too_late_is_given_back_with_its_group(world: RedisWorld) -> None:
    one, two = await world.start("one"), await world.start("two")
    with trio.move_on_after(0) as scope:
        await one.registry.claim(wish("a", 60001))
    assert scope.cancelled_caught
    assert not one.registry.held
    await wait_for(lambda: not two.table.by_key)
    await claim(one, "b", 60001)
    with trio.move_on_after(0) as scope:
        await one.registry.claim(wish("c"))
    assert scope.cancelled_caught
    await wait_for(lambda: set(two.table.by_key) == {WEB, ("user", "b")})
    assert (await claim(one, "d")).ports == (60001,)


async def test_one_that_joins_while_another_node_takes_the_group_is_let_in_later(
    world: RedisWorld,
) -> None:
    one, two = await world.start("one"), await world.start("two")
    first = await claim(one, "a", 60001)
    lost: list[LeaseKey] = []
    one.registry.on_lost = lambda key, _: lost.append(key)
    found: list[Claim | None] = []
    asked = trio.Event()

    async def join() -> None:
        asked.set()  # it goes on from here until it waits for the answer
        found.append(await one.registry.claim(wish("b", 60001)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(join)
        await asked.wait()
        one.registry.lose(WEB, moved=True)
    assert lost == [WEB]
    assert found == [None]
    assert ("user", "b") not in one.registry.held
    one.registry.release(first)
    await wait_for(lambda: not two.table.by_key)


async def test_one_that_joins_while_the_last_one_leaves_is_let_in_later(world: RedisWorld) -> None:
    one, two = await world.start("one"), await world.start("two")
    first = await claim(one, "a", 60001)
    found: list[Claim | None] = []
    asked = trio.Event()

    async def join() -> None:
        asked.set()  # it goes on from here until it waits for the answer
        found.append(await one.registry.claim(wish("b", 60001)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(join)
        await asked.wait()
        one.registry.release(first)
    assert found == [None]
    assert not one.registry.held
    await wait_for(lambda: not two.table.by_key)
    await claim(one, "b", 60001)


async def test_a_process_that_is_gone_is_told_apart_from_one_that_is_silent(
    world: RedisWorld,
) -> None:
    one, two = await world.start("one"), await world.start("two")
    await claim(one, "a")
    assert await two.registry.holder(WEB) == "one"
    assert not await two.registry.is_there("one")  # nobody listens at NodeAddr here
    assert not await two.registry.is_there("nobody")
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        entry = two.table.nodes["one"]
        two.table.nodes["one"] = attrs.evolve(entry, address=attrs.evolve(entry.address, port=port))
        assert await two.registry.is_there("one")


def has_claims(node: Node, number: int) -> bool:
    return len(node.table.by_key) == number


def is_at(node: Node, holder: str) -> bool:
    """Tell whether a node knows that the group is at another one."""
    return node.table.by_point[60001].node == holder


async def test_a_drained_node_hands_over_its_group_with_the_first_that_goes(
    world: RedisWorld,
) -> None:
    """In one step, also where no slot is free; the others follow to that node, and to no other one."""
    one, two, three = [await world.start(each) for each in ("one", "two", "three")]
    evicted: list[LeaseKey] = []
    lost: list[LeaseKey] = []
    moved: list[LeaseKey] = []
    one.registry.on_evict = lambda key, reason, **_: evicted.append(key)
    one.registry.on_lost = lambda key, reason: lost.append(key)

    def hand_over(key: LeaseKey) -> None:
        assert one.table.by_point[60001].node == "two"  # new visitors are passed on from now on
        moved.append(key)
        if key != WEB:
            one.registry.release(one.registry.held[key].claim)

    one.registry.on_moved = hand_over
    claims = [await claim(one, each, 60001) for each in "abc"]
    await wait_for(lambda: len(two.table.by_key) == len(three.table.by_key) == 4)
    await one.drain()
    assert await two.registry.holder(WEB) is None
    two.registry.slots = three.registry.slots = 1  # it is taken
    assert await two.registry.claim(any_wish("x")) is None
    taken = await two.registry.claim(wish("a", 60001))
    assert taken is not None
    assert taken.fence > max(each.fence for each in claims)
    with pytest.raises(TakenError):
        await three.registry.claim(wish("b"))
    assert await three.registry.holder(WEB) == "two"
    await wait_for(lambda: moved == [WEB, ("user", "a")])
    # One that is lost at the old node, and comes back there, has its place there still; what is told anew changes nothing.
    cut(one)
    await wait_for(lambda: one.away is not None)
    await wait_for(lambda: one.away is None)
    assert two.table.by_point[60001].node == "two"
    assert (await claim(two, "b")).ports == taken.ports
    assert (await claim(two, "new")).ports == taken.ports
    await wait_for(lambda: moved == [WEB, ("user", "a"), ("user", "b")])
    one.registry.release(claims[2])
    assert not one.registry.held
    assert not evicted
    assert not lost
    for node in (one, two, three):
        await wait_for(partial(has_claims, node, 4))
        assert node.table.by_point[60001].node == "two"
        assert node.table.slots_taken == 1


async def test_two_nodes_take_a_group_of_a_drained_one_at_the_same_moment(
    world: RedisWorld,
) -> None:
    one, two, three = [await world.start(each) for each in ("one", "two", "three")]
    first = await claim(one, "a", 60001)
    await claim(one, "b", 60001)
    await wait_for(lambda: len(two.table.by_key) == len(three.table.by_key) == 3)
    await one.drain()
    found: list[Claim | None] = []

    async def take(node: Node, identity: str) -> None:
        with suppress(TakenError):
            found.append(await node.registry.claim(wish(identity)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, two, "a")
        nursery.start_soon(take, three, "b")
    [taken] = found
    assert taken is not None
    assert taken.ports == first.ports
    for node in (one, two, three):
        await wait_for(partial(is_at, node, taken.holder))
