"""Sessions that have come with a narrowed ticket: what they get, and when they end."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from tests.unit.memory_server import (
    MemoryClient,
    MemoryServer,
    MemoryStore,
    open_memory_server,
    token_of,
)
from trionat.errors import StoreUnavailableError
from trionat.protocol.messages import (
    NARROWED_TICKETS,
    Close,
    CloseCode,
    Hello,
    RefusalCode,
    Refused,
    Welcome,
)
from trionat.protocol.ticket import narrow_token
from trionat.server.accounts.accounts import WATCH_INTERVAL
from trionat.server.accounts.credential import Credential, read_credential, write_credential
from trionat.server.accounts.scope import until
from trionat.server.admission.authenticator import Identity
from trionat.server.workers.values import read_identity, write_identity
from trionat.store.base import Limits

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.conftest import Tidy

START = datetime(2026, 11, 29, 12, tzinfo=UTC)
ONE, TWO = "only ports=60001", "only ports=60002"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("alice", "bob")


@pytest.fixture
def clock_on_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's clock goes as Trio's does."""

    def now() -> datetime:
        return START + timedelta(seconds=trio.current_time())

    monkeypatch.setattr("trionat.server.accounts.accounts._now", now)


def in_seconds(seconds: float) -> str:
    return until(START + timedelta(seconds=seconds))


def arrive(
    server: MemoryServer, *caveats: str, name: str = "alice", identity: str = "client"
) -> MemoryClient:
    token = narrow_token(token_of(name), caveats)
    return server.client(identity, username=name, token=token, caveats=caveats)


async def log_in(
    client: MemoryClient, *services: int | None, group: str | None = None
) -> MemoryClient:
    await client.ask(*services, group=group)
    client.welcome = await client.hear(Welcome)
    return client


async def refusal(
    client: MemoryClient, *services: int | None, group: str | None = None
) -> tuple[str, str]:
    await client.ask(*services, group=group)
    refused = await client.hear(Refused)
    await client.hear_end()
    return refused.code, refused.text


async def test_it_gets_its_ports_and_no_others(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore
) -> None:
    async with open_memory_server(tidy, 4, store) as server:
        alice = await log_in(arrive(server, "only ports=60003"))
        assert alice.welcome.ports == (60003,)
        assert NARROWED_TICKETS in alice.welcome.capabilities
        other = arrive(server, "only ports=60003", identity="other")
        assert await refusal(other, 60004) == (
            RefusalCode.PORT_NOT_OFFERED,
            "visit port 60004 is not one that this server offers to this ticket (60003)",
        )
        other = arrive(server, "only ports=60003", identity="other")
        assert await refusal(other, None, None) == (
            RefusalCode.TOO_MANY_SERVICES,
            "2 services asked for, and this ticket may have 1 visit port (60003)",
        )
        for chain in (("only names=shop",), (ONE, TWO), (ONE, "only names=shop"), ("only",)):
            assert await refusal(arrive(server, *chain)) == (
                RefusalCode.PORT_NOT_OFFERED,
                "this ticket may have no visit port at all",
            )
        bob = await log_in(arrive(server, name="bob"), 60004)
        assert NARROWED_TICKETS not in bob.welcome.capabilities


async def test_it_gets_no_more_than_its_account(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore
) -> None:
    store.limit("alice", visit_ports=(60002, 60003))
    async with open_memory_server(tidy, 4, store) as server:
        assert (await log_in(arrive(server, "only ports=60001-60002"))).welcome.ports == (60002,)
        assert await refusal(arrive(server, ONE)) == (
            RefusalCode.PORT_NOT_OFFERED,
            "this ticket may have no visit port at all",
        )


@pytest.mark.parametrize(
    ("signed", "shown"),
    [
        ((ONE,), ()),
        ((), (ONE,)),
        ((ONE,), (TWO,)),
        ((ONE, TWO), (TWO, ONE)),
        ((ONE, TWO), (ONE,)),
        ((ONE, TWO), (TWO,)),
        ((ONE,), (ONE, ONE)),
        ((ONE,), (ONE.upper(),)),
        ((ONE, in_seconds(-5)), (ONE, in_seconds(5))),
    ],
)
async def test_a_forged_chain_is_a_wrong_ticket(
    tidy: Tidy,
    autojump_clock: MockClock,
    clock_on_the_wall: None,
    store: MemoryStore,
    signed: tuple[str, ...],
    shown: tuple[str, ...],
) -> None:
    async with open_memory_server(tidy, 4, store) as server:
        client = server.client(
            username="alice", token=narrow_token(token_of("alice"), signed), caveats=shown
        )
        code, text = await refusal(client)
        assert (code, text) == (RefusalCode.AUTH_FAILED, "authentication failed: wrong ticket")
        # Nor is it a ticket of somebody else.
        client = server.client(
            username="bob", token=narrow_token(token_of("alice"), signed), caveats=signed
        )
        assert (await refusal(client))[0] == RefusalCode.AUTH_FAILED


