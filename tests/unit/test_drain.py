"""A server that is drained, with real sessions, clocks that jump, and clients as far as their control connections go."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
import trio.testing

from tests.unit.memory import receive_all, receive_some
from tests.unit.memory_server import forwarder, open_memory_server
from trionat.address import TCPAddress
from trionat.protocol.messages import (
    CAPABILITIES,
    GROUPS,
    MOVE,
    ROUTES,
    Close,
    CloseCode,
    Drain,
    Moved,
    Queued,
    RefusalCode,
    Refused,
    ServiceRequest,
    Welcome,
)
from trionat.server.admin import drain as module
from trionat.server.admin.messages import Drained
from trionat.server.registry.claim import Wish, group_key
from trionat.server.registry.local import LocalRegistry
from trionat.store.base import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock

    from tests.unit.conftest import Tidy
    from tests.unit.memory_server import MemoryClient, MemoryServer
    from trionat.server.visitors.visitor import Visitor

OTHERS = (TCPAddress("b.example", 8007),)
NAMES = ("b.example:8007",)


@asynccontextmanager
async def drained_server(
    tidy: Tidy, ports: int = 2, **settings: object
) -> AsyncIterator[tuple[MemoryServer, module.Drain]]:
    settings = {"drain_grace": 30, "other_servers": OTHERS, **settings}
    async with open_memory_server(tidy, ports, **settings) as server:  # type: ignore[arg-type]
        drain = module.Drain(server.context)
        server.nursery.start_soon(drain.run)
        yield server, drain


async def mover(
    server: MemoryServer, identity: str = "client", group: str | None = None
) -> MemoryClient:
    """Return a client that can be up at another server beforehand."""
    client = server.client(identity, capabilities=(*CAPABILITIES, MOVE, GROUPS))
    await client.ask(group=group)
    client.welcome = await client.hear(Welcome)
    return client


async def test_a_client_that_is_elsewhere_leaves_nobody_behind(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with drained_server(tidy) as (server, drain):
        client = await mover(server)
        client.pool(forwarder(tidy, server.nursery))
        visitor = server.visit(client.port, early=b"x")
        assert await receive_some(visitor) == b"x"
        drain.begin()
        drain.begin()  # asked twice
        assert await client.hear(Drain) == Drain(seconds=30, servers=OTHERS)
        assert drain.look() == Drained(sessions=1, visitors=1, others=NAMES)
        await trio.sleep(100)  # it has found no other server yet: everything goes on
        new = server.visit(client.port, early=b"new")
        assert await receive_some(new) == b"new"
        new.close()
        await client.say(Moved())
        await trio.sleep(5)
        assert await receive_all(server.visit(client.port)) == b""  # they go to the other server
        assert drain.look() == Drained(sessions=1, moved=1, visitors=1, others=NAMES)
        visitor.send(b"still served")
        assert await receive_some(visitor) == b"still served"
        visitor.close()
        assert (await client.hear(Close)).text == "the client has moved to another server"
        await client.hear_end()
        await trio.testing.wait_all_tasks_blocked()
        assert drain.look() == Drained(sessions=0, others=NAMES)
        assert drain.look().is_done
        assert server.admission.leases.ports.free == 2


async def test_visitors_that_stay_have_the_grace(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with drained_server(tidy) as (server, drain):
        client = await mover(server)
        client.pool(forwarder(tidy, server.nursery))
        visitor = server.visit(client.port, early=b"x")
        assert await receive_some(visitor) == b"x"
        drain.begin()
        await client.hear(Drain)
        began = trio.current_time()
        await client.say(Moved())
        await client.hear(Close)
        assert 30 <= trio.current_time() - began < 34


async def test_nobody_new_is_let_in_and_all_are_told_where_to_go(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with drained_server(tidy, 1) as (server, drain):
        client = await mover(server)
        waiting = server.client("waiting")
        await waiting.ask()
        await waiting.hear(Queued)
        drain.begin()
        for other in (waiting, server.client("new"), server.client("client")):
            if other is not waiting:
                await other.ask()
            refused = await other.hear(Refused)
            assert refused.code == RefusalCode.DRAINING
            assert refused.servers == OTHERS
        assert len(server.sessions) == 1  # not evicted by itself
        await client.hear(Drain)


async def test_a_client_that_was_lost_comes_back_for_what_it_has_here(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with drained_server(tidy) as (server, drain):
        client = await mover(server)
        drain.begin()
        await client.hear(Drain)
        client.vanish()
        while server.sessions:  # noqa: ASYNC110
            await trio.sleep(0.1)
        assert drain.look() == Drained(sessions=0, reserved=1, others=NAMES)
        visitor = server.visit(client.port, early=b"x")
        again = await mover(server)
        assert again.port == client.port
        again.pool(forwarder(tidy, server.nursery))
        assert await receive_some(visitor) == b"x"
        await again.hear(Drain)
        visitor.close()
        await again.say(Moved())
        await again.hear(Close)
        await again.hear_end()


async def test_a_client_that_another_worker_has_something_of_is_sent_there(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """That one decides. It was told to go to another server, and its streams were lost."""
    async with drained_server(tidy) as (server, drain):
        registry = server.admission.leases.registry
        assert isinstance(registry, LocalRegistry)
        other = LocalRegistry(registry.table, "w2")
        await mover(server)
        key = (server.sessions[0].username, "lost")
        claim = await other.claim(Wish(key=key, services=(ServiceRequest(),), limits=Limits()))
        assert claim is not None
        drain.begin()
        for there in (True, False):
            if not there:
                registry.table.leave("w2")
            for routes in (True, False):
                capabilities = (*CAPABILITIES, *([ROUTES] if routes else []))
                lost = server.client("lost", capabilities=capabilities)
                await lost.ask()
                refused = await lost.hear(Refused)
                if there and routes:
                    assert (refused.code, refused.route) == (RefusalCode.MOVED, "w2")
                else:
                    assert (refused.code, refused.servers) == (RefusalCode.DRAINING, OTHERS)
        assert other.table.held_by("w2") == (claim,)
        other.release(claim)


async def test_so_many_at_a_time(tidy: Tidy, autojump_clock: MockClock) -> None:
    number = 3 * module._AT_ONCE
    async with drained_server(tidy, number, max_tcp_conn_num=number) as (server, drain):
        clients = [await mover(server, f"client {index}") for index in range(number)]
        drain.begin()
        await trio.sleep(1)
        told = [client for client in clients if any(isinstance(m, Drain) for m in client.heard)]
        number_told = len(told)  # no list of clients for pytest to write down
        assert number_told == module._AT_ONCE
        await told[0].say(Moved())
        await trio.sleep(1)
        told = [client for client in clients if any(isinstance(m, Drain) for m in client.heard)]
        number_told = len(told)
        assert number_told == module._AT_ONCE + 1
        await trio.sleep(3 * module._PATIENCE)  # those that find no other server hold up nobody
        assert all(any(isinstance(m, Drain) for m in client.heard) for client in clients)
        assert len(server.sessions) == number - 1


async def test_a_client_that_has_not_moved_is_told_of_others_that_are_there_by_now(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with drained_server(tidy, other_servers=()) as (server, drain):
        client = await mover(server)
        drain.begin()
        assert await client.hear(Drain) == Drain(seconds=30)
        server.admission.elsewhere = OTHERS
        assert await client.hear(Drain) == Drain(seconds=30, servers=OTHERS)
        await trio.sleep(100)
        assert not client.pending()


async def test_in_a_cluster_nobody_is_sent_away_before_another_node_is_known(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with drained_server(tidy) as (server, drain):
        drain.waits = True
        client = await mover(server)
        drain.begin()
        new = server.client("new")
        await new.ask()
        assert (await new.hear(Refused)).code == RefusalCode.DRAINING
        for others in (None, ()):
            if others is not None:
                drain.name_others(others)
            await trio.sleep(10)
            assert not client.pending()
        drain.name_others(OTHERS)
        assert await client.hear(Drain) == Drain(seconds=30, servers=OTHERS)


async def test_an_older_client_is_sent_away_when_its_visitors_have_gone(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with drained_server(tidy) as (server, drain):
        client = await server.welcome()
        client.pool(forwarder(tidy, server.nursery))
        visitor = server.visit(client.port, early=b"x")
        assert await receive_some(visitor) == b"x"
        drain.begin()
        assert await client.hear(Drain) == Drain(seconds=30)
        await trio.sleep(10)
        visitor.send(b"still served")
        assert await receive_some(visitor) == b"still served"
        visitor.close()
        assert await client.hear(Close) == Close(
            code=CloseCode.STOPPED, text="the server is drained"
        )


async def test_a_stop_during_a_drain(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with drained_server(tidy) as (server, drain):
        gone, stays = await mover(server, "gone"), await mover(server, "stays")
        for client in (gone, stays):
            client.pool(forwarder(tidy, server.nursery))
        visitors = [server.visit(client.port, early=b"x") for client in (gone, stays)]
        for visitor in visitors:
            assert await receive_some(visitor) == b"x"
        drain.begin()
        await stays.hear(Drain)
        await gone.hear(Drain)
        await gone.say(Moved())
        await trio.sleep(10)
        began = trio.current_time()
        await server.drain()
        assert 29 < trio.current_time() - began <= 30.5
        assert (await gone.hear(Close)).text == "the client has moved to another server"
        assert (await stays.hear(Close)).text == "the server stops"


async def test_the_clients_of_a_group_go_one_after_another(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """New visitors go to those that are still here, as long as there are any."""
    async with drained_server(tidy, 1) as (server, drain):
        one, two = [await mover(server, each, "web") for each in "ab"]
        for client in (one, two):
            client.pool(forwarder(tidy, server.nursery))
        visitors = [server.visit(one.port, early=b"x") for _ in range(2)]
        for visitor in visitors:
            assert await receive_some(visitor) == b"x"
        leases = server.admission.leases.by_key
        [first] = [lease for key, lease in leases.items() if key[1] == "a"]
        drain.begin()
        await one.hear(Drain)
        await two.hear(Drain)
        await one.say(Moved())
        await trio.sleep(5)
        for _ in range(3):
            visitors.append(server.visit(one.port, early=b"new"))
            assert await receive_some(visitors[-1]) == b"new"
            assert first.queue.present == 1
        assert drain.look() == Drained(sessions=2, moved=1, visitors=5, others=NAMES)
        visitors[0].send(b"still served")
        assert await receive_some(visitors[0]) == b"still served"
        await two.say(Moved())
        await trio.sleep(5)
        assert await receive_all(server.visit(one.port)) == b""
        for visitor in visitors:
            visitor.close()
        await one.hear(Close)
        await two.hear(Close)
        await one.hear_end()
        await two.hear_end()
        await trio.testing.wait_all_tasks_blocked()
        assert drain.look().is_done
        assert server.admission.leases.ports.free == 1


async def test_what_a_group_leaves_behind_that_another_node_has_by_now(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """Who is served stays, who waits for a client that is away goes there, and so does everybody new."""
    async with drained_server(tidy, 1) as (server, drain):
        leases = server.admission.leases
        passed_on: list[Visitor] = []
        leases.pass_on = passed_on.append
        stays, lost, goes = [await mover(server, each, "web") for each in "abc"]
        stays.pool(forwarder(tidy, server.nursery))
        goes.pool(forwarder(tidy, server.nursery))
        visitors = [server.visit(stays.port, early=b"x") for _ in range(3)]
        await trio.sleep(0.1)
        drain.begin()
        await goes.hear(Drain)
        [user] = {key[0] for key in leases.by_key}
        present = {key[1]: lease.queue.present for key, lease in leases.by_key.items()}
        assert present == {"a": 1, "b": 1, "c": 1}
        leases.by_key[user, "a"].queue.open = False  # nobody here can take who waits for b
        leases.by_key[user, "c"].queue.open = False
        lost.vanish()
        while len(server.sessions) == 3:  # noqa: ASYNC110
            await trio.sleep(0.1)
        assert not passed_on
        leases.hand_over(group_key(user, "web"))  # c has come to another node
        leases.hand_over((user, "c"))
        assert len(passed_on) == 1
        assert await receive_all(server.visit(stays.port)) == b""  # there is no other node here
        await goes.say(Moved())
        await trio.sleep(20)
        assert drain.look() == Drained(sessions=2, moved=1, visitors=2, reserved=1, others=NAMES)
        served = [visitors[0], visitors[2]]
        for visitor in served:
            assert await receive_some(visitor) == b"x"
            visitor.send(b"still served")
            assert await receive_some(visitor) == b"still served"
            visitor.close()
        await goes.hear(Close)
        leases.lose(
            group_key(user, "web"), "gone"
        )  # nobody is left that would have to be told twice
        passed_on[0].endpoint.close()
        assert (user, "c") not in leases.by_key
