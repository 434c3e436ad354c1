"""What every registry promises, whatever it is made of. An implementation is one more entry in `WORLDS`.

A world has several processes ("one", "two") that share one truth, and can kill one of them.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs
import pytest
import trio

from tests.registry.redis_world import RedisWorld, redis_world
from trionat.errors import RefusedError
from trionat.protocol.messages import RefusalCode, ServiceRequest
from trionat.server.registry.claim import Claim, TakenError, Wish
from trionat.server.registry.local import LocalRegistry
from trionat.server.registry.table import ClaimTable
from trionat.server.registry.values import read_key
from trionat.server.visitors.ports import PortPool, VisitPort
from trionat.server.workers.claims import ClaimServer
from trionat.server.workers.link import Link
from trionat.server.workers.node_table import NodeTable, WorkerOfNode
from trionat.server.workers.remote import RemoteRegistry
from trionat.store.base import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from contextlib import AbstractAsyncContextManager

    from trionat.server.registry.registry import Registry
    from trionat.server.visitors.ports import LeaseKey

PORTS: Final = tuple(range(60001, 60005))
SLOTS: Final = 3
WITHIN: Final = 2.0
"""Seconds for what is told from one process to another."""


class World(ABC):
    """Two processes that share one truth, which has `SLOTS` slots and `PORTS`."""

    @abstractmethod
    async def process(self, word: str) -> Registry:
        """Return the registry of a process that has just started, perhaps in the place of one that was killed."""

    @abstractmethod
    async def kill(self, word: str) -> None:
        """End a process without a word, and wait until the others would notice."""


class LocalWorld(World):
    """All in one process, with the truth itself."""

    def __init__(self) -> None:
        self.table = ClaimTable(SLOTS, PortPool([VisitPort(number) for number in PORTS]))

    async def process(self, word: str) -> Registry:
        return LocalRegistry(self.table, word)

    async def kill(self, word: str) -> None:
        self.table.leave(word)


@asynccontextmanager
async def local_world() -> AsyncIterator[World]:
    yield LocalWorld()


class RemoteWorld(World):
    """A parent with the truth, and processes at the other ends of links, which are all in this process here."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.kind: type[LocalRegistry] = LocalRegistry
        pool = PortPool([VisitPort(number) for number in PORTS])
        self.table = ClaimTable(SLOTS, pool, self.tell_room)
        self.servers: dict[str, ClaimServer] = {}

    def tell_room(self, _: Iterable[int | str]) -> None:
        for server in self.servers.values():
            server.tell_room()

    async def process(self, word: str) -> Registry:
        here, there = self._links()
        server = ClaimServer(self.table, word, here, kind=self.kind)
        registry = RemoteRegistry(there, word, ports=PORTS)

        def told(message: dict[str, Any]) -> None:
            if message["what"] == "room":
                again = message.get("again", False)
                registry.note_room(message["slots"], message["ports"], again=again)
            elif message["what"] == "lost":
                registry.on_lost(read_key(message["key"]), message["reason"])
            elif message["what"] == "moved":
                registry.on_moved(read_key(message["key"]))
            else:
                registry.on_evict(
                    read_key(message["key"]), message["reason"], vacant_only=message["vacant_only"]
                )

        def heard(message: dict[str, Any]) -> None:
            assert server.hear(message)

        here.hear, here.reply = heard, server.reply
        there.hear = told
        for link in (here, there):
            link.take = lambda _, sock, __: sock.close()
            self.nursery.start_soon(link.run)
        server.join()
        self.servers[word] = server
        registry.note_room(**server.room)
        return registry

    def _links(self) -> tuple[Link, Link]:
        messages, descriptors = socket.socketpair(), socket.socketpair()
        return Link(messages[0], descriptors[0]), Link(messages[1], descriptors[1])

    async def kill(self, word: str) -> None:
        server = self.servers.pop(word)
        server.link.messages.shutdown(socket.SHUT_RDWR)
        self.table.leave(word)


@asynccontextmanager
async def remote_world() -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        yield RemoteWorld(nursery)
        nursery.cancel_scope.cancel()


@attrs.frozen
class NodesWorld(World):
    """Nodes of a cluster, on a real Redis."""

    world: RedisWorld

    async def process(self, word: str) -> Registry:
        return (await self.world.start(word)).registry

    async def kill(self, word: str) -> None:
        await self.world.kill(word)


@asynccontextmanager
async def nodes_world() -> AsyncIterator[World]:
    async with redis_world(PORTS, SLOTS) as world:
        yield NodesWorld(world)


