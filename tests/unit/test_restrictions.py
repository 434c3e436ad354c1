"""Who may visit a service with a name, as its client says: lists, a rate, passwords, and whom its owner lets in."""

from __future__ import annotations

import base64
from typing import Final

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from trionat.errors import RefusedError
from trionat.protocol.messages import ASKED_FOR, Publish, PublishKind, RefusalCode, ServiceRequest
from trionat.server.accounts.scope import Scope
from trionat.server.admission.naming import Naming
from trionat.server.visitors import approvals as approvals_module
from trionat.server.visitors import restrictions as restrictions_module
from trionat.server.visitors.approvals import (
    APPROVED_FOR,
    DENIED_FOR,
    MOST_QUESTIONS,
    Approval,
    Approvals,
)
from trionat.server.visitors.figures import RATE_OVER, RequestCounter
from trionat.server.visitors.restrictions import Denial, Restrictions
from trionat.store.passwords import hash_password

HOST: Final = "192.0.2.7"


def restrictions(**said: object) -> Restrictions:
    return Restrictions(Publish(kind=PublishKind.HTTP, **said))  # type: ignore[arg-type]


def basic(user: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


@pytest.mark.parametrize(
    ("allow", "deny", "host", "in_"),
    [
        ((), (), HOST, True),
        (("192.0.2.0/24",), (), HOST, True),
        (("192.0.2.0/24",), (), "198.51.100.1", False),
        ((), ("192.0.2.7",), HOST, False),
        (("192.0.2.0/24",), ("192.0.2.7",), HOST, False),
        (("2001:db8::/32",), (), "2001:db8::1", True),
    ],
)
def test_lists(allow: tuple[str, ...], deny: tuple[str, ...], host: str, in_: bool) -> None:
    denial = restrictions(allow=allow, deny=deny).denial(host)
    assert denial is None if in_ else denial is not None
    if denial is not None:
        assert denial.status == 403


@pytest.mark.parametrize(
    "said", [{"allow": ("nonsense",)}, {"basic_auth": ("ann:secret",)}, {"basic_auth": ("ann",)}]
)
def test_what_makes_no_sense_is_told(said: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match=r"network|hash"):
        restrictions(**said)


@pytest.mark.parametrize(
    ("password_hash", "reason"),
    [
        (f"$argon2id$v=19$m=262144,t=4,p=1${'A' * 22}${'A' * 43}", "costs more to check than"),
        (f"$argon2id$v=19$m=19456,t=2,p=4${'A' * 22}${'A' * 43}", "costs more to check than"),
        ("$argon2id$v=19$m=19456,t=2,p=1$salt$", "is no hash by Argon2id"),
        ("$argon2id$x", "is no hash by Argon2id"),
    ],
)
def test_a_hash_that_others_would_wait_for(password_hash: str, reason: str) -> None:
    """The client is told at its start, in words that its user can act on; one thread checks for all names."""
    publish = Publish(kind=PublishKind.HTTP, basic_auth=(f"ann:{password_hash}",))
    with pytest.raises(RefusedError, match=reason) as caught:
        Naming("tunnel.test").whole((ServiceRequest(publish=publish),), Scope())
    assert caught.value.code == RefusalCode.NAME_NOT_OFFERED
    assert caught.value.text.endswith(": give the password itself, which the client hashes")
    assert password_hash not in caught.value.text


async def test_a_rate(autojump_clock: trio.testing.MockClock) -> None:
    limited = restrictions(rate=2.0)
    assert [limited.denial(HOST) for _ in range(10)] == [None] * 10, (
        "a page brings its pictures along"
    )
    denial = limited.denial(HOST)
    assert denial is not None
    assert (denial.status, denial.retry_after) == (429, 1)
    assert limited.denial("198.51.100.1") is None, "others are others"
    await trio.sleep(0.5)
    assert limited.denial(HOST) is None
    assert limited.denial(HOST) is not None


@settings(deadline=None)
@given(st.lists(st.floats(0, 3), max_size=60), st.sampled_from([0.5, 1.0, 5.0, 20.0]))
def test_a_rate_is_never_exceeded(pauses: list[float], rate: float) -> None:
    async def run() -> None:
        limited = restrictions(rate=rate)
        began, let_in = trio.current_time(), 0
        for pause in pauses:
            await trio.sleep(pause)
            let_in += limited.denial(HOST) is None
            assert let_in <= max(10, 2 * rate) + rate * (trio.current_time() - began) + 1e-6

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_password_is_hashed_once() -> None:
    protected = restrictions(basic_auth=(f"ann:{await hash_password('se:cret')}",))
    right = basic("ann", "se:cret")
    assert not protected.knows(right, HOST)
    missing = await protected.log_in(None, HOST)
    assert missing == Denial(status=401, text="no password")
    assert await protected.log_in(right, HOST) is None
    assert protected.knows(right, HOST)
    for wrong in (
        basic("ann", "secret"),
        basic("bob", "se:cret"),
        b"Basic !!!",
        b"Bearer x",
        b"Basic " + base64.b64encode(b"no colon"),
        b"Basic " + base64.b64encode(b"\xff:\xff"),
    ):
        denial = await protected.log_in(wrong, HOST)
        assert denial is not None
        assert denial.status == 401
        assert not protected.knows(wrong, HOST)


async def test_many_at_once_are_counted_before_they_are_checked() -> None:
    protected = restrictions(basic_auth=(f"ann:{await hash_password('secret')}",))
    statuses: list[int] = []

    async def guess(number: int) -> None:
        denial = await protected.log_in(basic("ann", str(number)), HOST)
        assert denial is not None
        statuses.append(denial.status)

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(guess, number)
    assert statuses.count(401) == 10
    assert statuses.count(429) == 30
    other = await protected.log_in(basic("ann", "secret"), "198.51.100.1")
    assert other is None, "one network's guesses keep nobody else out"


async def test_who_logs_in_is_not_forgiven_what_he_has_guessed_of_others() -> None:
    """Else a user of a service guesses the passwords of all its others, ten at a time."""
    hashes = [await hash_password(word) for word in ("secret", "own")]
    protected = restrictions(basic_auth=(f"ann:{hashes[0]}", f"bob:{hashes[1]}"))
    statuses: list[int] = []
    for guess in range(9):
        denial = await protected.log_in(basic("ann", str(guess)), HOST)
        assert denial is not None
    assert await protected.log_in(basic("bob", "own"), HOST) is None
    for guess in range(2):
        denial = await protected.log_in(basic("ann", f"again {guess}"), HOST)
        assert denial is not None
        statuses.append(denial.status)
    assert statuses == [401, 429], "what was right counts for nothing"


async def test_who_guesses_does_not_learn_what_was_right_elsewhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    protected = restrictions(basic_auth=(f"ann:{await hash_password('secret')}",))
    right = basic("ann", "secret")
    assert await protected.log_in(right, "198.51.100.1") is None
    assert not protected.knows(right, HOST)
    for number in range(10):
        await protected.log_in(basic("ann", str(number)), HOST)
    for shown in (right, basic("ann", "wrong")):
        denial = await protected.log_in(shown, HOST)
        assert denial is not None
        assert denial.status == 429
        assert "wrong passwords" in denial.told
    assert caplog.text.count("the address has to wait") == 1
    assert "secret" not in caplog.text
    assert protected.knows(right, "198.51.100.1")


async def test_all_services_together_have_so_many_passwords_that_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One thread checks for all of them: who comes later is told so, instead of waiting without a bound."""
    monkeypatch.setattr(restrictions_module, "_MOST_WAITING_IN_ALL", 4)
    password_hash = await hash_password("secret")
    services = [restrictions(basic_auth=(f"ann:{password_hash}",)) for _ in range(8)]
    denials: list[Denial] = []

    async def guess(service: Restrictions) -> None:
        denial = await service.log_in(basic("ann", "wrong"), HOST)
        assert denial is not None
        denials.append(denial)

    async with trio.open_nursery() as nursery:
        for service in services:
            nursery.start_soon(guess, service)
    assert [denial.status for denial in denials].count(401) == 5, "one is checked, and four wait"
    assert [denial.retry_after for denial in denials if denial.status == 429] == [1, 1, 1]
    assert await services[-1].log_in(basic("ann", "secret"), HOST) is None


async def test_an_owner_is_asked_once(autojump_clock: trio.testing.MockClock) -> None:
    approvals = Approvals()
    assert approvals.find(HOST, "GET /") is Approval.WAITING
    assert approvals.find(HOST, "GET /again") is Approval.WAITING
    [question] = approvals.open_questions()
    assert (question.host, question.what) == (HOST, "GET /")
    approvals.answer(HOST, approved=True)
    assert not list(approvals.open_questions())
    assert approvals.is_approved(HOST)
    await trio.sleep(APPROVED_FOR + 1)
    assert not approvals.is_approved(HOST)
    approvals.answer(HOST, approved=False)
    assert approvals.find(HOST, "") is Approval.DENIED
    await trio.sleep(DENIED_FOR + 1)
    assert approvals.find(HOST, "") is Approval.WAITING
    await trio.sleep(ASKED_FOR + 1)
    assert not list(approvals.open_questions()), "nobody has answered"


async def test_a_flood_of_visitors_asks_no_more_than_there_is_room_for(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    approvals = Approvals()
    for number in range(1000):
        approvals.find(f"10.0.{number // 250}.{number % 250}", "x")
    assert len(list(approvals.open_questions())) == MOST_QUESTIONS
    monkeypatch.setattr(approvals_module, "_MOST_ANSWERS", 3)
    for number in range(10):
        approvals.answer(f"10.1.0.{number}", approved=True)
    assert sum(approvals.is_approved(f"10.1.0.{number}") for number in range(10)) == 3


async def test_requests_are_counted(autojump_clock: trio.testing.MockClock) -> None:
    counter = RequestCounter()
    assert counter.figures.median is None
    for status, seconds in ((200, 0.01), (200, 0.01), (404, 0.02), (500, 2.0)):
        counter.count(status, seconds)
    figures = counter.figures
    assert (figures.total, figures.statuses) == (4, {"2xx": 2, "4xx": 1, "5xx": 1})
    assert figures.median is not None
    assert figures.slow is not None
    assert 0.01 <= figures.median <= 0.015
    assert 2.0 <= figures.slow <= 3.0
    assert figures.rate == 4
    await trio.sleep(RATE_OVER + 1)
    assert counter.figures.rate == 0
    assert counter.figures.total == 4


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_quantiles_are_never_too_small(times: list[float]) -> None:
    async def run() -> None:
        counter = RequestCounter()
        for seconds in times:
            counter.count(200, seconds)
        found = counter.figures
        assert found.median is not None
        exact = sorted(times)[(len(times) - 1) // 2]
        assert found.median >= min(exact, 0.001 * 1.5**39) - 1e-4

    trio.run(run)
