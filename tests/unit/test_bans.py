"""Addresses from which logins fail: slower answers, then none, and what becomes of their neighbours."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.unit.memory_server import HOST, MemoryStore, open_memory_server, token_of
from trionat.errors import RefusedError
from trionat.protocol.dialect import Dialect
from trionat.protocol.legacy import AuthFail, ConnectionFull, Credentials
from trionat.protocol.messages import RefusalCode, Refused, Welcome
from trionat.server.admission import bans as bans_module
from trionat.server.admission.bans import Bans
from trionat.server.handshakes import PendingHandshakes
from trionat.transport.channel import LegacyChannel

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.conftest import Tidy
    from tests.unit.memory_server import MemoryServer

OTHER = "192.0.2.8"


async def test_failures_are_answered_later_and_later_then_not_at_all(
    autojump_clock: MockClock,
) -> None:
    bans = Bans(after=6, time=300)
    delays = [bans.fail(HOST) for _ in range(5)]
    assert delays == [0.25, 0.5, 1, 2, 2]
    bans.check(HOST)
    assert not bans.shuts_out(HOST)
    bans.fail(HOST)
    assert bans.shuts_out(HOST)
    with pytest.raises(RefusedError, match="for another 300 s") as refused:
        bans.check(HOST)
    assert refused.value.code == RefusalCode.BANNED
    assert not bans.shuts_out(OTHER)
    bans.check(OTHER)
    await trio.sleep(299)
    assert bans.shuts_out(HOST)
    await trio.sleep(2)
    assert not bans.shuts_out(HOST)
    bans.check(HOST)


async def test_failures_fade_and_whoever_goes_on_is_banned_sooner(
    autojump_clock: MockClock,
) -> None:
    bans = Bans(after=6, time=600)

    def failures_until_banned() -> int:
        count = 0
        while not bans.shuts_out(HOST):
            bans.fail(HOST)
            count += 1
        return count

    assert failures_until_banned() == 6
    await trio.sleep(600)  # they count half
    assert failures_until_banned() == 3
    await trio.sleep(600 * 20)
    assert failures_until_banned() == 6


async def test_a_ban_does_not_grow_by_what_was_under_way(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionat")
    bans = Bans(after=2, time=60)
    for _ in range(5):
        bans.fail(HOST)
        await trio.sleep(1)
    assert caplog.text.count("is banned") == 1
    await trio.sleep(56.5)
    assert not bans.shuts_out(HOST)


async def test_a_ban_of_another_node(autojump_clock: MockClock) -> None:
    failed: list[str] = []
    bans = Bans(after=6, time=300, on_fail=failed.append)
    bans.fail(HOST)
    assert failed == [HOST]
    async with bans.trying(HOST):
        bans.ban(HOST, 60)
        bans.ban(HOST, 30)  # it ends no sooner
    assert bans.banned() == {HOST: 60}
    assert not bans.banned().get(OTHER)
    with pytest.raises(RefusedError, match="for another 60 s"):
        bans.check(HOST)
    await trio.sleep(60)
    bans.check(HOST)


async def test_zero_bans_nobody(autojump_clock: MockClock) -> None:
    bans = Bans(after=0, time=60)
    assert max(bans.fail(HOST) for _ in range(1000)) == 2
    assert not bans.shuts_out(HOST)
    bans.check(HOST)


async def test_a_known_network_is_heard_but_tries_no_password(autojump_clock: MockClock) -> None:
    bans = Bans(after=1, time=86400)
    with bans.in_use(HOST), bans.in_use(HOST):
        bans.fail(HOST)
        assert not bans.shuts_out(HOST)
        with pytest.raises(RefusedError):
            bans.check(HOST)
    await trio.sleep(3599)
    assert not bans.shuts_out(HOST)
    await trio.sleep(2)
    assert bans.shuts_out(HOST)


async def test_what_is_remembered_is_bounded(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(bans_module, "_MOST_NETWORKS", 3)
    bans = Bans(after=2, time=60)
    for host in "abacdea":
        bans.fail(host)
        with bans.in_use(host):
            pass
    assert list(bans._records) == ["d", "e", "a"]
    assert bans._records["a"].score == 1  # it was forgotten in between
    assert list(bans._in_use_until) == ["d", "e", "a"]
    assert not bans._sessions


async def test_handshakes_of_one_address_make_room_for_each_other_first() -> None:
    handshakes = PendingHandshakes(limit=5, network_limit=2)
    scopes = {name: trio.CancelScope() for name in ("a1", "a2", "b1", "a3", "c1", "c2", "d1")}
    gone: list[list[str]] = []
    for name, scope in scopes.items():
        handshakes.add(scope, name[0])
        gone.append([other for other in scopes if scopes[other].cancel_called])
    assert gone == [[], [], [], ["a1"], ["a1"], ["a1"], ["a1", "a2"]]
    for scope in scopes.values():
        handshakes.remove(scope)
        handshakes.remove(scope)
    assert not handshakes._networks
    assert not handshakes._scopes


async def test_strangers_do_not_end_handshakes_of_known_networks() -> None:
    """However many addresses they come from; and known ones keep no newcomer out, however many of them there are."""
    handshakes = PendingHandshakes(limit=6, network_limit=6, is_in_use=lambda host: host == "known")

    def come(host: str) -> trio.CancelScope:
        handshakes.add(scope := trio.CancelScope(), host)
        return scope

    def gone(scopes: list[trio.CancelScope]) -> int:
        return sum(scope.cancel_called for scope in scopes)

    known = [come("known") for _ in range(3)]
    strangers = [come(str(number)) for number in range(1000)]
    assert gone(known) == 0
    assert [scope.cancel_called for scope in strangers[-4:]] == [True, False, False, False]
    known += [come("known") for _ in range(1000)]
    assert gone(strangers[-3:]) == 0
    assert [scope.cancel_called for scope in known[-4:]] == [True, False, False, False]
    for scope in [*known, *strangers[:-2]]:
        handshakes.remove(scope)
    known = [come("known") for _ in range(4)]  # strangers have left some of theirs
    assert gone(known) == 0
    newcomer = come("newcomer")
    assert [scope.cancel_called for scope in known] == [True, False, False, False]
    assert gone([newcomer, *strangers[-2:]]) == 0


@pytest.mark.parametrize("first", ["known", "unknown"])
@pytest.mark.parametrize("second", ["known", "unknown"])
async def test_a_single_handshake_makes_room_for_any(first: str, second: str) -> None:
    handshakes = PendingHandshakes(limit=1, network_limit=1, is_in_use=lambda host: host == "known")
    old, new = trio.CancelScope(), trio.CancelScope()
    handshakes.add(old, first)
    handshakes.add(new, second)
    assert (old.cancel_called, new.cancel_called) == (True, False)


@pytest.mark.parametrize(("after", "expected"), [(3, 3), (1, 1), (20, 20)])
async def test_guesses_in_one_moment_get_no_further(
    autojump_clock: MockClock, after: int, expected: int
) -> None:
    """What is checked before a wait is counted before it: 60 passwords at once, which take a while each, and all wrong."""
    bans = Bans(after=after, time=60)
    tried = 0
    refused = 0

    async def guess() -> None:
        nonlocal tried, refused
        try:
            async with bans.trying(HOST):
                tried += 1
                await trio.sleep(0.025)
                bans.fail(HOST)
        except RefusedError:
            refused += 1

    async with trio.open_nursery() as nursery:
        for _ in range(60):
            nursery.start_soon(guess)
    assert (tried, refused) == (expected, 60 - expected)
    assert not bans._tries
    assert not bans._under_way


async def test_a_flood_of_guesses_has_few_of_the_threads(autojump_clock: MockClock) -> None:
    """Whoever logs in from elsewhere waits for a few of them, not for all; also where nobody is banned."""
    bans = Bans(after=0, time=60)
    threads = trio.CapacityLimiter(2)

    async def log_in(host: str) -> None:
        async with bans.trying(host), threads:
            await trio.sleep(0.025)

    async with trio.open_nursery() as nursery:
        for _ in range(500):
            nursery.start_soon(log_in, HOST)
        await trio.sleep(0.01)
        began = trio.current_time()
        await log_in("198.51.100.77")
        assert trio.current_time() - began < 0.2
        nursery.cancel_scope.cancel()
    assert not bans._tries
    assert not bans._under_way


async def test_networks_take_turns(autojump_clock: MockClock) -> None:
    """Known networks, those that failed and all others take turns, and so do the networks of each kind."""
    bans = Bans(after=100, time=60)
    turns: list[str] = []

    async def log_in(host: str, takes: float) -> None:
        async with bans.trying(host):
            turns.append(host)
            await trio.sleep(takes)

    with bans.in_use("192.0.2.1"):
        pass
    for failed in ("192.0.2.8", "192.0.2.9"):
        bans.fail(failed)
    async with trio.open_nursery() as nursery:
        for number in range(8):  # all that there is room for
            nursery.start_soon(log_in, f"192.0.2.{100 + number % 2}", 1 + number / 10)
        await trio.testing.wait_all_tasks_blocked()
        turns.clear()
        for host in ("8", "8", "9", "3", "3", "3", "4", "1"):
            nursery.start_soon(log_in, f"192.0.2.{host}", 10)
            await trio.testing.wait_all_tasks_blocked()
    order = [host.rpartition(".")[2] for host in turns]
    assert order == ["8", "1", "3", "9", "4", "8", "3", "3"]
    assert not bans._tries
    assert not bans._under_way


async def test_a_known_network_with_many_logins_leaves_room(autojump_clock: MockClock) -> None:
    """Right passwords, one after another for ever, from where somebody has a session."""
    bans = Bans(after=0, time=60)

    async def log_in_for_ever() -> None:
        while True:
            async with bans.trying("192.0.2.1"):
                await trio.sleep(1)

    with bans.in_use("192.0.2.1"):
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(log_in_for_ever)
            await trio.testing.wait_all_tasks_blocked()
            began = trio.current_time()
            async with bans.trying("192.0.2.9"):
                assert trio.current_time() - began <= 1
            nursery.cancel_scope.cancel()


async def test_a_turn_that_does_not_come(autojump_clock: MockClock) -> None:
    bans = Bans(after=0, time=60)

    async def hang() -> None:
        async with bans.trying("192.0.2.1"):
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(hang)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RefusedError, match="too many logins at once"):
            async with bans.trying("192.0.2.1"):
                pass
        nursery.cancel_scope.cancel()
    assert not bans._tries


async def test_who_waits_for_a_turn_may_leave(autojump_clock: MockClock) -> None:
    bans = Bans(after=0, time=60)
    done = 0

    async def log_in(host: str, patience: float) -> None:
        nonlocal done
        with trio.move_on_after(patience):
            async with bans.trying(host):
                await trio.sleep(1)
                done += 1

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(log_in, f"192.0.2.{number}", (0.5, 1, 1.5, 3)[number % 4])
    assert done
    assert not bans._tries
    assert not bans._under_way


# -- with a server round it --------------------------------------------------------------------------------------------


async def refusal(server: MemoryServer, **hello: str | bytes) -> tuple[str, float]:
    """Return the code with which a login is refused, and after how long."""
    client = server.client("other")
    client.hello = {"username": "ann", **hello}
    began = trio.current_time()
    await client.ask()
    refused = await client.hear(Refused)
    took = trio.current_time() - began
    await client.hear_end()
    return refused.code, took


async def test_where_nobody_logs_in_nobody_takes_turns(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy) as server, AsyncExitStack() as tries:
        for number in range(bans_module._MOST_TRIES):
            await tries.enter_async_context(server.context.bans.trying(f"192.0.2.{number}"))
        client = server.client("mine", username="anybody")
        began = trio.current_time()
        await client.ask()
        await client.hear(Welcome)
        assert trio.current_time() - began < 0.1


async def test_logins_that_fail(tidy: Tidy, autojump_clock: MockClock) -> None:
    """Wrong tickets here, since passwords are looked at in threads, which the clock does not wait for."""
    async with open_memory_server(
        tidy, store=MemoryStore("ann"), ban_after=3, ban_time=60
    ) as server:
        for expected in (0.25, 0.5, 1):
            code, took = await refusal(server, token=bytes(32))
            assert code == RefusalCode.AUTH_FAILED
            assert took == pytest.approx(expected, abs=0.1)
        assert server.context.bans.shuts_out(HOST)
        # One that was accepted before the ban: its password is not looked at any more, a good ticket is.
        code, took = await refusal(server, password="no matter which")
        assert code == RefusalCode.BANNED
        assert took < 0.1
        client = server.client("mine", username="ann", token=token_of("ann"))
        await client.ask()
        client.welcome = await client.hear(Welcome)
        assert not server.context.bans.shuts_out(HOST)
        wire = await client.attach()
        await trio.sleep(1)
        assert not wire.is_lost()
        assert server.sessions[0].tunnels.count == 1


async def test_a_refused_login_that_waits_is_cancelled_like_any(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, store=MemoryStore("ann")) as server:
        client = server.client("other", username="ann", token=bytes(32))
        await client.ask()
        await trio.testing.wait_all_tasks_blocked()
        assert not client.pending()


async def test_a_legacy_client_of_a_banned_address_comes_again(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """AUTH_FAIL would end it; that the server is full it takes as a reason to wait."""
    async with open_memory_server(
        tidy, store=MemoryStore(), ban_after=1, legacy_clients=True
    ) as server:
        server.context.bans.fail(HOST)
        far = server.connect(dialect=Dialect.NAT_DOC)
        channel = LegacyChannel(far, Dialect.NAT_DOC)
        await channel.send(Credentials(username="ann", password="x", expiry=0))
        answer = await channel.receive()
        assert isinstance(answer, ConnectionFull)
        assert not isinstance(answer, AuthFail)
