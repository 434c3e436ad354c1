"""Several clients of one user at the same visit port: who gets a visitor, and what happens as clients come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.unit.memory_server import MemoryClient, MemoryServer, open_memory_server, raw_tunnel
from tests.unit.test_metrics import observe
from trionat.protocol.messages import (
    CAPABILITIES,
    GROUPS,
    Close,
    CloseCode,
    Down,
    Drain,
    Queued,
    RefusalCode,
    Refused,
    Welcome,
)
from trionat.server.admin.kick import kick
from trionat.server.admin.messages import KickSession, KickUser
from trionat.server.registry.claim import group_key

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.conftest import Tidy


def present(server: MemoryServer) -> dict[str, int]:
    """Return how many visitors each client has, waiting or served, by its identity."""
    leases = server.admission.leases.by_key
    return {str(key[1]): lease.queue.present for key, lease in leases.items()}


async def members(server: MemoryServer, *identities: str, **options: int) -> list[MemoryClient]:
    return [await server.welcome(each, group="web", **options) for each in identities]


async def test_they_share_a_port_and_a_slot_and_each_visitor_goes_to_the_one_with_the_fewest(
    tidy: Tidy,
    autojump_clock: MockClock,
) -> None:
    async with open_memory_server(tidy, ports=3) as server:
        clients = await members(server, "a", "b", "c")
        assert {client.port for client in clients} == {60001}
        assert GROUPS in clients[0].welcome.capabilities
        for _ in range(7):
            server.visit(60001)
        assert sorted(present(server).values()) == [2, 2, 3]
        others = [await server.welcome(identity) for identity in ("d", "f")]
        assert [other.port for other in others] == [60002, 60003]
        late = server.client("e")
        await late.ask()
        assert (await late.hear(Queued)).position == 1


async def test_who_has_served_its_visitor_gets_the_next_one(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=1) as server:
        one, _ = await members(server, "a", "b")
        wire = await raw_tunnel(one)
        ends = [server.visit(60001) for _ in range(2)]
        assert present(server) == {"a": 1, "b": 1}
        assert (await wire.opened()).visit_port == 60001
        ends[0].close()
        wire.end()
        await trio.sleep(0.1)
        assert present(server) == {"a": 0, "b": 1}
        server.visit(60001)
        assert present(server) == {"a": 1, "b": 1}


async def test_every_service_has_a_port_of_its_own(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=2) as server:
        one = await server.welcome("a", None, None, group="web")
        two = await server.welcome("b", None, 60002, group="web")
        assert one.welcome.ports == two.welcome.ports == (60001, 60002)
        await one.say(Down((1,)))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            server.visit(60002)
        assert present(server) == {"a": 0, "b": 3}
        for _ in range(3):
            server.visit(60001)
        assert present(server) == {"a": 3, "b": 3}


async def test_a_client_whose_service_is_down_is_left_out_while_it_is(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=1) as server:
        one, two = await members(server, "a", "b")
        await one.say(Down((0,)))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            server.visit(60001)
        assert present(server) == {"a": 0, "b": 3}
        await two.say(Down((0,)))  # now it is the same with all of them
        await trio.testing.wait_all_tasks_blocked()
        server.visit(60001)
        assert present(server) == {"a": 1, "b": 3}
        await one.say(Down(()))
        await two.say(Down(()))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(4):
            server.visit(60001)
        assert present(server) == {"a": 4, "b": 4}


async def test_a_service_that_is_not_there_cannot_be_down(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=2) as server:
        [one] = await members(server, "a")
        await one.say(Down((1,)))
        closed = await one.hear(Close)
        assert closed.code == CloseCode.PROTOCOL
        plain = await server.welcome("plain", None)
        await plain.say(Down((0,)))  # without the capability it is no message
        assert (await plain.hear(Close)).code == CloseCode.PROTOCOL


async def test_visitors_of_a_client_that_is_lost_go_to_the_others(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=1) as server:
        one, _ = await members(server, "a", "b")
        for _ in range(4):
            server.visit(60001)
        assert present(server) == {"a": 2, "b": 2}
        one.hang_up()
        await trio.sleep(0.1)
        assert present(server) == {"a": 0, "b": 4}
        snapshot = await observe(server).snapshot()
        [reserved] = snapshot.reserved
        assert (reserved.group, reserved.ports, reserved.waiting) == ("web", (60001,), 0)
        assert [session.group for session in snapshot.sessions] == ["web"]
        server.visit(60001)
        assert present(server) == {"a": 0, "b": 5}
        back = await server.welcome("a", group="web")  # its place was kept
        assert back.port == 60001
        server.visit(60001)
        assert present(server) == {"a": 1, "b": 5}


async def test_with_nobody_else_visitors_wait_for_the_first_that_comes_back(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=1) as server:
        for client in await members(server, "a", "b"):
            client.hang_up()
        await trio.sleep(0.1)
        for _ in range(4):
            server.visit(60001)
        assert present(server) == {"a": 2, "b": 2}
        back = await server.welcome("a", group="web")
        assert present(server) == {"a": 4, "b": 0}
        assert (await (await raw_tunnel(back)).opened()).visit_port == 60001


@pytest.mark.parametrize("way", ["drain", "close", "kick"])
async def test_a_client_that_leaves_gets_no_more_visitors(
    way: str, tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=1) as server:
        one, _ = await members(server, "a", "b")
        for _ in range(2):
            server.visit(60001)
        if way == "drain":
            await one.say(Drain(seconds=5))
        elif way == "close":
            await one.say(Close(code=CloseCode.STOPPED, text="bye"))
        else:
            await kick(server.context, KickSession(one.welcome.uid))
        await trio.testing.wait_all_tasks_blocked()
        server.visit(60001)
        # The one that waited there is served elsewhere.
        assert {"a": 0} | present(server) == {"a": 0, "b": 3}


async def test_kicking_all_of_them_closes_who_waits(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=1) as server:
        one, two, _ = await members(server, "a", "b", "c")
        ends = [server.visit(60001) for _ in range(3)]
        one.hang_up()
        two.hang_up()
        await trio.sleep(0.1)
        [user] = {key[0] for key in server.admission.leases.by_key}
        kicked = await kick(server.context, KickUser(user))
        assert len(kicked.sessions) == 1
        assert kicked.reserved == (60001,)
        assert not present(server)
        assert all(end.peer.closed for end in ends)
        assert server.admission.leases.ports.free == 1


async def test_the_port_is_the_group_s_until_the_last_one_has_gone(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=2) as server:
        clients = await members(server, "a", "b")
        pool = server.admission.leases.ports
        for left, client in ((1, clients[0]), (2, clients[1])):
            await client.say(Close(code=CloseCode.STOPPED, text="bye"))
            await trio.sleep(0.1)
            assert pool.free == left
        assert not present(server)
        await server.welcome("x")  # takes the one that is unused
        [again] = await members(server, "c")
        assert again.port == 60001  # a group is remembered as a client is


async def test_a_place_is_kept_for_a_lost_client_as_long_as_a_port_would_be(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=1, port_reservation=5, max_group_clients=2) as server:
        one, _ = await members(server, "a", "b")
        one.hang_up()
        await trio.sleep(4)
        late = server.client("c")
        await late.ask(group="web")
        refused = await late.hear(Refused)
        assert refused.code == RefusalCode.FULL
        assert refused.text == (
            "the group web has all the clients that it may have at once (2, MaxGroupClients)"
        )
        await trio.sleep(2)
        await server.welcome("c", group="web")
        assert set(present(server)) == {"b", "c"}


@pytest.mark.parametrize(
    ("services", "reason"),
    [
        ((None, None), "the group web has 1 service, and this client 2"),
        ((60002,), "the group web is at visit port 60001, and not at 60002"),
    ],
)
async def test_who_does_not_fit_is_told_why(
    services: tuple[int | None, ...], reason: str, tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=3) as server:
        await members(server, "a")
        other = server.client("b")
        await other.ask(*services, group="web")
        refused = await other.hear(Refused)
        assert (refused.code, refused.text) == (RefusalCode.PORT_TAKEN, reason)


async def test_a_client_that_changes_its_group_gives_its_place_up(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=2) as server:
        await members(server, "a", "b")
        moved = await server.welcome("a", group="api")
        assert moved.port == 60002
        alone = await server.welcome("b")
        assert alone.port == 60001  # which its group has given back


async def test_the_capability_makes_the_group(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=2) as server:
        await members(server, "a")
        older = server.client("b", capabilities=CAPABILITIES)
        await older.ask(group="web")
        welcome = await older.hear(Welcome)
        assert welcome.ports == (60002,)
        assert GROUPS not in welcome.capabilities


async def test_who_joins_needs_not_wait_for_those_who_need_ports(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=1) as server:
        await members(server, "a")
        other = server.client("other")
        await other.ask()
        assert (await other.hear(Queued)).position == 1
        await server.welcome("b", group="web")
        assert set(present(server)) == {"a", "b"}


async def test_a_full_client_gets_no_more(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=1, max_visitors=2) as server:
        await members(server, "a", "b")
        far = [server.visit(60001) for _ in range(5)]
        assert present(server) == {"a": 2, "b": 2}
        assert far[-1].peer.closed


async def test_a_group_that_another_node_has_by_now_is_left_and_its_clients_come_again(
    tidy: Tidy,
    autojump_clock: MockClock,
) -> None:
    async with open_memory_server(tidy, ports=2) as server:
        clients = await members(server, "a", "b")
        alone = await server.welcome("x")
        server.visit(60001)
        [user] = {key[0] for key in server.admission.leases.by_key}
        server.admission.leases.lose(group_key(user, "web"), "the group is elsewhere")
        for client in clients:
            closed = await client.hear(Close)
            assert (closed.code, closed.text) == (CloseCode.STOPPED, "the group is elsewhere")
        await trio.sleep(0.1)
        assert set(present(server)) == {"x"}
        assert server.admission.leases.ports.free == 1
        assert alone.port == 60002
        [again] = await members(server, "a")
        assert again.port == 60001
