"""Limits of users, over all of their sessions."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from tests.unit.memory import receive_all, receive_exactly, receive_some
from tests.unit.memory_server import (
    MemoryClient,
    MemoryServer,
    MemoryStore,
    forwarder,
    make_user,
    open_memory_server,
    token_of,
)
from trionat.errors import StoreUnavailableError
from trionat.protocol.messages import Close, CloseCode, Queued, RefusalCode, Refused, Welcome
from trionat.server.accounts.accounts import WATCH_INTERVAL
from trionat.server.accounts.credential import Credential
from trionat.server.accounts.limits import UserLimits
from trionat.store.base import Limits
from trionat.transport.endpoint import TLS_RECORD_BYTES, send_all

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.conftest import Tidy
    from tests.unit.memory import MemoryEndpoint


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("alice", "bob")


def arrive(server: MemoryServer, name: str, identity: str = "client") -> MemoryClient:
    return server.client(identity, username=name, token=token_of(name))


async def log_in(
    server: MemoryServer, name: str, identity: str, *services: int | None
) -> MemoryClient:
    client = arrive(server, name, identity)
    await client.ask(*services)
    client.welcome = await client.hear(Welcome)
    return client


async def refusal(server: MemoryServer, name: str, identity: str, *services: int | None) -> Refused:
    client = arrive(server, name, identity)
    await client.ask(*services)
    refused = await client.hear(Refused)
    await client.hear_end()
    return refused


# -- visit ports ------------------------------------------------------------------------------------------------------


async def test_only_allowed_ports_are_given(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore
) -> None:
    store.limit("alice", visit_ports=(60003, 60005, 7))
    async with open_memory_server(tidy, 5, store) as server:
        alice = await log_in(server, "alice", "one")
        assert alice.port == 60003
        assert (await log_in(server, "alice", "two", 60005)).port == 60005
        assert (await log_in(server, "bob", "one")).port == 60001
        refused = await refusal(server, "alice", "three")
        assert refused.code == RefusalCode.PORT_TAKEN
        assert "the visit ports that this account may have are in use" in refused.text
        assert (await log_in(server, "bob", "two")).port == 60002  # nobody waited behind her


@pytest.mark.parametrize(
    ("allowed", "services", "code", "words"),
    [
        ((60003, 7), (60002,), RefusalCode.PORT_NOT_OFFERED, "offers to this account (60003)"),
        ((60003, 7), (7,), RefusalCode.PORT_NOT_OFFERED, "visit port 7 is not one"),
        ((7, 8), (None,), RefusalCode.PORT_NOT_OFFERED, "none of the visit ports"),
        ((), (None,), RefusalCode.PORT_NOT_OFFERED, "may have no visit port at all"),
        (
            (60002, 60003),
            (None, None, None),
            RefusalCode.TOO_MANY_SERVICES,
            "this account may have 2 visit ports (60002-60003)",
        ),
    ],
)  # fmt: skip
async def test_what_allowed_ports_refuse(
    tidy: Tidy,
    autojump_clock: MockClock,
    store: MemoryStore,
    allowed: tuple[int, ...],
    services: tuple[int | None, ...],
    code: RefusalCode,
    words: str,
) -> None:
    store.limit("alice", visit_ports=allowed)
    async with open_memory_server(tidy, 5, store) as server:
        refused = await refusal(server, "alice", "one", *services)
        assert (refused.code, words in refused.text) == (code, True), refused.text


async def test_a_port_that_is_not_allowed_any_more_is_lost_at_the_next_login(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore
) -> None:
    async with open_memory_server(tidy, 2, store) as server:
        alice = await log_in(server, "alice", "one")
        assert alice.port == 60001
        store.limit("alice", visit_ports=(60002,))
        await trio.sleep(WATCH_INTERVAL + 1)
        assert len(server.sessions) == 1
        alice.hang_up()
        await trio.sleep(1)
        assert (await log_in(server, "alice", "one")).port == 60002


# -- sessions at once -------------------------------------------------------------------------------------------------


async def test_sessions_at_once(tidy: Tidy, autojump_clock: MockClock, store: MemoryStore) -> None:
    store.limit("alice", sessions=2)
    async with open_memory_server(tidy, 5, store) as server:
        await log_in(server, "alice", "one")
        await log_in(server, "alice", "two")
        refused = await refusal(server, "alice", "three")
        assert refused.code == RefusalCode.TOO_MANY_SESSIONS
        assert "may have at once (2)" in refused.text
        await log_in(server, "bob", "one")
        again = await log_in(server, "alice", "one")  # the same client: no session more
        again.hang_up()
        await trio.sleep(1)
        await log_in(server, "alice", "one")
        store.limit("alice", sessions=1)
        await trio.sleep(WATCH_INTERVAL + 1)
        assert len(server.sessions) == 3  # a lower limit is for the next one that comes
        store.limit("alice", sessions=3)
        await log_in(server, "alice", "three")


async def test_a_reserved_lease_makes_room(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore
) -> None:
    """For a client that was started anew with other services, or somewhere else; of the same user alone."""
    store.limit("alice", sessions=2)
    async with open_memory_server(tidy, 4, store, port_reservation=1000) as server:
        one, two = await log_in(server, "alice", "one"), await log_in(server, "alice", "two")
        other = await log_in(server, "bob", "one")
        other.hang_up()
        one.hang_up()
        await trio.sleep(1)
        assert len(server.admission.leases.by_key) == 3
        three = await log_in(server, "alice", "three")
        assert set(server.admission.leases.by_key) == {
            ("alice", "two"),
            ("alice", "three"),
            ("bob", "one"),
        }
        assert (await refusal(server, "alice", "one")).code == RefusalCode.TOO_MANY_SESSIONS
        two.hang_up()
        three.hang_up()
        await trio.sleep(1)
        store.limit("alice", sessions=1)
        await log_in(server, "alice", "three")
        assert set(server.admission.leases.by_key) == {("alice", "three"), ("bob", "one")}


async def test_no_more_leases_are_given_up_than_it_takes(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore
) -> None:
    store.limit("alice", sessions=4)
    async with open_memory_server(tidy, 5, store) as server:
        clients = [await log_in(server, "alice", f"{number}") for number in range(4)]
        for client in clients[1:]:
            client.hang_up()
        await trio.sleep(1)
        await log_in(server, "alice", "new")
        assert set(server.admission.leases.by_key) == {
            ("alice", identity) for identity in ("0", "2", "3", "new")
        }


async def test_who_waits_in_the_queue_counts(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore
) -> None:
    store.limit("alice", sessions=1)
    async with open_memory_server(tidy, 1, store) as server:
        bob = await log_in(server, "bob", "one")
        waiting = arrive(server, "alice", "one")
        server.nursery.start_soon(waiting.ping)
        await waiting.ask()
        assert await waiting.hear(Queued) == Queued(position=1)
        assert (await refusal(server, "alice", "two")).code == RefusalCode.TOO_MANY_SESSIONS
        await bob.say(Close(code="left", text=""))
        waiting.welcome = await waiting.hear(Welcome)
        assert (await refusal(server, "alice", "two")).code == RefusalCode.TOO_MANY_SESSIONS


@pytest.mark.parametrize("ticks", range(0, 24, 2))
async def test_a_lease_that_was_just_granted_is_not_given_up(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore, ticks: int
) -> None:
    """Nobody occupies it yet, and yet it is not free for the next that comes."""
    store.limit("alice", sessions=1)
    async with open_memory_server(tidy, 2, store) as server:
        one, two = arrive(server, "alice", "one"), arrive(server, "alice", "two")
        await one.ask()
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
        await two.ask()
        await trio.sleep(1)
        assert {type(client.pending()[-1]) for client in (one, two)} == {Refused, Welcome}


# -- visitors at once -------------------------------------------------------------------------------------------------


async def test_visitors_at_once_over_all_sessions(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore
) -> None:
    store.limit("alice", visitors=3)
    async with open_memory_server(tidy, 4, store) as server:
        one, two = await log_in(server, "alice", "one"), await log_in(server, "alice", "two")
        bob = await log_in(server, "bob", "one")
        one.pool(forwarder(tidy, server.nursery))
        visitors = [server.visit(one.port, early=b"a") for _ in range(2)]
        for visitor in visitors:
            assert await receive_exactly(visitor, 1) == b"a"
        waiting = server.visit(two.port)
        started = trio.current_time()
        for port in (one.port, two.port):
            assert await receive_all(server.visit(port)) == b""
        assert trio.current_time() == started  # at once
        another = server.visit(bob.port)
        await trio.testing.wait_all_tasks_blocked()
        assert not another.peer.closed
        visitors[0].send_eof()
        assert await receive_all(visitors[0]) == b""
        await trio.testing.wait_all_tasks_blocked()
        waiting.close()
        visitor = server.visit(one.port, early=b"b")
        assert await receive_exactly(visitor, 1) == b"b"
        store.limit("alice", visitors=None)
        await trio.sleep(WATCH_INTERVAL + 0.1)
        visitors = [server.visit(one.port, early=b"c") for _ in range(5)]
        for visitor in visitors:
            assert await receive_exactly(visitor, 1) == b"c"
        store.limit("alice", visitors=0)
        await trio.sleep(WATCH_INTERVAL + 0.1)
        assert await receive_all(server.visit(one.port)) == b""
        visitor.send(b"stays")
        assert await receive_exactly(visitor, 5) == b"stays"


# -- monthly quota ----------------------------------------------------------------------------------------------------


async def test_a_session_that_uses_up_the_quota_is_closed(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore
) -> None:
    store.limit("alice", monthly_quota=10_000)
    store.limit("bob", monthly_quota=10**6)
    store.month["alice"] = 4_000
    async with open_memory_server(tidy, 4, store) as server:
        one, two = await log_in(server, "alice", "one"), await log_in(server, "alice", "two")
        bob = await log_in(server, "bob", "one")
        for client in (one, two, bob):
            client.pool(forwarder(tidy, server.nursery))
        for client, size in ((one, 1_500), (two, 1_400), (bob, 10_000)):
            visitor = server.visit(
                client.port, early=bytes(size)
            )  # comes back, and so counts twice
            await receive_exactly(visitor, size)
        await trio.sleep(WATCH_INTERVAL + 0.1)
        assert len(server.sessions) == 3
        visitor = server.visit(two.port, early=bytes(100))
        await receive_exactly(visitor, 100)
        started = trio.current_time()
        words = "the account alice has used up its 10.0 kB of this month (UTC)"
        for client in (one, two):
            assert await client.hear(Close) == Close(code=CloseCode.QUOTA_EXCEEDED, text=words)
            await client.hear_end()
        assert trio.current_time() - started <= WATCH_INTERVAL
        assert [session.username for session in server.sessions] == ["bob"]
        with pytest.raises(ConnectionResetError):
            await receive_some(visitor)
        refused = await refusal(server, "alice", "one")
        assert (refused.code, refused.text) == (RefusalCode.QUOTA_EXCEEDED, words)
        store.limit("alice", monthly_quota=10_001)
        await log_in(server, "alice", "one")


async def test_a_store_that_cannot_tell_the_usage_lets_nobody_in(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ends no session."""
    store.limit("alice", monthly_quota=10_000)
    async with open_memory_server(tidy, 4, store) as server:
        await log_in(server, "alice", "one")

        async def fail(*_: object) -> dict[str, int]:
            await trio.lowlevel.checkpoint()
            raise StoreUnavailableError("down")

        monkeypatch.setattr(store, "monthly_traffic", fail)
        await trio.sleep(2 * WATCH_INTERVAL)
        assert (await refusal(server, "alice", "two")).code == RefusalCode.STORE_UNAVAILABLE
        assert len(server.sessions) == 1


