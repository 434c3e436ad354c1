"""What is told of visitors that wait: in the log, by `trionat status`, and when they are sent away."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.unit.memory_server import (
    MemoryClient,
    MemoryServer,
    MemoryStore,
    open_memory_server,
    raw_tunnel,
    token_of,
)
from tests.unit.test_metrics import observe
from tests.unit.test_resumed_sessions import was_reset
from trionat.protocol.messages import CAPABILITIES, RESUME, Close, CloseCode, Drain, Welcome
from trionat.protocol.tunnel_frames import Abort, Resume, Resumed
from trionat.server.admin.kick import kick
from trionat.server.admin.messages import Kicked, KickUser, KickVisitor
from trionat.server.refusals import Bound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock

    from tests.unit.conftest import Tidy
    from tests.unit.memory import MemoryEndpoint
    from trionat.server.admin.snapshot import Snapshot

LATE = "its tunnel was lost, and no other came in time"
KICKED = "sent away by the server's operator"


async def resuming(
    server: MemoryServer, *services: int | None, lease: str | None = None, **hello: Any
) -> MemoryClient:
    """Return a client that can resume streams, and still has those of that lease; its session is up."""
    capabilities = (*CAPABILITIES, RESUME)
    client = server.client("same", capabilities=capabilities, resume=lease, **hello)
    await client.ask(*services)
    client.welcome = await client.hear(Welcome)
    return client


async def begun(
    server: MemoryServer, client: MemoryClient
) -> tuple[MemoryEndpoint, int, MemoryEndpoint]:
    """Return a visitor whose service has answered, its number, and the wire of its tunnel."""
    wire = await raw_tunnel(client)
    visitor = server.visit(client.port, early=b"question")
    opened = await wire.opened()
    wire.data(b"answer")
    await trio.testing.wait_all_tasks_blocked()
    return visitor, opened.visitor, wire.wire


@asynccontextmanager
async def away(
    tidy: Tidy, **settings: Any
) -> AsyncIterator[tuple[MemoryServer, MemoryClient, int]]:
    """A server whose client has been lost a second ago with a visitor that was served, and that visitor's number."""
    async with open_memory_server(tidy, **settings) as server:
        hello: dict[str, Any] = {}
        if "store" in settings:
            hello = {"username": "alice", "token": token_of("alice")}
        client = await resuming(server, **hello)
        _, number, _ = await begun(server, client)
        client.hang_up()
        await trio.sleep(1)
        yield server, client, number


def told(caplog: pytest.LogCaptureFixture, event: str = "visitor closed") -> list[dict[str, str]]:
    """Return the fields of the records of that event."""
    pattern = re.compile(r"(\w+)=('[^']*'|\"[^\"]*\"|\S+)")
    return [
        {name: value.strip("'\"") for name, value in pattern.findall(message)}
        for message in caplog.messages
        if message.startswith(event)
    ]


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="trionat")


# -- why they are closed ----------------------------------------------------------------------------------------------


