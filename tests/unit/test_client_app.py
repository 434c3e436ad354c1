"""The client as a whole: one session after another, and when it gives up."""

from __future__ import annotations

import os
import re
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from tests.unit.client_side import CONTROL, TUNNEL, MemoryDialer
from tests.unit.memory import MemoryEndpoint, receive_some
from tests.unit.memory_server import MemoryServer, MemoryStore, forwarder, open_memory_server
from trionat.address import TCPAddress, UnixAddress
from trionat.client.app import Client, connect
from trionat.client.native.dialer import Server
from trionat.client.native.identity import IdentityLock
from trionat.config.client import AuthConfig, ClientConfig
from trionat.config.service import Service
from trionat.errors import (
    ConnectionLostError,
    IdentityError,
    PeerError,
    RefusedError,
    SessionOverError,
)
from trionat.events import ClientEvent, Connected, Disconnected, Queued
from trionat.protocol.messages import QUEUE_TIMEOUT, Close, CloseCode, RefusalCode
from trionat.server.sessions.native import NativeSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio.testing import MockClock

    from tests.unit.conftest import Tidy

SERVICE = Service(local=UnixAddress("/in/memory"))


@attrs.define(eq=False)
class World:
    """A server, a client on its way to it, and what lies between."""

    server: MemoryServer
    client: Client
    events: list[ClientEvent]
    nursery: trio.Nursery
    error: PeerError | None = None
    silent: bool = False
    dialled: list[float] = attrs.field(factory=list)
    begun: trio.Event = attrs.field(factory=trio.Event)
    over: trio.Event = attrs.field(factory=trio.Event)
    problem: BaseException | None = None

    def dial(self, address: TCPAddress) -> MemoryEndpoint:
        if address == CONTROL:
            self.dialled.append(trio.current_time())
            self.begun.set()
        if self.error is not None:
            raise self.error
        if self.silent:
            near, far = self.server.tidy.pair()
            self.server.outside.append(far)
            return near
        return self.server.connect()

    async def run(self) -> None:
        try:
            await self.client.run()
        except PeerError as problem:
            self.problem = problem
        finally:
            self.over.set()

    async def start(self) -> None:
        """Start the client, and wait until it dials: what it reads before that is in a thread, for which no clock waits."""
        self.nursery.start_soon(self.run)
        await self.begun.wait()

    @property
    def session(self) -> NativeSession:
        (session,) = self.server.sessions
        assert isinstance(session, NativeSession)
        return session

    def cut(self) -> None:
        """Lose the control connection."""
        endpoint = self.session.channel.endpoint
        assert isinstance(endpoint, MemoryEndpoint)
        endpoint.cut()

    def told(self, kind: type[ClientEvent]) -> list[ClientEvent]:
        return [event for event in self.events if isinstance(event, kind)]


@asynccontextmanager
async def open_world(
    tidy: Tidy,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    store: MemoryStore | None = None,
    once: bool = False,
    **settings: object,
) -> AsyncIterator[World]:
    async with open_memory_server(tidy, store=store, **settings) as server:  # type: ignore[arg-type]
        made = forwarder(tidy, server.nursery)
        worlds: list[World] = []
        monkeypatch.setattr("trionat.client.app.Forwarder", lambda *_: made)
        monkeypatch.setattr(
            "trionat.client.app.ServerDialer",
            lambda server, timeout, state_dir, **_: MemoryDialer(
                server, timeout, state_dir, dial=worlds[0].dial
            ),
        )
        config = ClientConfig(
            controller_addr=CONTROL,
            tunnel_server_addr=TUNNEL,
            services=(SERVICE,),
            identity="me",
            state_dir=folder,
            once=once,
            drain_grace=5,
        )
        events: list[ClientEvent] = []
        async with trio.open_nursery() as nursery:
            client = Client(config, AuthConfig(username="alice", password="x"), events.append)
            worlds.append(World(server, client, events, nursery))
            yield worlds[0]
            nursery.cancel_scope.cancel()


async def until_up(world: World) -> None:
    with trio.fail_after(60):
        while not world.client.services:  # noqa: ASYNC110 - there is no event for it
            await trio.sleep(0.01)


@pytest.fixture
def here(
    tidy: Tidy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tidy, Path, pytest.MonkeyPatch]:
    return tidy, tmp_path, monkeypatch


Here = tuple["Tidy", "Path", pytest.MonkeyPatch]


async def test_comes_up_and_serves(here: Here, autojump_clock: MockClock) -> None:
    async with open_world(*here) as world:
        await world.start()
        await until_up(world)
        (event,) = world.events
        assert isinstance(event, Connected)
        assert event.services == world.client.services
        visitor = world.server.visit(world.client.services[0].public.port, early=b"x")
        assert await receive_some(visitor) == b"x"
        visitor.close()