@asynccontextmanager
async def below_a_node() -> AsyncIterator[World]:
    """Workers of one node, whose claims are in a real Redis."""
    async with redis_world(PORTS, SLOTS) as cluster, trio.open_nursery() as nursery:
        node = await cluster.start("node")
        world = RemoteWorld(nursery)
        world.kind = WorkerOfNode
        world.table = NodeTable(SLOTS, node.pool, world.tell_room, node=node.registry)
        yield world
        nursery.cancel_scope.cancel()


WORLDS: Final[dict[str, Callable[[], AbstractAsyncContextManager[World]]]] = {
    "local": local_world,
    "remote": remote_world,
    "redis": nodes_world,
    "below a node": below_a_node,
}


@pytest.fixture(params=WORLDS)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with WORLDS[request.param]() as world:
        with trio.fail_after(30):
            yield world


@attrs.define(eq=False)
class Process:
    """A registry and what it has told."""

    registry: Registry
    freed: int = 0
    evicted: list[tuple[LeaseKey, bool]] = attrs.field(factory=list)

    @classmethod
    async def start(cls, world: World, word: str) -> Process:
        process = cls(await world.process(word))
        process.registry.on_free = process._note_free
        process.registry.on_evict = process._note_evict
        return process

    def _note_free(self) -> None:
        self.freed += 1

    def _note_evict(self, key: LeaseKey, reason: str, *, vacant_only: bool) -> None:
        assert reason
        self.evicted.append((key, vacant_only))

    async def claim(self, wish: Wish) -> Claim:
        """Claim what there is."""
        claim = await self.registry.claim(wish)
        assert claim is not None
        return claim

    async def claim_soon(self, wish: Wish) -> Claim:
        """Claim what another process is about to give back."""
        with trio.fail_after(WITHIN):
            while (claim := await self._try(wish)) is None:  # noqa: ASYNC110 (it may be refused for good)
                await trio.sleep(0.01)
        return claim

    async def _try(self, wish: Wish) -> Claim | None:
        try:
            return await self.registry.claim(wish)
        except TakenError:
            return None


def wish(identity: str = "a", *ports: int | None, user: str = "user", **limits: object) -> Wish:
    services = tuple(ServiceRequest(visit_port=port) for port in ports or (None,))
    return Wish(key=(user, identity), services=services, limits=Limits(**limits))  # type: ignore[arg-type]


