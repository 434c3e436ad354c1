"""What grows with a cluster, and what must not: looked at in figures that do not depend on how busy the machine is."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from tests.cluster.test_node import claim, cut, in_thread, wait_for, wish
from tests.registry.redis_world import RedisWorld, redis_world
from trionat.server.cluster.redis_link import RedisLink
from trionat.server.cluster.scripts import BEAT_ONCE, CLAIM, RELEASE, SCAN, Script
from trionat.server.cluster.table import encode_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trionat.server.cluster.node import Node
    from trionat.server.cluster.redis_link import Answer

pytestmark = pytest.mark.limit(60)

PORTS = range(10_000, 10_600)


@pytest.fixture
async def world() -> AsyncIterator[RedisWorld]:
    async with redis_world(PORTS, len(PORTS)) as world:
        yield world


async def commands(world: RedisWorld) -> int:
    """How many commands Redis has run, those of scripts included."""
    found = await trio.to_thread.run_sync(world.server.ask, "info", "commandstats")
    return sum(int(calls) for calls in re.findall(r"calls=(\d+)", found))


async def cost(world: RedisWorld, times: int, action: Callable[[], Awaitable[object]]) -> float:
    """Return how many commands of Redis one of many takes; a beat of a node may come between."""
    before = await commands(world)
    for _ in range(times):
        await action()
    return (await commands(world) - before) / times


async def hold(node: Node, count: int, user: str = "user") -> None:
    for number in range(count):
        its = attrs.evolve(wish(), key=(user, str(number)))
        assert await node.registry.claim(its) is not None


async def test_a_beat_costs_the_same_whatever_a_node_holds(world: RedisWorld) -> None:
    one = await world.start("one")

    async def beat() -> Answer:
        return await one.link.call(BEAT_ONCE, "one", one.epoch, 0, "[0, 0]", 30_000)

    before = await cost(world, 200, beat)
    await hold(one, 500)
    assert await cost(world, 200, beat) == pytest.approx(before, abs=0.5)


async def test_a_claim_of_a_user_costs_the_same_however_many_there_are(world: RedisWorld) -> None:
    one = await world.start("one")
    key = encode_key(("limited", "one more"))

    async def claim_and_release() -> None:
        answer = await one.link.call(CLAIM, "one", one.epoch, 0, key, 1000, "10599", "")
        assert answer[0] == b"ok"
        await one.link.call(RELEASE, "one", one.epoch, key, answer[1])

    before = await cost(world, 100, claim_and_release)
    await hold(one, 500, "limited")
    assert await cost(world, 100, claim_and_release) == pytest.approx(before, abs=0.5)


async def test_what_others_claim_costs_the_same_whatever_a_node_holds(world: RedisWorld) -> None:
    class Unlisted(dict[Any, Any]):
        def items(self) -> Any:
            raise AssertionError("all that is held was gone through")

        __iter__ = keys = values = items

    one, two = await world.start("one"), await world.start("two")
    await hold(one, 5)
    await claim(two, "of another", 10_300)
    await wait_for(lambda: 10_300 in one.table.by_point)
    held, one.registry.held = one.registry.held, Unlisted(one.registry.held)
    one.registry.take_claim(one.table.by_point[10_300])
    one.registry.held = held


async def test_what_all_know_already_is_told_without_news(world: RedisWorld) -> None:
    one, two = await world.start("one"), await world.start("two")
    await hold(one, 300)
    await wait_for(lambda: len(two.table.by_key) == 300)
    before = two._seq
    cut(one)
    await wait_for(lambda: one.away is not None)
    await wait_for(lambda: one.away is None)
    await wait_for(lambda: two._seq > before)
    await trio.sleep(0.2)
    assert two._seq == before + 1  # that it is there
    assert len(one.table.by_key) == len(two.table.by_key) == 300
    # Given up, it has to tell all of it, since the others have forgotten it.
    await in_thread(partial(world.server.ask, "hdel", "{trionat}:nodes", "one"))
    for each in (one, two):
        each.table.remove_node("one", one.epoch)
    await wait_for(lambda: one.away is not None)
    await wait_for(lambda: one.away is None)
    await wait_for(lambda: len(two.table.by_key) == 300)


async def test_a_node_beats_while_it_reads(
    world: RedisWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With very much to read, it would be dead for the others before it is through."""
    real = RedisLink.call

    async def slow(self: RedisLink, script: Script, *args: Any, **options: Any) -> Answer:
        if script is SCAN:
            await trio.sleep(8)
        return await real(self, script, *args, **options)

    one = await world.start("one")
    await claim(one, "a", 10_001)
    monkeypatch.setattr(RedisLink, "call", slow)
    began = trio.current_time()
    two = await world.start("two")
    assert 8 < trio.current_time() - began < 12
    assert two.epoch == one.table.nodes["two"].epoch
    assert list(two.table.by_point) == [10_001]


async def test_news_that_come_while_a_node_reads(
    world: RedisWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, scanned, go_on = RedisLink.call, trio.Event(), trio.Event()

    async def late(self: RedisLink, script: Script, *args: Any, **options: Any) -> Answer:
        answer = await real(self, script, *args, **options)
        if script is SCAN:
            scanned.set()
            await go_on.wait()
        return answer

    one = await world.start("one")
    left, stays = await claim(one, "a", 10_001), await claim(one, "b", 10_002)
    monkeypatch.setattr(RedisLink, "call", late)
    two = world.make("two")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two.run)
        await scanned.wait()
        one.registry.release(left)
        await claim(one, "c", 10_003)
        await trio.sleep(0.2)
        go_on.set()
        await two.wait_joined()
        assert set(two.table.by_point) == {10_002, 10_003}
        assert two.table.by_point[10_002].fence == stays.fence
        nursery.cancel_scope.cancel()


async def test_nobody_claims_while_a_node_still_tells(
    world: RedisWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that holds very much needs longer for it than all others wait at first."""
    one, two = await world.start("one"), await world.start("two")
    await hold(one, 301)
    await in_thread(world.server.kill)
    real = RedisLink.call

    async def slow(self: RedisLink, script: Script, *args: Any, **options: Any) -> Answer:
        if script.name == "hold":
            await trio.sleep(1.5)
        return await real(self, script, *args, **options)

    monkeypatch.setattr(RedisLink, "call", slow)
    await in_thread(world.server.start)
    await wait_for(lambda: two.away is None)
    began = trio.current_time()
    key = encode_key(("user", "300"))
    while True:
        answer = await two.link.call(CLAIM, "two", two.epoch, 0, key, -1, "10300", "")
        if answer[0] != b"settling":
            break
        await trio.sleep(0.05)
    assert trio.current_time() - began > 5
    assert one.registry.held.keys() == {("user", str(number)) for number in range(301)}
    assert not any(each.lost for each in one.registry.held.values())
    assert answer == [b"held", b"one"]


@pytest.mark.slow
def test_the_bench_measures_all_there_is() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.scale", "--quick"],
        capture_output=True,
        check=True,
        timeout=100,
        encoding="utf-8",
    )
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 20, done.stdout
    assert all(len(row) == 3 for row in rows)
    assert "NOT" not in done.stdout