async def test_the_server_stops_while_the_client_is_away(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the two only the one that never had a tunnel counts as refused."""
    async with away(tidy) as (server, client, number):
        server.visit(client.port)
        await server.drain()
        served, new = told(caplog)
        assert (served["visitor"], served["reason"]) == (str(number), "the server stops")
        assert new["reason"] == "the server stops"
        assert (served["received"], served["sent"]) == ("8", "6")
        assert (new["received"], new["sent"]) == ("0", "0")
        assert server.context.refusals.counts == {Bound.LEAVING: 1}


async def test_the_server_stops_at_once(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with away(tidy):
        pass
    [closed] = told(caplog)
    assert closed["reason"] == "the server stops"


async def test_the_client_stops(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        _, _, wire = await begun(server, client)
        wire.reset()
        await trio.testing.wait_all_tasks_blocked()
        await client.say(Close(code=CloseCode.STOPPED, text="it was stopped"))
        await client.hear_end()
        [closed] = told(caplog)
        assert closed["reason"] == "the client says: it was stopped"
        assert server.context.refusals.counts == {}


async def test_a_client_that_is_leaving_is_lost(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        await begun(server, client)
        await client.say(Drain(seconds=30))
        await trio.testing.wait_all_tasks_blocked()
        client.hang_up()
        await trio.sleep(1)
        [closed] = told(caplog)
        assert closed["reason"] == "the client has left"


async def test_a_session_that_the_server_ends(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        await begun(server, client)
        server.sessions[0].end(CloseCode.ACCOUNT_REMOVED, "the account was removed")
        await client.hear(Close)
        await trio.sleep(1)
        [closed] = told(caplog)
        assert closed["reason"] == "the account was removed"


async def test_its_absent_client_is_kicked(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with away(tidy, store=MemoryStore("alice")) as (server, client, _):
        assert (await kick(server.context, KickUser("alice"))).reserved == (client.port,)
        [closed] = told(caplog)
        assert closed["reason"] == KICKED


async def test_the_client_comes_back_for_other_ports(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with away(tidy, ports=3) as (server, _, _):
        await resuming(server, None, None)
        [closed] = told(caplog)
        assert closed["reason"] == "the client came back for other ports"


async def test_another_client_takes_the_session_that_stood_reserved(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore("alice")
    store.limit("alice", sessions=1)
    async with away(tidy, store=store) as (server, _, _):
        other = server.client("other", username="alice", token=token_of("alice"))
        await other.ask()
        await other.hear(Welcome)
        [closed] = told(caplog)
        assert closed["reason"] == "this user has another session instead"


@pytest.mark.parametrize(("reservation", "resume_wait"), [(30, 30), (30, 7), (7, 30)])
@pytest.mark.parametrize("lost_before", [0.0, 0.3, 0.9])
async def test_the_client_does_not_come_back(
    tidy: Tidy,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    reservation: float,
    resume_wait: float,
    lost_before: float,
) -> None:
    """One reason, whichever of the two is over first, and whether its tunnel was lost with the session or before."""
    async with open_memory_server(
        tidy, port_reservation=reservation, resume_wait=resume_wait
    ) as server:
        client = await resuming(server)
        _, _, wire = await begun(server, client)
        wire.cut()
        await trio.sleep(lost_before)
        client.hang_up()
        await trio.sleep(32)
        [closed] = told(caplog)
        assert closed["reason"] == LATE
        assert server.context.refusals.counts == {}


# -- who is kicked ----------------------------------------------------------------------------------------------------


async def shown(server: MemoryServer) -> Snapshot:
    """What `trionat status` gets."""
    return await observe(server).snapshot()


async def test_who_was_kicked_does_not_wait_any_more(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is it there to be kicked again; only its place is, until the client is told."""
    async with away(tidy) as (server, client, number):
        server.visit(client.port)
        assert await kick(server.context, KickVisitor(number)) == Kicked(visitors=(number,))
        assert await kick(server.context, KickVisitor(number)) == Kicked()
        [reserved] = (await shown(server)).reserved
        assert [visitor.number for visitor in reserved.visitors] == [number + 1]
        assert reserved.waiting == 1
        [lease] = server.admission.leases
        assert lease.queue.waiting == 2
        assert client.welcome.resumption is not None
        back = await resuming(server, lease=client.welcome.resumption.lease)
        assert await kick(server.context, KickVisitor(number)) == Kicked()
        wire = await raw_tunnel(back)
        assert isinstance(await wire.next(), Resume)
        assert await kick(server.context, KickVisitor(number)) == Kicked()  # on its tunnel
        [session] = (await shown(server)).sessions
        assert [visitor.number for visitor in session.visitors] == [number + 1]
        assert session.tunnels_busy == 1
        wire.wire.send(Resumed(8).encode())
        await wire.next()
        wire.wire.close()
        await trio.sleep(40)
        assert [(each["visitor"], each["reason"]) for each in told(caplog)] == [
            (str(number), KICKED),
            (str(number + 1), "no tunnel for it in time"),
        ]
        assert len(told(caplog, "visitor waits for another tunnel")) == 1


async def test_who_was_kicked_keeps_that_reason(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with away(tidy) as (server, _, number):
        await kick(server.context, KickVisitor(number))
        await server.drain()
        [closed] = told(caplog)
        assert closed["reason"] == KICKED


async def test_only_its_last_words_wait(tidy: Tidy, autojump_clock: MockClock) -> None:
    """The visitor has left; its place is kept, since the client may not have heard all of it."""
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        wire = await raw_tunnel(client)
        visitor = server.visit(client.port, early=b"all of it")
        opened = await wire.opened()
        wire.end()
        visitor.close()
        await trio.testing.wait_all_tasks_blocked()
        wire.wire.reset()
        await trio.testing.wait_all_tasks_blocked()
        assert server.sessions[0].lease.queue.waiting == 1
        assert (await shown(server)).sessions[0].visitors == ()
        assert await kick(server.context, KickVisitor(opened.visitor)) == Kicked()


# -- what a session has served ----------------------------------------------------------------------------------------


async def test_a_session_counts_whom_it_has_served(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether they end in it or not, each once, however many tunnels it needs."""
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        _, _, wire = await begun(server, client)
        wire.reset()
        again = await raw_tunnel(client)
        assert isinstance(await again.next(), Resume)
        client.hang_up()
        await trio.sleep(1)
        assert client.welcome.resumption is not None
        client = await resuming(server, lease=client.welcome.resumption.lease)
        wire = (await raw_tunnel(client)).wire
        await trio.testing.wait_all_tasks_blocked()
        client.hang_up()
        await trio.sleep(1)
        assert [closed["visitors"] for closed in told(caplog, "session closed")] == ["1", "1"]
        client = await resuming(server)
        client.hang_up()
        await trio.sleep(1)
        assert told(caplog, "session closed")[-1]["visitors"] == "0"


async def test_a_kick_is_told_at_once(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Although its place is kept until the client is told."""
    async with away(tidy) as (server, client, number):
        assert await kick(server.context, KickVisitor(number)) == Kicked(visitors=(number,))
        (closed,) = told(caplog)
        assert closed["reason"] == KICKED
        assert client.welcome.resumption is not None
        back = await resuming(server, lease=client.welcome.resumption.lease)
        wire = await raw_tunnel(back)
        assert isinstance(await wire.next(), Resume)
        wire.wire.send(Resumed(len(b"question")).encode())
        assert isinstance(await wire.next(), Abort)
        back.hang_up()
        await trio.sleep(1)
        assert len(told(caplog)) == 1
        assert [ended["visitors"] for ended in told(caplog, "session closed")] == ["1", "0"]


async def test_who_has_gone_is_not_refused(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with away(tidy) as (server, client, _):
        visitor = server.visit(client.port)
        await trio.sleep(0.1)
        visitor.reset()
        await trio.sleep(0.1)
        await server.drain()
        assert Bound.LEAVING not in server.context.refusals.counts


@pytest.mark.parametrize("quiet", [2, 25, 31, 3600])
async def test_who_says_nothing_survives_the_next_loss_as_well(
    tidy: Tidy, autojump_clock: MockClock, quiet: float
) -> None:
    """As somebody who does not type. It was reset at once when it had been quiet for longer than `ResumeWait`."""
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        visitor, number, wire = await begun(server, client)
        for _ in range(3):
            wire.reset()
            await trio.sleep(25)
            tunnel = await raw_tunnel(client)
            resume = await tunnel.next()
            assert isinstance(resume, Resume)
            assert resume.open.visitor == number
            wire = tunnel.wire
            wire.send(Resumed(len(b"question")).encode())
            await trio.sleep(quiet)
        assert not was_reset(visitor)


async def test_who_says_nothing_survives_the_next_loss_of_its_session(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        visitor, _, _ = await begun(server, client)
        for _ in range(3):
            assert client.welcome.resumption is not None
            lease = client.welcome.resumption.lease
            client.hang_up()
            await trio.sleep(25)
            client = await resuming(server, lease=lease)
            tunnel = await raw_tunnel(client)
            assert isinstance(await tunnel.next(), Resume)
            tunnel.wire.send(Resumed(len(b"question")).encode())
            await trio.sleep(60)
        assert not was_reset(visitor)


async def test_clients_hear_of_a_stop_when_the_visit_ports_are_closed(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """Not before: one that was told found its port open still, now and then."""
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        server.stopping.set()  # whoever closes the ports hears of it
        with trio.move_on_after(1):
            await client.hear(Drain)
            pytest.fail("told before")
        server.admission.drain()
        await client.hear(Drain)