async def test_an_unknown_restriction_is_refused_and_counts_as_no_guess(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore
) -> None:
    async with open_memory_server(tidy, 4, store, ban_after=2) as server:
        for _ in range(5):
            assert await refusal(arrive(server, ONE, "only on=sundays")) == (
                RefusalCode.UNSUPPORTED_VERSION,
                "the ticket has a restriction that is not known here: 'only on=sundays'",
            )
        assert await refusal(arrive(server, "x" * 200)) == (
            RefusalCode.UNSUPPORTED_VERSION,
            "the ticket has a restriction that is not known here: a value of 200 characters",
        )
        await log_in(arrive(server, ONE))


async def test_restrictions_hold_for_a_password_too(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody sends both; if somebody does, he gets less, not more."""

    async def right(*_: object) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    monkeypatch.setattr("trionat.server.accounts.accounts.verify_password", right)
    async with open_memory_server(tidy, 4, store) as server:
        client = server.client(username="alice", password="x", caveats=(TWO,))
        assert (await log_in(client)).welcome.ports == (60002,)


async def test_a_server_without_accounts_refuses_what_it_cannot_keep_to(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, 4) as server:
        client = server.client(username="anonymity", token=bytes(16), caveats=(ONE,))
        code, text = await refusal(client)
        assert code == RefusalCode.UNSUPPORTED_VERSION
        assert text.startswith("this server has no accounts, so it cannot keep to the restrictions")
        await log_in(server.client(username="anonymity", token=bytes(16)))


async def test_it_runs_out_while_it_is_up(
    tidy: Tidy, autojump_clock: MockClock, clock_on_the_wall: None, store: MemoryStore
) -> None:
    async with open_memory_server(tidy, 4, store) as server:
        await log_in(arrive(server, identity="whole"), 60004)
        alice = await log_in(arrive(server, ONE, in_seconds(90), in_seconds(30)))
        await log_in(arrive(server, in_seconds(90), identity="later"), 60003)
        with trio.fail_after(30 + WATCH_INTERVAL + 0.1):
            close = await alice.hear(Close)
        assert trio.current_time() >= 30
        assert close == Close(
            code=CloseCode.ACCOUNT_EXPIRED,
            text="this ticket of alice was good until 2026-11-29 12:00 UTC: ask for another one",
        )
        await alice.hear_end()
        assert {session.lease.port_numbers for session in server.sessions} == {(60003,), (60004,)}
        refused = await refusal(arrive(server, ONE, in_seconds(90), in_seconds(30)))
        assert refused == (RefusalCode.ACCOUNT_EXPIRED, close.text)
        assert server.admission.leases.ports.is_free(60001)  # nobody comes back for it


async def test_a_ticket_that_has_run_out_is_told_from_a_wrong_one(
    tidy: Tidy, autojump_clock: MockClock, clock_on_the_wall: None, store: MemoryStore
) -> None:
    """Only whoever has the ticket learns what it says."""
    async with open_memory_server(tidy, 4, store) as server:
        assert (await refusal(arrive(server, in_seconds(0))))[0] == RefusalCode.ACCOUNT_EXPIRED
        wrong = server.client(username="alice", token=bytes(16), caveats=(in_seconds(0),))
        assert (await refusal(wrong))[0] == RefusalCode.AUTH_FAILED
        await log_in(arrive(server, in_seconds(30)))


async def test_it_runs_out_while_the_store_is_away(
    tidy: Tidy,
    autojump_clock: MockClock,
    clock_on_the_wall: None,
    store: MemoryStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def away(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise StoreUnavailableError("it is away")

    async with open_memory_server(tidy, 4, store) as server:
        alice = await log_in(arrive(server, in_seconds(10)))
        whole = await log_in(arrive(server, identity="whole"))
        monkeypatch.setattr(store, "find_users", away)
        with trio.fail_after(20):
            assert (await alice.hear(Close)).code == CloseCode.ACCOUNT_EXPIRED
        assert len(server.sessions) == 1
        assert whole.welcome.ports == (60002,)


async def test_renewing_makes_narrowed_tickets_void_as_well(
    tidy: Tidy, autojump_clock: MockClock, clock_on_the_wall: None, store: MemoryStore
) -> None:
    async with open_memory_server(tidy, 4, store) as server:
        alice = await log_in(arrive(server, ONE, in_seconds(600)))
        store.users["alice"] = attrs.evolve(store.users["alice"], ticket_salt=b"t" * 16)
        close = await alice.hear(Close)
        assert close == Close(
            code=CloseCode.ACCOUNT_REMOVED, text="the ticket of alice is void by now"
        )
        assert (await refusal(arrive(server, ONE, in_seconds(600))))[0] == RefusalCode.AUTH_FAILED


async def test_it_takes_no_session_by_calling_itself_the_same(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore
) -> None:
    async with open_memory_server(tidy, 4, store) as server:
        whole = await log_in(arrive(server))
        assert whole.welcome.ports == (60001,)
        # A port that the other one has: it is in use, for a client of the same name as well.
        assert (await refusal(arrive(server, ONE)))[0] == RefusalCode.PORT_TAKEN
        two = await log_in(arrive(server, "only ports=60002-60003"))
        assert len(server.sessions) == 2
        # With the same restrictions, until whenever, it is the same client.
        again = await log_in(arrive(server, "until 2099-01-01T00:00:00Z", "only ports=60002-60003"))
        assert (await two.hear(Close)).code == CloseCode.EVICTED
        assert again.welcome.ports == two.welcome.ports == (60002,)
        assert len(server.sessions) == 2
        # And the other way round the whole ticket evicts none of these.
        other = await log_in(arrive(server, identity="other"))
        assert other.welcome.ports == (60003,)
        assert len(server.sessions) == 3


async def test_it_joins_no_group_of_another_ticket(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore
) -> None:
    async with open_memory_server(tidy, 4, store) as server:
        whole = await log_in(arrive(server, identity="a"), group="web")
        again = await log_in(arrive(server, identity="b"), group="web")
        assert whole.welcome.ports == again.welcome.ports == (60001,)
        # What it may have as well, the group of that name or not.
        refused = await refusal(arrive(server, "only ports=60001-60003"), 60001, group="web")
        assert refused == (RefusalCode.PORT_TAKEN, "visit port 60001 is in use")
        narrow = [
            await log_in(
                arrive(server, "only ports=60001-60003", *more, identity=each), group="web"
            )
            for each, more in (("c", ()), ("d", ("until 2099-01-01T00:00:00Z",)))
        ]
        assert [each.welcome.ports for each in narrow] == [(60002,)] * 2
        timed = await log_in(arrive(server, "until 2099-01-01T00:00:00Z"), group="web")
        assert timed.welcome.ports == (60003,)
        named_so = {lease.group.name for lease in server.admission.leases if lease.group}
        assert len(named_so) == 3
        # Nor does who only calls it so.
        [of_narrow] = {
            lease.group.name
            for lease in server.admission.leases
            if lease.port_numbers == (60002,) and lease.group
        }
        other = await log_in(arrive(server, "only ports=60004"), group=of_narrow)
        assert other.welcome.ports == (60004,)


async def test_the_log_tells_of_it_and_not_of_the_token(
    tidy: Tidy, autojump_clock: MockClock, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trionat")
    async with open_memory_server(tidy, 4, store) as server:
        await log_in(arrive(server, ONE, "until 2099-01-01T00:00:00Z"))
        assert server.sessions[0].restrictions == (ONE, "until 2099-01-01T00:00:00Z")
    ups = [message for message in caplog.messages if message.startswith("session up")]
    assert len(ups) == 1
    assert "restrictions='only ports=60001,until 2099-01-01T00:00:00Z'" in ups[0]
    for chain in ((), (ONE,), (ONE, "until 2099-01-01T00:00:00Z")):
        assert narrow_token(token_of("alice"), chain).hex() not in caplog.text


def test_what_workers_are_told() -> None:
    limits = Limits(names=("shop-*",), visit_ports=(60001,))
    credential = Credential(True, b"d", None, START)
    identity = Identity(
        username="alice", account_id=3, limits=limits, credential=credential, caveats=(ONE,)
    )

    def sent(values: object) -> Any:
        return json.loads(json.dumps(values))

    assert read_identity(sent(write_identity(identity))) == identity
    plain = Credential(False, b"d", "p")
    for each in (credential, plain, None):
        assert read_credential(sent(write_credential(each))) == each


def test_hello_says_nothing_of_a_secret() -> None:
    hello = Hello(username="u", identity="i", token=b"t" * 16, caveats=(ONE,))
    assert "tttt" not in repr(hello)
    assert ONE in repr(hello)
