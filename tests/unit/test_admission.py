"""Who is let in, when, and with which ports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.unit.memory import receive_some
from tests.unit.memory_server import MemoryClient, MemoryServer, open_memory_server
from trionat.errors import RefusedError
from trionat.protocol.frames import encode_frame
from trionat.protocol.messages import (
    Attach,
    Close,
    CloseCode,
    Drain,
    Expose,
    Hello,
    Ping,
    Queued,
    RefusalCode,
    Refused,
    ServiceRequest,
    Welcome,
)
from trionat.server.admission.queue import OVERTAKEN_FOR

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.conftest import Tidy
    from trionat.server.registry.claim import Claim, Wish


async def test_welcome(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        one = await server.welcome("one")
        two = await server.welcome("two")
        assert (one.welcome.uid, two.welcome.uid) == (1, 2)
        assert (one.port, two.port) == (60001, 60002)
        assert one.welcome.host == "public.example"
        assert (one.welcome.ping_interval, one.welcome.peer_timeout) == (2.5, 8)
        assert one.welcome.secret != two.welcome.secret
        assert trio.current_time() - server.sessions[0].since < 0.01
        await trio.sleep(100)  # pings both ways keep it up
        assert len(server.sessions) == 2
    assert tidy.endpoints


async def test_full(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=1, max_conn_num=2) as server:
        await server.welcome("inside")
        waiting = [await queue(server, f"waiting {number}", number) for number in (1, 2)]
        late = server.client("late")
        await late.ask()
        refused = await late.hear(Refused)
        assert refused.code == RefusalCode.FULL
        assert "1 sessions" in refused.text
        assert "2 clients" in refused.text
        await late.hear_end()
        assert len(server.admission.queue) == 2
        assert all(not client.pending() for client in waiting)


async def queue(server: MemoryServer, identity: str, position: int) -> MemoryClient:
    """Return a client that waits, and pings."""
    client = server.client(identity)
    await client.ask()
    assert (await client.hear(Queued)).position == position
    server.nursery.start_soon(client.ping)
    return client


async def test_positions_move_up_and_the_first_is_let_in_first(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=1) as server:
        inside = await server.welcome("inside")
        waiting = [await queue(server, str(number), number) for number in range(1, 5)]
        for client in waiting:
            await inside.say(Close(code="stopped", text="bye"))
            client.welcome = await hear_after_queued(client)
            assert client.port == 60001
            inside = client
            await trio.sleep(0.1)
            rest = waiting[waiting.index(client) + 1 :]
            assert [last_position(other) for other in rest] == list(range(1, len(rest) + 1))


async def hear_after_queued(client: MemoryClient) -> Welcome:
    while True:
        message = await client._inbox.receive()
        if not isinstance(message, Queued):
            assert isinstance(message, Welcome)
            return message


def last_position(client: MemoryClient) -> int:
    return [message for message in client.heard if isinstance(message, Queued)][-1].position


async def test_position_is_told_again_as_a_sign_of_life(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=1) as server:
        await server.welcome("inside")
        waiting = await queue(server, "waiting", 1)
        await trio.sleep(25.1)
        assert waiting.pending() == [Queued(position=1)] * 10


async def test_a_queued_client_that_speaks_but_does_not_read(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=1) as server:
        await server.welcome("inside")
        deaf = server.client("deaf", capacity=40)
        await deaf.ask()
        await deaf.hear(Queued)
        deaf.vanish()
        server.nursery.start_soon(deaf.ping)
        await trio.sleep(30)
        assert len(server.admission.queue) == 0


async def test_a_hang_up_frees_its_place_at_once(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=1, max_conn_num=3) as server:
        await server.welcome("inside")
        one, two, three = [await queue(server, str(number), number) for number in (1, 2, 3)]
        two.hang_up()
        await trio.testing.wait_all_tasks_blocked()
        assert len(server.admission.queue) == 2
        assert three.pending() == [Queued(position=2)]
        assert one.pending() == []
        four = await queue(server, "4", 3)
        await one.say(Close(code="stopped", text="bye"))
        await one.hear_end()
        await trio.testing.wait_all_tasks_blocked()
        assert [last_position(client) for client in (three, four)] == [1, 2]


async def test_silence_in_the_queue(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=1) as server:
        await server.welcome("inside")
        mute = server.client("mute")
        await mute.ask()
        await mute.hear(Queued)
        started = trio.current_time()
        await trio.sleep(20)
        assert mute.ended_at is not None
        assert 9.9 < mute.ended_at - started < 10.2
        assert len(server.admission.queue) == 0


async def test_what_a_queued_client_must_not_say(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=1) as server:
        await server.welcome("inside")
        for message in (Drain(seconds=1), Queued(position=1), Expose(services=(ServiceRequest(),))):
            client = await queue(server, "rude", 1)
            await client.say(message)
            await client.hear_end()
            assert len(server.admission.queue) == 0


async def test_hang_up_while_waiting_for_ports(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=2) as server:
        await server.welcome("holder")
        wide = server.client("wide")
        await wide.ask(None, None)
        await wide.hear(Queued)
        wide.hang_up()
        await trio.testing.wait_all_tasks_blocked()
        assert (await server.welcome("next")).port == 60002


async def test_wanted_port(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=3) as server:
        client = server.client("one")
        await client.ask(60003, None)
        assert (await client.hear(Welcome)).ports == (60003, 60001)
        other = server.client("two")
        await other.ask(60003)
        refused = await other.hear(Refused)
        assert (refused.code, "60003" in refused.text) == (RefusalCode.PORT_TAKEN, True)
        await other.hear_end()
        assert (await server.welcome("three")).port == 60002


@pytest.mark.parametrize(
    ("services", "code", "words"),
    [
        ((60009,), RefusalCode.PORT_NOT_OFFERED, "60001-60003"),
        ((60001, 60001), RefusalCode.PORT_NOT_OFFERED, "two services"),
        ((None,) * 4, RefusalCode.TOO_MANY_SERVICES, "3 visit ports"),
        ((None,) * 3, RefusalCode.TOO_MANY_SERVICES, "2 allowed"),
    ],
    ids=["not offered", "asked for twice", "more than ports", "more than MaxServices"],
)
async def test_what_waiting_would_not_help(
    tidy: Tidy,
    autojump_clock: MockClock,
    services: tuple[int | None, ...],
    code: RefusalCode,
    words: str,
) -> None:
    async with open_memory_server(tidy, ports=3, max_services=2) as server:
        client = server.client()
        await client.ask(*services)
        refused = await client.hear(Refused)
        assert refused.code == code
        assert words in refused.text
        await client.hear_end()


async def test_preferred_port_is_had_again_where_it_is_free(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=3) as server:
        for port in (60002, 60003, 60002):
            client = server.client("one")
            await client.ask(preferred=port)
            client.welcome = await client.hear(Welcome)
            assert client.port == port
            await client.say(Close(code="stopped", text="bye"))
            await client.hear_end()
        await server.welcome("two")
        assert (await server.welcome("one")).port != 60001  # nobody else's


# -- newcomers with the identity of somebody who is here already ------------------------------------------------------


async def test_eviction_keeps_the_port(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=3) as server:
        await server.welcome("other")
        old = await server.welcome("same")
        started = trio.current_time()
        new = await server.welcome("same")
        assert trio.current_time() - started < 0.1
        assert new.port == old.port == 60002
        assert new.welcome.uid == 3
        assert (await old.hear(Close)).code == CloseCode.EVICTED
        await old.hear_end()
        assert [session.uid for session in server.sessions] == [1, 3]
        assert len(server.admission.leases.by_key) == 2


async def test_eviction_of_one_that_is_silently_dead(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=1) as server:
        old = await server.welcome("same")
        old.vanish()
        started = trio.current_time()
        new = await server.welcome("same")
        assert trio.current_time() - started < 2
        assert new.port == old.port


async def test_eviction_without_reservation_keeps_the_port(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=2, port_reservation=0) as server:
        for _ in range(20):
            assert (await server.welcome("same")).port == 60001


async def test_eviction_by_one_that_wants_other_ports(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=2) as server:
        old = await server.welcome("same")
        new = server.client("same")
        await new.ask(60002)
        assert (await new.hear(Welcome)).ports == (60002,)
        assert (await old.hear(Close)).code == CloseCode.EVICTED
        await trio.sleep(1)
        assert server.admission.leases.ports.free == 1
        wide = server.client("same")
        await wide.ask(None, None)
        assert sorted((await wide.hear(Welcome)).ports) == [60001, 60002]


async def test_eviction_in_the_queue(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=1) as server:
        inside = await server.welcome("inside")
        old = await queue(server, "same", 1)
        other = await queue(server, "other", 2)
        new = await queue(server, "same", 2)
        assert (await old.hear(Refused)).code == CloseCode.EVICTED
        await old.hear_end()
        assert last_position(other) == 1
        await inside.say(Close(code="stopped", text="bye"))
        other.welcome = await hear_after_queued(other)
        await other.say(Close(code="stopped", text="bye"))
        new.welcome = await hear_after_queued(new)


async def test_eviction_in_a_full_queue_takes_the_place(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=1, max_conn_num=1) as server:
        await server.welcome("inside")
        old = await queue(server, "same", 1)
        new = await queue(server, "same", 1)
        assert (await old.hear(Refused)).code == CloseCode.EVICTED
        await trio.sleep(30)
        assert set(new.pending()) == {Queued(position=1)}


async def test_a_crowd_with_one_identity_ends_with_one_session(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=2) as server:
        clients = [server.client("same") for _ in range(30)]
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(client.ask)
        await trio.sleep(5)
        assert len(server.sessions) == 1
        assert server.admission.leases.ports.free == 1
        assert sum(client.ended_at is None for client in clients) == 1


async def test_a_crowd_that_wants_other_ports_than_the_session_has(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=3) as server:
        await server.welcome("same")
        clients = [server.client("same") for _ in range(10)]
        async with trio.open_nursery() as nursery:
            for number, client in enumerate(clients):
                nursery.start_soon(client.ask, 60002 + number % 2)
        await trio.sleep(5)
        assert len(server.sessions) == 1
        assert len(server.admission.leases.by_key) == 1
        assert server.admission.leases.ports.free == 2
        assert sum(client.ended_at is None for client in clients) == 1


async def test_users_with_the_same_identity_are_different(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy) as server:
        pool = server.admission.leases.ports
        one = pool.take((ServiceRequest(),), ("alice", "same"))
        two = pool.take((ServiceRequest(),), ("bob", "same"))
        assert one is not None
        assert two is not None
        assert {port.last_holder for port in (*one, *two)} == {("alice", "same"), ("bob", "same")}
        pool.give_back((*one, *two))


# -- leases that outlive sessions -------------------------------------------------------------------------------------


async def test_lost_session_is_taken_over_within_the_reservation(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=1, port_reservation=30) as server:
        old = await server.welcome("same")
        old.endpoint.reset()
        await trio.sleep(20)
        assert server.sessions == []
        assert server.admission.leases.ports.free == 0
        stranger = await queue(server, "stranger", 1)
        new = await server.welcome("same")  # past the queue
        assert new.port == old.port
        assert stranger.pending() == [] or set(stranger.pending()) <= {Queued(position=1)}


async def test_reservation_expires(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=1, port_reservation=30) as server:
        old = await server.welcome("old")
        stranger = await queue(server, "stranger", 1)
        old.hang_up()
        lost = trio.current_time()
        await hear_after_queued(stranger)
        assert 29.9 < trio.current_time() - lost < 30.1


async def test_reservation_of_nothing(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=1, port_reservation=0) as server:
        old = await server.welcome("old")
        old.hang_up()
        started = trio.current_time()
        await server.welcome("stranger")
        assert trio.current_time() - started < 0.1


@pytest.mark.parametrize("goodbye", ["close", "drain and loss"])
async def test_goodbye_frees_at_once(tidy: Tidy, autojump_clock: MockClock, goodbye: str) -> None:
    async with open_memory_server(tidy, ports=1, port_reservation=30) as server:
        old = await server.welcome("old")
        if goodbye == "close":
            await old.say(Close(code="stopped", text="bye"))
        else:
            await old.say(Drain(seconds=5))
            old.hang_up()
        started = trio.current_time()
        await server.welcome("stranger")
        assert trio.current_time() - started < 0.1


async def test_slot_is_taken_as_long_as_the_lease(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=3, max_tcp_conn_num=1, port_reservation=30) as server:
        old = await server.welcome("old")
        old.hang_up()
        started = trio.current_time()
        stranger = await queue(server, "stranger", 1)
        await hear_after_queued(stranger)
        assert trio.current_time() - started > 29


async def test_hang_up_in_the_moment_of_being_let_in(tidy: Tidy, autojump_clock: MockClock) -> None:
    """Ports become free and the one who waits for them hangs up, so many scheduling steps apart."""
    for steps in range(12):
        async with open_memory_server(tidy, ports=1, port_reservation=0) as server:
            inside = await server.welcome("inside")
            waiting = await queue(server, "waiting", 1)
            inside.hang_up()
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            waiting.hang_up()
            await trio.sleep(3)
            assert server.sessions == []
            assert server.admission.leases.ports.free == 1
            await server.welcome("next")


async def test_newcomer_in_the_moment_in_which_its_rival_is_let_in(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    for steps in range(16):
        async with open_memory_server(tidy, ports=1, port_reservation=0) as server:
            inside = await server.welcome("inside")
            await queue(server, "same", 1)
            inside.hang_up()
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            new = server.client("same")
            await new.ask()
            server.nursery.start_soon(new.ping)
            await hear_after_queued(new)
            await trio.sleep(3)
            assert len(server.sessions) == 1
            (lease,) = server.admission.leases.by_key.values()
            assert lease.queue.open


async def test_refused_in_the_moment_in_which_it_was_let_in(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """It has its lease, and its own task does not know yet: the operator's word is the last, and its port is free."""
    async with open_memory_server(tidy, ports=1) as server:
        holder = await server.welcome("holder")
        waiting = server.client("waiting")
        await waiting.ask()
        await waiting.hear(Queued)
        leases = server.admission.leases
        holder.channel.endpoint.reset()  # lost: its port is kept
        await trio.sleep(1)
        (kept,) = leases
        user = kept.key[0]
        leases.release(kept, "its client has left")
        await server.admission._assign()
        (granted,) = leases
        assert not granted.occupied
        refused = server.admission.send_away(user, RefusedError("kicked", "go"))
        assert refused[0] == 1
        assert (await waiting.hear(Refused)).code == "kicked"
        await waiting.hear_end()
        assert leases.ports.free == 1


