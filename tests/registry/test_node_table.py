"""Workers of a node, and another node, on a real Redis: who is sent where, and who is asked to give what up."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from tests.registry.redis_world import redis_world
from tests.registry.test_registry import PORTS, SLOTS, Process, RemoteWorld, wait_for, wish
from trionat.errors import RefusedError
from trionat.server.registry.claim import TakenError, Wish, group_key
from trionat.server.workers.node_table import NodeTable, WorkerOfNode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trionat.server.cluster.node import Node
    from trionat.server.registry.claim import Claim
    from trionat.server.visitors.ports import LeaseKey

KEY: LeaseKey = ("user", "a")
WEB: LeaseKey = group_key("user", "web")


@attrs.define(eq=False)
class Scene:
    """`one` and `two` are workers of `node`; `other` is another node."""

    world: RemoteWorld
    node: Node
    other: Process
    one: Process
    two: Process


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_scene() as scene:
        with trio.fail_after(30):
            yield scene


@asynccontextmanager
async def open_scene() -> AsyncIterator[Scene]:
    async with redis_world(PORTS, SLOTS) as cluster, trio.open_nursery() as nursery:
        node = await cluster.start("w1")  # as a worker might be called
        world = RemoteWorld(nursery)
        world.kind = WorkerOfNode
        world.table = NodeTable(SLOTS, node.pool, world.tell_room, node=node.registry)
        other = Process((await cluster.start("w2")).registry)
        other.registry.on_evict = other._note_evict
        one, two = await Process.start(world, "one"), await Process.start(world, "two")
        yield Scene(world, node, other, one, two)
        nursery.cancel_scope.cancel()


async def test_only_the_way_to_another_worker_is_a_route(scene: Scene) -> None:
    await scene.one.claim(wish("a"))
    holder = await scene.two.registry.holder(KEY)
    assert holder == "one"
    assert scene.two.registry.is_route(holder)
    await scene.other.claim(wish("b"))
    holder = await scene.two.registry.holder(("user", "b"))
    assert holder is not None
    assert not scene.two.registry.is_route(holder)
    with pytest.raises(TakenError) as caught:
        await scene.two.registry.claim(wish("b"))
    assert not scene.two.registry.is_route(caught.value.holder)


async def test_another_node_wants_what_a_worker_has(scene: Scene) -> None:
    claim = await scene.two.claim(wish("a"))
    await scene.other.registry.evict(KEY, "it has come to me")
    await wait_for(lambda: scene.two.evicted == [(KEY, False)])
    assert scene.one.evicted == []
    scene.two.registry.release(claim)
    assert (await scene.other.claim_soon(wish("a"))).ports == claim.ports
    # And back.
    await scene.one.registry.evict(KEY, "it has come to me")
    await wait_for(lambda: scene.other.evicted == [(KEY, False)])


async def test_another_node_wants_what_a_dead_worker_has_left(scene: Scene) -> None:
    claim = await scene.two.claim(wish("a"))
    await scene.world.kill("two")
    await scene.other.registry.evict(KEY, "it has come to me")
    assert (await scene.other.claim_soon(wish("a"))).ports == claim.ports


async def test_what_another_node_has_by_now_is_lost(scene: Scene) -> None:
    lost: list[LeaseKey] = []
    scene.one.registry.on_lost = lambda key, _: lost.append(key)
    await scene.one.claim(wish("a"))
    gone = await scene.two.claim(wish("b"))
    await scene.world.kill("two")
    for identity in ("a", "b"):
        scene.node.registry.lose(("user", identity), moved=False)
    await wait_for(lambda: lost == [KEY])
    assert scene.world.table.held_by("two") == ()
    assert scene.world.table.claim_of(gone.ports[0]) is None


async def test_what_has_moved_to_another_node_is_told_to_its_worker(scene: Scene) -> None:
    """It is not asked to give it up. What a worker has left that is not there is released, so that the parent accepts visitors there."""
    moved: list[LeaseKey] = []
    scene.one.registry.on_moved = moved.append
    claims = [await scene.one.claim(wish("a")), await scene.two.claim(wish("b"))]
    await scene.world.kill("two")
    await scene.node.drain()
    assert [(await scene.other.claim_soon(wish(each))).ports for each in "ab"] == [
        claim.ports for claim in claims
    ]
    await wait_for(lambda: moved == [KEY])
    table = scene.world.table
    await wait_for(lambda: table.held_by("two") == ())
    assert table.held_by("one") == (claims[0],)  # until it says so
    scene.one.registry.release(claims[0])
    await wait_for(lambda: table.held_by("one") == ())
    assert scene.one.evicted == []
    assert {entry.node for entry in scene.node.table.by_point.values()} == {"w2"}


async def test_a_worker_that_waits_hears_that_another_node_has_given_something_back(
    scene: Scene,
) -> None:
    claims: list[Claim] = [await scene.other.claim(wish(str(number))) for number in range(SLOTS)]
    await wait_for(lambda: scene.node.registry.free_slots == 0)
    assert await scene.one.registry.claim(wish("a")) is None
    freed = scene.one.freed
    scene.other.registry.release(claims[0])
    await wait_for(lambda: scene.one.freed > freed)
    assert (await scene.one.claim(wish("a"))).holder == "one"


async def test_without_redis_nobody_is_let_in_for_now(scene: Scene) -> None:
    held = await scene.one.claim(wish("a"))
    scene.node.registry.is_ready = False
    for ask in (
        lambda: scene.two.registry.claim(wish("b")),
        lambda: scene.two.registry.holder(("user", "b")),
        lambda: scene.two.registry.evict(("user", "b"), "it has come to me"),
    ):
        with pytest.raises(RefusedError, match="cannot agree with the others"):
            await ask()
    assert await scene.two.registry.holder(KEY) == "one"  # known here
    scene.one.registry.release(held)
    await wait_for(lambda: not scene.world.table.held_by("one"))


def member(identity: str, *ports: int) -> Wish:
    return attrs.evolve(wish(identity, *ports), group="web")


async def test_a_group_is_the_node_s_and_its_clients_are_a_worker_s(scene: Scene) -> None:
    """Redis has one claim of its ports, the table says which worker its clients are sent to, and other nodes have to leave it there."""
    claims = [await scene.one.claim(member(each)) for each in "ab"]
    assert len({claim.ports for claim in claims}) == 1
    assert {key for key in scene.node.table.by_key if scene.node.table.by_key[key].points} == {WEB}
    assert scene.node.registry.free_slots == SLOTS - 1
    holder = await scene.two.registry.holder(WEB)
    assert holder == "one"
    assert scene.two.registry.is_route(holder)
    assert await scene.two.registry.is_there(holder)
    with pytest.raises(TakenError) as caught:
        await scene.two.registry.claim(member("c"))
    assert scene.two.registry.is_route(caught.value.holder)
    with pytest.raises(TakenError):
        await scene.other.registry.claim(member("c"))
    with pytest.raises(RefusedError, match="the group web has 1 service"):
        await scene.one.registry.claim(member("c", 60001, 60002))
    claim = scene.world.table.claim_of(claims[0].ports[0])
    assert claim is not None
    assert claim.holder == "one"  # who gets a visitor of another node
    for each in claims:
        scene.one.registry.release(each)
    await wait_for(lambda: not scene.node.registry.held)
    assert (await scene.other.claim_soon(member("c"))).ports == claims[0].ports
    # And the other way round.
    holder = await scene.two.registry.holder(WEB)
    assert holder is not None
    assert not scene.two.registry.is_route(holder)
    assert not await scene.two.registry.is_there(holder)  # nobody listens at NodeAddr here
    with pytest.raises(TakenError):
        await scene.two.registry.claim(member("a"))


async def test_two_workers_claim_a_group_at_the_same_moment(scene: Scene) -> None:
    found: list[Claim] = []

    async def claim(process: Process, identity: str) -> None:
        with suppress(TakenError):
            if (granted := await process.registry.claim(member(identity))) is not None:
                found.append(granted)

    for _ in range(5):
        async with trio.open_nursery() as nursery:
            for number, process in enumerate((scene.one, scene.two)):
                nursery.start_soon(claim, process, str(number))
        assert len(found) == 1
        process = scene.one if found[0].holder == "one" else scene.two
        process.registry.release(found.pop())
        await wait_for(lambda: not scene.node.registry.held)


async def test_another_node_wants_a_group_that_a_dead_worker_has_left(scene: Scene) -> None:
    """It stays at its node, where the next worker has its clients back; one of them that comes to the other worker takes all of it along."""
    claims = [await scene.two.claim(member(each)) for each in "ab"]
    await scene.world.kill("two")
    with pytest.raises(TakenError):
        await scene.other.registry.claim(member("c"))
    assert len(scene.world.table.held_by("two")) == 2
    taken = await scene.one.claim_soon(member("a"))
    assert taken.ports == claims[0].ports
    assert scene.world.table.held_by("two") == ()
    assert (await scene.one.claim(member("b"))).ports == taken.ports
    assert set(scene.node.registry.held) == {WEB, KEY, ("user", "b")}


async def test_a_group_that_another_node_has_by_now_is_lost_once(scene: Scene) -> None:
    lost: list[LeaseKey] = []
    scene.one.registry.on_lost = lambda key, _: lost.append(key)
    claims = [await scene.one.claim(member(each)) for each in "ab"]
    scene.node.registry.lose(WEB, moved=True)
    await wait_for(lambda: lost == [WEB])
    for each in claims:
        scene.one.registry.release(each)
    await wait_for(lambda: not scene.node.registry.held)
    # Where its worker is not there any more, nobody is asked.
    for identity in "ab":
        await scene.two.claim_soon(member(identity))
    await scene.world.kill("two")
    scene.node.registry.lose(WEB, moved=True)
    assert scene.world.table.held_by("two") == ()
    assert not scene.node.registry.held
