"""Nodes on Redis servers that stand in for each other: with Sentinels, and in a Redis Cluster."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import attrs
import pytest
import trio

from tests.cluster.test_node import PORTS, claim, wait_for, wish
from tests.mariadb import HOST
from tests.redis_groups import MASTER, running_cluster, running_sentinels
from tests.redis_server import RedisServer
from tests.registry.redis_world import RedisWorld
from trionat.errors import RefusedError, RegistryAwayError
from trionat.server.cluster.primary import find_primary
from trionat.server.cluster.redis_link import require_library

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.redis_groups import RedisGroup
    from trionat.server.cluster.node import Node

pytestmark = [pytest.mark.limit(90), pytest.mark.slow]

T = TypeVar("T")


@attrs.define(eq=False)
class AtUrl(RedisServer):
    """As far as nodes see it: where they are told that Redis is."""

    where: str = ""

    @property
    def url(self) -> str:
        return self.where


@asynccontextmanager
async def blocking(manager: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave what takes a while."""
    found = await trio.to_thread.run_sync(manager.__enter__)
    try:
        yield found
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(manager.__exit__, None, None, None)


@asynccontextmanager
async def world_at(url: str, folder: Path) -> AsyncIterator[RedisWorld]:
    require_library()
    async with trio.open_nursery() as nursery:
        server = AtUrl(folder, 0, where=url)
        yield RedisWorld(server, nursery, PORTS, len(PORTS))
        nursery.cancel_scope.cancel()


def sentinels_at(ports: Sequence[int]) -> str:
    return "redis+sentinel://" + ",".join(f"{HOST}:{port}" for port in ports) + f"/{MASTER}"


def cluster_at(ports: Sequence[int]) -> str:
    return "redis://" + ",".join(f"{HOST}:{port}" for port in ports)


async def fails_over(group: RedisGroup, world: RedisWorld, one: Node, two: Node) -> None:
    """Kill the master that two nodes use: both come to its successor, with all that they hold."""
    before = await find_primary(one.config)
    mine, theirs = await claim(one, "a", 60001), await claim(two, "b", 60002)
    await trio.to_thread.run_sync(group.kill, before.port)
    await wait_for(lambda: one.away is not None and two.away is not None)
    with pytest.raises(RefusedError):
        await one.registry.claim(wish("c"))
    await wait_for(lambda: one.away is None and two.away is None, within=30)
    assert (await find_primary(one.config)) != before
    assert one.registry.held.keys() == {mine.key}
    assert two.registry.held.keys() == {theirs.key}
    new = await claim(one, "c")
    assert new.ports == (60003,)
    assert new.fence > max(mine.fence, theirs.fence)
    late = await world.start("late")
    assert {port: entry.fence for port, entry in late.table.by_point.items()} == {
        60001: mine.fence,
        60002: theirs.fence,
        60003: new.fence,
    }


async def test_a_master_with_sentinels(tmp_path: Path) -> None:
    async with blocking(running_sentinels()) as (group, sentinels, _, _):
        async with world_at(sentinels_at(sentinels), tmp_path) as world:
            await fails_over(group, world, await world.start("one"), await world.start("two"))


async def test_a_replica_that_was_behind(tmp_path: Path) -> None:
    """It knows nothing of what was claimed of late, and its counters are lower: neither a fence nor a port is given twice."""
    async with blocking(running_sentinels()) as (group, sentinels, master, replica):
        async with world_at(sentinels_at(sentinels), tmp_path) as world:
            one, two = await world.start("one"), await world.start("two")
            first = await claim(one, "gone", 60003)
            one.registry.release(first)
            await wait_for(lambda: 60003 not in two.table.by_point)
            # It cannot come back to its master: that one asks for no password, and refuses whoever brings one.
            for words in (
                ("config", "set", "masterauth", "unwanted"),
                ("client", "kill", "type", "master"),
            ):
                await trio.to_thread.run_sync(group.ask, replica, *words)
            known = await trio.to_thread.run_sync(group.ask, replica, "get", "{trionat}:fence")
            await fails_over(group, world, one, two)
            assert known == str(first.fence)  # the replica had heard of none of the others
            assert (await find_primary(one.config)).port == replica != master


async def test_a_redis_cluster(tmp_path: Path) -> None:
    async with blocking(running_cluster()) as (group, ports):
        url = cluster_at(ports[:3])
        async with world_at(url, tmp_path) as world:
            one = await world.start("one")
            slots = await trio.to_thread.run_sync(group.ask, ports[0], "cluster", "slots")
            assert slots
            # Any node of it will do.
            primary = await find_primary(one.config)
            for port in ports:
                alone = attrs.evolve(one.config, redis=cluster_at([port]))
                assert await find_primary(alone) == primary
            with pytest.raises(RegistryAwayError, match="has no database numbers"):
                await find_primary(attrs.evolve(one.config, redis=url + "/1"))
            # All but the one that is killed, which is among those that were named.
            await fails_over(group, world, one, await world.start("two"))


async def test_what_is_not_what_it_was_named(tmp_path: Path) -> None:
    async with blocking(running_sentinels(1)) as (_, sentinels, master, replica):
        async with world_at("", tmp_path) as world:
            for url, reason in (
                (cluster_at([replica]), "this is a replica, in which nothing can be written"),
                (cluster_at(sentinels), "this is a Sentinel: write redis.sentinel://"),
                (sentinels_at([master]), "this is no Sentinel: write redis://"),
                (sentinels_at(sentinels).replace(MASTER, "other"), "No such master"),
                (cluster_at([1, 2]), f"{HOST}:1: .*; {HOST}:2: .*"),
            ):
                config = attrs.evolve(world.make("x").config, redis=url)
                with pytest.raises(RegistryAwayError, match=reason) as caught:
                    await find_primary(config)
                assert str(caught.value).isprintable()
            several = attrs.evolve(world.make("x").config, redis=cluster_at([1, replica, master]))
            assert (await find_primary(several)).port == master