async def test_a_lost_session_comes_back_at_once_with_its_port(
    here: Here, autojump_clock: MockClock
) -> None:
    async with open_world(*here) as world:
        await world.start()
        await until_up(world)
        port = world.client.services[0].public.port
        await trio.sleep(20)
        lost = trio.current_time()
        world.cut()
        await trio.testing.wait_all_tasks_blocked()
        await until_up(world)
        assert trio.current_time() - lost < 1.2
        assert world.client.services[0].public.port == port
        (disconnected,) = world.told(Disconnected)
        assert isinstance(disconnected, Disconnected)
        assert disconnected.retry_in == 0
        assert "lost" in disconnected.reason or "closed" in disconnected.reason


async def test_a_client_says_whom_it_puts_out(
    here: Here, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """And holds the lock itself when that one has ended, for the third one to see."""
    server = Server(control=CONTROL, tunnel=TUNNEL, username="alice")
    first, third = (IdentityLock.of(here[1], "me", [server]) for _ in range(2))
    assert first.take()
    async with open_world(*here) as world:
        await world.start()
        await until_up(world)
        [warning] = [line for line in caplog.messages if "another client" in line]
        assert "--identity NAME" in warning
        assert f"process={os.getpid()}" in warning
        first.release()
        with trio.fail_after(3600):
            while third.find_holder() is None:  # noqa: ASYNC110 - a thread takes it
                await trio.sleep(0.02)
        assert not third.take()
    assert not third.path.exists()


async def test_a_client_alone_says_nothing_of_others(
    here: Here, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world(*here) as world:
        await world.start()
        await until_up(world)
        assert [path.suffix for path in here[1].iterdir()] == [".lock"]
        assert "another client" not in caplog.text


async def test_the_log_tells_that_visitors_wait_and_go_on(
    here: Here, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A line for all of them together; none for what never was, and none about visitors where there are none."""
    caplog.set_level("INFO", logger="trionat.client")
    async with open_world(*here) as world:
        await world.start()
        await until_up(world)
        port = world.client.services[0].public.port
        visitors = [world.server.visit(port, early=b"x") for _ in range(3)]
        for visitor in visitors:
            assert await receive_some(visitor) == b"x"
        await trio.sleep(3)
        assert caplog.messages == []
        world.error = ConnectionLostError("cannot reach it")
        world.cut()
        await trio.sleep(10)
        [wait] = caplog.messages
        assert wait.startswith("visitors wait until the client is connected again visitors=3")
        world.error = None
        await until_up(world)
        await trio.sleep(2)
        again, go_on = caplog.messages[1:]
        assert again.startswith("connected again seconds=1")
        assert again.endswith(" waiting=3 session=2")
        assert go_on.startswith("visitors go on over another tunnel visitors=3")
        for visitor in visitors:
            visitor.send(b"y")
            assert await receive_some(visitor) == b"y"
            visitor.close()
        await trio.sleep(2)
        caplog.clear()
        world.cut()
        await trio.sleep(3)
        [again] = caplog.messages
        assert again.startswith("connected again seconds=")
        assert "waiting" not in again


@pytest.mark.parametrize("final", [True, False])
async def test_why_visitors_are_closed_that_wait_at_the_end(
    here: Here, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, final: bool
) -> None:
    caplog.set_level("INFO", logger="trionat.client")
    async with open_world(*here) as world:
        await world.start()
        await until_up(world)
        visitor = world.server.visit(world.client.services[0].public.port, early=b"x")
        assert await receive_some(visitor) == b"x"
        world.error = ConnectionLostError("cannot reach it")
        world.cut()
        await trio.sleep(5)
        if final:
            world.error = RefusedError(RefusalCode.AUTH_FAILED, "the password was changed")
            await trio.sleep(6)
        else:
            world.client.stopping.set()
            await trio.sleep(1)
        [closed] = [line for line in caplog.messages if line.startswith("visitor closed")]
        assert f"reason='{'the password was changed' if final else 'the client stops'}'" in closed
        assert re.search(r"received=1 sent=1 seconds=([5-9]|1\d)\.", closed)


async def test_its_port_again_although_the_reservation_is_over(
    here: Here, autojump_clock: MockClock
) -> None:
    async with open_world(*here, port_reservation=1) as world:
        first = await world.server.welcome("first")
        await world.start()
        await until_up(world)
        assert world.client.services[0].public.port == 60002
        await first.say(Close(code="stopped", text=""))
        await first.hear_end()
        await trio.testing.wait_all_tasks_blocked()
        world.error = ConnectionLostError("down")
        world.cut()
        await trio.sleep(30)
        assert world.server.admission.leases.ports.free == 2
        other = await world.server.welcome("other", 60002)  # so the server will not remember
        await other.say(Close(code="stopped", text=""))
        await other.hear_end()
        world.error = None
        await until_up(world)
        assert world.client.services[0].public.port == 60002


async def test_never_more_than_five_seconds_apart_and_never_a_storm(
    here: Here, autojump_clock: MockClock
) -> None:
    async with open_world(*here) as world:
        world.error = ConnectionLostError("cannot reach it")
        await world.start()
        await trio.sleep(120)
        gaps = [
            after - before for before, after in zip(world.dialled, world.dialled[1:], strict=False)
        ]
        assert max(gaps) <= 5.05
        assert min(gaps) >= 0.25
        assert min(gaps[5:]) >= 2.5
        assert len({round(gap, 3) for gap in gaps[5:]}) > 5  # spread
        for event, gap in zip(world.told(Disconnected), gaps, strict=False):
            assert isinstance(event, Disconnected)
            assert event.retry_in is not None
            assert gap == pytest.approx(event.retry_in, abs=0.02)
        world.error = None
        await until_up(world)


async def test_a_try_that_hung_has_waited_already(here: Here, autojump_clock: MockClock) -> None:
    async with open_world(*here) as world:
        world.silent = True
        await world.start()
        await trio.sleep(120)
        times = world.dialled
        assert [later - time for time, later in pairwise(times)] == pytest.approx(
            [QUEUE_TIMEOUT] * 11, abs=0.1
        )
        world.silent = False
        await until_up(world)


async def test_a_session_that_fails_at_once_is_not_retried_at_once_for_ever(
    here: Here, autojump_clock: MockClock
) -> None:
    async with open_world(*here) as world:
        await world.start()
        started = trio.current_time()
        while trio.current_time() - started < 60:
            await until_up(world)
            world.cut()
            await trio.testing.wait_all_tasks_blocked()
        assert len(world.dialled) < 30


async def test_a_session_that_was_up_for_a_second_comes_back_at_once_however_often_it_is_lost(
    here: Here, autojump_clock: MockClock
) -> None:
    async with open_world(*here) as world:
        await world.start()
        await until_up(world)
        for times in range(1, 11):
            await trio.sleep(1)
            world.cut()
            await trio.sleep(0.1)
            assert len(world.told(Connected)) == 1 + times


async def test_a_session_that_has_worked_starts_the_delays_anew(
    here: Here, autojump_clock: MockClock
) -> None:
    async with open_world(*here) as world:
        world.error = ConnectionLostError("down")
        await world.start()
        await trio.sleep(60)
        world.error = None
        await until_up(world)
        await trio.sleep(1)
        world.cut()
        await trio.testing.wait_all_tasks_blocked()
        last = world.told(Disconnected)[-1]
        assert isinstance(last, Disconnected)
        assert last.retry_in == 0


async def test_a_full_server_is_tried_again(here: Here, autojump_clock: MockClock) -> None:
    async with open_world(*here, max_tcp_conn_num=1, max_conn_num=1) as world:
        inside = await world.server.welcome("inside")
        waiting = world.server.client("waiting")
        await waiting.ask()
        world.server.nursery.start_soon(waiting.ping)
        await trio.sleep(1)
        await world.start()
        await trio.sleep(20)
        reasons = [
            event.reason for event in world.told(Disconnected) if isinstance(event, Disconnected)
        ]
        assert len(reasons) > 3
        assert all("1 clients wait" in reason for reason in reasons)
        waiting.hang_up()
        await trio.sleep(10)
        assert world.told(Queued) == [Queued(1)]
        await inside.say(Close(code="stopped", text=""))
        await until_up(world)


@pytest.mark.parametrize(("interval", "patience"), [(0.1, 0.2), (60, 300)], ids=["hasty", "slow"])
async def test_the_queue_keeps_its_own_time(
    here: Here, autojump_clock: MockClock, interval: float, patience: float
) -> None:
    """A queued client does not know the server's figures yet."""
    async with open_world(
        *here, max_tcp_conn_num=1, ping_interval=interval, peer_timeout=patience
    ) as world:
        inside = await world.server.welcome("inside")
        await world.start()
        await trio.sleep(100)
        assert world.events == [Queued(1)]
        await inside.say(Close(code="stopped", text=""))
        await until_up(world)


async def test_wrong_credentials_are_final(here: Here, autojump_clock: MockClock) -> None:
    store = MemoryStore()

    class Closed(MemoryStore):
        async def find_user(self, name: str) -> None:
            await trio.lowlevel.checkpoint()
            raise RefusedError(RefusalCode.AUTH_FAILED, "authentication failed")

    async with open_world(*here, store=Closed()) as world:
        await world.start()
        await world.over.wait()
        assert isinstance(world.problem, RefusedError)
        assert world.problem.code == RefusalCode.AUTH_FAILED
        assert world.events == [Disconnected(reason="authentication failed", retry_in=None)]
    assert not store.users


@pytest.mark.parametrize(
    "code",
    [
        CloseCode.EVICTED,
        CloseCode.KICKED,
        CloseCode.ACCOUNT_EXPIRED,
        CloseCode.ACCOUNT_REMOVED,
    ],
)
async def test_ends_that_are_final(here: Here, autojump_clock: MockClock, code: CloseCode) -> None:
    async with open_world(*here) as world:
        await world.start()
        await until_up(world)
        world.session.end(code, "that is it")
        await world.over.wait()
        assert isinstance(world.problem, SessionOverError)
        assert world.problem.code == code
        assert world.events[-1] == Disconnected(reason="that is it", retry_in=None)
        assert world.client.services == ()


@pytest.mark.parametrize("code", [CloseCode.STOPPED, CloseCode.TIMEOUT, CloseCode.PROTOCOL])
async def test_ends_that_are_not_final(
    here: Here, autojump_clock: MockClock, code: CloseCode
) -> None:
    async with open_world(*here) as world:
        await world.start()
        await until_up(world)
        world.session.end(code, "for now")
        await trio.sleep(3)
        assert len(world.told(Connected)) == 2
        last = world.told(Disconnected)[-1]
        assert isinstance(last, Disconnected)
        assert last.reason == "for now"


async def test_once(here: Here, autojump_clock: MockClock) -> None:
    async with open_world(*here, once=True) as world:
        await world.start()
        await until_up(world)
        world.cut()
        await world.over.wait()
        assert isinstance(world.problem, ConnectionLostError)
        assert len(world.dialled) == 1


async def test_a_wrong_server_is_final_at_first_but_not_later(
    here: Here, autojump_clock: MockClock
) -> None:
    async with open_world(*here) as world:
        world.error = IdentityError("somebody else")
        await world.start()
        await world.over.wait()
        assert isinstance(world.problem, IdentityError)
    async with open_world(*here) as world:
        await world.start()
        await until_up(world)
        world.error = IdentityError("a hotel")
        world.cut()
        await trio.sleep(30)
        assert not world.over.is_set()
        world.error = None
        await until_up(world)


@pytest.mark.parametrize("when", ["in the session", "in the queue", "between two tries"])
async def test_planned_stop(here: Here, autojump_clock: MockClock, when: str) -> None:
    async with open_world(*here, max_tcp_conn_num=1) as world:
        if when == "in the queue":
            await world.server.welcome("inside")
        if when == "between two tries":
            world.error = ConnectionLostError("down")
        await world.start()
        await trio.sleep(20)
        world.client.stopping.set()
        stopped = trio.current_time()
        await world.over.wait()
        assert trio.current_time() - stopped < 1.5
        assert world.problem is None
        await trio.sleep(2)
        assert len(world.server.admission.queue) == 0
        assert len(world.server.sessions) == (when == "in the queue")


async def test_connect_begins_when_services_are_reachable_and_ends_with_a_goodbye(
    here: Here, autojump_clock: MockClock
) -> None:
    async with open_world(*here) as world:
        async with connect(world.client.config, world.client.auth) as client:
            assert client.services[0].public.port == 60001
            assert world.server.admission.leases.ports.free == 1
        await trio.testing.wait_all_tasks_blocked()
        assert world.server.admission.leases.ports.free == 2


async def test_connect_that_is_cancelled(here: Here, autojump_clock: MockClock) -> None:
    async with open_world(*here) as world:
        with trio.move_on_after(10) as scope:
            async with connect(world.client.config, world.client.auth):
                await trio.sleep_forever()
        assert scope.cancelled_caught
        await trio.sleep(60)
        assert world.server.admission.leases.ports.free == 2


async def test_an_answer_needs_a_session(here: Here, autojump_clock: MockClock) -> None:
    """Whoever has answered hears whether somebody was told."""
    async with open_world(*here) as world:
        client = world.client
        assert not client.approve(0, "192.0.2.1", approved=True)
        await world.start()
        await until_up(world)
        assert client.approve(0, "192.0.2.1", approved=True)
        for service, host in ((1, "192.0.2.1"), (-1, "192.0.2.1"), (0, "shop.example")):
            with pytest.raises(ValueError, match=r"no service|address"):
                client.approve(service, host, approved=True)
        for _ in range(2):  # the second time it is some time until the next try
            world.cut()
            with trio.fail_after(60):
                while client.services:  # noqa: ASYNC110 - there is no event for it
                    await trio.lowlevel.checkpoint()
            assert not client.approve(0, "192.0.2.1", approved=True)
            await until_up(world)
        assert client.approve(0, "192.0.2.1", approved=False)
