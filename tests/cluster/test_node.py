"""Nodes on a real Redis: what becomes of them and of their claims when it, or one of them, is away."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from tests.events.listening import reading
from tests.registry.redis_world import SEAL, RedisWorld, identity, redis_world
from trionat.address import TCPAddress
from trionat.errors import RefusedError, RegistryAwayError
from trionat.protocol.client_hello import ROUTE
from trionat.protocol.messages import RefusalCode, ServiceRequest
from trionat.server.cluster.handover import Handover
from trionat.server.cluster.node import route_of
from trionat.server.cluster.scripts import BEAT_ONCE, FIND, NODES
from trionat.server.cluster.seal import Seal
from trionat.server.registry.claim import Claim, TakenError, Wish
from trionat.store.base import Limits

if TYPE_CHECKING:
    import logging
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from trionat.server.cluster.node import Node
    from trionat.server.visitors.ports import LeaseKey

pytestmark = pytest.mark.limit(40)

PORTS = (60001, 60002, 60003)


@pytest.fixture
async def world() -> AsyncIterator[RedisWorld]:
    async with redis_world(PORTS, len(PORTS)) as world:
        yield world


def wish(identity: str = "a", *ports: int) -> Wish:
    services = tuple(ServiceRequest(visit_port=port) for port in ports or (None,))
    return Wish(key=("user", identity), services=services, limits=Limits())


async def claim(node: Node, identity: str = "a", *ports: int) -> Claim:
    """Claim as a client in the queue does, which is told when it is worth trying again."""
    while True:
        try:
            if (found := await node.registry.claim(wish(identity, *ports))) is not None:
                return found
        except RefusedError as refusal:
            if refusal.code != RefusalCode.STORE_UNAVAILABLE:
                raise
        await trio.sleep(0.05)


async def wait_for(condition: Callable[[], bool], within: float = 10) -> float:
    """Wait until it is true; return for how long."""
    began = trio.current_time()
    with trio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - it is of the nodes
            await trio.sleep(0.02)
    return trio.current_time() - began


@pytest.mark.parametrize(
    ("name", "route"),
    [("n1", "n1"), ("Node-1", "node1"), ("eu_2.example", "eu2.example"), ("x" * 64, "x" * 63)],
)
def test_route_of_a_name(name: str, route: str) -> None:
    assert route_of(name) == route
    assert ROUTE.fullmatch(route)


def listen(node: Node) -> list[LeaseKey]:
    """Return the keys that the node is asked to give up; it does."""
    evicted: list[LeaseKey] = []

    def give_up(key: LeaseKey, reason: str, *, vacant_only: bool) -> None:
        assert reason
        evicted.append(key)
        node.registry.release(node.registry.held[key].claim)

    node.registry.on_evict = give_up
    return evicted


def cut(node: Node) -> None:
    """End the connection to Redis; the node makes another one."""
    assert node.link._scope is not None
    node.link._scope.cancel()


async def in_thread(function: Callable[[], object]) -> None:
    await trio.to_thread.run_sync(function)


async def test_every_node_knows_who_holds_what(world: RedisWorld) -> None:
    one, two = await world.start("one"), await world.start("two")
    held = await claim(one, "a", 60002)
    await wait_for(lambda: 60002 in two.table.by_point)
    assert two.table.by_point[60002].node == "one"
    assert two.table.by_point[60002].fence == held.fence
    late = await world.start("late")  # by its snapshot
    assert late.table.by_point[60002].node == "one"
    assert set(late.table.nodes) == {"one", "two", "late"}
    one.registry.release(held)
    await wait_for(lambda: not two.table.by_point and not late.table.by_point)


async def test_a_drained_node_hands_over_what_it_holds(world: RedisWorld) -> None:
    """In one step, also where no slot and no session is free, and to nobody else."""
    one, two = await world.start("one"), await world.start("two")
    evicted = listen(one)
    moved: list[LeaseKey] = []

    def hand_over(key: LeaseKey) -> None:
        assert one.table.by_key[key].node == "two"  # new visitors are passed on from now on
        moved.append(key)
        one.registry.release(one.registry.held[key].claim)

    one.registry.on_moved = hand_over
    mine = await claim(one, "a", 60001, 60002)
    await claim(one, "b", 60003)
    await wait_for(lambda: len(two.table.by_point) == 3)
    assert await two.registry.holder(("user", "a")) == "one"
    with pytest.raises(TakenError):
        await two.registry.claim(wish("a"))
    await one.drain()
    assert await two.registry.holder(("user", "a")) is None
    two.registry.slots = 2  # all of them are taken
    assert await two.registry.claim(wish("c")) is None
    alone = attrs.evolve(wish("a", 60001, 60003), limits=Limits(sessions=2))
    with pytest.raises(RefusedError, match="visit port 60003 is in use"):
        await two.registry.claim(alone)
    assert one.registry.held.keys() == {
        ("user", "a"),
        ("user", "b"),
    }  # as if nothing had been asked
    assert await late_holder(world, 60001) == "one"
    taken = await two.registry.claim(attrs.evolve(alone, services=wish("a", 60001).services))
    assert taken is not None
    assert taken.fence > mine.fence
    await wait_for(lambda: moved == [("user", "a")])
    assert not evicted
    for node in (one, two):
        assert node.table.by_point[60001].node == "two"
        assert 60002 not in node.table.by_point
    assert await in_redis(world, "hexists", "{trionat}:points", "60002") == "0"
    # What is told anew to a Redis that is empty is offered as well, and what has moved does not come back.
    await in_thread(partial(world.server.ask, "flushall"))
    await wait_for(lambda: one.away is not None or two.away is not None, within=5)
    await wait_for(lambda: one.away is None and two.away is None)
    await claim(two, "b", 60003)
    assert two.table.by_point[60001].fence == taken.fence
    await wait_for(lambda: moved == [("user", "a"), ("user", "b")])
    assert one.epoch in await in_redis(world, "smembers", "{trionat}:drained")
    await one.leave()
    assert one.epoch not in await in_redis(world, "smembers", "{trionat}:drained")


async def in_redis(world: RedisWorld, *words: str) -> str:
    return (await trio.to_thread.run_sync(partial(world.server.ask, *words))).strip()


async def late_holder(world: RedisWorld, port: int) -> str:
    return (await world.start(f"late{port}")).table.by_point[port].node


async def test_where_clients_of_a_node_may_go(world: RedisWorld) -> None:
    names = ("one", "two", "three", "four")
    nodes = {name: world.make(name) for name in names}
    for name, node in nodes.items():
        node.public = TCPAddress(f"{name}.example" if name != "four" else "one.example", 8007)
        world.nursery.start_soon(node.run)
        await node.wait_joined()
    one = nodes["one"]
    await nodes["three"].drain()

    async def found() -> set[str]:
        return {address.host for address in await one.find_others()}

    with trio.fail_after(10):
        while await found() != {"two.example", "one.example"}:  # noqa: ASYNC110 - figures are as old as a beat
            await trio.sleep(0.1)


async def test_what_a_drain_waits_for(world: RedisWorld) -> None:
    """Redis first, then another node; what is told grows and shrinks with the nodes that are there."""
    one, told = world.make("one"), list[tuple[str, ...]]()
    handover = Handover(one, tell=lambda others: told.append(tuple(map(str, others))))
    world.nursery.start_soon(handover.run)
    handover.begin()
    assert "Redis, which has to tell the other nodes" in str(handover.waits_for)
    await trio.sleep(0.1)
    assert len(told) == 0
    world.nursery.start_soon(one.run)
    await wait_for(lambda: told == [()])
    assert one.epoch in await in_redis(world, "smembers", "{trionat}:drained")
    assert str(handover.waits_for) == "another node that is there, and not drained"
    two = world.make("two")
    two.public = TCPAddress("two.example", 8007)
    world.nursery.start_soon(two.run)
    await wait_for(lambda: told[-1] == ("two.example:8007",), within=8)
    assert handover.waits_for is None
    handover.configured = (TCPAddress("far.example", 8007),)
    await two.drain()
    await wait_for(lambda: told[-1] == ("far.example:8007",), within=8)


async def test_redis_away_and_back_empty(world: RedisWorld) -> None:
    one, two = await world.start("one"), await world.start("two")
    evicted = listen(one)
    mine, theirs = await claim(one, "a", 60001), await claim(two, "b", 60002)
    await wait_for(lambda: len(one.table.by_point) == 2)
    await in_thread(world.server.kill)
    await wait_for(lambda: one.away is not None and two.away is not None, within=3)
    assert one.table.by_point[60002].node == "two"  # visitors go on
    with pytest.raises(RefusedError) as caught:
        await one.registry.claim(wish("c"))
    assert caught.value.code == RefusalCode.STORE_UNAVAILABLE
    two.registry.release(theirs)  # its client has left meanwhile
    await in_thread(world.server.start)
    began = trio.current_time()
    new = await claim(two, "c", 60003)
    assert trio.current_time() - began >= 2.4  # nobody claims before all have told what they hold
    assert new.fence > max(mine.fence, theirs.fence)
    assert one.registry.held.keys() == {("user", "a")}
    assert not evicted
    await wait_for(lambda: set(two.table.by_point) == set(one.table.by_point) == {60001, 60003})
    assert two.table.by_point[60001].fence == mine.fence


async def test_redis_is_emptied_while_it_is_up(world: RedisWorld) -> None:
    one, two = await world.start("one"), await world.start("two")
    held = await claim(one, "a", 60001)
    await in_thread(partial(world.server.ask, "flushall"))
    await wait_for(lambda: one.away is not None or two.away is not None, within=5)
    await wait_for(lambda: one.away is None and two.away is None)
    with pytest.raises(RefusedError, match="visit port 60001 is in use"):
        await claim(two, "b", 60001)
    assert (await claim(two, "b", 60002)).fence > held.fence
    assert two.table.by_point[60001].fence == held.fence
    late = await world.start("late")  # the identity is there again
    assert set(late.table.by_point) == {60001, 60002}


async def test_redis_frozen_is_noticed(world: RedisWorld) -> None:
    one = await world.start("one")
    held = await claim(one)
    await in_thread(world.server.pause)
    try:
        assert await wait_for(lambda: one.away is not None, within=6) < 5
        with pytest.raises(RefusedError):
            await one.registry.claim(wish("b"))
        await trio.sleep(3)
    finally:
        world.server.resume()
    await wait_for(lambda: one.away is None, within=6)
    assert [each.claim for each in one.registry.held.values()] == [held]
    assert (await claim(one, "b")).fence > held.fence


async def test_a_node_that_dies_and_what_it_held(world: RedisWorld) -> None:
    one, two = await world.start("one"), await world.start("two")
    held = await claim(one, "a", 60001)
    await wait_for(lambda: 60001 in two.table.by_point)
    world.nodes["one"][1].cancel()
    began = trio.current_time()
    with pytest.raises(RefusedError, match="visit port 60001 is in use"):
        await two.registry.claim(wish("b", 60001))
    await wait_for(lambda: "one" not in two.table.nodes, within=10)
    assert 3.5 < trio.current_time() - began < 8.5
    with pytest.raises(RefusedError, match="visit port 60001 is in use"):  # reserved for its client
        await two.registry.claim(wish("b", 60001))
    assert (await claim(two, "a", 60001)).fence > held.fence


async def test_one_node_alone_tells_of_those_that_come_and_go(world: RedisWorld) -> None:
    """The first by name of those that are there otherwise."""
    nodes = {name: await world.start(name) for name in ("b", "c")}
    with ExitStack() as readings:
        readers = {
            name: readings.enter_context(reading(node.events)) for name, node in nodes.items()
        }
        late = await world.start("a")
        await wait_for(lambda: all("a" in node.table.nodes for node in nodes.values()))
        await late.leave()
        await wait_for(lambda: not any("a" in node.table.nodes for node in nodes.values()))
        events = await readers["b"].take(10)
        assert [(event.type, event.data["node"]) for event in events] == [
            ("node.up", "a"),
            ("node.gone", "a"),
        ]
        with trio.move_on_after(0.1) as scope:
            await readers["c"].take(10)
        assert scope.cancelled_caught


async def test_a_process_that_is_gone_is_noticed_sooner(world: RedisWorld) -> None:
    """Its machine says that nobody listens at its address, and one of its clients has come to another node."""
    one, two = await world.start("one"), await world.start("two")
    held = await claim(one, "a", 60001)
    await two.registry.evict(held.key, "its client has come")  # beats: nobody doubts
    await trio.sleep(0.2)
    assert "one" in two.table.nodes
    world.nodes["one"][1].cancel()
    began = trio.current_time()
    while "one" in two.table.nodes:
        await two.registry.evict(held.key, "its client has come")
        await trio.sleep(0.1)
    assert 0.8 < trio.current_time() - began < 4
    assert (await claim(two, "a", 60001)).fence > held.fence


async def test_a_client_takes_its_ports_along(world: RedisWorld) -> None:
    """Even where its new node hears of it only afterwards that the old one has given them up."""
    one, two = await world.start("one"), await world.start("two")
    held = await claim(one, "a", 60002)
    await wait_for(lambda: 60002 in two.table.by_point)
    two.link.on_news = lambda _: None
    one.registry.release(held)
    await wait_for(lambda: 60002 not in one.table.by_point)
    await trio.sleep(0.1)
    assert 60002 in two.table.by_point
    assert (await claim(two, "a")).ports == (60002,)


async def test_split_brain(world: RedisWorld) -> None:
    """A node that was given up while it could not be heard comes back: what others have by now is theirs."""
    one, two = await world.start("one"), await world.start("two")
    evicted = listen(one)
    lost, kept = await claim(one, "a", 60001), await claim(one, "b", 60002)
    one.link.config = attrs.evolve(one.config, redis="redis://127.0.0.1:1")
    cut(one)
    await in_thread(partial(world.server.age, "one"))
    await wait_for(lambda: "one" not in two.table.nodes)
    taken = await claim(two, "a", 60001)
    assert one.registry.held.keys() == {("user", "a"), ("user", "b")}
    one.link.config = one.config
    await wait_for(lambda: one.away is None)
    await wait_for(lambda: evicted == [("user", "a")])
    assert [each.claim for each in one.registry.held.values()] == [kept]
    await wait_for(lambda: two.table.by_point.get(60002) is not None)
    assert two.table.by_point[60001].fence == taken.fence > lost.fence


async def test_a_claim_whose_answer_was_lost_is_given_back(world: RedisWorld) -> None:
    one, two = await world.start("one"), await world.start("two")
    await claim(one, "a", 60001)
    del one.registry.held["user", "a"]  # as if the answer had never come
    cut(one)
    await wait_for(lambda: one.away is not None)
    await wait_for(lambda: one.away is None)
    await claim(two, "b", 60001)


async def test_missed_news_are_noticed(world: RedisWorld) -> None:
    one, two = await world.start("one"), await world.start("two")
    await in_thread(partial(world.server.ask, "incr", "{trionat}:seq"))
    await claim(one, "a", 60001)
    # At once: by the numbers of its beats, it would find out after two of them.
    await wait_for(lambda: two.away is None and 60001 in two.table.by_point, within=3)


async def test_another_node_of_the_same_name(world: RedisWorld) -> None:
    await world.start("one")
    rival = attrs.evolve(world.make("one"), member="f" * 32)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rival.run)
        await wait_for(lambda: "another node is called one" in (rival.away or ""))
        nursery.cancel_scope.cancel()


async def test_a_name_that_a_proxy_cannot_tell_from_another(
    world: RedisWorld, caplog: pytest.LogCaptureFixture
) -> None:
    await world.start("n-1")
    rival = world.make("N1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rival.run)
        await wait_for(lambda: "the names N1 and n-1 are the same to a proxy (n1)" in caplog.text)
        nursery.cancel_scope.cancel()
    one = world.nodes["n-1"][0]
    assert set(one.table.nodes) == {"n-1"}
    assert await claim(one) is not None


async def test_who_comes_and_who_goes_is_told(
    world: RedisWorld, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await world.start("one")
    two = await world.start("two")
    await wait_for(lambda: "a node of the cluster has come" in caplog.text)
    await two.leave()
    await wait_for(lambda: "a node of the cluster is gone" in caplog.text)


async def test_the_same_node_started_anew_takes_over_at_once(world: RedisWorld) -> None:
    one, two = await world.start("one"), await world.start("two")
    held = await claim(one, "a", 60001)
    world.nodes["one"][1].cancel()
    again = await world.start("one")
    assert (await claim(again, "a", 60001)).fence > held.fence
    await wait_for(lambda: two.table.nodes["one"].epoch == again.epoch)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seal": Seal(bytes(32))}, "it has another cluster's data"),
        (
            {"identity": attrs.evolve(identity(), ticket_key=bytes([1] * 32))},
            "are not those of this node",
        ),
    ],
    ids=["another key", "another identity"],
)
async def test_a_foreign_node(world: RedisWorld, change: dict[str, object], reason: str) -> None:
    one = await world.start("one")
    foreign: Node = attrs.evolve(world.make("foreign"), **change)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(foreign.run)
        await wait_for(lambda: reason in (foreign.away or ""))
        nursery.cancel_scope.cancel()
    assert one.away is None


async def test_data_of_a_newer_version(world: RedisWorld) -> None:
    await world.start("one")
    await in_thread(partial(world.server.ask, "hset", "{trionat}:cluster", "format", "2"))
    two = world.make("two")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two.run)
        await wait_for(lambda: "of another version of trionat (2" in (two.away or ""))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "message",
    [
        "nonsense",
        "0 later what",
        "0 claim one ff 9 60001 [",
        "0 ban x y",
        "0 kick 00ff",
        "0 kick " + SEAL.close("another purpose", b"x").hex(),
        '0 evict one 1 1 ["user"]',
        "0 free 1",
    ],
    ids=range(8),
)
async def test_nonsense_in_the_news_is_passed_over(world: RedisWorld, message: str) -> None:
    one = await world.start("one")
    await in_thread(partial(world.server.ask, "publish", "{trionat}:news", message))
    await claim(one, "a", 60001)
    await wait_for(lambda: 60001 in one.table.by_point)
    assert one.away is None


async def test_nonsense_in_the_tables_is_passed_over(world: RedisWorld) -> None:
    one = await world.start("one")
    held = await claim(one, "a", 60001)
    for words in (
        ("hset", "{trionat}:claims", "nonsense", "a b c"),
        ("hset", "{trionat}:claims", '["user","b"]', "one zz 1 1 60002"),
        ("hset", "{trionat}:points", "60002", '["user","b"]'),
        ("hset", "{trionat}:nodes", "x y", "nonsense"),
        ("sadd", "{trionat}:user:user", "nonsense"),
    ):
        await in_thread(partial(world.server.ask, *words))
    two = await world.start("two")
    assert list(two.table.by_point) == [60001]
    assert two.table.by_point[60001].fence == held.fence
    limited = attrs.evolve(wish("b", 60002), limits=Limits(sessions=5))
    assert await two.registry.claim(limited) is not None


async def test_a_table_of_another_kind_is_one_line(world: RedisWorld) -> None:
    await in_thread(partial(world.server.ask, "set", "{trionat}:nodes", "nonsense"))
    one = world.make("one")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        await wait_for(lambda: "wrong kind of value" in (one.away or ""))
        assert "\n" not in (one.away or "")
        nursery.cancel_scope.cancel()


async def test_failed_logins_count_for_all_nodes(world: RedisWorld) -> None:
    one, two = await world.start("one"), await world.start("two")
    banned: dict[str, float] = {}
    two.on_ban = banned.__setitem__
    for number in range(4):
        (one if number % 2 else two).note_failure("192.0.2.1", after=4, ban=60, half_life=600)
    await wait_for(lambda: bool(banned))
    assert banned["192.0.2.1"] == pytest.approx(60, abs=1)
    late = world.make("late")
    known: dict[str, float] = {}
    late.on_ban = known.__setitem__
    async with trio.open_nursery() as nursery:
        nursery.start_soon(late.run)
        await late.wait_joined()
        assert known["192.0.2.1"] == pytest.approx(60, abs=5)
        nursery.cancel_scope.cancel()


async def test_a_ban_is_lifted_at_all_nodes(world: RedisWorld) -> None:
    one, two = await world.start("one"), await world.start("two")
    banned: list[str] = []
    lifted: list[str] = []
    two.on_ban = lambda network, _: banned.append(network)
    two.on_lift = lifted.append
    for _ in range(2):
        one.note_failure("192.0.2.1", after=2, ban=60, half_life=600)
    await wait_for(lambda: bool(banned))
    one.lift_ban("192.0.2.1")
    await wait_for(lambda: bool(lifted))
    assert lifted == ["192.0.2.1"]
    one.note_failure("192.0.2.1", after=2, ban=60, half_life=600)  # what was before is forgotten
    await trio.sleep(0.2)
    assert banned == ["192.0.2.1"]
    late = world.make("late")
    late.on_ban = lambda network, _: pytest.fail(network)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(late.run)
        await late.wait_joined()
        nursery.cancel_scope.cancel()


async def test_whom_to_send_away_is_told_to_the_others_only(world: RedisWorld) -> None:
    one, two = await world.start("one"), await world.start("two")
    told: list[tuple[str, bytes]] = []
    one.on_kick = lambda request: told.append(("one", request))
    two.on_kick = lambda request: told.append(("two", request))
    assert one.kick(b"request") == 1
    await wait_for(lambda: bool(told))
    await trio.sleep(0.1)
    assert told == [("two", b"request")]


async def test_figures_of_all_nodes(world: RedisWorld) -> None:
    one, two = await world.start("one"), await world.start("two")
    two.figures = lambda: (3, 14)
    found: dict[str, tuple[int | None, int | None]] = {}
    with trio.fail_after(5):
        while found.get("two") != (3, 14):
            found = {node.name: (node.sessions, node.visitors) for node in await one.ask_nodes()}
            await trio.sleep(0.1)
    await in_thread(world.server.kill)
    await wait_for(lambda: one.away is not None)
    assert [node.name for node in await one.ask_nodes()] == ["one", "two"]


async def test_a_planned_end_is_known_at_once(world: RedisWorld) -> None:
    one, two = await world.start("one"), await world.start("two")
    await one.leave()
    assert await wait_for(lambda: "one" not in two.table.nodes) < 1


async def test_what_waits_is_told_when_redis_goes(world: RedisWorld) -> None:
    one = await world.start("one")
    await in_thread(world.server.pause)
    try:
        async with trio.open_nursery() as nursery:
            for number in range(len(PORTS)):
                nursery.start_soon(_refused, one, str(number))
    finally:
        world.server.resume()


async def _refused(node: Node, identity: str) -> None:
    with pytest.raises(RefusedError):
        await node.registry.claim(wish(identity))


async def test_a_beat_does_not_wait_for_all_who_log_in(world: RedisWorld) -> None:
    one = await world.start("one")
    many = 4000
    for number in range(many):
        assert one.link.offer(FIND, str(number))
    args = (one.name, one.epoch, one.table.highest, "", 0)
    answer = await one.link.call(BEAT_ONCE, *args, is_beat=True)
    assert answer[0] == b"ok"
    lane = one.link._requests
    assert lane is not None
    assert lane._send.statistics().current_buffer_used > many / 2


async def test_a_release_is_not_lost_where_too_much_waits(world: RedisWorld) -> None:
    one, two = await world.start("one"), await world.start("two")
    held = await claim(one)
    await wait_for(lambda: held.key in two.table.by_key)
    while one.link.offer(FIND, "x"):
        pass
    one.registry.release(held)
    await wait_for(lambda: held.key not in two.table.by_key)
    await wait_for(lambda: one.away is None)


async def test_many_claims_are_told_anew(world: RedisWorld) -> None:
    """More than one chunk of them, and more than one piece of the snapshot."""
    world.ports, world.slots = range(10_000, 11_500), 1500
    one = await world.start("one")
    for number in range(1200):
        assert await one.registry.claim(wish(str(number))) is not None
    await in_thread(world.server.kill)
    await in_thread(world.server.start)
    await wait_for(lambda: one.away is None)
    two = await world.start("two")
    assert len(two.table.by_point) == 1200


async def test_tls_with_a_password() -> None:
    async with redis_world(PORTS, 3, password="hunter2", encrypted=True) as world:
        one, two = await world.start("one"), await world.start("two")
        await claim(one, "a", 60001)
        await wait_for(lambda: 60001 in two.table.by_point)
        distrustful = world.make("three")
        distrustful.link.config = attrs.evolve(distrustful.config, ca_file=None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(distrustful.run)
            await wait_for(lambda: "certificate" in (distrustful.away or "").lower())
            nursery.cancel_scope.cancel()


async def test_a_password_in_a_file(tmp_path: Path) -> None:
    async with redis_world(PORTS, 3, password="hunter2") as world:
        file = tmp_path / "password"
        one = world.make("one")
        one.link.config = attrs.evolve(one.config, redis_password="wrong", redis_password_file=file)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run)
            await wait_for(lambda: f"{file}: cannot read" in (one.away or ""))
            file.write_text("hunter2\nmore\n")
            await one.wait_joined()
            nursery.cancel_scope.cancel()


async def test_a_password_is_needed_and_never_shown() -> None:
    async with redis_world(PORTS, 3, password="hunter2") as world:
        await world.start("one")
        wrong = world.make("two")
        wrong.link.config = attrs.evolve(wrong.config, redis_password="hunter3")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wrong.run)
            await wait_for(
                lambda: (
                    "WRONGPASS" in (wrong.away or "") or "password" in (wrong.away or "").lower()
                )
            )
            assert "hunter" not in (wrong.away or "")
            nursery.cancel_scope.cancel()


async def test_a_bug_of_ours_is_told_with_its_traceback_and_once(
    world: RedisWorld, expected_errors: list[logging.LogRecord]
) -> None:
    one = await world.start("one")
    one.figures = lambda: (1 // 0, 0)
    await wait_for(lambda: one.away == "integer division or modulo by zero")
    await trio.sleep(2)
    assert len(expected_errors) == 1
    assert expected_errors[0].exc_info
    one.figures = lambda: (0, 0)
    await wait_for(lambda: one.away is None)


async def test_nobody_can_be_asked_before_it_is_up(world: RedisWorld) -> None:
    one = world.make("one")
    with pytest.raises(RegistryAwayError, match="Redis is away: it has not been asked yet"):
        await one.link.call(NODES)
    assert not one.link.send(NODES)