async def test_a_port_that_is_taken_away_in_the_moment_in_which_it_was_given(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """It has its lease, and its own task does not know yet: it waits again, and gets another port."""
    async with open_memory_server(tidy, ports=1) as server:
        holder = await server.welcome("holder")
        waiting = server.client("waiting")
        await waiting.ask()
        await waiting.hear(Queued)
        leases = server.admission.leases
        holder.channel.endpoint.reset()  # lost: its port is kept
        await trio.sleep(1)
        (kept,) = leases
        leases.release(kept, "its client has left")
        await server.admission._assign()
        (granted,) = leases
        assert not granted.occupied
        leases.ports.remove(granted.port_numbers)
        leases.ports.add([60007])
        granted.give_up("its visit port was taken away")
        assert granted.released
        server.nursery.start_soon(waiting.ping)
        welcome = await hear_after_queued(waiting)
        assert isinstance(welcome, Welcome)
        (lease,) = leases
        assert lease.occupied
        assert lease.port_numbers == (60007,)


def slow_down(monkeypatch: pytest.MonkeyPatch, server: MemoryServer, seconds: float) -> None:
    """Have the registry take its time for each claim, as one that is far away does."""
    kind = type(server.admission.leases.registry)
    claim = kind.claim

    async def slow(self: Any, wish: Wish) -> Claim | None:
        await trio.sleep(seconds)
        return await claim(self, wish)

    monkeypatch.setattr(kind, "claim", slow)


async def test_who_waits_is_told_so_while_others_are_claimed_for(
    tidy: Tidy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits in silence, and who leaves is noticed."""
    async with open_memory_server(tidy, ports=3) as server:
        slow_down(monkeypatch, server, 1.0)
        clients = [server.client(name) for name in ("one", "two", "three")]
        for client in clients:
            await client.ask()
        with trio.fail_after(0.8):
            assert await hear_position(clients[2]) == 3
        clients[1].channel.endpoint.reset()
        with trio.fail_after(0.5):
            while len(server.admission.queue) > 2:  # noqa: ASYNC110 - nothing tells
                await trio.sleep(0.01)
        for client in (clients[0], clients[2]):
            while not isinstance(message := await client._inbox.receive(), Welcome):
                assert isinstance(message, Queued)


async def test_who_comes_while_others_are_claimed_for_is_next(
    tidy: Tidy, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else tells of it: the one before gets nothing."""
    async with open_memory_server(tidy, ports=4) as server:
        await server.welcome("holder")
        slow_down(monkeypatch, server, 0.3)
        wide = server.client("wide")
        began = trio.current_time()
        await wide.ask(None, None, None, None)
        server.nursery.start_soon(wide.ping)
        await trio.sleep(0.1)
        late = server.client("late")
        await late.ask()
        while not isinstance(await late._inbox.receive(), Welcome):
            pass
        # Its claim follows a second one for the wide client, which stands before it.
        assert trio.current_time() - began == pytest.approx(0.9, abs=0.05)


async def hear_position(client: MemoryClient) -> int:
    return (await client.hear(Queued)).position


async def test_a_modest_client_overtakes_one_that_wants_more_than_is_free(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """Four ports, one is held, and the client at the head of the queue wants four: those behind it do not wait for it."""
    async with open_memory_server(tidy, ports=4) as server:
        await server.welcome("holder")
        wide = server.client("wide")
        await wide.ask(None, None, None, None)
        server.nursery.start_soon(wide.ping)
        assert await hear_position(wide) == 1
        started = trio.current_time()
        await server.welcome("modest")
        assert trio.current_time() - started < 1
        assert [client.position for client in server.admission.queue] == [1]


async def test_ports_are_kept_for_one_that_was_overtaken_for_long(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """After a minute nobody overtakes it, for a minute; then it is overtaken again, since its ports may be in use for days."""
    async with open_memory_server(tidy, ports=4) as server:
        await server.welcome("holder")
        wide = server.client("wide")
        await wide.ask(None, None, None, None)
        server.nursery.start_soon(wide.ping)
        await hear_position(wide)
        await trio.sleep(OVERTAKEN_FOR + 1)
        modest = server.client("modest")
        started = trio.current_time()
        await modest.ask()
        server.nursery.start_soon(modest.ping)
        assert await hear_position(modest) == 2
        modest.welcome = await hear_after_queued(modest)
        assert OVERTAKEN_FOR - 2 <= trio.current_time() - started <= OVERTAKEN_FOR


async def test_one_that_was_overtaken_gets_its_ports_when_they_are_free(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=3) as server:
        holders = [await server.welcome(f"holder {number}") for number in range(3)]
        wide = server.client("wide")
        await wide.ask(None, None)
        server.nursery.start_soon(wide.ping)
        await hear_position(wide)
        await trio.sleep(OVERTAKEN_FOR + 1)
        for holder in holders[:2]:
            await holder.say(Close(code="left", text="bye"))
            modest = server.client(f"modest after {holder.identity}")
            await modest.ask()
            server.nursery.start_soon(modest.ping)
        wide.welcome = await hear_after_queued(wide)
        assert len(wide.welcome.ports) == 2


# -- first words ------------------------------------------------------------------------------------------------------


async def test_handshake_deadline(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, handshake_timeout=10) as server:
        mute, half = server.client("mute"), server.client("half")
        await half.say(Hello(username="u", identity="i"))
        started = trio.current_time()
        for client in (mute, half):
            await client.hear_end()
            assert 9.9 < trio.current_time() - started < 10.2


async def test_hello_larger_than_4_kib(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = server.client()
        client.endpoint.send(encode_frame(Hello.id, b'{"a":"' + b"x" * 5000 + b'"}')[:3000])
        await client.hear_end()
        assert client.heard == []


async def test_expose_may_be_larger(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=20, max_services=20) as server:
        client = server.client()
        await client.say(
            Hello(username="u", identity="i"),
            Expose(services=(ServiceRequest(name="n" * 255, local="l" * 255),) * 20),
        )
        assert len((await client.hear(Welcome)).ports) == 20


@pytest.mark.parametrize(
    "message",
    [
        Ping(1),
        Drain(seconds=1),
        Close(code="stopped", text=""),
        Queued(position=1),
        Expose(services=(ServiceRequest(),)),
        Refused(code="full", text=""),
    ],
    ids=lambda message: type(message).__name__,
)
async def test_first_message_of_another_kind(
    tidy: Tidy, autojump_clock: MockClock, message: Ping
) -> None:
    async with open_memory_server(tidy) as server:
        client = server.client()
        await client.say(message)
        await client.hear_end()
        assert client.heard == []


async def test_second_message_that_is_not_expose(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = server.client()
        await client.say(Hello(username="u", identity="i"), Ping(1))
        await client.hear_end()
        assert server.admission.leases.ports.free == 2


async def test_random_bytes(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 20, b"\xff" * 20):
            client = server.client()
            client.endpoint.send(data)
            await client.hear_end()


async def test_attach_to_nobody(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = server.client()
        await client.say(Attach(1, bytes(32)))
        assert (await client.hear(Refused)).code == RefusalCode.UNKNOWN_SESSION
        await client.hear_end()


async def test_the_server_stops_while_clients_wait(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=1) as server:
        inside = await server.welcome("inside")
        waiting = await queue(server, "waiting", 1)
        await server.drain()
        assert (await waiting.hear(Refused)).code == RefusalCode.DRAINING
        assert isinstance(await inside.hear(Drain), Drain)
        assert (await inside.hear(Close)).code == CloseCode.STOPPED
        late = server.client("late")
        await late.ask()
        assert (await late.hear(Refused)).code == RefusalCode.DRAINING


async def test_the_server_is_cancelled_with_everybody_in_it(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=2, max_tcp_conn_num=2) as server:
        one = await server.welcome("one")
        (await server.welcome("lost")).hang_up()
        await trio.sleep(1)
        await queue(server, "waiting", 1)
        half = server.client("half")
        await half.say(Hello(username="u", identity="i"))
        wire = await one.attach()
        for _ in range(3):
            server.visit(one.port, early=b"x")
        await trio.sleep(0.1)
        assert await receive_some(wire)