async def wait_for(condition: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(WITHIN):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await trio.sleep(0.01)


# -- all or nothing ---------------------------------------------------------------------------------------------------


async def test_a_port_for_each_service_in_their_order(world: World) -> None:
    one = await Process.start(world, "one")
    claim = await one.claim(wish("a", 60003, None, 60001))
    assert claim.ports[0] == 60003
    assert claim.ports[2] == 60001
    assert len(set(claim.ports)) == 3
    assert claim.key == ("user", "a")
    assert claim.holder == "one"


async def test_all_or_nothing(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    await one.claim(wish("a", 60002))
    with pytest.raises(RefusedError) as caught:
        await two.registry.claim(wish("b", 60001, 60002))
    assert caught.value.code == RefusalCode.PORT_TAKEN
    assert (await two.claim(wish("c", 60001))).ports == (60001,)  # nothing has stuck


async def test_too_few_ports_are_free(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    held = await one.claim(wish("a", None, None, None))
    assert await two.registry.claim(wish("b", None, None)) is None
    assert len((await two.claim(wish("c"))).ports) == 1
    freed = two.freed
    one.registry.release(held)
    await wait_for(lambda: two.freed > freed)
    assert len((await two.claim(wish("b", None, None))).ports) == 2


async def test_no_more_than_there_are_slots(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    claims = [await one.claim(wish(str(number))) for number in range(SLOTS)]
    await wait_for(lambda: two.registry.free_slots == 0)
    assert await two.registry.claim(wish("late")) is None
    one.registry.release(claims[1])
    await wait_for(lambda: two.registry.free_slots == 1)
    assert two.freed
    assert await two.registry.claim(wish("late")) is not None


async def test_only_ports_that_the_user_may_have(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    assert (await one.claim(wish("a", visit_ports=(60004,)))).ports == (60004,)
    with pytest.raises(RefusedError) as caught:
        await two.registry.claim(wish("b", visit_ports=(60004,)))
    assert caught.value.code == RefusalCode.PORT_TAKEN


async def test_the_ports_that_it_had_before(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    await one.claim(wish("other"))
    claim = await one.claim(wish("a"))
    one.registry.release(claim)
    assert (await two.claim_soon(wish("a"))).ports == claim.ports


# -- one's own --------------------------------------------------------------------------------------------------------


async def test_another_process_holds_it(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    await one.claim(wish("a"))
    assert await two.registry.holder(("user", "a")) == "one"
    assert await one.registry.holder(("user", "a")) is None
    assert await two.registry.holder(("user", "b")) is None
    with pytest.raises(TakenError) as caught:
        await two.registry.claim(wish("a"))
    assert caught.value.holder == "one"


async def test_two_that_claim_at_the_same_moment(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    for number in range(20):
        got: list[tuple[Process, Claim]] = []
        identity = str(number)

        async def claim(process: Process, got: list[tuple[Process, Claim]], identity: str) -> None:
            try:
                claim = await process.registry.claim(wish(identity, 60001))
            except (TakenError, RefusedError):
                return
            if claim is not None:
                got.append((process, claim))

        async with trio.open_nursery() as nursery:
            for process in (one, two):
                nursery.start_soon(claim, process, got, identity)
        ((process, granted),) = got
        process.registry.release(granted)
        await wait_for(lambda: one.registry.free_slots == two.registry.free_slots == SLOTS)


async def test_only_ones_own_is_released(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    old = await one.claim(wish("a", 60001))
    one.registry.release(old)
    new = await two.claim_soon(wish("a", 60001))
    one.registry.release(old)  # once more, and too late
    one.registry.occupy(old, occupied=False)
    await trio.sleep(0.1)
    assert await one.registry.holder(("user", "a")) == "two"
    with pytest.raises(RefusedError):
        await one.registry.claim(wish("b", *new.ports))


async def test_the_fence_only_grows(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    fences: list[int] = []
    for process in (one, two, one, one, two):
        claim = await process.claim_soon(wish("a"))
        fences.append(claim.fence)
        process.registry.release(claim)
    await world.kill("one")
    one = await Process.start(world, "one")
    fences.append((await one.claim_soon(wish("a"))).fence)
    assert fences == sorted(set(fences))


# -- a user's sessions ------------------------------------------------------------------------------------------------


async def test_no_more_sessions_than_the_user_may_have(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    await one.claim(wish("a", sessions=1))
    with pytest.raises(RefusedError) as caught:
        await two.registry.claim(wish("b", sessions=1))
    assert caught.value.code == RefusalCode.TOO_MANY_SESSIONS
    assert await two.registry.claim(wish("b", user="somebody else", sessions=1)) is not None


async def test_what_only_stands_reserved_makes_room(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    reserved = await one.claim(wish("a", sessions=1))
    one.registry.occupy(reserved, occupied=False)
    await wait_for(lambda: _is_asked(two, one))
    one.registry.release(reserved)
    claim = await two.claim_soon(wish("b", sessions=1))
    one.registry.occupy(reserved, occupied=False)
    with pytest.raises(RefusedError):
        await one.registry.claim(wish("a", sessions=1))
    assert claim.holder == "two"


async def _is_asked(asking: Process, asked: Process) -> bool:
    """Claim until the holder of the reserved claim is asked for it."""
    try:
        assert await asking.registry.claim(wish("b", sessions=1)) is None
    except RefusedError:  # not told yet that no session uses it
        return False
    return (("user", "a"), True) in asked.evicted


# -- eviction ---------------------------------------------------------------------------------------------------------


async def test_eviction(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    claim = await one.claim(wish("a"))
    freed = two.freed
    await two.registry.evict(("user", "a"), "it has come to me")
    await two.registry.evict(("user", "nobody"), "it has come to me")
    await wait_for(lambda: one.evicted == [(("user", "a"), False)])
    assert await two.registry.holder(("user", "a")) == "one"  # until it lets go
    one.registry.release(claim)
    await wait_for(lambda: two.freed > freed)
    assert (await two.claim_soon(wish("a"))).ports == claim.ports
    assert two.evicted == []


# -- death ------------------------------------------------------------------------------------------------------------


async def test_a_holder_that_dies(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    claim = await one.claim(wish("a", None, None))
    await world.kill("one")
    with pytest.raises(RefusedError):  # its ports stay its client's
        await two.registry.claim(wish("b", *claim.ports))
    assert await two.registry.holder(claim.key) is None
    taken_over = await two.claim(wish("a", None, None))
    assert set(taken_over.ports) == set(claim.ports)
    assert taken_over.fence > claim.fence


# -- cancellation -----------------------------------------------------------------------------------------------------


async def test_cancelled_at_every_await(world: World) -> None:
    one, two = await Process.start(world, "one"), await Process.start(world, "two")
    for steps in range(25):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_after, steps, scope)
                claim = await one.registry.claim(wish("a", None, None, None, None))
                if claim is not None:
                    one.registry.release(claim)
                nursery.cancel_scope.cancel()
        await wait_for(lambda: two.registry.free_slots == SLOTS)
        everything = await two.claim_soon(wish("b", None, None, None, None))
        two.registry.release(everything)
        await wait_for(lambda: one.registry.free_slots == SLOTS)


async def _cancel_after(steps: int, scope: trio.CancelScope) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()