# -- damage -----------------------------------------------------------------------------------------------------------


async def test_one_damaged_account_is_nobody_elses_matter(
    tidy: Tidy,
    autojump_clock: MockClock,
    store: MemoryStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its session goes on as it is, it is told once, and everybody else is watched."""
    store.limit("alice", visitors=1)
    async with open_memory_server(tidy, 4, store) as server:
        alice = await log_in(server, "alice", "one")
        bob = await log_in(server, "bob", "one")
        whole = store.users["alice"]
        store.users["alice"] = attrs.evolve(whole, limits=Limits(), damage="its row is damaged")
        del store.users["bob"]
        assert (await bob.hear(Close)).code == CloseCode.ACCOUNT_REMOVED
        for _ in range(2):
            refused = await refusal(server, "alice", "two")
            assert refused.code == RefusalCode.STORE_UNAVAILABLE  # so the client comes again
            await trio.sleep(WATCH_INTERVAL)
        assert caplog.text.count("its row is damaged") == 1
        server.visit(alice.port)
        assert await receive_all(server.visit(alice.port)) == b""  # the second of one
        store.users["alice"] = whole
        await log_in(server, "alice", "two")
        store.users["alice"] = attrs.evolve(whole, damage="its row is damaged")
        await trio.sleep(WATCH_INTERVAL + 0.1)
        assert caplog.text.count("its row is damaged") == 2


# -- bandwidth --------------------------------------------------------------------------------------------------------


async def pour(endpoint: MemoryEndpoint) -> None:
    """A service that sends without end."""
    try:
        while True:
            await send_all(endpoint, bytes(10_000))
    except OSError:
        endpoint.close()


async def test_bandwidth_is_one_users_over_all_sessions(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore
) -> None:
    store.limit("alice", bandwidth=100_000)
    async with open_memory_server(tidy, 4, store) as server:
        received = {"one": 0, "two": 0, "bob": 0}

        async def visit(who: str, client: MemoryClient) -> None:
            visitor = server.visit(client.port, early=b"x")
            while True:
                received[who] += len(await receive_some(visitor))
                if who == "bob":
                    await trio.sleep(0.01)  # else he would stop the clock

        async with trio.open_nursery() as visitors:
            for who, name in (("one", "alice"), ("two", "alice"), ("bob", "bob")):
                client = await log_in(server, name, who)
                client.pool(forwarder(tidy, server.nursery, pour))
                visitors.start_soon(visit, who, client)
            await trio.sleep(20)
            assert received["one"] + received["two"] == pytest.approx(20 * 100_000, rel=0.05)
            assert abs(received["one"] - received["two"]) <= 50_000
            assert received["bob"] > 50 * 100_000
            store.limit("alice", bandwidth=1_000_000)
            await trio.sleep(WATCH_INTERVAL + 1)
            before = received["one"] + received["two"]
            await trio.sleep(10)
            after = received["one"] + received["two"]
            assert after - before == pytest.approx(10 * 1_000_000, rel=0.05)
            assert len(server.sessions) == 3
            visitors.cancel_scope.cancel()


async def test_bandwidth_is_of_both_directions(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore
) -> None:
    store.limit("alice", bandwidth=100_000)
    async with open_memory_server(tidy, 1, store) as server:
        received = bytearray()

        async def swallow(endpoint: MemoryEndpoint) -> None:
            received.extend(await receive_all(endpoint))
            endpoint.send(b"thanks")

        client = await log_in(server, "alice", "one")
        client.pool(forwarder(tidy, server.nursery, swallow))
        visitor = server.visit(client.port)
        started = trio.current_time()
        await send_all(visitor, bytes(1_000_000))
        visitor.send_eof()
        assert await receive_all(visitor) == b"thanks"
        assert trio.current_time() - started == pytest.approx(10, rel=0.05)
        assert len(received) == 1_000_000


async def test_braked_streams_are_not_mixed_up(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore
) -> None:
    store.limit("alice", bandwidth=100_000)
    async with open_memory_server(tidy, 1, store) as server:
        client = await log_in(server, "alice", "one")
        client.pool(forwarder(tidy, server.nursery))

        async def ask(number: int) -> None:
            question = random.Random(number).randbytes(200_000)
            visitor = server.visit(client.port)
            async with trio.open_nursery() as both:
                both.start_soon(send_all, visitor, question)
                assert await receive_exactly(visitor, len(question)) == question

        async with trio.open_nursery() as visitors:
            for number in range(4):
                visitors.start_soon(ask, number)


async def test_a_braked_tunnel_is_neither_dead_nor_deaf(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    """For minutes; and a visitor that resets its connection is told to the client, whose tunnel serves the next one."""
    caplog.set_level("INFO", "trionat")
    store.limit("alice", bandwidth=1000)
    async with open_memory_server(tidy, 1, store) as server:
        client = await log_in(server, "alice", "one")
        client.pool(forwarder(tidy, server.nursery, pour))
        visitor = server.visit(client.port, early=b"x")
        assert await receive_some(visitor)
        assert visitor.most_held <= TLS_RECORD_BYTES  # a little at a time
        for _ in range(10):
            await receive_some(visitor)
            await trio.sleep(30)
        assert "tunnel lost" not in caplog.text
        assert "tunnel given up" not in caplog.text
        visitor.reset()
        await trio.sleep(2)
        assert "the visitor reset its connection" in caplog.text
        store.limit("alice")
        await trio.sleep(WATCH_INTERVAL + 1)
        visitor = server.visit(client.port, early=b"x")
        assert await receive_some(visitor)
        await trio.sleep(60)
        assert "tunnel lost" not in caplog.text
        assert "tunnel given up" not in caplog.text


async def test_a_bandwidth_that_is_lifted_and_set_again_revives_no_debt(
    autojump_clock: MockClock,
) -> None:
    """Neither that of before, nor what was relayed without a limit."""
    limited = Limits(bandwidth=1000)
    user_limits = UserLimits("alice", limited)
    started = trio.current_time()
    assert user_limits.throttle.take_nowait(1_000_000)
    assert not user_limits.throttle.take_nowait(1)  # a debt of many minutes
    user_limits.change(Limits())
    assert user_limits.throttle.take_nowait(1_000_000)
    user_limits.change(limited)
    assert user_limits.throttle.take_nowait(1000)
    assert trio.current_time() == started
    await user_limits.throttle.take(1)  # and yet it is limited
    assert 0.9 < trio.current_time() - started < 1.1


@pytest.mark.parametrize(
    ("changed", "ends"),
    [("ticket_salt", True), ("password", False), (None, False)],
)
async def test_a_ticket_that_is_void_ends_its_sessions(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore, changed: str | None, ends: bool
) -> None:
    """`trionat user ticket --renew` makes all that came by a ticket log in anew; a new password alone concerns others."""
    async with open_memory_server(tidy, 2, store) as server:
        alice, bob = [await log_in(server, name, name) for name in ("alice", "bob")]
        if changed is not None:
            new = bytes(16) + b"x" if changed == "ticket_salt" else "another hash"
            store.users["alice"] = attrs.evolve(store.users["alice"], **{changed: new})  # type: ignore[arg-type]
        await trio.sleep(WATCH_INTERVAL + 1)
        assert [session.username for session in server.sessions] == (
            ["bob"] if ends else ["alice", "bob"]
        )
        if ends:
            closed = await alice.hear(Close)
            assert (closed.code, closed.text) == (
                "account-removed",
                "the ticket of alice is void by now",
            )
        assert not bob.pending()


def test_a_credential_knows_what_it_came_by() -> None:
    user = make_user("alice")
    ticket, password = [Credential.of(user, by_ticket=by_ticket) for by_ticket in (True, False)]
    assert ticket.opens(user)
    assert password.opens(user)
    assert not ticket.opens(attrs.evolve(user, ticket_salt=b"new" + bytes(13)))
    assert ticket.opens(attrs.evolve(user, password="new"))
    assert not password.opens(attrs.evolve(user, password="new"))
    assert password.plain == user.password  # as long as the store has it so
    assert user.password not in repr(password)
    assert ticket.plain is None
    hashed = attrs.evolve(user, password="$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ$aGFzaA")
    assert Credential.of(hashed, by_ticket=False).plain is None
